"""Two devices that talk through memory, with a fake clock."""

import hashlib
import os
import socket
from ipaddress import IPv4Address

import pytest

from fastpump._core import Pump, SharedTables, xchacha20_poly1305
from fastpump.conn.endpoint import NO_LOCAL, Endpoint
from fastpump.constants import (
    REJECT_AFTER_TIME,
    REKEY_AFTER_TIME,
    REKEY_TIMEOUT,
    SECOND,
    ZERO_KEYS_AFTER_TIME,
)
from fastpump.device.device import Device, Surroundings
from fastpump.errors import ConfigError
from fastpump.protocol import cookie, keys, noise, tai64n, wire
from support.packets import A4, B4, PLAIN, udp

PLACE = {name: Endpoint(IPv4Address(f"192.0.2.{number}"), 51820)
         for number, name in enumerate("ab", 1)}


class Side:
    def __init__(self, world, name):
        self.world, self.name, self.sent, self.rings = world, name, [], 0
        self.tables = SharedTables.create(4, 64, 4096)
        self.locals, self.unanswered = [], []
        self.device = Device(self.tables, Surroundings(
            transmit=self.transmit, ring=self.ring, schedule=lambda: None,
            unix_ns=lambda: world.unix_ns, jitter=lambda limit: 0,
            is_unanswered=self.unanswered.append), socket.AF_INET6, cpu_count=2)
        self.device.set_private_key(keys.generate_private())
        self.device.start(world.now)

    def transmit(self, message, where, local):
        self.sent.append((message, where))
        self.locals.append(local)

    def ring(self):
        self.rings += 1

    @property
    def peer(self):
        (peer,) = self.device.peers.values()
        return peer

    @property
    def has_session(self):
        return self.peer.keypairs.current is not None

    def confirm(self):
        """What a worker does on the first transport message."""
        self.device._confirm(self.peer, self.peer.keypairs.next.slot, self.world.now)


class World:
    """`pass_on` carries messages; transport messages (type 4) are only counted."""

    def __init__(self, *, allowed_ips=(), keepalive_s=0):
        self.now, self.unix_ns = 1000 * SECOND, 1_700_000_000 * SECOND
        self.a, self.b = Side(self, "a"), Side(self, "b")
        for one, other in ((self.a, self.b), (self.b, self.a)):
            peer = one.device.add_peer(other.device.public_key)
            one.device.set_endpoint(peer, PLACE[other.name])
            for prefix in allowed_ips:
                one.device.add_allowed_ip(peer, prefix)
            one.device.set_persistent_keepalive(peer, keepalive_s, self.now)

    def advance(self, ns):
        self.now += ns
        self.unix_ns += ns
        for side in (self.a, self.b):
            side.device.tick(self.now)

    def want(self, side):
        """What the device does on a worker's event."""
        side.device._want_session(side.peer, self.now)
        side.device._watch(side.peer)

    def pass_on(self, source, sink):
        """Deliver what one side sent; the types."""
        types = [message[0] for message, _ in source.sent]
        for message, _ in source.sent:
            if message[0] != 4:
                sink.device.receive(message, PLACE[source.name], NO_LOCAL, self.now)
        source.sent.clear()
        return types

    def handshake(self, initiator, responder):
        self.want(initiator)
        assert self.pass_on(initiator, responder) == [1]
        assert self.pass_on(responder, initiator) == [2]
        assert self.pass_on(initiator, responder) == [4]    # the keepalive that confirms
        responder.confirm()


def test_handshake_gives_both_a_session():
    world = World()
    world.handshake(world.a, world.b)
    assert world.a.has_session and world.b.has_session
    ours, theirs = world.a.peer.keypairs.current, world.b.peer.keypairs.current
    assert (ours.local_index, ours.remote_index) == (theirs.remote_index, theirs.local_index)
    assert ours.is_initiator and not theirs.is_initiator
    assert world.a.rings == world.b.rings == 1
    assert world.a.peer.latest_handshake_unix_ns == 1_700_000_000 * SECOND


def test_a_responder_does_not_send_before_it_is_confirmed():
    world = World()
    world.want(world.a)
    world.pass_on(world.a, world.b)
    assert not world.b.has_session and world.b.peer.keypairs.next is not None


