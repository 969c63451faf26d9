"""On which lanes superpackets may travel whole, as records (hot/record.pxd, docs/PROTOCOL.md).

A path brings records if the receiver's kernel puts their datagrams together (UDP GRO), and next to
nothing is lost on it. So nothing is sent that way before it is known: when a worker says that much
leaves on a lane, a record of zeros is sent on it, and the peer acknowledges it as any probe of the
path MTU. The first record that comes in part, of which the peer tells, ends it; it is tried again
after BACKOFF, and then after twice as long each time. A new set goes on where the one before was,
as lane n uses the same sockets.
"""

from __future__ import annotations

import logging
import struct
from dataclasses import dataclass

from fastpump._core import FEATURE_RECORDS
from fastpump.conn.endpoint import Endpoint
from fastpump.constants import SECOND
from fastpump.device.lane_context import MESSAGE_OVERHEAD, LanesContext
from fastpump.device.lane_sets import LaneSet, LaneSets
from fastpump.device.peer import Peer
from fastpump.protocol.wire import EXTENSION_PATH_PROBE, EXTENSION_RECORD_CUT

log = logging.getLogger("fastpump.records")

BACKOFF, MAX_BACKOFF = 10 * SECOND, 640 * SECOND
CALM = 60 * SECOND
"""After so long without a failure, or a try, the next one is the first."""
PROBE_TIMEOUT = SECOND
PROBE_LEN = 60_000
"""Of the record of zeros: about that of a full superpacket, which is 65,535 bytes at most."""
MAX_DATAGRAMS = 60
"""Fewer than UDP GSO takes."""
FIELDS_LEN = 4
"""Of a record, besides MESSAGE_OVERHEAD; not counted by an acknowledgement."""

_MESSAGE = struct.Struct("<BBHHH")


@dataclass(slots=True)
class _Lane:
    """Lane n of all sets of a peer."""

    where: Endpoint | None = None
    is_on: bool = False
    on_since: int = 0
    not_before: int = 0
    backoff: int = BACKOFF
    probe: tuple[int, int] | None = None
    """Number and size of the one that is not acknowledged, ..."""
    probed_at: int = 0
    """... and when it was sent."""

    def fail(self, now: int) -> None:
        """A probe or a record did not come whole."""
        if now >= (self.on_since if self.is_on else self.not_before) + CALM:
            self.backoff = BACKOFF
        self.is_on, self.probe = False, None
        self.not_before = now + self.backoff
        self.backoff = min(2 * self.backoff, MAX_BACKOFF)


class PeerRecords:
    """Of the lanes to one peer."""

    __slots__ = ("_context", "_lanes", "_number", "_peer", "_sets")

    def __init__(self, peer: Peer, context: LanesContext, sets: LaneSets) -> None:
        self._peer = peer
        self._context = context
        self._sets = sets
        self._lanes: dict[int, _Lane] = {}
        self._number = 0

    def clear(self) -> None:
        """There is no lane."""
        self._lanes.clear()

    def on_bulk(self, slot: int, now: int) -> None:
        """Much leaves on a lane."""
        lane_set = self._sets.set_of(slot)
        payload_mtu = self._context.tables.peers.payload_mtu(self._peer.slot)
        datagram_len = MESSAGE_OVERHEAD + (
            self._context.needed_payload if payload_mtu is None else payload_mtu)
        if lane_set is None or not lane_set.features & FEATURE_RECORDS \
                or self._context.callbacks.send_probe is None or 2 * datagram_len > PROBE_LEN:
            return
        number, where = slot - lane_set.first, lane_set.endpoint(slot)
        lane = self._lanes.get(number)
        if lane is None or lane.where != where:
            self._end(number)
            self._lanes[number] = lane = _Lane(where)
        if lane.is_on:
            self._context.tables.lanes.set_records(slot, True)
            return
        if lane.probe is not None:
            if now < lane.probed_at + PROBE_TIMEOUT:
                return
            lane.fail(now)
            log.debug("a record to %(peer)s on lane %(number)d got lost: it takes none",
                      {"peer": self._peer, "number": number})
        if now >= lane.not_before:
            self._probe(lane_set, number, lane, datagram_len, now)

    def _probe(self, lane_set: LaneSet, number: int, lane: _Lane, datagram_len: int,
               now: int) -> None:
        length = min(PROBE_LEN, MAX_DATAGRAMS * datagram_len)
        length -= length % datagram_len == 0        # the last datagram is shorter
        self._number = (self._number + 1) & 0xffff
        head = _MESSAGE.pack(EXTENSION_PATH_PROBE, 0, 4, self._number, 0)
        lane.probe, lane.probed_at = (self._number, length - FIELDS_LEN), now
        if not lane_set.send(number, LaneSet.EXTENSION | LaneSet.RECORD, now,
                             head.ljust(length - MESSAGE_OVERHEAD - FIELDS_LEN, b"\0"),
                             datagram_len=datagram_len):
            lane.fail(now)                          # our own link does not take it

    def on_ack(self, slot: int, number: int, size: int, now: int) -> bool:
        """A probe has come whole, says the peer; False if it is none of ours."""
        lane_set = self._sets.set_of(slot)
        lane = None if lane_set is None else self._lanes.get(slot - lane_set.first)
        if lane is None or lane.probe != (number, size):
            return False
        lane.probe, lane.is_on, lane.on_since = None, True, now
        self._context.tables.lanes.set_records(slot, True)
        return True

    def on_cut(self, slot: int, now: int) -> None:
        """A record of the peer came in part."""
        lane_set = self._sets.set_of(slot)
        if lane_set is not None and lane_set.features & FEATURE_RECORDS:
            lane_set.send(slot - lane_set.first, LaneSet.EXTENSION, now,
                          _MESSAGE.pack(EXTENSION_RECORD_CUT, 0, 4, 0, 0))

    def on_end(self, slot: int, now: int) -> None:
        """The peer says that of ours."""
        lane_set = self._sets.set_of(slot)
        lane = None if lane_set is None else self._lanes.get(slot - lane_set.first)
        if lane_set is None or lane is None:
            return
        number = slot - lane_set.first
        self._end(number)
        if not lane.is_on:
            return
        lane.fail(now)
        log.debug("a record to %(peer)s on lane %(number)d came in part: none for %(seconds)d s",
                  {"peer": self._peer, "number": number,
                   "seconds": (lane.not_before - now) // SECOND})

    def _end(self, number: int) -> None:
        """None on that lane, of whichever set."""
        for each in self._sets:
            if number < each.count:
                self._context.tables.lanes.set_records(each.first + number, False)
