"""A WireGuard device without sockets and clocks: peers, handshakes, timers.

The supervisor feeds it handshake messages that the intake has let in (hot/admission.pxd: their
length, type and mac1 are right), the workers' events and the time; it answers through
callbacks and by changing the shared tables. It is up or down, as its interface is: while
it is down it has no sessions and sends nothing.

Order of the checks on a handshake message, behind the intake's: the Noise steps, the peer is
configured, the timestamp is new, not a flood; only then does anything change.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from fastpump._core import NO_SLOT, OFFLOAD_BITS, SharedTables
from fastpump.conn.endpoint import NO_LOCAL, Endpoint
from fastpump.constants import (
    KEEPALIVE_TIMEOUT,
    KEY_LEN,
    MIN_INITIATION_INTERVAL,
    REJECT_AFTER_TIME,
    REKEY_AFTER_TIME,
    REKEY_TIMEOUT,
    REKEY_TIMEOUT_JITTER,
    RESTART_INTERVAL,
    SECOND,
)
from fastpump.device.lanes import Lanes, Options
from fastpump.device.lanes import Surroundings as LanesSurroundings
from fastpump.device.peer import Peer
from fastpump.device.sessions import Sessions
from fastpump.errors import ConfigError
from fastpump.ip import Prefix
from fastpump.protocol import cookie, keys, noise, tai64n, wire
from fastpump.protocol.keypairs import Keypair
from fastpump.protocol.timers import Action, Activity
from fastpump.protocol.wire import CookieReply, Initiation, Response

log = logging.getLogger("fastpump.device")

TICK_LEN = 32       # peers looked at before others have their turn: some milliseconds


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a device needs of the world."""

    transmit: Callable[[bytes, Endpoint, bytes], None]
    """Send a message to an endpoint, from an own address (or NO_LOCAL)."""
    ring: Callable[[], None]
    """Have the workers look at what they have staged."""
    schedule: Callable[[], None]
    """The next deadline may have changed."""
    unix_ns: Callable[[], int]
    """The wall clock, for TAI64N."""
    jitter: Callable[[int], int]
    """A random number below its argument."""
    transmit_lane: Callable[[bytes, Endpoint, bytes, int | None], None] = lambda *_: None
    """That, for a lane message: by a lane socket, or from our port (None)."""
    endpoint_is_known: Callable[[Endpoint], None] = lambda _: None
    """A peer is at this endpoint: let its handshakes in when others must wait."""
    is_unanswered: Callable[[Peer], None] = lambda _: None
    """An initiation had no answer in time: the endpoint's name may mean another address."""


