"""What the log and `fastpump status` say of handshakes that fail.

At the initiator: that there is no handshake with a peer, when the second initiation leaves, and the
last reason that is known. At the responder: whose handshakes are rejected, and of a peer that does
not use the sessions that it is given. Each is told once until a handshake succeeds.

Anyone who knows our public key can cause rejections, or replay a peer's old initiations. So lines
about them are few: BURST at once, then one in INTERVAL. A key is told only if the sender has proved
to have the private key of it. That costs two Diffie-Hellmans, which are few as well: BURST at once,
then one pair a second. If many peers do not answer, the first SILENT are named.
"""

from __future__ import annotations

import logging

from fastpump.conn.endpoint import Endpoint
from fastpump.constants import SECOND
from fastpump.device.log_budget import LogBudget
from fastpump.device.peer import Peer
from fastpump.device.send_errors import SendErrors
from fastpump.protocol import keys, noise
from fastpump.protocol.wire import Initiation

log = logging.getLogger("fastpump.device")

BURST = 5
INTERVAL = 60 * SECOND
SILENT = 50
SILENT_INTERVAL = 5 * SECOND
STRANGERS = 32
"""Keys that are remembered, so as to tell each only once."""
UNUSED_SESSIONS = 3
"""Sessions in a row that a peer has not used before that is told: an answer may be lost."""

NO_ANSWER = "no answer: its address or our key there may be wrong, it may be down, or UDP blocked"
NOT_AUTHENTIC = "its answer is not authentic: do both sides have the same preshared key?"


class HandshakeProblems:
    """Of all peers of a device."""

    def __init__(self, send_errors: SendErrors) -> None:
        self._send_errors = send_errors
        self._silent = LogBudget(SILENT, SILENT_INTERVAL)
        self._rejections = LogBudget(BURST, INTERVAL)
        self._proofs = LogBudget(BURST, SECOND)
        self._strangers: dict[bytes, None] = {}     # the oldest first

    def of(self, peer: Peer) -> str | None:
        """The last reason that is known why there is no handshake with a peer; None for none."""
        if peer.handshake_tries == 0:
            return None
        error = self._send_errors.of(peer)
        return peer.handshake_problem or None if error is None else f"sending fails: {error}"

    def forget(self, peer: Peer) -> None:
        """A handshake has succeeded, or there is to be none."""
        peer.handshake_tries = peer.sessions_unused = 0
        peer.handshake_problem, peer.is_old_told = "", False

    # -- as initiator

    def initiates(self, peer: Peer, now: int) -> None:
        """An initiation leaves."""
        peer.handshake_tries += 1
        if peer.handshake_tries > 1:
            peer.handshake_problem = peer.handshake_problem or NO_ANSWER
        if peer.handshake_tries == 2:
            self._warn(now, "no handshake with %(peer)s: %(problem)s; trying on",
                       {"peer": peer, "problem": self.of(peer)})

    def cannot_initiate(self, peer: Peer, why: str, now: int) -> None:
        """No initiation could be made; there will be another try."""
        peer.handshake_tries += 1
        if peer.handshake_problem != why:
            self._warn(now, "no handshake with %(peer)s now: %(problem)s",
                       {"peer": peer, "problem": why})
        peer.handshake_problem = why

    def gives_up(self, peer: Peer, now: int) -> None:
        """None of the tries had an answer."""
        self._warn(now, "%(peer)s does not answer; giving up until there is something to send",
                   {"peer": peer})

    def is_not_authentic(self, peer: Peer) -> None:
        """A response to our initiation cannot be opened."""
        peer.handshake_problem = NOT_AUTHENTIC

    def _warn(self, now: int, message: str, fields: dict[str, object]) -> None:
        log.log(logging.WARNING if self._silent.take(now) else logging.DEBUG, message, fields)

    # -- as responder

    def responds(self, peer: Peer, now: int) -> None:
        """A response leaves; the peer may not have used the sessions before."""
        peer.sessions_unused += 1
        if peer.sessions_unused == UNUSED_SESSIONS:
            self._warn(now, "%(peer)s starts handshake after handshake, and uses none of the "
                       "sessions: our answers do not reach it, or its preshared key is another",
                       {"peer": peer})

    def is_old(self, peer: Peer, sender: Endpoint, now: int) -> None:
        """An initiation of the peer is older than its last one."""
        if not peer.is_old_told and self._rejections.take(now):
            peer.is_old_told = True
            log.warning("a handshake of %(peer)s from %(endpoint)s was rejected, as it is older "
                        "than the last one: its clock was set back, or somebody replays it"
                        "%(others)s", {"peer": peer, "endpoint": sender, "others": self._others()})

    def is_unknown(self, public_key: bytes, static: noise.DhKeyPair, message: Initiation,
                   sender: Endpoint, now: int) -> None:
        """An initiation is of a key that is no peer's."""
        if public_key in self._strangers or not self._proofs.take(now):
            return
        try:
            noise.consume_initiation(static, message, static.exchange)
        except noise.HandshakeError:
            return                  # whoever sent it does not have that key
        if not self._rejections.take(now):
            return
        if len(self._strangers) >= STRANGERS:
            del self._strangers[next(iter(self._strangers))]
        self._strangers[public_key] = None
        log.warning("a handshake from %(endpoint)s was rejected: its public key %(public_key)s is "
                    "not a peer's here%(others)s", {
                        "endpoint": sender, "public_key": keys.encode(public_key),
                        "others": self._others()})

    def _others(self) -> str:
        """Of the rejections since the last line, how many there was no line for."""
        missed = self._rejections.missed + self._proofs.missed
        self._rejections.missed = self._proofs.missed = 0
        return f" ({missed} others were rejected before)" if missed else ""
