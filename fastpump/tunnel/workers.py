"""The worker processes: one for each queue, restarted when they exit.

A worker that exits is started again on the same fds: at once, but after a back-off of at most
MAX_BACKOFF_S when it has exited QUICK_EXITS_ALLOWED times in a row within QUICK_EXIT_S. A worker
that cannot start, or set itself up, before any of them ran is a failure of the tunnel. One that
hangs is killed (tunnel/pulse.py), and so restarted. Workers are ended by SIGKILL: they have no
state to save.

A worker writes nothing to its stdout, a pipe whose end means that it has exited. (A pidfd would do,
but the seccomp profiles of old container engines refuse pidfd_open.)
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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastpump._core import SharedTables
from fastpump.tun.queues import TunQueues
from fastpump.tunnel.pulse import TURN_S, Finding, Pulse
from fastpump.worker import EXIT_INTERFACE_GONE, EXIT_SETUP, WorkerArguments

log = logging.getLogger("fastpump.workers")

QUICK_EXIT_S = 1.0
"""A worker that ran for less counts towards the back-off."""
QUICK_EXITS_ALLOWED = 3
MIN_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What the operator chooses of the worker processes."""

    pin: bool = False
    """One CPU for each, if there are enough."""
    busy_poll_us: int = 0
    """How long a worker polls before it sleeps."""


@dataclass(slots=True)
class WorkerProcess:
    """One queue's worker, across restarts."""

    number: int
    doorbell_fd: int
    event_fd: int
    own_cpu: int | None
    """That it is to be pinned to; None: to none."""
    is_pinned: bool | None = None
    """None: that was not tried yet."""
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    is_running: bool = False
    """Whether this process has reported that its loop runs."""
    pulse: Pulse = field(default_factory=Pulse)
    """Of this process."""
    restart_timer: asyncio.TimerHandle | None = None
    restarts: int = 0
    quick_exits: int = 0
    start_error: str = ""
    """Why it could not be started, as it was reported."""

    @property
    def cpu(self) -> int | None:
        """The CPU that it is pinned to now."""
        return self.own_cpu if self.is_pinned else None

    @property
    def pid(self) -> int | None:
        """The pid of the live process; None between an exit and the next start."""
        return None if self.process is None else self.process.pid


def _backoff_s(quick_exits: int) -> float:
    """Twice as long after each quick exit that is not allowed any more; after thousands, too."""
    doublings = min(max(0, quick_exits - QUICK_EXITS_ALLOWED), 10)
    return min(MAX_BACKOFF_S, MIN_BACKOFF_S * (1 << doublings))


def _stderr_tail(process: subprocess.Popen[bytes]) -> str:
    """What a process that exited had written to stderr: one line, which can forge no others in the
    log and no escapes on a terminal."""
    assert process.stderr is not None
    with process.stderr as pipe:
        os.set_blocking(pipe.fileno(), False)
        text = (pipe.read(4096) or b"").decode(errors="replace")
    return "".join(each if each.isprintable() else " " for each in text).strip()


@dataclass(frozen=True, slots=True)
class WorkersCallbacks:
    """What the supervisor is notified of; a worker is named by its number."""

    on_event: Callable[[int], None]
    """The worker's rings may hold something: events, control packets, misdelivered datagrams."""
    on_exit: Callable[[Sequence[int]], None]
    """The processes of these workers have exited; `on_event` was called for what they had left."""
    on_all_running: Callable[[], None]
    """Every worker's loop runs."""
    on_interface_gone: Callable[[], None]
    """A worker found its queue detached."""
    on_cannot_start: Callable[[str], None]
    """A worker cannot set itself up; the sentence says why."""
    on_turn: Callable[[], None] = lambda: None
    """A second has passed, in which the machine may have slept for long."""


