"""Where each peer is, and from which source address we send to it.

It stands in three places: the peer, the shared tables that workers read, and the lanes, which have
endpoints of their own. A worker that receives from elsewhere changes the tables itself, and tells
us a moment later: what is sent or changed here begins with what the tables say.

    the operator says it      `configure`: all of it moves at once, to the endpoint as it is
    of several, one is tried  `try_next`: only initiations go there; an answer moves all (`set`)
    a handshake message came  `set`: the session moves, and with it lanes that we opened
    a worker received         `follow`: the same; other lanes move one by one (lane_sets.py)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from fastpump._core import SharedTables
from fastpump.conn.endpoint import NO_SOURCE_ADDRESS, Endpoint
from fastpump.constants import SECOND
from fastpump.device.callbacks import DeviceCallbacks
from fastpump.device.lanes import Lanes
from fastpump.device.peer import Peer
from fastpump.device.send_errors import NO_ROOM, SendErrors
from fastpump.ip import Address

log = logging.getLogger("fastpump.device")

LOOP_TOLD_FOR = 3600 * SECOND
"""A loop of a peer at one endpoint is told no more often."""


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
        self.on_given: Callable[[Endpoint], None] = lambda _: None
        """Called when the operator, or the name that he gave, says where a peer is."""

    def check(self, endpoint: Endpoint) -> None:
        """ConfigError for one that our sockets cannot reach."""
        endpoint.sockaddr(self._family)

    def is_possible(self, endpoint: Endpoint) -> bool:
        """Whether a message can have come from there: our sockets are of one family, but a worker
        may say what it likes."""
        return endpoint.is_of(self._family)

    def of_data(self, peer: Peer) -> Endpoint | None:
        """Where data to the peer goes now, by the session or on lanes; None while unknown."""
        if peer.endpoint is None:
            return None
        return self._lanes.of(peer).sets.data_endpoint(peer.endpoint)

    def configure(self, peer: Peer, endpoint: Endpoint) -> bool:
        """The operator says where the peer is; whether anything was sent elsewhere until now. The
        kernel chooses the source address until the peer sends again."""
        self.follow(peer)
        before = peer.endpoint
        was_there = endpoint == before
        self._tables.peers.set_endpoint(peer.slot, endpoint.sockaddr(self._family))
        has_moved = self._lanes.of(peer).sets.set_endpoint(endpoint, was_there=was_there)
        peer.endpoint, peer.source_address = endpoint, NO_SOURCE_ADDRESS
        peer.configured_endpoint = endpoint
        self._try(peer, None)
        if not was_there:
            self._callbacks.on_endpoint(before, endpoint)
        self.on_given(endpoint)
        return has_moved or not was_there

    def set(self, peer: Peer, endpoint: Endpoint, source_address: bytes) -> None:
        """The peer is at `endpoint`; send to it from `source_address`."""
        self.follow(peer)
        self._try(peer, None)
        if endpoint == peer.endpoint and source_address == peer.source_address:
            return
        self._tables.peers.set_endpoint(peer.slot, endpoint.sockaddr(self._family), source_address)
        self._moved(peer, endpoint, source_address)

    def forget(self, peer: Peer) -> None:
        """The peer is about to go."""
        self._try(peer, None)
        self._callbacks.on_endpoint(peer.endpoint, None)

    # -- several places

    def set_candidates(self, peer: Peer, candidates: Iterable[Endpoint]) -> None:
        """The operator says where the peer may be. Where it is stays."""
        before = {*peer.candidates, peer.configured_endpoint}
        peer.candidates = tuple(each for each in candidates if self.is_possible(each))
        for each in peer.candidates:
            if each not in before:
                self.on_given(each)

    def try_next(self, peer: Peer) -> None:
        """An initiation had no answer: the next one goes to the next of several candidates, and
        after the last one to where the peer was heard, if that is none of them."""
        self.follow(peer)
        if peer.endpoint is None or len(peer.candidates) < 2:
            return
        places = tuple(dict.fromkeys((*peer.candidates, peer.endpoint)))
        here = peer.trying or peer.endpoint
        after = places.index(here) + 1 if here in places else 0
        self._try(peer, places[after % len(places)])

    def _try(self, peer: Peer, where: Endpoint | None) -> None:
        """Send initiations there from now on; None, or where the peer is: there."""
        before, peer.trying = peer.trying, None if where == peer.endpoint else where
        if before != peer.trying:       # the answers are to be admitted
            self._callbacks.on_endpoint(before, peer.trying)
            log.debug("%(peer)s is tried at %(endpoint)s now",
                      {"peer": peer, "endpoint": where or peer.endpoint})

    def send_initiation(self, peer: Peer, message: bytes, now: int) -> None:
        """Send to where the peer is tried. What the kernel refuses at once (there is no IPv6, say)
        goes to the next place at once."""
        self.follow(peer)
        if peer.endpoint is None:
            return
        self._tables.peers.record_sent(peer.slot, now, len(message))
        error = 0
        for _ in range(len(peer.candidates) + 1):
            if peer.trying is None:
                error = self._transmit(message, peer.endpoint, peer.source_address)
            else:
                error = self._transmit(message, peer.trying, NO_SOURCE_ADDRESS)
            if not error or error in NO_ROOM:
                break
            self.try_next(peer)
        self._send_errors.sent(peer, error, now)

    def addresses(self, peer: Peer) -> frozenset[Address]:
        """Where the peer is, by its session and on its lanes, and where it is tried."""
        self.follow(peer)
        found = frozenset(self._lanes.of(peer).sets.addresses())
        return found | {each.address for each in (peer.endpoint, peer.trying) if each is not None}

    def give_up(self, peer: Peer, address: Address, now: int) -> None:
        """The way to where the peer is leads into the tunnel: nothing that is sent there leaves the
        host. It may have moved there because of a datagram that somebody on the path has changed.
        So it is where the operator said, or nowhere until it sends again. Where the operator said
        is only told; of several places, the next one will be tried."""
        self.follow(peer)
        wanted = peer.configured_endpoint
        was_there = any(each is not None and each.address == address
                        for each in (peer.endpoint, peer.trying))
        if wanted is None or not _is_said(peer, address):
            was_there |= self._lanes.of(peer).sets.leave(address)
            if wanted is not None:
                self.configure(peer, wanted)
            elif peer.endpoint is not None and peer.endpoint.address == address:
                self._unknown(peer)
        if was_there:
            self._tell_loop(peer, address, now)

    def _unknown(self, peer: Peer) -> None:
        self._try(peer, None)
        self._tables.peers.set_endpoint(peer.slot, b"")
        self._callbacks.on_endpoint(peer.endpoint, None)
        peer.endpoint, peer.source_address = None, NO_SOURCE_ADDRESS

    @staticmethod
    def _tell_loop(peer: Peer, address: Address, now: int) -> None:
        if peer.looped_at is not None and peer.looped_at[0] == address \
                and now < peer.looped_at[1] + LOOP_TOLD_FOR:
            return
        peer.looped_at = address, now
        if _is_said(peer, address):
            log.error("datagrams to %(peer)s are dropped: the way to %(address)s leads into this "
                      "tunnel; give it another route (see: ip route get %(address)s), or take it "
                      "out of AllowedIPs", {"peer": peer, "address": address})
        else:
            log.warning("%(peer)s was heard from %(address)s, but the way there leads into this "
                        "tunnel: it is %(where)s",
                        {"peer": peer, "address": address,
                         "where": f"at {peer.endpoint} again" if peer.endpoint else
                         "nowhere until it is heard from elsewhere"})

    def forget_source(self, peer: Peer) -> None:
        """Let the kernel choose the session's source address until the peer sends again."""
        self._tables.peers.forget_source_address(peer.slot)
        self.follow(peer)

    def way_changed(self, peer: Peer, now: int) -> None:
        """The kernel sends to the peer from another address than before: let it, and tell the peer
        at once. (It would notice by our next data; and we, if the replies to that went astray, when
        there was none for KEEPALIVE_TIMEOUT and REKEY_TIMEOUT.)"""
        self.forget_source(peer)
        lanes = self._lanes.of(peer)
        lanes.sets.forget_sources()
        if peer.keypairs.current is not None:
            lanes.announce(now)

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
        self.follow(peer)
        if peer.endpoint is None:
            return
        self._tables.peers.record_sent(peer.slot, now, len(message))
        error = self._transmit(message, peer.endpoint, peer.source_address)
        self._send_errors.sent(peer, error, now)

    def _transmit(self, message: bytes, endpoint: Endpoint, source_address: bytes) -> int:
        """Send; the errno by which the kernel refuses, 0 for none."""
        try:
            self._callbacks.transmit(message, endpoint, source_address)
        except OSError as error:
            return error.errno or 0
        return 0

    def _moved(self, peer: Peer, endpoint: Endpoint, source_address: bytes) -> None:
        before = peer.endpoint
        self._lanes.of(peer).sets.endpoint_changed(before, endpoint, source_address)
        peer.endpoint, peer.source_address = endpoint, source_address
        self._callbacks.on_endpoint(before, endpoint)
        if peer.trying == endpoint:
            self._try(peer, None)


def _is_said(peer: Peer, address: Address) -> bool:
    """Whether the operator said that the peer may be there."""
    return address in {each.address for each in (peer.configured_endpoint, *peer.candidates)
                       if each is not None}