def test_both_at_once():
    world = World()
    world.want(world.a)
    world.want(world.b)
    first, second = list(world.a.sent), list(world.b.sent)
    world.a.sent.clear()
    world.b.sent.clear()
    world.b.device.receive(first[0][0], PLACE["a"], NO_LOCAL, world.now)
    world.a.device.receive(second[0][0], PLACE["b"], NO_LOCAL, world.now)
    world.pass_on(world.b, world.a)
    world.pass_on(world.a, world.b)
    assert world.a.has_session and world.b.has_session
    known = {keypair.remote_index for keypair in (world.b.peer.keypairs.current,
                                                  world.b.peer.keypairs.previous) if keypair}
    assert world.a.peer.keypairs.current.local_index in known


def test_rekey_keeps_the_old_keys_for_what_is_under_way():
    world = World()
    world.handshake(world.a, world.b)
    old = world.b.peer.keypairs.current
    world.advance(REKEY_AFTER_TIME)
    world.handshake(world.a, world.b)
    assert world.b.peer.keypairs.previous is old
    assert world.b.peer.keypairs.current is not old


def test_a_replayed_initiation_is_dropped_and_counted():
    world = World()
    world.want(world.a)
    message = world.a.sent[0][0]
    world.pass_on(world.a, world.b)
    world.b.sent.clear()
    world.now += SECOND
    world.b.device.receive(message, PLACE["a"], NO_LOCAL, world.now)
    assert world.b.sent == []
    assert world.b.device.verdicts == {"DROP_REPLAYED_INITIATION": 1}


def test_a_flood_of_good_initiations_is_slowed_down():
    world = World()
    messages = []
    for _ in range(2):
        world.a.peer.last_initiation_sent_at = None
        world.a.peer.timers.retransmit_at = None
        world.want(world.a)
        messages.append(world.a.sent.pop()[0])
        world.unix_ns += SECOND
    for message in messages:
        world.b.device.receive(message, PLACE["a"], NO_LOCAL, world.now)
    assert len(world.b.sent) == 1
    assert world.b.device.verdicts == {"DROP_INITIATION_FLOOD": 1}


def test_hostile_handshake_messages_are_counted():
    """Those that pass the intake (test_admission.py)."""
    world = World()
    receiver = world.b.device
    stranger = noise.DhKeyPair.generate()
    unknown, _ = noise.create_initiation(stranger, receiver.public_key, 1,
                                         tai64n.emit(world.unix_ns),
                                         stranger.exchange(receiver.public_key))
    cases = [
        (b"", "DROP_MALFORMED_HANDSHAKE"),
        (bytes(148), "DROP_MALFORMED_HANDSHAKE"),
        (b"\1\0\0\0" + bytes(144), "DROP_INVALID_HANDSHAKE"),
        (b"\2\0\0\0" + bytes(88), "DROP_UNEXPECTED_RESPONSE"),
        (b"\3\0\0\0" + bytes(60), "DROP_UNEXPECTED_COOKIE"),
        (unknown.emit(), "DROP_UNKNOWN_PEER"),
    ]
    for message, verdict in cases:
        before = receiver.verdicts[verdict]
        receiver.receive(message, PLACE["a"], NO_LOCAL, world.now)
        assert receiver.verdicts[verdict] == before + 1
    assert world.b.sent == [] and world.b.peer.keypairs.next is None


def test_preshared_keys_must_agree():
    world = World()
    world.a.peer.preshared_key = bytes(range(32))
    world.want(world.a)
    world.pass_on(world.a, world.b)
    world.pass_on(world.b, world.a)
    assert not world.a.has_session
    assert world.a.device.verdicts == {"DROP_INVALID_HANDSHAKE": 1}


def test_an_unanswered_initiation_is_repeated_and_given_up():
    world = World()
    world.want(world.a)
    for _ in range(40):
        world.advance(REKEY_TIMEOUT)
    stamps = {message for message, _ in world.a.sent}
    assert len(stamps) == len(world.a.sent) == 18
    assert world.a.rings == 1       # what waited is purged
    world.want(world.a)
    assert len(world.a.sent) == 19


def test_initiations_keep_five_seconds_apart():
    world = World()
    world.handshake(world.a, world.b)
    world.now += SECOND
    world.want(world.a)
    assert world.a.sent == []
    world.advance(4 * SECOND)
    assert [message[0] for message, _ in world.a.sent] == [1]


def test_a_lost_response_is_recovered():
    world = World()
    world.want(world.a)
    world.pass_on(world.a, world.b)
    world.b.sent.clear()
    world.advance(REKEY_TIMEOUT)
    assert world.pass_on(world.a, world.b) == [1]
    world.pass_on(world.b, world.a)
    assert world.a.has_session


