"""The path MTU of a peer: that of each of its lanes, or of its session (docs/PROTOCOL.md).

Each lane has a 4-tuple of its own, so perhaps a path of its own, hence a search of its own
(protocol/path_mtu.py). The peer's path MTU is the smallest of those of the lanes that work. It goes
to the workers as what fits into one message (hot/path_mtu.pxd), unless that is all that the
interface sends.

A lane is probed if the peer's HELLO or OFFER says that it answers; a new set goes on where the one
before was, as lane n uses the same sockets. A session is probed only where there are no lanes. With
--transport wireguard there is no HELLO: there a small probe asks first, in each session, and no
more after SILENT_SESSIONS. Whoever receives a probe answers, and may probe, too.

Probes are sent by sockets that set DF, acks like data. Neither counts as data, of which either side
would look at its path again.

A WireGuard peer cannot be probed. If what is large seems to get lost (device/black_holes.py), its
path is taken for one that takes no more than BASE_PLPMTU.
"""

from __future__ import annotations

import logging
import struct
from dataclasses import dataclass, field

from fastpump._core import FEATURE_PATH_MTU
from fastpump.conn.endpoint import Endpoint
from fastpump.constants import REJECT_AFTER_TIME, SECOND
from fastpump.device import reported
from fastpump.device.black_holes import BlackHole
from fastpump.device.lane_context import MESSAGE_OVERHEAD, LanesContext
from fastpump.device.lane_sets import LaneSet, LaneSets
from fastpump.device.peer import Peer
from fastpump.device.records import PeerRecords
from fastpump.protocol.keypairs import Keypair
from fastpump.protocol.lane_messages import Kind
from fastpump.protocol.path_mtu import BASE_PLPMTU, PathMtu, State
from fastpump.protocol.timers import Activity, earliest
from fastpump.protocol.wire import CONTROL_MARK, EXTENSION_PATH_ACK, EXTENSION_PATH_PROBE

log = logging.getLogger("fastpump.path_mtu")

UDP_OVERHEAD = {4: 28, 6: 48}
"""IP and UDP headers, by the IP version."""
ASK_TRIES = 2
ASK_TIMEOUT = SECOND
SILENT_SESSIONS = 3
MAX_STEPS = 16
"""Of one search at one time: sizes that our own link refuses are found out at once."""
SESSION = -1
"""In place of a lane's number."""

_MESSAGE = struct.Struct("<BBHHH")
_ASK = 0xFFFF, 0
"""Number and size of the probe that asks; no search has that number before its 65,535th round."""


@dataclass(slots=True)
class _Path:
    search: PathMtu = field(default_factory=PathMtu)
    where: Endpoint | None = None


