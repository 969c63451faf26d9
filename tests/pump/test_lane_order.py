"""Lane messages that have to wait: behind what the session still carries, and for their keys."""

import pytest

from fastpump.constants import SECOND
from support.packets import A4, B4, PLAIN, VNET, flip, udp
from support.plainlanes import ASK, FENCE
from support.pumps import START, closing, lane_pair, on_the_wire, pair

MS = SECOND // 1000
SMALL = udp(A4, B4, b"small")
DATA_AT = VNET.size + 28        # of what is written


@pytest.fixture
def ends(closed):
    return closed(lane_pair())


def switch(one, two):
    """`one` has sent by the session, and now hears its lane."""
    one.give(udp(A4, B4, b"by the session", ident=1))
    one.poll()
    two.send_lane(two.plain().seal(counter=two.take_counter()))
    one.poll()
    one.give(udp(A4, B4, b"on the lane", ident=2))
    one.poll()
    found = on_the_wire(two)
    return [each for each in found if each[0] == 4], [each for each in found if each[0] == 5]


def test_the_first_use_of_a_lane_is_fenced():
    one, two = lane_pair(usable=False)
    (data, end), (fenced,) = switch(one, two)
    assert fenced[1] == FENCE
    target = two.udp.getsockname()
    # The lane message overtakes; the data of the session and the END follow.
    one.udp.sendto(fenced, target)
    two.poll()
    assert two.take() == []
    one.udp.sendto(data, target)
    one.udp.sendto(end, target)
    two.poll()
    two.poll()
    assert [each[DATA_AT:] for each in two.take()] == [b"by the session", b"on the lane"]
    assert two.verdicts() == {}
    # From now on nothing waits.
    one.give(udp(A4, B4, b"later"))
    one.poll()
    two.poll()
    assert [each[DATA_AT:] for each in two.take()] == [b"later"]
    closing((one, two))


def test_a_set_of_the_other_sides_is_fenced_too(one, two):
    """Both started a session: the sets have different openers, hence other sockets."""
    one.give(udp(A4, B4, b"first"))
    one.poll()
    (first,) = on_the_wire(two)
    old = one.first
    for end in (one, two):
        end.reserve_lanes()
    one.install_lanes(generation=1, opens=False)
    two.install_lanes(generation=1, opens=True)
    one.tables.peers.set_lanes(one.peer, one.first, old)
    two.lane_sockets[0].sendto(two.plain(generation=1).seal(counter=two.take_counter()),
                               one.udp.getsockname())
    one.poll()
    one.give(udp(A4, B4, b"second"))
    one.poll()
    (end,) = on_the_wire(two)
    fenced = two.lane_sockets[0].recv(2000)
    assert fenced[1] == FENCE
    where = two.udp.getsockname()
    one.lane_sockets[0].sendto(fenced, two.lane_sockets[0].getsockname())
    two.poll()
    assert two.take() == []
    one.lane_sockets[0].sendto(first, where)
    one.lane_sockets[0].sendto(end, where)
    two.poll()
    two.poll()
    assert [each[DATA_AT:] for each in two.take()] == [b"first", b"second"]
    assert two.verdicts() == {}


def test_a_lost_end_costs_20_ms_and_no_data():
    one, two = lane_pair(usable=False)
    _, (fenced,) = switch(one, two)
    one.udp.sendto(fenced, two.udp.getsockname())
    two.poll()
    two.poll(START + 19 * MS)
    assert two.take() == []
    two.poll(START + 20 * MS)
    assert [each[DATA_AT:] for each in two.take()] == [b"on the lane"]
    one.give(udp(A4, B4, b"later"))
    one.poll()
    two.poll()
    assert [each[DATA_AT:] for each in two.take()] == [b"later"]
    closing((one, two))


def test_a_quiet_session_needs_no_fence(one, two):
    one.give(SMALL)
    one.poll()
    (wire,) = on_the_wire(two)
    assert wire[1] == 0


def test_a_stranger_cannot_have_messages_held(one, two):
    forged = flip(one.plain().seal(SMALL, FENCE, counter=9), 20)
    one.send_lane(forged)
    one.send_lane(one.plain().seal(SMALL, counter=10))
    two.poll()
    assert two.take() == [PLAIN + SMALL]
    assert two.verdicts() == {"DROP_UNAUTHENTIC": 1}


def test_lane_messages_wait_for_their_keys():
    one, two = pair()
    for end in (one, two):
        end.reserve_lanes()
    one.install_lanes()
    lane = one.plain()
    one.send_lane(lane.seal(b"", ASK))
    one.send_lane(lane.seal(SMALL))
    two.poll()
    assert two.take() == [] and two.events() == [] and two.verdicts() == {}
    two.install_lanes()
    two.poll()
    assert two.take() == [PLAIN + SMALL]
    assert set(two.events()) >= {"lane_echo_request", "lane_usable"}
    closing((one, two))


def test_what_waits_for_keys_that_never_come_is_dropped():
    one, two = pair()
    for end in (one, two):
        end.reserve_lanes()
    big = one.plain().seal(bytes(60000))
    for _ in range(60):
        one.send_lane(big)
        two.poll()
    held = (4 << 20) // 9 // (60000 + 32)
    assert two.verdicts() == {"DROP_HOLD_FULL": 60 - held}
    two.poll(START + 20 * MS)
    assert two.verdicts() == {"DROP_HOLD_FULL": 60 - held, "DROP_UNKNOWN_INDEX": held}
    one.send_lane(one.plain().seal(SMALL, counter=1))
    two.poll()
    two.tables.lanes.retire(two.first)
    two.poll(START + 20 * MS)
    assert two.verdicts()["DROP_UNKNOWN_INDEX"] == held + 1
    closing((one, two))
