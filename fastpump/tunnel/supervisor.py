"""The supervisor: one asyncio loop that keeps the workers running and the device fed.

Who owns what: the supervisor owns every fd (queues, sockets, shared memory, eventfds)
for the tunnel's whole life; workers inherit them. A worker that dies is started again on
the same fds, so the interface stays, the kernel keeps what arrives meanwhile, and send
counters go on where they were (they live in the shared memory).

Workers and sockets are there while the interface is up. When it goes down they end, and
the device forgets its sessions, as with the kernel's WireGuard. Another UDP port needs other
sockets, hence other workers: the sessions stay.

Workers (tunnel/workers.py) end with the supervisor whatever ends it (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from fastpump import cpus
from fastpump._core import ADMISSION_BATCH, Admission, SharedTables
from fastpump.clock import now_ns
from fastpump.conn.endpoint import Endpoint
from fastpump.conn.sockets import SocketDrops, SocketGroup, preferred_family, source_towards
from fastpump.device.callbacks import DeviceCallbacks
from fastpump.device.device import Device
from fastpump.device.events import ControlPacket, WorkerEvent
from fastpump.device.handshake_queue import HandshakeQueue, QueueCallbacks
from fastpump.device.lane_context import Options
from fastpump.device.peer import Peer
from fastpump.errors import SystemSetupError
from fastpump.protocol import cookie
from fastpump.tun.loop_guard import LoopGuard
from fastpump.tun.queues import TunQueues
from fastpump.tunnel.alarms import Alarms
from fastpump.tunnel.containment import Containment
from fastpump.tunnel.loops import Loops
from fastpump.tunnel.timestamp_files import TimestampFiles
from fastpump.tunnel.ways import Ways
from fastpump.tunnel.workers import WorkerOptions, WorkerProcess, Workers, WorkersCallbacks
from fastpump.verdicts import Verdict

log = logging.getLogger("fastpump.supervisor")

# Receive calls in a row on the handshake socket before anything else is served.
RECEIVES_PER_WAKEUP = 8
# Control packets of one peer that are handled then. Its worker drops what exceeds a rate
# (hot/upcall.pxd): this is for workers that do not.
CONTROLS_PER_WAKEUP = 16

ON_REQUEST = "on request"
"""Why it stops if `down` asked for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorOptions:
    """How a tunnel receives and sends."""

    listen_port: int | None = None
    """As for SocketGroup."""
    fwmark: int = 0
    dscp: int | str = 0
    """Of data: a number, or "copy"."""
    max_pause_us: int = 0
    """Of workers to which many packets come; 0: none (hot/moderation.pxd)."""
    gro: bool = True
    """Receive trains of datagrams (UDP GRO)."""
    lanes: Options | None = None
    """None: WireGuard only."""
    is_steered: bool = False
    """A program gives both directions of a flow to one queue (tun/steering.py)."""
    loop_guard: LoopGuard | None = None
    workers: WorkerOptions = field(default_factory=WorkerOptions)


