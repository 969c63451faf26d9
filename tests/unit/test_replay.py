"""The replay window, as a numbered table (after RFC 6479 and the kernel's selftest)."""

import ctypes
import mmap
import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpump._core import REJECT_AFTER_MESSAGES, REPLAY_LEN, REPLAY_WINDOW, ReplayWindow

W = REPLAY_WINDOW
OK, NO = True, False

TABLE = [
    ("in order", [(0, OK), (1, OK), (2, OK)]),
    ("twice", [(0, OK), (0, NO), (1, OK), (1, NO)]),
    ("swapped", [(1, OK), (0, OK), (0, NO), (1, NO)]),
    ("first is high", [(9, OK), (8, OK), (7, OK), (7, NO), (6, OK), (8, NO), (0, OK)]),
    ("oldest in the window", [(W, OK), (1, OK), (0, NO)]),
    ("just behind the window", [(W + 1, OK), (1, NO), (2, OK)]),
    ("far jump forgets all", [(5, OK), (5 + 10 * W, OK), (5, NO), (5 + 9 * W, NO),
                              (5 + 9 * W + 1, OK)]),
    ("jump of exactly the ring", [(0, OK), (8192, OK), (8191, OK), (65, OK), (64, NO)]),
    ("window filled backwards", [(W - 1 - i, OK) for i in range(W)] + [(0, NO), (W - 1, NO)]),
    ("window filled forwards", [(i, OK) for i in range(2 * W)] + [(2 * W - 1, NO), (W, NO)]),
    ("highest counter", [(REJECT_AFTER_MESSAGES - 1, OK), (REJECT_AFTER_MESSAGES - 1, NO),
                         (REJECT_AFTER_MESSAGES, NO), (2**64 - 1, NO),
                         (REJECT_AFTER_MESSAGES - W, OK), (REJECT_AFTER_MESSAGES - W - 1, NO)]),
]


def test_window_is_large_enough():
    assert REPLAY_WINDOW >= 8000


@pytest.mark.parametrize("steps", [steps for _, steps in TABLE], ids=[name for name, _ in TABLE])
def test_table(steps):
    window = ReplayWindow()
    for number, (counter, accepted) in enumerate(steps):
        assert window.is_fresh(counter) is accepted, number
        assert window.mark(counter) is accepted, number


@given(st.lists(st.integers(0, 3 * W), max_size=400))
def test_against_a_set(counters):
    window, seen, newest = ReplayWindow(), set(), -1
    for counter in counters:
        fresh = counter not in seen and counter > newest - W
        assert window.mark(counter) is fresh
        if fresh:
            seen.add(counter)
            newest = max(newest, counter)


def test_who_is_killed_while_it_marks_leaves_nothing_open():
    """A process that does nothing but move the window a whole length on is mostly killed while it
    clears words. `done`: up to where all counters were accepted."""
    memory = mmap.mmap(-1, 4096)
    buffer = (ctypes.c_uint8 * 4096).from_buffer(memory)
    place = ctypes.addressof(buffer)
    done = ctypes.c_uint64.from_buffer(memory, REPLAY_LEN)      # written and read as a whole
    for _ in range(150):
        memory[:] = bytes(4096)
        child = os.fork()
        if child == 0:
            window = ReplayWindow(place)
            for counter in range(W, 1 << 50, W):
                window.mark(counter)
                for older in (counter - 1, counter - W // 2):
                    window.mark(older)
                done.value = counter
        while not done.value:
            pass
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        window, counter = ReplayWindow(place), done.value
        for accepted in (counter, counter - 1, counter - W // 2):
            assert not window.is_fresh(accepted)
        assert window.mark(counter + 10 * W)        # and it can be gone on with
    del buffer, done
    memory.close()
