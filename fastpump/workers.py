"""The worker processes: one for each queue, started again when they die.

A worker that dies is started on the same fds. One that dies again and again soon after its
start is held back; one that cannot even set itself up, the first time, is a failure. Ending
one is SIGKILL: it has no state to save.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastpump._core import SharedTables
from fastpump.netdev import TunQueues
from fastpump.worker import EXIT_INTERFACE_GONE, EXIT_SETUP

log = logging.getLogger("fastpump.workers")

# A worker that dies this soon after its start is held back before the next try.
QUICK_DEATH_S = 1.0
MAX_BACKOFF_S = 5.0


@dataclass(slots=True)
class WorkerProcess:
    """One worker, over all its incarnations."""

    number: int
    doorbell_fd: int
    event_fd: int
    cpu: int | None
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    started_at: float = 0.0
    is_running: bool = False
    """Whether this incarnation has told that its loop runs."""
    restart_timer: asyncio.TimerHandle | None = None
    restarts: int = 0
    quick_deaths: int = 0

    @property
    def pid(self) -> int | None:
        """The pid of the live process, None between a death and the next start."""
        return None if self.process is None else self.process.pid


def _last_words(process: subprocess.Popen[bytes]) -> str:
    """What a process that ended has written to stderr."""
    assert process.stderr is not None
    with process.stderr as pipe:
        os.set_blocking(pipe.fileno(), False)
        return (pipe.read(4096) or b"").decode(errors="replace").strip()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Whom the workers' lives concern; workers go by their numbers."""

    hear: Callable[[int], None]
    """A worker has something to tell."""
    is_dead: Callable[[int], None]
    """A worker's process has ended."""
    all_run: Callable[[], None]
    """All workers' loops run."""
    interface_is_gone: Callable[[], None]
    """A worker found its queue detached."""
    cannot_start: Callable[[str], None]
    """A worker cannot set itself up; the sentence says why."""


