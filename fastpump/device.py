"""A WireGuard device without sockets and clocks: peers, handshakes, sessions.

The supervisor feeds it handshake messages, the workers' events and the time; it answers
through three callbacks and by changing the shared tables:

    transmit(message, endpoint)   a handshake message or keepalive to send
    ring()                        workers should look at what they have staged
    schedule()                    the next deadline may have changed

Order of the checks on a handshake message: length and type, mac1, the Noise steps, the
peer is configured, the timestamp is new, not a flood; only then does anything change.
"""

from __future__ import annotations

import heapq
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fastpump import cookie, keys, noise, tai64n, wire
from fastpump._core import SharedTables
from fastpump.constants import (
    KEEPALIVE_TIMEOUT,
    KEY_LEN,
    MIN_INITIATION_INTERVAL,
    REJECT_AFTER_TIME,
    REKEY_AFTER_TIME,
    REKEY_TIMEOUT,
    REKEY_TIMEOUT_JITTER,
    SECOND,
    TIMESTAMP_LEN,
)
from fastpump.endpoint import Endpoint
from fastpump.errors import ConfigError
from fastpump.keypairs import Keypair, Keypairs
from fastpump.timers import Action, Activity, Timers
from fastpump.wire import Initiation, Response

log = logging.getLogger("fastpump.device")

Prefix = tuple[bytes, int]
"""An allowed IP: 4 or 16 address bytes, and the prefix length."""


@dataclass(slots=True, eq=False)
class Peer:
    """One peer: configuration, handshake and sessions. Times are CLOCK_BOOTTIME ns."""

    public_key: bytes
    slot: int
    worker: int
    mac1_key: bytes
    preshared_key: bytes = bytes(KEY_LEN)
    endpoint: Endpoint | None = None
    allowed_ips: set[Prefix] = field(default_factory=set)
    timers: Timers = field(default_factory=Timers)
    keypairs: Keypairs = field(default_factory=Keypairs)
    handshake: noise.InitiatorState | None = None
    handshake_slot: int | None = None
    last_initiation_sent_at: int | None = None
    last_initiation_seen_at: int | None = None
    timestamp_sent: bytes = bytes(TIMESTAMP_LEN)
    timestamp_seen: bytes = bytes(TIMESTAMP_LEN)
    watched_at: int | None = None
    """When the device looks at the timers next."""
    latest_handshake_unix: int = 0
    """Seconds since 1970 of the last handshake that succeeded; 0 for never."""

    def __str__(self) -> str:
        """For the log: enough of the key to know it by, and where it is."""
        name = keys.encode(self.public_key)
        where = f" ({self.endpoint})" if self.endpoint else ""
        return f"peer {name[:4]}…{name[-5:-1]}{where}"


