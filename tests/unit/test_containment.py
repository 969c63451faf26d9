"""An error of one message costs that message: the others are handled, nothing leaks, and the tunnel
goes on."""

import asyncio
import os
import socket
import time
from types import SimpleNamespace

import pytest

from fastpump._core import SharedTables
from fastpump.clock import now_ns
from fastpump.conn.endpoint import Endpoint
from fastpump.constants import SECOND
from fastpump.device.peer_change import PeerChange, PrefixChange
from fastpump.protocol import cookie, keys, lane_messages, noise, tai64n
from fastpump.protocol.timers import Timers
from fastpump.tunnel import supervisor as supervisor_module
from fastpump.tunnel.supervisor import Supervisor, SupervisorOptions
from support.devices import PLACE, World
from support.lanedevices import PACKET
from support.pumps import WorkerOf

HERE = bytes([72]) * 32
THERE = bytes([73]) * 32, bytes([74]) * 32


class Tunnel:
    """A supervisor, without processes: its worker is a pump in this one."""

    def __init__(self, scenario, *, family=socket.AF_INET6):
        """Runs an async scenario, which takes this object."""
        self.tables = SharedTables.create(1, 8, 64)
        self.supervisor = Supervisor(self.tables, SimpleNamespace(fds=[]), SupervisorOptions())
        self.device = self.supervisor.device
        self.supervisor.set_private_key(HERE)
        self.worker = WorkerOf(self.tables, *(
            getattr(self.supervisor.workers[0], name) for name in ("doorbell_fd", "event_fd")))
        asyncio.run(self._run(scenario))
        self.worker.close()
        self.tables.close()

    async def _run(self, scenario):
        ready = asyncio.Event()
        running = asyncio.create_task(self.supervisor.run(ready.set, is_up=False))
        await ready.wait()
        self.device.start(now_ns())
        await asyncio.wait_for(scenario(self), 20)
        assert not running.done()
        self.supervisor.stop("because the test is over")
        await running

    def add_peer(self, number, **fields):
        """The one who has the private key THERE[number]."""
        return self.device.configure_peer(PeerChange(
            keys.public_of(THERE[number]), endpoint=PLACE["b"], allowed_ips=(
                PrefixChange((bytes([10, 9, 0, 2 + number]), 32)),), **fields), now_ns())

    def tell(self):
        """Let the worker look at what has come, and wake the supervisor."""
        self.worker.poll(now_ns())
        os.eventfd_write(self.supervisor.workers[0].event_fd, 1)

    @property
    def errors(self):
        return self.supervisor.verdicts["FAILED_INTERNALLY"]


async def until(is_true):
    while not is_true():
        await asyncio.sleep(0.001)


def initiation(number):
    """From the holder of THERE[number]."""
    static, public = noise.DhKeyPair.from_private(THERE[number]), keys.public_of(HERE)
    message, _ = noise.create_initiation(static, public, 7, tai64n.emit(time.time_ns()),
                                         static.exchange(public))
    return cookie.add_macs(message.emit(), cookie.mac1_key(public))


def failing(function, *, when):
    """A function that has a bug, for some arguments."""
    def call(*arguments):
        if when(*arguments):
            raise RuntimeError("a bug")
        return function(*arguments)
    return call


# -- the supervisor goes on

def test_an_event_that_fails_costs_itself(monkeypatch, caplog):
    async def scenario(tunnel):
        bad, good = tunnel.add_peer(0), tunnel.add_peer(1)
        monkeypatch.setattr(tunnel.device, "on_event", failing(
            tunnel.device.on_event, when=lambda event, _: event.peer_slot == bad.slot))
        for last in (2, 3):
            tunnel.worker.give(PACKET[:-1] + bytes([last]))
        tunnel.tell()
        await until(lambda: good.last_initiation_sent_at is not None)
        assert bad.last_initiation_sent_at is None and tunnel.errors == 1

    Tunnel(scenario)
    assert "internal error: RuntimeError('a bug')" in caplog.text


