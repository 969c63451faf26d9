"""Lanes of a device's peers: the upgrade of their sessions, and which lanes live.

Sans-I/O: time is an argument; messages leave through callbacks. The device tells of new
sessions, control packets and workers' events; the shared tables (hot/shm.pxd) are changed.

Upgrade (protocol/lane_messages.py has the messages): the session's initiator says HELLO in its
first message. A responder that does lanes answers with OFFER, the initiator with ACCEPT, and both
have a set of lanes. Each side repeats what was not answered. A peer that says nothing is asked
once more in a session at most, and not even that when it has been silent in the sessions before.

A set of lanes: one side, the opener, has a socket of its own for each lane, and probes them all
when the set is new: the first message on a lane tells the other side where it comes from, and
the answer that the way is free. Each side sends on a lane once it has heard the peer there.
The opener of the set before stays the opener, so that lane n of both uses the same sockets.

Which sets there are: the newest three. Workers send on the newest two, lane by lane (hot/lane.pxd);
the third is still received. A set ends with its session's age, or when the peer
says in a HELLO or OFFER that it has none of ours, or when it has a new session and is not heard
on its lanes any more: it was restarted.

A lane with data that is not answered is probed; LANE_DEAD_AFTER_PROBES without an answer, and
its flows move to others. It is probed on, slowly, until it is heard again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from fastpump._core import FEATURE_BUNDLE, FEATURE_PARTIAL, NewLanes, SharedTables, aead
from fastpump.conn.endpoint import NO_LOCAL, Endpoint
from fastpump.constants import (
    HELLO_TIMEOUT,
    KEEPALIVE_TIMEOUT,
    LANE_ANSWER_INTERVAL,
    LANE_DEAD_AFTER_PROBES,
    LANE_PROBE_INTERVALS,
    LANE_UNANSWERED_TIME,
    LANES_PROOF_TIME,
    REJECT_AFTER_TIME,
    REKEY_AFTER_TIME,
    REKEY_TIMEOUT,
    SECOND,
    UPGRADE_ATTEMPTS,
)
from fastpump.device.peer import Peer
from fastpump.protocol import lane_messages, wire
from fastpump.protocol.keypairs import Keypair
from fastpump.protocol.lane_messages import (
    Abilities,
    Accept,
    Hello,
    Mode,
    Offer,
    Refusal,
    Refuse,
    Terms,
)

log = logging.getLogger("fastpump.lanes")

MAX_SETS = 3
# Unanswered HELLOs in a row after which a peer is asked once in a session.
SILENT_SESSIONS = 3
SILENT = "it does not say that it does lanes"
_NEVER = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator wants of lanes."""

    transport: str = "auto"
    """auto, wireguard (never lanes) or lanes (nothing else)."""
    ciphers: tuple[str, ...] = ("aes-256-gcm", "chacha20-poly1305")
    """Names of upgrade.CIPHER_NUMBERS, the best first."""
    features: int = FEATURE_PARTIAL | FEATURE_BUNDLE
    mode: Mode = Mode.TUN
    socket_count: int = 0
    """Of the lane sockets; a multiple of the queues."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What lanes need of the world."""

    send_control: Callable[[Peer, Keypair, bytes, int], None]
    """Send a control packet in a session; b"" for a keepalive."""
    send_lane: Callable[[bytes, Endpoint, bytes, int | None], None]
    """Send a lane message to an endpoint, from an own address, by a lane socket (by its
    number; None for our port)."""
    ring: Callable[[], None]
    """Have the workers look at what they have staged."""


@dataclass(slots=True)
class Probe:
    """A lane that is being asked for an answer."""

    due_at: int
    sent: int = 0


@dataclass(slots=True, eq=False)
class LaneSet:
    """Lanes that were agreed on at one time."""

    first: int
    """The table's slot of lane 0; the others follow."""
    local_index: int
    count: int
    created_ns: int
    is_opener: bool = False
    remote_index: int = 0
    cipher: str = ""
    send_keys: list[bytes] = field(default_factory=list, repr=False)
    probes: dict[int, Probe] = field(default_factory=dict)
    complaints_left: int = 3
    """Lanes of which the log tells that they do not work."""
    dead: set[int] = field(default_factory=set)
    """Lanes that were probed long enough."""

    @property
    def reject_at(self) -> int:
        """When its keys are too old."""
        return self.created_ns + REJECT_AFTER_TIME


