"""The search for a path's MTU, on paths that exist as a function only (RFC 8899)."""

import random

import pytest

from fastpump.constants import SECOND
from fastpump.protocol.path_mtu import (
    BASE_PLPMTU,
    CONFIRMATION_TIMER,
    GRANULARITY,
    MAX_ERRORS,
    MAX_PROBES,
    MIN_PLPMTU,
    PROBE_TIMER,
    RAISE_TIMERS,
    USUAL_SIZES,
    PathMtu,
    State,
)

MS = SECOND // 1000


class Path:
    """A path with an MTU, and the search for it."""

    def __init__(self, mtu, *, needed=1500, rtt=20 * MS, link=65535, loss=0.0, has_data=True):
        self.mtu, self.rtt, self.link, self.loss = mtu, rtt, link, loss
        self.has_data = has_data
        self.now = 1000 * SECOND
        self.data_at = self.now
        self.sent = []
        self.random = random.Random(7)
        self._under_way = []
        self.search = PathMtu()
        self.search.start(needed, self.now)

    def advance(self, ns, step=5 * MS):
        end = self.now + ns
        while self.now < end:
            self.now += step
            if self.has_data:
                self.data_at = self.now
                self.search.on_data(self.now)
            self._receive()
            for _ in range(20):
                if self.search.deadline is None or self.now < self.search.deadline:
                    break
                for size in self.search.on_timer(self.now, self.data_at):
                    self._send(size)
        return self.search

    def _send(self, size):
        self.sent.append(size)
        if size > self.link:
            self.search.on_too_large(size, self.now)
        elif size <= self.mtu and self.random.random() >= self.loss:
            self._under_way.append((self.now + self.rtt, self.search.number, size))

    def _receive(self):
        arrived = [each for each in self._under_way if each[0] <= self.now]
        self._under_way = [each for each in self._under_way if each[0] > self.now]
        for _, number, size in arrived:
            self.search.on_ack(number, size, self.now)


def is_near(found, mtu):
    """An MTU that links usually have is found exactly."""
    return found == mtu if mtu in USUAL_SIZES else mtu - GRANULARITY <= found <= mtu


def test_the_usual_case_is_one_round():
    path = Path(1500)
    search = path.advance(50 * MS)
    assert (search.state, search.plpmtu) == (State.SEARCH_COMPLETE, 1500)
    assert path.sent == [BASE_PLPMTU, MIN_PLPMTU, 1500]


def test_nobody_is_hit_by_large_probes_who_answers_none():
    path = Path(0)
    path.advance(30 * SECOND)
    assert set(path.sent) == {BASE_PLPMTU, MIN_PLPMTU}
    assert len(path.sent) == 2 * MAX_PROBES * MAX_ERRORS


@pytest.mark.parametrize("rtt", [1 * MS, 100 * MS, 600 * MS])
@pytest.mark.parametrize("mtu", [576, 800, 1006, 1280, 1300, 1311, 1400, 1406, 1480, 1492, 1499])
def test_a_smaller_one_is_found(mtu, rtt):
    path = Path(mtu, rtt=rtt)
    search = path.advance(5 * SECOND if rtt <= 100 * MS else 40 * SECOND)
    assert is_near(search.plpmtu, mtu) and not search.is_black_hole


@pytest.mark.parametrize("mtu", [1500, 8166, 9000, 9216])
def test_a_larger_one_is_found(mtu):
    assert is_near(Path(mtu, needed=9216).advance(5 * SECOND).plpmtu, mtu)


def test_what_our_own_link_refuses_costs_no_time():
    path = Path(1500, needed=1618, link=1500)
    search = path.advance(100 * MS)
    assert (search.state, search.plpmtu) == (State.SEARCH_COMPLETE, 1500)


@pytest.mark.parametrize("before, after", [
    (1500, 1300), (1500, 1280), (1492, 1400), (9000, 1500), (1400, 576)])
def test_a_black_hole_is_found_while_data_flows(before, after):
    path = Path(before, needed=max(1500, before))
    path.advance(20 * SECOND)
    path.mtu = after
    search = path.advance(5 * SECOND)
    assert is_near(search.plpmtu, after) and search.is_black_hole


def test_what_is_known_stays_while_the_path_is_down():
    path = Path(1400)
    path.advance(5 * SECOND)
    path.mtu = 0
    search = path.advance(30 * SECOND)
    assert search.state in (State.ERROR, State.BASE)        # it is tried again
    assert search.plpmtu == 1400 and not search.is_black_hole
    path.mtu = 1300
    assert path.advance(10 * SECOND).plpmtu == 1300


def test_a_path_that_never_answers_is_given_up():
    path = Path(0)
    search = path.advance(30 * SECOND)
    assert (search.state, search.plpmtu, search.deadline) == (State.DISABLED, 0, None)


def test_nothing_is_sent_without_data():
    path = Path(1500, has_data=False)
    path.advance(SECOND)
    sent = len(path.sent)
    search = path.advance(100 * SECOND)
    assert len(path.sent) == sent and search.deadline is None
    path.has_data = True
    path.advance(2 * CONFIRMATION_TIMER)
    assert 1 <= len(path.sent) - sent <= 3


def test_it_is_raised_after_a_while():
    """Soon at first: what was lost in a queue was not too large."""
    path = Path(1400)
    path.advance(5 * SECOND)
    path.mtu = 1500
    assert path.advance(RAISE_TIMERS[0]).plpmtu == 1500
    path = Path(1400)
    path.advance(sum(RAISE_TIMERS[:2]) + 30 * SECOND, step=50 * MS)
    path.mtu = 1500
    assert path.advance(RAISE_TIMERS[2] // 2, step=50 * MS).plpmtu == 1400
    assert path.advance(RAISE_TIMERS[2], step=50 * MS).plpmtu == 1500


@pytest.mark.parametrize("loss", [0.05, 0.2])
def test_losses_are_not_taken_for_a_small_path(loss):
    """Not for long, that is."""
    path = Path(1500, loss=loss)
    seconds = sum(path.advance(SECOND).plpmtu == 1500 for _ in range(300))
    assert seconds > 300 * (0.99 if loss < 0.1 else 0.85)


def test_a_size_is_lost_after_so_many_probes():
    path = Path(1499)
    path.advance(2 * MAX_PROBES * PROBE_TIMER)
    assert path.sent.count(1500) >= MAX_PROBES


def test_acks_of_something_else_are_ignored():
    path = Path(1400)
    search = path.advance(5 * SECOND)
    search.on_ack(search.number + 1, 1500, path.now)
    search.on_ack(search.number, 1499, path.now)
    assert search.plpmtu == 1400


def test_a_path_that_becomes_another_is_searched_anew():
    path = Path(1400)
    path.advance(5 * SECOND)
    path.mtu = 1500
    path.search.start(1500, path.now)
    assert path.search.plpmtu == 1400           # until more is known
    assert path.advance(SECOND).plpmtu == 1500
