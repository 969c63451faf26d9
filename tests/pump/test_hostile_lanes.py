"""Lane messages that are damaged, repeated, or lie: each costs a counter, and the lane lives on."""

import pytest

from fastpump import _core
from support import plainlanes
from support.packets import A4, A6, B4, B6, PLAIN, TCP, UDP, flip, ip, udp
from support.plainlanes import BUNDLE, PARTIAL
from support.pumps import ALL_FEATURES, START, closing, lane_pair, message

GOOD = udp(B4, A4, b"good")
HOSTILE = [
    ("short", lambda lane: lane.seal()[:31], {"DROP_MALFORMED_MESSAGE": 1}),
    ("unknown flag", lambda lane: lane.seal(GOOD, 0x10), {"DROP_MALFORMED_MESSAGE": 1}),
    ("reserved byte", lambda lane: flip(lane.seal(GOOD), 3), {"DROP_MALFORMED_MESSAGE": 1}),
    ("lane that is not", lambda lane: flip(lane.seal(GOOD), 2, 8), {"DROP_UNKNOWN_INDEX": 1}),
    ("another lane's", lambda lane: flip(lane.seal(GOOD), 2), {"DROP_UNAUTHENTIC": 1}),
    ("index of nobody", lambda lane: flip(lane.seal(GOOD), 7, 128), {"DROP_UNKNOWN_INDEX": 1}),
    ("flags changed", lambda lane: flip(lane.seal(GOOD), 1, PARTIAL), {"DROP_UNAUTHENTIC": 1}),
    ("counter changed", lambda lane: flip(lane.seal(GOOD), 8, 64), {"DROP_UNAUTHENTIC": 1}),
    ("cut", lambda lane: lane.seal(GOOD)[:-1], {"DROP_UNAUTHENTIC": 1}),
    ("counter beyond the limit", lambda lane: lane.seal(GOOD, counter=2**64 - 1),
     {"DROP_REPLAYED": 1}),
    ("no IP inside", lambda lane: lane.seal(b"hello"), {"DROP_MALFORMED_INNER": 1}),
    ("control packet on a lane", lambda lane: lane.seal(plainlanes.control(1, {1: b"123456"})),
     {"DROP_MALFORMED_INNER": 1}),
    ("END of nothing", lambda lane: lane.seal(plainlanes.end(0, 0)), {"DROP_UNKNOWN_INDEX": 1}),
    ("source of somebody else", lambda lane: lane.seal(udp("10.9.0.3", A4, b"x")),
     {"DROP_SOURCE_NOT_ALLOWED": 1}),
    ("partial, too short for TCP", lambda lane: lane.seal(ip(B4, A4, TCP, bytes(19)), PARTIAL),
     {"DROP_MALFORMED_PARTIAL": 1}),
    ("partial, too short for UDP", lambda lane: lane.seal(ip(B4, A4, UDP, bytes(7)), PARTIAL),
     {"DROP_MALFORMED_PARTIAL": 1}),
    ("partial, empty v6", lambda lane: lane.seal(ip(B6, A6, UDP, b""), PARTIAL),
     {"DROP_MALFORMED_PARTIAL": 1}),
    ("partial ICMP", lambda lane: lane.seal(ip(B4, A4, 1, bytes(64)), PARTIAL),
     {"DROP_MALFORMED_PARTIAL": 1}),
    ("partial fragment", lambda lane: lane.seal(
        ip(B4, A4, UDP, bytes(64), more_fragments=True, df=False), PARTIAL),
     {"DROP_MALFORMED_PARTIAL": 1}),
    ("bundle of one byte", lambda lane: lane.seal(b"\1", BUNDLE), {"DROP_MALFORMED_BUNDLE": 1}),
    ("bundle with an empty entry", lambda lane: lane.seal(b"\0\0", BUNDLE),
     {"DROP_MALFORMED_BUNDLE": 1}),
    ("bundle that claims more", lambda lane: lane.seal(b"\xff\x7f" + GOOD, BUNDLE),
     {"DROP_MALFORMED_BUNDLE": 1}),
    ("bundle of what is no packet", lambda lane: lane.seal(
        plainlanes.bundle([(b"hello", False), (b"", True)]), BUNDLE),
     {"DROP_MALFORMED_INNER": 1, "DROP_MALFORMED_BUNDLE": 1}),
    ("bundle of lies", lambda lane: lane.seal(plainlanes.bundle([
        (GOOD[:-1], False), (ip(B4, A4, 1, bytes(9)), True), (udp(A4, A4, b""), False)]), BUNDLE),
     {"DROP_MALFORMED_INNER": 1, "DROP_MALFORMED_PARTIAL": 1, "DROP_SOURCE_NOT_ALLOWED": 1}),
]


@pytest.fixture
def ends(closed):
    return closed(lane_pair())


@pytest.mark.parametrize(("make", "verdicts"), [row[1:] for row in HOSTILE],
                         ids=[row[0] for row in HOSTILE])
def test_hostile_lane_messages_cost_a_counter(make, verdicts):
    one, two = lane_pair(count=2)
    two.send_lane(make(two.plain(0, counter=5)))
    one.poll()
    assert one.take() == []
    assert one.verdicts() == verdicts
    # And the lane lives on.
    two.send_lane(two.plain(0).seal(GOOD, counter=77))
    one.poll()
    assert one.take() == [PLAIN + GOOD]
    closing((one, two))


def test_a_truncated_bundle_delivers_what_is_whole(one, two):
    payload = plainlanes.bundle([(GOOD, False), (GOOD, False)])[:-1]
    two.send_lane(two.plain().seal(payload, BUNDLE, counter=9))
    one.poll()
    assert one.take() == [PLAIN + GOOD]
    assert one.verdicts() == {"DROP_MALFORMED_BUNDLE": 1}


def test_a_replayed_message_is_dropped_on_whatever_lane_it_comes():
    one, two = lane_pair(count=4)
    wire = two.plain(1, counter=5).seal(GOOD)
    for sock in one.lane_sockets[:4]:
        two.udp.sendto(wire, sock.getsockname())
    for lane in (0, 2, 3):
        two.send_lane(wire[:2] + bytes([lane]) + wire[3:])
    one.poll()
    assert one.take() == [PLAIN + GOOD]
    assert one.verdicts() == {"DROP_REPLAYED": 3, "DROP_UNAUTHENTIC": 3}
    closing((one, two))


def test_an_end_for_somebody_elses_lane_is_dropped(one, two):
    other = one.tables.peers.add()
    first, index = one.tables.lanes.reserve(other, 1)
    one.tables.lanes.install(first, _core.NewLanes(
        remote_index=1, cipher="aes-256-gcm", features=ALL_FEATURES,
        keys=[(bytes(32), bytes(32))], endpoints=[(b"", bytes(16))], sockets=None,
        rekey_at_ns=START * 2, rekey_rx_at_ns=START * 2, reject_at_ns=START * 2))
    for index_, lane in ((index, 0), (one.lanes_index, 7), (0xffffffff, 0), (0, 65535)):
        counter = one.tables.keypairs.take_counter(one.slot, one.index)
        two.udp.sendto(message(one, counter, plainlanes.end(index_, lane)),
                       one.udp.getsockname())
    one.poll()
    assert one.verdicts() == {"DROP_UNKNOWN_INDEX": 4}
