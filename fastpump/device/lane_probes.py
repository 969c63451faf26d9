"""The life of one lane as the supervisor sees it: a table of states and transitions.

A probe is an empty lane message with the probe flag (an echo request); the peer answers it on the
same lane. The side that opens a set probes its lanes until they are answered: the first probe shows
the other side where the lane is, the answer shows that nothing blocks it. The other side expects
the first probe within LANE_OPENING_TIME. Later, a lane is probed when data on it is not answered,
and when it is dead, until it works again. If the first such probe is not answered either, all lanes
of the set are probed: what blocks one may block others, and flows must not move from one to the
next.

Workers send on a lane as soon as they have received a message there, and report that (USABLE).
They also report data that is the first to leave since then (UNANSWERED), and do not report it
again until the supervisor has cleared the report.
A timer that fires looks at the times that workers left in the shared table. It runs in the states
of TIMED, and stops when another one is entered.

    NEW, OPENING -> UP           the peer was received there
    NEW -> DEAD                  it was not, in time
    UP -> SUSPECT -> UP          data is not answered, or another lane is not; it is after all
    OPENING, SUSPECT -> DEAD     no answer to any probe
    DEAD -> UP                   it works again
"""

from __future__ import annotations

import enum
from typing import Protocol

from fastpump._core import SharedTables
from fastpump.constants import (
    LANE_ANSWER_INTERVAL,
    LANE_DEAD_AFTER_PROBES,
    LANE_OPENING_TIME,
    LANE_PROBE_INTERVALS,
    LANE_PROBE_TIMEOUT,
    LANE_UNANSWERED_TIME,
    SECOND,
)
from fastpump.device import reported
from fastpump.device.peer import Peer
from fastpump.protocol import wire


@enum.unique
class State(enum.Enum):
    """Of a lane."""

    NEW = "installed; the peer opens it, and was not received on it yet"
    OPENING = "we open it, and probe until the peer is received on it"
    UP = "the peer was received on it; workers report data that has to be answered"
    SUSPECT = "data is not answered; probed after LANE_UNANSWERED_TIME. Or it is probed for another"
    DEAD = "workers send on others; probed on until the peer is received on it again"


@enum.unique
class Event(enum.Enum):
    """What happens to a lane. The last seven are what a timer that fires finds."""

    OPENED = "a new set that this side opens"
    AWAITED = "a new set that the peer opens"
    USABLE = "a worker reports that it received the peer there, and sends there from now on"
    UNANSWERED = "a worker reports data, the first since the peer was received there"
    DOUBTED = "another lane of the set has not answered its first probe"
    FOUND_USABLE = "the worker sends there already; its report is on the way"
    ANSWERED = "all data was answered"
    TOO_EARLY = "the data that is not answered is younger than LANE_UNANSWERED_TIME"
    PROBE_DUE = "no answer, and not the last probe"
    PROBE_LOST = "no answer to the first probe for data"
    PROBES_SPENT = "no answer, after all probes that a lane gets"
    NOT_OPENED = "the peer was never received there"


@enum.unique
class Action(enum.Enum):
    """What is done at a transition."""

    NONE = "nothing"
    PROBE = "send a probe, and set the timer for the next"
    PROBE_ALL = "the same, and doubt the other lanes of the set"
    AWAIT_PROBE = "set the timer to when the peer's first probe has to be here"
    AWAIT_ANSWER = "set the timer to when the data has to be answered"
    WATCH = "have the workers report the next unanswered data"
    DECLARE_DEAD = "move its flows to other lanes, warn, and probe on"
    LOG_BACK = "log that it works again"
    LOG_BACK_AND_WATCH = "both"


TIMED = frozenset({State.NEW, State.OPENING, State.SUSPECT, State.DEAD})
"""States in which a timer runs."""

