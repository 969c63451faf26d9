"""A loop outside of a TAP: where addresses move more often than there are addresses."""

import pytest

from fastpump.tunnel.loop_watch import MOVES_PER_S, LoopWatch

SECONDS = 5
# (moves in each look, addresses), and in which looks it is a loop.
LOOKS = {
    "quiet": ([0, 0, 0], 10, []),
    "a guest moves": ([0, 1, 0, 2], 10, []),
    "a site fails over, and all its hosts move": ([0, 20_000, 10_000, 0], 30_000, []),
    "two ways for a while": ([0, MOVES_PER_S * SECONDS] * 3, 4, []),
    "a loop": ([0, 4000, 4000, 4000, 2, 0], 4, [1, 2, 3]),
    "a loop in a large network": ([0, 90_000, 95_000, 0], 30_000, [1, 2]),
    "two loops": ([0, 4000, 3, 4000], 4, [1, 3]),
}


@pytest.mark.parametrize("name", LOOKS)
def test_what_is_a_loop(name, caplog):
    caplog.set_level("INFO", "fastpump")
    moves, addresses, loops = LOOKS[name]
    watch, total, found = LoopWatch(), 12345, []        # whatever was counted before
    for at, moved in enumerate(moves):
        total += moved
        watch.look(total, addresses, 1000.0 + SECONDS * at)
        found += [at] * watch.is_loop
    assert found == loops
    begins = sum(at - 1 not in loops for at in loops)
    lines = [record.getMessage() for record in caplog.records]
    assert sum("frames go round in a loop" in line for line in lines) == begins
    assert sum("any more" in line for line in lines) == begins - (len(moves) - 1 in loops)
