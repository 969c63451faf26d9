"""Whether the path to a peer loses what is large, where nobody can say so (docs/PROTOCOL.md).

A WireGuard peer cannot be probed. Two signs tell of a black hole:

TCP     a worker saw a large segment that was sent again and again (hot/resent.pxd). A handshake
        tells whether the peer is there at all: if the answer comes at once, the path is tried with
        BASE_PLPMTU, and the kernel of the connection told. If the segment arrives in pieces that
        fit, it was a black hole. If it arrives as it was, or not at all within TRIAL_TIME, it was
        something else: an outage, or a host behind the peer is gone. Then there is a pause, a long
        one from the second time on, since hosts remember what they were told.
else    data to the peer has no answer, the handshake after that has one, and data again has not.
        (A peer that receives any data answers it, by a keepalive at least.)

What was inferred holds until the peer is elsewhere, or for a while, longer each time: whoever can
send TCP to the peer can play all that. Accepted limits: TCP that lost the same segment several
times by chance looks the same, and costs an MTU of 1280 so long. And what the peer sends is its own
affair: only the TCP connections that open from then on are made to fit, both ways.
"""

from __future__ import annotations

from fastpump.conn.endpoint import Endpoint
from fastpump.constants import KEEPALIVE_TIMEOUT, REKEY_TIMEOUT, SECOND
from fastpump.device.lane_context import LanesContext
from fastpump.device.peer import Peer
from fastpump.protocol.timers import Activity, earliest

UNANSWERED_TIME = KEEPALIVE_TIMEOUT + REKEY_TIMEOUT
"""After that, data without an answer makes a handshake begin."""
ANSWER_TIME = SECOND
"""So soon the peer's answer to a handshake must come; a later one may be the end of an outage."""
TRIAL_TIME = 10 * SECOND
TRIAL_PAUSES = 20 * SECOND, 3600 * SECOND
"""After the first one that failed, and after all others."""
HOLD_TIMES = 600 * SECOND, 160 * 60 * SECOND
"""So long a black hole is believed in: the first time, and at most; twice as long each time."""


class BlackHole:
    """Of the path to one peer."""

    __slots__ = ("_answer_until", "_ask_at", "_context", "_hold_ns", "_hold_until", "_pause_ns",
                 "_peer", "_trial_at", "_trial_until", "_unanswered_at", "_watch_at", "endpoint")

    def __init__(self, peer: Peer, context: LanesContext) -> None:
        self._peer = peer
        self._context = context
        self.endpoint: Endpoint | None = None
        """Where the peer was when there was a black hole, or when one is tried; None: nowhere."""
        # By TCP: when the peer is asked for a handshake, until when its answer is awaited; the
        # trial; the pause after the next one, and its end.
        self._ask_at: int | None = None
        self._answer_until: int | None = None
        self._trial_at = 0
        self._trial_until: int | None = None
        self._pause_ns = TRIAL_PAUSES[0]
        self._watch_at: int | None = None
        # Until when it is certain, and for how long the next one is.
        self._hold_until: int | None = None
        self._hold_ns = HOLD_TIMES[0]
        # When data had no answer last.
        self._unanswered_at: int | None = None

    @property
    def is_certain(self) -> bool:
        """Not, or no longer, a trial."""
        return self.endpoint is not None and self._trial_until is None

    def clear(self) -> None:
        """Nothing is known any more: there is no session, or the peer has moved."""
        self.endpoint = self._ask_at = self._answer_until = self._trial_until = None
        self._unanswered_at = self._hold_until = None
        self._pause_ns, self._hold_ns = TRIAL_PAUSES[0], HOLD_TIMES[0]
        self._watch(None)

    def deadline(self) -> int | None:
        """When `tick` wants to be called next."""
        return earliest(self._ask_at, self._answer_until, self._trial_until, self._hold_until,
                        self._watch_at)

    def tick(self, now: int) -> None:
        """Run what is due."""
        if self._ask_at is not None and now >= self._ask_at:
            self._ask(now)
        if self._answer_until is not None and now >= self._answer_until:
            self._answer_until = None
            self._watch(now)
        if self._trial_until is not None and now >= self._trial_until:
            self.endpoint = self._trial_until = None
            self._watch(now + self._pause_ns)
            self._pause_ns = TRIAL_PAUSES[1]
        if self._hold_until is not None and now >= self._hold_until:
            self.endpoint = self._hold_until = None
            self._watch(None)
        if self._watch_at is not None and now >= self._watch_at:
            self._watch(None)

    def _ask(self, now: int) -> None:
        """For a handshake. The answer to one that waits already would not say what is wrong now."""
        self._ask_at = None
        if self._peer.handshake is not None:
            self._watch(now + REKEY_TIMEOUT)
            return
        self._answer_until = now + ANSWER_TIME
        self._context.callbacks.want_session(self._peer, now)

    def _hold(self, now: int) -> None:
        """It is certain now."""
        self._trial_until, self._hold_until = None, now + self._hold_ns
        self._hold_ns = min(2 * self._hold_ns, HOLD_TIMES[1])

    def _watch(self, at: int | None) -> None:
        """Have workers report what TCP sends again: from some time on; None: from now on."""
        self._watch_at = at
        if at is None:
            self._context.tables.peers.rearm(self._peer.slot, "resent")

    # -- TCP

    def on_resent(self, now: int) -> None:
        """A large TCP segment to the peer, whose path MTU is not known, was sent again and again.
        Workers say so once, until they are let."""
        if self.endpoint is not None or self.deadline() is not None:
            return
        last = self._peer.last_initiation_sent_at
        self._ask_at = now if last is None else max(now, last + REKEY_TIMEOUT)

    def on_resent_acked(self, was_small: bool, at: int, now: int) -> None:
        """That flow went on, at a time, after its segment was sent in pieces that fit, or was not:
        then nothing is wrong with the path."""
        self._context.tables.peers.rearm(self._peer.slot, "resent_acked")
        if self._trial_until is not None and was_small:
            if at > self._trial_at:
                self._hold(now)
        elif self._trial_until is not None or (self._watch_at is None and self.endpoint is None):
            self.endpoint = self._ask_at = self._answer_until = self._trial_until = None
            self._watch(None)

    def session_started(self, now: int) -> None:
        """Both sides have a new session: by the handshake that the peer was asked for?"""
        if self._answer_until is not None and now < self._answer_until:
            self._answer_until = None
            self.endpoint = self._peer.endpoint
            self._trial_at, self._trial_until = now, now + TRIAL_TIME

    # -- any data

    def on_unanswered(self, activity: Activity, session_at: int | None, now: int) -> None:
        """A handshake begins, since there was no answer. `session_at`: when the session began."""
        first = activity.first_unanswered_tx_ns
        if not first or now < first + UNANSWERED_TIME:
            return
        before, self._unanswered_at = self._unanswered_at, now
        if before is not None and session_at is not None and self.endpoint is None \
                and before <= session_at <= before + UNANSWERED_TIME \
                and activity.last_rx_ns <= session_at + REKEY_TIMEOUT:
            self.endpoint = self._peer.endpoint
            self._hold(now)