TRANSITIONS: dict[tuple[State, Event], tuple[State, Action]] = {
    # The peer learns from the first probe where the lane is.
    (State.NEW, Event.OPENED): (State.OPENING, Action.PROBE),
    # The peer probes it now.
    (State.NEW, Event.AWAITED): (State.NEW, Action.AWAIT_PROBE),
    # Something blocks the way from the peer: our flows must not wait for it.
    (State.NEW, Event.NOT_OPENED): (State.DEAD, Action.DECLARE_DEAD),
    # As with OPENING, below.
    (State.NEW, Event.FOUND_USABLE): (State.SUSPECT, Action.NONE),
    # The peer's first probe, or data of it, has arrived.
    (State.NEW, Event.USABLE): (State.UP, Action.NONE),
    # It is usable; another worker, which sent there, has reported before the one that received.
    (State.NEW, Event.UNANSWERED): (State.SUSPECT, Action.AWAIT_ANSWER),

    # Nothing blocks it.
    (State.OPENING, Event.USABLE): (State.UP, Action.NONE),
    # As with NEW. The timer of the probes runs already.
    (State.OPENING, Event.UNANSWERED): (State.SUSPECT, Action.NONE),
    # Workers send on it: judge it by its data from now on.
    (State.OPENING, Event.FOUND_USABLE): (State.SUSPECT, Action.NONE),
    # The probe or its answer was lost, or the path is slow.
    (State.OPENING, Event.PROBE_DUE): (State.OPENING, Action.PROBE),
    # Not one was answered: its UDP port seems to be blocked.
    (State.OPENING, Event.PROBES_SPENT): (State.DEAD, Action.DECLARE_DEAD),

    # Received before a timer found it usable.
    (State.UP, Event.USABLE): (State.UP, Action.NONE),
    # Most data is answered at once; look again when that is overdue.
    (State.UP, Event.UNANSWERED): (State.SUSPECT, Action.AWAIT_ANSWER),
    # Without data it would not be known to be blocked before flows have moved there.
    (State.UP, Event.DOUBTED): (State.SUSPECT, Action.PROBE),

    # The usual case: the peer answers. Two looks a second cost less than a timer a packet.
    (State.SUSPECT, Event.ANSWERED): (State.UP, Action.WATCH),
    # What was reported has been answered; other data has left since.
    (State.SUSPECT, Event.TOO_EARLY): (State.SUSPECT, Action.AWAIT_ANSWER),
    # The peer may have nothing to send there: probe it.
    (State.SUSPECT, Event.PROBE_DUE): (State.SUSPECT, Action.PROBE),
    # It seems to be blocked: are others, too?
    (State.SUSPECT, Event.PROBE_LOST): (State.SUSPECT, Action.PROBE_ALL),
    # Something on the path blocks it now, or the NAT has forgotten it.
    (State.SUSPECT, Event.PROBES_SPENT): (State.DEAD, Action.DECLARE_DEAD),
    # Reported by two workers: one timer is enough.
    (State.SUSPECT, Event.UNANSWERED): (State.SUSPECT, Action.NONE),
    # The reports of two workers in the wrong order, or a timer was faster than the report.
    (State.SUSPECT, Event.USABLE): (State.UP, Action.WATCH),

    # The path may come back. A probe from the peer proves nothing: it may not receive us.
    (State.DEAD, Event.PROBE_DUE): (State.DEAD, Action.PROBE),
    # Data that left just before it was declared dead.
    (State.DEAD, Event.UNANSWERED): (State.DEAD, Action.NONE),
    # It works again, and may fail again.
    (State.DEAD, Event.USABLE): (State.UP, Action.LOG_BACK_AND_WATCH),
    # It works again: judge it by its data.
    (State.DEAD, Event.FOUND_USABLE): (State.SUSPECT, Action.LOG_BACK),
}


class LaneOwner(Protocol):
    """The set of a lane, as the lane needs it."""

    peer: Peer
    tables: SharedTables
    first: int
    """The table's slot of lane 0."""
    due: dict[Lane, int]
    """When the timers fire that run."""
    is_opener: bool
    """Whether the lanes are ours to open."""

    def send(self, number: int, flags: int, now: int) -> object:
        """Send an empty message on a lane."""

    def warn(self, message: str, fields: dict[str, object]) -> None:
        """Log that a lane does not work."""

    def doubt(self, now: int) -> None:
        """A lane has not answered its first probe for data: doubt all."""

    def on_dead(self, since: int, now: int) -> None:
        """A lane has died: its data of `since` was not answered. 0: it was never used."""

    def note(self, message: str, fields: dict[str, object]) -> None:
        """Log that a lane works again."""


