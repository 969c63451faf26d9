"""Puts back what somebody else has removed on the host (networkd at its restart, `nft flush
ruleset`, `ip rule flush`, an address deleted), within a second, and counts it.

The kernel says that something was removed (netlink/notifications.py); then all is compared with the
kernel, and what is missing is put back. Who keeps removing it is not fought at full speed: after
MAX_AT_ONCE repairs the next ones wait, twice as long each time, and a line says so. Each EVERY_S
forget one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection

from fastpump.errors import FastpumpError
from fastpump.netlink.notifications import Notifications

log = logging.getLogger("fastpump")

DELAY_S = 0.1
"""What is removed together is put back together."""
MAX_AT_ONCE = 10
EVERY_S = 10.0
"""As often as that it is put back all the same."""


class Patience:
    """How long the next repair waits."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._noted = 0.0
        self._last = clock()

    @property
    def _count(self) -> float:
        """Of repairs that are not forgotten."""
        return max(0.0, self._noted - (self._clock() - self._last) / EVERY_S)

    @property
    def delay_s(self) -> float:
        """Until the next repair."""
        beyond = self._count - MAX_AT_ONCE
        return DELAY_S if beyond < 0 else float(min(2.0 ** int(beyond), EVERY_S))

    def note(self) -> bool:
        """There was a repair; whether the next one is the first that waits longer."""
        before = self._count
        self._noted, self._last = before + 1, self._clock()
        return before < MAX_AT_ONCE <= self._noted


class RepairWatch:
    """Of one tunnel, for as long as its event loop runs."""

    def __init__(self, restore: Callable[[], Awaitable[list[str]]]) -> None:
        """`restore`: puts back what is missing; what that was, in words."""
        self._restore = restore
        self.counts: Counter[str] = Counter()
        """How often each was put back."""
        self._notifications: Notifications | None = None
        self._patience: Patience
        self._task: asyncio.Task[None] | None = None
        self._failure = ""

    def start(self, index: int, table: int, nft_tables: Collection[str]) -> None:
        """Watch one interface, the routing table that rules lead to, and these nftables tables; in
        place of what was watched before."""
        loop = asyncio.get_running_loop()
        self.stop()
        self._patience = Patience(loop.time)
        try:
            self._notifications = Notifications(index, table, nft_tables)
        except OSError as error:
            log.warning("it will not be noticed if somebody removes what the tunnel needs on this "
                        "host: %(error)s", {"error": error.strerror})
            return
        for each in self._notifications.sockets:
            loop.add_reader(each, self._on_change)
        self.look()     # something may have been removed before we heard of it

    def stop(self) -> None:
        """Watch nothing any more."""
        if self._notifications is not None:
            for each in self._notifications.sockets:
                asyncio.get_running_loop().remove_reader(each)
            self._notifications.close()
            self._notifications = None
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _on_change(self) -> None:
        assert self._notifications is not None
        if self._notifications.drain():
            self.look()

    def look(self) -> None:
        """Compare soon, if that is not due already."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._repair())

    async def _repair(self) -> None:
        await asyncio.sleep(self._patience.delay_s)
        self._task = None       # what is removed from now on, another look finds
        try:
            restored = await self._restore()
        except (FastpumpError, OSError) as error:
            self._tell_failure(str(error))
            self._patience.note()
            self.look()
            return
        self._failure = ""
        if not restored:
            return
        self.counts.update(restored)
        what = " and ".join(restored)
        log.warning("somebody removed %(what)s, which the tunnel needs on this host; restored",
                    {"what": what})
        if self._patience.note():
            log.warning("%(what)s: removed again and again, so the next times it is restored later "
                        "and later, up to %(longest).0f s; `ip monitor` and `nft monitor` show "
                        "when, and who runs then", {"what": what, "longest": EVERY_S})

    def _tell_failure(self, why: str) -> None:
        if why != self._failure:
            log.error("what the tunnel needs on this host cannot be restored: %(why)s; trying on",
                      {"why": why})
        self._failure = why