@dataclass(slots=True, eq=False)
class Attempt:
    """An upgrade under way. Its messages are kept as they were sent and received."""

    keypair: Keypair
    message: bytes = b""
    """Ours that may have to be repeated; b"" when nothing has."""
    retry_at: int | None = None
    tries_left: int = 0
    hello: bytes = b""
    offer: bytes = b""
    accept: bytes = b""
    reserved: LaneSet | None = None
    kem_key: MLKEM768PrivateKey | None = field(default=None, repr=False)
    is_done: bool = False
    is_silent: bool = False
    """Not repeated any more; a late answer counts all the same."""
    answers_left: int = 2 * UPGRADE_ATTEMPTS
    """How often a repeated message of the peer's is answered again."""


@dataclass(slots=True, eq=False)
class PeerLanes:
    """All that is known of one peer's lanes."""

    sets: list[LaneSet] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    """One for each of the peer's sessions at most: both sides may start one at once."""
    does_lanes: bool = False
    """It has done so since we know it."""
    silent_sessions: int = 0
    refusal: str = ""
    proof_at: int | None = None
    """When it must have been heard on its lanes; since `proof_since`."""
    proof_since: int = 0
    session_answered_at: int = 0
    """When a probe was last answered by the session, too."""
    session_answer_at: int | None = None
    """When one has to be."""
    keepalive_at: int | None = None
    mtu_said: int = 0

    def deadline(self) -> int | None:
        """When `Lanes.tick` wants to be called next."""
        times = [self.proof_at, self.keepalive_at, self.session_answer_at]
        times += [attempt.retry_at for attempt in self.attempts]
        for each in self.sets:
            times += [each.reject_at, *(probe.due_at for probe in each.probes.values())]
        return min((time for time in times if time is not None), default=None)

    def attempt_of(self, keypair: Keypair) -> Attempt | None:
        """The upgrade of a session, under way or done."""
        return next((each for each in self.attempts if each.keypair is keypair), None)

    @property
    def is_upgrading(self) -> bool:
        """Whether lanes may come of what is under way."""
        return not all(each.is_done or each.is_silent for each in self.attempts)


