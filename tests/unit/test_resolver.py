"""Names of endpoints: a start waits for them for a moment, and goes on without; they are asked for
again when a handshake keeps failing."""

import asyncio
import socket
import threading
from ipaddress import ip_address

import pytest

from fastpump.config.model import PeerConfig
from fastpump.conn import endpoint
from fastpump.conn.endpoint import Endpoint, EndpointError
from fastpump.constants import SECOND
from fastpump.device.peer_change import PeerChange
from fastpump.tunnel import resolver as resolver_module
from fastpump.tunnel.peer_changes import peer_change_of
from fastpump.tunnel.resolver import FIRST_RETRY_S, LAST_RETRY_S, Resolver
from support.devices import Clock, Side


def at(text, port=51820):
    return Endpoint(ip_address(text), port)


OLD, NEW, OTHER = (at(f"192.0.2.{number}") for number in (1, 2, 3))
SIX = at("2001:db8::1")
PEER = bytes(range(32))
NAME, SECOND_NAME = ("vpn.example.net", 51820), ("backup.example.net", 51820)
FAILURE = EndpointError("the endpoint host 'vpn.example.net' cannot be resolved: no", NAME)


class World:
    """A device, and a name server: `answers` has what it says of each name (else `answer`), `asked`
    what it was asked. No second passes but in `sleep`."""

    def __init__(self, monkeypatch, interval_s=0, answer=(NEW,), *, family=socket.AF_INET6):
        self.asked, self.answer, self.answers, self.slept = [], answer, {}, []
        monkeypatch.setattr(endpoint, "resolve", self.resolve)
        self.clock = Clock()
        self.resolver = Resolver(interval_s, lambda: self.clock.now)
        monkeypatch.setattr(self.resolver, "_sleep", self.sleep)
        self.side = Side(self.clock, family=family)
        self.resolver.device = self.side.device

    def resolve(self, host, port):
        if not endpoint.is_name(host):
            return (at(host, port),)
        self.asked.append((host, port))
        answer = self.answers.get((host, port), self.answer)
        if callable(answer):
            answer = answer()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def sleep(self, seconds):
        self.slept.append(seconds)
        self.clock.pass_time(seconds * SECOND)
        await asyncio.sleep(0)

    @property
    def peer(self):
        return self.side.device.peers[PEER]

    def run(self, scenario):
        """Run it, and all that follows from it."""
        async def all_of_it():
            await scenario(self)
            while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.gather(*tasks)

        asyncio.run(all_of_it())
        return self.peer.endpoint

    def named(self, name=NAME):
        """With a peer that has a name, and is somewhere."""
        self.side.configure(PEER, endpoint=OLD, endpoint_names=(name,) if name else ())
        return self

    async def start(self, *endpoints, **fields):
        """What a start does: ask, configure, follow."""
        (names,) = (await self.resolver.ask({PEER: endpoints})).values()
        change = peer_change_of(PeerConfig(PEER, endpoints, **fields),
                                self.resolver.candidates(names))
        self.resolver.follow(self.side.device.configure_peer(change, self.clock.now), names)
        return names


# -- a peer that does not answer

async def one_failure(world):
    world.resolver.on_unanswered(world.peer)


async def failures_at_once(world):
    for _ in range(3):
        world.resolver.on_unanswered(world.peer)


async def failure_after_it_was_resolved(world):
    world.resolver.note_resolved(world.peer)
    world.resolver.on_unanswered(world.peer)


async def failure_long_after_it_was_resolved(world):
    """By the clock that goes on while the machine sleeps."""
    world.resolver.note_resolved(world.peer)
    world.clock.pass_time(30 * SECOND)
    world.resolver.on_unanswered(world.peer)


async def failure_just_after_boot(world):
    world.clock.now = SECOND
    world.resolver.on_unanswered(world.peer)


async def failure_and_then_another_configuration(world):
    world.resolver.on_unanswered(world.peer)
    world.side.configure(PEER, endpoint_names=())


async def failure_of_a_peer_that_is_removed(world):
    world.resolver.on_unanswered(world.peer)
    world.side.remove(PEER)
    world.side.configure(PEER, endpoint=OLD)


@pytest.mark.parametrize(("scenario", "interval_s", "asked", "where"), [
    (one_failure, 30, 1, NEW),
    (one_failure, 0, 0, OLD),
    (failures_at_once, 30, 1, NEW),
    (failure_after_it_was_resolved, 30, 0, OLD),
    (failure_long_after_it_was_resolved, 30, 1, NEW),
    (failure_just_after_boot, 30, 1, NEW),
    (failure_and_then_another_configuration, 30, 1, OLD),
    (failure_of_a_peer_that_is_removed, 30, 1, OLD),
], ids=lambda value: getattr(value, "__name__", None))
def test_names_are_asked_for_again(monkeypatch, scenario, interval_s, asked, where):
    world = World(monkeypatch, interval_s).named()
    assert world.run(scenario) == where
    assert world.asked == [NAME] * asked


def test_an_address_is_not_asked_for(monkeypatch):
    world = World(monkeypatch, 30).named(None)
    assert world.run(one_failure) == OLD and world.asked == []


