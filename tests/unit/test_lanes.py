"""Lanes between two devices: the upgrade of their sessions, sets of lanes, peers without any."""

import pytest

from fastpump._core import keys_of_lane
from fastpump.constants import (
    LANES_PROOF_TIME,
    REJECT_AFTER_TIME,
    REKEY_TIMEOUT,
    SECOND,
    UPGRADE_ATTEMPTS,
)
from fastpump.protocol import keys
from fastpump.protocol.lane_messages import Mode
from support import plainlanes
from support.plainlanes import ACCEPT, ASK, HELLO, OFFER, REFUSE

NO_DATA_SENT = "nothing is sent to it (--transport lanes)"


# -- the upgrade

def test_the_upgrade_takes_a_round_trip(worlds):
    world = worlds()
    a, b = world.a, world.b
    world.handshake(a, b)
    assert world.deliver(a, b) == [HELLO]           # and no keepalive
    assert world.deliver(b, a) == [OFFER]
    # The initiator has the keys, one round trip after its handshake.
    assert [each.is_opener for each in a.sets] == [True]
    assert world.deliver(a, b) == [ACCEPT, ("lane", 0, ASK), ("lane", 1, ASK)]
    assert b.usable == [0, 1]
    assert world.deliver(b, a) == [("lane", 0, 0), ("lane", 1, 0)]
    assert a.usable == [0, 1]
    assert world.deliver(a, b) == world.deliver(b, a) == []
    for side in (a, b):
        assert side.newest.cipher == "aes-256-gcm"
        assert not side.newest.due and side.device.verdicts == {}


@pytest.mark.parametrize(("queues", "count"), [((1, 1), 1), ((4, 1), 4), ((2, 3), 3)])
def test_the_number_of_queues_may_differ(worlds, queues, count):
    world = worlds(queues=queues)
    world.connect()
    assert world.a.usable == world.b.usable == list(range(count))


def test_the_opener_uses_a_socket_for_each_lane(worlds):
    world = worlds(queues=(4, 1))
    world.handshake(world.a, world.b)
    world.deliver(world.a, world.b)
    world.deliver(world.b, world.a)
    assert [(where, number) for _, where, number in world.a.lane_sent] == [
        (world.b.place.endpoint, number) for number in range(4)]

    world.deliver(world.a, world.b)
    assert [number for _, _, number in world.b.lane_sent] == [None] * 4


@pytest.mark.parametrize(("a", "b", "cipher"), [
    (("aes-256-gcm", "chacha20-poly1305"), ("chacha20-poly1305",), "chacha20-poly1305"),
    (("chacha20-poly1305", "aes-256-gcm"), ("aes-256-gcm",), "aes-256-gcm"),
])
def test_ciphers(worlds, a, b, cipher):
    world = worlds(a={"ciphers": a}, b={"ciphers": b})
    world.connect()
    assert world.a.newest.cipher == cipher == world.b.newest.cipher
    assert world.a.usable == [0, 1]


@pytest.mark.parametrize(("b", "why"), [
    ({"mode": Mode.TAP}, "one side is a TUN, the other a TAP"),
    ({"ciphers": ("chacha20-poly1305",)}, "there is no cipher that both sides allow"),
])
def test_a_refusal_is_logged_once(worlds, b, why, caplog):
    world = worlds(a={"ciphers": ("aes-256-gcm",)}, b=b)
    world.handshake(world.a, world.b)
    assert world.deliver(world.a, world.b) == [HELLO]
    assert world.deliver(world.b, world.a) == [REFUSE]
    assert world.a.lanes.refusal == world.b.lanes.refusal == why
    assert caplog.text.count(why) == 2          # by each side

    world.advance(20 * SECOND)
    assert world.a.sets == world.b.sets == []
    world.rekey(world.a, world.b)
    assert caplog.text.count(why) == 2


def test_a_lost_hello_is_repeated_once(worlds):
    world = worlds()
    world.handshake(world.a, world.b)
    world.a.sent.clear()
    world.pass_time(SECOND)
    world.a.tick()
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


def count_unheard(world, side, seconds):
    """The number of transport messages that a side sends while all of them are lost."""
    count = 0
    for _ in world.steps(seconds, side):
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
        counts.append(1 + count_unheard(world, world.a, 9))
    assert counts == [2, 2, 2, 1, 1]
    assert world.a.sets == []
    assert sum(world.b.verdicts(worker)["DROP_CONTROL_UNWANTED"] for worker in (0, 1)) == 5


def test_without_lanes_nothing_is_sent(worlds):
    world = worlds(a={"transport": "wireguard"})
    world.handshake(world.a, world.b)
    assert world.deliver(world.a, world.b) == ["keepalive"]
    assert world.deliver(world.b, world.a) == []
    assert count_unheard(world, world.b, 9) == 0