class Workers:
    """All workers of a tunnel. They run between `start` and `end`."""

    def __init__(self, tables: SharedTables, tun: TunQueues, callbacks: WorkersCallbacks,
                 options: WorkerOptions) -> None:
        self._tables = tables
        self._tun = tun
        self._callbacks = callbacks
        self._options = options
        self._udp_fds: Sequence[int] = ()
        self._lane_fds: Sequence[int] = ()
        self._has_run = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn_timer: asyncio.TimerHandle | None = None
        cpus = sorted(os.sched_getaffinity(0))
        pin = options.pin and tables.queue_count <= len(cpus)
        if options.pin and not pin:
            log.warning("not pinned: %(queues)d queues and only %(cpus)d CPUs",
                        {"queues": tables.queue_count, "cpus": len(cpus)})
        self.processes: list[WorkerProcess] = []
        for number in range(tables.queue_count):
            doorbell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self.processes.append(WorkerProcess(number, doorbell, event,
                                                cpus[number] if pin else None))

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """The event loop that their exits and events are watched in."""
        self._loop = loop
        for worker in self.processes:
            loop.add_reader(worker.event_fd, self._on_event, worker)
        self._turn_timer = loop.call_later(TURN_S, self._turn)

    def start(self, udp_fds: Sequence[int], lane_fds: Sequence[int]) -> None:
        """Start all: each with its own UDP socket, all with all lane sockets."""
        self._udp_fds, self._lane_fds = udp_fds, lane_fds
        for worker in self.processes:
            self._start(worker)

    def end(self) -> None:
        """Kill all that run."""
        running = [worker.number for worker in self.processes if worker.process is not None]
        for worker in self.processes:
            self._end(worker)
        if running:
            self._callbacks.on_exit(running)

    def close(self) -> None:
        """Close the eventfds, after `end`."""
        if self._turn_timer is not None:
            self._turn_timer.cancel()
        for worker in self.processes:
            if self._loop is not None:
                self._loop.remove_reader(worker.event_fd)
            os.close(worker.event_fd)
            os.close(worker.doorbell_fd)

    def ring(self, numbers: Iterable[int] | None = None) -> None:
        """Wake some, None for all, to look at their staged packets and what was passed on to
        them."""
        for number in range(len(self.processes)) if numbers is None else numbers:
            with contextlib.suppress(BlockingIOError):      # it was filled up, and rings still
                os.eventfd_write(self.processes[number].doorbell_fd, 1)

    def _start(self, worker: WorkerProcess) -> None:
        assert self._loop is not None
        worker.restart_timer = None
        arguments = WorkerArguments(
            interface=self._tun.current_name() or self._tun.name, number=worker.number,
            udp_fd=self._udp_fds[worker.number],
            configuration_fd=self._tables.readonly_fd, state_fd=self._tables.state_fd,
            doorbell_fd=worker.doorbell_fd, event_fd=worker.event_fd,
            busy_poll_us=self._options.busy_poll_us, parent=os.getpid(),
            lane_fds=tuple(self._lane_fds), tun_fds=tuple(self._tun.fds))
        package_dir = str(Path(__file__).resolve().parents[2])
        # -I -S: no environment, no site hooks; what it imports stands next to us. What is compiled
        # goes where ours does.
        compiled = ["-X", f"pycache_prefix={sys.pycache_prefix}"] if sys.pycache_prefix else []
        program = (f"import sys; sys.path.insert(0, {package_dir!r}); "
                   "from fastpump.worker import main; main()")
        worker.started_at = time.monotonic()
        worker.is_running = False
        try:
            # A process group of its own: Ctrl-C is the supervisor's to handle.
            worker.process = subprocess.Popen(
                [sys.executable, "-I", "-S", *["-B"] * sys.dont_write_bytecode, *compiled, "-c",
                 program, *arguments.emit()],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                pass_fds=arguments.fds, process_group=0)
        except OSError as error:
            if not self._has_run:
                self._callbacks.on_cannot_start(
                    f"worker {worker.number} cannot be started: {error.strerror}")
                return
            level = logging.DEBUG if worker.start_error == str(error) else logging.ERROR
            log.log(level, "worker %(worker)d cannot be started: %(error)s; retrying",
                    {"worker": worker.number, "error": error})
            worker.start_error = str(error)
            self._start_later(worker)
            return
        self._pin(worker)
        assert worker.process.stdout is not None
        self._loop.add_reader(worker.process.stdout, self._on_stdout, worker)

    def check_pins(self) -> None:
        """Pin again what the kernel has unpinned: it does when a cpuset changes."""
        for worker in self.processes:
            self._pin(worker)

    def _pin(self, worker: WorkerProcess) -> None:
        """Give a worker its CPU. That may not be allowed, now or again: it is said once."""
        if worker.own_cpu is None or worker.process is None:
            return
        try:
            os.sched_setaffinity(worker.process.pid, {worker.own_cpu})
        except ProcessLookupError:
            return
        except OSError:
            if worker.is_pinned is not False:
                log.warning("worker %(worker)d may not use CPU %(cpu)d any more: it goes on "
                            "unpinned", {"worker": worker.number, "cpu": worker.own_cpu})
            worker.is_pinned = False
            return
        if worker.is_pinned is False:
            log.info("worker %(worker)d is pinned to CPU %(cpu)d again",
                     {"worker": worker.number, "cpu": worker.own_cpu})
        worker.is_pinned = True

    def _start_later(self, worker: WorkerProcess) -> None:
        assert self._loop is not None
        worker.quick_exits += 1
        worker.restart_timer = self._loop.call_later(_backoff_s(worker.quick_exits), self._start,
                                                     worker)

    def _end(self, worker: WorkerProcess) -> None:
        """Kill a worker that is not needed any more."""
        assert self._loop is not None
        if worker.restart_timer is not None:
            worker.restart_timer.cancel()
            worker.restart_timer = None
        if worker.process is not None:
            self._reap(worker)

    def _reap(self, worker: WorkerProcess) -> tuple[int, str]:
        """Kill a worker and wait for it: its status, and the tail of its stderr. What it left in
        its rings is handed on first. (That of one that has exited stays; but one that was taken
        over may only have closed its stdout.)"""
        assert self._loop is not None
        assert worker.process is not None
        assert worker.process.stdout is not None
        worker.process.kill()
        self._loop.remove_reader(worker.process.stdout)
        worker.process.stdout.close()
        status, stderr = worker.process.wait(), _stderr_tail(worker.process)
        worker.process = None
        worker.pulse = Pulse()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(worker.event_fd)    # not to be taken for the next process's
        self._callbacks.on_event(worker.number)
        return status, stderr

    def _on_stdout(self, worker: WorkerProcess) -> None:
        assert worker.process is not None
        assert worker.process.stdout is not None
        if not os.read(worker.process.stdout.fileno(), 4096):
            self._on_exit(worker)

    def _on_exit(self, worker: WorkerProcess) -> None:
        assert self._loop is not None
        assert worker.process is not None
        pid = worker.process.pid
        status, stderr = self._reap(worker)
        self._callbacks.on_exit([worker.number])
        if status == EXIT_INTERFACE_GONE and self._tun.current_name() is None:
            self._callbacks.on_interface_gone()
            return
        if time.monotonic() - worker.started_at >= QUICK_EXIT_S:
            worker.quick_exits = 0
        if status == EXIT_SETUP and not self._has_run:
            self._callbacks.on_cannot_start(
                f"worker {worker.number} cannot start: {stderr or 'it gave no reason'}")
            return
        worker.restarts += 1
        cause = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        log.warning("worker %(worker)d (pid %(pid)d) died of %(cause)s; restarting it%(stderr)s", {
            "worker": worker.number, "pid": pid, "cause": cause,
            "stderr": f": {stderr}" if stderr else ""})
        if worker.quick_exits < QUICK_EXITS_ALLOWED:
            worker.quick_exits += 1
            self._start(worker)
        else:
            self._start_later(worker)

    def _turn(self) -> None:
        """Once a second: whether all move; and have them move."""
        assert self._loop is not None
        self._turn_timer = self._loop.call_later(TURN_S, self._turn)
        for worker in self.processes:
            if worker.process is not None:
                self._feel_pulse(worker, worker.process)
        self.ring()
        self._callbacks.on_turn()

    def _feel_pulse(self, worker: WorkerProcess, process: subprocess.Popen[bytes]) -> None:
        finding = worker.pulse.turn(self._tables.workers.epoch(worker.number),
                                    is_running=worker.is_running)
        seconds = worker.pulse.late_turns * TURN_S
        match finding:
            case Finding.LATE:
                log.warning("worker %(worker)d (pid %(pid)d) has not moved for %(seconds)d seconds",
                            {"worker": worker.number, "pid": process.pid, "seconds": seconds})
            case Finding.HANGS:
                log.error("worker %(worker)d (pid %(pid)d) has not moved for %(seconds)d seconds: "
                          "killing it",
                          {"worker": worker.number, "pid": process.pid, "seconds": seconds})
                process.kill()
            case Finding.BACK:
                log.info("worker %(worker)d (pid %(pid)d) moves again",
                         {"worker": worker.number, "pid": process.pid})

    def _on_event(self, worker: WorkerProcess) -> None:
        try:
            os.eventfd_read(worker.event_fd)
        except BlockingIOError:
            return
        if not worker.is_running:
            worker.is_running, worker.start_error = True, ""
            if worker.restarts:
                log.info("worker %(worker)d is back after %(ms).0f ms", {
                    "worker": worker.number, "ms": (time.monotonic() - worker.started_at) * 1000})
            if all(each.is_running for each in self.processes):
                self._has_run = True
                self._callbacks.on_all_running()
        self._callbacks.on_event(worker.number)
