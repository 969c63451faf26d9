"""A worker that does not move is noticed by the turns of its supervisor."""

import errno
import os
from types import SimpleNamespace

import pytest

from fastpump._core import SharedTables
from fastpump.tunnel.pulse import (
    KILLED_TURNS,
    SAID_TURNS,
    START_TURNS,
    Finding,
    Pulse,
)
from fastpump.tunnel.workers import WorkerOptions, Workers, WorkersCallbacks

NOTHING_NEW, LATE, HANGS, BACK = Finding

# The epoch at each turn, and what that shows of a worker whose loop runs.
LIVES = {
    "busy, then idle": ([5, 91, 4000, 4002, 4004], [NOTHING_NEW] * 5),
    "late once, often": ([5, 5, 7, 7, 9, 9, 11], [NOTHING_NEW] * 7),
    "back": ([5, 5, 5, 7, 7], [NOTHING_NEW, NOTHING_NEW, LATE, BACK, NOTHING_NEW]),
    "late again": ([5, 5, 5, 7, 7, 7], [NOTHING_NEW, NOTHING_NEW, LATE, BACK, NOTHING_NEW, LATE]),
    "hangs": ([5] * 6, [NOTHING_NEW, NOTHING_NEW, LATE, NOTHING_NEW, NOTHING_NEW, HANGS]),
    "does not even die": ([5] * 9, [NOTHING_NEW, NOTHING_NEW, LATE, NOTHING_NEW, NOTHING_NEW,
                                    HANGS, NOTHING_NEW, NOTHING_NEW, NOTHING_NEW]),
}


@pytest.mark.parametrize("life", LIVES)
def test_what_the_turns_show(life):
    epochs, findings = LIVES[life]
    pulse = Pulse()
    assert [pulse.turn(epoch, is_running=True) for epoch in epochs] == findings


def test_a_start_may_take_longer_but_not_for_ever():
    pulse = Pulse()
    found = [pulse.turn(4, is_running=False) for _ in range(START_TURNS + 3)]
    assert found.index(HANGS) == START_TURNS and set(found) == {NOTHING_NEW, HANGS}

    pulse = Pulse()
    for _ in range(START_TURNS - 1):
        assert pulse.turn(4, is_running=False) is NOTHING_NEW
    assert pulse.turn(6, is_running=True) is NOTHING_NEW


class Loop:
    """Calls nothing by itself: a turn is taken when a test says so."""

    def __init__(self):
        self.waiting = []
        self._readers = {}

    def add_reader(self, fd, callback, *arguments):
        self._readers[fd] = callback, arguments

    def remove_reader(self, fd):
        self._readers.pop(fd, None)

    def read(self, fd):
        callback, arguments = self._readers[fd]
        callback(*arguments)

    def call_later(self, delay, callback, *arguments):
        self.waiting.append((delay, callback, *arguments))
        return SimpleNamespace(cancel=self.waiting.clear)

    def call_all(self):
        before, self.waiting = self.waiting, []
        for _, callback, *arguments in before:
            callback(*arguments)

    def take_turn(self):
        ((delay, callback),) = self.waiting
        self.waiting.clear()
        callback()
        return delay


@pytest.fixture
def herd():
    """(loop, workers, pids that were killed) of two workers that do not move."""
    tables = SharedTables.create(2, 4, 16)
    loop, killed = Loop(), []
    ignore = WorkersCallbacks(*[lambda *_: None] * 5)
    tun = SimpleNamespace(fds=[], current_name=lambda: "wg0")
    workers = Workers(tables, tun, ignore, WorkerOptions())
    for worker in workers.processes:
        pid = 4711 + worker.number
        worker.process = SimpleNamespace(pid=pid, kill=lambda pid=pid: killed.append(pid))
        worker.is_running = True
    workers.attach(loop)
    yield loop, workers, killed
    workers.close()
    assert loop.waiting == []           # nothing is timed after the end
    tables.close()


def test_each_turn_rings_all_and_the_next_is_a_second_later(herd):
    """However long this one took: turns that were missed are not caught up."""
    loop, workers, _ = herd
    for _ in range(3):
        assert loop.take_turn() == 1.0
        for worker in workers.processes:
            with open(worker.doorbell_fd, "rb", buffering=0, closefd=False) as doorbell:
                assert int.from_bytes(doorbell.read(8), "little") == 1


def test_a_worker_that_hangs_is_reported_and_killed_once(herd, caplog):
    loop, workers, killed = herd
    workers.processes[0].process = None         # it has just exited
    for turn in range(KILLED_TURNS + 5):
        assert killed == ([4712] if turn > KILLED_TURNS else [])
        assert workers.processes[1].pulse.unresponsive_s == (
            turn - 1 if turn > SAID_TURNS else 0)
        loop.take_turn()
    assert [record.getMessage() for record in caplog.records] == [
        "worker 1 (pid 4712) has not moved for 2 seconds",
        "worker 1 (pid 4712) has not moved for 5 seconds: killing it"]


def test_a_worker_that_cannot_be_started_is_reported_once(herd, caplog, monkeypatch):
    """There may be no file descriptor left for long."""
    loop, workers, _ = herd
    errors = []

    def refuse(*_arguments, **_options):
        raise OSError(*errors[-1])

    monkeypatch.setattr("fastpump.tunnel.workers.subprocess.Popen", refuse)
    for worker in workers.processes:        # all have run before
        worker.is_running = False
        os.eventfd_write(worker.event_fd, 1)
        loop.read(worker.event_fd)
        worker.process = None
    errors.append((errno.EMFILE, "Too many open files"))
    workers.start([0, 0], [])
    for _ in range(5):
        loop.call_all()
    errors.append((errno.ENOMEM, "Cannot allocate memory"))
    for _ in range(5):
        loop.call_all()
    workers.end()
    assert [record.getMessage() for record in caplog.records] == [
        f"worker {number} cannot be started: [Errno {error}] {text}; retrying"
        for error, text in errors for number in (0, 1)]