class Lane:
    """One lane of a set."""

    __slots__ = ("_answered_at", "_owner", "_probed_since", "_probes_sent", "number", "state")

    def __init__(self, owner: LaneOwner, number: int) -> None:
        self._owner = owner
        self._probes_sent = 0
        self._probed_since = 0
        self._answered_at = 0
        self.number = number
        self.state = State.NEW

    @property
    def slot(self) -> int:
        """Its place in the shared table."""
        return self._owner.first + self.number

    @property
    def is_dead(self) -> bool:
        """Whether its flows have moved to other lanes."""
        return self.state is State.DEAD

    @property
    def is_ours_to_open(self) -> bool:
        """Whether we are the opener of its set."""
        return self._owner.is_opener

    def ask(self, now: int) -> None:
        """Send an echo request. Whatever is sent unasked is one: an empty message without the flag
        would pass for the answer to a probe that was lost."""
        self._owner.send(self.number, wire.LANE_FLAG_ECHO_REQUEST, now)

    def answer(self, now: int) -> None:
        """Answer an echo request, unless data or an answer has just left. An echo request of ours
        is no answer: two that cross have one each."""
        status = self._owner.tables.lanes.status(self.slot)
        data_at = reported.past(status["last_data_ns"], now)
        if now >= max(data_at, self._answered_at) + LANE_ANSWER_INTERVAL:
            self._answered_at = now
            self._owner.send(self.number, 0, now)
            if self.is_dead:        # the peer's way to us is open again; perhaps ours is, too
                self.ask(now)

    # -- events

    def open(self, now: int) -> None:
        """Its set is new."""
        self._step(Event.OPENED if self._owner.is_opener else Event.AWAITED, now)

    def on_usable(self, now: int) -> None:
        """A worker received the peer on it, and sends on it from now on."""
        self._step(Event.USABLE, now)

    def on_unanswered(self, since: int) -> None:
        """Data left on it at `since`, the first since the peer was received there."""
        self._step(Event.UNANSWERED, since=since)

    def doubt(self, now: int) -> None:
        """Another lane of the set has not answered its first probe. If this one does not, both die
        at once: so it gets one probe less."""
        if self.state is State.UP:
            self._owner.tables.lanes.expect_answer(self.slot, now)
            self._probed_since = self._unanswered_since(now)
            self._probes_sent = 1
            self._step(Event.DOUBTED, now)

    def on_timer(self, now: int) -> None:
        """Its timer has fired."""
        since = self._unanswered_since(now)
        is_usable = self._owner.tables.lanes.status(self.slot)["is_usable"]
        if is_usable and self.state is not State.SUSPECT:
            self._step(Event.FOUND_USABLE)
        self._step(self._find(since, now), now, since)

    def _unanswered_since(self, now: int) -> int:
        """When the first data left that is not answered; 0 for none."""
        status = self._owner.tables.lanes.status(self.slot)
        return reported.past(status["first_unanswered_tx_ns"], now)

    def _find(self, since: int, now: int) -> Event:
        """What a timer finds; `since`: when the first data that is not answered left, or 0."""
        if self.state is State.NEW:
            return Event.NOT_OPENED
        if self.state is State.SUSPECT:
            if not since:
                return Event.ANSWERED
            if since != self._probed_since:     # the probes until then were answered
                self._probed_since, self._probes_sent = since, 0
            if now < since + LANE_UNANSWERED_TIME:
                return Event.TOO_EARLY
            if self._probes_sent == 1:
                return Event.PROBE_LOST
            is_spent = self._probes_sent >= LANE_DEAD_AFTER_PROBES
        else:
            is_spent = self.state is State.OPENING \
                and self._probes_sent >= len(LANE_PROBE_INTERVALS) - 1
        return Event.PROBES_SPENT if is_spent else Event.PROBE_DUE

    def _step(self, event: Event, now: int = 0, since: int = 0) -> None:
        before, (self.state, action) = self.state, TRANSITIONS[self.state, event]
        if self.state not in TIMED:
            self._owner.due.pop(self, None)
            self._probes_sent = 0
        match action:
            case Action.PROBE:
                self._probe(now)
            case Action.PROBE_ALL:
                self._probe(now)
                self._owner.doubt(now)
            case Action.AWAIT_PROBE:
                self._owner.due[self] = now + LANE_OPENING_TIME
            case Action.AWAIT_ANSWER:
                self._owner.due[self] = since + LANE_UNANSWERED_TIME
            case Action.WATCH:
                self._watch(now)
            case Action.DECLARE_DEAD:
                self._declare_dead(before, now, since)
            case Action.LOG_BACK:
                self._log_back()
            case Action.LOG_BACK_AND_WATCH:
                self._log_back()
                self._watch(now)

    # -- actions

    def _probe(self, now: int) -> None:
        interval = LANE_PROBE_TIMEOUT
        if self.state is not State.SUSPECT:
            interval = LANE_PROBE_INTERVALS[min(self._probes_sent, len(LANE_PROBE_INTERVALS) - 1)]
        self._probes_sent += 1
        self._owner.due[self] = now + interval
        self.ask(now)

    def _watch(self, now: int) -> None:
        self._owner.tables.lanes.rearm(self.slot, "unanswered_reported")
        # A packet may have passed just before the report was cleared.
        since = self._unanswered_since(now)
        if since:
            self.on_unanswered(since)

    def _log_back(self) -> None:
        self._owner.note("lane %(lane)d of %(peer)s is back",
                         {"lane": self.number, "peer": self._owner.peer})

    def _declare_dead(self, before: State, now: int, since: int) -> None:
        self._owner.tables.lanes.set_dead(self.slot)
        # The address that we send from may be why there is no answer.
        self._owner.tables.lanes.forget_source_address(self.slot)
        fields = {"lane": self.number, "peer": self._owner.peer, "seconds": (now - since) // SECOND}
        if before is State.NEW:
            self._owner.warn("lane %(lane)d of %(peer)s: nothing arrives on its UDP port "
                             "(blocked?); moving its flows to other lanes", fields)
        elif before is State.OPENING:
            self._owner.warn("lane %(lane)d of %(peer)s: no reply on its UDP port (blocked?); "
                             "moving its flows to other lanes", fields)
        else:
            self._owner.warn("lane %(lane)d of %(peer)s is dead: no reply for %(seconds)d seconds; "
                             "moving its flows to other lanes", fields)
        self._probe(now)
        self._owner.on_dead(since, now)
