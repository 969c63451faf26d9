"""Life and death of lanes between two devices: probes, answers, endpoints, keepalives."""

from itertools import pairwise

import pytest

from fastpump._core import keys_of_lane
from fastpump.constants import LANE_DEAD_AFTER_PROBES, REKEY_TIMEOUT, SECOND
from support import plainlanes
from support.plainlanes import ASK


@pytest.fixture
def world(worlds):
    """Two sides with two lanes."""
    world = worlds()
    world.connect()
    return world


def probe(side, number):
    """A probe on a lane, as it leaves."""
    side.newest.lanes[number].ask(side.world.now)
    message, _, _ = side.lane_sent.pop()
    return message


def block_lane_1(world, seconds):
    """Nothing arrives on lane 1, and data waits there for an answer; when a probes it, in tenths of
    a second."""
    a, began = world.a, world.now
    world.blocked = {(a, 1), (world.b, 1)}
    a.send_packet(worker=1)
    probed_at = []
    for now in world.steps(seconds, a, world.b):
        probed_at += [(now - began) // (SECOND // 10) for message, _, _ in a.lane_sent
                      if message[1] & ASK and message[2] == 1]
        world.settle()
    world.blocked.clear()
    return probed_at


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

    probed = [number for _ in world.steps(20, a) for number in a.take_probes()]
    assert set(probed) == {1}
    assert 7 <= len(probed) <= 10       # 0.1, 0.2, 0.5, 1, 2, then every 5 s
    assert caplog.text.count("lane 1 of") == 1
    assert [lane.is_dead for lane in a.newest.lanes] == [False, True]

    world.advance(5 * SECOND)           # nothing blocks it any more
    assert a.usable == b.usable == [0, 1]


def test_a_lane_that_is_not_answered_dies_and_comes_back(world, caplog):
    a = world.a
    assert block_lane_1(world, 10)[:LANE_DEAD_AFTER_PROBES] == [5, 15, 25]
    assert a.usable == [0]
    assert "lane 1 of" in caplog.text and caplog.text.count("is dead") == 1

    world.advance(6 * SECOND)
    assert a.usable == [0, 1]
    assert caplog.text.count("is dead") == 1


def test_while_no_lane_works_one_is_probed_every_second(world):
    """All flows wait for the first that works again."""
    a = world.a
    for worker in (0, 1):
        a.send_packet(worker)
    for _ in world.steps(4, a):
        a.take_probes()
    assert a.usable == []
    for _ in range(10):
        probed = [number for _ in world.steps(2, a) for number in a.take_probes()]
        assert set(probed) == {0, 1} and len(probed) <= 5
    world.advance(SECOND)               # nothing blocks them any more
    assert a.usable

    world.advance(5 * SECOND)
    assert a.usable == [0, 1] and not a.newest.due
    assert a.newest.deadline() == a.newest.reject_at


