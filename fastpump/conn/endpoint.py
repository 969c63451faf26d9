"""Endpoints: where a peer's datagrams go, as text and as struct sockaddr.

The UDP sockets are dual-stack (AF_INET6, IPv4 as v4-mapped addresses) unless the host
has no IPv6; then they are AF_INET, and so are the sockaddrs.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import zip_longest

from fastpump.errors import ConfigError, invalid

_SOCKADDR_IN6 = struct.Struct("=H2sI16sI")
_SOCKADDR_IN = struct.Struct("=H2s4s8x")
_MAPPED_PREFIX = bytes(10) + b"\xff\xff"
_PORT = re.compile("0*[0-9]{1,5}")

NO_SOURCE_ADDRESS = bytes(16)
"""In place of a source address: the kernel chooses. Source addresses are 16 bytes, IPv4 ones
v4-mapped."""


def source_address_of(host: str) -> bytes:
    """A source address, from what getsockname(2) gives."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return address.packed if address.version == 6 else _MAPPED_PREFIX + address.packed


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and a UDP port; `scope_id` only for link-local IPv6."""

    address: IPv4Address | IPv6Address
    port: int
    scope_id: int = 0

    def __str__(self) -> str:
        """As wg prints it: 192.0.2.1:51820 or [2001:db8::1]:51820."""
        if self.address.version == 4:
            return f"{self.address}:{self.port}"
        return f"[{self.host}]:{self.port}"

    @property
    def host(self) -> str:
        """The address, with the scope of a link-local one."""
        return f"{self.address}%{self.scope_id}" if self.scope_id else str(self.address)

    def is_of(self, family: int) -> bool:
        """Whether a socket of `family` can send there."""
        return family == socket.AF_INET6 or self.address.version == 4

    def sockaddr(self, family: int) -> bytes:
        """struct sockaddr_in6 (or _in) for a socket of `family`."""
        port = self.port.to_bytes(2, "big")
        if not self.is_of(family):
            raise ConfigError(f"the endpoint {self} is IPv6, which this host does not have")
        if family == socket.AF_INET:
            return _SOCKADDR_IN.pack(socket.AF_INET, port, self.address.packed)
        packed = self.address.packed
        if self.address.version == 4:
            packed = _MAPPED_PREFIX + packed
        return _SOCKADDR_IN6.pack(socket.AF_INET6, port, 0, packed, self.scope_id)

    @classmethod
    def from_sockaddr(cls, data: bytes) -> Endpoint:
        """The reverse; v4-mapped addresses come out as IPv4."""
        family = int.from_bytes(data[:2], "little" if struct.pack("=H", 1)[0] else "big")
        port = int.from_bytes(data[2:4], "big")
        if family == socket.AF_INET:
            return cls(IPv4Address(data[4:8]), port)
        _, _, _, packed, scope_id = _SOCKADDR_IN6.unpack(data[:_SOCKADDR_IN6.size])
        if packed[:12] == _MAPPED_PREFIX:
            return cls(IPv4Address(packed[12:]), port)
        return cls(IPv6Address(packed), port, scope_id)

    @classmethod
    def from_python(cls, address: tuple[object, ...]) -> Endpoint:
        """What recvfrom() gives: (host, port) or (host, port, flowinfo, scope_id)."""
        host = ipaddress.ip_address(str(address[0]).partition("%")[0])
        scope_id = int(str(address[3])) if len(address) == 4 else 0
        if isinstance(host, IPv6Address) and host.ipv4_mapped is not None:
            return cls(host.ipv4_mapped, int(str(address[1])))
        return cls(host, int(str(address[1])), scope_id)

    def to_python(self, family: int) -> tuple[str, int] | tuple[str, int, int, int]:
        """What sendto() takes on a socket of `family`."""
        if family == socket.AF_INET:
            return str(self.address), self.port
        if self.address.version == 4:
            return f"::ffff:{self.address}", self.port, 0, 0
        return str(self.address), self.port, 0, self.scope_id


def split_host_port(text: str) -> tuple[str, int]:
    """HOST:PORT or [HOST]:PORT; without brackets the last colon separates, as in wg, also after an
    IPv6 address. ConfigError says what is wrong."""
    if text.startswith("["):
        host, separator, port = text[1:].partition("]:")
    else:
        host, separator, port = text.rpartition(":")
    if not separator or not host or "]" in host or not _PORT.fullmatch(port) \
            or not 1 <= int(port[-5:]) <= 65535:
        raise invalid("endpoint", text, "HOST:PORT, with a port from 1 to 65535")
    return host, int(port[-5:])


def is_name(host: str) -> bool:
    """Whether a host is a name, not an address."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return True
    return False


class EndpointError(ConfigError):
    """The host of an `endpoint` cannot be resolved."""

    def __init__(self, message: str, endpoint: tuple[str, int]) -> None:
        super().__init__(message)
        self.endpoint = endpoint


def resolve(host: str, port: int) -> tuple[Endpoint, ...]:
    """All addresses of a name, in the order in which they are to be tried; EndpointError. Blocks
    during the lookup."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise EndpointError(f"the endpoint host {host!r} cannot be resolved: {reason}",
                            (host, port)) from None
    return interleaved(Endpoint.from_python(each[4]) for each in found)


def interleaved(endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    """The system's order (RFC 6724), but the two families in turn, so that one that does not work
    here does not keep the other waiting (RFC 8305, section 4)."""
    distinct = list(dict.fromkeys(endpoints))
    first = [each for each in distinct if each.address.version == distinct[0].address.version]
    others = [each for each in distinct if each not in first]
    mixed = (each for pair in zip_longest(first, others) for each in pair)
    return tuple(each for each in mixed if each is not None)
