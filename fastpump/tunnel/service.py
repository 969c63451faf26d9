"""What runs in a tunnel's event loop: the supervisor, the sockets for `fastpump` and `wg`, the
watch over the interface, and the housekeeping of a TAP.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from functools import partial
from typing import Any

from fastpump.clock import now_ns
from fastpump.constants import SECOND
from fastpump.errors import FastpumpError, SystemSetupError
from fastpump.host import ethernet
from fastpump.ipc import uapi
from fastpump.ipc.control import Command, ControlServer
from fastpump.ipc.fdb import Fdb
from fastpump.ipc.uapi_server import UapiServer
from fastpump.process import logs, signals
from fastpump.tun.linkwatch import LinkWatcher
from fastpump.tunnel.clones import CloneGuard
from fastpump.tunnel.loop_watch import LoopWatch
from fastpump.tunnel.supervisor import ON_REQUEST
from fastpump.tunnel.tunnel import Tunnel

log = logging.getLogger("fastpump")

HOUSEKEEPING_INTERVAL_S = 5.0
"""Of a TAP: how long an aged MAC address still counts towards the limits, and another MTU of what
it is joined to goes unnoticed. With --pin: how long a CPU that was taken away does."""

TunnelCommand = Callable[[Tunnel, dict[str, Any]], Awaitable[dict[str, Any]]]
"""Answers a request of the control socket."""


class Service:
    """Serves one tunnel until it is stopped."""

    def __init__(self, tunnel: Tunnel, watcher: LinkWatcher,
                 commands: Mapping[str, TunnelCommand], *, must_serve_wg: bool) -> None:
        """`commands`: of the control socket, besides those that every tunnel has.
        `must_serve_wg`: fail if another WireGuard has wg's socket of that name, and stop when
        that socket is removed."""
        self._tunnel = tunnel
        self._watcher = watcher
        self._must_serve_wg = must_serve_wg
        report = tunnel.supervisor.contained.report
        self._forwarding = Fdb(tunnel.tables, tunnel.supervisor.device, now_ns)
        self._control = ControlServer(tunnel.link.name, {
            "status": self._status, "stop": self._stop, "fdb": self._fdb, "limit": tunnel.limit,
            **{name: self._command(command) for name, command in commands.items()}}, report)
        self._wg = UapiServer(tunnel.link.name, partial(uapi.answer, tunnel.supervisor), report)
        self._links_changed = asyncio.Event()
        self._clones = CloneGuard(tunnel.tables, tunnel.supervisor.device)

    async def run(self, configure: Callable[[], Awaitable[None]],
                  on_ready: Callable[[], None]) -> None:
        """Serve until the supervisor is stopped. `configure` is awaited first, when the sockets are
        there; `on_ready` is called once."""
        loop = asyncio.get_running_loop()
        supervisor = self._tunnel.supervisor
        signals.tell(loop, lambda name: supervisor.stop(f"on {name}"))
        self._links_changed.set()
        chores: list[asyncio.Task[None]] = []
        loop.add_reader(self._watcher, self._on_link)
        self._clones.start(loop)
        supervisor.ways.start(loop)
        try:
            await self._control.start()
            hidden = await self._start_wg()

            def ready() -> None:
                on_ready()
                if hidden:
                    log.info("wg does not see this tunnel: %(reason)s", {"reason": hidden})

            await configure()
            self._on_link()
            chores += [loop.create_task(chore) for chore in self._chores()]
            if not supervisor.stop_reason:
                await supervisor.run(ready, is_up=self._tunnel.link.is_up)
        finally:
            for chore in chores:
                chore.cancel()
            loop.remove_reader(self._watcher)
            if self._tunnel.repairs is not None:
                self._tunnel.repairs.stop()
            self._clones.close()
            supervisor.ways.stop()
            await self._wg.stop()
            await self._control.stop()
        log.info("stopped %(reason)s", {"reason": supervisor.stop_reason})

    async def _start_wg(self) -> str:
        """Serve wg; the reason if that failed and may."""
        try:
            await self._wg.start()
        except SystemSetupError as error:
            if self._must_serve_wg:
                raise
            return str(error)
        if self._must_serve_wg:
            self._wg.watch(partial(self._tunnel.supervisor.stop,
                                   "because its socket was removed"))
        return ""

    # -- commands

    async def _status(self, _request: dict[str, Any]) -> dict[str, Any]:
        return {"gateway": await self._tunnel.gateway(), **self._tunnel.status()}

    async def _stop(self, _request: dict[str, Any]) -> dict[str, Any]:
        self._tunnel.supervisor.stop(ON_REQUEST)
        return {"pid": os.getpid()}

    async def _fdb(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._forwarding.serve(request)

    def _command(self, command: TunnelCommand) -> Command:
        async def answer(request: dict[str, Any]) -> dict[str, Any]:
            return await command(self._tunnel, request)
        return answer

    # -- the interface

    def _on_link(self) -> None:
        """The interface changed: up or down, MTU, name, namespace; or it was deleted."""
        self._links_changed.set()
        before, fd = self._tunnel.link, self._watcher.fileno()
        link = self._watcher.read()
        if self._watcher.fileno() != fd:        # it watches another namespace now
            loop = asyncio.get_running_loop()
            loop.remove_reader(fd)
            loop.add_reader(self._watcher, self._on_link)
        if link is None:
            self._tunnel.supervisor.stop("because the interface was deleted")
            return
        self._tunnel.link = link
        self._tunnel.tables.mtu = link.mtu
        if link.name != before.name:
            self._wg.rename(link.name)
        if (link.name, link.namespace) != (before.name, before.namespace):
            logs.name_interface(link.name)
            log.info("the interface is now %(name)s in network namespace %(namespace)d",
                     {"name": link.name, "namespace": link.namespace})
            self._control.rename(link.name, link.namespace)
        self._tunnel.supervisor.interface_changed(is_up=link.is_up)
        if link.is_up and (self._watcher.take_down() or not before.is_up):
            self._tunnel.on_link_up()

    def _chores(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What is to be done from time to time."""
        if self._tunnel.tables.is_tap:
            yield self._keep_house()
        if self._tunnel.config.pin:
            yield self._watch_cpus()

    async def _watch_cpus(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_INTERVAL_S)
            with self._tunnel.supervisor.contained:
                self._tunnel.supervisor.check_pins()

    async def _keep_house(self) -> None:
        """Of a TAP: look for loops, age MAC addresses, and look at what it is joined to when links
        changed."""
        join = ethernet.JoinWatch(self._tunnel.config)
        loops = LoopWatch()
        while True:
            with self._tunnel.supervisor.contained:
                self._look_for_loops(loops)
                self._tunnel.tables.fdb.sweep(now_ns())
                await self._check_join(join)
            await asyncio.sleep(HOUSEKEEPING_INTERVAL_S)

    async def _check_join(self, join: ethernet.JoinWatch) -> None:
        if not self._links_changed.is_set() or not self._tunnel.is_at_home:
            return
        self._links_changed.clear()
        try:
            await asyncio.to_thread(join.check, self._tunnel.link.index, self._tunnel.link.mtu)
        except (FastpumpError, OSError) as error:
            self._links_changed.set()       # again, at the next turn
            log.debug("cannot check what the tunnel is joined to: %(error)s", {"error": error})

    def _look_for_loops(self, loops: LoopWatch) -> None:
        workers = self._tunnel.tables.workers
        moves = sum(workers.counters(number)["counters"]["macs_moved"]
                    for number in range(self._tunnel.tables.queue_count))
        loops.look(moves, self._tunnel.tables.fdb.counts()[0], now_ns() / SECOND)
