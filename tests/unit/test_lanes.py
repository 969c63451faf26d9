"""The upgrade and the life of lanes: two devices that talk through memory, with a fake clock.

Lane messages go through real pumps, so that what the workers tell is real.
"""

import os
import socket
import struct
from ipaddress import IPv4Address
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fastpump._core import Pump, SharedTables
from fastpump.conn.endpoint import NO_LOCAL, Endpoint
from fastpump.constants import (
    LANE_DEAD_AFTER_PROBES,
    LANES_PROOF_TIME,
    REJECT_AFTER_TIME,
    REKEY_TIMEOUT,
    SECOND,
    UPGRADE_ATTEMPTS,
)
from fastpump.device.callbacks import DeviceCallbacks
from fastpump.device.device import Device
from fastpump.device.events import ControlPacket, WorkerEvent
from fastpump.device.lanes import Options
from fastpump.device.peer_change import PeerChange
from fastpump.protocol import keys, wire
from fastpump.protocol.lane_messages import Mode
from support import plainlanes

PLACE = {name: Endpoint(IPv4Address(f"192.0.2.{number}"), 51820)
         for number, name in enumerate("ab", 1)}
HELLO, OFFER, ACCEPT, _, REFUSE = range(1, 6)


class Side:
    """A device, its workers, and what it has sent: `kinds` for short."""

    def __init__(self, world, name, queues, options):
        self.world, self.name, self.sent, self.lane_sent, self.rings = world, name, [], [], 0
        self.options = options
        self.tables = SharedTables.create(queues, 64, 4096)
        self.tables.mtu = 1420
        self.fds = []
        self.pumps = [self._pump(number, queues) for number in range(queues)]
        self.device = self._device()
        self.device.set_private_key(keys.generate_private())
        self.device.start(world.now)

    def _device(self):
        return Device(self.tables, DeviceCallbacks(
            transmit=lambda message, where, local: self.sent.append(message),
            transmit_lane=lambda message, where, local, number: self.lane_sent.append(
                (message, where, number)),
            ring=self.ring, unix_ns=lambda: self.world.unix_ns,
            jitter=lambda limit: 0), socket.AF_INET6, lanes=self.options)

    def _pump(self, number, queues):
        self.fds += [*socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
                     socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)]
        for sock in self.fds[-3:]:
            sock.setblocking(False)
        bells = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        self.fds += [os.fdopen(bell, "rb", buffering=0) for bell in bells]
        queue, udp = self.fds[-4].fileno(), self.fds[-3].fileno()
        return Pump(self.tables, number, [queue] * queues, udp, *bells)

    def close(self):
        for each in self.fds:
            each.close()
        self.tables.close()

    def ring(self):
        self.rings += 1

    def event(self, name, detail=0):
        """What a worker reports of the peer."""
        now = self.world.now
        self.device.on_event(WorkerEvent(name, self.peer.slot, detail, 0, now), now)

    def configure(self, public_key, **fields):
        """Change a peer; the fields are PeerChange's."""
        self.device.configure_peer(PeerChange(public_key, **fields), self.world.now)

    @property
    def peer(self):
        (peer,) = self.device.peers.values()
        return peer

    @property
    def lanes(self):
        return self.device.lanes.of(self.peer)

    @property
    def usable(self):
        """The lanes of the newest set that workers send on."""
        newest = self.lanes.sets[0]
        return [number for number in range(newest.count)
                if self.tables.lanes.status(newest.first + number)["is_usable"]]

    def turn(self):
        """What workers and supervisor do when something has come."""
        for number, pump in enumerate(self.pumps):
            pump.turn(self.world.now)
            for event in self.tables.workers.events(number):
                self.device.on_event(WorkerEvent(*event), self.world.now)

    def hear_session(self, message, other):
        """A transport message: what is inside, handled as worker and supervisor do."""
        _, index, counter = struct.unpack("<IIQ", message[:16])
        sender = next(each for each in (other.peer.keypairs.current, other.peer.keypairs.next,
                                        other.peer.keypairs.previous)
                      if each is not None and each.remote_index == index)
        inner = ChaCha20Poly1305(sender.send_key).decrypt(
            bytes(4) + struct.pack("<Q", counter), message[16:], b"")
        keypair = self.peer.keypairs.by_index(index)
        if keypair is self.peer.keypairs.next:
            self.event("confirmed", keypair.slot)
        if not inner:
            return "keepalive"
        self.device.on_control(ControlPacket(self.peer.slot, index, inner), self.world.now)
        return plainlanes.parse_control(inner)[0]

    def hear_lane(self, message, other):
        worker = message[2] % self.tables.queue_count
        self.tables.workers.inject(worker, message, PLACE[other.name].sockaddr(socket.AF_INET6))
        self.turn()


