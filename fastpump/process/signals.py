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


def _on_signal(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


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