def test_a_handshake_message_that_fails_costs_itself(monkeypatch):
    async def scenario(tunnel):
        peers = [tunnel.add_peer(number) for number in (0, 1)]
        receive, calls = tunnel.device.receive, []
        monkeypatch.setattr(tunnel.device, "receive", failing(
            receive, when=lambda *arguments: calls.append(1) or len(calls) == 1))
        for number in (0, 1):
            tunnel.worker.receive(initiation(number))
        tunnel.tell()
        await until(lambda: peers[1].last_initiation_seen_at is not None)
        assert peers[0].last_initiation_seen_at is None and tunnel.errors == 1

    Tunnel(scenario)


def test_a_timer_that_fails_costs_itself(monkeypatch):
    async def scenario(tunnel):
        peers = [tunnel.add_peer(number) for number in (0, 1)]
        bad = tunnel.device.lanes.of(peers[0])
        monkeypatch.setattr(type(bad), "tick", failing(
            type(bad).tick, when=lambda lanes, _: lanes is bad))
        for number in (0, 1):
            tunnel.add_peer(number, keepalive_s=25)
        await until(lambda: peers[1].last_initiation_sent_at is not None)
        assert tunnel.errors

    Tunnel(scenario)


def test_any_other_callback_that_fails_costs_itself():
    async def scenario(tunnel):
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await until(lambda: tunnel.errors == 1)

    Tunnel(scenario)


def test_a_message_from_an_address_of_the_other_family_is_malformed(monkeypatch):
    """No kernel says so, but a worker may."""
    monkeypatch.setattr(supervisor_module, "preferred_family", lambda: socket.AF_INET)

    async def scenario(tunnel):
        peer = tunnel.add_peer(0)
        tunnel.worker.receive(initiation(0), source="::1")
        tunnel.tell()
        await until(lambda: tunnel.supervisor.verdicts["DROP_MALFORMED_HANDSHAKE"] == 1)
        elsewhere = Endpoint.from_python(("2001:db8::1", 9))
        tunnel.tables.peers.set_endpoint(peer.slot, elsewhere.sockaddr(socket.AF_INET6))
        tunnel.device.on_workers_exit([0], now_ns())
        assert peer.endpoint == PLACE["b"]
        assert tunnel.tables.peers.endpoint(peer.slot)[0] == PLACE["b"].sockaddr(socket.AF_INET)
        assert tunnel.errors == 0

    Tunnel(scenario)


# -- what a message would have changed is put right

def test_a_timer_that_fails_is_tried_again_later(monkeypatch):
    world = World()
    world.a.configure(world.b.public_key, keepalive_s=25)       # the first is due now
    monkeypatch.setattr(Timers, "expire", failing(None, when=lambda *_: True))
    with pytest.raises(RuntimeError):
        world.a.tick()
    assert world.a.device.next_deadline() == world.now + SECOND


def test_a_message_that_fails_leaves_no_timer_behind(monkeypatch):
    world = World()
    monkeypatch.setattr(tai64n, "emit_after", failing(None, when=lambda *_: True))
    monkeypatch.setattr(Timers, "deadline", lambda _: world.now + 7)
    with pytest.raises(RuntimeError):
        world.a.want_session()
    assert world.a.device.next_deadline() == world.now + 7


@pytest.mark.parametrize("step", ["create_initiation", "create_response"])
def test_a_handshake_that_fails_gives_its_slot_back(monkeypatch, step):
    world = World()
    monkeypatch.setattr(noise, step, failing(getattr(noise, step), when=lambda *_: True))
    with pytest.raises(RuntimeError):
        world.a.want_session()
        world.deliver(world.a, world.b)
    failed = world.a if step == "create_initiation" else world.b
    assert failed.device.sessions._by_index == {}


@pytest.mark.parametrize("which", [1, 2], ids=["the OFFER", "the ACCEPT"])
def test_a_step_of_the_upgrade_that_fails_is_done_when_its_message_comes_again(
        worlds, monkeypatch, which):
    world, calls = worlds(), []
    monkeypatch.setattr(lane_messages, "derive", failing(
        lane_messages.derive, when=lambda *_: calls.append(1) or len(calls) == which))
    world.handshake(world.a, world.b)
    with pytest.raises(RuntimeError):
        world.settle()
    if which == 1:
        assert world.a.tables.retired       # what was reserved for the lanes
    world.advance(2 * SECOND)
    assert world.a.usable == world.b.usable == [0, 1]
    assert world.a.device.verdicts == world.b.device.verdicts == {}
