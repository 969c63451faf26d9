"""The path MTU of a peer: two devices find it, tell their workers, and say so."""

import logging

import pytest

from fastpump._core import FEATURE_BUNDLE, FEATURE_PARTIAL
from fastpump.constants import SECOND
from fastpump.protocol import lane_messages
from fastpump.protocol.lane_messages import Kind, Parts

HEADERS = 28 + 32


def payload_mtu(side):
    return side.tables.peers.payload_mtu(side.peer.slot)


def flow(world, seconds):
    """Data both ways, on all lanes."""
    for _ in range(round(10 * seconds)):
        for side in (world.a, world.b):
            for worker in range(2):
                side.send_packet(worker)
        world.advance(SECOND // 10)


@pytest.mark.parametrize("options", [{}, {"transport": "wireguard"}], ids=["lanes", "session"])
@pytest.mark.parametrize("mtu, found, fits", [
    (9000, 1500, None), (1500, 1500, None), (1480, 1480, None), (1400, 1400, 1400 - HEADERS),
    (1280, 1280, 1280 - HEADERS)])
def test_both_sides_find_it(worlds, options, mtu, found, fits):
    world = worlds(path_mtu=mtu, a=options, b=options)
    world.connect()
    world.advance(5 * SECOND)
    for side in (world.a, world.b):
        assert side.lanes.paths.mtu == found and payload_mtu(side) == fits
        assert side.lanes.paths.loses_large == (fits is not None)
        assert bool(side.sets) == (options == {})


def test_the_smallest_of_the_lanes_counts(worlds):
    world = worlds(path_mtu=1500)
    world.connect()
    world.advance(SECOND)
    world.path_mtu = 1400
    world.a.lanes.paths.clear()
    world.a.lanes.paths.on_lane_usable(world.a.newest.first, world.now)
    world.a.tick()
    world.advance(5 * SECOND)
    assert world.a.lanes.paths.mtu == 1400
    world.path_mtu = 1500
    world.a.lanes.paths.on_lane_usable(world.a.newest.first + 1, world.now)
    world.a.tick()
    world.advance(5 * SECOND)
    assert world.a.lanes.paths.mtu == 1400


def test_a_black_hole_is_told_once(worlds, caplog):
    world = worlds(path_mtu=1500)
    world.connect()
    flow(world, 2)
    world.path_mtu = 1300
    with caplog.at_level(logging.WARNING):
        flow(world, 5)
    assert world.a.lanes.paths.mtu == world.b.lanes.paths.mtu == 1300
    assert payload_mtu(world.a) == 1300 - HEADERS
    assert caplog.text.count("got lost: its path takes 1300 bytes now") == 2       # by each side


def test_a_new_set_of_lanes_goes_on_where_the_old_one_was(worlds):
    world = worlds(path_mtu=1400)
    world.connect()
    world.advance(5 * SECOND)
    before = world.a.probes
    world.rekey(world.a, world.b)
    assert world.a.lanes.paths.mtu == 1400
    world.advance(2 * SECOND)
    assert world.a.lanes.paths.mtu == 1400 and world.a.probes == before


def test_nothing_is_probed_where_the_peer_does_not_answer(worlds):
    """A version before this one; and a WireGuard peer, which is asked in three sessions."""
    world = worlds(path_mtu=1400, b={"features": FEATURE_PARTIAL | FEATURE_BUNDLE})
    world.connect()
    flow(world, 3)
    assert world.a.probes == 0 and world.a.lanes.paths.mtu is None
    assert payload_mtu(world.a) is None

    world = worlds(path_mtu=1400, a={"transport": "wireguard"}, b={"transport": "wireguard"})
    sent = []
    for _ in range(5):
        world.advance(6 * SECOND)
        world.handshake(world.a, world.b)
        world.a.sent.clear()
        for _ in world.steps(4, world.a):
            sent += world.a.sent
            world.a.sent.clear()
        sent.append(b"")
    asks = [len(each) for each in sent if each == b"" or len(each) == 40]
    assert asks == [40, 40, 0] * 3 + [0, 0] and world.a.probes == 0


def test_a_session_without_data_is_left_alone(worlds):
    """An ack is no data: the two would probe each other for ever."""
    world = worlds(path_mtu=1500, a={"transport": "wireguard"}, b={"transport": "wireguard"})
    world.connect()
    world.advance(30 * SECOND)
    before = world.a.probes, world.b.probes
    world.advance(30 * SECOND)
    assert (world.a.probes, world.b.probes) == before


def test_it_is_found_again_after_the_keys_were_dropped(worlds):
    """Nine minutes without a word, by plain sessions."""
    world = worlds(path_mtu=1400, a={"transport": "wireguard"}, b={"transport": "wireguard"})
    world.connect()
    world.advance(5 * SECOND)
    assert world.a.lanes.paths.mtu == 1400
    for side in (world.a, world.b):
        side.lanes.paths.clear()
        assert side.lanes.paths.mtu is None and payload_mtu(side) is None
    world.handshake(world.a, world.b)
    world.advance(5 * SECOND)
    for side in (world.a, world.b):
        assert side.lanes.paths.mtu == 1400 and payload_mtu(side) == 1400 - HEADERS


def test_a_lane_without_data_does_not_keep_the_others_small(worlds):
    """The path was narrow while all had data; then one has, and it is wide again."""
    world = worlds(path_mtu=1500)
    world.connect()
    flow(world, 2)
    world.path_mtu = 1300
    flow(world, 5)
    assert world.a.lanes.paths.mtu == 1300
    world.advance(40 * SECOND)      # all are idle
    world.path_mtu = 1500
    for _ in range(1200):
        world.a.send_packet(0)
        world.advance(SECOND // 10)
    assert world.a.lanes.paths.mtu == 1500 and payload_mtu(world.a) is None


def test_an_outage_says_nothing_of_sizes(worlds, caplog):
    """What was known of the path stays, until more is."""
    world = worlds(path_mtu=1400)
    world.connect()
    flow(world, 3)
    paths = world.a.lanes.paths
    with caplog.at_level(logging.INFO):
        paths._paths.clear()            # all lanes are dead
        paths.tick(world.now)
    assert payload_mtu(world.a) == 1400 - HEADERS
    assert "takes all datagrams again" not in caplog.text


# -- a peer that cannot be probed

def send_unanswered(world, seconds, place=None):
    """Data from a, to a peer that receives handshakes only."""
    for _ in world.steps(seconds, world.a):
        world.a.send_packet(0)
        sent, world.a.sent = world.a.sent, []
        for message in sent:
            if message[0] == 1:
                world.b.receive_handshake(message, world.a)
                world.a.receive_handshake(world.b.sent.pop(), place or world.b)
                world.a.sent.clear()


def test_a_black_hole_before_a_wireguard_peer_is_inferred(worlds, caplog):
    world = worlds(a={"transport": "wireguard"}, b={"transport": "wireguard"})
    world.handshake(world.a, world.b)
    send_unanswered(world, 20)
    assert world.a.lanes.paths.mtu is None and payload_mtu(world.a) is None
    send_unanswered(world, 20)
    assert world.a.lanes.paths.mtu == 1280 and payload_mtu(world.a) == 1280 - HEADERS
    send_unanswered(world, 60)
    assert caplog.text.count("seem to get lost on the way") == 1

    world.b.place = world.new_place()
    world.a.configure(world.b, endpoint=world.b.place.endpoint)
    send_unanswered(world, 6)
    assert world.a.lanes.paths.mtu is None and payload_mtu(world.a) is None


def test_a_peer_that_answers_or_is_dead_is_no_black_hole(worlds):
    world = worlds(a={"transport": "wireguard"}, b={"transport": "wireguard"})
    world.connect()
    for number, _ in enumerate(world.steps(60, world.a)):
        world.a.send_packet(0)
        if number % 50 == 0:
            world.a.receive_session(world.b.keepalive(1000 + number), world.b)
    for _ in world.steps(100, world.a):     # nothing is answered any more
        world.a.send_packet(0)
    assert world.a.lanes.paths.mtu is None and payload_mtu(world.a) is None


# -- parts

def test_a_large_message_that_is_lost_comes_in_parts(worlds):
    world = worlds(path_mtu=1280)
    world.handshake(world.a, world.b)
    world.deliver(world.a, world.b)
    world.b.sent.clear()                        # the OFFER, which did not fit
    for _ in world.steps(1.1, world.b):
        pass
    assert all(len(each) + 48 <= 1280 for each in world.b.sent)
    assert world.deliver(world.b, world.a) == [Kind.PART, Kind.PART]
    world.settle()
    assert world.a.usable == world.b.usable == [0, 1]


WHOLE = bytes(range(256)) * 9


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (0, 0, 2, 1)])
def test_parts_come_in_any_order(order):
    parts = lane_messages.parts_of(WHOLE)
    collected = Parts()
    results = [collected.add(parts[each] + bytes(7)) for each in order]     # padded
    assert results == [None] * (len(order) - 1) + [WHOLE]
    assert all(map(lane_messages.is_part, parts)) and not lane_messages.is_part(WHOLE)


@pytest.mark.parametrize("data", [
    b"\xf0\x08\4\0\0\0\1\0", b"\xf0\x08\5\0\1\0\1\0x", b"\xf0\x08\6\0\0\0\1\0xx",
    b"\xf0\x08\5\0\0\0\xff\xffx", b"\xf0\x08\x09\0\0\0\4\0x", b"\xf0\x08"])
def test_malformed_parts(data):
    assert Parts().add(data) == b""