class PeerPaths:
    """The paths to one peer."""

    __slots__ = ("_answers", "_ask_at", "_asks_left", "_context", "_is_inferred",
                 "_is_unprobed", "_logged", "_paths", "_payload_mtu", "_peer", "_sets",
                 "_silent_sessions", "_tables", "black_hole", "records")

    def __init__(self, peer: Peer, context: LanesContext, sets: LaneSets) -> None:
        self._peer = peer
        self._context = context
        self._tables = context.tables
        self._sets = sets
        self._paths: dict[int, _Path] = {}
        # Of a session: whether the peer is known to answer; when and how often it is asked.
        self._answers = False
        self._ask_at: int | None = None
        self._asks_left = 0
        self._silent_sessions = 0
        self.black_hole = BlackHole(peer, context)
        self.records = PeerRecords(peer, context, sets)
        # What the workers have; whether only the black hole says so.
        self._is_unprobed, self._is_inferred = True, False
        self._payload_mtu: int | None = None
        self._logged: int | None = None

    @property
    def mtu(self) -> int | None:
        """The path MTU, as far as it was looked for; None: not known."""
        found = None if self.black_hole.endpoint is None else BASE_PLPMTU
        return min((path.search.plpmtu for path in self._paths.values() if path.search.plpmtu),
                   default=found)

    @property
    def loses_large(self) -> bool:
        """Whether the path takes less than the interface needs."""
        return self._payload_mtu is not None

    def clear(self) -> None:
        """There is neither a session nor a lane."""
        self._paths.clear()
        self.records.clear()
        self._ask_at = None
        self.black_hole.clear()
        self._forget()

    # -- events

    def session_started(self, now: int) -> None:
        """Both sides have a new session."""
        if self.black_hole.endpoint not in (None, self._peer.endpoint):
            self.black_hole.clear()
        self.black_hole.session_started(now)
        self._apply()
        if self._context.callbacks.send_probe is None \
                or self._context.options.transport != "wireguard":
            return
        if self._answers:
            self._search_session(now)
            return
        if self._silent_sessions >= SILENT_SESSIONS:
            return
        self._silent_sessions += 1
        self._ask_at, self._asks_left = now, ASK_TRIES

    def on_lane_usable(self, slot: int, now: int) -> None:
        """The peer was received on a lane."""
        newest = self._sets.newest
        if self._context.callbacks.send_probe is None or newest is None \
                or slot not in newest.slots or not newest.features & FEATURE_PATH_MTU:
            return
        self._paths.pop(SESSION, None)
        number = slot - newest.first
        path = self._paths.setdefault(number, _Path())
        if path.search.state is State.DISABLED:
            self._start(path, newest.endpoint(slot), now)

    def on_unanswered(self, activity: Activity, now: int) -> None:
        """A handshake begins, since there was no answer."""
        keypair = self._keypair
        if not self._sets and self.mtu is None:
            self.black_hole.on_unanswered(
                activity, None if keypair is None else keypair.created_ns, now)
            self._apply()

    def on_resent_acked(self, was_small: bool, at: int, now: int) -> None:
        """What TCP sent again and again arrived, at a time: in pieces that fit, or not."""
        self.black_hole.on_resent_acked(was_small, at, now)
        self._apply()

    def on_data(self, number: int, now: int) -> None:
        """Data leaves on a lane (or by the SESSION), the first for a while."""
        path = self._paths.get(number)
        if path is not None:
            path.search.on_data(now)

    def on_probe(self, slot: int | None, number: int, size: int, now: int) -> None:
        """The peer probes a lane, by its slot, or a session (None)."""
        if slot is not None:
            lane_set = self._sets.set_of(slot)
            if lane_set is not None:
                lane_set.send(slot - lane_set.first, lane_set.EXTENSION, now, _MESSAGE.pack(
                    EXTENSION_PATH_ACK, 0, 4, number, size))
            return
        self._send_by_session(_MESSAGE.pack(CONTROL_MARK, Kind.PATH_ACK, 4, number, size), now,
                              is_probe=False)
        self._peer_answers(now)

    def on_ack(self, slot: int | None, number: int, size: int, now: int) -> None:
        """The peer has received a probe of ours, of that size."""
        if slot is None:
            self._peer_answers(now, has_acked=True)
            path, endpoint = self._paths.get(SESSION), self._peer.endpoint
        else:
            lane_set = self._sets.set_of(slot)
            if lane_set is None or self.records.on_ack(slot, number, size, now):
                return
            path = self._paths.get(slot - lane_set.first)
            endpoint = lane_set.endpoint(slot)
        if path is not None and endpoint is not None:
            size += UDP_OVERHEAD[endpoint.address.version]
            if path.search.on_ack(number, size, now):
                for each in self._paths.values():
                    each.search.on_sibling(size, now)
            self._apply()

    def _peer_answers(self, now: int, *, has_acked: bool = False) -> None:
        """It has sent a probe or an ack by the session."""
        self._answers, self._ask_at, self._silent_sessions = True, None, 0
        self._search_session(now, has_acked=has_acked)

    def _search_session(self, now: int, *, has_acked: bool = False) -> None:
        """Without lanes. A search that was given up begins again by an ack only: a peer that just
        probes may never answer."""
        path = self._paths.get(SESSION)
        if self._sets or self._context.callbacks.send_probe is None or (
                path is not None and not (has_acked and path.search.state is State.DISABLED)):
            return
        self._paths[SESSION] = path = _Path()
        self._start(path, self._peer.endpoint, now)

    # -- time

    def deadline(self) -> int | None:
        """When `tick` wants to be called next."""
        return earliest(self._ask_at, self.black_hole.deadline(),
                        *(path.search.deadline for path in self._paths.values()))

    def tick(self, now: int) -> None:
        """Run what is due."""
        if self._ask_at is not None and now >= self._ask_at:
            self._ask(now)
        for number, path in list(self._paths.items()):
            if path.search.deadline is None:
                if self._where(number) is None:     # idle, and gone or dead
                    del self._paths[number]
            elif now >= path.search.deadline:
                self._run(number, path, now)
        self.black_hole.tick(now)
        self._apply()

    def _ask(self, now: int) -> None:
        self._asks_left -= 1
        self._ask_at = now + ASK_TIMEOUT if self._asks_left else None
        self._send_by_session(_MESSAGE.pack(CONTROL_MARK, Kind.PATH_PROBE, 4, *_ASK), now,
                              is_probe=False)

    def _run(self, number: int, path: _Path, now: int) -> None:
        where = self._where(number)
        if where is None:               # the lane or the session is gone, or does not work
            del self._paths[number]
            return
        if where != path.where or path.search.max_plpmtu != self._needed:
            self._start(path, where, now)
        data_at = self._data_at(number, now)
        for _ in range(MAX_STEPS):
            if path.search.deadline is None or now < path.search.deadline:
                break
            for size in path.search.on_timer(now, data_at):
                if not self._probe(number, size, path, now):
                    path.search.on_too_large(size, now)
        if path.search.state is State.DISABLED:
            self._answers = self._answers and number != SESSION

    def _start(self, path: _Path, where: Endpoint | None, now: int) -> None:
        path.where = where
        path.search.start(self._needed, now)

    @property
    def _needed(self) -> int:
        """The size of an IP packet that holds the largest message that the interface needs."""
        return self._context.needed_payload + MESSAGE_OVERHEAD + UDP_OVERHEAD[6]

    def _where(self, number: int) -> Endpoint | None:
        """Where a lane or session is; None if it is not used."""
        if number == SESSION:
            return None if self._sets or self._keypair is None else self._peer.endpoint
        newest = self._sets.newest
        if newest is None or number >= newest.count or not newest.features & FEATURE_PATH_MTU:
            return None
        slot = newest.first + number
        is_usable = self._tables.lanes.status(slot)["is_usable"]
        older = next((each for each in list(self._sets)[1:2] if each.count == newest.count), None)
        if not is_usable and not newest.lanes[number].is_dead and older is not None:
            slot = older.first + number         # still, or for the moment
            is_usable = self._tables.lanes.status(slot)["is_usable"]
        return newest.endpoint(slot) if is_usable else None

    def _data_at(self, number: int, now: int) -> int:
        newest = self._sets.newest
        if number == SESSION or newest is None:
            return reported.activity(self._tables, self._peer.slot, now).last_tx_ns
        status = self._tables.lanes.status(newest.first + number)
        return reported.past(status["last_data_ns"], now)

    # -- sending

    @property
    def _keypair(self) -> Keypair | None:
        return self._peer.keypairs.current

    def _probe(self, number: int, size: int, path: _Path, now: int) -> bool:
        """Send a probe that makes an IP packet of that size; False if our link does not take it."""
        assert path.where is not None
        payload_len = size - UDP_OVERHEAD[path.where.address.version] - MESSAGE_OVERHEAD
        probe = path.search.number
        if number == SESSION:
            head = _MESSAGE.pack(CONTROL_MARK, Kind.PATH_PROBE, 4, probe, 0)
            return self._send_by_session(head.ljust(payload_len, b"\0"), now, is_probe=True)
        newest = self._sets.newest
        assert newest is not None
        head = _MESSAGE.pack(EXTENSION_PATH_PROBE, 0, 4, probe, 0)
        return newest.send(number, LaneSet.EXTENSION, now, head.ljust(payload_len, b"\0"),
                           is_probe=True)

    def _send_by_session(self, inner: bytes, now: int, *, is_probe: bool) -> bool:
        """Not as Device sends control packets: nothing follows from that it was sent."""
        keypair, endpoint = self._keypair, self._peer.endpoint
        if keypair is None or endpoint is None or now >= keypair.created_ns + REJECT_AFTER_TIME:
            return True
        message = self._tables.keypairs.seal(keypair.slot, keypair.local_index, inner)
        callbacks = self._context.callbacks
        if is_probe and callbacks.send_probe is not None:
            return callbacks.send_probe(message, endpoint, self._peer.source_address, None, 0)
        callbacks.send_lane(message, endpoint, self._peer.source_address, None)
        return True

    # -- what follows

    def _apply(self) -> None:
        """Have the workers know what fits, and say what does not."""
        fits = [path.search.plpmtu - MESSAGE_OVERHEAD - UDP_OVERHEAD[path.where.address.version]
                for path in self._paths.values() if path.search.plpmtu and path.where is not None]
        hole = self.black_hole.endpoint
        if not fits and hole is None:
            if self._is_inferred:       # it was none
                self._forget()
            return      # what was known stays until more is
        self._is_inferred = not fits
        if hole is not None and not fits:
            fits = [BASE_PLPMTU - MESSAGE_OVERHEAD - UDP_OVERHEAD[hole.address.version]]
        smallest = min(fits)
        payload_mtu = None if smallest >= self._context.needed_payload else smallest
        self._set(payload_mtu)
        if payload_mtu != self._logged and (
                self.black_hole.is_certain if self._is_inferred else self._is_settled):
            self._logged = payload_mtu
            self._say()

    def _set(self, payload_mtu: int | None) -> None:
        if self._is_unprobed or payload_mtu != self._payload_mtu:
            self._is_unprobed, self._payload_mtu = False, payload_mtu
            self._tables.peers.set_payload_mtu(self._peer.slot, payload_mtu)

    def _forget(self) -> None:
        """Nothing is known."""
        if not self._is_unprobed:
            self._is_unprobed, self._is_inferred, self._payload_mtu = True, False, None
            self._tables.peers.set_unprobed(self._peer.slot)

    @property
    def _is_settled(self) -> bool:
        """Whether the narrowest path is known."""
        mtu = self.mtu
        return all(path.search.is_settled for path in self._paths.values()
                   if path.search.plpmtu == mtu)

    def _say(self) -> None:
        if self._payload_mtu is None:
            log.info("the path to %(peer)s takes all datagrams again", {"peer": self._peer})
        elif self._is_inferred:
            log.warning("large datagrams to %(peer)s seem to get lost on the way, and nobody says "
                        "so: it is sent no more than %(mtu)d bytes in one piece, and TCP is made "
                        "to fit", {"peer": self._peer, "mtu": self.mtu})
        elif any(path.search.is_black_hole for path in self._paths.values()):
            log.warning("large datagrams to %(peer)s got lost: its path takes %(mtu)d bytes now; "
                        "what is larger is answered by ICMP or goes in fragments, and TCP is made "
                        "to fit", {"peer": self._peer, "mtu": self.mtu})
        else:
            log.warning("the path to %(peer)s takes %(mtu)d bytes in one piece: what is larger is "
                        "answered by ICMP or goes in fragments, and TCP is made to fit",
                        {"peer": self._peer, "mtu": self.mtu})
