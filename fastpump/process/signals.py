"""Signals while a tunnel is made and unmade: before and after the event loop, which has handlers of
its own."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Waiting:
    """Signals that are deferred: whether they are, and which came."""

    is_on = False
    came: list[int] = []


def _on_signal(number: int, _frame: FrameType | None) -> None:
    if not _Waiting.is_on:
        sys.exit(128 + number)
    _Waiting.came.append(number)


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Signals end the program by SystemExit, so that what was made is unmade."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(number, _on_signal) for number in _NUMBERS]
    try:
        yield
    finally:
        for number, handler in zip(_NUMBERS, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within `unwinding`: let no signal come between making a thing and recording that it
    must be unmade; signals are handled at the end."""
    _Waiting.came.clear()
    _Waiting.is_on = True
    try:
        yield
    finally:
        _Waiting.is_on = False
    if _Waiting.came:
        sys.exit(128 + _Waiting.came[0])


def ignore() -> None:
    """Let nothing interrupt the clean-up; `unwinding` ends that."""
    if threading.current_thread() is threading.main_thread():
        for number in _NUMBERS:
            signal.signal(number, signal.SIG_IGN)


def exit_on_signals() -> None:
    """Make SIGINT, SIGTERM and SIGHUP unwind the program, so that what it made is unmade; also
    when it was started with SIGINT ignored, as shells start background jobs."""
    for number in _NUMBERS:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