class World:
    """Two sides that are peers."""

    def __init__(self, *, queues=(2, 2), a=None, b=None):
        self.now, self.unix_ns = 1000 * SECOND, 1_700_000_000 * SECOND
        options = [Options(**{"socket_count": 8, **(more or {})}) for more in (a, b)]
        self.a, self.b = (Side(self, name, count, option) for name, count, option in
                          zip("ab", queues, options, strict=True))
        for one, other in ((self.a, self.b), (self.b, self.a)):
            one.configure(other.device.public_key, endpoint=PLACE[other.name])

    def advance(self, ns, *, step=SECOND // 10):
        """Let time pass, and carry what is sent meanwhile."""
        end = self.now + ns
        while self.now < end:
            past = min(step, end - self.now)
            self.now += past
            self.unix_ns += past
            for side in (self.a, self.b):
                side.device.tick(self.now)
            self.settle()

    def handshake(self, one, other):
        """A new session, up to the initiator's first message, which has not arrived."""
        one.event("want_session")
        other.device.receive(one.sent.pop(), PLACE[one.name], NO_LOCAL, self.now)
        one.device.receive(other.sent.pop(), PLACE[other.name], NO_LOCAL, self.now)

    def deliver(self, one, other):
        """Everything that one side has sent; the kinds."""
        kinds = []
        sent, one.sent = one.sent, []
        for message in sent:
            if message[0] == 4:
                kinds.append(other.hear_session(message, one))
            else:
                other.device.receive(message, PLACE[one.name], NO_LOCAL, self.now)
                kinds.append(f"type {message[0]}")
        lane_sent, one.lane_sent = one.lane_sent, []
        for message, _, _ in lane_sent:
            other.hear_lane(message, one)
            kinds.append(("lane", message[2], message[1]))
        return kinds

    def settle(self):
        """Until nobody has anything to say."""
        for _ in range(20):
            if not self.deliver(self.a, self.b) + self.deliver(self.b, self.a):
                return
        raise AssertionError("they never stop")

    def rekey(self, one, other):
        """A new session and its upgrade."""
        self.advance(REKEY_TIMEOUT)
        self.handshake(one, other)
        self.settle()


@pytest.fixture
def worlds():
    made = []

    def make(**more):
        made.append(World(**more))
        return made[-1]

    yield make
    for world in made:
        world.a.close()
        world.b.close()


# -- the upgrade

def test_the_upgrade_takes_a_round_trip(worlds):
    world = worlds()
    a, b = world.a, world.b
    world.handshake(a, b)
    assert world.deliver(a, b) == [HELLO]           # and no keepalive
    assert world.deliver(b, a) == [OFFER]
    # The initiator has the keys, one round trip after its handshake.
    assert [each.is_opener for each in a.lanes.sets] == [True]
    assert world.deliver(a, b) == [ACCEPT, ("lane", 0, 8), ("lane", 1, 8)]
    assert b.usable == [0, 1]
    assert world.deliver(b, a) == [("lane", 0, 0), ("lane", 1, 0)]
    assert a.usable == [0, 1]
    assert world.deliver(a, b) == world.deliver(b, a) == []
    for side in (a, b):
        assert side.lanes.sets[0].cipher == "aes-256-gcm"
        assert not side.lanes.sets[0].probes and side.device.verdicts == {}


@pytest.mark.parametrize(("queues", "count"), [((1, 1), 1), ((4, 1), 4), ((2, 3), 3)])
def test_the_number_of_queues_may_differ(worlds, queues, count):
    world = worlds(queues=queues)
    world.handshake(world.a, world.b)
    world.settle()
    assert world.a.usable == world.b.usable == list(range(count))


def test_the_opener_uses_a_socket_for_each_lane(worlds):
    world = worlds(queues=(4, 1))
    world.handshake(world.a, world.b)
    world.deliver(world.a, world.b)
    world.deliver(world.b, world.a)
    assert [(where, number) for _, where, number in world.a.lane_sent] == [
        (PLACE["b"], number) for number in range(4)]
    world.deliver(world.a, world.b)
    assert [number for _, _, number in world.b.lane_sent] == [None] * 4


@pytest.mark.parametrize(("a", "b", "cipher"), [
    (("aes-256-gcm", "chacha20-poly1305"), ("chacha20-poly1305",), "chacha20-poly1305"),
    (("chacha20-poly1305", "aes-256-gcm"), ("aes-256-gcm",), "aes-256-gcm"),
])
def test_ciphers(worlds, a, b, cipher):
    world = worlds(a={"ciphers": a}, b={"ciphers": b})
    world.handshake(world.a, world.b)
    world.settle()
    assert world.a.lanes.sets[0].cipher == cipher == world.b.lanes.sets[0].cipher
    assert world.a.usable == [0, 1]


@pytest.mark.parametrize(("b", "why"), [
    ({"mode": Mode.TAP}, "one side is a TUN, the other a TAP"),
    ({"ciphers": ("chacha20-poly1305",)}, "there is no cipher that both sides allow"),
])
def test_a_refusal_is_told(worlds, b, why, caplog):
    world = worlds(a={"ciphers": ("aes-256-gcm",)}, b=b)
    world.handshake(world.a, world.b)
    assert world.deliver(world.a, world.b) == [HELLO]
    assert world.deliver(world.b, world.a) == [REFUSE]
    assert world.a.lanes.refusal == world.b.lanes.refusal == why
    assert caplog.text.count(why) == 2
    world.advance(20 * SECOND)
    assert world.a.lanes.sets == world.b.lanes.sets == []
    world.rekey(world.a, world.b)
    assert caplog.text.count(why) == 2          # said once


def test_a_lost_hello_is_repeated_once(worlds):
    world = worlds()
    world.handshake(world.a, world.b)
    world.a.sent.clear()
    world.now += SECOND
    world.a.device.tick(world.now)
    assert world.deliver(world.a, world.b) == [HELLO]
    world.settle()
    assert world.a.usable == [0, 1]


@pytest.mark.parametrize("lost", [OFFER, ACCEPT])
def test_a_lost_answer_is_repeated(worlds, lost):
    world = worlds()
    world.handshake(world.a, world.b)
    world.deliver(world.a, world.b)
    if lost == OFFER:
        world.b.sent.clear()
    else:
        world.deliver(world.b, world.a)
        world.a.sent.clear()
        world.a.lane_sent.clear()
    world.advance(2 * SECOND)
    assert world.a.usable == world.b.usable == [0, 1]
    assert world.a.device.verdicts == world.b.device.verdicts == {}


def silence(world, side, seconds):
    """What one side says to nobody; the number of transport messages."""
    count = 0
    for _ in range(10 * seconds):
        world.now += SECOND // 10
        world.unix_ns += SECOND // 10
        side.device.tick(world.now)
        count += sum(message[0] == 4 for message in side.sent)
        side.sent.clear()
    return count


def test_a_wireguard_peer_gets_one_small_message_more_and_later_none(worlds):
    world = worlds(b={"transport": "wireguard"})
    counts = []
    for _ in range(5):
        world.handshake(world.a, world.b)
        (first,) = world.a.sent
        assert len(first) <= 96 and world.deliver(world.a, world.b) == [HELLO]
        counts.append(1 + silence(world, world.a, 9))
    assert counts == [2, 2, 2, 1, 1]
    assert world.a.lanes.sets == []
    assert world.b.device.verdicts["DROP_CONTROL_UNWANTED"] == 5


def test_without_lanes_nothing_is_said(worlds):
    world = worlds(a={"transport": "wireguard"})
    world.handshake(world.a, world.b)
    assert world.deliver(world.a, world.b) == ["keepalive"]
    assert world.deliver(world.b, world.a) == []
    assert silence(world, world.b, 9) == 0


# -- hostile peers

def control_in_session(world, side, other, data):
    """`other` says that in the session."""
    keypair = side.peer.keypairs.current
    return side.device.lanes.receive(side.peer, keypair, data, world.now)


def test_control_packets_out_of_turn_change_nothing(worlds):
    world = worlds()
    world.handshake(world.a, world.b)
    world.settle()
    a, b = world.a, world.b
    sets = a.lanes.sets[0], b.lanes.sets[0]
    accept = plainlanes.control(ACCEPT, {7: bytes(4), 10: bytes(1088)})
    refuse = plainlanes.control(REFUSE, {11: b"\1"})
    hello = plainlanes.control(HELLO, {1: b"\1", 2: b"\1", 3: b"\1", 4: b"\1\0", 5: bytes(4),
                                       6: bytes(2), 8: bytes(4)})
    for side, other, data in ((a, b, accept), (a, b, refuse), (a, b, hello), (b, a, accept),
                              (b, a, refuse), (b, a, hello)):
        assert control_in_session(world, side, other, data) == "DROP_UNEXPECTED_CONTROL"
    for data in (b"\xf0", b"\xf0\1\xff\xff", plainlanes.control(99, {})):
        assert control_in_session(world, a, b, data) == "DROP_MALFORMED_CONTROL"
    assert (a.lanes.sets[0], b.lanes.sets[0]) == sets
    assert a.sent == b.sent == []


def test_repeats_are_answered_so_often_and_no_more(worlds):
    world = worlds()
    world.handshake(world.a, world.b)
    (message,) = world.a.sent
    for _ in range(2 * UPGRADE_ATTEMPTS + 4):
        world.b.hear_session(message, world.a)
    assert len(world.b.sent) == 1 + 2 * UPGRADE_ATTEMPTS
    assert len(set(map(len, world.b.sent))) == 1
    assert world.b.device.verdicts == {"DROP_UNEXPECTED_CONTROL": 3}


def test_an_invalid_kem_key_is_dropped(worlds):
    world = worlds()
    world.handshake(world.a, world.b)
    world.deliver(world.a, world.b)
    (attempt,) = world.b.lanes.attempts
    offer = attempt.offer
    kind, fields, _ = plainlanes.parse_control(offer)
    fields[10] = b"\xff" * 1184
    assert control_in_session(world, world.a, world.b, plainlanes.control(
        kind, fields)) == "DROP_MALFORMED_CONTROL"
    world.settle()
    assert world.a.usable == [0, 1]


def test_a_changed_message_makes_no_lanes(worlds):
    """Whoever gets round the session's AEAD still cannot change the terms."""
    world = worlds()
    world.handshake(world.a, world.b)
    world.a.sent.clear()
    kind, fields, _ = plainlanes.parse_control(world.a.lanes.attempts[0].hello)
    fields[3] = b"\2"           # only ChaCha20-Poly1305
    keypair = world.b.peer.keypairs.next
    world.b.event("confirmed", keypair.slot)
    world.b.device.lanes.receive(world.b.peer, keypair, plainlanes.control(kind, fields),
                                 world.now)
    world.advance(3 * SECOND)
    assert world.b.lanes.sets[0].cipher == "chacha20-poly1305"
    assert world.a.lanes.sets[0].cipher == "aes-256-gcm"
    assert world.a.usable == world.b.usable == []
    worker = world.b.tables.workers.counters(0)["verdicts"]
    assert worker["DROP_UNAUTHENTIC"] > 0


def test_both_sides_may_start_at_once(worlds):
    world = worlds()
    a, b = world.a, world.b
    for side in (a, b):
        side.event("want_session")
    crossing = a.sent.pop(), b.sent.pop()
    b.device.receive(crossing[0], PLACE["a"], NO_LOCAL, world.now)
    a.device.receive(crossing[1], PLACE["b"], NO_LOCAL, world.now)
    world.settle()
    world.advance(2 * SECOND)
    assert a.usable == b.usable == [0, 1]
    for side in (a, b):
        assert side.lanes.sets[0].local_index in {
            each.remote_index for each in (b if side is a else a).lanes.sets}


# -- sets

def test_each_session_has_a_set_of_its_own(worlds):
    world = worlds()
    a, b = world.a, world.b
    world.handshake(a, b)
    world.settle()
    for _ in range(4):
        world.rekey(a, b)
        assert a.usable == b.usable == [0, 1]
        assert a.lanes.sets[0].local_index == b.lanes.sets[0].remote_index
    assert len(a.lanes.sets) == len(b.lanes.sets) == 3
    sent = {bytes(key) for each in a.lanes.sets for key in each.send_keys}
    assert len(sent) == 6


def test_who_opened_goes_on_opening(worlds):
    world = worlds()
    world.handshake(world.a, world.b)
    world.settle()
    world.rekey(world.b, world.a)       # the other side starts now
    assert world.a.lanes.sets[0].is_opener and not world.b.lanes.sets[0].is_opener
    assert world.a.usable == world.b.usable == [0, 1]


def test_lanes_end_with_their_sessions(worlds):
    world = worlds()
    world.handshake(world.a, world.b)
    world.settle()
    world.advance(REJECT_AFTER_TIME, step=SECOND)
    assert world.a.lanes.sets == world.b.lanes.sets == []


@pytest.mark.parametrize("initiator", ["a", "b"])
@pytest.mark.parametrize("transport", ["auto", "wireguard"])
def test_a_restarted_peer_has_lost_its_lanes(worlds, initiator, transport):
    world = worlds()
    a, b = world.a, world.b
    world.handshake(a, b)
    world.settle()
    world.advance(REKEY_TIMEOUT)
    private = b.device.private_key
    b.close()
    fresh = world.b = Side(world, "b", 2, Options(transport, socket_count=8))
    fresh.device.set_private_key(private)
    fresh.configure(a.device.public_key, endpoint=PLACE["a"])
    old = a.lanes.sets[0]
    one, other = (a, fresh) if initiator == "a" else (fresh, a)
    world.handshake(one, other)
    if transport == "auto":
        world.settle()
        assert old not in a.lanes.sets
        assert a.usable == fresh.usable == [0, 1]
    else:
        world.advance(LANES_PROOF_TIME + UPGRADE_ATTEMPTS * SECOND)
        assert a.lanes.sets == []


def test_another_private_key_ends_all_lanes(worlds):
    world = worlds()
    world.handshake(world.a, world.b)
    world.settle()
    world.a.device.set_private_key(keys.generate_private())
    assert world.a.lanes.sets == world.a.lanes.attempts == []


def test_a_full_table_is_counted(worlds):
    world = worlds()
    b = world.b
    other = b.tables.peers.add()
    for count in (256, 128, 64, 32, 16, 8, 4, 2, 1):
        with pytest.raises(MemoryError):
            while True:
                b.tables.lanes.reserve(other, count)
    world.handshake(world.a, b)
    assert world.deliver(world.a, b) == [HELLO]
    assert b.device.verdicts == {"DROP_TABLE_FULL": 1}
    assert b.sent == []


def test_another_mtu_is_said_once(worlds, caplog):
    world = worlds()
    world.b.tables.mtu = 1280
    world.handshake(world.a, world.b)
    world.settle()
    world.rekey(world.a, world.b)
    assert caplog.text.count("MTU of 1280") == caplog.text.count("MTU of 1420") == 1


def test_nothing_is_repeated_in_a_session_that_is_gone(worlds):
    """Its slot's counters begin anew: to seal with its key again would repeat a nonce."""
    world = worlds()
    a, b = world.a, world.b
    world.handshake(a, b)
    assert world.deliver(a, b) == [HELLO]
    b.sent.clear()
    (attempt,) = b.lanes.attempts
    b.device.sessions.clear(b.peer)
    assert silence(world, b, 6) == 0
    assert b.lanes.attempts == []
    with pytest.raises(ValueError, match="is gone"):
        b.device.sessions.seal(attempt.keypair)


# -- life and death of a lane

def probes(side):
    """Lanes that were asked for an answer."""
    found = [message[2] for message, _, _ in side.lane_sent if message[1] == 8]
    side.lane_sent.clear()
    return found


def test_a_blocked_lane_is_probed_on_and_the_others_work(worlds, caplog):
    world = worlds()
    a, b = world.a, world.b
    world.handshake(a, b)
    world.deliver(a, b)
    world.deliver(b, a)
    a.lane_sent = [each for each in a.lane_sent if each[0][2] != 1]
    world.deliver(a, b)
    world.deliver(b, a)
    assert a.usable == b.usable == [0]
    count = 0
    for _ in range(200):
        world.now += SECOND // 10
        a.device.tick(world.now)
        probed = probes(a)
        assert set(probed) <= {1}
        count += len(probed)
    assert 7 <= count <= 10             # 0.1, 0.2, 0.5, 1, 2, then every 5 s
    assert caplog.text.count("lane 1 of") == 1
    world.advance(5 * SECOND)           # the way is free
    assert a.usable == b.usable == [0, 1]


def test_a_lane_that_is_not_answered_dies_and_comes_back(worlds, caplog):
    world = worlds()
    a, b = world.a, world.b
    world.handshake(a, b)
    world.settle()
    slot = a.lanes.sets[0].first + 1
    status = a.tables.lanes.status

    def unanswered(which):              # as if data had left a while ago
        return {**status(which), "first_unanswered_tx_ns": began if which == slot else 0}

    began = world.now
    tables = Unanswered(a.tables, unanswered)
    a.device.lanes._tables = tables
    a.event("lane_unanswered", slot)
    asked = []
    for _ in range(100):
        world.now += SECOND // 10
        a.device.tick(world.now)
        asked += [(world.now - began) // (SECOND // 10) for _ in probes(a)]
    assert asked[:LANE_DEAD_AFTER_PROBES] == [10, 20, 30]
    assert a.usable == [0]
    assert "lane 1 of" in caplog.text and "is dead" in caplog.text
    a.device.lanes._tables = a.tables
    world.advance(6 * SECOND)
    assert a.usable == [0, 1]
    assert caplog.text.count("is dead") == 1


class Unanswered:
    """Shared tables in which data on a lane has not been answered."""

    def __init__(self, tables, lane_status):
        self._tables, self.lane_status = tables, lane_status

    def __getattr__(self, name):
        return getattr(self._tables, name)


def test_who_roams_is_asked_and_answers_by_the_session_too(worlds):
    world = worlds()
    a, b = world.a, world.b
    world.handshake(a, b)
    world.settle()
    world.advance(2 * SECOND)
    elsewhere = Endpoint(IPv4Address("198.51.100.7"), 4711)
    first = a.lanes.sets[0].first
    assert world.deliver(a, b) == []
    counter = a.tables.lanes.take_counter(first + 1, world.now)
    lane = plainlanes.PlainLane(1, a.lanes.sets[0].remote_index, a.lanes.sets[0].send_keys[1],
                                b"")
    b.tables.workers.inject(1, lane.seal(counter=counter), elsewhere.sockaddr(socket.AF_INET6))
    b.turn()
    assert [(message[2], message[1], where) for message, where, _ in b.lane_sent] == [
        (1, 8, elsewhere)]
    world.now += SECOND // 10
    assert world.deliver(b, a) == [("lane", 1, 8)]
    assert world.deliver(a, b) == ["keepalive", ("lane", 0, 0), ("lane", 1, 0)]
    # Soon after that, the session's answer comes when its time has come.
    b.lane_sent.clear()
    b.device.lanes.lane_roams(b.peer, b.lanes.sets[0].first, world.now)
    world.now += SECOND // 10
    assert world.deliver(b, a) == [("lane", 0, 8)]
    assert world.deliver(a, b) == [("lane", 0, 0)]
    world.now += SECOND
    a.device.tick(world.now)
    assert world.deliver(a, b) == ["keepalive", ("lane", 0, 0), ("lane", 1, 0)]


def test_a_flood_of_probes_is_answered_now_and_then(worlds):
    world = worlds()
    a, b = world.a, world.b
    world.handshake(a, b)
    world.settle()
    world.advance(SECOND)
    number = a.lanes.sets[0].first
    for _ in range(100):
        world.now += SECOND // 1000
        a.device.lanes._send_lane(a.lanes.sets[0], 0, 8, world.now)
        b.hear_lane(a.lane_sent.pop()[0], a)
    assert a.tables.lanes.status(number)["tx_messages"] > 100
    assert 5 <= len(b.lane_sent) <= 6


def test_keepalives_keep_each_lane_open(worlds):
    world = worlds()
    for side in (world.a, world.b):
        side.configure(side.peer.public_key, keepalive_s=25)
    world.settle()
    if world.a.peer.keypairs.current is None:
        world.handshake(world.a, world.b)
    world.settle()
    world.a.lane_sent.clear()
    heard = {0: [], 1: []}
    for _ in range(600):
        world.now += SECOND // 10
        world.unix_ns += SECOND // 10
        world.a.device.tick(world.now)
        for message, _, _ in world.a.lane_sent:
            heard[message[2]].append(world.now)
        world.a.lane_sent.clear()
        world.a.sent.clear()
    for times in heard.values():
        assert len(times) == 2
        assert all(abs(later - earlier - 25 * SECOND) <= SECOND // 10
                   for earlier, later in pairwise(times))


def test_lanes_that_we_opened_follow_the_endpoint(worlds):
    world = worlds()
    a = world.a
    world.handshake(a, world.b)
    world.settle()
    elsewhere = Endpoint(IPv4Address("198.51.100.7"), 4711)
    a.configure(a.peer.public_key, endpoint=elsewhere)
    first = a.lanes.sets[0].first
    assert [a.tables.lanes.endpoint(first + n)[0] for n in range(2)] == [
        elsewhere.sockaddr(socket.AF_INET6)] * 2
    before = world.b.tables.lanes.endpoint(world.b.lanes.sets[0].first)
    world.b.configure(world.b.peer.public_key, endpoint=elsewhere)
    assert world.b.tables.lanes.endpoint(world.b.lanes.sets[0].first) == before


# -- only lanes

def test_only_lanes(worlds, caplog):
    world = worlds(a={"transport": "lanes"}, b={"transport": "wireguard"})
    a, b = world.a, world.b
    world.handshake(a, b)
    world.deliver(a, b)
    silence(world, a, 10)
    assert a.lanes.refusal
    assert caplog.text.count("nothing is sent to it (--transport lanes)") == 1
    packet = bytes.fromhex("4500001400000000400100000a0900010a090002")
    a.tables.allowed_ips.insert(bytes([10, 9, 0, 2]), 32, a.peer.slot)
    a.fds[0].send(bytes(10) + packet)
    a.turn()
    assert a.tables.workers.counters(0)["verdicts"]["DROP_NO_LANES"] == 1
    # The peer learns: the next session brings lanes.
    b.device.lanes._options = Options(socket_count=8)
    world.rekey(a, b)
    assert a.usable == [0, 1]
    a.fds[0].send(bytes(10) + packet)
    a.turn()
    assert a.tables.workers.counters(0)["verdicts"]["DROP_NO_LANES"] == 1


def test_only_lanes_as_the_responder(worlds, caplog):
    world = worlds(a={"transport": "wireguard"}, b={"transport": "lanes"})
    world.handshake(world.a, world.b)
    world.deliver(world.a, world.b)
    world.advance(LANES_PROOF_TIME)
    assert caplog.text.count("nothing is sent to it (--transport lanes)") == 1


def test_headers():
    assert wire.lane_header(8, 3, 0x01020304, 5) == bytes.fromhex(
        "05080300040302010500000000000000")
