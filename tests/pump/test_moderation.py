"""Workers to which many packets come collect them; what comes alone is never delayed."""

import pytest

from support.packets import A4, ACK, B4, superpacket, tcp, udp
from support.pumps import START, lane_pair, pair

US = 1000
WINDOW_US = 2000
SMALL = udp(A4, B4, bytes(36))


@pytest.fixture(params=["session", "lanes"])
def ends(request, closed):
    one, two = closed(lane_pair() if request.param == "lanes" else pair())
    for end in (one, two):
        end.tables.max_pause_us = 50
        end.poll(START - WINDOW_US * US)
        end.poll(START)
    return one, two


def turns(end, give, *, every_us, packets, before=lambda: None):
    """The pauses after the turns of four windows, us, when so many packets come each time.
    `before`: each turn."""
    pauses = []
    for number in range(1, 4 * WINDOW_US // every_us + 1):
        for _ in range(packets):
            give()
        before()
        pauses.append(end.poll(START + number * every_us * US) // US)
    return pauses


@pytest.mark.parametrize("every_us, packets, pause_us", [
    (100, 4, 50), (100, 3, 0),          # 40,000 a second are two in a pause
    (25, 1, 50), (30, 1, 0),
    (500, 20, 50), (500, 19, 0),
    (100, 16, 50), (100, 20, 40), (100, 40, 20),            # eight are enough
    (200, 1, 0),
])
def test_by_the_rate_of_the_last_window(ends, every_us, packets, pause_us):
    one, _ = ends
    pauses = turns(one, lambda: one.give(SMALL), every_us=every_us, packets=packets)
    before = WINDOW_US // every_us - 1
    assert set(pauses[:before]) == {0} and set(pauses[before:]) == {pause_us}
    assert one.counters()["pauses"] == sum(1 for each in pauses if each)


def test_who_receives_pauses_too(ends):
    one, two = ends
    assert 50 in turns(two, lambda: one.give(SMALL), every_us=500, packets=30, before=one.poll)


def test_questions_that_wait_for_answers_are_not_delayed(ends):
    """However many ask at once."""
    one, two = ends

    def answers():
        for _ in range(30):
            two.give(udp(B4, A4, bytes(36)))
        two.poll()

    assert set(turns(one, lambda: one.give(SMALL), every_us=500, packets=30,
                     before=answers)) == {0}


@pytest.mark.parametrize("length, is_delayed", [(200, True), (2000, False)])
def test_what_comes_in_trains_is_not_delayed(ends, length, is_delayed):
    """A wake-up for 40,000 bytes of TCP is worth it."""
    one, _ = ends
    large = superpacket(tcp(A4, B4, bytes(length), flags=ACK), 100)
    pauses = turns(one, lambda: one.interface.send(large), every_us=500, packets=20)
    assert (50 in pauses) == is_delayed


def test_what_comes_alone_after_many_is_not_delayed(ends):
    one, _ = ends
    turns(one, lambda: one.give(SMALL), every_us=100, packets=8)
    one.give(SMALL)
    assert one.poll(START + 5 * WINDOW_US * US) == 0


def test_without_pauses_there_are_none(ends):
    one, _ = ends
    one.tables.max_pause_us = 0
    assert one.tables.max_pause_us == 0
    assert set(turns(one, lambda: one.give(SMALL), every_us=100, packets=30)) == {0}
    assert one.counters()["pauses"] == 0
