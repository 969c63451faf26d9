"""The search for the MTU of one path: packetization layer path MTU discovery (RFC 8899).

Sans-I/O: time is an argument; the owner sends the probes that it is told of, and reports acks. The
states, constants and timers have the RFC's names. A size is that of a whole IP packet.

    BASE             is it as expected? Probes of that size, and of BASE_PLPMTU
    SEARCHING        between the largest size that was received and the smallest that was not
    SEARCH_COMPLETE  known. While data flows it is confirmed every CONFIRMATION_TIMER, and by the
                     RAISE_TIMERS a larger one is looked for
    ERROR            nothing at all is received: the path is down; what was known stays

Probes are rounds of several sizes: the next one is due after the PROBE_TIMER, or at once when all
were acked. What MAX_PROBES rounds did not bring through is too large. A path that is new gets
small probes until one is acked: who moved there may be somebody else's address, and would be hit by
all this. Then the first round mostly is the last one: it has the size that the interface needs.
Otherwise the second one has all the sizes that links and tunnels usually have, so that the path MTU
is known, or nearly, after these.

A BLACK HOLE: the size that was known is not received any more, and smaller ones are.
"""

from __future__ import annotations

import enum

from fastpump.constants import SECOND

BASE_PLPMTU = 1280
MIN_PLPMTU = 576
MAX_PROBES = 3
PROBE_TIMER = SECOND // 4
"""At least; three round trips of the path, if that is more (smoothed)."""
MAX_PROBE_TIMER = 3 * SECOND
CONFIRMATION_TIMER = 2 * SECOND
ERROR_TIMER = 5 * SECOND
RAISE_TIMERS = 10 * SECOND, 60 * SECOND, 600 * SECOND
"""The last one repeats. The first ones are short: what was lost by congestion was not too large."""
IDLE_TIME = 20 * SECOND
"""Without data for so long, nothing is confirmed until the owner reports data."""
MAX_ERRORS = 2
"""So often a path is tried that has never answered."""
GRANULARITY = 8

USUAL_SIZES = (MIN_PLPMTU, 1006, BASE_PLPMTU, 1300, 1340, 1380, 1400, 1420, 1440, 1460, 1480, 1492,
               1500, 2002, 4352, 8166, 9000)


@enum.unique
class State(enum.Enum):
    """Of a search."""

    DISABLED = "not started, or the path has never answered"
    BASE = "is it as expected?"
    SEARCHING = "between the largest size that was received and the smallest that was not"
    SEARCH_COMPLETE = "known"
    ERROR = "nothing is received"


