"""Sets of lanes: what one upgrade gives, and which of them a peer has.

One side of a set, the opener, has a socket of its own for each lane, and probes them all when
the set is new (lane_probes.py). The opener of the set before stays the opener, so that lane n of
both uses the same sockets, and is at the same endpoints.

A peer has three sets at most. Workers send on the newest two, lane by lane (hot/lane.pxd); the
third is still received. A set is dropped when the fourth comes, when its session's keys would be
too old, and when the peer turns out not to have it: the worker's table is changed first, and the
keys are wiped when no worker can be using them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

from fastpump._core import NewLanes, Secret
from fastpump.conn.endpoint import NO_SOURCE_ADDRESS, Endpoint
from fastpump.constants import (
    KEEPALIVE_TIMEOUT,
    LANES_TURN_TIME,
    REJECT_AFTER_TIME,
    REKEY_AFTER_TIME,
    REKEY_TIMEOUT,
)
from fastpump.device import reported
from fastpump.device.lane_context import LanesContext
from fastpump.device.lane_probes import Lane
from fastpump.device.peer import Peer
from fastpump.ip import Address
from fastpump.protocol import lane_messages, wire
from fastpump.protocol.keypairs import Keypair
from fastpump.protocol.lane_messages import Mode, Terms
from fastpump.protocol.timers import earliest

log = logging.getLogger("fastpump.lanes")

MAX_SETS = 3
MAX_WARNINGS = 3
"""Of one set: a peer with many lanes does not fill the log."""
_NEVER = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Reservation:
    """Room for a set whose keys are not known yet: what arrives for it waits."""

    first: int
    """The table's slot of lane 0; the others follow."""
    index: int
    """The receiver index that the peer sends to."""
    count: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """What an upgrade gives: all that makes a set live."""

    keypair: Keypair
    """Of the session."""
    reservation: Reservation
    terms: Terms
    remote_index: int
    is_opener: bool
    peer_features: int
    """What the peer takes: _core.FEATURE_*."""
    send_keys: list[Secret] = field(repr=False)
    """By the number of the lane, as the next."""
    receive_keys: list[Secret] = field(repr=False)


