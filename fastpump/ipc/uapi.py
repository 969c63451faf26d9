"""wg's configuration protocol for userspace implementations (wireguard.com/xplatform).

A request is lines of key=value that end with an empty line; the first is get=1 or set=1. The
answer to a get is such lines; every answer ends with errno=N and an empty line, N being
0 or a negative errno, which is what wg expects. A client may ask again and again.

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
from typing import Protocol

from fastpump.conn.endpoint import Endpoint, split_host_port
from fastpump.constants import KEY_LEN, MAX_KEEPALIVE_S, SECOND
from fastpump.device.device import Device
from fastpump.device.peer import Peer, Prefix
from fastpump.errors import ConfigError, SystemSetupError

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
    def settle(self) -> None: ...


class Refused(Exception):
    """A request that is answered with `errno`."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.errno = number


@dataclass(slots=True)
class PeerChange:
    """What a set says of one peer; None: nothing."""

    public_key: bytes
    remove: bool = False
    update_only: bool = False
    preshared_key: bytes | None = None
    endpoint: Endpoint | None = None
    keepalive_s: int | None = None
    replace_allowed_ips: bool = False
    allowed_ips: list[tuple[bool, Prefix]] = field(default_factory=list)
    """(whether it is added, prefix), in order."""


@dataclass(slots=True)
class Change:
    """A whole set."""

    private_key: bytes | None = None
    listen_port: int | None = None
    fwmark: int | None = None
    replace_peers: bool = False
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
        log.info("a configuration was refused: %s", error)
    except UnicodeDecodeError:
        number = errno.EINVAL
    except MemoryError as error:
        number = errno.ENOMEM
        log.warning("a configuration was applied in part: %s", error)
    return f"{body}errno={-number}\n\n".encode()


# -- get

def describe(target: Target) -> Iterator[str]:
    """The whole configuration and state, a few lines at a time."""
    device = target.device
    if device.public_key is not None:
        yield f"private_key={device.private_key.hex()}\n"
    yield f"listen_port={target.listen_port}\n"
    if target.fwmark:
        yield f"fwmark={target.fwmark}\n"
    for peer in device.peers.values():
        yield _describe_peer(device, peer)


def _describe_peer(device: Device, peer: Peer) -> str:
    seconds, nanoseconds = divmod(peer.latest_handshake_unix_ns, SECOND)
    received, sent = device.transferred(peer)
    endpoint = "" if peer.endpoint is None else f"endpoint={peer.endpoint}\n"
    return (f"public_key={peer.public_key.hex()}\npreshared_key={peer.preshared_key.hex()}\n"
            f"protocol_version=1\n{endpoint}"
            f"last_handshake_time_sec={seconds}\nlast_handshake_time_nsec={nanoseconds}\n"
            f"tx_bytes={sent}\nrx_bytes={received}\n"
            f"persistent_keepalive_interval={peer.persistent_keepalive_s}\n"
            + "".join(f"allowed_ip={_prefix_text(prefix)}\n" for prefix in peer.allowed_ips))


def _prefix_text(prefix: Prefix) -> str:
    address, length = prefix
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    return f"{socket.inet_ntop(family, address)}/{length}"


# -- set

def parse(lines: list[str]) -> Change:
    """The lines behind set=1; Refused for anything that is not as it should be."""
    change = Change()
    peer: PeerChange | None = None
    for line in lines:
        key, equals, value = line.partition("=")
        if not equals:
            raise Refused(errno.EPROTO, "a line is not key=value")
        if key == "public_key":
            peer = PeerChange(_key(value))
            change.peers.append(peer)
        elif peer is None:
            _parse_device_key(change, key, value)
        else:
            _parse_peer_key(peer, key, value)
    return change


def _parse_device_key(change: Change, key: str, value: str) -> None:
    if key == "private_key":
        change.private_key = _key(value)
    elif key == "listen_port":
        change.listen_port = _number(value, 65535)
    elif key == "fwmark":
        change.fwmark = _number(value, 0xFFFFFFFF)
    elif key == "replace_peers":
        change.replace_peers = _true(value)
    else:
        raise Refused(errno.EINVAL, "an unknown key of the interface")


def _parse_peer_key(peer: PeerChange, key: str, value: str) -> None:
    if key == "allowed_ip":
        is_added = not value.startswith("-")
        text = value[1:] if value[:1] in ("+", "-") else value
        peer.allowed_ips.append((is_added, parse_prefix(text)))
    elif key == "endpoint":
        peer.endpoint = parse_endpoint(value)
    elif key == "preshared_key":
        peer.preshared_key = _key(value)
    elif key == "persistent_keepalive_interval":
        peer.keepalive_s = _number(value, MAX_KEEPALIVE_S)
    elif key == "replace_allowed_ips":
        peer.replace_allowed_ips = _true(value)
    elif key == "remove":
        peer.remove = _true(value)
    elif key == "update_only":
        peer.update_only = _true(value)
    elif key == "protocol_version":
        if value != "1":
            raise Refused(errno.EINVAL, "another protocol version than 1")
    else:
        raise Refused(errno.EINVAL, "an unknown key of a peer")


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


def apply(target: Target, change: Change, now: int) -> None:
    """Apply a parsed set, in the kernel's order. Refused, MemoryError."""
    device = target.device
    try:
        if change.fwmark is not None:
            _set_fwmark(target, change.fwmark)
        if change.listen_port is not None:
            _set_listen_port(target, change.listen_port)
        if change.replace_peers:
            for peer in list(device.peers.values()):
                device.remove_peer(peer)
        if change.private_key is not None:
            target.set_private_key(change.private_key)
        for peer_change in change.peers:
            _apply_peer(device, peer_change, now)
    finally:
        target.settle()


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


def _apply_peer(device: Device, change: PeerChange, now: int) -> None:
    peer = device.peers.get(change.public_key)
    if change.remove:
        if peer is not None:
            device.remove_peer(peer)
        return
    if peer is None:
        # Our own key is passed over, so that one file can serve all sides (as in the kernel).
        if change.update_only or change.public_key == device.public_key:
            return
        peer = device.add_peer(change.public_key)
    if change.preshared_key is not None:
        peer.preshared_key = change.preshared_key
    if change.endpoint is not None:
        try:
            device.set_endpoint(peer, change.endpoint)
            peer.endpoint_name = None
        except ConfigError as error:
            raise Refused(errno.EAFNOSUPPORT, str(error)) from None
    if change.replace_allowed_ips:
        # Only what goes is removed: packets to what stays never miss their way.
        kept = {prefix for is_added, prefix in change.allowed_ips if is_added}
        for prefix in peer.allowed_ips - kept:
            device.remove_allowed_ip(peer, prefix)
    for is_added, prefix in change.allowed_ips:
        if is_added:
            device.add_allowed_ip(peer, prefix)
        else:
            device.remove_allowed_ip(peer, prefix)
    if change.keepalive_s is not None:
        device.set_persistent_keepalive(peer, change.keepalive_s, now)
