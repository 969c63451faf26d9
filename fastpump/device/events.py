"""What workers report, and what each event means for its peer.

A worker reports an event once until it is handled: whoever handles it lets the worker report it
again (hot/events.pxd).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from fastpump._core import NO_SLOT, OFFLOAD_BITS, SharedTables
from fastpump.constants import REKEY_TIMEOUT_JITTER
from fastpump.device.callbacks import DeviceCallbacks
from fastpump.device.endpoints import Endpoints
from fastpump.device.handshake import Handshakes
from fastpump.device.lanes import Lanes
from fastpump.device.path_mtus import SESSION
from fastpump.device.peer import Peer
from fastpump.device.send_errors import SendErrors, error_text

log = logging.getLogger("fastpump.device")


class WorkerEvent(NamedTuple):
    """An event as SharedTables.workers.events gives it."""

    name: str
    peer_slot: int
    """NO_SLOT for an event that is about no peer."""
    detail: int = 0
    """By name: the slot of a keypair or lane, an offload's bit, or whether what TCP sent again was
    in pieces that fit."""
    error: int = 0
    """An errno; of a path probe or its ack, number << 16 | size."""
    at_ns: int = 0
    """As the worker says, but not after Device.on_event was called."""


class ControlPacket(NamedTuple):
    """A control packet that a worker received in a session, as SharedTables.workers.controls
    gives it."""

    peer_slot: int
    local_index: int
    """Receiver index of the session."""
    data: bytes


def log_offload_off(event: WorkerEvent) -> None:
    """A worker found that the kernel refuses an offload, and has switched it off."""
    name = next((name for name, bit in OFFLOAD_BITS.items() if bit == event.detail),
                str(event.detail))
    log.warning("%(offload)s failed: %(error)s; switched off: packets are sent singly",
                {"offload": name, "error": error_text(event.error)})


class PeerEvents:
    """A method for each event that is about a peer."""

    def __init__(self, tables: SharedTables, handshakes: Handshakes, endpoints: Endpoints,
                 lanes: Lanes, send_errors: SendErrors, callbacks: DeviceCallbacks) -> None:
        self._tables = tables
        self._handshakes = handshakes
        self._endpoints = endpoints
        self._lanes = lanes
        self._send_errors = send_errors
        self._callbacks = callbacks
        self._methods: dict[str, Callable[[Peer, WorkerEvent, int], None]] = {
            "want_session": self._want_session,
            "unanswered_tx": self._unanswered_tx,
            "unanswered_rx": self._unanswered_rx,
            "confirmed": self._confirmed,
            "rekey": self._rekey,
            "roam": self._roam,
            "source_address_gone": self._source_address_gone,
            "send_error": self._send_error,
            "lane_usable": self._lane_usable,
            "lane_echo_request": self._lane_echo_request,
            "lane_roam": self._lane_roam,
            "lane_unanswered": self._lane_unanswered,
            "gso_refused": self._gso_refused,
            "path_probe": self._path_probe,
            "path_ack": self._path_ack,
            "lane_bulk": self._lane_bulk,
            "record_cut": self._record_cut,
            "records_end": self._records_end,
            "loop": self._loop,
            "resent": self._resent,
            "resent_acked": self._resent_acked,
        }

    def handle(self, peer: Peer, event: WorkerEvent, now: int) -> None:
        """Call the event's method."""
        self._methods[event.name](peer, event, now)

    def _want_session(self, peer: Peer, _event: WorkerEvent, now: int) -> None:
        self._handshakes.want_session(peer, now)

    def _unanswered_tx(self, peer: Peer, event: WorkerEvent, now: int) -> None:
        self._lanes.of(peer).paths.on_data(SESSION, now)
        peer.timers.unanswered_tx(event.at_ns, self._callbacks.jitter(REKEY_TIMEOUT_JITTER))

    def _unanswered_rx(self, peer: Peer, event: WorkerEvent, _now: int) -> None:
        peer.timers.unanswered_rx(event.at_ns)

    def _confirmed(self, peer: Peer, event: WorkerEvent, now: int) -> None:
        self._handshakes.confirm(peer, event.detail, now)

    def _rekey(self, peer: Peer, event: WorkerEvent, now: int) -> None:
        self._handshakes.want_rekey(peer, event.detail, now)

    def _roam(self, peer: Peer, _event: WorkerEvent, _now: int) -> None:
        self._endpoints.follow(peer)

    def _source_address_gone(self, peer: Peer, _event: WorkerEvent, _now: int) -> None:
        self._endpoints.forget_source(peer)
        self._tables.peers.rearm(peer.slot, "source_address_gone")

    def _send_error(self, peer: Peer, _event: WorkerEvent, now: int) -> None:
        self._send_errors.look(peer, now)

    def _lane_usable(self, peer: Peer, event: WorkerEvent, now: int) -> None:
        self._lanes.of(peer).on_lane_usable(event.detail, now)

    def _lane_echo_request(self, peer: Peer, event: WorkerEvent, now: int) -> None:
        self._lanes.of(peer).on_lane_echo_request(event.detail, now)

    def _lane_roam(self, peer: Peer, event: WorkerEvent, now: int) -> None:
        self._lanes.of(peer).on_lane_roam(event.detail, now)

    def _lane_unanswered(self, peer: Peer, event: WorkerEvent, _now: int) -> None:
        self._lanes.of(peer).on_lane_unanswered(event.detail, event.at_ns)

    def _path_probe(self, peer: Peer, event: WorkerEvent, now: int) -> None:
        slot = None if event.detail == NO_SLOT else event.detail
        self._lanes.of(peer).paths.on_probe(slot, event.error >> 16, event.error & 0xffff, now)

    def _path_ack(self, peer: Peer, event: WorkerEvent, now: int) -> None:
        slot = None if event.detail == NO_SLOT else event.detail
        self._lanes.of(peer).paths.on_ack(slot, event.error >> 16, event.error & 0xffff, now)

    def _lane_bulk(self, peer: Peer, event: WorkerEvent, now: int) -> None:
        self._lanes.of(peer).paths.records.on_bulk(event.detail, now)

    def _record_cut(self, peer: Peer, event: WorkerEvent, now: int) -> None:
        self._lanes.of(peer).paths.records.on_cut(event.detail, now)

    def _records_end(self, peer: Peer, event: WorkerEvent, now: int) -> None:
        self._lanes.of(peer).paths.records.on_end(event.detail, now)

    def _loop(self, peer: Peer, _event: WorkerEvent, now: int) -> None:
        endpoint = self._endpoints.of_data(peer)
        if endpoint is not None:
            self._endpoints.give_up(peer, endpoint.address, now)
        self._tables.peers.rearm(peer.slot, "loop")

    def _resent(self, peer: Peer, _event: WorkerEvent, now: int) -> None:
        self._lanes.of(peer).paths.black_hole.on_resent(now)

    def _resent_acked(self, peer: Peer, event: WorkerEvent, now: int) -> None:
        self._lanes.of(peer).paths.on_resent_acked(bool(event.detail), event.at_ns, now)

    def _gso_refused(self, peer: Peer, _event: WorkerEvent, _now: int) -> None:
        """Said once for each place where the peer is: a new set of lanes finds it out again."""
        self._tables.peers.rearm(peer.slot, "gso_refused")
        if peer.gso_refused_at != peer.endpoint:
            peer.gso_refused_at = peer.endpoint
            log.warning("the way to %(peer)s takes no UDP GSO (EIO): datagrams are sent there "
                        "singly, which is slower; tried again from time to time", {"peer": peer})
