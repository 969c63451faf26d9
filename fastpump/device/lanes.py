"""The lanes of a device's peers.

Sans-I/O: time is an argument; messages leave through callbacks. The device reports new sessions,
control packets and workers' events; the shared tables (hot/shm.pxd) are changed.

    how a session is upgraded to lanes      lane_upgrade.py: a table of states
    sets of lanes, and which ones live      lane_sets.py
    the life of one lane, and its probes    lane_probes.py: a table of states
    the path MTU, of each lane and the peer path_mtus.py
    what of this concerns a peer as a whole PeerLanes, in this file

A peer that did not answer the HELLOs of some sessions gets a single one in later sessions. When a
new session has begun, a peer that has sets must be received on a lane within LANES_PROOF_TIME, or
agree on new ones: else it was restarted, and its lanes are dropped. With --transport lanes, data
waits while an upgrade may bring lanes, and is dropped when none will.

A probe is answered on its lane and, once a second at most, by the session: so that a peer whose
address has changed finds both.
"""

from __future__ import annotations

import logging

from fastpump._core import SharedTables
from fastpump.constants import (
    LANES_PROOF_TIME,
    REJECT_AFTER_TIME,
    SECOND,
    UPGRADE_ATTEMPTS,
)
from fastpump.device.lane_context import LanesCallbacks, LanesContext, Options
from fastpump.device.lane_sets import Agreement, LaneSet, LaneSets
from fastpump.device.lane_upgrade import Upgrade
from fastpump.device.path_mtus import PeerPaths
from fastpump.device.peer import Peer
from fastpump.protocol import lane_messages
from fastpump.protocol.keypairs import Keypair
from fastpump.protocol.lane_messages import Abilities, Hello, Offer
from fastpump.protocol.timers import earliest
from fastpump.verdicts import Verdict

log = logging.getLogger("fastpump.lanes")

# Sessions in a row with an unanswered HELLO after which a peer gets one a session.
SILENT_SESSIONS = 3
SILENT = "it does not announce lanes"


class Lanes:
    """The lanes of all peers of a device."""

    def __init__(self, tables: SharedTables, options: Options, callbacks: LanesCallbacks,
                 family: int) -> None:
        """`family`: of the sockets (conn/endpoint.py)."""
        self._context = LanesContext(tables, options, callbacks, family)
        self._by_peer: dict[Peer, PeerLanes] = {}

    def set_public_key(self, public_key: bytes) -> None:
        """Our own static public key; there are no sessions."""
        self._context.public_key = public_key

    def add_peer(self, peer: Peer) -> None:
        """A new peer."""
        self._by_peer[peer] = PeerLanes(peer, self._context)

    def remove_peer(self, peer: Peer) -> None:
        """The peer is about to go."""
        self._by_peer.pop(peer).clear()

    def of(self, peer: Peer) -> PeerLanes:
        """The lanes of a peer."""
        return self._by_peer[peer]


