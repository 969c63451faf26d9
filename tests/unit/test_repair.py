"""When what somebody else has removed is put back."""

import asyncio
import socket

import pytest

from fastpump.errors import SystemSetupError
from fastpump.tunnel import repair
from fastpump.tunnel.repair import Patience, RepairWatch
from support.hosts import open_files


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_the_first_repairs_are_made_at_once_the_next_ones_later_and_later():
    clock = Clock()
    patience = Patience(clock)
    delays, said = [], []
    for _ in range(40):
        delays.append(patience.delay_s)
        clock.now += delays[-1]
        said.append(patience.note())
    after = said.index(True) + 1
    assert set(delays[:after]) == {0.1} and after >= repair.MAX_AT_ONCE
    assert delays[after:after + 4] == [1, 2, 4, 8] and set(delays[25:]) == {repair.EVERY_S}
    assert said.count(True) == 1
    clock.now += repair.MAX_AT_ONCE * repair.EVERY_S
    assert patience.delay_s == 0.1 and not patience.note()


class Kernel:
    """In place of the notifications: a file that the test makes readable."""

    made: "Kernel"

    def __init__(self, *watched):
        if watched[0] == 0:
            raise OSError(1, "Operation not permitted")
        self.watched = watched
        self.ours, self.theirs = socket.socketpair()
        self.sockets = [self.ours]
        Kernel.made = self

    def drain(self):
        return b"ours" in self.ours.recv(100)

    def close(self):
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def watched(monkeypatch):
    """Run a scenario, told what is missing by a list of answers; what was asked for."""
    monkeypatch.setattr(repair, "Notifications", Kernel)
    monkeypatch.setattr(repair, "DELAY_S", 0)

    def run(scenario, answers, index=5):
        asked = []

        async def restore():
            asked.append(len(asked))
            answer = answers.pop(0) if answers else []
            if isinstance(answer, Exception):
                raise answer
            return answer

        async def all_of_it():
            watch = RepairWatch(restore)
            watch.start(index, 51820, ("fastpump-wg0",))
            try:
                await asyncio.wait_for(scenario(watch, asked), 20)
            finally:
                watch.stop()
            return watch

        return asyncio.run(all_of_it()), asked

    return run


async def times(asked, count):
    while len(asked) < count:
        await asyncio.sleep(0)


def test_it_looks_at_the_start_and_whenever_the_kernel_says_so(watched, caplog):
    async def scenario(_watch, asked):
        await times(asked, 1)
        assert Kernel.made.watched == (5, 51820, ("fastpump-wg0",))
        for count in (2, 3):
            Kernel.made.theirs.send(b"ours")
            await times(asked, count)

    watch, asked = watched(scenario, [[], ["the rules", "the routes"], ["the rules"]])
    assert len(asked) == 3
    assert watch.counts == {"the rules": 2, "the routes": 1}
    assert "somebody removed the rules and the routes, which the tunnel needs" in caplog.text
    assert "again and again" not in caplog.text


def test_a_repair_that_fails_is_tried_again_and_told_once(watched, caplog):
    async def scenario(_watch, asked):
        await times(asked, 4)

    failure = SystemSetupError("nft is missing")
    watch, _ = watched(scenario, [failure, failure, OSError(1, "no"), ["the firewall"]])
    assert watch.counts == {"the firewall": 1}
    assert caplog.text.count("cannot be restored: nft is missing") == 1


def test_who_keeps_removing_it_is_told_once(watched, caplog):
    async def scenario(watch, asked):
        for count in range(1, repair.MAX_AT_ONCE + 2):
            await times(asked, count)
            await asyncio.sleep(0)
            watch.look()

    watched(scenario, [["the rules"]] * (repair.MAX_AT_ONCE + 1))
    assert caplog.text.count("removed again and again") == 1


def test_without_notifications_the_tunnel_runs_on(watched, caplog):
    async def scenario(_watch, _asked):
        await asyncio.sleep(0)

    _, asked = watched(scenario, [], index=0)
    assert asked == [] and "it will not be noticed" in caplog.text


def test_it_ends_without_a_trace(watched):
    before = open_files()

    async def scenario(watch, asked):
        await times(asked, 1)
        watch.start(6, 51820, ())       # in place of the one before
        await times(asked, 2)

    watched(scenario, [])
    assert open_files() == before
