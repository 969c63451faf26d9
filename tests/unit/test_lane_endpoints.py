"""Where lanes and their session are sent to: what the operator sets, and what the peer shows."""

import socket
from ipaddress import IPv4Address

import pytest

from fastpump.conn.endpoint import NO_SOURCE_ADDRESS, Endpoint
from support.lanedevices import received
from support.plainlanes import ASK

ELSEWHERE = Endpoint(IPv4Address("198.51.100.7"), 4711)
OTHER_PORT = Endpoint(IPv4Address("198.51.100.7"), 4712)
SAME_HOST = Endpoint(IPv4Address("127.0.0.1"), 4712)
OUR_ADDRESS = bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 77])


@pytest.fixture
def world(worlds):
    """Two sides with two lanes; a opened them."""
    world = worlds()
    world.connect()
    return world


def sides(world, name):
    """A side, and its peer."""
    return (world.a, world.b) if name == "a" else (world.b, world.a)


def endpoints(side):
    """Where all lanes of all sets are."""
    return {Endpoint.from_sockaddr(side.tables.lanes.endpoint(slot)[0])
            for each in side.sets for slot in each.slots}


def move_lane(side, number, where, source=NO_SOURCE_ADDRESS):
    """What a worker does that receives the peer from elsewhere."""
    side.tables.lanes.set_endpoint(side.newest.first + number, where.sockaddr(socket.AF_INET6),
                                   source)


def data_goes_to(side, place):
    """Whether packets of all workers go to a place, on lanes."""
    received(place.socket)
    for worker in range(2):
        side.send_packet(worker)
    return [message[0] for message in received(place.socket)] == [5, 5]


# -- what the operator sets

@pytest.mark.parametrize("name", ["a", "b"])
def test_data_on_all_lanes_goes_at_once_where_the_peer_is_said_to_be(world, name):
    """Lanes of the older set, too, whose lanes carry data until the newest are heard."""
    side, other = sides(world, name)
    world.rekey(world.a, world.b)
    elsewhere = world.new_place()
    side.configure(other, endpoint=elsewhere.endpoint)
    assert data_goes_to(side, elsewhere)
    assert len(side.sets) == 2 and endpoints(side) == {elsewhere.endpoint}


@pytest.mark.parametrize("name", ["a", "b"])
def test_the_peer_learns_at_once_where_we_are(world, name):
    """First by the session, to which its answers to probes go."""
    side, other = sides(world, name)
    side.configure(other, endpoint=ELSEWHERE)
    assert [message[0] for message in side.sent] == [4]
    assert [(message[2], message[1], where) for message, where, _ in side.lane_sent] == [
        (0, ASK, ELSEWHERE), (1, ASK, ELSEWHERE)]

    assert world.deliver(side, other)[0] == "keepalive"
    world.settle()
    assert side.usable == other.usable == [0, 1]


@pytest.mark.parametrize("name", ["a", "b"])
def test_what_is_set_counts_also_if_the_peer_was_just_received_elsewhere(world, name):
    """A worker wrote where, and its report is on the way."""
    side, other = sides(world, name)
    here, elsewhere = other.place, world.new_place()
    elsewhere.socket.sendto(other.keepalive(), side._sockets[side.peer.worker].getsockname())
    side._pumps[side.peer.worker].poll(world.now)
    assert side.tables.peers.endpoint(side.peer.slot)[0] == elsewhere.endpoint.sockaddr(
        socket.AF_INET6)

    side.configure(other, endpoint=here.endpoint)
    side.run()
    assert side.peer.endpoint == here.endpoint
    assert data_goes_to(side, here)


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_lane_that_is_elsewhere_comes_back(world, name):
    side, other = sides(world, name)
    move_lane(side, 1, ELSEWHERE)
    side.configure(other, endpoint=other.place.endpoint)
    assert data_goes_to(side, other.place)
    assert len(side.lane_sent) == 2


@pytest.mark.parametrize("name", ["a", "b"])
def test_nothing_is_sent_for_an_endpoint_that_is_no_news(world, name):
    """Lanes that the peer opened stay at their ports."""
    side, other = sides(world, name)
    if name == "b":
        move_lane(side, 1, SAME_HOST)
    before = endpoints(side)
    side.configure(other, endpoint=other.place.endpoint)
    assert side.sent == side.lane_sent == []
    assert endpoints(side) == before


def test_the_peer_s_lanes_are_not_guessed_before_they_were_heard(worlds):
    world = worlds()
    world.handshake(world.a, world.b)
    for source, sink in ((world.a, world.b), (world.b, world.a)) * 2:
        source.lane_sent.clear()
        world.deliver(source, sink)
    assert world.b.usable == []
    world.b.configure(world.a, endpoint=ELSEWHERE)
    assert [world.b.tables.lanes.endpoint(slot)[0] for slot in world.b.newest.slots] == [b""] * 2


# -- where data goes, as it is shown

def test_where_data_goes_is_what_is_shown(world):
    a, b = world.a, world.b
    shown = b.device.endpoints.of_data
    assert shown(b.peer) == a.place.endpoint
    move_lane(b, 0, ELSEWHERE)
    assert shown(b.peer) == a.place.endpoint        # the other lane is with the session
    move_lane(b, 1, OTHER_PORT)
    assert shown(b.peer) in (ELSEWHERE, OTHER_PORT)
    b.tables.peers.set_endpoint(b.peer.slot, OTHER_PORT.sockaddr(socket.AF_INET6))
    b.device.endpoints.follow(b.peer)
    assert shown(b.peer) == OTHER_PORT              # ports of lanes are their own

    b.device.stop()
    assert shown(b.peer) == OTHER_PORT


def test_dead_lanes_are_not_shown(world):
    a = world.a
    for number in range(2):
        move_lane(a, number, ELSEWHERE)
        a.tables.lanes.set_dead(a.newest.first + number)
    assert a.device.endpoints.of_data(a.peer) == world.b.place.endpoint


# -- the address of ours

def test_dead_lanes_are_probed_from_an_address_that_the_kernel_chooses(world):
    """Their own may be why there is no answer."""
    a = world.a
    for number in range(2):
        move_lane(a, number, world.b.place.endpoint, OUR_ADDRESS)
    a.send_packet(worker=1)
    for _ in world.steps(5, a):
        a.take_probes()
    assert a.usable == []
    assert [a.tables.lanes.endpoint(slot)[1] for slot in a.newest.slots] == [NO_SOURCE_ADDRESS] * 2