class Supervisor:
    """Runs `device`'s workers, sockets and timers until `stop` is called."""

    def __init__(self, tables: SharedTables, tun: TunQueues, options: SupervisorOptions, *,
                 on_unanswered: Callable[[Peer], None] = lambda _: None) -> None:
        """`on_unanswered`: an initiation to the peer was not answered in time."""
        self._tables = tables
        self._options = options
        self._wanted_port = options.listen_port
        self._fixed_dscp = options.dscp if isinstance(options.dscp, int) else 0
        tables.set_dscp(options.dscp)
        tables.max_pause_us = options.max_pause_us
        self._fwmark = options.fwmark
        self.mark_of_rules = 0
        """0: there are none."""
        self.on_port_or_mark: Callable[[], None] = lambda: None
        """Called when `listen_port` or `fwmark` may be another."""
        self._last_port = 0
        self._sockets: SocketGroup | None = None
        self._is_wanted_up = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.contained = Containment()
        """For whatever else runs in the loop."""
        self._alarms = Alarms(tables, self.contained)
        self._is_serving = False
        self._ready = asyncio.Event()
        self._stopped = asyncio.Event()
        self.stop_reason = ""
        """Of `stop`; empty before."""
        self.failure: str | None = None
        self._workers = Workers(tables, tun, WorkersCallbacks(
            on_event=self._on_worker_event, on_exit=self._on_workers_exit,
            on_all_running=self._ready.set,
            on_interface_gone=lambda: self.stop("because the interface was deleted"),
            on_cannot_start=self._fail, on_turn=self._alarms.on_turn), options.workers)
        self.check_pins = self._workers.check_pins
        self.family = preferred_family()
        self.drops = SocketDrops(tables.queue_count)
        self._admission = Admission(tables)
        timestamps = TimestampFiles()
        self.device = Device(tables, DeviceCallbacks(
            transmit=self._transmit, transmit_lane=self._transmit_lane,
            transmit_probe=self._transmit_lane,
            ring=self._workers.ring, unix_ns=time.time_ns, jitter=random.randrange,
            on_deadline=self._alarms.on_deadline, on_retired=self._alarms.on_retired,
            on_endpoint=self._on_endpoint, on_unanswered=on_unanswered,
            load_timestamp=timestamps.load, keep_timestamp=timestamps.keep,
        ), self.family, cpu_count=cpus.usable_count(), lanes=options.lanes,
            is_steered=options.is_steered)
        self.loops = Loops(options.loop_guard, self.device, self.contained)
        self.ways = Ways(self.device, self.contained, lambda endpoint: source_towards(
            endpoint, self.family, self._fwmark))
        self._handshakes = HandshakeQueue(self.device, self._admission, QueueCallbacks(
            on_slice=self._hand_over_all_events, on_passed_on=self._workers.ring))

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
            self.on_port_or_mark()
            return
        old, self._sockets = self._sockets, self._open_sockets(port)
        self._wanted_port = port
        self._leave(old)
        self._enter()
        self.device.sockets_changed(now_ns())

    @property
    def fwmark(self) -> int:
        """The firewall mark of what we send; 0 for none."""
        return self._fwmark

    def set_fwmark(self, fwmark: int) -> None:
        """Mark what is sent from now on; 0 for no mark, or for that of the rules that keep us out
        of our tunnel (`wg setconf` with a file that says nothing of a mark sets 0)."""
        fwmark = fwmark or self.mark_of_rules
        if self._sockets is not None:
            self._sockets.set_fwmark(fwmark)
        self._fwmark = fwmark
        self.on_port_or_mark()

    def set_private_key(self, private_key: bytes) -> None:
        """Set the static private key; zeros: none."""
        self.device.set_private_key(private_key)
        public = self.device.public_key
        if public is None:
            self._admission.set_keys(None, None)
        else:
            self._admission.set_keys(cookie.mac1_key(public), cookie.cookie_key(public))

    @property
    def workers(self) -> list[WorkerProcess]:
        """By queue number."""
        return self._workers.processes

    @property
    def verdicts(self) -> Counter[str]:
        """Handshake messages and control packets by what became of them."""
        return (self.device.verdicts + self._handshakes.verdicts
                + Counter(self._admission.verdicts)
                + Counter({Verdict.FAILED_INTERNALLY: self.contained.count,
                           Verdict.DROP_LOOP: self.loops.dropped}))

    # -- life

    async def run(self, on_ready: Callable[[], None], *, is_up: bool) -> None:
        """Start everything, call `on_ready`, and go on until `stop`; then end it all.
        `is_up`: whether the interface is, so that we are ready when all workers run."""
        loop = self._loop = asyncio.get_running_loop()
        try:
            loop.set_exception_handler(self._on_exception)
            self._workers.attach(loop)
            self._alarms.start(loop, self.device)
            self.loops.start(loop)
            if is_up:
                self._is_wanted_up = True
                self._bring_up()
                await self.unless_stopped(self._ready.wait())
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
                log.error("the interface is up, but %(error)s", {"error": error})
        elif self._sockets is not None:
            log.info("the interface is down")
            self._leave(self._sockets)
            self._sockets = None
            self.device.stop()
            self._ready.set()       # as ready as it will be, if this came before all workers ran

    def _bring_up(self) -> None:
        self._sockets = self._open_sockets(self._wanted_port)
        self.device.start(now_ns())
        self._enter()

    def _open_sockets(self, port: int | None) -> SocketGroup:
        """Any port is the one that we had before, if that is free still."""
        def open_group(port: int | None) -> SocketGroup:
            lanes = self._options.lanes
            return SocketGroup(self._tables.queue_count, port, self.family, fwmark=self._fwmark,
                               gro=self._options.gro, dscp=self._fixed_dscp,
                               lane_sockets=0 if lanes is None else lanes.socket_count)

        if not port and self._last_port:
            with contextlib.suppress(SystemSetupError):
                return open_group(self._last_port)
        group = open_group(port)
        self._last_port = group.port
        return group

    def _enter(self) -> None:
        """Start receiving on new sockets."""
        assert self._loop is not None
        assert self._sockets is not None
        self.drops.follow(self._sockets)
        self.loops.enter(self._sockets)
        self._loop.add_reader(self._sockets.handshake, self._on_handshake)
        self._workers.start([sock.fileno() for sock in self._sockets.workers],
                            [sock.fileno() for sock in self._sockets.lanes])
        self.on_port_or_mark()

    def _leave(self, sockets: SocketGroup) -> None:
        """Stop receiving, and close the sockets."""
        assert self._loop is not None
        self._loop.remove_reader(sockets.handshake)
        self._workers.end()
        self.drops.follow(None)
        sockets.close()

    async def unless_stopped(self, work: Awaitable[object]) -> bool:
        """Wait for `work`, which `stop` cancels; whether it was done."""
        waits = [asyncio.ensure_future(each) for each in (work, self._stopped.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if waits[0].done():
                waits[0].result()
            return waits[0].done()
        finally:
            for wait in waits:
                wait.cancel()

    def _on_exception(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """A bug in a callback of ours, which costs what that callback was for; or an error of
        asyncio's own (no fd left to accept a control client, say)."""
        error = context.get("exception")
        if "handle" in context and isinstance(error, Exception):
            self.contained.report(error)
        else:
            log.warning("%(what)s: %(error)s", {"what": context.get("message"), "error": error})

    def _fail(self, error: str) -> None:
        """End `run` soon, by an error; the first counts."""
        self.failure = self.failure or error
        self.stop("on an error")

    def stop(self, reason: str) -> None:
        """End `run` soon; the first reason counts."""
        self.stop_reason = self.stop_reason or reason
        self._stopped.set()

    def _shut_down(self) -> None:
        self._stopped.set()             # whatever is called back from now on does nothing
        self._alarms.stop()
        self.loops.stop()
        assert self._loop is not None
        if self._sockets is not None:
            self._leave(self._sockets)
        self._workers.close()
        self.device.close()

    # -- workers

    def _on_worker_event(self, number: int) -> None:
        """Take the events, control packets and misdelivered handshake messages of a worker."""
        if self._stopped.is_set():
            return
        self._hand_over_events(number)
        self._hand_over_controls(number)
        handshake = -1 if self._sockets is None else self._sockets.handshake.fileno()
        with self.contained:
            self._handshakes.receive_misdelivered(number, handshake, now_ns())
        self._serve_handshakes()

    def _hand_over_events(self, number: int) -> None:
        """Hand what a worker reports to the device."""
        for event in self._tables.workers.events(number):
            with self.contained:
                self.device.on_event(WorkerEvent(*event), now_ns())

    def _hand_over_controls(self, number: int) -> None:
        """Hand the control packets of a worker to the device, so many of one peer."""
        count: Counter[int] = Counter()
        for packet in map(ControlPacket._make, self._tables.workers.controls(number)):
            count[packet.peer_slot] += 1
            if count[packet.peer_slot] > CONTROLS_PER_WAKEUP:
                self.device.verdicts[Verdict.DROP_CONTROL_RATE] += 1
                continue
            with self.contained:
                self.device.on_control(packet, now_ns())

    def _hand_over_all_events(self) -> None:
        for number in range(self._tables.queue_count):
            self._hand_over_events(number)

    def _on_workers_exit(self, numbers: Sequence[int]) -> None:
        """Workers' processes have ended."""
        if self._stopped.is_set():
            return
        with self.contained:
            self.device.on_workers_exit(numbers, now_ns())

    # -- handshakes

    def _on_handshake(self) -> None:
        for _ in range(RECEIVES_PER_WAKEUP):
            if self._sockets is None:
                return
            try:
                count = self._handshakes.receive(self._sockets.handshake.fileno(), now_ns())
            except OSError as error:    # an ICMP error of an earlier send
                log.debug("handshake socket: %(error)s", {"error": error})
                continue
            if count < ADMISSION_BATCH:
                break
        self._serve_handshakes()

    def _serve_handshakes(self) -> None:
        """Serve what waits; what is left when the slice of time is used up, later."""
        if not self._is_serving:
            self._go_on_serving()

    def _go_on_serving(self) -> None:
        assert self._loop is not None
        if self._stopped.is_set():
            return
        self._is_serving = True         # also after an error: the other messages wait
        with self.contained:
            self._is_serving = self._handshakes.serve(now_ns)
        if self._is_serving:
            self._loop.call_soon(self._go_on_serving)

    def _transmit(self, message: bytes, endpoint: Endpoint, source_address: bytes) -> None:
        if self._sockets is not None and not self._tables.is_halted:
            self._sockets.send_handshake(message, endpoint, source_address)

    def _transmit_lane(self, message: bytes, endpoint: Endpoint, source_address: bytes,
                       socket_number: int | None, datagram_len: int | None = None) -> bool:
        """`datagram_len`: never in fragments, but in such datagrams (0: in one); False if our own
        link does not take it."""
        if self._sockets is None or self._tables.is_halted:
            return True
        try:
            if datagram_len is None:
                return self._sockets.send_lane(message, endpoint, source_address, socket_number)
            return self._sockets.send_probe(message, endpoint, source_address, socket_number,
                                            datagram_len)
        except OSError as error:
            log.debug("nothing can be sent to %(endpoint)s now: %(error)s",
                      {"endpoint": endpoint, "error": error})
            return True

    def _on_endpoint(self, before: Endpoint | None, after: Endpoint | None) -> None:
        if before is not None:
            self._admission.remove_known(before.sockaddr(self.family))
        if after is not None:
            self._admission.add_known(after.sockaddr(self.family))
            self.ways.note(after)
