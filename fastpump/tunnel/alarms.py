"""When the device wants to be called again, in terms of the event loop.

The device knows deadlines and what it has retired, but no clock: it reports an earlier deadline,
or something retired, by callbacks. There is one timer for the earliest deadline, and one for
what workers may still hold.

The two have different clocks: the loop's stands still while the machine sleeps, that of deadlines
(CLOCK_BOOTTIME) does not. So after a sleep the timer would fire too late, by as long as that took:
whoever has a turn once a second calls `on_turn`, which sets it anew.
"""

from __future__ import annotations

import asyncio

from fastpump._core import SharedTables
from fastpump.clock import now_ns
from fastpump.constants import SECOND
from fastpump.device.device import Device
from fastpump.tunnel.containment import Containment

RECLAIM_INTERVAL_S = 1.0


class Alarms:
    """The two timers; nothing is timed before `start`, which catches up."""

    def __init__(self, tables: SharedTables, contained: Containment) -> None:
        self._tables = tables
        self._contained = contained
        self._device: Device | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reclaimer: asyncio.TimerHandle | None = None

    def start(self, loop: asyncio.AbstractEventLoop, device: Device) -> None:
        """Serve the device's deadlines in this loop."""
        self._loop, self._device = loop, device
        self.on_deadline()
        self.on_retired()

    def stop(self) -> None:
        """Call nothing any more."""
        self._loop = None
        for timer in (self._timer, self._reclaimer):
            if timer is not None:
                timer.cancel()

    def on_deadline(self) -> None:
        """The device's next deadline may be earlier than it was, as the loop's clock has it."""
        if self._loop is None or self._device is None:
            return
        deadline = self._device.next_deadline()
        if deadline is None:
            return
        delay = max(0, deadline - now_ns()) / SECOND
        when = self._loop.time() + delay
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._tick)

    on_turn = on_deadline
    """To be called once a second."""

    def on_retired(self) -> None:
        """Something waits in the shared tables to be wiped, once no worker can hold it."""
        if self._tables.retired and self._reclaimer is None and self._loop is not None:
            self._reclaimer = self._loop.call_later(RECLAIM_INTERVAL_S, self._reclaim)

    def _tick(self) -> None:
        assert self._device is not None
        self._timer = None
        with self._contained:
            self._device.tick(now_ns())
        self.on_deadline()

    def _reclaim(self) -> None:
        self._reclaimer = None
        with self._contained:
            self._tables.retired.reclaim()
        self.on_retired()
