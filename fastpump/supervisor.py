"""The supervisor: one asyncio loop that keeps the workers running and the device fed.

Who owns what: the supervisor owns every fd (queues, sockets, shared memory, eventfds)
for the tunnel's whole life; workers inherit them. A worker that dies is started again on
the same fds, so the interface stays, the kernel keeps what arrives meanwhile, and send
counters go on where they were (they live in the shared memory).

Workers and sockets are there while the interface is up. When it goes down they end, and
the device forgets its sessions, as with the kernel's WireGuard. Another UDP port needs other
sockets, hence other workers: the sessions stay.

Workers end with the supervisor whatever ends it (PR_SET_PDEATHSIG); they have no state
to save, so stopping one is SIGKILL.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastpump import cookie
from fastpump._core import Intake, SharedTables
from fastpump.constants import SECOND
from fastpump.device import Device, Surroundings
from fastpump.endpoint import Endpoint
from fastpump.errors import SystemSetupError
from fastpump.handshakes import Handshakes
from fastpump.netdev import TunQueues
from fastpump.peer import Peer
from fastpump.sockets import SocketGroup, preferred_family
from fastpump.worker import EXIT_INTERFACE_GONE, EXIT_SETUP

log = logging.getLogger("fastpump.supervisor")

# A worker that dies this soon after its start is held back before the next try.
QUICK_DEATH_S = 1.0
MAX_BACKOFF_S = 5.0
RECLAIM_INTERVAL_S = 1.0
# Receive calls in a row on the handshake socket before others have their turn.
INTAKES_PER_WAKEUP = 8


def now_ns() -> int:
    """CLOCK_BOOTTIME, the clock of the data plane."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


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


