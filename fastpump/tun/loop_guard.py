"""The tunnel's own datagrams never enter it.

Where the way to an endpoint leads through the interface itself, each datagram would be read again
as a packet, sealed again, sent again, as fast as the machine can. So what our own sockets sent is
dropped where the kernel hands packets to the interface (TUNSETFILTEREBPF, Linux 4.16), before it is
queued. The kernel's WireGuard asks the route instead (ELOOP).

A datagram is known by the socket that it belongs to until it has left the host, which is what
bpf_get_socket_cookie() tells: unique as long as the system runs, of fragments too, and nothing that
firewalls or routing rules have or change, as they do marks. A tunnel inside a tunnel has other
sockets. A datagram belongs to no socket any more when it has been in another network namespace, or
was flooded by a bridge: then it is recognised by what is in it (hot/loops.pxd).

In the map, a socket has the number of its datagrams that were dropped (8 bytes), and how the last
long one began.
"""

from __future__ import annotations

import fcntl
import ipaddress
import logging
import os
import socket
import struct
from collections.abc import Collection

from fastpump.ip import Address
from fastpump.kernel import (
    BPF_FUNC_GET_SOCKET_COOKIE,
    BPF_FUNC_MAP_LOOKUP_ELEM,
    BPF_FUNC_SKB_LOAD_BYTES,
    SO_COOKIE,
    TUNSETFILTEREBPF,
)
from fastpump.tun import bpf
from fastpump.tun.queues import TunQueues

log = logging.getLogger("fastpump.loops")

_MAX_SOCKETS = 4096
_COUNT_LEN, _HEAD_LEN = 8, 56
"""An Ethernet header and an IPv6 header fit into a head; all our messages are that long."""
_ALL = -1                   # how much of a packet passes; as unsigned, more than it has


def _program(cookies: int) -> list[bpf.Line]:
    """`cookies`: fd of the map. r6: the context; r7: the socket's value in the map."""
    return [
        (bpf.MOV | bpf.REGISTER, 6, 1, 0, 0),
        (bpf.CALL, 0, 0, 0, BPF_FUNC_GET_SOCKET_COOKIE),
        (bpf.STORE_DOUBLE, 10, 0, -8, 0),
        (bpf.LD_IMM64, 1, bpf.PSEUDO_MAP_FD, 0, cookies),
        (bpf.MOV | bpf.REGISTER, 2, 10, 0, 0),
        (bpf.ADD, 2, 0, 0, -8),
        (bpf.CALL, 0, 0, 0, BPF_FUNC_MAP_LOOKUP_ELEM),
        (bpf.JEQ, 0, 0, "pass", 0),
        (bpf.MOV | bpf.REGISTER, 7, 0, 0, 0),
        (bpf.MOV, 1, 0, 0, 1),
        (bpf.ATOMIC_DOUBLE, 7, 1, 0, 0),            # add
        (bpf.MOV | bpf.REGISTER, 1, 6, 0, 0),
        (bpf.MOV, 2, 0, 0, 0),
        (bpf.MOV | bpf.REGISTER, 3, 7, 0, 0),
        (bpf.ADD, 3, 0, 0, _COUNT_LEN),
        (bpf.MOV, 4, 0, 0, _HEAD_LEN),
        (bpf.CALL, 0, 0, 0, BPF_FUNC_SKB_LOAD_BYTES),
        (bpf.MOV, 0, 0, 0, 0),
        (bpf.EXIT, 0, 0, 0, 0),
        "pass",
        (bpf.MOV, 0, 0, 0, _ALL),
        (bpf.EXIT, 0, 0, 0, 0),
    ]


class LoopGuard:
    """The filter of an interface, for the sockets of its tunnel."""

    def __init__(self, tun: TunQueues) -> None:
        """OSError where the kernel does not let us."""
        self._is_tap = tun.is_tap
        self._cookies: set[int] = set()
        self._of_closed = 0
        self._map = bpf.HashMap(_COUNT_LEN + _HEAD_LEN, _MAX_SOCKETS)
        try:
            program = bpf.load_program(bpf.assemble(_program(self._map.fd)))
            try:
                fcntl.ioctl(tun.fds[0], TUNSETFILTEREBPF, struct.pack("=i", program))
            finally:
                os.close(program)
        except BaseException:
            self._map.close()
            raise

    def close(self) -> None:
        """The interface keeps its filter."""
        self._map.close()

    def watch(self, sockets: Collection[socket.socket]) -> None:
        """Guard these, and no others any more."""
        wanted = {cookie_of(sock) for sock in sockets}
        for cookie in wanted - self._cookies:
            self._map.set(cookie, bytes(_COUNT_LEN + _HEAD_LEN))
        for cookie in self._cookies - wanted:
            self._of_closed += _count(self._map.get(cookie))
            self._map.remove(cookie)
        self._cookies = wanted

    @property
    def dropped(self) -> int:
        """Datagrams that would have entered the tunnel."""
        return self._of_closed + sum(_count(self._map.get(cookie)) for cookie in self._cookies)

    def destinations(self) -> set[Address]:
        """Where the last that was dropped of each socket was to go."""
        found = {_destination(self._map.get(cookie)[_COUNT_LEN:], self._is_tap)
                 for cookie in self._cookies}
        return {address for address in found if address is not None}


def _count(value: bytes) -> int:
    return int.from_bytes(value[:_COUNT_LEN], "little")


def _destination(head: bytes, is_tap: bool) -> Address | None:
    """Of an IP packet, or of the one in a frame."""
    at = 0
    if is_tap:
        at = 18 if head[12:14] == b"\x81\x00" else 14
    if head[at] >> 4 == 4:
        return ipaddress.IPv4Address(head[at + 16:at + 20])
    if head[at] >> 4 == 6 and len(head) >= at + 40:
        return ipaddress.IPv6Address(head[at + 24:at + 40])
    return None


def cookie_of(sock: socket.socket) -> int:
    """What the kernel tells it by from all other sockets."""
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")


def guard(tun: TunQueues) -> LoopGuard | None:
    """None where we may not load the program."""
    try:
        return LoopGuard(tun)
    except OSError as error:
        log.info("the kernel takes no filter against loops from here (%(error)s): datagrams that "
                 "enter the tunnel again are recognised by what is in them",
                 {"error": error.strerror})
        return None