def test_keepalives_use_the_session_and_start_one():
    world = World(keepalive_s=25)
    world.advance(0)
    assert world.pass_on(world.a, world.b) == [1]
    world.b.sent.clear()            # b's own attempt
    world.b.device.receive(b"", PLACE["a"], NO_LOCAL, world.now)
    world = World(keepalive_s=25)
    world.b.peer.timers.stop()
    world.advance(0)
    world.pass_on(world.a, world.b)
    world.pass_on(world.b, world.a)
    world.a.sent.clear()
    world.advance(25 * SECOND)
    (message, where), = world.a.sent
    assert message[0] == 4 and len(message) == 32 and where == PLACE["b"]


def test_old_keys_are_wiped():
    world = World()
    world.handshake(world.a, world.b)
    world.advance(ZERO_KEYS_AFTER_TIME)
    assert not world.a.has_session and not world.b.has_session
    assert REJECT_AFTER_TIME < ZERO_KEYS_AFTER_TIME


def test_allowed_ips_move_between_peers():
    world = World()
    device, prefix = world.a.device, (bytes([10, 0, 0, 0]), 8)
    other = device.add_peer(bytes(range(32)))
    device.add_allowed_ip(other, prefix)
    device.add_allowed_ip(world.b and device.peers[world.b.device.public_key], prefix)
    assert other.allowed_ips == set()
    device.remove_allowed_ip(other, prefix)
    assert world.a.tables.allowed_ips.lookup(bytes([10, 1, 1, 1])) == device.peers[
        world.b.device.public_key].slot


def test_a_removed_peer_is_gone():
    world = World(allowed_ips=[(bytes(4), 0)])
    world.handshake(world.a, world.b)
    world.a.device.remove_peer(world.a.peer)
    assert world.a.device.peers == {}
    assert world.a.tables.allowed_ips.lookup(bytes(4)) is None
    world.advance(1000 * SECOND)
    world.want(world.b)
    world.pass_on(world.b, world.a)
    assert world.a.device.verdicts == {"DROP_UNKNOWN_PEER": 1}


