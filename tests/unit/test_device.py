"""Two devices that talk through memory, with a fake clock."""

import hashlib
import os
import socket

import pytest

from fastpump._core import Pump, xchacha20_poly1305
from fastpump.conn.endpoint import NO_SOURCE_ADDRESS
from fastpump.constants import (
    REJECT_AFTER_TIME,
    REKEY_AFTER_TIME,
    REKEY_TIMEOUT,
    SECOND,
    ZERO_KEYS_AFTER_TIME,
)
from fastpump.device.peer_change import PrefixChange
from fastpump.protocol import cookie, keys, noise, tai64n, wire
from support.devices import PLACE, TRANSPORT, World
from support.packets import A4, B4, PLAIN, udp


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
    world.a.want_session()
    world.deliver(world.a, world.b)
    assert not world.b.has_session and world.b.peer.keypairs.next is not None


def test_both_at_once():
    world = World()
    world.a.want_session()
    world.b.want_session()
    (first,), (second,) = world.drop(world.a), world.drop(world.b)
    world.b.receive(first.message, PLACE["a"])
    world.a.receive(second.message, PLACE["b"])
    world.deliver(world.b, world.a)
    world.deliver(world.a, world.b)
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
    world.a.want_session()
    message = world.a.sent[0].message
    world.deliver(world.a, world.b)
    world.drop(world.b)
    world.pass_time(SECOND)
    world.b.receive(message, PLACE["a"])
    assert world.b.sent == []
    assert world.b.device.verdicts == {"DROP_REPLAYED_INITIATION": 1}


def test_a_flood_of_good_initiations_is_slowed_down():
    world = World()
    messages = []
    for _ in range(2):
        world.a.peer.last_initiation_sent_at = None
        world.a.peer.timers.retransmit_at = None
        world.a.want_session()
        messages.append(world.a.sent.pop().message)
        world.unix_ns += SECOND
    for message in messages:
        world.b.receive(message, PLACE["a"])
    assert len(world.b.sent) == 1
    assert world.b.device.verdicts == {"DROP_INITIATION_FLOOD": 1}


def test_hostile_handshake_messages_are_counted():
    """Those that pass admission control (test_admission.py)."""
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
        world.b.receive(message, PLACE["a"])
        assert receiver.verdicts[verdict] == before + 1
    assert world.b.sent == [] and world.b.peer.keypairs.next is None


def test_preshared_keys_must_agree():
    world = World()
    world.a.configure(world.b.public_key, preshared_key=bytes(range(32)))
    world.a.want_session()
    world.deliver(world.a, world.b)
    world.deliver(world.b, world.a)
    assert not world.a.has_session
    assert world.a.device.verdicts == {"DROP_INVALID_HANDSHAKE": 1}


def test_an_unanswered_initiation_is_repeated_and_given_up():
    world = World()
    world.a.want_session()
    for _ in range(40):
        world.advance(REKEY_TIMEOUT)
    messages = {each.message for each in world.a.sent}
    assert len(messages) == len(world.a.sent) == 18
    assert world.a.rings == 1       # what waited is purged
    world.a.want_session()
    assert len(world.a.sent) == 19


def test_initiations_keep_five_seconds_apart():
    world = World()
    world.handshake(world.a, world.b)
    world.pass_time(SECOND)
    world.a.want_session()
    assert world.a.sent == []
    world.advance(4 * SECOND)
    assert world.a.kinds == [1]


def test_a_lost_response_is_recovered():
    world = World()
    world.a.want_session()
    world.deliver(world.a, world.b)
    world.drop(world.b)
    world.advance(REKEY_TIMEOUT)
    assert world.deliver(world.a, world.b) == [1]
    world.deliver(world.b, world.a)
    assert world.a.has_session


def test_keepalives_use_the_session_and_start_one():
    world = World(keepalive_s=25)
    world.advance(0)
    assert world.deliver(world.a, world.b) == [1]
    world.drop(world.b)             # its own attempt
    world.b.receive(b"", PLACE["a"])
    world = World(keepalive_s=25)
    world.b.peer.timers.stop()
    world.advance(0)
    world.deliver(world.a, world.b)
    world.deliver(world.b, world.a)
    world.drop(world.a)
    world.advance(25 * SECOND)
    (keepalive,) = world.a.sent
    assert keepalive.kind == 4 and len(keepalive.message) == 32
    assert keepalive.where == PLACE["b"]


def test_old_keys_are_wiped():
    world = World()
    world.handshake(world.a, world.b)
    world.advance(ZERO_KEYS_AFTER_TIME)
    assert not world.a.has_session and not world.b.has_session
    assert REJECT_AFTER_TIME < ZERO_KEYS_AFTER_TIME


