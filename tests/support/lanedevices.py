"""Two devices that do lanes, with real workers and a fake clock.

What a device sends is kept until it is delivered: from the socket where the side is said to be,
to a socket of the other side's worker, so that what the workers report is real. What the workers
send themselves goes to that socket, too, where nobody reads it.
"""

import os
import socket
import struct

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fastpump._core import Pump, SharedTables, keys_of_session
from fastpump.conn.endpoint import NO_SOURCE_ADDRESS, Endpoint
from fastpump.constants import REKEY_TIMEOUT, SECOND
from fastpump.device.callbacks import DeviceCallbacks
from fastpump.device.device import Device
from fastpump.device.events import ControlPacket, WorkerEvent
from fastpump.device.lane_context import Options
from fastpump.device.peer_change import PeerChange, PrefixChange
from fastpump.protocol import keys
from support import plainlanes
from support.devices import Callbacks, Clock
from support.packets import PLAIN, VNET
from support.pumps import attached, udp_socket

LANE_SOCKETS = 4        # for each queue
# To 10.9.0.2, which is behind the peer.
PACKET = bytes.fromhex("4500001400000000400100000a0900010a090002")


def received(sock):
    """All that waits in a socket."""
    found = []
    while True:
        try:
            found.append(sock.recv(1 << 16))
        except BlockingIOError:
            return found


class Place:
    """Where a side is, as the other sees it."""

    def __init__(self):
        self.socket = udp_socket()
        self.endpoint = Endpoint.from_python(self.socket.getsockname())


class Side(Callbacks):
    """A device, its workers, and what it has sent. It stays in its place when it is restarted."""

    def __init__(self, world, place, queues, options):
        self.world, self.place, self.sent, self.lane_sent = world, place, [], []
        self.probes, self.trains = 0, []
        self.tables = SharedTables.create(queues, 64, 4096)
        self.tables.mtu = 1420
        self._files = []
        lane_sockets = [udp_socket() for _ in range(LANE_SOCKETS * queues)]
        self._files += lane_sockets
        self._interfaces, self._sockets, self._pumps = [], [], []
        for _ in range(queues):
            self._pumps.append(self._pump(queues, lane_sockets))
        self.device = Device(self.tables, DeviceCallbacks(
            transmit=lambda message, where, source_address: self.sent.append(message),
            transmit_lane=self._transmit_lane,
            transmit_probe=None if world.path_mtu is None else self._transmit_probe,
            ring=lambda: None, unix_ns=lambda: world.unix_ns, jitter=lambda limit: 0,
            on_deadline=self.on_deadline, on_retired=self.on_retired), socket.AF_INET6,
            lanes=Options(socket_count=len(lane_sockets), **options))
        self.device.set_private_key(keys.generate_private())
        self.device.start(world.now)

    def _pump(self, queues, lane_sockets):
        interface, queue = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        bells = [os.fdopen(os.eventfd(0, os.EFD_NONBLOCK), "rb", buffering=0) for _ in range(2)]
        for sock in (interface, queue):
            sock.setblocking(False)
        self._interfaces.append(interface)
        self._sockets.append(udp_socket())
        self._files += [interface, queue, self._sockets[-1], *bells]
        return Pump(attached(self.tables), len(self._pumps), [queue.fileno()] * queues,
                    self._sockets[-1].fileno(), *(bell.fileno() for bell in bells),
                    lane_fds=[sock.fileno() for sock in lane_sockets])

    def _transmit_lane(self, message, where, _source_address, number):
        if message[0] == 4:         # an answer to a probe of the session
            self.sent.append(message)
        else:
            self.lane_sent.append((message, where, number))

    def _transmit_probe(self, message, where, source_address, number, datagram_len):
        """What the path does not take is lost, and so is what it does not bring whole."""
        if datagram_len:
            self.trains.append((len(message), datagram_len))
            is_received = self.world.brings_trains
        else:
            self.probes += 1
            is_received = len(message) + 28 <= self.world.path_mtu
        if is_received:
            self._transmit_lane(message, where, source_address, number)
        return True

    def close(self):
        for each in self._files:
            each.close()
        self.tables.close()

    # -- what is known

    @property
    def peer(self):
        (peer,) = self.device.peers.values()
        return peer

    @property
    def lanes(self):
        return self.device.lanes.of(self.peer)

    @property
    def sets(self):
        return list(self.lanes.sets)

    @property
    def newest(self):
        return self.lanes.sets.newest

    @property
    def usable(self):
        """The lanes of the newest set that workers send on."""
        return [lane.number for lane in self.newest.lanes
                if self.tables.lanes.status(lane.slot)["is_usable"]]

    @property
    def upgrade(self):
        """Of the only session."""
        (upgrade,) = self.lanes.upgrades
        return upgrade

    def verdicts(self, worker=0):
        return self.tables.workers.counters(worker)["verdicts"]

    # -- what happens

    def add_peer(self, other):
        self.configure(other, endpoint=other.place.endpoint,
                       allowed_ips=(PrefixChange((bytes([10, 9, 0, 2]), 32), True),))

    def configure(self, other, **fields):
        """Change the peer; the fields are PeerChange's."""
        self.device.configure_peer(PeerChange(other.device.public_key, **fields), self.world.now)

    def run(self):
        """What workers and supervisor do when something has come."""
        for number, pump in enumerate(self._pumps):
            pump.poll(self.world.now)
            for event in self.tables.workers.events(number):
                self.device.on_event(WorkerEvent(*event), self.world.now)
            for packet in self.tables.workers.controls(number):
                self.device.on_control(ControlPacket(*packet), self.world.now)

    def tick(self):
        self.device.tick(self.world.now)
        self.alarm = self.device.next_deadline()
        self.check_callbacks()

    def start_handshake(self):
        """The initiation, as when an interface comes up that had a session."""
        self.peer.lost_session = True
        self.device.start(self.world.now)
        self.tick()
        (initiation,) = [message for message in self.sent if message[0] == 1]
        self.sent.remove(initiation)
        return initiation

    def send_packet(self, worker):
        """Data for the peer, from the host."""
        self.write_packet(worker, PACKET)
        self.run()

    def write_packet(self, worker, packet):
        """The host sends a packet; the worker has not looked yet."""
        self._interfaces[worker].send(PLAIN + packet)

    def take_packets(self):
        """What the workers have written to the interface."""
        return [data[VNET.size:] for interface in self._interfaces for data in received(interface)]

    def receive_handshake(self, message, other):
        self.device.receive(message, other.place.endpoint, NO_SOURCE_ADDRESS, self.world.now)

    def receive_session(self, message, other):
        """A transport message; the kind of the control packet in it."""
        _, index, counter = struct.unpack("<IIQ", message[:16])
        sender = next(each for each in (other.peer.keypairs.current, other.peer.keypairs.next,
                                        other.peer.keypairs.previous)
                      if each is not None and each.remote_index == index)
        inner = ChaCha20Poly1305(keys_of_session(other.tables, sender.slot)[0]).decrypt(
            bytes(4) + struct.pack("<Q", counter), message[16:], b"")
        self.receive_by(self.peer.worker, message, other.place)
        return plainlanes.parse_control(inner)[0] if inner else "keepalive"

    def receive_lane(self, message, other):
        self.receive_by(message[2] % self.tables.queue_count, message, other.place)

    def receive_by(self, worker, message, source):
        """A message that comes to a worker's socket."""
        source.socket.sendto(message, self._sockets[worker].getsockname())
        self.run()

    def receive_control(self, data):
        """A control packet that came in the newest session; the verdict if it is dropped."""
        keypair = self.peer.keypairs.next or self.peer.keypairs.current
        return self.lanes.receive(keypair, data, self.world.now)

    def keepalive(self, counter=1000):
        """A keepalive in the newest session that the device does not know of. The counters that
        it uses itself are lower, and in the replay window."""
        keypair = self.peer.keypairs.current
        sealed = ChaCha20Poly1305(keys_of_session(self.tables, keypair.slot)[0]).encrypt(
            bytes(4) + struct.pack("<Q", counter), b"", b"")
        return struct.pack("<IIQ", 4, keypair.remote_index, counter) + sealed

    def take_probes(self):
        """The lanes of the probes that it has sent, which are lost."""
        found = [message[2] for message, _, _ in self.lane_sent
                 if message[1] & plainlanes.ASK]
        self.lane_sent.clear()
        return found


