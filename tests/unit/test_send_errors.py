"""Peers to which nothing can be sent: once in the log, by whomever it is noticed."""

import errno
import logging

import pytest

from fastpump.constants import SECOND
from fastpump.device.send_errors import LOGGED
from support.devices import PLACE, World

UNREACHABLE = "Network is unreachable (ENETUNREACH)"
HOLD = 2 * SECOND       # SEND_ERROR_HOLD_NS of hot/send_errors.pxd


@pytest.fixture
def world(caplog):
    caplog.set_level(logging.INFO, "fastpump.device")
    return World()


def outcome(side, error):
    """A worker's send to the peer ends so; it reports what is to be reported."""
    tables, peer = side.tables, side.peer
    before = tables.peers.send_error(peer.slot)
    tables.peers.record_send_outcome(peer.slot, error, side.clock.now)
    after = tables.peers.send_error(peer.slot)
    if after != before:
        side.event("send_error", error=after)


def said(caplog):
    return [record.getMessage().partition(") ")[2] for record in caplog.records
            if "sending to" in record.getMessage()]


# The errors of sends a tenth of a second apart, and what is said of them.
NET, HOST = errno.ENETUNREACH, errno.EHOSTUNREACH
HOST_TEXT = "No route to host (EHOSTUNREACH)"
LIVES = {
    "down for good": ([NET] * 600, [f"fails: {UNREACHABLE}"]),
    "down and up": ([0] * 5 + [NET] * 100 + [0] * 100,
                    [f"fails: {UNREACHABLE}", "works again"]),
    "another error": ([NET] * 100 + [HOST] * 100,
                      [f"fails: {UNREACHABLE}", f"fails: {HOST_TEXT}"]),
    "by turns": ([NET, 0] * 300, [f"fails: {UNREACHABLE}"]),
    "twice": (([NET] * 30 + [0] * 30) * 2, [f"fails: {UNREACHABLE}", "works again"] * 2),
}


@pytest.mark.parametrize("life", LIVES)
def test_it_is_said_once_and_when_it_changes_or_ends(world, caplog, life):
    errors, lines = LIVES[life]
    for error in errors:
        world.pass_time(SECOND // 10)
        outcome(world.a, error)
    assert said(caplog) == lines


def test_errors_that_take_turns_are_said_now_and_then(world, caplog):
    for _ in range(100):
        world.pass_time(SECOND // 10)
        outcome(world.a, NET)
        outcome(world.a, HOST)
    assert 2 <= len(said(caplog)) <= 1 + 100 * SECOND // 10 // HOLD


def test_workers_look_for_the_end_only_while_something_fails(world):
    a = world.a
    assert not a.tables.has_send_errors
    outcome(a, NET)
    assert a.tables.has_send_errors and a.device.send_errors.of(a.peer) == UNREACHABLE
    world.pass_time(HOLD)
    outcome(a, 0)
    assert not a.tables.has_send_errors and a.device.send_errors.of(a.peer) is None
    outcome(a, NET)
    a.remove(world.b.public_key)
    assert not a.tables.has_send_errors


def test_events_in_the_wrong_order_and_lost_ones_do_no_harm(world, caplog):
    """The tables are right."""
    a = world.a
    outcome(a, NET)
    a.event("send_error", error=0)
    assert a.device.send_errors.of(a.peer) == UNREACHABLE
    world.pass_time(HOLD)
    a.tables.peers.record_send_outcome(a.peer.slot, 0, world.now)
    a.device.on_workers_exit([0], world.now)       # it died before it told
    assert a.device.send_errors.of(a.peer) is None
    a.event("send_error", error=NET)
    assert a.device.send_errors.of(a.peer) is None and len(said(caplog)) == 2


def test_what_the_device_cannot_send_itself_is_said_too(world, caplog):
    """A handshake, when there is no session yet that workers could use."""
    a = world.a
    a.refusal = NET
    a.want_session()
    for _ in range(60):
        world.advance(SECOND)
    assert said(caplog) == [f"fails: {UNREACHABLE}"]
    assert a.device.handshake_problems.of(a.peer) == f"sending fails: {UNREACHABLE}"
    a.refusal = errno.EAGAIN        # no room in the socket's buffer: no error of the way
    world.advance(6 * SECOND)
    assert a.device.send_errors.of(a.peer) == UNREACHABLE
    a.refusal = 0
    world.advance(6 * SECOND)
    assert a.kinds == [1] and said(caplog)[1:] == ["works again"]


def test_many_peers_that_cannot_be_reached_are_not_all_named(world, caplog):
    a = world.a
    peers = [a.configure(bytes([number]) * 32, endpoint=PLACE["b"]) for number in range(1, 33)]
    for error in (NET, 0):
        for peer in peers:
            a.tables.peers.record_send_outcome(peer.slot, error, world.now)
            a.event("send_error", peer=peer)
        world.pass_time(HOLD)
    assert said(caplog) == [f"fails: {UNREACHABLE}"] * LOGGED + ["works again"] * LOGGED
    assert not a.tables.has_send_errors