class PathMtu:
    """Of one path."""

    __slots__ = ("_candidates", "_confirmed_at", "_errors", "_high", "_is_confirmation", "_is_new",
                 "_low", "_max_plpmtu", "_probe_timer", "_raise_at", "_raises", "_rounds", "_rtt",
                 "_sent_at", "_target", "deadline", "is_black_hole", "number", "plpmtu", "state")

    def __init__(self) -> None:
        self.state = State.DISABLED
        self.plpmtu = 0
        """The largest size that is known to be received; 0: none is known yet."""
        self.deadline: int | None = None
        """When `on_timer` wants to be called."""
        self.number = 0
        """Of the probes that may still be acked; 16 bits."""
        self.is_black_hole = False
        """The size before this one was lost without notice."""
        self._max_plpmtu = 0
        self._target = 0
        # What was received and what was not, by the probes of this number.
        self._low = self._high = 0
        self._candidates: set[int] = set()
        self._sent_at: dict[int, int] = {}
        self._is_confirmation = False
        self._is_new = False        # nothing was acked yet
        self._rounds = 0
        self._probe_timer = PROBE_TIMER
        self._rtt = 0
        self._confirmed_at = 0
        self._raise_at = 0
        self._raises = 0
        self._errors = 0

    @property
    def max_plpmtu(self) -> int:
        """What is searched for at most."""
        return self._max_plpmtu

    @property
    def is_settled(self) -> bool:
        """Whether the search is over, for now."""
        return self.state is State.SEARCH_COMPLETE

    # -- events

    def start(self, max_plpmtu: int, now: int) -> None:
        """Begin anew: the path is new, or is another one; `max_plpmtu`: what the interface needs.
        What is known stays until more is."""
        self._max_plpmtu = max_plpmtu
        self._raises = self._errors = self._rtt = 0
        self._probe_timer = PROBE_TIMER
        self.is_black_hole = False
        self._begin(max_plpmtu, now)

    def on_data(self, now: int) -> None:
        """Data leaves, the first for a while."""
        if self.deadline is None and self.state in (State.SEARCH_COMPLETE, State.ERROR):
            self.deadline = max(now, self._confirmed_at + CONFIRMATION_TIMER)

    def on_timer(self, now: int, data_at: int) -> list[int]:
        """The deadline has come; the sizes to probe now. `data_at`: when data left last."""
        if self.state in (State.SEARCH_COMPLETE, State.ERROR) and not self._resume(now, data_at):
            return []
        return self._round(now)

    def on_ack(self, number: int, size: int, now: int) -> bool:
        """A probe has been received whole, says the peer; False if there was none like it."""
        sent_at = self._sent_at.get(size)
        if number != self.number or sent_at is None:
            return False
        rtt = now - sent_at
        self._rtt = rtt if not self._rtt else (3 * self._rtt + rtt) // 4
        self._probe_timer = min(max(PROBE_TIMER, 3 * self._rtt), MAX_PROBE_TIMER)
        self._low = max(self._low, size)
        self._errors = 0
        if self._is_new:
            self._is_new = False
            self._look_for({*self._candidates, self._target}, now)
        if size >= self._high:          # lost before, and not because it is too large
            self._high = self._max_plpmtu + 1
        if self.state is State.ERROR:
            self._expect(self._target, {BASE_PLPMTU, self._target}, now)
            return True
        if size > self.plpmtu and self.state in (State.SEARCHING, State.SEARCH_COMPLETE):
            self.plpmtu = size
        if self.state in (State.BASE, State.SEARCHING) and (
                not self._pending or (self.state is State.BASE and size >= self._target)):
            self.deadline = now
        return True

    def on_sibling(self, size: int, now: int) -> None:
        """Another path to the same peer takes that size: one without data looks again, too."""
        if self.deadline is None and self.state is State.SEARCH_COMPLETE \
                and self.plpmtu < size and now >= self._raise_at:
            self._raise(now)

    def on_too_large(self, size: int, now: int) -> None:
        """Our own link does not take a probe of that size."""
        self._sent_at.pop(size, None)
        self._high = min(self._high, size)
        if self.state is State.BASE and self._target >= self._high:
            smaller = [each for each in USUAL_SIZES if each < self._high]
            self._target = max(smaller, default=MIN_PLPMTU)
            if not self._is_new:
                self._candidates.add(self._target)
            self._rounds = 0
            self.deadline = now
        elif not self._pending:
            self.deadline = now

    # -- rounds

    @property
    def _pending(self) -> list[int]:
        """The sizes of which it is not known."""
        return sorted(each for each in self._candidates if self._low < each < self._high)

    def _expect(self, target: int, candidates: set[int], now: int) -> None:
        """Find out whether a size is received; if not, which one is."""
        self.state = State.BASE
        self._is_confirmation = candidates == {self.plpmtu}
        self._is_new = False
        self.number = (self.number + 1) & 0xffff
        self._sent_at.clear()
        self._low, self._high = 0, self._max_plpmtu + 1
        self._target = target
        self._look_for(candidates, now)

    def _begin(self, target: int, now: int) -> None:
        """Find out whether anything is received."""
        self._expect(target, {MIN_PLPMTU, min(BASE_PLPMTU, target)}, now)
        self._is_new = True

    def _look_for(self, candidates: set[int], now: int) -> None:
        self._candidates = candidates
        self._rounds = 0
        self.deadline = now

    def _round(self, now: int) -> list[int]:
        if self.state is State.BASE:
            if self._rounds == 1 and not self._is_new:      # the one before was not enough
                self._candidates.update(
                    each for each in USUAL_SIZES if each < self._target)
            is_over = self._low >= self._target
        else:
            is_over = not self._pending
        if is_over or self._rounds == MAX_PROBES:
            self._conclude(now)
            return []
        pending = self._pending
        self._rounds += 1
        self.deadline = now + self._probe_timer
        for size in pending:
            self._sent_at.setdefault(size, now)
        return pending[::-1]    # large ones first: of a burst, a full queue drops the end

    def _conclude(self, now: int) -> None:
        """The last round is over."""
        if self._low == 0:
            self._fail(now)
            return
        lost = self._pending
        if lost and lost[0] < self._high:
            self._high = lost[0]
        if self.state is State.BASE:
            if self._low < self.plpmtu:
                self.is_black_hole = True
                self._raises = 0
            self.plpmtu = self._low
            if self._is_confirmation and self._low >= self._target:
                self._complete(now)         # larger ones have their time
                return
        if self._high - self._low > GRANULARITY and self._low < self._max_plpmtu:
            self.state = State.SEARCHING
            self._look_for(_between(self._low, self._high), now)
            return
        self._raise_at = now + RAISE_TIMERS[min(self._raises, len(RAISE_TIMERS) - 1)]
        self._raises += 1
        self._complete(now)

    def _complete(self, now: int) -> None:
        self.state = State.SEARCH_COMPLETE
        self._confirmed_at = now
        self.deadline = now + CONFIRMATION_TIMER

    def _fail(self, now: int) -> None:
        self._errors += 1
        if self._errors >= MAX_ERRORS and self.plpmtu == 0:
            self.state, self.deadline = State.DISABLED, None
            return
        self.state = State.ERROR
        self._confirmed_at = now
        self.deadline = now + ERROR_TIMER

    def _resume(self, now: int, data_at: int) -> bool:
        """Time to look again, if there was data since the last time; whether it begins now."""
        if self.plpmtu and data_at <= self._confirmed_at:
            is_idle = now >= data_at + IDLE_TIME
            self.deadline = None if is_idle else now + CONFIRMATION_TIMER
            return False
        if self.state is State.SEARCH_COMPLETE and self.plpmtu < self._max_plpmtu \
                and now >= self._raise_at:
            self._raise(now)
            return True
        if self.plpmtu:
            self._expect(self.plpmtu, {self.plpmtu}, now)
        else:
            self._begin(self._target, now)
        return True

    def _raise(self, now: int) -> None:
        """Look for a larger size."""
        self.state = State.SEARCHING
        self.number = (self.number + 1) & 0xffff
        self._sent_at.clear()
        self._low, self._high = self.plpmtu, self._max_plpmtu + 1
        larger = {each for each in USUAL_SIZES if self.plpmtu < each < self._max_plpmtu}
        self._look_for({*larger, self._max_plpmtu}, now)


def _between(low: int, high: int) -> set[int]:
    """What to probe between two sizes."""
    usual = {each for each in USUAL_SIZES if low < each < high}
    if usual:
        return usual
    step = max((high - low) // 5, 4)
    return {size & ~3 for size in range(low + step, high, step) if size & ~3 > low}
