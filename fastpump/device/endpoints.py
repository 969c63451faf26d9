"""Where each peer is, and from which source address we send to it.

It stands in three places: the peer, the shared tables that workers read, and the lanes that we
opened, which follow the session. A worker that receives from elsewhere changes the tables itself.
"""

from __future__ import annotations

import logging

from fastpump._core import SharedTables
from fastpump.conn.endpoint import NO_SOURCE_ADDRESS, Endpoint
from fastpump.device.callbacks import DeviceCallbacks
from fastpump.device.lanes import Lanes
from fastpump.device.peer import Peer
from fastpump.device.send_errors import SendErrors

log = logging.getLogger("fastpump.device")


class Endpoints:
    """The endpoints of all peers of a device."""

    def __init__(self, tables: SharedTables, lanes: Lanes, send_errors: SendErrors,
                 callbacks: DeviceCallbacks, family: int) -> None:
        """`family`: of the sockets (conn/endpoint.py)."""
        self._tables = tables
        self._lanes = lanes
        self._send_errors = send_errors
        self._callbacks = callbacks
        self._family = family

    def check(self, endpoint: Endpoint) -> None:
        """ConfigError for one that our sockets cannot reach."""
        endpoint.sockaddr(self._family)

    def is_possible(self, endpoint: Endpoint) -> bool:
        """Whether a message can have come from there: our sockets are of one family, but a worker
        may say what it likes."""
        return endpoint.is_of(self._family)

    def set(self, peer: Peer, endpoint: Endpoint,
            source_address: bytes = NO_SOURCE_ADDRESS) -> None:
        """The peer is at `endpoint`; send to it from `source_address`."""
        if endpoint == peer.endpoint and source_address == peer.source_address:
            return
        self._tables.peers.set_endpoint(peer.slot, endpoint.sockaddr(self._family), source_address)
        self._moved(peer, endpoint, source_address)

    def forget(self, peer: Peer) -> None:
        """The peer is about to go."""
        self._callbacks.on_endpoint(peer.endpoint, None)

    def forget_source(self, peer: Peer) -> None:
        """Let the kernel choose the source address until the peer sends again."""
        if peer.endpoint is not None:
            self.set(peer, peer.endpoint)

    def follow(self, peer: Peer) -> None:
        """A worker received from elsewhere, wrote that, and sends there already: adopt it."""
        self._tables.peers.rearm(peer.slot, "roam")     # first: it may be elsewhere again
        sockaddr, source_address = self._tables.peers.endpoint(peer.slot)
        if not sockaddr:
            return
        endpoint = Endpoint.from_sockaddr(sockaddr)
        if not self.is_possible(endpoint):
            self.rewrite(peer)
        elif endpoint == peer.endpoint:
            peer.source_address = source_address
        else:
            log.debug("%(peer)s is at %(endpoint)s now", {"peer": peer, "endpoint": endpoint})
            self._moved(peer, endpoint, source_address)

    def rewrite(self, peer: Peer) -> None:
        """A worker died while it wrote the peer's endpoint: write what we know."""
        if peer.endpoint is not None:
            self._tables.peers.set_endpoint(
                peer.slot, peer.endpoint.sockaddr(self._family), peer.source_address)

    def rewrite_lanes(self, peer: Peer) -> None:
        """A worker died: lanes that lost their endpoint are where the session is."""
        if peer.endpoint is not None:
            self._lanes.of(peer).sets.endpoint_changed(None, peer.endpoint, peer.source_address)

    def send(self, peer: Peer, message: bytes, now: int) -> None:
        """Send a handshake or transport message to where the peer is; nowhere if that is not
        known."""
        if peer.endpoint is None:
            return
        self._tables.peers.record_sent(peer.slot, now, len(message))
        try:
            self._callbacks.transmit(message, peer.endpoint, peer.source_address)
        except OSError as error:
            self._send_errors.sent(peer, error.errno or 0, now)
        else:
            self._send_errors.sent(peer, 0, now)

    def _moved(self, peer: Peer, endpoint: Endpoint, source_address: bytes) -> None:
        before = peer.endpoint
        self._lanes.of(peer).sets.endpoint_changed(before, endpoint, source_address)
        peer.endpoint, peer.source_address = endpoint, source_address
        self._callbacks.on_endpoint(before, endpoint)