@pytest.mark.parametrize("blocked", ["a", "b"])
@pytest.mark.parametrize("transport", ["auto", "lanes"])
def test_a_lane_that_is_blocked_from_the_start_dies_on_both_sides(worlds, blocked, transport):
    """In one direction; and again in the next set. It comes back on both sides."""
    world = worlds(a={"transport": transport}, b={"transport": transport})
    a, b = world.a, world.b
    world.blocked = {(getattr(world, blocked), 1)}
    world.connect()
    for _ in range(2):
        # Flows of lane 1 leave by the session until it is dead. b was received there if its own
        # direction is the blocked one, and sends there.
        assert a.lanes.sets.carry_all() == (transport == "lanes")
        assert b.lanes.sets.carry_all() == (transport == "lanes" or blocked == "b")
        for _ in range(62):
            a.send_packet(worker=1)
            b.send_packet(worker=1)
            world.advance(SECOND // 10)
        for side in (a, b):
            assert side.usable == [0] and side.lanes.sets.carry_all()
            assert [lane.is_dead for lane in side.newest.lanes] == [False, True]
        world.rekey(a, b)
    world.blocked.clear()
    world.advance(12 * SECOND)
    assert a.usable == b.usable == [0, 1]
    assert a.lanes.sets.carry_all() and b.lanes.sets.carry_all()


def initiations(side):
    return sum(message[0] == 1 for message in side.sent)


@pytest.mark.parametrize("workers", [[1], [0, 1]], ids=["one flow", "flows on all lanes"])
def test_a_peer_that_lost_all_gets_a_handshake_when_its_lanes_are_dead(world, workers):
    """A hub that was restarted, and knows no endpoints."""
    a = world.a
    world.advance(10 * SECOND)
    world.restart_b()
    for worker in workers:
        a.send_packet(worker)
    for _ in range(42):
        world.pass_time(SECOND // 10)
        a.tick()
        a.take_probes()
    assert initiations(a) == 1
    world.settle()
    assert a.usable == world.b.usable == [0, 1]


@pytest.mark.parametrize(("age", "count"), [(2, 0), (12, 1)])
def test_a_peer_that_does_not_receive_any_lane_gets_a_handshake_now_and_then(world, age, count):
    a, b = world.a, world.b
    world.advance(age * SECOND)
    for worker in (0, 1):
        a.send_packet(worker)
    for _ in world.steps(4.5, a):
        a.take_probes()
        b.newest.lanes[0].ask(world.now)
        world.deliver(b, a)
        a.lane_sent.clear()
    assert a.usable == []
    assert initiations(a) == count


def test_one_dead_lane_of_several_needs_no_handshake(world):
    a = world.a
    world.advance(10 * SECOND)
    world.blocked = {(world.b, 1)}
    for _ in range(80):
        a.send_packet(worker=0)
        a.send_packet(worker=1)
        world.advance(SECOND // 10)
    assert a.usable == [0]
    assert a.peer.last_initiation_sent_at < world.now - 10 * SECOND


def test_handshakes_for_dead_lanes_keep_their_distance(world):
    a = world.a
    world.advance(10 * SECOND)
    sent_at = []
    for worker in (0, 1):
        a.send_packet(worker)
    for now in world.steps(30, a):
        a.take_probes()
        sent_at += [now] * initiations(a)
        a.sent.clear()
    assert len(sent_at) >= 5
    assert all(later - earlier >= REKEY_TIMEOUT for earlier, later in pairwise(sent_at))


def test_a_lane_that_came_back_is_watched(world, caplog):
    a = world.a
    for times in (1, 2):
        block_lane_1(world, 5)
        assert a.usable == [0]
        assert caplog.text.count("is dead") == times
        world.advance(6 * SECOND)
        assert a.usable == [0, 1]


def test_flows_leave_lanes_that_are_blocked_at_once_in_one_step(worlds, caplog):
    """Those without data as well: a flow must not try one after the other."""
    world = worlds(queues=(4, 4))
    world.connect()
    a = world.a
    world.blocked = {(side, lane) for side in (a, world.b) for lane in (0, 1, 2)}
    moved_at = None
    for tenth in range(60):
        a.send_packet(worker=0)
        world.advance(SECOND // 10)
        if moved_at is None and a.usable != [0, 1, 2, 3]:
            assert a.usable == [3]          # all at the same time
            moved_at = tenth
    assert 34 <= moved_at <= 36
    assert a.usable == [3] and caplog.text.count("is dead") == 3


def test_one_way_data_does_not_kill_a_lane(world, caplog):
    for _ in range(300):
        world.a.send_packet(worker=1)
        world.advance(SECOND // 10)
    assert world.a.usable == world.b.usable == [0, 1]
    assert "is dead" not in caplog.text


def test_an_answer_to_a_probe_keeps_a_lane(world):
    """And the next data that is not answered is noticed, too."""
    a, b = world.a, world.b
    for _ in range(3):
        a.send_packet(worker=1)
        for _ in world.steps(2, a, b):
            pass
        assert a.take_probes() == [1, 1, 0]     # after the first that is lost, both
        b.receive_lane(probe(a, 1), a)
        world.settle()
        world.advance(2 * SECOND)
        assert a.usable == [0, 1]
        assert not a.newest.due


def test_a_peer_that_roams_is_probed_and_answers_by_the_session_too(world):
    a, b = world.a, world.b
    world.advance(2 * SECOND)
    assert world.deliver(a, b) == []
    counter = a.tables.lanes.take_counter(a.newest.first + 1, world.now)
    lane = plainlanes.PlainLane(1, a.newest.remote_index, keys_of_lane(
        a.tables, a.newest.first + 1)[0], b"")
    elsewhere = world.new_place()
    b.receive_by(1, lane.seal(counter=counter), elsewhere)
    assert [(message[2], message[1], where) for message, where, _ in b.lane_sent] == [
        (1, ASK, elsewhere.endpoint)]

    world.now += SECOND // 10
    assert world.deliver(b, a) == [("lane", 1, ASK)]
    assert world.deliver(a, b) == ["keepalive", ("lane", 0, ASK), ("lane", 1, ASK),
                                   ("lane", 1, 0)]

    # Soon after that, the session's answer comes when its time has come.
    b.sent.clear()
    b.lane_sent.clear()
    b.lanes.on_lane_roam(b.newest.first, world.now)
    world.now += SECOND // 10
    assert world.deliver(b, a) == [("lane", 0, ASK)]
    assert world.deliver(a, b) == [("lane", 0, 0)]
    world.now += SECOND
    a.tick()
    assert world.deliver(a, b) == ["keepalive", ("lane", 0, ASK), ("lane", 1, ASK)]


def test_a_flood_of_probes_is_answered_now_and_then(world):
    a, b = world.a, world.b
    world.advance(SECOND)
    for _ in range(100):
        world.now += SECOND // 1000
        b.receive_lane(probe(a, 0), a)
    assert a.tables.lanes.status(a.newest.first)["tx_messages"] > 100
    assert 5 <= len(b.lane_sent) <= 6


def test_probes_that_cross_are_both_answered(world):
    world.advance(SECOND)
    for side in (world.a, world.b):
        side.newest.lanes[1].ask(world.now)
    world.deliver(world.a, world.b)
    assert ("lane", 1, 0) in world.deliver(world.b, world.a)
    assert ("lane", 1, 0) in world.deliver(world.a, world.b)


def test_a_probe_on_a_dead_lane_is_answered_with_a_probe(world):
    """So that it works again on both sides as soon as one finds that the path is open."""
    a, b = world.a, world.b
    block_lane_1(world, 5)
    assert a.usable == [0]
    b.newest.lanes[1].ask(world.now)
    assert world.deliver(b, a) == [("lane", 1, ASK)]
    assert [message[1] for message, _, _ in a.lane_sent if message[2] == 1].count(0) == 1
    world.settle()
    assert a.usable == [0, 1]


def test_data_that_has_just_left_answers_a_probe(world):
    a, b = world.a, world.b
    world.advance(2 * SECOND)
    b.send_packet(worker=1)
    b.receive_lane(probe(a, 1), a)
    assert b.lane_sent == []


@pytest.mark.parametrize("keepalive", [0, 1])
@pytest.mark.parametrize("blocked", ["a", "b"])
def test_only_an_answer_is_an_answer(world, blocked, keepalive):
    """One way of a lane is blocked. Data on another lane makes the other side show where its lanes
    are, and keepalives come: that they arrive proves nothing for the other way."""
    sender, other = (world.a, world.b) if blocked == "a" else (world.b, world.a)
    other.configure(sender, keepalive_s=keepalive)
    world.blocked = {(sender, 1)}
    for _ in range(45):
        sender.send_packet(worker=0)
        sender.send_packet(worker=1)
        world.advance(SECOND // 10)
    assert sender.usable == [0]

    world.blocked.clear()
    world.advance(6 * SECOND)
    assert sender.usable == [0, 1]


def test_two_openers_do_not_ask_each_other_for_ever(worlds):
    world = worlds()
    a, b = world.a, world.b
    from_a, from_b = a.start_handshake(), b.start_handshake()
    b.receive_handshake(from_a, a)
    a.receive_handshake(from_b, b)
    world.settle()
    assert {each.is_opener for each in a.sets} == {each.is_opener for each in b.sets} \
        == {False, True}
    a.newest.ask_all(world.now)
    b.newest.ask_all(world.now)
    world.advance(5 * SECOND)
    for side in (a, b):
        assert all(side.tables.lanes.status(slot)["last_tx_ns"] < world.now - 3 * SECOND
                   for each in side.sets for slot in each.slots)


@pytest.mark.parametrize("is_forged", [False, True])
def test_keepalives_keep_each_lane_open(worlds, is_forged):
    """Also if a worker wrote that it sends there in 500 years."""
    world = worlds()
    a, b = world.a, world.b
    for side, other in ((a, b), (b, a)):
        side.configure(other, keepalive_s=25)
    world.connect()
    if is_forged:
        for slot in a.newest.slots:
            a.tables.lanes.seal(slot, 0, (1 << 64) - 1)
    a.lane_sent.clear()
    sent_at = {0: [], 1: []}
    for now in world.steps(60, a):
        for message, _, _ in a.lane_sent:
            sent_at[message[2]].append(now)
        a.lane_sent.clear()
        a.sent.clear()
    for times in sent_at.values():
        assert len(times) == 2
        assert all(abs(later - earlier - 25 * SECOND) <= SECOND // 10
                   for earlier, later in pairwise(times))
