"""wg's configuration protocol for userspace implementations (wireguard.com/xplatform).

A request is lines of key=value that end with an empty line; the first is get=1 or set=1. The
answer to a get is such lines; every answer ends with errno=N and an empty line, N being
0 or a negative errno, which is what wg expects. A client may send any number of requests.

Sans-I/O: `answer` maps a request to an answer. A set is parsed whole before anything of it is
applied, so what is malformed changes nothing. Peers that it does not name are not touched.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Protocol

from fastpump.conn.endpoint import Endpoint, split_host_port
from fastpump.constants import KEY_LEN, MAX_KEEPALIVE_S, SECOND
from fastpump.device.device import Device
from fastpump.device.peer import Peer
from fastpump.device.peer_change import PeerChange, PrefixChange, Presence
from fastpump.errors import ConfigError, SystemSetupError
from fastpump.ip import Prefix, prefix_text

log = logging.getLogger("fastpump.uapi")


class Target(Protocol):
    """What is configured: the supervisor, or a stand-in of the tests."""

    @property
    def device(self) -> Device: ...
    @property
    def listen_port(self) -> int: ...
    @property
    def fwmark(self) -> int: ...
    def set_private_key(self, private_key: bytes) -> None: ...
    def set_listen_port(self, port: int) -> None: ...
    def set_fwmark(self, fwmark: int) -> None: ...


class Refused(Exception):
    """A request that is answered with `errno`."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.errno = number


@dataclass(slots=True)
class DeviceChange:
    """A whole set; None: unchanged."""

    private_key: bytes | None = None
    listen_port: int | None = None
    fwmark: int | None = None
    replaces_peers: bool = False
    peers: list[PeerChange] = field(default_factory=list)


def answer(target: Target, request: bytes, now: int) -> bytes:
    """The answer to one request, whatever is in it. `now`: CLOCK_BOOTTIME, ns."""
    body, number = "", 0
    try:
        operation, *lines = request.decode("ascii").split("\n")
        lines = [line for line in lines if line]
        if operation == "set=1":
            apply(target, parse(lines), now)
        elif operation == "get=1" and not lines:
            body = "".join(describe(target))
        else:
            raise Refused(errno.EINVAL, "neither get=1 nor set=1")
    except Refused as error:
        number = error.errno
        log.info("a configuration was refused: %(error)s", {"error": error})
    except UnicodeDecodeError:
        number = errno.EINVAL
    except MemoryError as error:
        number = errno.ENOMEM
        log.warning("a configuration was applied in part: %(error)s", {"error": error})
    return f"{body}errno={-number}\n\n".encode()


def answer_for_ended(listen_port: int, fwmark: int, request: bytes, _now: int) -> bytes:
    """The answer to a request for an interface that is gone, of which these are still known."""
    if request.strip() == b"get=1":
        return f"{_describe_interface(listen_port, fwmark)}errno=0\n\n".encode()
    return f"errno={-errno.ENODEV}\n\n".encode()


# -- get

def describe(target: Target) -> Iterator[str]:
    """The whole configuration and state, a few lines at a time."""
    device = target.device
    if device.public_key is not None:
        yield f"private_key={device.private_key.hex()}\n"
    yield _describe_interface(target.listen_port, target.fwmark)
    for peer in device.peers.values():
        yield _describe_peer(device, peer)


def _describe_interface(listen_port: int, fwmark: int) -> str:
    return f"listen_port={listen_port}\n" + (f"fwmark={fwmark}\n" if fwmark else "")


def _describe_peer(device: Device, peer: Peer) -> str:
    seconds, nanoseconds = divmod(peer.latest_handshake_unix_ns, SECOND)
    received, sent = device.transferred(peer)
    where = device.endpoints.of_data(peer)
    endpoint = "" if where is None else f"endpoint={where}\n"
    return (f"public_key={peer.public_key.hex()}\npreshared_key={peer.preshared_key.hex()}\n"
            f"protocol_version=1\n{endpoint}"
            f"last_handshake_time_sec={seconds}\nlast_handshake_time_nsec={nanoseconds}\n"
            f"tx_bytes={sent}\nrx_bytes={received}\n"
            f"persistent_keepalive_interval={peer.persistent_keepalive_s}\n"
            + "".join(f"allowed_ip={prefix_text(prefix)}\n" for prefix in peer.allowed_ips))


# -- set

def parse(lines: list[str]) -> DeviceChange:
    """The lines behind set=1; Refused for anything that is not as it should be."""
    change = DeviceChange()
    sections: list[_PeerSection] = []
    for line in lines:
        key, equals, value = line.partition("=")
        if not equals:
            raise Refused(errno.EPROTO, "a line is not key=value")
        if key == "public_key":
            sections.append(_PeerSection(_key(value)))
        elif sections:
            sections[-1].parse_line(key, value)
        else:
            _parse_device_line(change, key, value)
    change.peers = [section.change() for section in sections]
    return change


def _parse_device_line(change: DeviceChange, key: str, value: str) -> None:
    match key:
        case "private_key":
            change.private_key = _key(value)
        case "listen_port":
            change.listen_port = _number(value, 65535)
        case "fwmark":
            change.fwmark = _number(value, 0xFFFFFFFF)
        case "replace_peers":
            change.replaces_peers = _true(value)
        case _:
            raise Refused(errno.EINVAL, "an unknown key of the interface")


