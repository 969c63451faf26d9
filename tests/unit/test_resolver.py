"""Names of endpoints are asked for again when a handshake keeps failing."""

import asyncio
import socket
import threading
from ipaddress import ip_address

import pytest

from fastpump.conn import endpoint
from fastpump.conn.endpoint import Endpoint
from fastpump.errors import ConfigError, SystemSetupError
from fastpump.tunnel.resolver import Resolver
from support.devices import Clock, Side

OLD, NEW = (Endpoint(ip_address(f"192.0.2.{number}"), 51820) for number in (1, 2))
PEER = bytes(range(32))
NAME = ("vpn.example.net", 51820)


class World:
    """A device with one peer; `asked` are the names that were looked up."""

    def __init__(self, monkeypatch, interval_s, answer=NEW, *, name=NAME,
                 family=socket.AF_INET6):
        self.asked, self.answer = [], answer
        monkeypatch.setattr(endpoint, "resolve", self.resolve)
        self.resolver = Resolver(interval_s)
        self.side = Side(Clock(), family=family)
        self.resolver.device = self.side.device
        self.peer = self.side.configure(PEER, endpoint=OLD, endpoint_name=name)

    def resolve(self, host, port):
        self.asked.append((host, port))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def run(self, scenario):
        async def all_of_it():
            await scenario(self)
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.gather(*tasks)

        asyncio.run(all_of_it())
        return self.peer.endpoint


async def one_failure(world):
    world.resolver.on_unanswered(world.peer)


async def failures_at_once(world):
    for _ in range(3):
        world.resolver.on_unanswered(world.peer)


async def failure_after_it_was_resolved(world):
    world.resolver.note_resolved(world.peer)
    world.resolver.on_unanswered(world.peer)


async def failure_and_then_another_configuration(world):
    world.resolver.on_unanswered(world.peer)
    world.side.configure(PEER, endpoint_name=None)


async def failure_of_a_peer_that_is_removed(world):
    world.resolver.on_unanswered(world.peer)
    world.side.remove(PEER)


@pytest.mark.parametrize(("scenario", "interval_s", "asked", "where"), [
    (one_failure, 30, 1, NEW),
    (one_failure, 0, 0, OLD),
    (failures_at_once, 30, 1, NEW),
    (failure_after_it_was_resolved, 30, 0, OLD),
    (failure_and_then_another_configuration, 30, 1, OLD),
    (failure_of_a_peer_that_is_removed, 30, 1, OLD),
], ids=lambda value: getattr(value, "__name__", None))
def test_names_are_asked_for_again(monkeypatch, scenario, interval_s, asked, where):
    world = World(monkeypatch, interval_s)
    assert world.run(scenario) == where
    assert world.asked == [NAME] * asked


def test_an_address_is_not_asked_for(monkeypatch):
    world = World(monkeypatch, 30, name=None)
    assert world.run(one_failure) == OLD and world.asked == []


def test_a_name_that_does_not_resolve_changes_nothing(monkeypatch):
    world = World(monkeypatch, 30, ConfigError("cannot be resolved"))
    assert world.run(one_failure) == OLD and len(world.asked) == 1


def test_a_name_that_does_not_resolve_is_reported_once(monkeypatch, caplog):
    async def failures(world):
        for _ in range(5):
            world.resolver.on_unanswered(world.peer)
            await asyncio.sleep(0.001)

    world = World(monkeypatch, 0.0001, ConfigError("cannot be resolved"))
    world.run(failures)
    assert len(world.asked) == 5 and caplog.text.count("cannot be resolved") == 1


def test_another_address_keeps_the_name(monkeypatch):
    """It may mean yet another one the next time."""
    world = World(monkeypatch, 30)
    assert world.run(one_failure) == NEW and world.peer.endpoint_name == NAME


def test_a_name_whose_address_cannot_be_reached_changes_nothing(monkeypatch):
    world = World(monkeypatch, 30, Endpoint(ip_address("2001:db8::1"), 9), family=socket.AF_INET)
    assert world.run(one_failure) == OLD and len(world.asked) == 1


def test_a_thread_that_cannot_be_started_is_explained(monkeypatch):
    def start(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)

    async def ask(resolver):
        for _ in range(50):         # none of them is counted as under way
            with pytest.raises(SystemSetupError, match="limit of processes"):
                await resolver.look_up("vpn.example.net", 9)

    asyncio.run(ask(Resolver(0)))