def test_a_removed_peer_is_gone():
    world = World(allowed_ips=(PrefixChange((bytes(4), 0)),))
    world.handshake(world.a, world.b)
    world.a.remove(world.b.public_key)
    assert world.a.device.peers == {}
    assert world.a.tables.allowed_ips.lookup(bytes(4)) is None
    world.advance(1000 * SECOND)
    world.b.want_session()
    world.deliver(world.b, world.a)
    assert world.a.device.verdicts == {"DROP_UNKNOWN_PEER": 1}


def test_the_timer_heap_stays_small():
    world = World()
    world.handshake(world.a, world.b)
    for _ in range(2000):
        world.a.event("unanswered_rx")
        world.advance(SECOND // 100)
    assert len(world.a.device.deadlines) < 5


def test_a_session_made_as_responder_ends_our_own_attempt():
    world = World()
    world.a.want_session()
    world.drop(world.a)
    world.handshake(world.b, world.a)
    world.advance(30 * SECOND)
    assert 1 not in world.a.kinds


def test_a_silent_peer_gets_one_attempt_per_packet():
    """A packet that nobody answers: a handshake is tried for 90 seconds, then it is quiet
    until there is more to send."""
    world = World(allowed_ips=(PrefixChange((bytes([10, 9, 0, 2]), 32)),))
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
            pump.poll(world.now)
            assert side.tables.peers.activity(side.peer.slot)[0] == world.now
            side.hand_over_events(worker)
            for _ in range(170):    # not so long that the session ends
                world.advance(SECOND // 2)
            assert side.tables.peers.activity(side.peer.slot)[0] == 0
    assert 10 <= side.kinds.count(1) <= 36


def test_a_full_keypair_table_is_counted_and_tried_again():
    """A stopped worker holds up the reuse of slots; nothing breaks meanwhile."""
    world = World()
    world.a.want_session()
    taken = []
    with pytest.raises(MemoryError):
        while True:
            taken.append(world.b.tables.keypairs.reserve(0)[0])
    world.deliver(world.a, world.b)
    assert world.b.sent == [] and world.b.device.verdicts == {"DROP_TABLE_FULL": 1}
    world.b.want_session()
    assert world.b.sent == []
    for slot in taken:
        world.b.tables.keypairs.retire(slot)
    world.b.tables.retired.reclaim()
    world.advance(REKEY_TIMEOUT)
    assert 1 in world.b.kinds


def cookie_reply(side, message, value=bytes(range(16))):
    """What `side` answers to a message when it is under load."""
    key = cookie.cookie_key(side.device.public_key)
    return wire.CookieReply(int.from_bytes(message[4:8], "little"), bytes(24), xchacha20_poly1305(
        key, bytes(24), cookie.mac1_of(message), value, seal=True)).emit()


def test_a_cookie_is_used_in_the_next_try_and_for_two_minutes():
    world = World()
    world.a.want_session()
    first = world.a.sent.pop().message
    assert first[-16:] == bytes(16)
    reply = cookie_reply(world.b, first)
    world.a.receive(reply, PLACE["b"])
    assert world.a.sent == []               # not at once (WireGuard paper, 6.6)
    world.advance(REKEY_TIMEOUT)
    second = world.a.sent.pop().message
    assert second[-16:] == hashlib.blake2s(second[:-16], key=bytes(range(16)),
                                           digest_size=16).digest()
    world.pass_time(120 * SECOND)
    world.a.peer.timers.stop()
    world.a.want_session()
    assert world.a.sent.pop().message[-16:] == bytes(16)
    world.a.receive(reply, PLACE["b"])
    assert world.a.device.verdicts == {"DROP_UNEXPECTED_COOKIE": 1}


def test_a_responder_takes_a_cookie_too():
    world = World()
    world.a.want_session()
    world.deliver(world.a, world.b)
    response = world.b.sent.pop().message
    world.b.receive(cookie_reply(world.a, response), PLACE["a"])
    assert world.b.peer.cookie == bytes(range(16))


def test_a_forged_cookie_is_counted():
    world = World()
    world.a.want_session()
    forged = cookie_reply(World().b, world.a.sent.pop().message)
    world.a.receive(forged, PLACE["b"])
    assert world.a.device.verdicts == {"DROP_INVALID_COOKIE": 1} and world.a.peer.cookie is None


def test_another_private_key_ends_sessions_and_the_peer_that_is_us():
    world = World()
    world.handshake(world.a, world.b)
    private = keys.generate_private()
    world.a.configure(keys.public_of(private))
    world.a.device.set_private_key(private)
    assert not world.a.has_session and len(world.a.device.peers) == 1
    world.a.want_session()
    assert world.deliver(world.a, world.b) == [1]
    assert world.b.device.verdicts == {"DROP_UNKNOWN_PEER": 1}
    world.a.device.set_private_key(bytes(32))
    assert world.a.device.public_key is None
    world.a.want_session()
    assert world.a.sent == []


def test_down_means_no_sessions_and_silence():
    world = World(keepalive_s=25)
    world.handshake(world.a, world.b)
    world.a.device.stop()
    world.advance(1000 * SECOND)
    world.a.want_session()
    world.b.want_session()
    world.deliver(world.b, world.a)
    assert world.a.sent == [] and not world.a.has_session
    assert set(world.a.device.verdicts) == {"DROP_INTERFACE_DOWN"}
    world.a.device.start(world.now)
    world.advance(0)
    assert world.a.kinds == [1]


@pytest.mark.parametrize("is_sent", [False, True], ids=["not yet begun", "not yet answered"])
def test_a_session_that_was_lost_is_made_anew_also_after_a_second_interruption(is_sent):
    """Of the interface, or by a clone."""
    world = World()
    world.handshake(world.a, world.b)
    world.pass_time(REKEY_TIMEOUT)
    world.a.device.stop()
    world.a.device.start(world.now)
    if is_sent:
        world.advance(0)
        assert world.a.kinds == [1]
        world.drop(world.a)
    world.a.device.stop()
    world.pass_time(REKEY_TIMEOUT)
    world.a.device.start(world.now)
    world.advance(0)
    assert world.deliver(world.a, world.b) == [1]
    assert world.deliver(world.b, world.a) == [2] and world.a.has_session


def test_a_peer_without_a_session_gets_none_when_the_interface_comes_up():
    world = World()
    for _ in range(2):
        world.a.device.stop()
        world.a.device.start(world.now)
        world.advance(0)
    assert world.a.kinds == []


def test_messages_leave_from_the_address_that_was_spoken_to():
    world = World()
    home = bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 77])
    world.a.want_session()
    assert world.a.sent[-1].source == NO_SOURCE_ADDRESS
    world.b.receive(world.a.sent.pop().message, PLACE["a"], home)
    assert world.b.sent[-1].source == home
    world.b.event("source_address_gone")
    assert world.b.peer.source_address == NO_SOURCE_ADDRESS and world.b.peer.endpoint == PLACE["a"]


