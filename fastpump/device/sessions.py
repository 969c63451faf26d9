"""Sessions between a peer's keypairs (keypairs.py) and the shared tables that the workers
see: install, publish, retire. The receiver index that names a session was reserved in
the tables when its handshake began.
"""

from __future__ import annotations

from collections.abc import Iterable

from fastpump._core import NewKeypair, SharedTables
from fastpump.constants import (
    KEEPALIVE_TIMEOUT,
    REJECT_AFTER_TIME,
    REKEY_AFTER_TIME,
    REKEY_TIMEOUT,
)
from fastpump.device.peer import Peer
from fastpump.protocol import noise
from fastpump.protocol.keypairs import Keypair


class Sessions:
    """All sessions of a device, and which peer each receiver index belongs to."""

    def __init__(self, tables: SharedTables) -> None:
        self._tables = tables
        self._by_index: dict[int, Peer] = {}

    def peer_of(self, index: int) -> Peer | None:
        """The peer of a receiver index that we gave out: a session's or a handshake's."""
        return self._by_index.get(index)

    def begin(self, peer: Peer) -> tuple[int, int]:
        """(slot, receiver index) for a handshake; MemoryError when the table is full."""
        slot, index = self._tables.keypairs.reserve(peer.worker)
        self._by_index[index] = peer
        return slot, index

    def abandon(self, slot: int, index: int) -> None:
        """The handshake that `begin` was for came to nothing."""
        del self._by_index[index]
        self._tables.keypairs.retire(slot)

    def install(self, peer: Peer, slot: int, local_index: int, remote_index: int,
                transport: noise.TransportKeys, now: int, *, is_initiator: bool) -> Keypair:
        """Let the peer's worker receive with new keys."""
        self._tables.keypairs.install(slot, NewKeypair(
            local_index=local_index, remote_index=remote_index, peer=peer.slot,
            worker=peer.worker, send_key=transport.send, receive_key=transport.receive,
            is_initiator=is_initiator, rekey_at_ns=now + REKEY_AFTER_TIME,
            rekey_rx_at_ns=now + REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT,
            reject_at_ns=now + REJECT_AFTER_TIME))
        return Keypair(slot, local_index, remote_index, is_initiator, now, transport.exported)

    def publish(self, peer: Peer) -> None:
        """Have all workers send with the peer's current keypair."""
        current = peer.keypairs.current
        self._tables.peers.set_send_keypair(peer.slot, None if current is None else current.slot)

    def retire(self, keypairs: Iterable[Keypair]) -> None:
        """Take keypairs out of use."""
        for keypair in keypairs:
            self.abandon(keypair.slot, keypair.local_index)

    def clear(self, peer: Peer) -> None:
        """Forget all keys of a peer."""
        self._tables.peers.set_send_keypair(peer.slot, None)
        self.retire(peer.keypairs.clear())

    def seal(self, keypair: Keypair, inner: bytes = b"") -> bytes:
        """A transport message, padded as a packet is; without `inner` a keepalive."""
        return self._tables.keypairs.seal(keypair.slot, keypair.local_index,
                                          inner + bytes(-len(inner) % 16))
