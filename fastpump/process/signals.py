"""Signals while a tunnel is made, while it runs, and while it is unmade. At no moment do they do
what they do by default: end the program, and leave what it made."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
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


def tell(loop: asyncio.AbstractEventLoop, callback: Callable[[str], None]) -> None:
    """Signals call back in the event loop, by their name, as long as it runs. Afterwards they do
    nothing. (Those that are the loop's own do what is the default once it is closed.)"""
    def on_signal(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(RuntimeError):     # it is closed
            loop.call_soon_threadsafe(callback, signal.Signals(number).name)

    for number in _NUMBERS:
        signal.signal(number, on_signal)


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