# -- hostile peers

A_HELLO = plainlanes.control(HELLO, {1: b"\1", 2: b"\1", 3: b"\1", 4: b"\1\0", 5: bytes(4),
                                     6: bytes(2), 8: bytes(4)})


@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize(("data", "verdict"), [
    (plainlanes.control(ACCEPT, {7: bytes(4), 10: bytes(1088)}), "DROP_UNEXPECTED_CONTROL"),
    (plainlanes.control(REFUSE, {11: b"\1"}), "DROP_UNEXPECTED_CONTROL"),
    (A_HELLO, "DROP_UNEXPECTED_CONTROL"),
    (b"\xf0", "DROP_MALFORMED_CONTROL"),
    (b"\xf0\1\xff\xff", "DROP_MALFORMED_CONTROL"),
    (plainlanes.control(99, {}), "DROP_MALFORMED_CONTROL"),
], ids=["accept", "refuse", "hello", "short", "cut off", "unknown"])
def test_control_packets_out_of_turn_change_nothing(worlds, side, data, verdict):
    world = worlds()
    world.connect()
    side = getattr(world, side)
    sets = side.sets
    assert side.receive_control(data) == verdict
    assert side.sets == sets
    assert side.sent == []


def test_repeats_are_answered_so_often_and_no_more(worlds):
    world = worlds()
    a, b = world.a, world.b
    world.handshake(a, b)
    world.deliver(a, b)
    hello = b.upgrade.hello
    verdicts = [b.receive_control(hello) for _ in range(2 * UPGRADE_ATTEMPTS + 3)]
    assert verdicts == [None] * 2 * UPGRADE_ATTEMPTS + ["DROP_UNEXPECTED_CONTROL"] * 3
    assert len(b.sent) == 1 + 2 * 2 * UPGRADE_ATTEMPTS      # in two parts each
    assert len(set(map(len, b.sent[1:]))) == 2


def test_an_invalid_kem_key_is_dropped(worlds):
    world = worlds()
    world.handshake(world.a, world.b)
    world.deliver(world.a, world.b)
    kind, fields, _ = plainlanes.parse_control(world.b.upgrade.offer)
    fields[10] = b"\xff" * 1184
    assert world.a.receive_control(plainlanes.control(kind, fields)) == "DROP_MALFORMED_CONTROL"

    world.settle()
    assert world.a.usable == [0, 1]


def test_a_changed_message_makes_no_lanes(worlds):
    """Whoever gets round the session's AEAD still cannot change the terms."""
    world = worlds()
    a, b = world.a, world.b
    world.handshake(a, b)
    a.sent.clear()
    kind, fields, _ = plainlanes.parse_control(a.upgrade.hello)
    fields[3] = b"\2"           # only ChaCha20-Poly1305
    b.receive_session(a.keepalive(), a)        # confirms the session
    b.receive_control(plainlanes.control(kind, fields))

    world.advance(3 * SECOND)
    assert b.newest.cipher == "chacha20-poly1305"
    assert a.newest.cipher == "aes-256-gcm"
    assert a.usable == b.usable == []
    assert b.verdicts()["DROP_UNAUTHENTIC"] > 0


def test_both_sides_may_start_at_once(worlds):
    world = worlds()
    a, b = world.a, world.b
    from_a, from_b = a.start_handshake(), b.start_handshake()
    b.receive_handshake(from_a, a)
    a.receive_handshake(from_b, b)
    world.settle()
    world.advance(2 * SECOND)
    assert a.usable == b.usable == [0, 1]
    for side, other in ((a, b), (b, a)):
        assert side.newest.local_index in {each.remote_index for each in other.sets}


# -- sets

def test_each_session_has_a_set_of_its_own(worlds):
    world = worlds()
    a, b = world.a, world.b
    world.connect()
    for _ in range(4):
        world.rekey(a, b)
        assert a.usable == b.usable == [0, 1]
        assert a.newest.local_index == b.newest.remote_index
    assert len(a.sets) == len(b.sets) == 3
    assert len({keys_of_lane(a.tables, slot)[0] for each in a.sets for slot in each.slots}) == 6


def test_the_opener_stays_the_opener(worlds):
    world = worlds()
    world.connect()
    world.rekey(world.b, world.a)       # the other side starts now
    assert world.a.newest.is_opener and not world.b.newest.is_opener
    assert world.a.usable == world.b.usable == [0, 1]


def test_lanes_end_with_their_sessions(worlds):
    world = worlds()
    world.connect()
    world.advance(REJECT_AFTER_TIME, step=SECOND)
    assert world.a.sets == world.b.sets == []


