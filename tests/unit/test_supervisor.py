"""The supervisor does what the device asks for, and nobody has to remind it. Without workers: the
interface is down."""

import asyncio
from ipaddress import ip_address
from types import SimpleNamespace

import pytest

from fastpump._core import SharedTables
from fastpump.clock import now_ns
from fastpump.conn.endpoint import Endpoint
from fastpump.constants import SECOND, ZERO_KEYS_AFTER_TIME
from fastpump.device.peer_change import PeerChange, PrefixChange, Presence
from fastpump.protocol import keys
from fastpump.tunnel import alarms, workers
from fastpump.tunnel.supervisor import Supervisor, SupervisorOptions

PEER = keys.public_of(bytes([64]) * 32)
MAKE = PeerChange(PEER, endpoint=Endpoint(ip_address("192.0.2.1"), 9),
                  allowed_ips=(PrefixChange((bytes(4), 0)),))
REMOVE = PeerChange(PEER, Presence.REMOVE)


@pytest.fixture
def tables():
    made = SharedTables.create(2, 4, 16)
    yield made
    made.close()


@pytest.fixture
def supervisor(monkeypatch, tables):
    monkeypatch.setattr(alarms, "RECLAIM_INTERVAL_S", 0.001)
    return Supervisor(tables, SimpleNamespace(fds=[]), SupervisorOptions())


def run(supervisor, scenario):
    """Run it for as long as the scenario takes."""
    async def all_of_it():
        ready = asyncio.Event()
        running = asyncio.create_task(supervisor.run(ready.set, is_up=False))
        await ready.wait()
        await asyncio.wait_for(scenario(), 20)
        supervisor.stop("because the test is over")
        await running

    asyncio.run(all_of_it())


async def until(is_true):
    while not is_true():
        await asyncio.sleep(0.001)


def change(supervisor, change):
    return supervisor.device.configure_peer(change, now_ns())


@pytest.mark.parametrize("is_before", [True, False], ids=["before it runs", "while it runs"])
def test_what_a_change_retires_is_wiped(supervisor, tables, is_before):
    def make_and_remove():
        change(supervisor, MAKE)
        change(supervisor, REMOVE)
        assert tables.retired

    async def scenario():
        if not is_before:
            make_and_remove()
        await until(lambda: not tables.retired)

    if is_before:
        make_and_remove()
    run(supervisor, scenario)


@pytest.mark.parametrize("is_before", [True, False], ids=["before it runs", "while it runs"])
def test_what_a_change_makes_due_is_done(supervisor, is_before):
    """A persistent keepalive is due at once: a handshake begins."""
    supervisor.set_private_key(bytes([72]) * 32)

    def make():
        supervisor.device.start(now_ns())
        change(supervisor, MAKE)
        change(supervisor, PeerChange(PEER, keepalive_s=25))

    async def scenario():
        if not is_before:
            make()
        (peer,) = supervisor.device.peers.values()
        await until(lambda: peer.last_initiation_sent_at is not None)
        # And so is what follows from it: the next try is in five seconds.
        assert 0 < supervisor.device.next_deadline() - now_ns() <= 6 * SECOND

    if is_before:
        make()
    run(supervisor, scenario)


def test_what_became_due_while_the_machine_slept_is_done_soon_after(supervisor, monkeypatch):
    """The clock of deadlines went on meanwhile, that of the event loop did not."""
    slept = 0
    monkeypatch.setattr(alarms, "now_ns", lambda: now_ns() + slept)
    monkeypatch.setattr(workers, "TURN_S", 0.001)

    async def scenario():
        nonlocal slept
        supervisor.device.start(now_ns())
        peer = change(supervisor, MAKE)
        peer.timers.session_derived(now_ns())
        change(supervisor, MAKE)        # looks at the timers
        ticks = []
        monkeypatch.setattr(supervisor.device, "tick", lambda now, tick=supervisor.device.tick: (
            ticks.append(now), tick(now)))
        turns = workers_turns(supervisor, monkeypatch)
        await until(lambda: len(turns) > 3)
        assert not ticks and peer.timers.zero_keys_at is not None       # it is early yet
        slept = ZERO_KEYS_AFTER_TIME
        await until(lambda: peer.timers.zero_keys_at is None)
        assert len(ticks) == 1 and supervisor.device.next_deadline() is None

    run(supervisor, scenario)


def workers_turns(supervisor, monkeypatch):
    """The turns that follow, one by one."""
    turns, ring = [], supervisor._workers.ring
    monkeypatch.setattr(supervisor._workers, "ring", lambda *numbers: (
        turns.append(True), ring(*numbers)))
    return turns
