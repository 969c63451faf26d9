"""Workers that cannot be started: the tunnel does not wait for them for ever."""

import asyncio
import errno
import os
import subprocess
from types import SimpleNamespace

import pytest

from fastpump._core import SharedTables
from fastpump.tunnel.workers import (
    MAX_BACKOFF_S,
    WorkerOptions,
    Workers,
    WorkersCallbacks,
)


@pytest.fixture
def workers():
    """Two, and what they report."""
    tables = SharedTables.create(2, 4, 16)
    said = []
    tun = SimpleNamespace(fds=[0, 0], current_name=lambda: "wg0")
    made = Workers(tables, tun, WorkersCallbacks(
        on_event=lambda _: None, on_exit=lambda _: None, on_all_running=lambda: said.append("run"),
        on_interface_gone=lambda: said.append("gone"), on_cannot_start=said.append),
        WorkerOptions())
    loop = asyncio.new_event_loop()
    made.attach(loop)
    yield made, said, loop
    made.end()
    made.close()
    loop.close()
    tables.close()


def refuse(*_words, **_options):
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def test_a_tunnel_whose_workers_cannot_be_started_fails(workers, monkeypatch):
    made, said, _ = workers
    monkeypatch.setattr(subprocess, "Popen", refuse)
    made.start([0, 0], [])
    reason = f"cannot be started: {os.strerror(errno.EAGAIN)}"
    assert said == [f"worker 0 {reason}", f"worker 1 {reason}"]
    assert all(worker.restart_timer is None for worker in made.processes)


def test_a_tunnel_that_has_run_tries_again(workers, monkeypatch):
    made, said, loop = workers
    for worker in made.processes:
        os.eventfd_write(worker.event_fd, 1)        # as a worker does whose loop runs
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0))
    assert said == ["run"]
    monkeypatch.setattr(subprocess, "Popen", refuse)
    made.start([0, 0], [])
    assert said == ["run"]
    assert all(worker.restart_timer is not None for worker in made.processes)


@pytest.mark.parametrize(("exits", "delay"), [
    (3, 0.2), (4, 0.4), (7, 3.2), (8, MAX_BACKOFF_S), (1100, MAX_BACKOFF_S),
    (10 ** 9, MAX_BACKOFF_S)])
def test_a_worker_that_has_failed_often_is_tried_again(workers, monkeypatch, exits, delay):
    """After an hour and a half it has failed more than a thousand times."""
    made, _, loop = workers
    made._has_run = True
    worker = made.processes[0]
    worker.quick_exits = exits
    monkeypatch.setattr(subprocess, "Popen", refuse)
    before = loop.time()
    made.start([0, 0], [])
    assert before <= worker.restart_timer.when() - delay <= loop.time()
