"""Whether a worker moves.

Once a second, at the supervisor's turn, each worker's doorbell is rung (tunnel/workers.py): so its
epoch (hot/loop.pxd) has changed by the next turn, whether the worker is busy or idle. One whose
epoch has not changed is late. It may be stopped, or hang in the kernel; its flows are lost
meanwhile, and what it may hold is never reused.

Turns are counted, not seconds: what stops the supervisor together with its workers (suspend, a
frozen control group, a machine that swaps) makes a worker late by one turn at most.
"""

from __future__ import annotations

import enum

TURN_S = 1.0
SAID_TURNS = 2
"""A worker that has been late for so many turns is reported."""
KILLED_TURNS = 5
START_TURNS = 60
"""The same for one whose loop does not run yet: many may start at once, on few CPUs."""


@enum.unique
class Finding(enum.Enum):
    """What a turn finds out about a worker."""

    NOTHING_NEW = "it moves, or that it does not is known"
    LATE = "it does not move: report it"
    HANGS = "it does not move at all: kill it"
    BACK = "it moves again, after it was reported"


class Pulse:
    """Of one worker's process."""

    __slots__ = ("_epoch", "_is_running", "late_turns")

    def __init__(self) -> None:
        self._epoch = -1
        self._is_running = False
        self.late_turns = 0
        """How many turns in a row the epoch has not changed."""

    @property
    def unresponsive_s(self) -> int:
        """For how long it has not moved, if that is to be reported; else 0."""
        return round(self.late_turns * TURN_S) if self.late_turns >= SAID_TURNS else 0

    def turn(self, epoch: int, *, is_running: bool) -> Finding:
        """The epoch as it is now, a turn after the doorbell was rung. `is_running`: the worker's
        loop has begun."""
        has_moved = epoch != self._epoch
        has_begun = is_running and not self._is_running
        self._epoch, self._is_running = epoch, is_running
        if has_moved or has_begun:
            was_late, self.late_turns = self.late_turns, 0
            return Finding.BACK if was_late >= SAID_TURNS and not has_begun else Finding.NOTHING_NEW
        self.late_turns += 1
        if self.late_turns == (KILLED_TURNS if is_running else START_TURNS):
            return Finding.HANGS
        return Finding.LATE if is_running and self.late_turns == SAID_TURNS else Finding.NOTHING_NEW
