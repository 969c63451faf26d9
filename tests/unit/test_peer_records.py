"""On which lanes records are used: two devices probe, use and end them."""

import socket

import pytest

from fastpump._core import FEATURE_BUNDLE, FEATURE_PARTIAL, FEATURE_PATH_MTU
from fastpump.constants import SECOND
from fastpump.device.events import WorkerEvent

SOON = SECOND // 10


@pytest.fixture
def world(worlds):
    """Two devices whose path is known."""
    world = worlds(path_mtu=1500)
    world.connect()
    world.advance(SECOND)
    return world


def tell(side, name, lane=0):
    """What a worker says of a lane of the newest set."""
    side.device.on_event(WorkerEvent(name, side.peer.slot, side.newest.first + lane, 0,
                                     side.world.now), side.world.now)


def bulk(world, lane=0):
    """Much leaves from a, and a moment passes; whether records may."""
    tell(world.a, "lane_bulk", lane)
    world.advance(SOON)
    return has_records(world.a, lane)


def has_records(side, lane=0):
    return side.tables.lanes.status(side.newest.first + lane)["has_records"]


def test_where_a_probe_comes_whole(world):
    assert not has_records(world.a)
    assert bulk(world)
    assert not has_records(world.a, 1) and not has_records(world.b)
    assert world.a.trains == [(60_000, 1452)] and world.b.trains == []
    assert bulk(world) and len(world.a.trains) == 1
    tell(world.b, "lane_bulk", 1)
    world.advance(SOON)
    assert has_records(world.b, 1) and not has_records(world.a, 1)


@pytest.mark.parametrize("mtu, payload_len, length", [(1400, 1340, 60_000), (600, 540, 34_320)])
def test_the_datagrams_of_a_probe_fit_the_path(worlds, mtu, payload_len, length):
    world = worlds(path_mtu=mtu)
    world.connect()
    world.advance(20 * SECOND)
    assert bulk(world)
    ((sent, datagram_len),) = world.a.trains
    assert datagram_len <= payload_len + 32 and sent % datagram_len
    assert sent in (length, length - 1) and sent <= 60 * datagram_len


def test_where_it_does_not(world):
    """It is tried again later, and later."""
    world.brings_trains = False
    assert not bulk(world)
    begun = world.now
    tried = []
    while world.now < begun + 45 * SECOND:
        before = len(world.a.trains)
        assert not bulk(world)
        if len(world.a.trains) > before:
            tried.append((world.now - begun) // SECOND)
    assert tried == [11, 32]
    world.brings_trains = True
    world.advance(30 * SECOND)
    assert bulk(world)


def test_one_that_came_in_part_ends_them(world):
    assert bulk(world)
    tell(world.b, "record_cut")
    world.advance(SOON)
    assert not has_records(world.a) and not bulk(world)
    world.advance(10 * SECOND)
    assert bulk(world) and len(world.a.trains) == 2
    tell(world.b, "record_cut")
    world.advance(10 * SECOND)
    assert not bulk(world)
    world.advance(10 * SECOND)
    assert bulk(world)
    world.advance(61 * SECOND)          # of calm
    tell(world.b, "record_cut")
    world.advance(11 * SECOND)
    assert bulk(world)


def test_a_peer_that_says_so_for_nothing(world):
    tell(world.b, "record_cut")
    world.advance(SOON)
    assert bulk(world)
    assert not world.a.lanes.paths.records.on_ack(world.a.newest.first, 1, 59_996, world.now)


def test_a_new_set_goes_on_where_the_old_one_was(world):
    assert bulk(world)
    world.rekey(world.a, world.b)
    assert not has_records(world.a)
    assert bulk(world) and len(world.a.trains) == 1
    tell(world.b, "record_cut")
    world.advance(SOON)
    slots = [each.first for each in world.a.sets]
    assert len(slots) == 2
    assert not any(world.a.tables.lanes.status(slot)["has_records"] for slot in slots)


def test_another_place_is_another_path(world):
    assert bulk(world)
    place = world.new_place()
    world.a.tables.lanes.set_endpoint(world.a.newest.first,
                                      place.endpoint.sockaddr(socket.AF_INET6))
    assert bulk(world) and len(world.a.trains) == 2


@pytest.mark.parametrize("options", [
    {"b": {"features": FEATURE_PARTIAL | FEATURE_BUNDLE | FEATURE_PATH_MTU}}, {"path_mtu": None}],
    ids=["a version before", "nothing is probed"])
def test_where_they_are_not_known(worlds, options):
    world = worlds(**{"path_mtu": 1500, **options})
    world.connect()
    world.advance(SECOND)
    assert not bulk(world) and world.a.trains == []
    tell(world.a, "record_cut")
    world.advance(SOON)


def test_packets_that_are_as_large_need_none(worlds):
    world = worlds(path_mtu=65_535)
    world.a.tables.mtu = 40_000
    world.connect()
    world.advance(5 * SECOND)
    assert not bulk(world) and world.a.trains == []