class LaneSet:
    """The lanes that were agreed on at one time."""

    __slots__ = ("_context", "_turn_at", "_turns", "_warnings_left", "cipher", "count",
                 "created_ns", "due", "features", "first", "is_opener", "lanes", "local_index",
                 "peer", "remote_index", "tables")

    EXTENSION, RECORD = wire.LANE_FLAG_EXTENSION, wire.LANE_FLAG_RECORD

    def __init__(self, peer: Peer, context: LanesContext, agreement: Agreement) -> None:
        self.peer = peer
        self.tables = context.tables
        self.first = agreement.reservation.first
        self.count = agreement.reservation.count
        self.local_index = agreement.reservation.index
        self.remote_index = agreement.remote_index
        self.is_opener = agreement.is_opener
        self.cipher = lane_messages.CIPHER_NAMES[agreement.terms.cipher]
        self.created_ns = agreement.keypair.created_ns
        self.features = agreement.peer_features & context.options.features
        """What both sides have: _core.FEATURE_*."""
        self.due: dict[Lane, int] = {}
        """When the lanes' timers fire that run."""
        self.lanes = [Lane(self, number) for number in range(self.count)]
        self._context = context
        self._warnings_left = MAX_WARNINGS
        # While no lane works: when the next one is probed in its turn; how many were.
        self._turn_at: int | None = None
        self._turns = 0

    @property
    def slots(self) -> range:
        """Its lanes' places in the shared table."""
        return range(self.first, self.first + self.count)

    @property
    def usable(self) -> list[bool]:
        """Of each lane, whether workers send on it."""
        return [self.tables.lanes.status(slot)["is_usable"] for slot in self.slots]

    @property
    def reject_at(self) -> int:
        """When its keys are too old."""
        return self.created_ns + REJECT_AFTER_TIME

    def endpoint(self, slot: int) -> Endpoint | None:
        """Where a lane is; None while that is not known."""
        sockaddr = self.tables.lanes.endpoint(slot)[0]
        return Endpoint.from_sockaddr(sockaddr) if sockaddr else None

    def is_with(self, slot: int, session: Endpoint) -> bool:
        """Whether a lane is where the session is: at its very endpoint if we opened it, else at
        another port of the same host."""
        where = self.endpoint(slot)
        return where is not None and (
            where == session if self.is_opener else where.host == session.host)

    def deadline(self) -> int:
        """When `run_timers` has something to do, or the set must go."""
        turn_at = self.reject_at if self._turn_at is None else self._turn_at
        return min([self.reject_at, turn_at, *self.due.values()])

    def run_timers(self, now: int) -> None:
        """Look at the lanes whose timers have fired."""
        for lane in [lane for lane, due_at in self.due.items() if now >= due_at]:
            lane.on_timer(now)
        if self._turn_at is not None and now >= self._turn_at:
            self._take_turns(now)

    def open(self, now: int) -> None:
        """Probe all lanes, if they are ours to open; else expect the peer's probes."""
        for lane in self.lanes:
            lane.open(now)

    def received_since(self, since: int) -> bool:
        """Whether the peer was received on a lane since then."""
        return any(self.tables.lanes.status(slot)["last_rx_ns"] > since for slot in self.slots)

    def doubt(self, now: int) -> None:
        """A lane has not answered its first probe for data: doubt all."""
        for lane in self.lanes:
            lane.doubt(now)

    def on_dead(self, since: int, now: int) -> None:
        """A lane has died. If all have, or nothing of the peer was received since, it may have been
        restarted, and know neither our session nor where we are. Not if all lanes of a young set
        are dead: they seem to be blocked, and a new set would have the same fate."""
        received_at = reported.activity(self.tables, self.peer.slot, now).last_rx_ns
        is_young = now < self.created_ns + KEEPALIVE_TIMEOUT
        if received_at <= since or (not is_young and all(lane.is_dead for lane in self.lanes)):
            self._context.callbacks.want_session(self.peer, now)
        self._turn_at = now + LANES_TURN_TIME

    def _take_turns(self, now: int) -> None:
        """While no lane works, all flows wait for the first that does, which is found sooner than
        each lane's own timer finds it."""
        self._turn_at = None
        if all(lane.is_dead for lane in self.lanes):
            self.lanes[self._turns % self.count].ask(now)
            self._turns += 1
            self._turn_at = now + LANES_TURN_TIME

    # -- sending

    def send(self, number: int, flags: int, now: int, payload: bytes = b"", *,
             is_probe: bool = False, datagram_len: int = 0) -> bool:
        """Send a message on a lane, if it is known where that is. `is_probe`: never in fragments;
        False if our own link does not take it. `datagram_len`: the same in so long datagrams."""
        slot = self.first + number
        sockaddr, source_address = self.tables.lanes.endpoint(slot)
        if not sockaddr:
            return True
        socket = number % self._context.options.socket_count if self.is_opener else None
        message = self.tables.lanes.seal(slot, flags, now, payload)
        endpoint, callbacks = Endpoint.from_sockaddr(sockaddr), self._context.callbacks
        if (is_probe or datagram_len) and callbacks.send_probe is not None:
            return callbacks.send_probe(message, endpoint, source_address, socket, datagram_len)
        callbacks.send_lane(message, endpoint, source_address, socket)
        return True

    def ask_all(self, now: int) -> None:
        """An echo request on each lane: the peer learns where they are."""
        for lane in self.lanes:
            lane.ask(now)

    def keep_alive(self, interval_ns: int, now: int) -> int:
        """An echo request on each lane on which nothing was sent for so long; when the next is
        due."""
        oldest = now
        for lane in self.lanes:
            last = reported.past(self.tables.lanes.status(lane.slot)["last_tx_ns"], now)
            if now >= last + interval_ns:
                lane.ask(now)
                last = now
            oldest = min(oldest, last)
        return oldest + interval_ns

    # -- log

    def warn(self, message: str, fields: dict[str, object]) -> None:
        """Log that a lane does not work: MAX_WARNINGS as warnings, the rest for debugging."""
        log.log(logging.WARNING if self._warnings_left else logging.DEBUG, message, fields)
        self._warnings_left = max(0, self._warnings_left - 1)

    def note(self, message: str, fields: dict[str, object]) -> None:
        """Log that a lane works again; for debugging only, if its failure probably was."""
        log.log(logging.INFO if self._warnings_left else logging.DEBUG, message, fields)