class Device:
    """All peers of one interface."""

    def __init__(self, tables: SharedTables, private_key: bytes, family: int, *,
                 transmit: Callable[[bytes, Endpoint], None], ring: Callable[[], None],
                 schedule: Callable[[], None], unix_ns: Callable[[], int],
                 jitter: Callable[[int], int], cpu_count: int = 1) -> None:
        """`unix_ns` is the wall clock (for TAI64N), `jitter(n)` a random number below n."""
        self._tables = tables
        self._static = noise.StaticKey(private_key)
        self._mac1_key = cookie.mac1_key(self._static.public)
        self._family = family
        self._transmit = transmit
        self._ring = ring
        self._schedule = schedule
        self._unix_ns = unix_ns
        self._jitter = jitter
        self._cpu_count = cpu_count
        self.peers: dict[bytes, Peer] = {}
        self._by_slot: dict[int, Peer] = {}
        self._by_handshake: dict[int, Peer] = {}
        self._prefix_owner: dict[Prefix, Peer] = {}
        # (deadline, tie-breaker, peer); an entry counts if it is the peer's `watched_at`.
        self._deadlines: list[tuple[int, int, Peer]] = []
        self._sequence = itertools.count()
        self.verdicts: Counter[str] = Counter()
        """Handshake messages by what became of them; names as in docs/PROTOCOL.md."""

    @property
    def public_key(self) -> bytes:
        """Our own static public key."""
        return self._static.public

    # -- configuration

    def add_peer(self, public_key: bytes, now: int, *, preshared_key: bytes | None = None,
                 endpoint: Endpoint | None = None, allowed_ips: Iterable[Prefix] = (),
                 persistent_keepalive_s: int = 0) -> Peer:
        """Configure a new peer; ConfigError for one that is there already or is us."""
        if public_key in self.peers:
            raise ConfigError(f"the peer {keys.encode(public_key)} is given twice")
        if public_key == self.public_key:
            raise ConfigError("a peer has this side's own public key; give it the key that the "
                              "other side prints")
        loads = Counter(peer.worker for peer in self.peers.values())
        worker = min(range(self._tables.queue_count), key=lambda number: loads[number])
        peer = Peer(public_key, self._tables.peer_add(), worker, cookie.mac1_key(public_key))
        self.peers[public_key] = peer
        self._by_slot[peer.slot] = peer
        if preshared_key is not None:
            peer.preshared_key = preshared_key
        if endpoint is not None:
            self._set_endpoint(peer, endpoint)
        for prefix in allowed_ips:
            self.add_allowed_ip(peer, prefix)
        if persistent_keepalive_s:
            peer.timers.set_persistent(now, persistent_keepalive_s * SECOND)
        self._watch(peer)
        self._spread()
        return peer

    def remove_peer(self, peer: Peer) -> None:
        """Forget a peer, its sessions and its allowed IPs."""
        for prefix in list(peer.allowed_ips):
            self.remove_allowed_ip(peer, prefix)
        peer.timers.stop()
        peer.watched_at = None
        self._end_handshake(peer)
        self._tables.peer_set_send_keypair(peer.slot, None)
        self._retire(peer.keypairs.clear())
        self._tables.peer_remove(peer.slot)
        del self.peers[peer.public_key], self._by_slot[peer.slot]
        self._spread()
        self._ring()

    def _spread(self) -> None:
        """Few peers: spread each peer's flows over as many workers as there are CPUs.
        Many: the peers spread themselves, and a peer's state is best kept on one core
        (hot/ingress.pxd). More workers than CPUs only take turns: 8 TCP streams over 4
        queues were 14% slower on 2 CPUs when spread over all 4."""
        few = len(self.peers) < self._tables.queue_count
        self._tables.spread_queues = min(self._tables.queue_count, self._cpu_count) if few else 1

    def add_allowed_ip(self, peer: Peer, prefix: Prefix) -> None:
        """Route a prefix to the peer; it leaves whoever had it before."""
        owner = self._prefix_owner.get(prefix)
        self._tables.allowed_insert(*prefix, peer.slot)
        if owner is not None:
            owner.allowed_ips.discard(prefix)
        self._prefix_owner[prefix] = peer
        peer.allowed_ips.add(prefix)

    def remove_allowed_ip(self, peer: Peer, prefix: Prefix) -> None:
        """Take a prefix away from the peer, if it has it."""
        if self._prefix_owner.get(prefix) is not peer:
            return
        self._tables.allowed_remove(*prefix)
        del self._prefix_owner[prefix]
        peer.allowed_ips.discard(prefix)

    def _set_endpoint(self, peer: Peer, endpoint: Endpoint) -> None:
        if endpoint != peer.endpoint:
            self._tables.peer_set_endpoint(peer.slot, endpoint.sockaddr(self._family))
            peer.endpoint = endpoint

    # -- time

    def next_deadline(self) -> int | None:
        """When `tick` wants to be called, CLOCK_BOOTTIME ns."""
        return self._deadlines[0][0] if self._deadlines else None

    def tick(self, now: int) -> None:
        """Run all timers that are due."""
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, _, peer = heapq.heappop(self._deadlines)
            if deadline != peer.watched_at:
                continue        # an earlier one has taken its place, or the peer is gone
            peer.watched_at = None
            activity = Activity(*self._tables.peer_activity(peer.slot))
            for action in peer.timers.expire(now, activity):
                self._act(peer, action, now, activity)
            self._watch(peer)

    def _watch(self, peer: Peer) -> None:
        """Have the peer looked at when its next timer is due. A later deadline than the
        one on the heap is not put there: `tick` finds nothing due, and comes here again."""
        deadline = peer.timers.deadline()
        if deadline is None or (peer.watched_at is not None and peer.watched_at <= deadline):
            return
        peer.watched_at = deadline
        heapq.heappush(self._deadlines, (deadline, next(self._sequence), peer))
        self._schedule()

    def _act(self, peer: Peer, action: Action, now: int, activity: Activity) -> None:
        if action is Action.INITIATE:
            self._initiate(peer, now)
        elif action is Action.KEEPALIVE:
            self._keepalive(peer, now)
        elif action is Action.DISARM_TX:
            self._tables.peer_disarm(peer.slot, "unanswered_tx", activity.first_unanswered_tx_ns)
            self._look_again(peer)
        elif action is Action.DISARM_RX:
            self._tables.peer_disarm(peer.slot, "unanswered_rx", activity.first_unanswered_rx_ns)
            self._look_again(peer)
        elif action is Action.GIVE_UP:
            self._give_up(peer)
        elif action is Action.ZERO_KEYS:
            self._tables.peer_set_send_keypair(peer.slot, None)
            self._retire(peer.keypairs.clear())
            self._end_handshake(peer)

    def _look_again(self, peer: Peer) -> None:
        """A packet may have passed just before its event was allowed again."""
        activity = Activity(*self._tables.peer_activity(peer.slot))
        if activity.first_unanswered_tx_ns:
            peer.timers.unanswered_tx(activity.first_unanswered_tx_ns,
                                      self._jitter(REKEY_TIMEOUT_JITTER))
        if activity.first_unanswered_rx_ns:
            peer.timers.unanswered_rx(activity.first_unanswered_rx_ns)

    # -- the workers' events

    def handle_events(self, worker: int, now: int) -> None:
        """Take and handle what one worker has to tell."""
        for kind, slot, detail, error, at, sockaddr in self._tables.worker_events(worker):
            if kind == "offload_off":
                log.warning("%s failed with errno %d and is off from now on; packets go "
                            "singly", _offload_name(detail), error)
                continue
            peer = self._by_slot.get(slot)
            if peer is None:
                continue
            if kind == "want_session":
                self._want_session(peer, now)
            elif kind == "unanswered_tx":
                peer.timers.unanswered_tx(at, self._jitter(REKEY_TIMEOUT_JITTER))
            elif kind == "unanswered_rx":
                peer.timers.unanswered_rx(at)
            elif kind == "confirmed":
                self._confirm(peer, detail)
            elif kind == "rekey":
                self._want_session(peer, now)
            elif kind == "roam":
                self._roam(peer, detail, sockaddr)
            elif kind == "send_error":
                log.warning("sending to %s fails with errno %d", peer, error)
            self._watch(peer)

    def _roam(self, peer: Peer, slot: int, sockaddr: bytes) -> None:
        known = (peer.keypairs.current, peer.keypairs.previous, peer.keypairs.next)
        if any(keypair is not None and keypair.slot == slot for keypair in known):
            endpoint = Endpoint.from_sockaddr(sockaddr)
            if endpoint != peer.endpoint:
                log.debug("%s is at %s now", peer, endpoint)
            self._set_endpoint(peer, endpoint)
        self._tables.peer_disarm(peer.slot, "roam")

    def _confirm(self, peer: Peer, slot: int) -> None:
        """The worker sends with it already; if it was dropped meanwhile, set that right."""
        dropped = peer.keypairs.confirm(slot)
        if dropped is None:
            self._use_current(peer)
            return
        self._tables.keypair_confirm(slot)
        self._use_current(peer)
        self._retire(dropped)
        self._handshake_done(peer)

    # -- handshakes

    def _want_session(self, peer: Peer, now: int) -> None:
        """A worker has data and no keys, or old ones."""
        peer.timers.attempts = 0
        if peer.timers.retransmit_at is None:
            self._initiate(peer, now)

    def _initiate(self, peer: Peer, now: int) -> None:
        jitter = self._jitter(REKEY_TIMEOUT_JITTER)
        last = peer.last_initiation_sent_at
        if peer.endpoint is None:
            self._tables.peer_disarm(peer.slot, "want_session")
            return
        if last is not None and now < last + REKEY_TIMEOUT:
            peer.timers.initiation_sent(last, jitter)   # not more often than that
            return
        self._end_handshake(peer)
        try:
            peer.handshake_slot, index = self._tables.keypair_reserve(peer.worker)
        except MemoryError as error:    # a stopped worker keeps retired slots from reuse
            log.warning("no handshake with %s now: %s", peer, error)
            peer.timers.initiation_sent(now, jitter)
            return
        peer.timestamp_sent = tai64n.emit_after(peer.timestamp_sent, self._unix_ns())
        try:
            message, peer.handshake = noise.create_initiation(
                self._static, peer.public_key, index, peer.timestamp_sent)
        except noise.HandshakeError as error:
            log.error("%s cannot be reached: %s", peer, error)
            self._end_handshake(peer)
            return
        self._by_handshake[index] = peer
        peer.last_initiation_sent_at = now
        peer.timers.initiation_sent(now, jitter)
        self._transmit_counted(peer, cookie.add_macs(message.emit(), peer.mac1_key), now)

    def _end_handshake(self, peer: Peer) -> None:
        """Drop a handshake under way, if there is one."""
        if peer.handshake is not None:
            self._by_handshake.pop(peer.handshake.local_index, None)
            peer.handshake = None
        if peer.handshake_slot is not None:
            self._tables.keypair_retire(peer.handshake_slot)
            peer.handshake_slot = None

    def _give_up(self, peer: Peer) -> None:
        """REKEY_ATTEMPT_TIME without an answer: what waited for it is dropped."""
        log.warning("%s does not answer; giving up until there is something to send", peer)
        self._end_handshake(peer)
        self._tables.peer_purge_staged(peer.slot)
        self._rearm(peer)
        self._ring()

    def _rearm(self, peer: Peer) -> None:
        """Let the workers ask for a session again."""
        self._tables.peer_disarm(peer.slot, "want_session")
        if peer.keypairs.current is not None:
            self._tables.keypair_rearm_rekey(peer.keypairs.current.slot)

    def receive(self, message: bytes, source: Endpoint, now: int) -> None:
        """A datagram from the handshake socket."""
        parsed = wire.parse(message)
        if parsed is None:
            is_cookie = message[:1] == b"\3" and len(message) == wire.COOKIE_REPLY_LEN
            self.verdicts["DROP_COOKIE_REPLY" if is_cookie else "DROP_MALFORMED_HANDSHAKE"] += 1
        elif not cookie.mac1_is_valid(message, self._mac1_key):
            self.verdicts["DROP_INVALID_MAC1"] += 1
        else:
            try:
                if isinstance(parsed, Initiation):
                    self._receive_initiation(parsed, source, now)
                else:
                    self._receive_response(parsed, source, now)
            except noise.HandshakeError as error:
                self.verdicts["DROP_INVALID_HANDSHAKE"] += 1
                log.debug("handshake message from %s dropped: %s", source, error)
            except MemoryError:         # no slot for a session
                self.verdicts["DROP_TABLE_FULL"] += 1

    def _receive_initiation(self, message: Initiation, source: Endpoint, now: int) -> None:
        initiation = noise.consume_initiation(self._static, message)
        peer = self.peers.get(initiation.peer_public)
        if peer is None:
            self.verdicts["DROP_UNKNOWN_PEER"] += 1
            return
        if initiation.timestamp <= peer.timestamp_seen:
            self.verdicts["DROP_REPLAYED_INITIATION"] += 1
            return
        seen = peer.last_initiation_seen_at
        if seen is not None and now < seen + MIN_INITIATION_INTERVAL:
            self.verdicts["DROP_INITIATION_FLOOD"] += 1
            return
        # The keypair before this one may have been confirmed just now: hear of it first.
        self.handle_events(peer.worker, now)
        slot, index = self._tables.keypair_reserve(peer.worker)
        try:
            response, transport = noise.create_response(initiation, peer.preshared_key, index)
        except noise.HandshakeError:
            self._tables.keypair_retire(slot)
            raise
        peer.timestamp_seen = initiation.timestamp
        peer.last_initiation_seen_at = now
        keypair = self._install(peer, slot, index, initiation.remote_index, transport, now,
                                is_initiator=False)
        self._retire(peer.keypairs.add_as_responder(keypair))
        self._use_current(peer)
        self._set_endpoint(peer, source)
        peer.timers.session_derived(now)
        self._tables.peer_note_received(peer.slot, now, wire.INITIATION_LEN)
        self._transmit_counted(peer, cookie.add_macs(response.emit(), peer.mac1_key), now)
        self._watch(peer)

    def _receive_response(self, message: Response, source: Endpoint, now: int) -> None:
        peer = self._by_handshake.get(message.receiver_index)
        if peer is None or peer.handshake is None or peer.handshake_slot is None:
            self.verdicts["DROP_UNEXPECTED_RESPONSE"] += 1
            return
        transport = noise.consume_response(self._static, peer.handshake, peer.preshared_key,
                                           message)
        keypair = self._install(peer, peer.handshake_slot, peer.handshake.local_index,
                                message.sender_index, transport, now, is_initiator=True)
        peer.handshake_slot = None
        self._end_handshake(peer)
        dropped = peer.keypairs.add_as_initiator(keypair)
        self._set_endpoint(peer, source)
        peer.timers.session_derived(now)
        self._tables.peer_note_received(peer.slot, now, wire.RESPONSE_LEN)
        self._use_current(peer)
        self._retire(dropped)
        self._keepalive(peer, now)      # proves to the responder that we have the keys
        self._handshake_done(peer)
        self._watch(peer)

    def _install(self, peer: Peer, slot: int, local_index: int, remote_index: int,
                 transport: noise.TransportKeys, now: int, *, is_initiator: bool) -> Keypair:
        self._tables.keypair_install(
            slot, local_index, remote_index, peer.slot, peer.worker, transport.send,
            transport.receive, is_initiator, now + REKEY_AFTER_TIME,
            now + REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT, now + REJECT_AFTER_TIME)
        return Keypair(slot, local_index, remote_index, transport.send, is_initiator, now)

    def _use_current(self, peer: Peer) -> None:
        """Publish what the workers shall seal with."""
        current = peer.keypairs.current
        self._tables.peer_set_send_keypair(peer.slot, None if current is None else current.slot)

    def _handshake_done(self, peer: Peer) -> None:
        """A session is up: send what waited, and hear of the next need."""
        peer.latest_handshake_unix = self._unix_ns() // SECOND
        peer.timers.handshake_complete()
        self._end_handshake(peer)       # one of our own that the peer's overtook
        self._tables.peer_disarm(peer.slot, "want_session")
        self._ring()
        log.info("handshake with %s completed", peer)

    def _retire(self, keypairs: Iterable[Keypair]) -> None:
        for keypair in keypairs:
            self._tables.keypair_retire(keypair.slot)

    def _keepalive(self, peer: Peer, now: int) -> None:
        """Send an empty transport message; without a session, ask for one."""
        keypair = peer.keypairs.current
        if keypair is None or now >= keypair.created_ns + REJECT_AFTER_TIME:
            self._want_session(peer, now)
            return
        counter = self._tables.keypair_take_counter(keypair.slot)
        nonce = bytes(4) + counter.to_bytes(8, "little")
        sealed = ChaCha20Poly1305(keypair.send_key).encrypt(nonce, b"", b"")
        self._transmit_counted(
            peer, wire.transport_header(keypair.remote_index, counter) + sealed, now)
        if keypair.is_initiator and now >= keypair.created_ns + REKEY_AFTER_TIME:
            self._want_session(peer, now)

    def _transmit_counted(self, peer: Peer, message: bytes, now: int) -> None:
        if peer.endpoint is not None:
            self._tables.peer_note_sent(peer.slot, now, len(message))
            self._transmit(message, peer.endpoint)


def _offload_name(bit: int) -> str:
    from fastpump._core import OFFLOAD_BITS
    return next((name for name, value in OFFLOAD_BITS.items() if value == bit), str(bit))
