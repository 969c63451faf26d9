"""Handshakes with peers: how sessions come about (WireGuard paper, 5.4).

initiator   want_session -> initiation; the retransmit timer repeats it (protocol/timers.py) until
            a response gives a keypair, which is used at once, or the device gives up
responder   initiation -> response and a keypair, `next`, that waits until a worker receives the
            first message on it (confirm); only then do we send with it
cookie      a peer under load answers with one; our next message to it carries proof of it

Order of the checks on a handshake message, after those of admission control (hot/admission.pxd):
the Noise steps, the peer is configured, the timestamp is new, not a flood; only then does anything
change.

A worker that receives the first message on `next` sends with it from then on, and reports that to
the device by an event. Whoever hands over handshake messages must hand over the workers' events
that came before them (device/handshake_queue.py): an initiation drops an unconfirmed `next`, and
would drop a session that both sides already use.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastpump._core import NO_SLOT, SharedTables
from fastpump.conn.endpoint import Endpoint
from fastpump.constants import (
    KEEPALIVE_TIMEOUT,
    MIN_INITIATION_INTERVAL,
    REJECT_AFTER_TIME,
    REKEY_AFTER_TIME,
    REKEY_TIMEOUT,
    REKEY_TIMEOUT_JITTER,
)
from fastpump.device.callbacks import DeviceCallbacks
from fastpump.device.endpoints import Endpoints
from fastpump.device.handshake_problems import HandshakeProblems
from fastpump.device.lanes import Lanes
from fastpump.device.peer import Peer
from fastpump.device.send_errors import SendErrors
from fastpump.device.sessions import Sessions
from fastpump.device.timestamps import Timestamps
from fastpump.protocol import cookie, noise, wire
from fastpump.protocol.wire import CookieReply, Initiation, Response
from fastpump.verdicts import Verdict

log = logging.getLogger("fastpump.device")


class Handshakes:
    """The handshakes of all peers of a device."""

    def __init__(self, tables: SharedTables, peers: Mapping[bytes, Peer], sessions: Sessions,
                 endpoints: Endpoints, lanes: Lanes, send_errors: SendErrors,
                 callbacks: DeviceCallbacks) -> None:
        self._tables = tables
        self._peers = peers
        self._sessions = sessions
        self._endpoints = endpoints
        self._lanes = lanes
        self._callbacks = callbacks
        self.problems = HandshakeProblems(send_errors)
        self.timestamps = Timestamps(callbacks)
        self.static: noise.DhKeyPair | None = None
        """Our static key pair; without one no initiation is sent, and `receive` is not called."""

    # -- as initiator

    def want_session(self, peer: Peer, now: int) -> None:
        """There is something to send and no session, or an old one."""
        peer.timers.attempts = 0
        if peer.timers.retransmit_at is None:
            self.initiate(peer, now)

    def want_rekey(self, peer: Peer, slot: int, now: int) -> None:
        """A worker finds the keys in `slot` old; NO_SLOT: those of a set of lanes, which may be
        an older set than the current session's."""
        current = peer.keypairs.current
        is_done = slot == NO_SLOT and current is not None \
            and now < current.created_ns + KEEPALIVE_TIMEOUT
        if not is_done:
            self.want_session(peer, now)

    def initiate(self, peer: Peer, now: int) -> None:
        """Send an initiation, at most one in REKEY_TIMEOUT."""
        last = peer.last_initiation_sent_at
        if peer.endpoint is None or self.static is None:
            self._tables.peers.rearm(peer.slot, "want_session")
        elif last is not None and now < last + REKEY_TIMEOUT:
            peer.timers.initiation_sent(last, self._jitter())
        else:
            self._initiate(self.static, peer, now)

    def initiate_anew(self, peer: Peer, now: int) -> None:
        """The same, elsewhere if the last one had no answer and there is another place."""
        if peer.handshake is not None:
            self._endpoints.try_next(peer)
        self.initiate(peer, now)

    def _initiate(self, static: noise.DhKeyPair, peer: Peer, now: int) -> None:
        self.abandon(peer)
        try:
            slot, index = self._sessions.begin(peer)
        except MemoryError as error:    # a stopped worker keeps retired slots from reuse
            self.problems.cannot_initiate(peer, str(error), now)
            peer.timers.initiation_sent(now, self._jitter())
            return
        peer.timestamp_sent = self.timestamps.after(peer.timestamp_sent)
        try:
            message, peer.handshake = noise.create_initiation(
                static, peer.public_key, index, peer.timestamp_sent,
                self._static_static(peer.public_key))
        except noise.HandshakeError as error:
            log.error("%(peer)s cannot be reached: %(error)s", {"peer": peer, "error": error})
            self._sessions.abandon(slot, index)
            return
        except BaseException:
            self._sessions.abandon(slot, index)
            raise
        peer.handshake_slot = slot
        peer.last_initiation_sent_at = now
        peer.timers.initiation_sent(now, self._jitter())
        self.problems.initiates(peer, now)
        self._send(peer, message, now)

    def redirect(self, peer: Peer, now: int) -> None:
        """The peer is said to be elsewhere: a handshake that is under way begins anew there, and
        does not wait for REKEY_TIMEOUT."""
        if peer.handshake is not None and self.static is not None:
            self._initiate(self.static, peer, now)

    def abandon(self, peer: Peer) -> None:
        """Drop a handshake of ours that is under way, if there is one."""
        if peer.handshake is not None and peer.handshake_slot is not None:
            self._sessions.abandon(peer.handshake_slot, peer.handshake.local_index)
        peer.handshake = peer.handshake_slot = None

    def give_up(self, peer: Peer, now: int) -> None:
        """REKEY_ATTEMPT_TIME without an answer: drop what is staged, and let workers ask again."""
        self.problems.gives_up(peer, now)
        self._endpoints.try_next(peer)
        self.abandon(peer)
        self._tables.peers.purge_staged(peer.slot)
        self._tables.peers.rearm(peer.slot, "want_session")
        if peer.keypairs.current is not None:
            self._tables.keypairs.rearm_rekey(peer.keypairs.current.slot)
        self._lanes.of(peer).sets.rearm_rekey()
        self._callbacks.ring()

    # -- messages

    def receive(self, message: bytes, sender: Endpoint, source_address: bytes,
                now: int) -> Peer | str:
        """Handle an admitted message; `source_address` is the address of ours that it came to. The
        peer whose handshake it advanced, or the verdict that dropped it."""
        parsed = wire.parse(message)
        try:
            match parsed:
                case Initiation():
                    return self._receive_initiation(parsed, sender, source_address, now)
                case Response():
                    return self._receive_response(parsed, sender, source_address, now)
                case CookieReply():
                    return self._receive_cookie(parsed, now)
                case _:
                    return Verdict.DROP_MALFORMED_HANDSHAKE
        except noise.UnknownPeer as unknown:
            assert self.static is not None
            assert isinstance(parsed, Initiation)
            self.problems.is_unknown(unknown.public_key, self.static, parsed, sender, now)
            return Verdict.DROP_UNKNOWN_PEER
        except noise.HandshakeError as error:
            log.debug("handshake message from %(endpoint)s dropped: %(error)s",
                      {"endpoint": sender, "error": error})
            return Verdict.DROP_INVALID_HANDSHAKE
        except MemoryError:         # no slot for a session
            return Verdict.DROP_TABLE_FULL

    def _receive_initiation(self, message: Initiation, sender: Endpoint, source_address: bytes,
                            now: int) -> Peer | str:
        assert self.static is not None
        initiation = noise.consume_initiation(self.static, message, self._static_static)
        peer = self._peers[initiation.peer_public]
        if initiation.timestamp <= peer.timestamp_seen:
            if initiation.timestamp < peer.timestamp_seen:      # else the network doubled it
                self.problems.is_old(peer, sender, now)
            return peer.drop(Verdict.DROP_REPLAYED_INITIATION)
        seen = peer.last_initiation_seen_at
        if seen is not None and now < seen + MIN_INITIATION_INTERVAL:
            return peer.drop(Verdict.DROP_INITIATION_FLOOD)
        slot, index = self._sessions.begin(peer)
        try:
            response, transport = noise.create_response(initiation, peer.preshared_key, index)
        except BaseException:
            self._sessions.abandon(slot, index)
            raise
        peer.timestamp_seen = initiation.timestamp
        peer.last_initiation_seen_at = now
        keypair = self._sessions.install(peer, slot, index, initiation.remote_index, transport,
                                         now, is_initiator=False)
        self._sessions.retire(peer.keypairs.add_as_responder(keypair))
        self._sessions.publish(peer)
        self._received(peer, sender, source_address, wire.INITIATION_LEN, now)
        self.problems.responds(peer, now)
        self._send(peer, response, now)
        return peer

    def _receive_response(self, message: Response, sender: Endpoint, source_address: bytes,
                          now: int) -> Peer | str:
        assert self.static is not None
        peer = self._sessions.peer_of(message.receiver_index)
        if peer is None or peer.handshake is None or peer.handshake_slot is None \
                or peer.handshake.local_index != message.receiver_index:
            return Verdict.DROP_UNEXPECTED_RESPONSE
        try:
            transport = noise.consume_response(self.static, peer.handshake, peer.preshared_key,
                                               message)
        except noise.HandshakeError:
            self.problems.is_not_authentic(peer)
            peer.drop(Verdict.DROP_INVALID_HANDSHAKE)
            raise
        keypair = self._sessions.install(
            peer, peer.handshake_slot, peer.handshake.local_index, message.sender_index,
            transport, now, is_initiator=True)
        peer.handshake = peer.handshake_slot = None
        dropped = peer.keypairs.add_as_initiator(keypair)
        self._received(peer, sender, source_address, wire.RESPONSE_LEN, now)
        self._sessions.publish(peer)
        self._sessions.retire(dropped)
        if not self._lanes.of(peer).session_started(keypair, now):
            self.keepalive(peer, now)   # proves to the responder that we have the keys
        self._complete(peer)
        return peer

    def _receive_cookie(self, reply: CookieReply, now: int) -> Peer | str:
        """The peer is under load, and prefers senders that prove their address, as our next
        initiation will, REKEY_TIMEOUT after the last one."""
        peer = self._sessions.peer_of(reply.receiver_index)
        if peer is None or peer.last_mac1_sent is None:
            return Verdict.DROP_UNEXPECTED_COOKIE
        found = cookie.open_reply(cookie.cookie_key(peer.public_key), peer.last_mac1_sent, reply)
        if found is None:
            return peer.drop(Verdict.DROP_INVALID_COOKIE)
        peer.cookie, peer.cookie_at, peer.last_mac1_sent = found, now, None
        log.debug("%(peer)s is under load and sent a cookie", {"peer": peer})
        return peer

    # -- sessions

    def confirm(self, peer: Peer, slot: int, now: int) -> None:
        """The first message came on the keypair in `slot`. Its worker sends with it already; if
        it was dropped meanwhile, have the worker send with the current one again."""
        dropped = peer.keypairs.confirm(slot)
        if dropped is None:
            self._sessions.publish(peer)
            return
        self._tables.keypairs.confirm(slot)
        self._sessions.publish(peer)
        self._sessions.retire(dropped)
        self._complete(peer)
        if peer.keypairs.current is not None:
            self._lanes.of(peer).session_started(peer.keypairs.current, now)

    def keepalive(self, peer: Peer, now: int) -> None:
        """Send an empty transport message; without a session, start one."""
        keypair = peer.keypairs.current
        if keypair is None or now >= keypair.created_ns + REJECT_AFTER_TIME:
            self.want_session(peer, now)
            return
        self._endpoints.send(peer, self._sessions.seal(keypair), now)
        if keypair.is_initiator and now >= keypair.created_ns + REKEY_AFTER_TIME:
            self.want_session(peer, now)

    def clear(self, peer: Peer) -> None:
        """Forget the peer's keys and handshake, and the lanes that came of them."""
        self.abandon(peer)
        self._lanes.of(peer).clear()
        self._sessions.clear(peer)

    def _received(self, peer: Peer, sender: Endpoint, source_address: bytes, length: int,
                  now: int) -> None:
        """An authentic message of `length` bytes made new keys: the peer is where it came from."""
        self._endpoints.set(peer, sender, source_address)
        peer.timers.session_derived(now)
        self._tables.peers.record_received(peer.slot, now, length)

    def _complete(self, peer: Peer) -> None:
        """Both sides have the keys: send what is staged, and let workers report again."""
        peer.latest_handshake_unix_ns = self._callbacks.unix_ns()
        peer.timers.handshake_complete()
        self.problems.forget(peer)
        self.abandon(peer)              # one of our own that the peer's overtook
        self._tables.peers.rearm(peer.slot, "want_session")
        self._callbacks.ring()
        log.info("handshake with %(peer)s completed", {"peer": peer})

    # -- tools

    def _static_static(self, public_key: bytes) -> bytes:
        """The Diffie-Hellman result of our static key and a configured peer's."""
        peer = self._peers.get(public_key)
        if peer is None or self.static is None:
            raise noise.UnknownPeer(public_key)
        if peer.static_static is None:
            peer.static_static = self.static.exchange(public_key)
        return peer.static_static

    def _send(self, peer: Peer, message: Initiation | Response, now: int) -> None:
        sent = cookie.add_macs(message.emit(), peer.mac1_key, peer.usable_cookie(now))
        peer.last_mac1_sent = cookie.mac1_of(sent)
        if isinstance(message, Initiation):
            self._endpoints.send_initiation(peer, sent, now)
        else:
            self._endpoints.send(peer, sent, now)

    def _jitter(self) -> int:
        return self._callbacks.jitter(REKEY_TIMEOUT_JITTER)
