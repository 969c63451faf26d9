"""Two pumps in this process: socket pairs for interfaces, loopback UDP between them."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from collections.abc import Sequence

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fastpump._core import (
    FEATURE_BUNDLE,
    FEATURE_PARTIAL,
    FEATURE_RECORDS,
    AttachedTables,
    NewKeypair,
    NewLanes,
    Pump,
    SharedTables,
)
from fastpump.conn.endpoint import Endpoint
from fastpump.constants import REJECT_AFTER_TIME, REKEY_AFTER_TIME
from fastpump.kernel import UDP_GRO, UDP_SEGMENT
from support.packets import PLAIN
from support.plainlanes import PlainLane

START = 1 << 40
LANE_SOCKETS = 8
ALL_FEATURES = FEATURE_PARTIAL | FEATURE_BUNDLE | FEATURE_RECORDS
KEYS = bytes(range(32)), bytes(range(32, 64))
EVERYTHING = ("udp-gso", "tun-tcp4", "tun-tcp6", "tun-udp4", "tun-udp6")


def attached(tables):
    """The tables as a worker process has them: their configuration cannot be written."""
    return AttachedTables.attach(tables.readonly_fd, tables.state_fd)


def udp_socket():
    """As the workers have them."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind(("::ffff:127.0.0.1", 0))
    return sock


def lane_keys(generation, lane):
    """(initiator's send key, its receive key) of a lane in a test."""
    return tuple(hashlib.sha256(f"{generation} {lane} {way}".encode()).digest() for way in "to")


class Pumped:
    """What a test has of one pump: `tables`, `pump`, the `interface` that is the kernel's side of
    its queue, and sockets."""

    lane_sockets: Sequence[socket.socket] = ()

    @property
    def endpoint(self):
        return Endpoint.from_python(self.udp.getsockname())

    def close(self):
        for sock in (self.interface, self.queue, self.udp, *self.lane_sockets):
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

    def poll(self, now=START):
        return self.pump.poll(now)

    def counters(self):
        return self.tables.workers.counters(0)["counters"]

    def verdicts(self):
        """Those that are not zero."""
        found = self.tables.workers.counters(0)["verdicts"]
        return {name: count for name, count in found.items() if count}

    def events(self):
        return [event[0] for event in self.tables.workers.events(0)]


class End(Pumped):
    """One pump, one worker, one peer. `interface` is the kernel's side of its queue."""

    def __init__(self, number: int, *, offloads=EVERYTHING, backend=None, session=True, mtu=1420):
        self.tables = SharedTables.create(1, 16, 8192, backend=backend)
        self.tables.offloads = offloads
        self.tables.mtu = mtu
        self.peer = self.tables.peers.add()
        self.tables.allowed_ips.insert(bytes([10, 9, 0, 2 - number]), 32, self.peer)
        self.tables.allowed_ips.insert(bytes.fromhex("fd000009") + bytes(11) + bytes([2 - number]),
                                   128, self.peer)
        self.interface, self.queue = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.udp = udp_socket()
        for sock in (self.interface, self.queue):
            sock.setblocking(False)
        self.interface.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.queue.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.doorbell, self.event = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))
        self.keys = KEYS if number == 0 else KEYS[::-1]
        self.slot, self.index = self.tables.keypairs.reserve(0)
        self.number = number
        self.first: int | None = None       # slot of lane 0 of the newest set
        self.other: End
        if session:
            self.start_session()
        self.lane_sockets = [udp_socket() for _ in range(LANE_SOCKETS)]
        self.pump = Pump(attached(self.tables), 0, [self.queue.fileno()], self.udp.fileno(),
                         self.doorbell, self.event,
                         lane_fds=[sock.fileno() for sock in self.lane_sockets])

    def start_session(self, remote_index=0x01020304, *, is_initiator=True, created=START):
        send_key, receive_key = self.keys
        self.tables.keypairs.install(self.slot, NewKeypair(
            local_index=self.index, remote_index=remote_index, peer=self.peer, worker=0,
            send_key=send_key, receive_key=receive_key, is_initiator=is_initiator,
            rekey_at_ns=created + REKEY_AFTER_TIME, rekey_rx_at_ns=created + REKEY_AFTER_TIME,
            reject_at_ns=created + REJECT_AFTER_TIME))
        self.tables.peers.set_send_keypair(self.peer, self.slot)

    def reserve_lanes(self, count=1):
        """A new set that waits for its keys."""
        self.first, self.lanes_index = self.tables.lanes.reserve(self.peer, count)

    def install_lanes(self, *, cipher="aes-256-gcm", features=ALL_FEATURES, generation=0,
                      remote_index=None, created=START, count=1, opens=None):
        """Make it live: end 0 is the initiator and opens the lanes, unless told otherwise."""
        if opens is None:
            opens = self.number == 0
        keys = [lane_keys(generation, lane)[::1 if self.number == 0 else -1]
                for lane in range(count)]
        where = self.other.endpoint.sockaddr(socket.AF_INET6) if opens else b""
        self.tables.lanes.install(self.first, NewLanes(
            remote_index=self.other.lanes_index if remote_index is None else remote_index,
            cipher=cipher, features=features, keys=keys, endpoints=[(where, bytes(16))] * count,
            sockets=LANE_SOCKETS if opens else None, rekey_at_ns=created + REKEY_AFTER_TIME,
            rekey_rx_at_ns=created + REKEY_AFTER_TIME,
            reject_at_ns=created + REJECT_AFTER_TIME))

    def lane(self, number=0):
        return self.tables.lanes.status(self.first + number)

    def plain(self, number=0, *, generation=0, cipher=1, counter=0):
        """This end of a lane as the plain implementation has it."""
        keys = lane_keys(generation, number)[::1 if self.number == 0 else -1]
        return PlainLane(number, self.other.lanes_index, *keys, cipher=cipher, counter=counter)

    def take_counter(self, lane=0):
        """A send counter of a lane of the newest set."""
        return self.tables.lanes.take_counter(self.first + lane, START)

    def send_lane(self, message):
        """Send a lane message to the other end, from the socket that the lane has here."""
        sock = self.lane_sockets[message[2] % LANE_SOCKETS] if self.number == 0 else self.udp
        where = self.other.udp
        if self.number == 1:
            where = self.other.lane_sockets[message[2] % LANE_SOCKETS]
        sock.sendto(message, where.getsockname())


