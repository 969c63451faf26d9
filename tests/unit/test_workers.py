"""Which CPU a worker may have."""

import errno
import logging
import os
from types import SimpleNamespace

import pytest

from fastpump._core import SharedTables
from fastpump.tunnel.workers import WorkerOptions, Workers


@pytest.fixture
def host(monkeypatch):
    """CPUs that may change: `allowed`; and what was pinned to them, {pid: CPUs}."""
    made = SimpleNamespace(allowed={0, 1, 5}, pinned={})

    def pin(pid, wanted):
        if not wanted & made.allowed:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        made.pinned[pid] = wanted

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: made.allowed)
    monkeypatch.setattr(os, "sched_setaffinity", pin)
    return made


@pytest.fixture
def workers(host):
    """Three, each with a process."""
    tables = SharedTables.create(3, 4, 16)
    made = Workers(tables, SimpleNamespace(fds=[]), SimpleNamespace(), WorkerOptions(pin=True))
    for worker in made.processes:
        worker.process = SimpleNamespace(pid=100 + worker.number)
    yield made
    made.close()
    tables.close()


def test_cpus_that_go_and_come_back_are_told_once_and_end_nothing(host, workers, caplog,
                                                                  monkeypatch):
    monkeypatch.setattr(logging.getLogger("fastpump"), "propagate", True)
    caplog.set_level(logging.INFO)
    workers.check_pins()
    assert host.pinned == {100: {0}, 101: {1}, 102: {5}}
    assert [worker.cpu for worker in workers.processes] == [0, 1, 5]
    host.allowed = {0, 1}
    for _ in range(3):
        workers.check_pins()
    assert [worker.cpu for worker in workers.processes] == [0, 1, None]
    assert caplog.messages == ["worker 2 may not use CPU 5 any more: it goes on unpinned"]
    host.allowed = {0, 1, 5}
    for _ in range(3):
        workers.check_pins()
    assert [worker.cpu for worker in workers.processes] == [0, 1, 5]
    assert caplog.messages[1:] == ["worker 2 is pinned to CPU 5 again"]


def test_a_worker_that_has_just_ended_is_left_alone(workers, monkeypatch):
    def gone(_pid, _cpus):
        raise ProcessLookupError(errno.ESRCH, "no such process")

    monkeypatch.setattr(os, "sched_setaffinity", gone)
    workers.check_pins()
    assert [worker.is_pinned for worker in workers.processes] == [None] * 3
