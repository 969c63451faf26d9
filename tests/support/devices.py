"""Devices that talk through memory, with a fake clock: one side, or a world of two."""

import socket
from ipaddress import IPv4Address
from typing import NamedTuple

from fastpump._core import SharedTables
from fastpump.conn.endpoint import NO_SOURCE_ADDRESS, Endpoint
from fastpump.constants import SECOND
from fastpump.device.callbacks import DeviceCallbacks
from fastpump.device.device import Device
from fastpump.device.events import WorkerEvent
from fastpump.device.peer_change import PeerChange, Presence
from fastpump.protocol import keys

START = 1000 * SECOND
UNIX_START = 1_700_000_000 * SECOND
PLACE = {name: Endpoint(IPv4Address(f"192.0.2.{number}"), 51820)
         for number, name in enumerate(("a", "b", "mallory"), 1)}
TRANSPORT = 4


class Sent(NamedTuple):
    message: bytes
    where: Endpoint
    source: bytes

    @property
    def kind(self):
        return self.message[0]


class Clock:
    """What time it is, by both clocks."""

    def __init__(self):
        self.now, self.unix_ns = START, UNIX_START

    def pass_time(self, ns):
        self.now += ns
        self.unix_ns += ns


class Callbacks:
    """What a device has told whoever runs it: a deadline, and something to reclaim."""

    device = tables = None
    alarm, must_reclaim = None, False

    def on_deadline(self):
        self.alarm = self.device.next_deadline()

    def on_retired(self):
        self.must_reclaim = True

    def check_callbacks(self):
        """The device has told all that whoever runs it must know; reclaims what may be."""
        deadline = self.device.next_deadline()
        assert deadline is None or (self.alarm is not None and self.alarm <= deadline)
        assert self.must_reclaim or not self.tables.retired
        self.tables.retired.reclaim()
        self.must_reclaim = bool(self.tables.retired)


class Side(Callbacks):
    """A device, and what it asked for: `sent`, `rings` and so on. Its workers are played."""

    def __init__(self, clock, name="a", *, tables=None, private_key=b"", family=socket.AF_INET6,
                 lanes=None, jitter=lambda below: 0, **callbacks):
        """`private_key`: b"" for a new one, zeros for none. `callbacks`: others than these."""
        self.clock, self.name = clock, name
        self.sent, self.known_endpoints, self.unanswered = [], [], []
        self.rings = 0
        self.refusal = 0
        """The errno by which the kernel refuses what is sent; 0 for none."""
        self.tables = tables or SharedTables.create(4, 64, 4096)
        self.tables.close()     # the fd only; nobody attaches
        self.device = Device(self.tables, DeviceCallbacks(
            transmit=self.transmit, ring=self.ring, unix_ns=lambda: clock.unix_ns, jitter=jitter,
            on_deadline=self.on_deadline, on_retired=self.on_retired,
            on_endpoint=self.on_endpoint, on_unanswered=self.unanswered.append, **callbacks,
        ), family, cpu_count=2, lanes=lanes)
        self.device.set_private_key(private_key or keys.generate_private())
        self.device.start(clock.now)

    def transmit(self, message, where, source):
        if self.refusal:
            raise OSError(self.refusal, "refused")
        self.sent.append(Sent(message, where, source))

    def ring(self):
        self.rings += 1

    def on_endpoint(self, before, after):
        if before is not None:
            self.known_endpoints.remove(before)
        if after is not None:
            self.known_endpoints.append(after)

    @property
    def public_key(self):
        return self.device.public_key

    @property
    def peer(self):
        """The only one."""
        (peer,) = self.device.peers.values()
        return peer

    @property
    def has_session(self):
        return self.peer.keypairs.current is not None

    @property
    def kinds(self):
        """The types of the messages that were sent."""
        return [each.kind for each in self.sent]

    def configure(self, public_key, **fields):
        """Change a peer; the fields are PeerChange's."""
        return self.device.configure_peer(PeerChange(public_key, **fields), self.clock.now)

    def remove(self, public_key):
        self.configure(public_key, presence=Presence.REMOVE)

    def receive(self, message, where, source_address=NO_SOURCE_ADDRESS):
        """A handshake message from somewhere."""
        self.device.receive(message, where, source_address, self.clock.now)

    def event(self, name, detail=0, *, peer=None, error=0):
        """What a worker reports of a peer."""
        slot = (self.peer if peer is None else peer).slot
        now = self.clock.now
        self.device.on_event(WorkerEvent(name, slot, detail, error, now), now)

    def want_session(self):
        """A packet waits."""
        self.event("want_session")

    def confirm(self):
        """The first transport message came on the newest keypair of a responder."""
        self.event("confirmed", self.peer.keypairs.next.slot)

    def hand_over_events(self, worker):
        """What a real worker reported."""
        for event in self.tables.workers.events(worker):
            self.device.on_event(WorkerEvent(*event), self.clock.now)

    def tick(self):
        self.device.tick(self.clock.now)
        self.alarm = self.device.next_deadline()


class World(Clock):
    """Two sides, a and b, that are peers."""

    def __init__(self, **fields):
        """`fields`: what else is configured of each peer."""
        super().__init__()
        self.a, self.b = Side(self, "a"), Side(self, "b")
        for one, other in ((self.a, self.b), (self.b, self.a)):
            one.configure(other.public_key, endpoint=PLACE[other.name], **fields)

    def advance(self, ns):
        """Let time pass, and run what is due by then."""
        self.pass_time(ns)
        for side in (self.a, self.b):
            side.tick()

    def deliver(self, source, sink):
        """Deliver what one side sent; the types. Transport messages are only counted."""
        kinds = source.kinds
        for each in self.drop(source):
            if each.kind != TRANSPORT:
                sink.receive(each.message, PLACE[source.name])
        return kinds

    def drop(self, source):
        """Lose what one side sent; that."""
        lost, source.sent = source.sent, []
        return lost

    def handshake(self, initiator, responder):
        """A new session of both."""
        initiator.want_session()
        assert self.deliver(initiator, responder) == [1]
        assert self.deliver(responder, initiator) == [2]
        assert self.deliver(initiator, responder) == [TRANSPORT]    # the keepalive that confirms
        responder.confirm()
