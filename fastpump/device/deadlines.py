"""When a device has to look at each peer next.

A heap with at most a few entries a peer. An entry counts if it is the peer's `watched_at`; one
that an earlier deadline has overtaken, or whose peer is gone, is skipped when its time comes.
"""

from __future__ import annotations

import heapq
import itertools

from fastpump.device.peer import Peer


class Deadlines:
    """Peers by their deadline, CLOCK_BOOTTIME ns; `len` counts entries."""

    def __init__(self) -> None:
        # (deadline, tie-breaker, peer)
        self._heap: list[tuple[int, int, Peer]] = []
        self._sequence = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def next(self) -> int | None:
        """The earliest; None if there are none."""
        return self._heap[0][0] if self._heap else None

    def watch(self, peer: Peer, deadline: int | None) -> bool:
        """Look at the peer by `deadline`; whether that is earlier than before. A later one is not
        entered: the earlier entry finds nothing due then, and the peer is entered again."""
        if deadline is None or (peer.watched_at is not None and peer.watched_at <= deadline):
            return False
        peer.watched_at = deadline
        heapq.heappush(self._heap, (deadline, next(self._sequence), peer))
        return True

    def forget(self, peer: Peer) -> None:
        """Do not look at the peer any more."""
        peer.watched_at = None

    def take_due(self, now: int) -> Peer | None:
        """A peer whose deadline has come; it is no longer watched."""
        while self._heap and self._heap[0][0] <= now:
            deadline, _, peer = heapq.heappop(self._heap)
            if deadline == peer.watched_at:
                peer.watched_at = None
                return peer
        return None
