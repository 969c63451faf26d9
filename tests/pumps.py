"""Two pumps in this process: socket pairs for interfaces, loopback UDP between them."""

from __future__ import annotations

import os
import socket
import struct

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from packets import PLAIN

from fastpump._core import Pump, SharedTables
from fastpump.constants import REJECT_AFTER_TIME, REKEY_AFTER_TIME
from fastpump.endpoint import Endpoint
from fastpump.sockets import UDP_GRO

START = 1 << 40
KEYS = bytes(range(32)), bytes(range(32, 64))
EVERYTHING = ("udp-gso", "tun-tcp4", "tun-tcp6", "tun-udp4", "tun-udp6")


class End:
    """One pump, one worker, one peer. `interface` is the kernel's side of its queue."""

    def __init__(self, number: int, *, offloads=EVERYTHING, backend=None, session=True, mtu=1420):
        self.tables = SharedTables.create(1, 16, 8192)
        self.tables.offloads = offloads
        self.tables.mtu = mtu
        self.peer = self.tables.peer_add()
        self.tables.allowed_insert(bytes([10, 9, 0, 2 - number]), 32, self.peer)
        self.tables.allowed_insert(bytes.fromhex("fd000009") + bytes(11) + bytes([2 - number]),
                                   128, self.peer)
        self.interface, self.queue = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self.udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.udp.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        self.udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.udp.bind(("::ffff:127.0.0.1", 0))
        for sock in (self.interface, self.queue, self.udp):
            sock.setblocking(False)
        self.interface.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.queue.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.doorbell, self.event = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))
        self.keys = KEYS if number == 0 else KEYS[::-1]
        self.slot, self.index = self.tables.keypair_reserve(0)
        self.other: End
        if session:
            self.start_session()
        self.pump = Pump(self.tables, 0, [self.queue.fileno()], self.udp.fileno(), self.doorbell,
                         self.event, backend=backend)

    def start_session(self, remote_index=0x01020304, *, is_initiator=True, created=START):
        self.tables.keypair_install(
            self.slot, self.index, remote_index, self.peer, 0, *self.keys, is_initiator,
            created + REKEY_AFTER_TIME, created + REKEY_AFTER_TIME, created + REJECT_AFTER_TIME)
        self.tables.peer_set_send_keypair(self.peer, self.slot)

    @property
    def endpoint(self):
        return Endpoint.from_python(self.udp.getsockname())

    def close(self):
        for sock in (self.interface, self.queue, self.udp):
            sock.close()
        for fd in (self.doorbell, self.event):
            os.close(fd)
        self.tables.close()

    def give(self, packet, vnet=PLAIN):
        """A packet from the host into the interface."""
        self.interface.send(vnet + packet)

    def take(self):
        """All that was written to the interface: vnet headers and packets."""
        return list(drain(self.interface))

    def turn(self, now=START):
        self.pump.turn(now)

    def counters(self):
        return self.tables.worker_counters(0)["counters"]

    def verdicts(self):
        """Those that are not zero."""
        found = self.tables.worker_counters(0)["verdicts"]
        return {name: count for name, count in found.items() if count}

    def events(self):
        return [event[0] for event in self.tables.worker_events(0)]


def drain(sock):
    while True:
        try:
            yield sock.recv(1 << 17)
        except BlockingIOError:
            return


def pair(**more):
    """Two connected ends."""
    one, two = End(0, **more), End(1, **more)
    for end, other in ((one, two), (two, one)):
        end.other = other
        end.tables.peer_set_endpoint(end.peer, other.endpoint.sockaddr(socket.AF_INET6))
        if more.get("session", True):
            end.start_session(other.index)
    return one, two


def message(end, counter, inner, *, key=None, index=None, kind=4):
    """A transport message that `end` will take for its peer's."""
    header = struct.pack("<IIQ", kind, end.index if index is None else index, counter)
    sealed = ChaCha20Poly1305(key or end.keys[1]).encrypt(
        bytes(4) + struct.pack("<Q", counter), inner, b"")
    return header + sealed
