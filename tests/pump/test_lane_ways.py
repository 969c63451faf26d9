"""Whether data goes by the session or by a lane, and by which: from when a lane is first heard to
its end. Where a lane leads, and what is reported of it."""

import socket
from ipaddress import ip_address

import pytest

from fastpump.conn.endpoint import Endpoint
from fastpump.constants import REJECT_AFTER_TIME, REKEY_AFTER_TIME, SECOND
from support.packets import A4, B4, PLAIN, flip, udp
from support.plainlanes import ASK, BUNDLE, FENCE
from support.pumps import START, carry, closing, lane_pair, message, on_the_wire, pair

MS = SECOND // 1000
SMALL = udp(A4, B4, b"small")
GOOD = udp(B4, A4, b"good")


@pytest.fixture
def ends(closed):
    return closed(lane_pair())


def _sockaddr(sock):
    return Endpoint.from_python(sock.getsockname()).sockaddr(socket.AF_INET6)


def test_data_goes_by_the_session_until_the_lane_was_heard():
    one, two = lane_pair(usable=False)
    assert carry(one, two, SMALL) == [PLAIN + SMALL]
    assert one.lane()["tx_messages"] == 0
    two.send_lane(two.plain().seal())
    one.poll()
    assert one.lane()["is_usable"]
    assert "lane_usable" in one.events()
    assert carry(one, two, SMALL) == [PLAIN + SMALL]
    assert one.lane()["tx_messages"] == 1
    closing((one, two))


def test_the_lane_of_a_probe_tells_the_supervisor(one, two):
    two.send_lane(two.plain().seal(b"", ASK, counter=8))
    two.send_lane(two.plain().seal(b"", ASK, counter=9))
    one.poll()
    assert one.events() == ["lane_echo_request"]
    one.tables.lanes.rearm(one.first, "echo_reported")
    two.send_lane(two.plain().seal(b"", ASK, counter=10))
    one.poll()
    assert one.events() == ["lane_echo_request"]


def test_who_asks_does_not_hear_us(one, two):
    """The way there may be blocked while the way back is free."""
    one.give(SMALL)
    one.poll()
    assert one.lane()["first_unanswered_tx_ns"] == START
    two.send_lane(two.plain().seal(b"", ASK, counter=8))
    one.poll()
    assert one.lane()["first_unanswered_tx_ns"] == START
    two.send_lane(two.plain().seal(b"", counter=9))
    one.poll()
    assert one.lane()["first_unanswered_tx_ns"] == 0
    one.tables.lanes.set_dead(one.first)
    two.send_lane(two.plain().seal(b"", ASK, counter=10))
    one.poll()
    assert not one.lane()["is_usable"]
    two.send_lane(two.plain().seal(b"", counter=11))
    one.poll()
    assert one.lane()["is_usable"]


def test_each_lane_roams_by_itself():
    one, two = lane_pair(count=2)
    before = [two.lane(n)["endpoint"] for n in range(2)]
    assert before == [one.lane_sockets[n].getsockname() and
                      _sockaddr(one.lane_sockets[n]) for n in range(2)]
    elsewhere = one.lane_sockets[5]
    elsewhere.sendto(one.plain(1).seal(SMALL, counter=50), two.udp.getsockname())
    two.poll()
    assert two.take() == [PLAIN + SMALL]
    assert [two.lane(n)["endpoint"] for n in range(2)] == [before[0], _sockaddr(elsewhere)]
    # A message that fails, or comes again, moves nothing.
    for hostile in (flip(one.plain(1).seal(SMALL, counter=51), 20),
                    one.plain(1).seal(SMALL, counter=50)):
        one.lane_sockets[6].sendto(hostile, two.udp.getsockname())
    two.poll()
    assert two.lane(1)["endpoint"] == _sockaddr(elsewhere)
    closing((one, two))


