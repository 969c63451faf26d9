"""Names of endpoints are asked for again when a handshake keeps failing."""

import asyncio
import socket
from ipaddress import ip_address

import pytest

from fastpump._core import SharedTables
from fastpump.conn import endpoint
from fastpump.conn.endpoint import Endpoint
from fastpump.device.device import Device, Surroundings
from fastpump.errors import ConfigError
from fastpump.tunnel.resolver import Resolver

OLD, NEW = (Endpoint(ip_address(f"192.0.2.{number}"), 51820) for number in (1, 2))


class World:
    """A device with one peer; `asked` are the names that were looked up."""

    def __init__(self, monkeypatch, interval_s, answer=NEW):
        self.asked, self.answer = [], answer
        monkeypatch.setattr(endpoint, "resolve", self.resolve)
        self.resolver = Resolver(interval_s)
        device = self.resolver.device = Device(SharedTables.create(1, 4, 16), Surroundings(
            transmit=lambda *_: None, ring=lambda: None, schedule=lambda: None,
            unix_ns=lambda: 0, jitter=lambda _: 0), socket.AF_INET6)
        self.peer = device.add_peer(bytes(range(32)))
        device.set_endpoint(self.peer, OLD)
        self.peer.endpoint_name = ("vpn.example.net", 51820)

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
    world.resolver.is_unanswered(world.peer)


async def failures_at_once(world):
    for _ in range(3):
        world.resolver.is_unanswered(world.peer)


async def failure_after_it_was_resolved(world):
    world.resolver.note_resolved(world.peer)
    world.resolver.is_unanswered(world.peer)


async def failure_and_then_another_configuration(world):
    world.resolver.is_unanswered(world.peer)
    world.peer.endpoint_name = None


async def failure_of_a_peer_that_is_removed(world):
    world.resolver.is_unanswered(world.peer)
    world.resolver.device.remove_peer(world.peer)


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
    assert world.asked == [("vpn.example.net", 51820)] * asked


def test_an_address_is_not_asked_for(monkeypatch):
    world = World(monkeypatch, 30)
    world.peer.endpoint_name = None
    assert world.run(one_failure) == OLD and world.asked == []


def test_a_name_that_does_not_resolve_changes_nothing(monkeypatch):
    world = World(monkeypatch, 30, ConfigError("cannot be resolved"))
    assert world.run(one_failure) == OLD and len(world.asked) == 1