def test_a_name_that_does_not_resolve_changes_nothing(monkeypatch):
    world = World(monkeypatch, 30, FAILURE).named()
    assert world.run(one_failure) == OLD and len(world.asked) == 1


def test_a_name_that_does_not_resolve_is_reported_once(monkeypatch, caplog):
    async def failures(world):
        for _ in range(5):
            world.resolver.on_unanswered(world.peer)
            await asyncio.sleep(0.001)
            world.clock.pass_time(5 * SECOND)

    world = World(monkeypatch, 5, FAILURE).named()
    world.run(failures)
    assert len(world.asked) == 5 and caplog.text.count("cannot be resolved") == 1


def test_another_address_keeps_the_name(monkeypatch):
    """It may mean yet another one the next time."""
    world = World(monkeypatch, 30).named()
    assert world.run(one_failure) == NEW and world.peer.endpoint_names == (NAME,)


def test_a_peer_that_is_at_one_of_the_addresses_stays_there(monkeypatch):
    world = World(monkeypatch, 30, (NEW, OLD)).named()
    assert world.run(one_failure) == OLD and world.peer.candidates == (NEW, OLD)


def test_a_name_whose_address_cannot_be_reached_changes_nothing(monkeypatch):
    world = World(monkeypatch, 30, (SIX,), family=socket.AF_INET).named()
    assert world.run(one_failure) == OLD and len(world.asked) == 1


