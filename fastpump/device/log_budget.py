"""How much of one kind the log takes, if others decide how often it happens."""

from __future__ import annotations


class LogBudget:
    """A token bucket of lines. Times are CLOCK_BOOTTIME ns."""

    __slots__ = ("_burst", "_full_at", "_interval_ns", "missed")

    def __init__(self, burst: int, interval_ns: int) -> None:
        """`burst` lines at once, and another one in each interval."""
        self._burst = burst
        self._interval_ns = interval_ns
        self._full_at = 0
        self.missed = 0
        """What was refused since the last line that was not."""

    def take(self, now: int) -> bool:
        """Whether a line may be logged now."""
        full_at = max(self._full_at, now) + self._interval_ns
        if full_at > now + self._burst * self._interval_ns:
            self.missed += 1
            return False
        self._full_at = full_at
        return True