def test_a_handshake_under_way_begins_anew_where_the_peer_is_said_to_be():
    """At once: what was sent elsewhere cannot have reached it."""
    world = World()
    world.a.want_session()
    world.drop(world.a)
    world.a.configure(world.b.public_key, endpoint=PLACE["mallory"])
    assert [(each.kind, each.where) for each in world.a.sent] == [(1, PLACE["mallory"])]
    world.deliver(world.a, world.b)
    assert world.deliver(world.b, world.a) == [2] and world.a.has_session

    world.drop(world.a)
    world.a.configure(world.b.public_key, endpoint=PLACE["mallory"])
    assert [(each.kind, each.where) for each in world.a.sent] == [(TRANSPORT, PLACE["mallory"])]


def test_an_endpoint_that_is_set_starts_no_handshake():
    world = World()
    world.a.configure(world.b.public_key, endpoint=PLACE["mallory"])
    assert world.a.sent == []


def test_a_try_without_answer_asks_for_the_name_again():
    world = World()
    world.a.want_session()
    assert world.a.unanswered == []
    world.advance(REKEY_TIMEOUT)
    assert world.a.unanswered == [world.a.peer]


def test_ten_thousand_idle_peers_have_no_deadline():
    world = World()
    for number in range(40):
        world.a.configure(bytes([7, number]) * 16)
    assert world.a.device.next_deadline() is None


def workers(side):
    return sorted(peer.worker for peer in side.device.peers.values())


def test_peers_are_spread_over_the_workers():
    world = World()
    for i in range(7):
        world.a.configure(bytes([i + 1]) * 32)
    assert workers(world.a) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert world.a.tables.spread_queues == 1 and world.b.tables.spread_queues == 2


def test_a_new_peer_takes_the_place_of_one_that_is_gone():
    world = World()
    for i in range(7):
        world.a.configure(bytes([i + 1]) * 32)
    for peer in list(world.a.device.peers.values()):
        if peer.worker == 2:
            world.a.remove(peer.public_key)
    assert workers(world.a) == [0, 0, 1, 1, 3, 3]
    for i in range(2):
        world.a.configure(bytes([i + 101]) * 32)
    assert workers(world.a) == [0, 0, 1, 1, 2, 2, 3, 3]