@pytest.mark.parametrize(("payload", "flags"), [
    (b"", 0), (b"no packet", 0), (udp("1.2.3.4", B4, b"x"), 0), (SMALL, FENCE), (b"\0", BUNDLE),
], ids=["empty", "no packet", "source not allowed", "waits for an end marker", "no bundle"])
def test_an_authentic_message_moves_its_lane_whatever_is_inside(one, two, payload, flags):
    elsewhere = one.lane_sockets[5]
    elsewhere.sendto(one.plain().seal(payload, flags, counter=50), two.udp.getsockname())
    two.poll()
    assert two.lane()["endpoint"] == _sockaddr(elsewhere)


def test_the_session_is_sent_from_where_a_lane_of_the_peer_comes_to(one, two):
    """An opener sends all to one address of ours. What came from another would bring it back."""
    two.udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    before = two.tables.peers.endpoint(two.peer)
    for counter in (50, 51):
        one.lane_sockets[0].sendto(one.plain().seal(b"", counter=counter), two.udp.getsockname())
    two.poll()
    assert two.tables.peers.endpoint(two.peer) == (
        before[0], ip_address("::ffff:127.0.0.1").packed)
    assert two.events().count("roam") == 1


def test_an_ipv6_session_is_not_sent_from_an_ipv4_address(one, two):
    two.udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    where = Endpoint(ip_address("2001:db8::1"), 1).sockaddr(socket.AF_INET6)
    two.tables.peers.set_endpoint(two.peer, where)
    one.lane_sockets[0].sendto(one.plain().seal(b"", counter=50), two.udp.getsockname())
    two.poll()
    assert two.tables.peers.endpoint(two.peer) == (where, bytes(16))


def test_flows_keep_to_one_of_several_lanes():
    one, two = lane_pair(count=4)           # one worker has all four
    flows = [udp(A4, B4, bytes(600), sport=port) for port in range(1000, 1032)]
    seen = {}
    for _ in range(3):
        for packet in flows:
            one.give(packet)
            one.poll()
            (wire,) = on_the_wire(two)
            assert seen.setdefault(packet[20:22], wire[2]) == wire[2]
    assert set(seen.values()) == {0, 1, 2, 3}
    closing((one, two))


def test_a_dead_lane_gives_its_flows_to_others():
    one, two = lane_pair(count=2)
    packets = [udp(A4, B4, bytes(600), sport=port) for port in range(1000, 1016)]
    one.tables.lanes.set_dead(one.first)
    for packet in packets:
        one.give(packet)
    one.poll()
    assert {wire[2] for wire in on_the_wire(two)} == {1}
    one.tables.lanes.set_dead(one.first + 1)
    one.give(packets[0])
    one.poll()
    assert [wire[0] for wire in on_the_wire(two)] == [4]    # the session
    closing((one, two))


def test_flows_do_not_wander_to_a_lane_that_was_heard_first():
    one, two = lane_pair(count=2, usable=False)
    packets = [udp(A4, B4, bytes(600), sport=port) for port in range(1000, 1016)]
    two.send_lane(two.plain(1).seal())
    one.poll()
    for packet in packets:
        one.give(packet)
    one.poll()
    assert {wire[0] for wire in on_the_wire(two)} == {4, 5}    # lane 0's go by the session
    closing((one, two))


def test_the_next_set_takes_over_when_its_lane_is_heard(one, two):
    assert carry(one, two, SMALL) == [PLAIN + SMALL]
    old = one.first, two.first
    for end in (one, two):
        end.reserve_lanes()
    for end, before in ((one, old[0]), (two, old[1])):
        end.install_lanes(generation=1)
        end.tables.peers.set_lanes(end.peer, end.first, before)
    assert carry(one, two, SMALL) == [PLAIN + SMALL]
    assert one.lane()["tx_messages"] == 0
    one.send_lane(one.plain(generation=1).seal(counter=one.take_counter()))
    two.poll()
    two.send_lane(two.plain(generation=1).seal(counter=two.take_counter()))
    one.poll()
    one.give(SMALL)
    one.poll()
    (wire,) = on_the_wire(two)
    assert two.plain(generation=1).open(wire) == (0, SMALL)     # no fence: the same sockets
    two.tables.lanes.retire(old[1])
    one.tables.lanes.retire(old[0])
    assert carry(one, two, SMALL) == [PLAIN + SMALL]
    assert one.verdicts() == two.verdicts() == {}