class Workers:
    """All workers of a tunnel. They run between `start` and `end`."""

    def __init__(self, tables: SharedTables, tun: TunQueues, surroundings: Surroundings, *,
                 pin: bool, busy_poll_us: int) -> None:
        self._tables = tables
        self._tun = tun
        self._world = surroundings
        self._busy_poll_us = busy_poll_us
        self._udp_fds: Sequence[int] = ()
        self._lane_fds: Sequence[int] = ()
        self._has_run = False
        self._loop: asyncio.AbstractEventLoop | None = None
        cpus = sorted(os.sched_getaffinity(0))
        if pin and tables.queue_count > len(cpus):
            log.warning("not pinned: %d queues and only %d CPUs", tables.queue_count, len(cpus))
            pin = False
        self.processes: list[WorkerProcess] = []
        for number in range(tables.queue_count):
            doorbell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self.processes.append(WorkerProcess(number, doorbell, event,
                                                cpus[number] if pin else None))

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """The event loop that watches over them."""
        self._loop = loop
        for worker in self.processes:
            loop.add_reader(worker.event_fd, self._on_event, worker)

    def start(self, udp_fds: Sequence[int], lane_fds: Sequence[int]) -> None:
        """Start all, each with its UDP socket, and all with the lane sockets."""
        self._udp_fds, self._lane_fds = udp_fds, lane_fds
        for worker in self.processes:
            self._start(worker)

    def end(self) -> None:
        """Kill all that run."""
        for worker in self.processes:
            self._end(worker)

    def close(self) -> None:
        """Give back the eventfds; the workers have been ended."""
        for worker in self.processes:
            if self._loop is not None:
                self._loop.remove_reader(worker.event_fd)
            os.close(worker.event_fd)
            os.close(worker.doorbell_fd)

    def ring(self) -> None:
        """Have all look at what they have staged."""
        for worker in self.processes:
            os.eventfd_write(worker.doorbell_fd, 1)

    def ring_one(self, number: int) -> None:
        """Have one look at what was passed on to it."""
        os.eventfd_write(self.processes[number].doorbell_fd, 1)

    def _start(self, worker: WorkerProcess) -> None:
        assert self._loop is not None
        worker.restart_timer = None
        fds = (self._udp_fds[worker.number], self._tables.fd,
               worker.doorbell_fd, worker.event_fd)
        package_dir = str(Path(__file__).resolve().parent.parent)
        # -I -S: no environment, no site hooks; what it imports stands next to us.
        program = (f"import sys; sys.path.insert(0, {package_dir!r}); "
                   "from fastpump.worker import main; main()")
        arguments = [worker.number, *fds, -1 if worker.cpu is None else worker.cpu,
                     self._busy_poll_us, os.getpid(), len(self._lane_fds), *self._lane_fds,
                     *self._tun.fds]
        worker.started_at = time.monotonic()
        worker.is_running = False
        try:
            # A process group of its own: Ctrl-C is the supervisor's to handle.
            worker.process = subprocess.Popen(
                [sys.executable, "-I", "-S", *["-B"] * sys.dont_write_bytecode, "-c", program,
                 *map(str, arguments)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                pass_fds=(*fds, *self._lane_fds, *self._tun.fds), process_group=0)
            worker.pidfd = os.pidfd_open(worker.process.pid)
        except OSError as error:
            log.error("worker %d cannot be started: %s; trying again", worker.number, error)
            if worker.process is not None:
                worker.process.kill()
                worker.process.wait()
                worker.process = None
            self._start_later(worker)
            return
        self._loop.add_reader(worker.pidfd, self._on_death, worker)

    def _start_later(self, worker: WorkerProcess) -> None:
        assert self._loop is not None
        worker.quick_deaths += 1
        delay = min(MAX_BACKOFF_S, 0.1 * 2 ** max(0, worker.quick_deaths - 3))
        worker.restart_timer = self._loop.call_later(delay, self._start, worker)

    def _end(self, worker: WorkerProcess) -> None:
        """Kill a worker that is not needed any more."""
        assert self._loop is not None
        if worker.restart_timer is not None:
            worker.restart_timer.cancel()
            worker.restart_timer = None
        if worker.process is not None:
            worker.process.kill()
            self._bury(worker)

    def _bury(self, worker: WorkerProcess) -> tuple[int, str]:
        """Take leave of a worker whose process ends: its exit status, and its last words."""
        assert self._loop is not None
        assert worker.process is not None
        self._loop.remove_reader(worker.pidfd)
        os.close(worker.pidfd)
        status, said = worker.process.wait(), _last_words(worker.process)
        worker.process = None
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(worker.event_fd)    # not to be taken for the next one's
        self._world.hear(worker.number)         # what it had no time to tell
        self._world.is_dead(worker.number)
        return status, said

    def _on_death(self, worker: WorkerProcess) -> None:
        assert self._loop is not None
        assert worker.process is not None
        pid = worker.process.pid
        status, said = self._bury(worker)
        if status == EXIT_INTERFACE_GONE:
            self._world.interface_is_gone()
            return
        lived = time.monotonic() - worker.started_at
        if lived >= QUICK_DEATH_S:
            worker.quick_deaths = 0
        if status == EXIT_SETUP and not self._has_run:
            self._world.cannot_start(
                f"worker {worker.number} cannot start: {said or 'it says no reason'}")
            return
        worker.restarts += 1
        cause = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        log.warning("worker %d (pid %d) died of %s; starting it again%s", worker.number, pid,
                    cause, f": {said}" if said else "")
        if worker.quick_deaths < 3:
            worker.quick_deaths += 1
            self._start(worker)
        else:
            self._start_later(worker)

    def _on_event(self, worker: WorkerProcess) -> None:
        try:
            os.eventfd_read(worker.event_fd)
        except BlockingIOError:
            return
        if not worker.is_running:
            worker.is_running = True
            if worker.restarts:
                log.info("worker %d is back after %.0f ms", worker.number,
                         (time.monotonic() - worker.started_at) * 1000)
            if all(each.is_running for each in self.processes):
                self._has_run = True
                self._world.all_run()
        self._world.hear(worker.number)
