"""A peer's timers: sans-I/O, time is an argument (WireGuard paper, section 6).

retransmit     an initiation was sent: REKEY_TIMEOUT and some jitter later send another,
               and after REKEY_ATTEMPT_TIME of that give up.
new_handshake  data was sent and nothing authentic came back for KEEPALIVE_TIMEOUT +
               REKEY_TIMEOUT: the peer may have forgotten us, start a handshake.
keepalive      data came and nothing was sent for KEEPALIVE_TIMEOUT: show that we are alive.
persistent     nothing went either way for the configured interval: keep the NAT open.
zero_keys      no new session for three times REJECT_AFTER_TIME: wipe all keys.

The kernel moves such timers at every packet. Here the data plane only notes times in
shared memory (Activity), notifies the supervisor when the first packet of a kind passes,
and a timer that fires looks at the notes: it acts, or moves itself on.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from fastpump.constants import (
    KEEPALIVE_TIMEOUT,
    MAX_HANDSHAKE_ATTEMPTS,
    REKEY_TIMEOUT,
    ZERO_KEYS_AFTER_TIME,
)


class Activity(NamedTuple):
    """The data plane's notes on a peer, ns; 0 for none."""

    first_unanswered_tx_ns: int
    first_unanswered_rx_ns: int
    last_tx_ns: int
    last_rx_ns: int


class Action(enum.Enum):
    """What the caller must do when a timer fires."""

    INITIATE = "initiate"
    GIVE_UP = "give up"
    KEEPALIVE = "keepalive"
    ZERO_KEYS = "zero keys"
    REARM_TX = "rearm tx"       # let the data plane report the next unanswered packet
    REARM_RX = "rearm rx"


def earliest(*times: int | None) -> int | None:
    """The first of some deadlines, those that do not run being None; None if none runs.

    A loop: `min` of a generator takes four times as long, and whenever a peer is configured or
    heard, all of its deadlines are asked for."""
    first = None
    for each in times:
        if each is not None and (first is None or each < first):
            first = each
    return first


@dataclass(slots=True)
class Timers:
    """Deadlines in ns, None when not running."""

    persistent_interval_ns: int = 0
    attempts: int = 0
    retransmit_at: int | None = None
    new_handshake_at: int | None = None
    keepalive_at: int | None = None
    persistent_at: int | None = None
    zero_keys_at: int | None = None

    def deadline(self) -> int | None:
        """When `expire` wants to be called next."""
        return earliest(self.retransmit_at, self.new_handshake_at, self.keepalive_at,
                        self.persistent_at, self.zero_keys_at)

    def set_persistent(self, interval_ns: int, due_at: int | None) -> None:
        """Configure persistent keepalive, 0 for off. `due_at`: when the first is due, None
        while the interface is down."""
        self.persistent_interval_ns = interval_ns
        self.persistent_at = due_at if interval_ns else None

    def initiation_sent(self, now: int, jitter: int) -> None:
        """An initiation left, or could not: the next try has its time."""
        self.retransmit_at = now + REKEY_TIMEOUT + jitter

    def session_derived(self, now: int) -> None:
        """New keys: after a response (initiator) or on answering one (responder)."""
        self.zero_keys_at = now + ZERO_KEYS_AFTER_TIME

    def handshake_complete(self) -> None:
        """Both sides have the keys: whoever started, no more initiations."""
        self.retransmit_at = None
        self.attempts = 0

    def unanswered_tx(self, at: int, jitter: int) -> None:
        """Data was sent at `at`, the first since the peer was received."""
        if self.new_handshake_at is None:
            self.new_handshake_at = at + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + jitter

    def unanswered_rx(self, at: int) -> None:
        """Data came at `at`, the first since we sent anything."""
        if self.keepalive_at is None:
            self.keepalive_at = at + KEEPALIVE_TIMEOUT

    def forget_session(self) -> None:
        """There are no keys and no handshake any more."""
        self.retransmit_at = self.new_handshake_at = self.keepalive_at = None
        self.zero_keys_at = None
        self.attempts = 0

    def stop(self) -> None:
        """The peer is gone, or the interface down."""
        self.forget_session()
        self.persistent_at = None

    def expire(self, now: int, activity: Activity) -> list[Action]:
        """Run what is due; what the caller must do, in order."""
        actions: list[Action] = []
        if self.retransmit_at is not None and now >= self.retransmit_at:
            actions += self._retransmit(now)
        if self.new_handshake_at is not None and now >= self.new_handshake_at:
            actions += self._new_handshake(now, activity)
        if self.keepalive_at is not None and now >= self.keepalive_at:
            actions += self._keepalive(now, activity)
        if self.persistent_at is not None and now >= self.persistent_at:
            actions += self._persistent(now, activity)
        if self.zero_keys_at is not None and now >= self.zero_keys_at:
            self.zero_keys_at = None
            actions.append(Action.ZERO_KEYS)
        return actions

    def _retransmit(self, now: int) -> list[Action]:
        self.retransmit_at = None
        self.attempts += 1
        if self.attempts >= MAX_HANDSHAKE_ATTEMPTS:
            self.attempts = 0
            if self.zero_keys_at is None:
                self.zero_keys_at = now + ZERO_KEYS_AFTER_TIME
            return [Action.GIVE_UP]
        return [Action.INITIATE]

    def _new_handshake(self, now: int, activity: Activity) -> list[Action]:
        first = activity.first_unanswered_tx_ns
        due = first + KEEPALIVE_TIMEOUT + REKEY_TIMEOUT
        self.new_handshake_at = None
        if first == 0:
            return [Action.REARM_TX]
        if now < due:
            self.new_handshake_at = due
            return []
        return [Action.INITIATE, Action.REARM_TX]

    def _keepalive(self, now: int, activity: Activity) -> list[Action]:
        first = activity.first_unanswered_rx_ns
        self.keepalive_at = None
        if first == 0:
            return [Action.REARM_RX]
        if now < first + KEEPALIVE_TIMEOUT:
            self.keepalive_at = first + KEEPALIVE_TIMEOUT
            return []
        return [Action.KEEPALIVE, Action.REARM_RX]

    def _persistent(self, now: int, activity: Activity) -> list[Action]:
        due = max(activity.last_tx_ns, activity.last_rx_ns) + self.persistent_interval_ns
        if now < due:
            self.persistent_at = due
            return []
        self.persistent_at = now + self.persistent_interval_ns
        return [Action.KEEPALIVE]