def test_lanes_end_with_their_age(one, two):
    one.give(SMALL)
    one.poll(START + REJECT_AFTER_TIME)
    assert one.lane()["tx_messages"] == 1
    one.send_lane(one.plain().seal(SMALL, counter=3))
    two.poll(START + REJECT_AFTER_TIME)
    assert two.verdicts() == {"DROP_EXPIRED_KEYPAIR": 1}


def test_an_old_lane_asks_for_a_new_session_once(one, two):
    for _ in range(2):
        one.give(SMALL)
        one.poll(START + REKEY_AFTER_TIME)
    assert one.events().count("rekey") == 1
    two.send_lane(two.plain().seal(GOOD, counter=3))
    one.tables.lanes.rearm(one.first, "rekey_reported")
    one.poll(START + REKEY_AFTER_TIME)
    assert one.events().count("rekey") == 1


@pytest.mark.parametrize("policy", ["lanes", "nothing"])
def test_data_outside_of_lanes_is_refused_on_demand(policy):
    one, two = lane_pair(usable=False)
    for end in (one, two):
        end.tables.peers.set_policy(end.peer, policy)
    one.give(SMALL)
    one.poll()
    two.udp.sendto(message(one, 5, udp(B4, A4, b"by the session")), one.udp.getsockname())
    one.poll()
    assert one.take() == [] and on_the_wire(two) == []
    assert one.verdicts() == {"DROP_NOT_IN_LANES": 1,
                              **({"DROP_NO_LANES": 1} if policy == "nothing" else {})}
    if policy == "lanes":       # it waited
        two.send_lane(two.plain().seal())
        one.poll()
        one.poll()
        (wire,) = on_the_wire(two)
        assert two.plain().open(wire) == (0, SMALL)
    closing((one, two))


def test_a_dead_worker_leaves_lanes_that_work(one, two):
    one.give(SMALL)
    one.poll()
    two.poll()
    one.tables.workers.exited(0)
    assert carry(one, two, SMALL)[-1] == PLAIN + SMALL
    assert one.lane()["tx_messages"] == 3


def test_unanswered_data_is_reported_when_the_event_ring_has_room_again(one, two):
    """By the next data; the time is that of the first."""
    one.events()
    while "FAILED_EVENT_RING_FULL" not in one.verdicts():
        one.tables.lanes.rearm(one.first, "unanswered_reported")
        one.give(SMALL)
        one.poll()
        two.send_lane(two.plain(counter=two.take_counter()).seal())     # the answer
        one.poll(START + 1)
    one.give(SMALL)
    one.poll(START + 2)
    one.events()
    one.give(SMALL)
    one.poll(START + MS)
    assert [(name, at) for name, _, _, _, at in one.tables.workers.events(0)] == [
        ("lane_unanswered", START + 2)]


def test_lane_sets_are_reused_by_their_size():
    one, two = pair()
    first, index = one.tables.lanes.reserve(one.peer, 3)
    other, _ = one.tables.lanes.reserve(one.peer, 4)
    one.tables.lanes.retire(first)
    while one.tables.retired.reclaim():
        pass
    again, new_index = one.tables.lanes.reserve(one.peer, 4)
    assert again == first and other == first + 4 and new_index != index
    with pytest.raises(ValueError, match="1 to 256"):
        one.tables.lanes.reserve(one.peer, 257)
    with pytest.raises(MemoryError, match="table of lanes is full"):
        for _ in range(1000):
            one.tables.lanes.reserve(one.peer, 256)
    closing((one, two))