class Supervisor:
    """Runs `device`'s workers, sockets and timers until `stop` is called."""

    def __init__(self, tables: SharedTables, tun: TunQueues, *, listen_port: int | None = None,
                 fwmark: int = 0, gro: bool = True, pin: bool = False, busy_poll_us: int = 0,
                 is_unanswered: Callable[[Peer], None] = lambda _: None) -> None:
        """`listen_port` as for SocketGroup; `gro`: receive trains of datagrams."""
        self._tables = tables
        self._tun = tun
        self._gro = gro
        self._busy_poll_us = busy_poll_us
        self._wanted_port = listen_port
        self._fwmark = fwmark
        self._last_port = 0
        self._sockets: SocketGroup | None = None
        self._is_wanted_up = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: int | None = None
        self._reclaimer: asyncio.TimerHandle | None = None
        self._is_serving = False
        self._ready = asyncio.Event()
        self._stopped = asyncio.Event()
        self.stop_reason = ""
        self.failure: str | None = None
        cpus = sorted(os.sched_getaffinity(0))
        if pin and tables.queue_count > len(cpus):
            log.warning("not pinned: %d queues and only %d CPUs", tables.queue_count, len(cpus))
            pin = False
        self.workers: list[WorkerProcess] = []
        for number in range(tables.queue_count):
            doorbell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self.workers.append(WorkerProcess(number, doorbell, event,
                                              cpus[number] if pin else None))
        self.family = preferred_family()
        self._intake = Intake()
        self.device = Device(tables, Surroundings(
            transmit=self._transmit, ring=self._ring, schedule=self._schedule,
            unix_ns=time.time_ns, jitter=random.randrange,
            endpoint_is_known=self._note_endpoint, is_unanswered=is_unanswered,
        ), self.family, cpu_count=len(cpus))
        self._handshakes = Handshakes(self.device, self._intake, self._pass_on)

    # -- what may change while it runs

    @property
    def listen_port(self) -> int:
        """The UDP port; while the interface is down the wanted one, 0 for any."""
        return self._sockets.port if self._sockets is not None else self._wanted_port or 0

    def set_listen_port(self, port: int) -> None:
        """Receive on another port, 0 for any; SystemSetupError if it cannot be had, and
        then nothing has changed."""
        if port and port == self.listen_port and self._sockets is not None:
            return
        if self._sockets is None:
            before, self._wanted_port = self._wanted_port, port
            if self._is_wanted_up:      # the port before this one was taken
                try:
                    self._bring_up()
                except SystemSetupError:
                    self._wanted_port = before
                    raise
            return
        old, self._sockets = self._sockets, self._open_sockets(port)
        self._wanted_port = port
        self._leave(old)
        self._enter()

    @property
    def fwmark(self) -> int:
        """The firewall mark of what we send; 0 for none."""
        return self._fwmark

    def set_fwmark(self, fwmark: int) -> None:
        """Mark what is sent from now on; 0 for no mark."""
        if self._sockets is not None:
            self._sockets.set_fwmark(fwmark)
        self._fwmark = fwmark

    def set_private_key(self, private_key: bytes) -> None:
        """Be somebody else; zeros for nobody."""
        self.device.set_private_key(private_key)
        public = self.device.public_key
        if public is None:
            self._intake.set_keys(None, None)
        else:
            self._intake.set_keys(cookie.mac1_key(public), cookie.cookie_key(public))
        self.settle()

    def settle(self) -> None:
        """To be called after the device was changed from outside."""
        self._schedule()
        if self._tables.has_retired and self._reclaimer is None and self._loop is not None:
            self._reclaimer = self._loop.call_later(RECLAIM_INTERVAL_S, self._reclaim)

    @property
    def verdicts(self) -> Counter[str]:
        """Handshake messages by what became of them."""
        return self.device.verdicts + self._handshakes.verdicts + Counter(self._intake.verdicts)

    # -- life

    async def run(self, on_ready: Callable[[], None], *, is_up: bool) -> None:
        """Start everything, call `on_ready`, and go on until `stop`; then end it all.
        `is_up`: whether the interface is, so that we are ready when all workers run."""
        loop = self._loop = asyncio.get_running_loop()
        try:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, self.stop, f"on {signal.Signals(number).name}")
            loop.set_exception_handler(self._on_exception)
            for worker in self.workers:
                loop.add_reader(worker.event_fd, self._on_event, worker)
            self.settle()
            if is_up:
                self._is_wanted_up = True
                self._bring_up()
                await self._ready_or_stopped()
            if not self._stopped.is_set():
                on_ready()
                await self._stopped.wait()
        finally:
            self._shut_down()
        if self.failure is not None:
            raise SystemSetupError(self.failure)

    def interface_changed(self, *, is_up: bool) -> None:
        """The interface was set up or down."""
        if self._stopped.is_set() or self._loop is None or is_up == self._is_wanted_up:
            return
        self._is_wanted_up = is_up
        if is_up:
            try:
                self._bring_up()
            except SystemSetupError as error:
                log.error("the interface is up, but %s", error)
        elif self._sockets is not None:
            log.info("the interface is down")
            self._leave(self._sockets)
            self._sockets = None
            self.device.stop()
            self.settle()
            self._ready.set()       # as ready as it will be, if this came before all workers ran

    def _bring_up(self) -> None:
        self._sockets = self._open_sockets(self._wanted_port)
        self.device.start(now_ns())
        self._enter()
        self.settle()

    def _open_sockets(self, port: int | None) -> SocketGroup:
        """Any port is the one that we had before, if that is free still."""
        def open_group(port: int | None) -> SocketGroup:
            return SocketGroup(len(self.workers), port, self.family, fwmark=self._fwmark,
                               gro=self._gro)

        if not port and self._last_port:
            with contextlib.suppress(SystemSetupError):
                return open_group(self._last_port)
        group = open_group(port)
        self._last_port = group.port
        return group

    def _enter(self) -> None:
        """Start to receive on new sockets."""
        assert self._loop is not None
        assert self._sockets is not None
        self._loop.add_reader(self._sockets.handshake, self._on_handshake)
        for worker in self.workers:
            self._start(worker)

    def _leave(self, sockets: SocketGroup) -> None:
        """Stop to receive, and close the sockets."""
        assert self._loop is not None
        self._loop.remove_reader(sockets.handshake)
        for worker in self.workers:
            self._end(worker)
        sockets.close()

    async def _ready_or_stopped(self) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (self._ready, self._stopped)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def _on_exception(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """A bug of ours in a callback: say so and end, rather than go on half dead. What
        asyncio tells of its own (no fd left to accept a control client, say) passes."""
        error = context.get("exception")
        if "handle" not in context:
            log.warning("%s: %s", context.get("message"), error)
            return
        log.error("%s: %r", context.get("message"), error,
                  exc_info=error if isinstance(error, BaseException) else None)
        self.failure = self.failure or f"internal error: {error!r}; this is a bug, please report it"
        self.stop("on an internal error")

    def stop(self, reason: str) -> None:
        """End `run` soon; the first reason counts."""
        self.stop_reason = self.stop_reason or reason
        self._stopped.set()

    def _shut_down(self) -> None:
        self._stopped.set()             # whatever is called back from now on does nothing
        for timer in (self._timer, self._reclaimer):
            if timer is not None:
                timer.cancel()
        assert self._loop is not None
        if self._sockets is not None:
            self._leave(self._sockets)
        for worker in self.workers:
            self._loop.remove_reader(worker.event_fd)
            os.close(worker.event_fd)
            os.close(worker.doorbell_fd)

    # -- workers

    def _start(self, worker: WorkerProcess) -> None:
        assert self._loop is not None
        worker.restart_timer = None
        if self._stopped.is_set() or self._sockets is None:
            return
        fds = (self._sockets.workers[worker.number].fileno(), self._tables.fd,
               worker.doorbell_fd, worker.event_fd)
        package_dir = str(Path(__file__).resolve().parent.parent)
        # -I -S: no environment, no site hooks; what it imports stands next to us.
        program = (f"import sys; sys.path.insert(0, {package_dir!r}); "
                   "from fastpump.worker import main; main()")
        arguments = [worker.number, *fds, -1 if worker.cpu is None else worker.cpu,
                     self._busy_poll_us, os.getpid(), *self._tun.fds]
        worker.started_at = time.monotonic()
        worker.is_running = False
        try:
            # A process group of its own: Ctrl-C is the supervisor's to handle.
            worker.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", program, *map(str, arguments)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                pass_fds=(*fds, *self._tun.fds), process_group=0)
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
        if not self._stopped.is_set():
            self._hear(worker)                  # what it had no time to tell
            self.device.worker_is_dead(worker.number)
        return status, said

    def _on_death(self, worker: WorkerProcess) -> None:
        assert self._loop is not None
        assert worker.process is not None
        pid = worker.process.pid
        status, said = self._bury(worker)
        if self._stopped.is_set():
            return
        if status == EXIT_INTERFACE_GONE:
            self.stop("because the interface was deleted")
            return
        lived = time.monotonic() - worker.started_at
        if lived >= QUICK_DEATH_S:
            worker.quick_deaths = 0
        if status == EXIT_SETUP and not self._ready.is_set():
            self.failure = f"worker {worker.number} cannot start: {said or 'it says no reason'}"
            self.stop("because a worker cannot start")
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
            if all(each.is_running for each in self.workers):
                self._ready.set()
        self._hear(worker)

    def _hear(self, worker: WorkerProcess) -> None:
        """Take the events and the stray handshake messages of a worker."""
        self.device.handle_events(worker.number, now_ns())
        for message, sockaddr, local in self._tables.worker_messages(worker.number):
            self._handshakes.take_stray(message, sockaddr, local, now_ns())
            self._serve_handshakes()
        self.settle()

    def _ring(self) -> None:
        for worker in self.workers:
            os.eventfd_write(worker.doorbell_fd, 1)

    # -- handshakes

    def _on_handshake(self) -> None:
        for _ in range(INTAKES_PER_WAKEUP):
            if self._sockets is None:
                return
            try:
                if not self._handshakes.receive(self._sockets.handshake.fileno(), now_ns()):
                    break
            except OSError as error:    # what ICMP said of an earlier send
                log.debug("handshake socket: %s", error)
        self._serve_handshakes()

    def _serve_handshakes(self) -> None:
        """Serve what waits; what is left when the slice of time is used up, later."""
        if not self._is_serving:
            self._go_on_serving()

    def _go_on_serving(self) -> None:
        assert self._loop is not None
        if self._stopped.is_set():
            return
        self._is_serving = self._handshakes.serve(now_ns)
        if self._is_serving:
            self._loop.call_soon(self._go_on_serving)
        self.settle()

    def _pass_on(self, message: bytes, sockaddr: bytes, local: bytes) -> None:
        """A transport message came with a handshake message: it is its worker's."""
        number = message[4] & ((1 << (len(self.workers) - 1).bit_length()) - 1)
        if number < len(self.workers) and self._tables.worker_inject(
                number, message, sockaddr, local):
            os.eventfd_write(self.workers[number].doorbell_fd, 1)

    def _transmit(self, message: bytes, endpoint: Endpoint, local: bytes) -> None:
        if self._sockets is None:
            return
        try:
            self._sockets.send_handshake(message, endpoint, local)
        except OSError as error:
            log.debug("nothing can be sent to %s now: %s", endpoint, error)

    def _note_endpoint(self, endpoint: Endpoint) -> None:
        self._intake.add_known(endpoint.sockaddr(self.family))

    # -- timers

    def _schedule(self) -> None:
        """Have the device's next deadline served."""
        deadline = self.device.next_deadline()
        if self._loop is None or deadline is None:
            return
        if self._timer is not None:
            if self._timer_at is not None and self._timer_at <= deadline:
                return
            self._timer.cancel()
        self._timer_at = deadline
        delay = max(0, deadline - now_ns()) / SECOND
        self._timer = self._loop.call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = self._timer_at = None
        self.device.tick(now_ns())
        self.settle()

    def _reclaim(self) -> None:
        """Wipe retired keys once no worker can hold them."""
        self._reclaimer = None
        self._tables.reclaim()
        self.settle()
