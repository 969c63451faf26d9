"""What workers report to a device, and what a device tells whoever runs it."""

import errno
import os
import socket
from ipaddress import IPv4Address, IPv6Address

import pytest

from fastpump._core import EVENT_NAMES, NO_SLOT, OFFLOAD_BITS, Pump
from fastpump.conn.endpoint import NO_SOURCE_ADDRESS, Endpoint
from fastpump.constants import (
    KEEPALIVE_TIMEOUT,
    MAX_HANDSHAKE_ATTEMPTS,
    REKEY_AFTER_TIME,
    REKEY_TIMEOUT,
    SECOND,
    ZERO_KEYS_AFTER_TIME,
)
from fastpump.device.events import WorkerEvent
from fastpump.device.peer_change import PrefixChange
from support.devices import PLACE, TRANSPORT, Clock, Side, World
from support.packets import A4, B4, PLAIN, udp


def test_each_event_of_a_worker_is_handled():
    """Whatever its peer is doing; also of a peer that is gone, or while we are down."""
    world = World()
    for name in EVENT_NAMES.values():
        world.a.event(name, detail=3, error=errno.ENETUNREACH)
    gone = world.a.peer
    world.a.remove(gone.public_key)
    for name in EVENT_NAMES.values():
        world.a.event(name, peer=gone)
    world.b.device.stop()
    for name in EVENT_NAMES.values():
        world.b.event(name)
    assert world.b.sent == []


def test_what_a_worker_cannot_offload_is_logged(caplog):
    World().a.event("offload_off", OFFLOAD_BITS["tun-udp4"], error=errno.EINVAL)
    assert "tun-udp4 failed: Invalid argument (EINVAL)" in caplog.text


def test_a_way_without_udp_gso_is_said_once_for_each_place_of_the_peer(caplog):
    world = World()
    for port in (1, 2):
        world.a.configure(world.b.public_key, endpoint=Endpoint(IPv4Address("198.51.100.7"), port))
        for _ in range(3):
            world.a.event("gso_refused")
        said = [record.message for record in caplog.records if "no UDP GSO" in record.message]
        assert len(said) == port
        assert said[-1].startswith(f"the way to {world.a.peer} takes no UDP GSO (EIO)")


def test_a_rekey_that_lanes_ask_for_late_is_not_done_again():
    world = World()
    world.handshake(world.a, world.b)
    world.pass_time(REKEY_TIMEOUT)
    world.a.event("rekey", NO_SLOT)         # of a set of lanes from before
    assert world.a.sent == []
    world.a.event("rekey", world.a.peer.keypairs.current.slot)
    assert world.a.kinds == [1]


def test_a_peer_that_a_worker_hears_from_elsewhere_is_there():
    world = World()
    elsewhere = Endpoint(IPv4Address("198.51.100.7"), 7)
    world.a.tables.peers.set_endpoint(world.a.peer.slot, elsewhere.sockaddr(socket.AF_INET6))
    world.a.event("roam")
    assert world.a.peer.endpoint == elsewhere == world.a.known_endpoints[-1]


def test_a_place_that_no_socket_reaches_is_nowhere():
    """On a host without IPv6. No honest worker reports one; another is not believed."""
    side, key = Side(Clock(), family=socket.AF_INET), bytes(range(1, 33))
    elsewhere = Endpoint(IPv6Address("2001:db8::1"), 7)
    side.configure(key, endpoint=PLACE["b"])
    side.tables.peers.set_endpoint(side.peer.slot, elsewhere.sockaddr(socket.AF_INET6))
    side.event("roam")
    assert side.peer.endpoint == PLACE["b"]
    side.receive(bytes([2]) + bytes(91), elsewhere)
    assert side.device.verdicts == {"DROP_MALFORMED_HANDSHAKE": 1}


def test_a_peer_is_known_where_it_is_and_nowhere_else():
    """However often it moves; and when it is gone, nowhere."""
    world = World()
    for port in range(1, 100):
        where = Endpoint(IPv4Address("198.51.100.7") + port, port)
        world.a.tables.peers.set_endpoint(world.a.peer.slot, where.sockaddr(socket.AF_INET6))
        world.a.event("roam")
        assert world.a.known_endpoints == [where]
    world.a.remove(world.b.public_key)
    assert world.a.known_endpoints == []


def source_address_gone(world):
    world.a.event("source_address_gone")


def retry_of_a_handshake(world):
    world.a.want_session()
    world.advance(REKEY_TIMEOUT)


@pytest.mark.parametrize("what", [source_address_gone, retry_of_a_handshake])
def test_a_source_address_is_forgotten_and_not_where_the_peer_is(what):
    """A worker has just received it from elsewhere; its report is on the way."""
    world = World()
    elsewhere = Endpoint(IPv4Address("198.51.100.7"), 7)
    source = bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 77])
    world.a.tables.peers.set_endpoint(
        world.a.peer.slot, elsewhere.sockaddr(socket.AF_INET6), source)
    what(world)
    assert world.a.peer.endpoint == elsewhere
    assert world.a.tables.peers.endpoint(world.a.peer.slot) == (
        elsewhere.sockaddr(socket.AF_INET6), NO_SOURCE_ADDRESS)