class LaneSets:
    """The sets of one peer, the newest first."""

    __slots__ = ("_context", "_live", "_peer", "_tables")

    def __init__(self, peer: Peer, context: LanesContext) -> None:
        self._peer = peer
        self._context = context
        self._tables = context.tables
        self._live: list[LaneSet] = []

    def __iter__(self) -> Iterator[LaneSet]:
        return iter(self._live)

    def __len__(self) -> int:
        return len(self._live)

    @property
    def newest(self) -> LaneSet | None:
        """The one that is sent on first."""
        return self._live[0] if self._live else None

    @property
    def remote_index(self) -> int:
        """The receiver index of the newest set at the peer; 0 for none."""
        return self._live[0].remote_index if self._live else 0

    @property
    def is_opener(self) -> bool:
        """Whether we opened the newest set."""
        return bool(self._live) and self._live[0].is_opener

    def find(self, slot: int) -> Lane | None:
        """The lane in a slot of the shared table."""
        return next((each.lanes[slot - each.first] for each in self._live if slot in each.slots),
                    None)

    def set_of(self, slot: int) -> LaneSet | None:
        """The set of the lane in a slot of the shared table."""
        return next((each for each in self._live if slot in each.slots), None)

    def received_since(self, since: int) -> bool:
        """Whether the peer was received on a lane since then."""
        return any(each.received_since(since) for each in self._live)

    def carry_all(self) -> bool:
        """Whether all data leaves on lanes now: none by the session, whose keys depend on X25519
        alone. With --transport auto, the flows of a lane that is not usable yet do (hot/lane.pxd:
        lane_choose)."""
        if not self._live or self._context.is_lanes_only:
            return bool(self._live)
        newest, older = self._live[0], self._live[1:2]
        usable = newest.usable
        any_usable = any(usable) or any(any(each.usable) for each in older)
        stand_ins = next((each.usable for each in older if each.count == newest.count),
                         [False] * newest.count)
        return all(is_usable or stand_in or (lane.is_dead and any_usable) for
                   lane, is_usable, stand_in in zip(newest.lanes, usable, stand_ins, strict=True))

    # -- how sets come and go

    def reserve(self, count: int) -> Reservation:
        """Room for a set; MemoryError when the table is full."""
        return Reservation(*self._tables.lanes.reserve(self._peer.slot, count), count)

    def release(self, reservation: Reservation) -> None:
        """The upgrade that it was for came to nothing (if it did)."""
        if self.find(reservation.first) is None:
            self._tables.lanes.retire(reservation.first)

    def install(self, agreement: Agreement) -> LaneSet:
        """Make a set live, and have the workers use it."""
        lane_set = LaneSet(self._peer, self._context, agreement)
        rekey_at = rekey_rx_at = _NEVER
        if agreement.keypair.is_initiator:
            rekey_at = lane_set.created_ns + REKEY_AFTER_TIME
            rekey_rx_at = lane_set.reject_at - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT
        options = self._context.options
        self._tables.lanes.install(lane_set.first, NewLanes(
            remote_index=lane_set.remote_index, cipher=lane_set.cipher,
            features=lane_set.features,
            keys=list(zip(agreement.send_keys, agreement.receive_keys, strict=True)),
            endpoints=self._endpoints(lane_set),
            sockets=options.socket_count if lane_set.is_opener else None,
            rekey_at_ns=rekey_at, rekey_rx_at_ns=rekey_rx_at, reject_at_ns=lane_set.reject_at))
        self._live.insert(0, lane_set)
        for old in self._live[MAX_SETS:]:
            self._drop(old)
        self.publish()
        return lane_set

    def publish(self) -> None:
        """Have the workers send on the newest two."""
        newest, older = [*(each.first for each in self._live), None, None][:2]
        self._tables.peers.set_lanes(self._peer.slot, newest, older)

    def clear(self) -> None:
        """Drop all."""
        for lane_set in list(self._live):
            self._drop(lane_set)

    def drop_lost(self, in_use: int, since: int) -> bool:
        """The peer says in a session that began at `since` which of our receiver indexes it
        sends to. If it has none of ours, drop the older sets on which it was not received
        since; whether there were any."""
        if in_use in [each.local_index for each in self._live]:
            return False
        lost = [each for each in self._live
                if each.created_ns < since and not each.received_since(since)]
        for lane_set in lost:
            self._drop(lane_set)
        return bool(lost)

    def _drop(self, lane_set: LaneSet) -> None:
        self._live.remove(lane_set)
        if not self._live and self._context.options.mode is Mode.TAP:
            # Its hosts may be reached by another route, or are learned again.
            self._tables.fdb.flush(self._peer.slot, with_static=False)
        self.publish()
        self._tables.lanes.retire(lane_set.first)

    # -- time

    def deadline(self) -> int | None:
        """When `run_timers` has something to do."""
        return earliest(*(each.deadline() for each in self._live))

    def run_timers(self, now: int) -> None:
        """Drop what is too old, and look at the lanes whose timers have fired."""
        for lane_set in [each for each in self._live if now >= each.reject_at]:
            self._drop(lane_set)
        for lane_set in self._live:
            lane_set.run_timers(now)

    def rearm_rekey(self) -> None:
        """Let the workers request a new session again; the last attempt failed."""
        for lane_set in self._live:
            for slot in lane_set.slots:
                self._tables.lanes.rearm(slot, "rekey_reported")

    # -- endpoints

    def data_endpoint(self, session: Endpoint) -> Endpoint:
        """Where data goes: of the lanes that workers send on, as long as one is with the session,
        the session's endpoint stands for all; else where the peer was received last."""
        for lane_set in self._live[:2]:
            slots = [slot for slot, is_usable in zip(lane_set.slots, lane_set.usable, strict=True)
                     if is_usable]
            if slots and not any(lane_set.is_with(slot, session) for slot in slots):
                latest = max(slots, key=lambda slot: self._tables.lanes.status(slot)["last_rx_ns"])
                return lane_set.endpoint(latest) or session
            if slots:
                break
        return session

    def set_endpoint(self, endpoint: Endpoint, *, was_there: bool) -> bool:
        """The operator says where the peer is; `was_there`: so was the session. Move the lanes that
        are elsewhere; whether there were any. Those that the peer opened are at ports of their
        own, which nobody can tell: it receives them at its WireGuard port, too, and what it then
        sends on them says where they are."""
        has_moved = False
        for lane_set in self._live:
            for slot in lane_set.slots:
                is_known = lane_set.is_opener or lane_set.endpoint(slot) is not None
                is_there = was_there and lane_set.is_with(slot, endpoint)
                if is_known and not is_there:
                    self._tables.lanes.set_endpoint(slot, endpoint.sockaddr(self._context.family))
                    has_moved = True
        return has_moved

    def addresses(self) -> set[Address]:
        """Where lanes are."""
        found = (lane_set.endpoint(slot) for lane_set in self._live for slot in lane_set.slots)
        return {endpoint.address for endpoint in found if endpoint is not None}

    def leave(self, address: Address) -> bool:
        """Nothing can be sent to that address: where lanes are that were there is unknown. Whether
        there were any."""
        were_there = False
        for lane_set in self._live:
            for slot in lane_set.slots:
                endpoint = lane_set.endpoint(slot)
                if endpoint is not None and endpoint.address == address:
                    self._tables.lanes.set_endpoint(slot, b"")
                    were_there = True
        return were_there

    def endpoint_changed(self, before: Endpoint | None, after: Endpoint,
                         source_address: bytes) -> None:
        """The session's endpoint was at `before`: so were lanes that we opened."""
        family = self._context.family
        old = b"" if before is None else before.sockaddr(family)
        for lane_set in self._live:
            if not lane_set.is_opener:
                continue
            for slot in lane_set.slots:
                if self._tables.lanes.endpoint(slot)[0] in (b"", old):
                    self._tables.lanes.set_endpoint(slot, after.sockaddr(family), source_address)

    def forget_sources(self) -> None:
        """Let the kernel choose the source addresses until the peer sends again."""
        for lane_set in self._live:
            for slot in lane_set.slots:
                self._tables.lanes.forget_source_address(slot)

    def _endpoints(self, lane_set: LaneSet) -> list[tuple[bytes, bytes]]:
        """Where the lanes of a new set are: where those of the set before are, if the same
        sockets are used, else with the session if we open them."""
        where = (b"", NO_SOURCE_ADDRESS)
        if lane_set.is_opener and self._peer.endpoint is not None:
            where = self._peer.endpoint.sockaddr(self._context.family), self._peer.source_address
        before = self.newest
        if before is None or (before.count, before.is_opener) != (
                lane_set.count, lane_set.is_opener):
            return [where] * lane_set.count
        return [self._endpoint_before(slot) or where for slot in before.slots]

    def _endpoint_before(self, slot: int) -> tuple[bytes, bytes] | None:
        """Where a lane of the set before is, if it is known and right."""
        found = self._tables.lanes.endpoint(slot)
        return found if found[0] and self._tables.lanes.status(slot)["is_usable"] else None
