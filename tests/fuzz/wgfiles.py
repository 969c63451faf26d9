"""Mangled files through `wg setconf` and our parser: both take or refuse them, with the same
values. It needs wg(8), and root or a user namespace."""

from __future__ import annotations

import atexit
import functools

from fuzz.common import telling
from support.setconf import Judge
from support.wgfiles import compare, known_differences, mangled, odd_files, real_files


@functools.cache
def judge():
    """One for the process, with which it ends."""
    made = Judge()
    atexit.register(made.close)
    return made


@functools.cache
def known():
    return known_differences(judge())


@functools.cache
def files():
    return real_files(), odd_files()


def check_wgfiles(rng):
    """As tests/unit/test_wg_differential.py does."""
    data = rng.choice(rng.choice(files()))
    for _ in range(rng.randint(1, 2)):
        data = mangled(rng, data)
    comparison = compare(judge(), data)
    with telling([comparison.data, comparison.verdict]):
        assert comparison.is_explained(known())