def test_the_timer_heap_stays_small():
    world = World()
    world.handshake(world.a, world.b)
    for _ in range(2000):
        world.a.peer.timers.unanswered_rx(world.now)
        world.a.device._watch(world.a.peer)
        world.advance(SECOND // 100)
    assert len(world.a.device._deadlines) < 5


def test_a_session_made_as_responder_ends_our_own_attempt():
    world = World()
    world.want(world.a)
    world.a.sent.clear()            # lost
    world.handshake(world.b, world.a)
    world.advance(30 * SECOND)
    assert [message for message, _ in world.a.sent if message[0] == 1] == []


def test_a_silent_peer_gets_one_attempt_per_packet():
    """A packet that nobody answers: a handshake is tried for 90 seconds, then it is quiet
    until there is more to send."""
    world = World(allowed_ips=[(bytes([10, 9, 0, 2]), 32)])
    world.handshake(world.a, world.b)
    side = world.a
    worker = side.peer.worker
    interface, queue = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with interface, queue, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp_socket:
        queue.setblocking(False)
        pump = Pump(side.tables, worker, [queue.fileno()] * 4, udp_socket.fileno(),
                    *(os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)))
        for _ in range(2):
            interface.send(PLAIN + udp(A4, B4, b"x"))
            pump.turn(world.now)
            assert side.tables.peers.activity(side.peer.slot)[0] == world.now
            side.device.handle_events(worker, world.now)
            for _ in range(170):    # not so long that the session ends
                world.advance(SECOND // 2)
            assert side.tables.peers.activity(side.peer.slot)[0] == 0
    attempts = [message for message, _ in side.sent if message[0] == 1]
    assert 10 <= len(attempts) <= 36


def test_a_full_keypair_table_is_counted_and_tried_again():
    """A stopped worker holds up the reuse of slots; nothing breaks meanwhile."""
    world = World()
    world.want(world.a)
    taken = []
    with pytest.raises(MemoryError):
        while True:
            taken.append(world.b.tables.keypairs.reserve(0)[0])
    world.pass_on(world.a, world.b)
    assert world.b.sent == [] and world.b.device.verdicts == {"DROP_TABLE_FULL": 1}
    world.want(world.b)
    assert world.b.sent == []
    for slot in taken:
        world.b.tables.keypairs.retire(slot)
    world.b.tables.retired.reclaim()
    world.advance(REKEY_TIMEOUT)
    assert 1 in [message[0] for message, _ in world.b.sent]


def cookie_reply(side, message, value=bytes(range(16))):
    """What `side` answers to a message when it is under load."""
    key = cookie.cookie_key(side.device.public_key)
    return wire.CookieReply(int.from_bytes(message[4:8], "little"), bytes(24), xchacha20_poly1305(
        key, bytes(24), cookie.mac1_of(message), value, seal=True)).emit()


def test_a_cookie_is_used_in_the_next_try_and_for_two_minutes():
    world = World()
    world.want(world.a)
    first = world.a.sent.pop()[0]
    assert first[-16:] == bytes(16)
    reply = cookie_reply(world.b, first)
    world.a.device.receive(reply, PLACE["b"], NO_LOCAL, world.now)
    assert world.a.sent == []               # not at once (WireGuard paper, 6.6)
    world.advance(REKEY_TIMEOUT)
    second = world.a.sent.pop()[0]
    assert second[-16:] == hashlib.blake2s(second[:-16], key=bytes(range(16)),
                                           digest_size=16).digest()
    world.now += 120 * SECOND
    world.a.peer.timers.stop()
    world.want(world.a)
    assert world.a.sent.pop()[0][-16:] == bytes(16)
    world.a.device.receive(reply, PLACE["b"], NO_LOCAL, world.now)
    assert world.a.device.verdicts == {"DROP_UNEXPECTED_COOKIE": 1}


def test_a_responder_takes_a_cookie_too():
    world = World()
    world.want(world.a)
    world.pass_on(world.a, world.b)
    response = world.b.sent.pop()[0]
    world.b.device.receive(cookie_reply(world.a, response), PLACE["a"], NO_LOCAL, world.now)
    assert world.b.peer.cookie == bytes(range(16))


def test_a_forged_cookie_is_counted():
    world = World()
    world.want(world.a)
    forged = cookie_reply(World().b, world.a.sent.pop()[0])
    world.a.device.receive(forged, PLACE["b"], NO_LOCAL, world.now)
    assert world.a.device.verdicts == {"DROP_INVALID_COOKIE": 1} and world.a.peer.cookie is None


def test_another_private_key_ends_sessions_and_the_peer_that_is_us():
    world = World()
    world.handshake(world.a, world.b)
    private = keys.generate_private()
    world.a.device.add_peer(keys.public_of(private))
    world.a.device.set_private_key(private)
    assert not world.a.has_session and len(world.a.device.peers) == 1
    world.want(world.a)
    assert world.pass_on(world.a, world.b) == [1]
    assert world.b.device.verdicts == {"DROP_UNKNOWN_PEER": 1}
    world.a.device.set_private_key(bytes(32))
    assert world.a.device.public_key is None
    world.want(world.a)
    assert world.a.sent == []


def test_down_means_no_sessions_and_silence():
    world = World(keepalive_s=25)
    world.handshake(world.a, world.b)
    world.a.device.stop()
    world.advance(1000 * SECOND)
    world.want(world.a)
    world.want(world.b)
    world.pass_on(world.b, world.a)
    assert world.a.sent == [] and not world.a.has_session
    assert set(world.a.device.verdicts) == {"DROP_INTERFACE_DOWN"}
    world.a.device.start(world.now)
    world.advance(0)
    assert [message[0] for message, _ in world.a.sent] == [1]


def test_messages_leave_from_the_address_that_was_spoken_to():
    world = World()
    home = bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 77])
    world.want(world.a)
    assert world.a.locals == [NO_LOCAL]
    world.b.device.receive(world.a.sent.pop()[0], PLACE["a"], home, world.now)
    assert world.b.locals == [home]
    world.b.device._forget_local(world.b.peer)
    assert world.b.peer.local == NO_LOCAL and world.b.peer.endpoint == PLACE["a"]


def test_a_try_without_answer_asks_for_the_name_again():
    world = World()
    world.want(world.a)
    assert world.a.unanswered == []
    world.advance(REKEY_TIMEOUT)
    assert world.a.unanswered == [world.a.peer]


def test_ten_thousand_idle_peers_have_no_deadline():
    world = World()
    for number in range(40):
        world.a.device.add_peer(bytes([7, number]) * 16)
    assert world.a.device.next_deadline() is None


def test_mistakes_are_explained():
    world = World()
    with pytest.raises(ConfigError, match="twice"):
        world.a.device.add_peer(world.b.device.public_key)
    with pytest.raises(ConfigError, match="own public key"):
        world.a.device.add_peer(world.a.device.public_key)


def test_peers_are_spread_over_the_workers():
    world = World()
    for i in range(7):
        world.a.device.add_peer(bytes([i + 1]) * 32)
    workers = [peer.worker for peer in world.a.device.peers.values()]
    assert sorted(workers) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert world.a.tables.spread_queues == 1 and world.b.tables.spread_queues == 2
