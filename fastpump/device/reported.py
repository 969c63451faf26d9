"""Times that workers have written into the shared memory.

A worker that was taken over may write any. One that is yet to come would put off what is timed by
it for as long as the word stays there: perhaps for ever, whatever becomes of the worker. So it is
none. Whatever goes by such times asks here.
"""

from __future__ import annotations

from fastpump._core import SharedTables
from fastpump.constants import SECOND
from fastpump.protocol.timers import Activity

AHEAD = SECOND
"""An honest worker may have written a time since `now` was read: a moment ahead of it."""


def activity(tables: SharedTables, peer_slot: int, now: int) -> Activity:
    """The data plane's notes on a peer. What is yet to come and unanswered is forgotten, so that
    workers note what really is."""
    found = Activity(*tables.peers.activity(peer_slot))
    for event, at in (("unanswered_tx", found.first_unanswered_tx_ns),
                      ("unanswered_rx", found.first_unanswered_rx_ns)):
        if not past(at, now):
            tables.peers.rearm(peer_slot, event, at)
    return Activity(*[past(at, now) for at in found])


def past(at: int, now: int) -> int:
    """A worker's time, 0 for none; 0 also if it is yet to come."""
    return at if at <= now + AHEAD else 0
