"""Signals while something is made and unmade."""

import asyncio
import os
import signal
import threading

import pytest

from fastpump.process import signals


def test_nothing_interrupts_the_way_back():
    done = []
    with signals.unwinding():
        signals.ignore()
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("unmade")
    assert done == ["unmade"]


def test_a_signal_unwinds():
    before = signal.getsignal(signal.SIGHUP)
    with pytest.raises(SystemExit) as ended, signals.unwinding():
        os.kill(os.getpid(), signal.SIGHUP)
    assert ended.value.code == 128 + signal.SIGHUP
    assert signal.getsignal(signal.SIGHUP) is before


def test_signals_are_told_while_a_loop_runs_and_do_nothing_once_it_is_closed():
    """What it ran for is unmade then."""
    told, loop = [], asyncio.new_event_loop()

    async def run():
        signals.tell(loop, lambda name: (told.append(name), ended.set()))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            ended = asyncio.Event()
            loop.call_soon(os.kill, os.getpid(), number)
            await asyncio.wait_for(ended.wait(), 20)

    with signals.unwinding():
        try:
            loop.run_until_complete(run())
        finally:
            loop.close()
        os.kill(os.getpid(), signal.SIGTERM)
    assert told == ["SIGTERM", "SIGINT", "SIGHUP"]


def test_a_loop_that_waits_is_woken_by_a_signal():
    loop = asyncio.new_event_loop()

    async def run():
        ended = asyncio.Event()
        signals.tell(loop, lambda name: ended.set())
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        await ended.wait()          # for ever, with nothing else to do
        timer.join()

    with signals.unwinding():
        try:
            loop.run_until_complete(asyncio.wait_for(run(), 20))
        finally:
            loop.close()
