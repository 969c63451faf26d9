"""Signals while something is made and unmade."""

import os
import signal

import pytest

from fastpump.process import signals


def test_a_deferred_signal_ends_what_is_made_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    done = []
    with pytest.raises(SystemExit) as ended, signals.unwinding():
        with signals.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("made and noted")
        done.append("never")
    assert ended.value.code == 128 + signal.SIGTERM and done == ["made and noted"]
    assert signal.getsignal(signal.SIGTERM) is before
    with signals.unwinding(), signals.deferred():
        pass                        # the one of the last time is forgotten


def test_nothing_interrupts_the_way_back():
    done = []
    with signals.unwinding():
        signals.ignore()
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("unmade")
    assert done == ["unmade"]


def test_a_signal_unwinds():
    with pytest.raises(SystemExit) as ended, signals.unwinding():
        os.kill(os.getpid(), signal.SIGHUP)
    assert ended.value.code == 128 + signal.SIGHUP