class WorkerOf(Pumped):
    """The only worker of somebody else's tables, in this process; `doorbell` and `event` are that
    somebody's, too."""

    def __init__(self, tables, doorbell, event):
        self.tables = tables
        self.interface, self.queue = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.udp.bind(("::", 0))
        for sock in (self.interface, self.queue):
            sock.setblocking(False)
        self.pump = Pump(tables, 0, [self.queue.fileno()], self.udp.fileno(), doorbell, event)

    def close(self):
        for sock in (self.interface, self.queue, self.udp):
            sock.close()

    def receive(self, message, *, source="::ffff:127.0.0.1"):
        """A datagram that comes to the worker's socket."""
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sender.bind((source, 0))
            sender.sendto(message, (source, self.udp.getsockname()[1]))


def send_train(sender, target, datagrams):
    """Send datagrams from socket to socket as one GSO message: all as long as the first but the
    last."""
    sender.sendmsg([b"".join(datagrams)], [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack(
        "=H", len(datagrams[0])))], 0, target.getsockname())


def drain(sock):
    while True:
        try:
            yield sock.recv(1 << 17)
        except BlockingIOError:
            return


def datagrams(udp):
    """All that wait in a socket, trains taken apart."""
    found = []
    while True:
        try:
            data, control, _, _ = udp.recvmsg(1 << 17, 100)
        except BlockingIOError:
            return found
        size = next((int.from_bytes(value, "little") for _, kind, value in control
                     if kind == UDP_GRO), len(data))
        found += [data[at:at + size] for at in range(0, len(data), size)]


def on_the_wire(end):
    """Messages that have come to an end's socket, not taken by its worker."""
    return datagrams(end.udp)


def closing(ends):
    for end in ends:
        end.close()


def pair(**more):
    """Two connected ends."""
    one, two = End(0, **more), End(1, **more)
    for end, other in ((one, two), (two, one)):
        end.other = other
        end.tables.peers.set_endpoint(end.peer, other.endpoint.sockaddr(socket.AF_INET6))
        if more.get("session", True):
            end.start_session(other.index)
    return one, two


def lane_pair(*, count=1, usable=True, cipher="aes-256-gcm", features=ALL_FEATURES, **more):
    """Two ends with a set of lanes each, which the workers may send on if `usable`."""
    one, two = pair(**more)
    for end in (one, two):
        end.reserve_lanes(count)
    for end in (one, two):
        end.install_lanes(cipher=cipher, features=features, count=count)
        end.tables.peers.set_lanes(end.peer, end.first, None)
    if usable:
        number = {"aes-256-gcm": 1, "chacha20-poly1305": 2}[cipher]
        for end, other in ((one, two), (two, one)):
            for lane in range(count):
                end.send_lane(end.plain(lane, cipher=number).seal(counter=end.take_counter(lane)))
            other.poll()
            other.events()
    return one, two


def message(end, counter, inner, *, key=None, index=None, kind=4):
    """A transport message that `end` will take for its peer's."""
    header = struct.pack("<IIQ", kind, end.index if index is None else index, counter)
    sealed = ChaCha20Poly1305(key or end.keys[1]).encrypt(
        bytes(4) + struct.pack("<Q", counter), inner, b"")
    return header + sealed


def carry(one, two, packet, vnet=PLAIN):
    """A packet from one interface to the other; what is written there."""
    one.give(packet, vnet)
    one.poll()
    two.poll()
    return two.take()