class PeerLanes:
    """The lanes of one peer."""

    __slots__ = ("_context", "_does_lanes", "_keepalive_at", "_mtu_warned", "_proof_at",
                 "_proof_since", "_session_answer_at", "_session_answered_at", "_shows_lanes",
                 "_silent_sessions", "_tables", "paths", "peer", "refusal", "sets", "upgrades")

    def __init__(self, peer: Peer, context: LanesContext) -> None:
        self.peer = peer
        self.sets = LaneSets(peer, context)
        self.paths = PeerPaths(peer, context, self.sets)
        self.upgrades: list[Upgrade] = []
        """One for each of the peer's sessions at most: both sides may start one at once."""
        self.refusal = ""
        """Why there are no lanes, if there is a reason."""
        self._context = context
        self._tables = context.tables
        self._does_lanes = False
        """It has used lanes at some time."""
        self._silent_sessions = 0
        # When the peer must have been received on its lanes; since when.
        self._proof_at: int | None = None
        self._proof_since = 0
        # When a probe has to be answered by the session, too; when that was last done.
        self._session_answer_at: int | None = None
        self._session_answered_at = 0
        # Whether one came on a lane that we opened. (Were ours shown for any, two sides that both
        # opened a set would ask each other for ever.)
        self._shows_lanes = False
        self._keepalive_at: int | None = None
        self._mtu_warned = 0
        self._set_policy("lanes")

    def clear(self) -> None:
        """Forget all lanes: the peer has no session any more."""
        for upgrade in list(self.upgrades):
            self._end(upgrade)
        self.sets.clear()
        self.paths.clear()
        self._proof_at = self._keepalive_at = self._session_answer_at = None

    # -- time

    def deadline(self) -> int | None:
        """When `tick` wants to be called next."""
        return earliest(self._proof_at, self._keepalive_at, self._session_answer_at,
                        self.sets.deadline(), self.paths.deadline(),
                        *(upgrade.deadline for upgrade in self.upgrades))

    def tick(self, now: int) -> None:
        """Run what is due."""
        for upgrade in list(self.upgrades):
            if self._session_is_gone(upgrade):
                self._end(upgrade)              # nothing may be sealed with its keys
            elif upgrade.deadline is not None and now >= upgrade.deadline:
                upgrade.on_timer(now)
        if self._proof_at is not None and now >= self._proof_at:
            self._check_proof()
        self.sets.run_timers(now)
        if self._keepalive_at is not None and now >= self._keepalive_at:
            self.keep_alive(now)
        self._answer_by_session(now)
        self.paths.tick(now)

    # -- sessions and their upgrades

    def session_started(self, keypair: Keypair, now: int) -> bool:
        """Both sides have a new session. As its initiator, send a HELLO in it, which proves the
        keys as a keepalive does; False if none was sent."""
        self.paths.session_started(now)
        if self.sets or self._context.is_lanes_only:
            self._proof_at, self._proof_since = now + LANES_PROOF_TIME, now
        if self._context.options.transport == "wireguard" or not keypair.is_initiator:
            return False
        tries_left = 0
        if self._does_lanes or self._context.is_lanes_only:
            tries_left = UPGRADE_ATTEMPTS - 1
        elif self._silent_sessions < SILENT_SESSIONS:
            tries_left = 1
        self._make_way()
        self._add_upgrade(keypair).start(tries_left, now)
        return True

    def receive(self, keypair: Keypair, data: bytes, now: int) -> str | None:
        """A control packet that came in a session; the verdict if it is dropped."""
        if self._context.options.transport == "wireguard":
            return Verdict.DROP_CONTROL_UNWANTED
        upgrade = next((each for each in self.upgrades if each.keypair is keypair), None)
        if lane_messages.is_part(data):
            whole = b"" if upgrade is None else upgrade.parts.add(data)
            if whole is None:
                return None
            data = whole
        parsed = lane_messages.parse(data)
        if parsed is None:
            return Verdict.DROP_MALFORMED_CONTROL
        upgrade = upgrade or self._add_upgrade(keypair)
        verdict = upgrade.receive(*parsed, now)
        if not upgrade.has_begun:
            self._end(upgrade)
        if isinstance(parsed[0], Hello | Offer):
            self.sets.publish()     # the worker may have taken away what we keep
        return verdict

    def _make_way(self) -> None:
        """For an upgrade that begins: data waits for the lanes that may come of it."""
        for upgrade in list(self.upgrades):
            if self._session_is_gone(upgrade):
                self._end(upgrade)
        self._set_policy("lanes")

    def _add_upgrade(self, keypair: Keypair) -> Upgrade:
        public_keys = self._context.public_key, self.peer.public_key
        upgrade = Upgrade(
            keypair, public_keys if keypair.is_initiator else public_keys[::-1], self)
        self.upgrades.append(upgrade)
        return upgrade

    def _end(self, upgrade: Upgrade) -> None:
        upgrade.end()
        self.upgrades.remove(upgrade)

    def _session_is_gone(self, upgrade: Upgrade) -> bool:
        keypair = upgrade.keypair
        return self.peer.keypairs.by_index(keypair.local_index) is not keypair

    # -- what an upgrade needs (UpgradeOwner)

    def abilities(self) -> Abilities:
        """What we can do now."""
        options = self._context.options
        ciphers = tuple(lane_messages.CIPHER_NUMBERS[name] for name in options.ciphers)
        return Abilities(options.mode, ciphers, self._tables.queue_count, options.features,
                         self._tables.mtu, in_use=self.sets.remote_index)

    def send_control(self, keypair: Keypair, data: bytes, now: int) -> None:
        """Send a control packet in a session."""
        self._context.callbacks.send_control(self.peer, keypair, data, now)

    def on_hello(self, keypair: Keypair, theirs: Abilities) -> None:
        """The peer begins the upgrade of a session."""
        self.on_abilities(keypair, theirs)
        self._make_way()

    def on_abilities(self, keypair: Keypair, theirs: Abilities) -> None:
        """What the peer says of itself in a session."""
        if self.sets.drop_lost(theirs.in_use, keypair.created_ns):
            log.info("%(peer)s lost its lanes: it was restarted", {"peer": self.peer})
        if theirs.mtu not in (self._tables.mtu, self._mtu_warned):
            self._mtu_warned = theirs.mtu
            log.warning("%(peer)s has an MTU of %(peer_mtu)d, this side has %(mtu)d: packets "
                        "larger than the smaller one may be lost; set both to the same value",
                        {"peer": self.peer, "peer_mtu": theirs.mtu, "mtu": self._tables.mtu})

    def install(self, agreement: Agreement) -> LaneSet:
        """Make a set of lanes live."""
        is_first = not self.sets
        lane_set = self.sets.install(agreement)
        self._does_lanes, self._silent_sessions, self.refusal = True, 0, ""
        self._proof_at = None
        self._set_policy("lanes")       # also if nobody expected them any more
        log.log(logging.INFO if is_first else logging.DEBUG,
                "%(peer)s: using %(lanes)d lanes, %(cipher)s, keys from X25519 and ML-KEM-768",
                {"peer": self.peer, "lanes": lane_set.count, "cipher": lane_set.cipher})
        return lane_set

    def open(self, lane_set: LaneSet, now: int) -> None:
        """Begin to use a new set."""
        self._session_answered_at = now         # both have just been received there
        lane_set.open(now)
        if self.peer.timers.persistent_interval_ns:
            self._keepalive_at = now + self.peer.timers.persistent_interval_ns

    def on_refused(self, why: str) -> None:
        """There will be no lanes in this session."""
        self._warn_no_lanes(why)
        self._drop_sets(why)

    def on_unanswered(self, keypair: Keypair) -> None:
        """There may be no lanes in this session."""
        if keypair.is_initiator:
            self._silent_sessions += 1
            self._does_lanes = self._does_lanes and self._silent_sessions < SILENT_SESSIONS
        if not self.sets.received_since(keypair.created_ns):
            self._drop_sets(SILENT)

    # -- no lanes

    def _check_proof(self) -> None:
        """A session began a while ago: if the peer still has the lanes, it was received there."""
        self._proof_at = None
        if self.sets.received_since(self._proof_since):
            return
        current = self.peer.keypairs.current
        was_asked = any(each.keypair is current for each in self.upgrades)
        self._drop_sets((was_asked and self.refusal) or SILENT)

    def _drop_sets(self, why: str) -> None:
        """The peer has no lanes (any more)."""
        self.sets.clear()
        if self._context.is_lanes_only and not any(each.is_waiting for each in self.upgrades):
            self._set_policy("nothing")
            self._warn_no_lanes(why)

    def _warn_no_lanes(self, why: str) -> None:
        if why != self.refusal:
            log.warning("no lanes with %(peer)s: %(reason)s%(effect)s", {
                "peer": self.peer, "reason": why,
                "effect": "; nothing is sent to it (--transport lanes)"
                if self._context.is_lanes_only else ""})
        self.refusal = why

    def _set_policy(self, policy: str) -> None:
        """What data may travel by; only --transport lanes restricts it."""
        if not self._context.is_lanes_only:
            return
        self._tables.peers.set_policy(self.peer.slot, policy)
        if policy == "nothing":
            self._tables.peers.purge_staged(self.peer.slot)
            self._context.callbacks.ring()

    # -- events of lanes

    def on_lane_usable(self, slot: int, now: int) -> None:
        """The peer was received on a lane: workers send there from now on."""
        lane = self.sets.find(slot)
        if lane is None:
            return
        self._tables.lanes.rearm(slot, "usable_reported")
        lane.on_usable(now)
        self.paths.on_lane_usable(slot, now)
        if self._context.is_lanes_only:
            self._context.callbacks.ring()

    def on_lane_unanswered(self, slot: int, since: int) -> None:
        """Data left on a lane at `since`, the first since the peer was received there."""
        lane = self.sets.find(slot)
        if lane is not None:
            lane.on_unanswered(since)
            self.paths.on_data(lane.number, since)

    def on_lane_echo_request(self, slot: int, now: int) -> None:
        """The peer probes a lane."""
        lane = self.sets.find(slot)
        if lane is None:
            return
        self._tables.lanes.rearm(slot, "echo_reported")
        self._shows_lanes |= lane.is_ours_to_open
        if self._session_answer_at is None:
            self._session_answer_at = max(now, self._session_answered_at + SECOND)
            self._answer_by_session(now)
        lane.answer(now)

    def on_lane_roam(self, slot: int, now: int) -> None:
        """The peer was received from elsewhere on a lane: probe it, and it answers by the
        session, too, so that the session's endpoint follows."""
        lane = self.sets.find(slot)
        if lane is not None:
            self._tables.lanes.rearm(slot, "roam_reported")
            lane.ask(now)

    # -- what is sent where nothing else is

    def announce(self, now: int) -> None:
        """We have other sockets, or send to another place: the peer learns where the session and
        each lane come from, and at which address of its own. The session comes first: the answer to
        an echo request goes there, too."""
        self._send_keepalive(now)
        if self.sets.newest is not None:
            self.sets.newest.ask_all(now)

    def keep_alive(self, now: int) -> None:
        """Persistent keepalive is due or was changed: keep each lane's NAT mapping open."""
        interval = self.peer.timers.persistent_interval_ns
        self._keepalive_at = None
        newest = self.sets.newest
        if interval == 0 or newest is None:
            return
        self._keepalive_at = newest.keep_alive(interval, now)
        # The session's as well: lanes keep the peer's timer from sending there.
        if now >= self._session_answered_at + interval:
            self._send_keepalive(now)

    def _answer_by_session(self, now: int) -> None:
        """Let the peer know where our session and our lanes are, if it is time."""
        if self._session_answer_at is None or now < self._session_answer_at:
            return
        self._session_answer_at = None
        self._send_keepalive(now)
        newest = self.sets.newest
        if self._shows_lanes and newest is not None and newest.is_opener:
            newest.ask_all(now)
        self._shows_lanes = False

    def _send_keepalive(self, now: int) -> None:
        """By the session, if there is one."""
        self._session_answered_at = now
        current = self.peer.keypairs.current
        if current is not None and now < current.created_ns + REJECT_AFTER_TIME:
            self.send_control(current, b"", now)