@pytest.mark.parametrize("initiator", ["a", "b"])
@pytest.mark.parametrize("transport", ["auto", "wireguard"])
def test_a_restarted_peer_has_lost_its_lanes(worlds, initiator, transport):
    world = worlds()
    world.connect()
    old = world.a.newest
    world.advance(REKEY_TIMEOUT)
    world.restart_b(transport=transport)
    a, b = world.a, world.b
    world.handshake(*((a, b) if initiator == "a" else (b, a)))
    if transport == "auto":
        world.settle()
        assert old not in a.sets
        assert a.usable == b.usable == [0, 1]
    else:
        world.advance(LANES_PROOF_TIME + UPGRADE_ATTEMPTS * SECOND)
        assert a.sets == []


def test_another_private_key_ends_all_lanes(worlds):
    world = worlds()
    world.connect()
    world.a.device.set_private_key(keys.generate_private())
    assert world.a.sets == world.a.lanes.upgrades == []


def test_a_full_table_is_counted(worlds):
    world = worlds()
    a, b = world.a, world.b
    other = b.tables.peers.add()
    for count in (256, 128, 64, 32, 16, 8, 4, 2, 1):
        with pytest.raises(MemoryError):
            while True:
                b.tables.lanes.reserve(other, count)
    world.handshake(a, b)
    assert world.deliver(a, b) == [HELLO]
    assert b.device.verdicts == {"DROP_TABLE_FULL": 1}
    assert b.sent == []


def test_another_mtu_is_logged_once(worlds, caplog):
    world = worlds()
    world.b.tables.mtu = 1280
    world.connect()
    world.rekey(world.a, world.b)
    assert caplog.text.count("MTU of 1280") == caplog.text.count("MTU of 1420") == 1


def test_nothing_is_repeated_in_a_session_that_is_gone(worlds):
    """Its slot's counters begin anew: to seal with its key again would repeat a nonce."""
    world = worlds()
    a, b = world.a, world.b
    world.handshake(a, b)
    assert world.deliver(a, b) == [HELLO]
    b.sent.clear()
    gone = b.upgrade.keypair
    for _ in range(2):                  # two sessions later, without timers in between
        world.pass_time(REKEY_TIMEOUT)
        world.handshake(a, b)
        a.sent.clear()
        b.receive_session(a.keepalive(), a)

    assert b.peer.keypairs.by_index(gone.local_index) is None
    assert count_unheard(world, b, 6) == 0
    assert b.lanes.upgrades == []
    with pytest.raises(ValueError, match="is gone"):
        b.tables.keypairs.take_counter(gone.slot, gone.local_index)


# -- only lanes

def test_only_lanes(worlds, caplog):
    world = worlds(a={"transport": "lanes"}, b={"transport": "wireguard"})
    a = world.a
    world.handshake(a, world.b)
    world.deliver(a, world.b)
    count_unheard(world, a, 10)
    assert a.lanes.refusal
    assert caplog.text.count(NO_DATA_SENT) == 1
    a.send_packet(worker=0)
    assert a.verdicts()["DROP_NO_LANES"] == 1

    world.restart_b()               # its operator allows lanes: the next session brings them
    world.rekey(a, world.b)
    assert a.usable == [0, 1]
    a.send_packet(worker=0)
    assert a.verdicts()["DROP_NO_LANES"] == 1


@pytest.mark.parametrize("late", [OFFER, ACCEPT])
def test_only_lanes_that_come_late_are_used(worlds, late, caplog):
    """After the tries are spent, when data is dropped already: from then on it waits again."""
    world = worlds(a={"transport": "lanes"}, b={"transport": "lanes"})
    a, b = world.a, world.b
    world.handshake(a, b)
    world.deliver(a, b)
    if late == OFFER:
        side, messages, send = a, b.sent[:], lambda: world.deliver(b, a)
    else:
        world.deliver(b, a)
        side, messages, send = b, a.sent[:], lambda: world.deliver(a, b)
        a.lane_sent.clear()
    count_unheard(world, side, 10)
    assert caplog.text.count(NO_DATA_SENT) == 1
    side.send_packet(worker=0)
    assert side.verdicts()["DROP_NO_LANES"] == 1

    (a if late == ACCEPT else b).sent[:] = messages
    send()
    assert side.usable == []
    side.send_packet(worker=0)
    assert side.verdicts()["DROP_NO_LANES"] == 1
    world.advance(6 * SECOND)
    assert side.usable == [0, 1]
    assert side.tables.lanes.status(side.newest.first)["tx_bytes"] > 0


def test_only_lanes_as_the_responder(worlds, caplog):
    world = worlds(a={"transport": "wireguard"}, b={"transport": "lanes"})
    world.handshake(world.a, world.b)
    world.deliver(world.a, world.b)
    world.advance(LANES_PROOF_TIME)
    assert caplog.text.count(NO_DATA_SENT) == 1
