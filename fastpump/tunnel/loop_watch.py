"""Whether frames go round in a loop outside of the tunnel.

A TAP forms no loop by itself (hot/switch.pxd). But if what it joins is connected in another way as
well, by a cable or a second tunnel between the same bridges, flooded frames come back to it for
ever: up to the storm limit, at the price of a CPU. Each time, the sender's MAC address seems to
have moved from this side to a peer, or back. Hosts that really move do so once; so a loop is
where addresses have moved, in one look, more often than there are addresses.
"""

from __future__ import annotations

import logging

log = logging.getLogger("fastpump")

MOVES_PER_S = 50
"""Besides one for each address: hosts that are received by two ways, for a moment."""


class LoopWatch:
    """Says so when a loop begins and when it has ended."""

    def __init__(self) -> None:
        self._moves = 0
        self._looked_at = 0.0
        self.is_loop = False

    def look(self, moves: int, addresses: int, now_s: float) -> None:
        """`moves`: how often addresses have moved, of all workers so far; `addresses`: how many
        are known now."""
        moved, self._moves = moves - self._moves, moves
        seconds, self._looked_at = now_s - self._looked_at, now_s
        was_loop, self.is_loop = self.is_loop, moved > addresses + MOVES_PER_S * seconds
        if self.is_loop and not was_loop:
            log.warning("frames go round in a loop: MAC addresses move between this side and the "
                        "peers %(rate)d times a second; is there a second tunnel, or a cable, "
                        "between the same networks? Remove one", {"rate": moved / seconds})
        elif was_loop and not self.is_loop:
            log.info("frames do not go round in a loop any more")