def test_a_thread_that_cannot_be_started_is_explained(monkeypatch):
    """And no lookup is counted as under way."""
    def start(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    world = World(monkeypatch)
    names = asyncio.run(world.resolver.ask({PEER: (NAME,) * 50}))
    assert "raise the limit of processes (ulimit -u" in names[PEER].problem()


# -- a start

def answers_after(failures, *answer):
    """Of a name server that fails so many times."""
    left = iter([FAILURE] * failures)
    return lambda: next(left, answer)


def test_a_name_that_answers_at_once_is_where_the_peer_is(monkeypatch, caplog):
    world = World(monkeypatch, answer=(NEW, SIX))
    assert world.run(lambda world: world.start(NAME)) == NEW
    assert world.peer.candidates == (NEW, SIX) and world.peer.endpoint_names == (NAME,)
    assert world.slept == [] and caplog.text == "" and world.resolver.problem(world.peer) is None


def test_a_name_without_an_answer_is_asked_for_until_there_is_one(monkeypatch, caplog):
    caplog.set_level("INFO")
    world = World(monkeypatch, answer=answers_after(9, NEW))
    problems = []

    async def start(world):
        await world.start(NAME)
        assert world.peer.endpoint is None
        problems.append(world.resolver.problem(world.peer))

    assert world.run(start) == NEW and problems == [str(FAILURE)]
    assert world.slept == [1, 2, 4, 8, 16, 32, 60, 60, 60] and len(world.asked) == 10
    assert caplog.text.count("cannot be resolved") == 1
    assert "vpn.example.net is 192.0.2.2 now: peer" in caplog.text
    assert world.resolver.problem(world.peer) is None


@pytest.mark.parametrize(("keepalive_s", "kinds"), [(25, [1]), (0, [])])
def test_the_first_answer_starts_a_handshake_if_one_is_waited_for(monkeypatch, keepalive_s, kinds):
    world = World(monkeypatch, answer=answers_after(2, NEW))

    async def start(world):
        await world.start(NAME, keepalive_s=keepalive_s)
        world.side.tick()
        assert world.side.sent == []

    world.run(start)
    assert world.side.kinds == kinds and {each.where for each in world.side.sent} <= {NEW}


def test_a_name_server_that_does_not_answer_is_not_waited_for(monkeypatch, caplog):
    monkeypatch.setattr(resolver_module, "ANSWER_WAIT_S", 0.01)
    may_answer = threading.Event()

    def answer():
        assert may_answer.wait(20)
        return (NEW,)

    async def start(world):
        await world.start(NAME)
        assert world.peer.endpoint is None
        assert "no name server answers" in world.resolver.problem(world.peer)
        may_answer.set()

    world = World(monkeypatch, answer=answer)
    assert world.run(start) == NEW and len(world.asked) == 1
    assert caplog.text.count("no name server answers; trying on") == 1


def test_what_has_an_answer_does_not_wait_for_what_has_none(monkeypatch):
    world = World(monkeypatch)
    world.answers = {NAME: answers_after(2, NEW), SECOND_NAME: (OTHER,)}

    async def start(world):
        await world.start(NAME, SECOND_NAME, ("192.0.2.9", 9))
        assert world.peer.endpoint == OTHER
        assert world.peer.candidates == (OTHER, at("192.0.2.9", 9))

    assert world.run(start) == OTHER            # it works, for all that we know
    assert world.peer.candidates == (NEW, OTHER, at("192.0.2.9", 9))


def test_a_peer_that_has_moved_meanwhile_stays_where_it_is(monkeypatch):
    world = World(monkeypatch)
    world.answers = {NAME: answers_after(1, NEW), SECOND_NAME: (OTHER,)}

    async def start(world):
        await world.start(NAME, SECOND_NAME)
        world.side.device.endpoints.set(world.peer, OLD, bytes(16))

    assert world.run(start) == OLD and world.peer.candidates == (NEW, OTHER)


def test_who_sets_an_endpoint_meanwhile_has_the_last_word(monkeypatch):
    world = World(monkeypatch, answer=answers_after(3, NEW))

    async def start(world):
        await world.start(NAME)
        world.side.configure(PEER, endpoint=OLD, endpoint_names=())

    assert world.run(start) == OLD and world.slept == [1]


def test_a_peer_that_is_removed_is_not_asked_for(monkeypatch):
    world = World(monkeypatch, answer=FAILURE)

    async def start(world):
        await world.start(NAME)
        world.side.remove(PEER)
        world.side.configure(PEER)

    assert world.run(start) is None and world.slept == [1]


@pytest.mark.parametrize(("answer", "candidates"), [
    ((SIX, NEW), (NEW,)), ((SIX,), (SIX,))])
def test_without_ipv6_its_addresses_are_left_out(monkeypatch, answer, candidates):
    """Unless there are no others: then the error says why."""
    world = World(monkeypatch, answer=answer, family=socket.AF_INET)
    (names,) = asyncio.run(world.resolver.ask({PEER: (NAME,)})).values()
    assert world.resolver.candidates(names) == candidates


def test_a_link_local_address_waits_for_its_interface(monkeypatch):
    where = Endpoint(ip_address("fe80::1"), 5, 7)
    found = iter([EndpointError("the endpoint host 'fe80::1%eth7' cannot be resolved: no", NAME)])
    world = World(monkeypatch)

    def resolve(_host, _port):
        for error in found:
            raise error
        return (where,)

    monkeypatch.setattr(endpoint, "resolve", resolve)
    assert world.run(lambda world: world.start(("fe80::1%eth7", 5))) == where


def test_few_names_are_looked_up_at_once(monkeypatch):
    lock, are_many, may_go_on = threading.Lock(), threading.Event(), threading.Event()
    counts = [0]

    def answer():
        with lock:
            counts.append(counts[-1] + 1)
            if counts[-1] == 16:
                are_many.set()
        assert may_go_on.wait(20)
        with lock:
            counts.append(counts[-1] - 1)
        return (NEW,)

    world = World(monkeypatch, answer=answer)
    threads = threading.active_count()

    async def ask():
        asked = asyncio.create_task(world.resolver.ask({
            bytes([number]) * 32: ((f"host{number}.example.net", 51820),)
            for number in range(100)}))
        await asyncio.to_thread(are_many.wait, 20)
        for _ in range(10):             # whoever does not wait asks now
            await asyncio.sleep(0)
        assert threading.active_count() <= threads + 16 + 4    # and those of asyncio
        may_go_on.set()
        return await asked

    found = asyncio.run(ask())
    assert max(counts) == 16 and len(world.asked) == 100
    assert not any(names.missing for names in found.values())


# -- addresses

A1, A2, B1, B2, B3 = (at("192.0.2.1"), at("192.0.2.2"), at("2001:db8::1"), at("2001:db8::2"),
                      at("2001:db8::3"))


@pytest.mark.parametrize(("found", "order"), [
    ([], ()), ([A1], (A1,)), ([A1, A1], (A1,)), ([B1, A1], (B1, A1)), ([A1, A2], (A1, A2)),
    ([B1, B2, B3, A1, A2], (B1, A1, B2, A2, B3)), ([A1, B1, B2], (A1, B1, B2)),
    ([A1, A2, B1], (A1, B1, A2))])
def test_the_families_take_turns(found, order):
    assert endpoint.interleaved(found) == order


def test_a_change_of_several_endpoints():
    """Where the peer is stays, if it is one of them."""
    several = PeerConfig(PEER, (("192.0.2.1", 51820), NAME))
    change = peer_change_of(several, (A1, A2))
    assert (change.endpoint, change.candidates) == (A1, (A1, A2))
    assert change.endpoint_names == several.endpoints
    assert peer_change_of(several, (A1, A2), at=A2) == PeerChange(
        PEER, preshared_key=bytes(32), candidates=(A1, A2), endpoint_names=several.endpoints,
        replaces_allowed_ips=True, keepalive_s=0)


def test_what_waits_is_asked_for_at_once_when_the_way_out_changes():
    """But not as often as links flap."""
    async def run():
        clock = Clock()
        resolver = Resolver(0, lambda: clock.now)

        async def begun():
            waiting = asyncio.ensure_future(resolver.pause(LAST_RETRY_S))
            await asyncio.sleep(0)
            return waiting

        waiting = await begun()
        resolver.hurry()
        assert await waiting == FIRST_RETRY_S
        waiting = await begun()
        resolver.hurry()
        assert not waiting.done()
        clock.pass_time(FIRST_RETRY_S * SECOND)
        resolver.hurry()
        assert await waiting == FIRST_RETRY_S
        waiting = await begun()
        clock.pass_time(LAST_RETRY_S * SECOND)
        assert await waiting == LAST_RETRY_S

    asyncio.run(run())
