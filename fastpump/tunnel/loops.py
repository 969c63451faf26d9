"""Whether our own datagrams are about to enter the tunnel, and what is done about it.

The kernel drops them (tun/loop_guard.py); here it is noticed, once a second, and the peers that are
where they were to go are given up there (device/endpoints.py). Workers notice what comes back by a
detour, and report it themselves (hot/loops.pxd).

Where the routes of the interface are not ours, the way is cleared first (tunnel/moved_routes.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Set

from fastpump.clock import now_ns
from fastpump.conn.sockets import SocketGroup
from fastpump.device.device import Device
from fastpump.ip import Address
from fastpump.tun.loop_guard import LoopGuard
from fastpump.tunnel.containment import Containment

LOOK_S = 1.0


class Loops:
    """Looks after a device's peers while a loop runs."""

    def __init__(self, guard: LoopGuard | None, device: Device, contained: Containment) -> None:
        """`guard`: None where the kernel has no filter for us."""
        self._guard = guard
        self._device = device
        self._contained = contained
        self._seen = 0
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clearing: asyncio.Task[None] | None = None
        self.clear: Callable[[], Awaitable[bool]] | None = None
        """Leads the datagrams elsewhere; whether there was anything to do."""

    @property
    def dropped(self) -> int:
        """Datagrams that the kernel has dropped."""
        return 0 if self._guard is None else self._guard.dropped

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look from now on."""
        if self._guard is not None:
            self._loop = loop
            self._turn()

    def stop(self) -> None:
        """Look no more."""
        for each in (self._timer, self._clearing):
            if each is not None:
                each.cancel()

    def enter(self, sockets: SocketGroup) -> None:
        """These are the tunnel's now."""
        if self._guard is not None:
            self._guard.watch(sockets.all)

    def _turn(self) -> None:
        assert self._loop is not None
        self._timer = self._loop.call_later(LOOK_S, self._turn)
        with self._contained:
            self.look()

    def look(self) -> None:
        """Give up the peers whose datagrams were dropped since the last time, or lead the datagrams
        elsewhere."""
        if self._guard is None or self.dropped == self._seen:
            return
        self._seen = self.dropped
        there = self._guard.destinations()
        if self.clear is None or self._loop is None:
            self._give_up(there)
        elif self._clearing is None or self._clearing.done():
            self._clearing = self._loop.create_task(self._clear(self.clear, there))

    async def _clear(self, clear: Callable[[], Awaitable[bool]], there: Set[Address]) -> None:
        with self._contained:
            if not await clear():
                self._give_up(there)
                return
            self._seen = self.dropped
            for peer in list(self._device.peers.values()):
                if self._device.endpoints.addresses(peer) & there:
                    self._device.redirect(peer, now_ns())

    def _give_up(self, there: Set[Address]) -> None:
        for peer in list(self._device.peers.values()):
            for address in self._device.endpoints.addresses(peer) & there:
                self._device.endpoints.give_up(peer, address, now_ns())