class World(Clock):
    """Two sides that are peers."""

    def __init__(self, *, queues=(2, 2), a=None, b=None, path_mtu=None):
        """`path_mtu`: None: it is not probed."""
        super().__init__()
        self.path_mtu = path_mtu
        self.brings_trains = True
        self._places = []
        self.blocked = set()
        """(sender, lane): what does not arrive."""
        self.a = Side(self, self.new_place(), queues[0], a or {})
        self.b = Side(self, self.new_place(), queues[1], b or {})
        self.a.add_peer(self.b)
        self.b.add_peer(self.a)

    def close(self):
        self.a.close()
        self.b.close()
        for place in self._places:
            place.socket.close()

    def new_place(self):
        """Where nothing was sent from so far."""
        self._places.append(Place())
        return self._places[-1]

    def restart_b(self, **options):
        """The same key, and nothing else of what it knew."""
        private = self.b.device.private_key
        self.b.close()
        self.b = Side(self, self.b.place, 2, options)
        self.b.device.set_private_key(private)
        self.b.add_peer(self.a)

    # -- time

    def steps(self, seconds, *sides):
        """Let time pass in tenths of a second; the sides run their timers."""
        for _ in range(round(10 * seconds)):
            self.pass_time(SECOND // 10)
            for side in sides:
                side.tick()
            yield self.now

    def advance(self, ns, *, step=SECOND // 10):
        """Let time pass, and deliver what is sent meanwhile."""
        end = self.now + ns
        while self.now < end:
            self.pass_time(min(step, end - self.now))
            self.a.tick()
            self.b.tick()
            self.settle()

    # -- messages

    def handshake(self, one, other):
        """A new session, up to the initiator's first message, which has not arrived."""
        other.receive_handshake(one.start_handshake(), one)
        one.receive_handshake(other.sent.pop(), other)

    def deliver(self, one, other):
        """Everything that one side has sent; the kinds."""
        kinds = []
        sent, one.sent = one.sent, []
        for message in sent:
            if message[0] == 4:
                kinds.append(other.receive_session(message, one))
            else:
                other.receive_handshake(message, one)
                kinds.append(f"type {message[0]}")
        lane_sent, one.lane_sent = one.lane_sent, []
        for message, _, _ in lane_sent:
            if (one, message[2]) in self.blocked:
                continue
            other.receive_lane(message, one)
            kinds.append(("lane", message[2], message[1]))
        return kinds

    def settle(self):
        """Deliver until there is nothing to deliver."""
        for _ in range(20):
            if not self.deliver(self.a, self.b) + self.deliver(self.b, self.a):
                return
        raise AssertionError("they never stop")

    def connect(self):
        """A session that a initiates, and its lanes."""
        self.handshake(self.a, self.b)
        self.settle()

    def rekey(self, one, other):
        """A new session and its upgrade."""
        self.advance(REKEY_TIMEOUT)
        self.handshake(one, other)
        self.settle()