class _PeerSection:
    """The lines behind one public_key; of a key that comes twice, the last counts."""

    def __init__(self, public_key: bytes) -> None:
        self._public_key = public_key
        self._removes = False
        self._updates_only = False
        self._fields: dict[str, Any] = {}
        self._allowed_ips: list[PrefixChange] = []

    def parse_line(self, key: str, value: str) -> None:
        """One key=value; Refused."""
        match key:
            case "allowed_ip":
                self._allowed_ips.append(_prefix_change(value))
            case "endpoint":
                self._fields |= {"endpoint": parse_endpoint(value), "endpoint_names": ()}
            case "preshared_key":
                self._fields["preshared_key"] = _key(value)
            case "persistent_keepalive_interval":
                self._fields["keepalive_s"] = _number(value, MAX_KEEPALIVE_S)
            case "replace_allowed_ips":
                self._fields["replaces_allowed_ips"] = _true(value)
            case "remove":
                self._removes = _true(value)
            case "update_only":
                self._updates_only = _true(value)
            case "protocol_version":
                if value != "1":
                    raise Refused(errno.EINVAL, "another protocol version than 1")
            case _:
                raise Refused(errno.EINVAL, "an unknown key of a peer")

    def change(self) -> PeerChange:
        """What all lines say together."""
        presence = Presence.CREATE
        if self._updates_only:
            presence = Presence.UPDATE
        if self._removes:
            presence = Presence.REMOVE
        return PeerChange(self._public_key, presence, allowed_ips=tuple(self._allowed_ips),
                          **self._fields)


def _key(value: str) -> bytes:
    try:
        key = bytes.fromhex(value)
    except ValueError:
        key = b""
    if len(key) != KEY_LEN or len(value) != 2 * KEY_LEN:
        raise Refused(errno.EINVAL, "a key is not 64 hexadecimal digits")
    return key


def _number(value: str, most: int) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 10 and int(value) <= most):
        raise Refused(errno.EINVAL, f"a number is not 0 to {most}")
    return int(value)


def _true(value: str) -> bool:
    if value != "true":
        raise Refused(errno.EINVAL, "a switch is not true")
    return True


def _prefix_change(value: str) -> PrefixChange:
    """A prefix; with a sign in front: + as without, - for one that is removed."""
    sign = value[:1] if value[:1] in ("+", "-") else ""
    return PrefixChange(parse_prefix(value[len(sign):]), sign != "-")


def parse_prefix(text: str) -> Prefix:
    """ADDRESS/LENGTH, or an address alone for all of its bits; host bits are cleared. Fast:
    there may be tens of thousands in a set."""
    address, slash, length_text = text.partition("/")
    try:
        packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    except (OSError, ValueError):      # ValueError: a NUL
        raise Refused(errno.EINVAL, "an allowed IP is not ADDRESS/LENGTH") from None
    bits = 8 * len(packed)
    length = _number(length_text, bits) if slash else bits
    if length < bits:
        shift = bits - length
        packed = (int.from_bytes(packed, "big") >> shift << shift).to_bytes(bits // 8, "big")
    return packed, length


def parse_endpoint(text: str) -> Endpoint:
    """ADDRESS:PORT or [V6]:PORT; a link-local V6 may end with %INTERFACE."""
    try:
        host, port = split_host_port(text)
        if ":" in host and not text.startswith("["):
            raise ValueError("IPv6 without brackets is for files")
        address, _, scope = host.partition("%")
        scope_id = 0
        if scope:
            if ":" not in address:
                raise ValueError("a scope is IPv6's")
            scope_id = _number(scope, 0x7FFFFFFF) if scope.isdigit() else (
                socket.if_nametoindex(scope))
        return Endpoint(ip_address(address), port, scope_id)
    except (ConfigError, ValueError, OSError):
        raise Refused(errno.EINVAL, "an endpoint is not ADDRESS:PORT") from None


def apply(target: Target, change: DeviceChange, now: int) -> None:
    """Apply a parsed set, in the kernel's order. Refused, MemoryError."""
    device = target.device
    if change.fwmark is not None:
        _set_fwmark(target, change.fwmark)
    if change.listen_port is not None:
        _set_listen_port(target, change.listen_port)
    if change.replaces_peers:
        for public_key in list(device.peers):
            device.configure_peer(PeerChange(public_key, Presence.REMOVE), now)
    if change.private_key is not None:
        target.set_private_key(change.private_key)
    for peer_change in change.peers:
        _configure_peer(device, peer_change, now)


def _set_fwmark(target: Target, fwmark: int) -> None:
    try:
        target.set_fwmark(fwmark)
    except SystemSetupError as error:
        raise Refused(errno.EPERM, str(error)) from None


def _set_listen_port(target: Target, port: int) -> None:
    try:
        target.set_listen_port(port)
    except SystemSetupError as error:
        raise Refused(errno.EADDRINUSE, str(error)) from None


def _configure_peer(device: Device, change: PeerChange, now: int) -> None:
    if change.public_key == device.public_key:
        return      # so that one file can serve all sides (as in the kernel)
    try:
        device.configure_peer(change, now)
    except ConfigError as error:
        raise Refused(errno.EAFNOSUPPORT, str(error)) from None