def test_a_handshake_message_counts_also_if_a_worker_has_just_received_the_peer_elsewhere():
    world = World()
    elsewhere = Endpoint(IPv4Address("198.51.100.7"), 7)
    world.handshake(world.a, world.b)
    world.pass_time(REKEY_TIMEOUT)
    world.b.tables.peers.set_endpoint(world.b.peer.slot, elsewhere.sockaddr(socket.AF_INET6))
    world.a.want_session()
    world.deliver(world.a, world.b)
    assert world.b.sent[-1].where == PLACE["a"] == world.b.peer.endpoint
    assert world.b.tables.peers.endpoint(world.b.peer.slot)[0] == PLACE["a"].sockaddr(
        socket.AF_INET6)


# -- nobody has to remember to look after the device

def retired_by(action):
    """Whether the device said that something waits to be wiped, and whether it does."""
    world = World(allowed_ips=(PrefixChange((bytes(4), 0)),))
    world.handshake(world.a, world.b)
    while world.a.tables.retired.reclaim():
        pass
    world.a.must_reclaim = False
    action(world)
    return world.a.must_reclaim, bool(world.a.tables.retired)


def rekey_as_initiator(world):
    world.pass_time(REKEY_AFTER_TIME)
    world.handshake(world.a, world.b)
    world.pass_time(REKEY_AFTER_TIME)
    world.handshake(world.a, world.b)


def rekey_as_responder(world):
    world.pass_time(REKEY_AFTER_TIME)
    world.handshake(world.b, world.a)
    world.pass_time(REKEY_AFTER_TIME)
    world.handshake(world.b, world.a)


def give_up(world):
    world.advance(REKEY_TIMEOUT)
    world.a.want_session()
    for _ in range(MAX_HANDSHAKE_ATTEMPTS):
        world.advance(REKEY_TIMEOUT)


@pytest.mark.parametrize("action", [
    rekey_as_initiator, rekey_as_responder, give_up,
    lambda world: world.a.remove(world.b.public_key),
    lambda world: world.a.configure(world.b.public_key, replaces_allowed_ips=True),
    lambda world: world.a.configure(world.b.public_key, allowed_ips=(
        PrefixChange((bytes(4), 0), is_added=False),)),
    lambda world: world.a.device.set_private_key(bytes(32)),
    lambda world: world.a.device.stop(),
    lambda world: world.advance(ZERO_KEYS_AFTER_TIME),
], ids=["rekey as initiator", "rekey as responder", "given up", "removed",
        "no allowed IPs", "one allowed IP less", "no key", "down", "old keys"])
def test_what_is_retired_is_told(action):
    assert retired_by(action) == (True, True)


def test_an_earlier_deadline_is_told():
    world = World()
    world.a.event("unanswered_rx")
    assert world.a.alarm == world.now + KEEPALIVE_TIMEOUT
    world.a.want_session()
    assert world.a.alarm == world.now + REKEY_TIMEOUT
    world.a.configure(world.b.public_key, keepalive_s=25)
    assert world.a.alarm == world.now       # the first at once
    world.a.alarm = None
    world.a.event("unanswered_tx")          # later than that
    assert world.a.alarm is None


# -- times that no honest worker writes

NEVER = (1 << 64) - 1


@pytest.mark.parametrize(("name", "delay"), [
    ("unanswered_tx", KEEPALIVE_TIMEOUT + REKEY_TIMEOUT), ("unanswered_rx", KEEPALIVE_TIMEOUT)])
def test_an_event_that_is_yet_to_happen_has_happened_now(name, delay):
    world = World()
    world.a.device.on_event(WorkerEvent(name, world.a.peer.slot, at_ns=NEVER), world.now)
    assert world.a.alarm == world.now + delay


def test_traffic_that_is_yet_to_come_keeps_no_keepalive_away():
    world = World(keepalive_s=25)
    world.handshake(world.a, world.b)
    world.advance(0)
    world.drop(world.a)
    world.a.tables.peers.record_sent(world.a.peer.slot, NEVER, 0)
    world.a.tables.peers.record_received(world.a.peer.slot, NEVER, 0)
    for _ in range(50):
        world.advance(SECOND)
    assert world.a.kinds == [TRANSPORT] * 2


def test_data_that_is_yet_to_leave_hides_none_that_is_not_answered():
    """A worker forges when it sent, and is gone; the next one is honest."""
    world = World(allowed_ips=(PrefixChange((bytes([10, 9, 0, 2]), 32)),))
    world.handshake(world.a, world.b)
    side, worker, ahead = world.a, world.a.peer.worker, 100 * SECOND
    interface, queue = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    bells = [os.fdopen(os.eventfd(0, os.EFD_NONBLOCK), "rb", buffering=0) for _ in range(2)]
    with interface, queue, bells[0], bells[1], \
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp_socket:
        queue.setblocking(False)
        pump = Pump(side.tables, worker, [queue.fileno()] * 4, udp_socket.fileno(),
                    *(bell.fileno() for bell in bells))
        for second in range(40):
            interface.send(PLAIN + udp(A4, B4, b"x"))
            pump.poll(world.now + (ahead if second == 0 else 0))
            side.hand_over_events(worker)
            world.advance(SECOND)
    assert 1 in side.kinds