class Device:
    """All peers of one interface."""

    def __init__(self, tables: SharedTables, surroundings: Surroundings, family: int, *,
                 cpu_count: int = 1, lanes: Options | None = None,
                 is_steered: bool = False) -> None:
        """`family`: of the sockets (conn/endpoint.py). `lanes`: None for WireGuard only.
        `is_steered`: a program gives flows to queues, wherever they are written."""
        self._tables = tables
        self._family = family
        self._world = surroundings
        self._cpu_count = cpu_count
        self._is_steered = is_steered
        self._sessions = Sessions(tables)
        self.lanes = Lanes(tables, lanes or Options("wireguard"), LanesSurroundings(
            send_control=self._send_control, send_lane=surroundings.transmit_lane,
            ring=surroundings.ring), family)
        self._private_key = bytes(KEY_LEN)
        self._static: noise.DhKeyPair | None = None
        self.is_up = False
        self.peers: dict[bytes, Peer] = {}
        self._by_slot: dict[int, Peer] = {}
        self._peers_of_worker = [0] * tables.queue_count
        self._prefix_owner: dict[Prefix, Peer] = {}
        # (deadline, tie-breaker, peer); an entry counts if it is the peer's `watched_at`.
        self._deadlines: list[tuple[int, int, Peer]] = []
        self._sequence = itertools.count()
        self.verdicts: Counter[str] = Counter()
        """Handshake messages by what became of them; names as in docs/PROTOCOL.md."""

    # -- configuration

    @property
    def private_key(self) -> bytes:
        """Our static private key; zeros for none."""
        return self._private_key

    @property
    def public_key(self) -> bytes | None:
        """Our own static public key; None without a private key."""
        return None if self._static is None else self._static.public

    def set_private_key(self, private_key: bytes) -> None:
        """Be somebody else, or nobody (zeros): no session outlives that. A peer with our own
        public key is removed, as `wg` expects; and the key is clamped."""
        if any(private_key):
            private_key = keys.clamp(private_key)
        if private_key == self._private_key:
            return
        for peer in self.peers.values():
            self._forget_sessions(peer)
            peer.static_static = None
        self._private_key = private_key
        self._static = noise.DhKeyPair.from_private(private_key) if any(private_key) else None
        self.lanes.public_key = self.public_key or b""
        self._tables.set_own_id(_origin(self.public_key or b""))
        own = self.peers.get(self.public_key or b"")
        if own is not None:
            self.remove_peer(own)

    def add_peer(self, public_key: bytes) -> Peer:
        """A new peer; ConfigError for one that is there already, or for us."""
        if public_key in self.peers:
            raise ConfigError(f"the peer {keys.encode(public_key)} is given twice")
        if public_key == self.public_key:
            raise ConfigError("a peer has this side's own public key; give it the key that the "
                              "other side prints")
        worker = self._peers_of_worker.index(min(self._peers_of_worker))
        peer = Peer(public_key, self._tables.peer_add(), worker, cookie.mac1_key(public_key))
        self._peers_of_worker[worker] += 1
        self.peers[public_key] = peer
        self._by_slot[peer.slot] = peer
        self._tables.peer_set_id(peer.slot, _origin(public_key))
        self.lanes.add_peer(peer)
        self._spread()
        return peer

    def remove_peer(self, peer: Peer) -> None:
        """Forget a peer, its sessions and its allowed IPs."""
        for prefix in list(peer.allowed_ips):
            self.remove_allowed_ip(peer, prefix)
        self._forget_sessions(peer)
        peer.timers.stop()
        peer.watched_at = None
        self.lanes.remove_peer(peer)
        self._tables.peer_remove(peer.slot)
        del self.peers[peer.public_key], self._by_slot[peer.slot]
        self._peers_of_worker[peer.worker] -= 1
        self._spread()
        self._world.ring()

    def _spread(self) -> None:
        """Where no program steers flows to queues: with few peers, spread each peer's flows
        over as many workers as there are CPUs. With many, the peers spread themselves, and a
        peer's state is best kept on one core (hot/ingress.pxd). More workers than CPUs only
        take turns: 8 TCP streams over 4 queues were 14% slower on 2 CPUs when spread over
        all 4."""
        few = len(self.peers) < self._tables.queue_count and not self._is_steered
        self._tables.spread_queues = min(self._tables.queue_count, self._cpu_count) if few else 1

    def add_allowed_ip(self, peer: Peer, prefix: Prefix) -> None:
        """Route a prefix to the peer; it leaves whoever had it before. MemoryError when the
        table is full."""
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

    def set_endpoint(self, peer: Peer, endpoint: Endpoint, local: bytes = NO_LOCAL) -> None:
        """Where the peer is, and from which own address to speak to it."""
        if endpoint == peer.endpoint and local == peer.local:
            return
        self._tables.peer_set_endpoint(peer.slot, endpoint.sockaddr(self._family), local)
        self.lanes.endpoint_changed(peer, peer.endpoint, endpoint, local)
        peer.endpoint, peer.local = endpoint, local
        self._world.endpoint_is_known(endpoint)

    def transferred(self, peer: Peer) -> tuple[int, int]:
        """Bytes of messages received from the peer and sent to it."""
        return self._tables.peer_bytes(peer.slot)

    def set_persistent_keepalive(self, peer: Peer, seconds: int, now: int) -> None:
        """Say something at least so often; 0 for off."""
        interval_ns = seconds * SECOND
        if interval_ns == peer.timers.persistent_interval_ns:
            return              # what is said again puts nothing off
        due_at = now if peer.persistent_keepalive_s == 0 else now + interval_ns
        peer.timers.set_persistent(interval_ns, due_at if self.is_up else None)
        self.lanes.keep_alive(peer, now)
        self._watch(peer)

    # -- up and down

    def start(self, now: int) -> None:
        """The interface is up. Who had a session with us before still has it, and would send
        in vain until its timers notice: start a new one with each, one after the other."""
        self.is_up = True
        delay = 0
        for peer in self.peers.values():
            peer.timers.set_persistent(peer.timers.persistent_interval_ns, now)
            if peer.lost_session:
                peer.lost_session = False
                peer.timers.retransmit_at = now + delay
                delay += RESTART_INTERVAL
            self._watch(peer)

    def stop(self) -> None:
        """The interface is down: no session outlives that."""
        self.is_up = False
        for peer in self.peers.values():
            peer.lost_session = peer.keypairs.current is not None
            self._forget_sessions(peer)
            peer.timers.stop()

    def _forget_sessions(self, peer: Peer) -> None:
        self._end_handshake(peer)
        self.lanes.clear(peer)
        self._sessions.clear(peer)
        peer.timers.forget_session()
        peer.last_initiation_sent_at = None
        self._tables.peer_purge_staged(peer.slot)
        for event in ("want_session", "unanswered_tx", "unanswered_rx"):
            self._tables.peer_disarm(peer.slot, event)

    # -- time

    def next_deadline(self) -> int | None:
        """When `tick` wants to be called, CLOCK_BOOTTIME ns."""
        return self._deadlines[0][0] if self._deadlines else None

    def tick(self, now: int) -> None:
        """Run timers that are due, TICK_LEN at most: others must have their turn. If more are
        due, `next_deadline` says so."""
        for _ in range(TICK_LEN):
            if not self._deadlines or self._deadlines[0][0] > now:
                return
            deadline, _, peer = heapq.heappop(self._deadlines)
            if deadline != peer.watched_at:
                continue        # an earlier one has taken its place, or the peer is gone
            peer.watched_at = None
            activity = Activity(*self._tables.peer_activity(peer.slot))
            for action in peer.timers.expire(now, activity):
                self._act(peer, action, now, activity)
            self.lanes.tick(peer, now)
            self._watch(peer)

    def _watch(self, peer: Peer) -> None:
        """Have the peer looked at when its next timer is due. A later deadline than the
        one on the heap is not put there: `tick` finds nothing due, and comes here again."""
        deadlines = (peer.timers.deadline(), self.lanes.of(peer).deadline())
        deadline = min((each for each in deadlines if each is not None), default=None)
        if deadline is None or (peer.watched_at is not None and peer.watched_at <= deadline):
            return
        peer.watched_at = deadline
        heapq.heappush(self._deadlines, (deadline, next(self._sequence), peer))
        self._world.schedule()

    def _act(self, peer: Peer, action: Action, now: int, activity: Activity) -> None:
        if action is Action.INITIATE:
            self._forget_local(peer)    # it may be why there was no answer
            self._world.is_unanswered(peer)
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
            self.lanes.clear(peer)
            self._sessions.clear(peer)
            self._end_handshake(peer)

    def _look_again(self, peer: Peer) -> None:
        """A packet may have passed just before its event was allowed again."""
        activity = Activity(*self._tables.peer_activity(peer.slot))
        if activity.first_unanswered_tx_ns:
            peer.timers.unanswered_tx(activity.first_unanswered_tx_ns, self._jitter())
        if activity.first_unanswered_rx_ns:
            peer.timers.unanswered_rx(activity.first_unanswered_rx_ns)

    def _jitter(self) -> int:
        return self._world.jitter(REKEY_TIMEOUT_JITTER)

    # -- the workers' events

    def handle_events(self, worker: int, now: int) -> None:
        """Take and handle what one worker has to tell."""
        for kind, slot, detail, error, at in self._tables.worker_events(worker):
            if kind == "offload_off":
                log.warning("%s failed with errno %d and is off from now on; packets go "
                            "singly", _offload_name(detail), error)
                continue
            peer = self._by_slot.get(slot)
            if peer is None or not self.is_up:
                continue
            if kind == "want_session":
                self._want_session(peer, now)
            elif kind == "unanswered_tx":
                peer.timers.unanswered_tx(at, self._jitter())
            elif kind == "unanswered_rx":
                peer.timers.unanswered_rx(at)
            elif kind == "confirmed":
                self._confirm(peer, detail, now)
            elif kind == "rekey":
                if not self._is_late(peer, detail, now):
                    self._want_session(peer, now)
            elif kind == "roam":
                self._roam(peer)
            elif kind == "local_gone":
                self._forget_local(peer)
                self._tables.peer_disarm(peer.slot, "local_gone")
            elif kind == "lane_usable":
                self.lanes.lane_usable(peer, detail)
            elif kind == "lane_asked":
                self.lanes.lane_asked(peer, detail, now)
            elif kind == "lane_roam":
                self.lanes.lane_roams(peer, detail, now)
            elif kind == "lane_unanswered":
                self.lanes.lane_unanswered(peer, detail, at)
            elif kind == "send_error":
                log.warning("sending to %s fails with errno %d", peer, error)
            self._watch(peer)

    def handle_controls(self, worker: int, now: int) -> None:
        """Take and handle the control packets that one worker received; its events were
        handled."""
        for slot, local_index, data in self._tables.worker_controls(worker):
            peer = self._by_slot.get(slot)
            keypair = None if peer is None else peer.keypairs.by_index(local_index)
            if peer is None or keypair is None or not self.is_up:
                continue                # of a session that is gone
            verdict = self.lanes.receive(peer, keypair, data, now)
            if verdict is not None:
                self.verdicts[verdict] += 1
            self._watch(peer)

    def worker_is_dead(self, worker: int) -> None:
        """A worker's process has ended; its events were handled."""
        for slot in self._tables.worker_is_dead(worker):
            peer = self._by_slot.get(slot)
            if peer is not None and peer.endpoint is not None:
                self._tables.peer_set_endpoint(
                    slot, peer.endpoint.sockaddr(self._family), peer.local)
        for peer in self.peers.values():    # it may not have told of the last one
            self._roam(peer)
            if peer.endpoint is not None:
                self.lanes.endpoint_changed(peer, None, peer.endpoint, peer.local)

    def _roam(self, peer: Peer) -> None:
        """The worker that heard the peer from elsewhere sends there already."""
        self._tables.peer_disarm(peer.slot, "roam")     # first: it may be elsewhere again
        sockaddr, local = self._tables.peer_endpoint(peer.slot)
        if not sockaddr:
            return
        peer.local = local
        endpoint = Endpoint.from_sockaddr(sockaddr)
        if endpoint != peer.endpoint:
            log.debug("%s is at %s now", peer, endpoint)
            self.lanes.endpoint_changed(peer, peer.endpoint, endpoint, local)
            peer.endpoint = endpoint
            self._world.endpoint_is_known(endpoint)

    def _forget_local(self, peer: Peer) -> None:
        """Let the kernel choose the own address until the peer is heard again."""
        if peer.endpoint is not None:
            self.set_endpoint(peer, peer.endpoint)

    def _confirm(self, peer: Peer, slot: int, now: int) -> None:
        """The worker sends with it already; if it was dropped meanwhile, set that right."""
        dropped = peer.keypairs.confirm(slot)
        if dropped is None:
            self._sessions.publish(peer)
            return
        self._tables.keypair_confirm(slot)
        self._sessions.publish(peer)
        self._sessions.retire(dropped)
        self._handshake_done(peer)
        if peer.keypairs.current is not None:
            self.lanes.session_started(peer, peer.keypairs.current, now)

    # -- handshakes

    def _static_static(self, public_key: bytes) -> bytes:
        """What our static key and a configured peer's make."""
        peer = self.peers.get(public_key)
        if peer is None or self._static is None:
            raise noise.UnknownPeer("the initiator is no peer of ours")
        if peer.static_static is None:
            peer.static_static = self._static.exchange(public_key)
        return peer.static_static

    def _is_late(self, peer: Peer, detail: int, now: int) -> bool:
        """Whether a lane of an old set (NO_SLOT) asks for what was done in the meantime."""
        current = peer.keypairs.current
        return detail == NO_SLOT and current is not None \
            and now < current.created_ns + KEEPALIVE_TIMEOUT

    def sockets_changed(self, now: int) -> None:
        """We send from other ports now."""
        for peer in self.peers.values():
            self.lanes.sockets_changed(peer, now)

    def _want_session(self, peer: Peer, now: int) -> None:
        """A worker has data and no keys, or old ones."""
        peer.timers.attempts = 0
        if peer.timers.retransmit_at is None:
            self._initiate(peer, now)

    def _initiate(self, peer: Peer, now: int) -> None:
        last = peer.last_initiation_sent_at
        if peer.endpoint is None or self._static is None or not self.is_up:
            self._tables.peer_disarm(peer.slot, "want_session")
            return
        if last is not None and now < last + REKEY_TIMEOUT:
            peer.timers.initiation_sent(last, self._jitter())   # not more often than that
            return
        self._end_handshake(peer)
        try:
            slot, index = self._sessions.begin(peer)
        except MemoryError as error:    # a stopped worker keeps retired slots from reuse
            log.warning("no handshake with %s now: %s", peer, error)
            peer.timers.initiation_sent(now, self._jitter())
            return
        peer.timestamp_sent = tai64n.emit_after(peer.timestamp_sent, self._world.unix_ns())
        try:
            message, peer.handshake = noise.create_initiation(
                self._static, peer.public_key, index, peer.timestamp_sent,
                self._static_static(peer.public_key))
        except noise.HandshakeError as error:
            log.error("%s cannot be reached: %s", peer, error)
            self._sessions.abandon(slot, index)
            return
        peer.handshake_slot = slot
        peer.last_initiation_sent_at = now
        peer.timers.initiation_sent(now, self._jitter())
        self._transmit_handshake(peer, message, now)

    def _end_handshake(self, peer: Peer) -> None:
        """Drop a handshake under way, if there is one."""
        if peer.handshake is not None and peer.handshake_slot is not None:
            self._sessions.abandon(peer.handshake_slot, peer.handshake.local_index)
        peer.handshake = peer.handshake_slot = None

    def _give_up(self, peer: Peer) -> None:
        """REKEY_ATTEMPT_TIME without an answer: what waited for it is dropped."""
        log.warning("%s does not answer; giving up until there is something to send", peer)
        self._end_handshake(peer)
        self._tables.peer_purge_staged(peer.slot)
        # Let the workers ask for a session again.
        self._tables.peer_disarm(peer.slot, "want_session")
        if peer.keypairs.current is not None:
            self._tables.keypair_rearm_rekey(peer.keypairs.current.slot)
        self.lanes.rearm_rekey(peer)
        self._world.ring()

    def receive(self, message: bytes, source: Endpoint, local: bytes, now: int) -> None:
        """A handshake message that the intake has let in; `local` is the own address that
        it came to."""
        parsed = wire.parse(message)
        try:
            if self._static is None or not self.is_up:
                self.verdicts["DROP_INTERFACE_DOWN"] += 1
            elif isinstance(parsed, Initiation):
                self._receive_initiation(self._static, parsed, source, local, now)
            elif isinstance(parsed, Response):
                self._receive_response(self._static, parsed, source, local, now)
            elif isinstance(parsed, CookieReply):
                self._receive_cookie(parsed, now)
            else:
                self.verdicts["DROP_MALFORMED_HANDSHAKE"] += 1
        except noise.UnknownPeer:
            self.verdicts["DROP_UNKNOWN_PEER"] += 1
        except noise.HandshakeError as error:
            self.verdicts["DROP_INVALID_HANDSHAKE"] += 1
            log.debug("handshake message from %s dropped: %s", source, error)
        except MemoryError:         # no slot for a session
            self.verdicts["DROP_TABLE_FULL"] += 1

    def _receive_initiation(self, static: noise.DhKeyPair, message: Initiation,
                            source: Endpoint, local: bytes, now: int) -> None:
        initiation = noise.consume_initiation(static, message, self._static_static)
        peer = self.peers[initiation.peer_public]
        if initiation.timestamp <= peer.timestamp_seen:
            self.verdicts["DROP_REPLAYED_INITIATION"] += 1
            return
        seen = peer.last_initiation_seen_at
        if seen is not None and now < seen + MIN_INITIATION_INTERVAL:
            self.verdicts["DROP_INITIATION_FLOOD"] += 1
            return
        # The keypair before this one may have been confirmed just now: hear of it first.
        self.handle_events(peer.worker, now)
        slot, index = self._sessions.begin(peer)
        try:
            response, transport = noise.create_response(initiation, peer.preshared_key, index)
        except noise.HandshakeError:
            self._sessions.abandon(slot, index)
            raise
        peer.timestamp_seen = initiation.timestamp
        peer.last_initiation_seen_at = now
        keypair = self._sessions.install(peer, slot, index, initiation.remote_index, transport,
                                         now, is_initiator=False)
        self._sessions.retire(peer.keypairs.add_as_responder(keypair))
        self._sessions.publish(peer)
        self.set_endpoint(peer, source, local)
        peer.timers.session_derived(now)
        self._tables.peer_note_received(peer.slot, now, wire.INITIATION_LEN)
        self._transmit_handshake(peer, response, now)
        self._watch(peer)

    def _receive_response(self, static: noise.DhKeyPair, message: Response, source: Endpoint,
                          local: bytes, now: int) -> None:
        peer = self._sessions.peer_of(message.receiver_index)
        if peer is None or peer.handshake is None or peer.handshake_slot is None \
                or peer.handshake.local_index != message.receiver_index:
            self.verdicts["DROP_UNEXPECTED_RESPONSE"] += 1
            return
        transport = noise.consume_response(static, peer.handshake, peer.preshared_key, message)
        keypair = self._sessions.install(
            peer, peer.handshake_slot, peer.handshake.local_index, message.sender_index,
            transport, now, is_initiator=True)
        peer.handshake = peer.handshake_slot = None
        dropped = peer.keypairs.add_as_initiator(keypair)
        self.set_endpoint(peer, source, local)
        peer.timers.session_derived(now)
        self._tables.peer_note_received(peer.slot, now, wire.RESPONSE_LEN)
        self._sessions.publish(peer)
        self._sessions.retire(dropped)
        if not self.lanes.session_started(peer, keypair, now):
            self._keepalive(peer, now)  # proves to the responder that we have the keys
        self._handshake_done(peer)
        self._watch(peer)

    def _receive_cookie(self, reply: CookieReply, now: int) -> None:
        """The peer is under load, and serves those first who prove their address: the next
        try, REKEY_TIMEOUT after the last one, does."""
        peer = self._sessions.peer_of(reply.receiver_index)
        if peer is None or peer.last_mac1_sent is None:
            self.verdicts["DROP_UNEXPECTED_COOKIE"] += 1
            return
        found = cookie.open_reply(cookie.cookie_key(peer.public_key), peer.last_mac1_sent, reply)
        if found is None:
            self.verdicts["DROP_INVALID_COOKIE"] += 1
            return
        peer.cookie, peer.cookie_at, peer.last_mac1_sent = found, now, None
        log.debug("%s is under load, and gave a cookie", peer)

    def _handshake_done(self, peer: Peer) -> None:
        """A session is up: send what waited, and hear of the next need."""
        peer.latest_handshake_unix_ns = self._world.unix_ns()
        peer.timers.handshake_complete()
        self._end_handshake(peer)       # one of our own that the peer's overtook
        self._tables.peer_disarm(peer.slot, "want_session")
        self._world.ring()
        log.info("handshake with %s completed", peer)

    def _keepalive(self, peer: Peer, now: int) -> None:
        """Send an empty transport message; without a session, ask for one."""
        keypair = peer.keypairs.current
        if keypair is None or now >= keypair.created_ns + REJECT_AFTER_TIME:
            self._want_session(peer, now)
            return
        self._transmit(peer, self._sessions.seal(keypair), now)
        if keypair.is_initiator and now >= keypair.created_ns + REKEY_AFTER_TIME:
            self._want_session(peer, now)

    def _send_control(self, peer: Peer, keypair: Keypair, data: bytes, now: int) -> None:
        """Send a control packet in a session."""
        self._transmit(peer, self._sessions.seal(keypair, data), now)

    def _transmit_handshake(self, peer: Peer, message: Initiation | Response, now: int) -> None:
        sent = cookie.add_macs(message.emit(), peer.mac1_key, peer.usable_cookie(now))
        peer.last_mac1_sent = cookie.mac1_of(sent)
        self._transmit(peer, sent, now)

    def _transmit(self, peer: Peer, message: bytes, now: int) -> None:
        if peer.endpoint is not None:
            self._tables.peer_note_sent(peer.slot, now, len(message))
            self._world.transmit(message, peer.endpoint, peer.local)


def _origin(public_key: bytes) -> int:
    """What relay headers call the side with that key (docs/PROTOCOL.md)."""
    digest = hashlib.sha256(b"fastpump origin" + public_key).digest()
    return int.from_bytes(digest[:8], "little")


def _offload_name(bit: int) -> str:
    return next((name for name, value in OFFLOAD_BITS.items() if value == bit), str(bit))
