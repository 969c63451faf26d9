"""Where each peer is, and from which source address we speak to it.

Three have to agree: the peer, the shared tables that workers send by, and the lanes that we opened
to where the session is. A worker that receives from elsewhere changes the tables itself.
"""

from __future__ import annotations

import logging

from fastpump._core import SharedTables
from fastpump.conn.endpoint import NO_LOCAL, Endpoint
from fastpump.device.callbacks import DeviceCallbacks
from fastpump.device.lanes import Lanes
from fastpump.device.peer import Peer

log = logging.getLogger("fastpump.device")


class Endpoints:
    """The endpoints of all peers of a device."""

    def __init__(self, tables: SharedTables, lanes: Lanes, callbacks: DeviceCallbacks,
                 family: int) -> None:
        """`family`: of the sockets (conn/endpoint.py)."""
        self._tables = tables
        self._lanes = lanes
        self._callbacks = callbacks
        self._family = family

    def check(self, endpoint: Endpoint) -> None:
        """ConfigError for one that our sockets cannot reach."""
        endpoint.sockaddr(self._family)

    def set(self, peer: Peer, endpoint: Endpoint, local: bytes = NO_LOCAL) -> None:
        """The peer is there; `local`: the source address to speak to it from."""
        if endpoint == peer.endpoint and local == peer.local:
            return
        self._tables.peers.set_endpoint(peer.slot, endpoint.sockaddr(self._family), local)
        self._moved(peer, endpoint, local)

    def forget_source(self, peer: Peer) -> None:
        """Let the kernel choose the source address until the peer is heard again."""
        if peer.endpoint is not None:
            self.set(peer, peer.endpoint)

    def follow(self, peer: Peer) -> None:
        """Take over what a worker wrote that received from elsewhere; it sends there already."""
        self._tables.peers.rearm(peer.slot, "roam")     # first: it may be elsewhere again
        sockaddr, local = self._tables.peers.endpoint(peer.slot)
        if not sockaddr:
            return
        endpoint = Endpoint.from_sockaddr(sockaddr)
        if endpoint == peer.endpoint:
            peer.local = local
        else:
            log.debug("%s is at %s now", peer, endpoint)
            self._moved(peer, endpoint, local)

    def rewrite(self, peer: Peer) -> None:
        """A worker died while it wrote the peer's endpoint: write what we know."""
        if peer.endpoint is not None:
            self._tables.peers.set_endpoint(
                peer.slot, peer.endpoint.sockaddr(self._family), peer.local)

    def rewrite_lanes(self, peer: Peer) -> None:
        """A worker died: lanes that lost their endpoint are where the session is."""
        if peer.endpoint is not None:
            self._lanes.of(peer).sets.endpoint_changed(None, peer.endpoint, peer.local)

    def send(self, peer: Peer, message: bytes, now: int) -> None:
        """Send a handshake or transport message to where the peer is; nowhere if that is not
        known."""
        if peer.endpoint is not None:
            self._tables.peers.record_sent(peer.slot, now, len(message))
            self._callbacks.transmit(message, peer.endpoint, peer.local)

    def _moved(self, peer: Peer, endpoint: Endpoint, local: bytes) -> None:
        self._lanes.of(peer).sets.endpoint_changed(peer.endpoint, endpoint, local)
        peer.endpoint, peer.local = endpoint, local
        self._callbacks.on_endpoint(endpoint)