class Lanes:
    """The lanes of all peers of a device."""

    def __init__(self, tables: SharedTables, options: Options, surroundings: Surroundings,
                 family: int) -> None:
        self._tables = tables
        self._options = options
        self._world = surroundings
        self._family = family
        self._by_peer: dict[Peer, PeerLanes] = {}
        self.public_key = b""
        """Our own static public key."""

    # -- what the device tells

    def add_peer(self, peer: Peer) -> None:
        """A new peer."""
        self._by_peer[peer] = PeerLanes()
        self._set_policy(peer, "lanes")

    def remove_peer(self, peer: Peer) -> None:
        """The peer is about to go."""
        self.clear(peer)
        del self._by_peer[peer]

    def clear(self, peer: Peer) -> None:
        """Forget all lanes of a peer: it has no session any more."""
        state = self._by_peer[peer]
        for attempt in list(state.attempts):
            self._end_attempt(state, attempt)
        self._drop_sets(peer, state)
        state.proof_at = state.keepalive_at = state.session_answer_at = None

    def of(self, peer: Peer) -> PeerLanes:
        """The state of a peer's lanes."""
        return self._by_peer[peer]

    def session_started(self, peer: Peer, keypair: Keypair, now: int) -> bool:
        """Both sides have a new session. As its initiator, say HELLO in it, which proves the
        keys as a keepalive does; False if there is nothing to say."""
        state = self._by_peer[peer]
        if state.sets or self._options.transport == "lanes":
            state.proof_at, state.proof_since = now + LANES_PROOF_TIME, now
        if self._options.transport == "wireguard" or not keypair.is_initiator:
            return False
        attempt = self._begin_attempt(peer, state, keypair)
        attempt.hello = attempt.message = Hello(self._abilities(state)).emit()
        if state.does_lanes or self._options.transport == "lanes":
            attempt.tries_left = UPGRADE_ATTEMPTS - 1
        elif state.silent_sessions < SILENT_SESSIONS:
            attempt.tries_left = 1
        attempt.retry_at = now + HELLO_TIMEOUT
        self._world.send_control(peer, keypair, attempt.message, now)
        return True

    def receive(self, peer: Peer, keypair: Keypair, data: bytes, now: int) -> str | None:
        """A control packet that came in a session; the verdict if it is dropped."""
        if self._options.transport == "wireguard":
            return "DROP_CONTROL_UNWANTED"
        parsed = lane_messages.parse(data)
        if parsed is None:
            return "DROP_MALFORMED_CONTROL"
        state = self._by_peer[peer]
        verdict = self._receive(peer, state, keypair, *parsed, now)
        if isinstance(parsed[0], Hello | Offer):
            self._publish(peer, state)      # the worker may have taken away what we keep
        return verdict

    def _receive(self, peer: Peer, state: PeerLanes, keypair: Keypair,
                 message: lane_messages.Message,
                 whole: bytes, now: int) -> str | None:
        if isinstance(message, Hello) and not keypair.is_initiator:
            return self._receive_hello(peer, state, keypair, message, whole, now)
        attempt = state.attempt_of(keypair)
        if attempt is None:
            return "DROP_UNEXPECTED_CONTROL"
        if isinstance(message, Offer) and keypair.is_initiator:
            return self._receive_offer(peer, state, attempt, message, whole, now)
        if isinstance(message, Accept) and not keypair.is_initiator:
            return self._receive_accept(peer, state, attempt, message, whole, now)
        if isinstance(message, Refuse) and keypair.is_initiator and not attempt.is_done:
            self._refused(peer, state, attempt, lane_messages.REFUSAL_TEXTS[message.reason])
            return None
        return "DROP_UNEXPECTED_CONTROL"

    def lane_usable(self, peer: Peer, slot: int) -> None:
        """The peer was heard on a lane: workers send there from now on."""
        state = self._by_peer[peer]
        found = self._find(state, slot)
        if found is None:
            return
        lane_set, number = found
        self._tables.lanes.rearm(slot, "usable_reported")
        lane_set.probes.pop(number, None)
        if number in lane_set.dead:
            lane_set.dead.discard(number)
            log.log(logging.INFO if lane_set.complaints_left else logging.DEBUG,
                    "lane %d of %s is back", number, peer)
        if self._options.transport == "lanes":
            self._world.ring()

    def lane_echo_request(self, peer: Peer, slot: int, now: int) -> None:
        """The peer wants an answer on a lane."""
        found = self._find(self._by_peer[peer], slot)
        if found is None:
            return
        self._tables.lanes.rearm(slot, "echo_reported")
        state = self._by_peer[peer]
        if state.session_answer_at is None:
            state.session_answer_at = max(now, state.session_answered_at + SECOND)
            self._answer_by_session(peer, state, now)
        if now >= self._tables.lanes.status(slot)["last_tx_ns"] + LANE_ANSWER_INTERVAL:
            self._send_lane(*found, 0, now)

    def _answer_by_session(self, peer: Peer, state: PeerLanes, now: int) -> None:
        """Let the peer know where our session and our lanes are, if it is time."""
        if state.session_answer_at is None or now < state.session_answer_at:
            return
        state.session_answer_at, state.session_answered_at = None, now
        if peer.keypairs.current is not None:
            self._world.send_control(peer, peer.keypairs.current, b"", now)
        if state.sets and state.sets[0].is_opener:
            self._send_all(state.sets[0], now)

    def sockets_changed(self, peer: Peer, now: int) -> None:
        """We have other sockets: the peer has to hear on each lane where it comes from."""
        for lane_set in self._by_peer[peer].sets[:1]:
            self._send_all(lane_set, now)

    def _send_all(self, lane_set: LaneSet, now: int) -> None:
        for number in range(lane_set.count):
            self._send_lane(lane_set, number, 0, now)

    def lane_roams(self, peer: Peer, slot: int, now: int) -> None:
        """The peer was heard from elsewhere on a lane: ask, and it answers by the session,
        too, so that its endpoint follows."""
        found = self._find(self._by_peer[peer], slot)
        if found is not None:
            self._tables.lanes.rearm(slot, "roam_reported")
            self._send_lane(*found, wire.LANE_FLAG_ECHO_REQUEST, now)

    def lane_unanswered(self, peer: Peer, slot: int, at: int) -> None:
        """Data left on a lane at `at`, the first since the peer was heard there."""
        found = self._find(self._by_peer[peer], slot)
        if found is not None:
            lane_set, number = found
            lane_set.probes.setdefault(number, Probe(at + LANE_UNANSWERED_TIME))

    def rearm_rekey(self, peer: Peer) -> None:
        """Let the workers ask for a new session again; the last attempt failed."""
        for lane_set in self._by_peer[peer].sets:
            for slot in range(lane_set.first, lane_set.first + lane_set.count):
                self._tables.lanes.rearm(slot, "rekey_reported")

    def endpoint_changed(self, peer: Peer, before: Endpoint | None, after: Endpoint,
                         local: bytes) -> None:
        """The session's endpoint was at `before`: so were lanes that we opened."""
        old = b"" if before is None else before.sockaddr(self._family)
        for lane_set in self._by_peer[peer].sets:
            if not lane_set.is_opener:
                continue
            for slot in range(lane_set.first, lane_set.first + lane_set.count):
                if self._tables.lanes.endpoint(slot)[0] in (b"", old):
                    self._tables.lanes.set_endpoint(slot, after.sockaddr(self._family), local)

    def tick(self, peer: Peer, now: int) -> None:
        """Run what is due."""
        state = self._by_peer[peer]
        for attempt in list(state.attempts):
            if peer.keypairs.by_index(attempt.keypair.local_index) is not attempt.keypair:
                self._end_attempt(state, attempt)       # nothing may be sealed with it
            elif attempt.retry_at is not None and now >= attempt.retry_at:
                self._retry(peer, state, attempt, now)
        if state.proof_at is not None and now >= state.proof_at:
            state.proof_at = None
            if not self._heard_since(state, state.proof_since):
                current = peer.keypairs.current
                was_asked = current is not None and state.attempt_of(current) is not None
                self._lost(peer, state, (was_asked and state.refusal) or SILENT)
        for lane_set in [each for each in state.sets if now >= each.reject_at]:
            self._drop_set(peer, state, lane_set)
        for lane_set in state.sets:
            for number in [n for n, probe in lane_set.probes.items() if now >= probe.due_at]:
                self._probe(peer, lane_set, number, now)
        if state.keepalive_at is not None and now >= state.keepalive_at:
            self.keep_alive(peer, now)
        self._answer_by_session(peer, state, now)

    def keep_alive(self, peer: Peer, now: int) -> None:
        """Persistent keepalive is on or was changed: keep each lane's NAT mapping open."""
        state = self._by_peer[peer]
        interval = peer.timers.persistent_interval_ns
        state.keepalive_at = None
        if interval == 0 or not state.sets:
            return
        newest = state.sets[0]
        oldest_tx = now
        for number in range(newest.count):
            last = self._tables.lanes.status(newest.first + number)["last_tx_ns"]
            if now >= last + interval:
                self._send_lane(newest, number, 0, now)
                last = now
            oldest_tx = min(oldest_tx, last)
        # The session's as well: lanes keep the peer's timer from sending there.
        if peer.keypairs.current is not None and now >= state.session_answered_at + interval:
            state.session_answered_at = now
            self._world.send_control(peer, peer.keypairs.current, b"", now)
        state.keepalive_at = oldest_tx + interval

    # -- the upgrade

    def _abilities(self, state: PeerLanes) -> Abilities:
        options = self._options
        return Abilities(
            options.mode, tuple(lane_messages.CIPHER_NUMBERS[name] for name in options.ciphers),
            self._tables.queue_count, options.features, self._tables.mtu,
            in_use=state.sets[0].remote_index if state.sets else 0)

    def _receive_hello(self, peer: Peer, state: PeerLanes, keypair: Keypair, message: Hello,
                       whole: bytes, now: int) -> str | None:
        attempt = state.attempt_of(keypair)
        if attempt is not None:
            if attempt.hello != whole or attempt.answers_left == 0:
                return "DROP_UNEXPECTED_CONTROL"
            attempt.answers_left -= 1
            self._world.send_control(peer, keypair, attempt.offer, now)
            return None
        self._note(peer, state, keypair, message.abilities)
        ours = self._abilities(state)
        terms = lane_messages.agree(message.abilities, ours)
        attempt = self._begin_attempt(peer, state, keypair)
        attempt.hello = whole
        if isinstance(terms, Refusal):
            attempt.offer = Refuse(terms).emit()
            self._world.send_control(peer, keypair, attempt.offer, now)
            self._refused(peer, state, attempt, lane_messages.REFUSAL_TEXTS[terms])
            return None
        try:
            first, index = self._tables.lanes.reserve(peer.slot, terms.lanes)
        except MemoryError:
            self._end_attempt(state, attempt)
            return "DROP_TABLE_FULL"
        attempt.reserved = LaneSet(first, index, terms.lanes, keypair.created_ns)
        attempt.kem_key = MLKEM768PrivateKey.generate()
        attempt.offer = attempt.message = Offer(
            ours, index, bool(state.sets) and state.sets[0].is_opener,
            attempt.kem_key.public_key().public_bytes_raw()).emit()
        attempt.tries_left = UPGRADE_ATTEMPTS - 1
        attempt.retry_at = now + HELLO_TIMEOUT
        self._world.send_control(peer, keypair, attempt.offer, now)
        return None

    def _receive_offer(self, peer: Peer, state: PeerLanes, attempt: Attempt, message: Offer,
                       whole: bytes, now: int) -> str | None:
        if attempt.is_done:
            if attempt.offer != whole or attempt.answers_left == 0:
                return "DROP_UNEXPECTED_CONTROL"
            attempt.answers_left -= 1
            self._world.send_control(peer, attempt.keypair, attempt.message, now)
            return None
        hello = lane_messages.parse(attempt.hello)
        assert hello is not None and isinstance(hello[0], Hello)
        terms = lane_messages.agree(hello[0].abilities, message.abilities)
        if isinstance(terms, Refusal):
            self._refused(peer, state, attempt, lane_messages.REFUSAL_TEXTS[terms])
            return None
        try:
            secret, ciphertext = lane_messages.encapsulate(message.kem_key)
        except ValueError:
            return "DROP_MALFORMED_CONTROL"
        self._note(peer, state, attempt.keypair, message.abilities)
        try:
            first, index = self._tables.lanes.reserve(peer.slot, terms.lanes)
        except MemoryError:
            return "DROP_TABLE_FULL"
        lane_set = LaneSet(first, index, terms.lanes, attempt.keypair.created_ns)
        accept = Accept(index, ciphertext).emit()
        attempt.offer, attempt.message, attempt.is_done = whole, accept, True
        attempt.retry_at = None
        keys = lane_messages.derive(attempt.keypair.exported, secret, self.public_key,
                                    peer.public_key,
                              attempt.hello, whole, accept, terms)
        lane_set.is_opener = not message.responder_opens
        lane_set.remote_index = message.index
        self._install(peer, state, lane_set, keys.to_responder, keys.to_initiator, terms,
                      message.abilities, attempt.keypair)
        self._world.send_control(peer, attempt.keypair, accept, now)
        self._open(peer, state, lane_set, now)
        return None

    def _receive_accept(self, peer: Peer, state: PeerLanes, attempt: Attempt, message: Accept,
                        whole: bytes, now: int) -> str | None:
        lane_set, kem_key = attempt.reserved, attempt.kem_key
        if lane_set is None or kem_key is None:     # repeated, or the answer to a REFUSE
            return None if whole == attempt.accept else "DROP_UNEXPECTED_CONTROL"
        hello, offer = lane_messages.parse(attempt.hello), lane_messages.parse(attempt.offer)
        assert hello is not None and isinstance(hello[0], Hello)
        assert offer is not None and isinstance(offer[0], Offer)
        terms = lane_messages.agree(hello[0].abilities, offer[0].abilities)
        assert isinstance(terms, Terms)
        secret = kem_key.decapsulate(message.kem_ciphertext)
        attempt.reserved = attempt.kem_key = attempt.retry_at = None
        attempt.is_done, attempt.accept = True, whole
        keys = lane_messages.derive(attempt.keypair.exported, secret, peer.public_key,
                                    self.public_key,
                              attempt.hello, attempt.offer, whole, terms)
        lane_set.is_opener = offer[0].responder_opens
        lane_set.remote_index = message.index
        self._install(peer, state, lane_set, keys.to_initiator, keys.to_responder, terms,
                      hello[0].abilities, attempt.keypair)
        self._open(peer, state, lane_set, now)
        return None

    def _install(self, peer: Peer, state: PeerLanes, lane_set: LaneSet, send: list[bytes],
                 receive: list[bytes], terms: Terms, theirs: Abilities,
                 keypair: Keypair) -> None:
        """Make a set live, and have the workers use it."""
        lane_set.cipher = lane_messages.CIPHER_NAMES[terms.cipher]
        lane_set.send_keys = send
        created = keypair.created_ns
        rekey_at = created + REKEY_AFTER_TIME if keypair.is_initiator else _NEVER
        rekey_rx_at = (lane_set.reject_at - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT
                       if keypair.is_initiator else _NEVER)
        self._tables.lanes.install(lane_set.first, NewLanes(
            remote_index=lane_set.remote_index, cipher=lane_set.cipher,
            features=theirs.features & self._options.features,
            keys=list(zip(send, receive, strict=True)),
            endpoints=self._endpoints(peer, state, lane_set),
            sockets=self._options.socket_count if lane_set.is_opener else None,
            rekey_at_ns=rekey_at, rekey_rx_at_ns=rekey_rx_at, reject_at_ns=lane_set.reject_at))
        is_first = not state.sets
        state.sets.insert(0, lane_set)
        state.does_lanes, state.silent_sessions, state.refusal = True, 0, ""
        state.proof_at = None
        for old in state.sets[MAX_SETS:]:
            self._drop_set(peer, state, old)
        self._publish(peer, state)
        log.log(logging.INFO if is_first else logging.DEBUG,
                "%s does lanes: %d of them, %s, keys by X25519 and ML-KEM-768", peer,
                lane_set.count, lane_set.cipher)

    def _endpoints(self, peer: Peer, state: PeerLanes,
                   lane_set: LaneSet) -> list[tuple[bytes, bytes]]:
        """Where the lanes of a new set are: where those of the set before are, if the same
        sockets are used, else with the session if we open them."""
        where = (b"", NO_LOCAL)
        if lane_set.is_opener and peer.endpoint is not None:
            where = peer.endpoint.sockaddr(self._family), peer.local
        if not state.sets or state.sets[0].count != lane_set.count \
                or state.sets[0].is_opener != lane_set.is_opener:
            return [where] * lane_set.count
        return [self._endpoint_before(state.sets[0].first + number) or where
                for number in range(lane_set.count)]

    def _endpoint_before(self, slot: int) -> tuple[bytes, bytes] | None:
        """Where a lane of the set before is, if it is known and right."""
        found = self._tables.lanes.endpoint(slot)
        return found if found[0] and self._tables.lanes.status(slot)["is_usable"] else None

    def _open(self, peer: Peer, state: PeerLanes, lane_set: LaneSet, now: int) -> None:
        """Probe all lanes of a new set, if that is ours to do."""
        state.session_answered_at = now         # both have just been heard there
        if lane_set.is_opener:
            for number in range(lane_set.count):
                lane_set.probes[number] = Probe(now)
                self._probe(peer, lane_set, number, now)
        if peer.timers.persistent_interval_ns:
            state.keepalive_at = now + peer.timers.persistent_interval_ns

    def _note(self, peer: Peer, state: PeerLanes, keypair: Keypair, theirs: Abilities) -> None:
        """What the peer says of itself."""
        if theirs.in_use not in [each.local_index for each in state.sets]:
            lost = [each for each in state.sets
                    if each.created_ns < keypair.created_ns
                    and not self._was_heard(each, keypair.created_ns)]
            for lane_set in lost:
                self._drop_set(peer, state, lane_set)
            if lost:
                log.info("%s has lost its lanes; it was restarted", peer)
        if theirs.mtu not in (self._tables.mtu, state.mtu_said):
            state.mtu_said = theirs.mtu
            log.warning("%s has an MTU of %d, this side of %d: what is larger than the smaller "
                        "one may be lost; set both the same", peer, theirs.mtu, self._tables.mtu)

    def _refused(self, peer: Peer, state: PeerLanes, attempt: Attempt, why: str) -> None:
        if why != state.refusal:
            log.warning("no lanes with %s: %s%s", peer, why, self._consequence())
        state.refusal = why
        attempt.retry_at, attempt.is_done = None, True
        self._lost(peer, state, why)

    def _consequence(self) -> str:
        return "; nothing is sent to it (--transport lanes)" \
            if self._options.transport == "lanes" else ""

    def _retry(self, peer: Peer, state: PeerLanes, attempt: Attempt, now: int) -> None:
        attempt.retry_at = None
        if attempt.tries_left:
            attempt.tries_left -= 1
            attempt.retry_at = now + HELLO_TIMEOUT
            self._world.send_control(peer, attempt.keypair, attempt.message, now)
            return
        attempt.is_silent = True
        if attempt.keypair.is_initiator:
            state.silent_sessions += 1
            state.does_lanes = state.does_lanes and state.silent_sessions < SILENT_SESSIONS
        if not self._heard_since(state, attempt.keypair.created_ns):
            self._lost(peer, state, SILENT)

    def _lost(self, peer: Peer, state: PeerLanes, why: str) -> None:
        """The peer has no lanes (any more)."""
        self._drop_sets(peer, state)
        if self._options.transport != "lanes" or state.is_upgrading:
            return
        self._set_policy(peer, "nothing")
        if state.refusal != why:
            state.refusal = why
            log.warning("no lanes with %s: %s%s", peer, why, self._consequence())

    def _begin_attempt(self, peer: Peer, state: PeerLanes, keypair: Keypair) -> Attempt:
        """A new one; those of sessions that are gone end."""
        for attempt in list(state.attempts):
            if attempt.keypair is keypair or peer.keypairs.by_index(
                    attempt.keypair.local_index) is None:
                self._end_attempt(state, attempt)
        self._set_policy(peer, "lanes")
        state.attempts.append(Attempt(keypair))
        return state.attempts[-1]

    def _end_attempt(self, state: PeerLanes, attempt: Attempt) -> None:
        if attempt.reserved is not None:
            self._tables.lanes.retire(attempt.reserved.first)
        state.attempts.remove(attempt)

    def _set_policy(self, peer: Peer, policy: str) -> None:
        """What data may travel by; only --transport lanes restricts it."""
        if self._options.transport != "lanes":
            return
        self._tables.peers.set_policy(peer.slot, policy)
        if policy == "nothing":
            self._tables.peers.purge_staged(peer.slot)
            self._world.ring()

    # -- sets

    def _find(self, state: PeerLanes, slot: int) -> tuple[LaneSet, int] | None:
        """The set and the number of the lane in a slot."""
        for lane_set in state.sets:
            if lane_set.first <= slot < lane_set.first + lane_set.count:
                return lane_set, slot - lane_set.first
        return None

    def _publish(self, peer: Peer, state: PeerLanes) -> None:
        newest, older = [*(each.first for each in state.sets), None, None][:2]
        self._tables.peers.set_lanes(peer.slot, newest, older)

    def _drop_set(self, peer: Peer, state: PeerLanes, lane_set: LaneSet) -> None:
        state.sets.remove(lane_set)
        if not state.sets and self._options.mode is Mode.TAP:
            # Its hosts may be reached another way, or will be heard again.
            self._tables.fdb.flush(peer.slot, with_static=False)
        self._publish(peer, state)
        self._tables.lanes.retire(lane_set.first)

    def _drop_sets(self, peer: Peer, state: PeerLanes) -> None:
        for lane_set in list(state.sets):
            self._drop_set(peer, state, lane_set)

    def _heard_since(self, state: PeerLanes, since: int) -> bool:
        return any(self._was_heard(each, since) for each in state.sets)

    def _was_heard(self, lane_set: LaneSet, since: int) -> bool:
        return any(self._tables.lanes.status(slot)["last_rx_ns"] > since
                   for slot in range(lane_set.first, lane_set.first + lane_set.count))

    # -- lanes

    def _probe(self, peer: Peer, lane_set: LaneSet, number: int, now: int) -> None:
        """A lane's probe is due: ask, wait, or find it alive or dead."""
        slot, probe = lane_set.first + number, lane_set.probes[number]
        status = self._tables.lanes.status(slot)
        if status["is_usable"]:
            if not status["first_unanswered_tx_ns"]:
                del lane_set.probes[number]
                self._tables.lanes.rearm(slot, "unanswered_reported")
                # A packet may have passed just before its event was allowed again.
                first = self._tables.lanes.status(slot)["first_unanswered_tx_ns"]
                if first:
                    self.lane_unanswered(peer, slot, first)
                return
            if now < status["first_unanswered_tx_ns"] + LANE_UNANSWERED_TIME:
                probe.due_at = status["first_unanswered_tx_ns"] + LANE_UNANSWERED_TIME
                return
            if probe.sent >= LANE_DEAD_AFTER_PROBES:
                self._tables.lanes.set_dead(slot)
                lane_set.dead.add(number)
                self._complain(lane_set, "lane %d of %s is dead: no answer for %d seconds; its "
                               "flows take others", number, peer,
                               (now - status["first_unanswered_tx_ns"]) // SECOND)
            interval = LANE_UNANSWERED_TIME
        else:
            interval = LANE_PROBE_INTERVALS[min(probe.sent, len(LANE_PROBE_INTERVALS) - 1)]
            if probe.sent == len(LANE_PROBE_INTERVALS) and number not in lane_set.dead:
                self._tables.lanes.set_dead(slot)
                lane_set.dead.add(number)
                self._complain(lane_set, "lane %d of %s is not answered: something on the way "
                               "lets its UDP port not pass; its flows take others", number, peer)
        probe.sent += 1
        probe.due_at = now + interval
        self._send_lane(lane_set, number, wire.LANE_FLAG_ECHO_REQUEST, now)

    def _complain(self, lane_set: LaneSet, message: str, *about: object) -> None:
        """Log about a lane; a peer with many of them does not fill the log."""
        log.log(logging.WARNING if lane_set.complaints_left else logging.DEBUG, message, *about)
        lane_set.complaints_left = max(0, lane_set.complaints_left - 1)

    def _send_lane(self, lane_set: LaneSet, number: int, flags: int, now: int) -> None:
        """Send an empty message on a lane."""
        slot = lane_set.first + number
        sockaddr, local = self._tables.lanes.endpoint(slot)
        if not sockaddr:
            return
        counter = self._tables.lanes.take_counter(slot, now)
        header = wire.lane_header(flags, number, lane_set.remote_index, counter)
        sealed = aead("openssl", lane_set.cipher, lane_set.send_keys[number],
                      bytes(4) + counter.to_bytes(8, "little"), header, b"", seal=True)
        assert sealed is not None
        self._world.send_lane(
            header + sealed, Endpoint.from_sockaddr(sockaddr), local,
            number % self._options.socket_count if lane_set.is_opener else None)
