"""Signals while something is made and unmade."""

import os
import signal

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
