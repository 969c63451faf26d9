"""The supervisor's side of the worker processes: what they are not believed."""

import asyncio
import os
import subprocess
from types import SimpleNamespace

import pytest

from fastpump._core import SharedTables
from fastpump.tunnel import workers as workers_module
from fastpump.tunnel.workers import WorkerOptions, Workers, WorkersCallbacks
from fastpump.worker import EXIT_INTERFACE_GONE, EXIT_SETUP


@pytest.fixture
def tables():
    tables = SharedTables.create(1, 4, 64)
    yield tables
    tables.close()


def make_workers(tables, seen, *, interface="wg0"):
    """`seen`: where the callbacks' names go, and what they are told; `interface`: its name, None
    for gone."""
    def note(name):
        return lambda *told: seen.extend((name, *told))

    return Workers(tables, SimpleNamespace(fds=[], name="wg0", current_name=lambda: interface),
                   WorkersCallbacks(on_event=note("event"),
                                    on_exit=lambda numbers: note("exit")(tuple(numbers)),
                                    on_all_running=note("running"),
                                    on_interface_gone=note("gone"),
                                    on_cannot_start=note("cannot start")), WorkerOptions())


def test_a_doorbell_that_a_worker_filled_up_does_no_harm(tables):
    workers = make_workers(tables, [])
    try:
        os.eventfd_write(workers.processes[0].doorbell_fd, (1 << 64) - 2)
        workers.ring()
        workers.ring([0])
    finally:
        workers.close()


def run_once(monkeypatch, workers, seen, command):
    """Have a shell command in the worker's place until it has ended once."""
    popen = subprocess.Popen

    def start(_, **options):
        return popen(["/bin/sh", "-c", command], **{**options, "pass_fds": ()})

    async def run():
        workers.attach(asyncio.get_running_loop())
        monkeypatch.setattr(workers_module.subprocess, "Popen", start)
        try:
            workers.start([0], [])
            async with asyncio.timeout(30):
                while not (workers.processes[0].restarts or {"gone", "cannot start"} & set(seen)):
                    await asyncio.sleep(0.01)
        finally:
            workers.end()
            workers.close()

    asyncio.run(run())


@pytest.mark.parametrize(("interface", "is_gone"), [("wg0", False), (None, True)])
def test_an_exit_status_alone_does_not_end_the_tunnel(tables, monkeypatch, interface, is_gone):
    """A worker that says that the interface is gone is believed if it is."""
    seen = []
    workers = make_workers(tables, seen, interface=interface)
    run_once(monkeypatch, workers, seen, f"exit {EXIT_INTERFACE_GONE}")
    assert ("gone" in seen) == is_gone and bool(workers.processes[0].restarts) != is_gone


def test_what_a_worker_leaves_on_stderr_is_one_line(tables, monkeypatch):
    seen = []
    workers = make_workers(tables, seen)
    run_once(monkeypatch, workers, seen,
             rf"printf 'first\nfastpump: forged\033[2J\n' >&2; exit {EXIT_SETUP}")
    assert seen[seen.index("cannot start") + 1] \
        == "worker 0 cannot start: first fastpump: forged [2J"


def test_the_end_of_all_workers_is_told_once(monkeypatch):
    """After what each of them had left: whoever is told looks at all peers."""
    seen, programs, popen = [], [], subprocess.Popen
    monkeypatch.setattr(workers_module.subprocess, "Popen", lambda _, **options: popen(
        ["/bin/cat"], **{**options, "stdin": subprocess.PIPE, "pass_fds": ()}))
    tables = SharedTables.create(3, 4, 64)
    workers = make_workers(tables, seen)
    loop = asyncio.new_event_loop()
    try:
        workers.attach(loop)
        workers.start([0, 0, 0], [])
        programs += [worker.process for worker in workers.processes]
        workers.end()
        assert seen == ["event", 0, "event", 1, "event", 2, "exit", (0, 1, 2)]
        workers.end()               # there are none any more
        assert len(seen) == 8
    finally:
        for program in programs:
            program.stdin.close()
        workers.close()
        loop.close()
        tables.close()
