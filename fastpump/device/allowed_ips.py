"""Which peer each allowed IP leads to. A prefix has one owner at most.

The workers look addresses up in the shared tables' trie (hot/lookup.pxd) while it changes here.
"""

from __future__ import annotations

from collections.abc import Collection

from fastpump._core import SharedTables
from fastpump.device.peer import Peer
from fastpump.device.peer_change import PrefixChange
from fastpump.ip import Prefix


class AllowedIps:
    """The allowed IPs of all peers of a device; `len` counts them."""

    def __init__(self, tables: SharedTables) -> None:
        self._tables = tables
        self._owners: dict[Prefix, Peer] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def owner(self, prefix: Prefix) -> Peer | None:
        """The peer that has exactly this prefix."""
        return self._owners.get(prefix)

    def change(self, peer: Peer, changes: Collection[PrefixChange], *, replaces: bool) -> None:
        """Add and remove in order; `replaces`: and remove all that is not added. MemoryError when
        the table is full: the rest of `changes` is not applied."""
        if replaces:
            # Only what goes is removed: packets to what stays are always routed.
            stays = {prefix for prefix, is_added in changes if is_added}
            for prefix in peer.allowed_ips - stays:
                self._remove(peer, prefix)
        for prefix, is_added in changes:
            if is_added:
                self._add(peer, prefix)
            else:
                self._remove(peer, prefix)

    def clear(self, peer: Peer) -> None:
        """Remove all of a peer's."""
        for prefix in list(peer.allowed_ips):
            self._remove(peer, prefix)

    def _add(self, peer: Peer, prefix: Prefix) -> None:
        owner = self._owners.get(prefix)
        if owner is peer:
            return
        self._tables.allowed_ips.insert(*prefix, peer.slot)     # moves it, if it is there
        if owner is not None:
            owner.allowed_ips.discard(prefix)
        self._owners[prefix] = peer
        peer.allowed_ips.add(prefix)

    def _remove(self, peer: Peer, prefix: Prefix) -> None:
        if self._owners.get(prefix) is not peer:
            return
        self._tables.allowed_ips.remove(*prefix)
        del self._owners[prefix]
        peer.allowed_ips.discard(prefix)
