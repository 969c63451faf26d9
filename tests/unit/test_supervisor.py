"""The supervisor does what the device asks for, and nobody has to remind it. Without workers: the
interface is down."""

import asyncio
from ipaddress import ip_address
from types import SimpleNamespace

import pytest

from fastpump._core import SharedTables
from fastpump.clock import now_ns
from fastpump.conn.endpoint import Endpoint
from fastpump.constants import SECOND
from fastpump.device.peer_change import PeerChange, PrefixChange, Presence
from fastpump.protocol import keys
from fastpump.tunnel import alarms
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
