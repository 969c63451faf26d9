"""Peers to which nothing can be sent, for the log and `fastpump status`.

When the kernel begins to refuse datagrams to a peer, does so by another error, and takes them again
is decided where they are sent (hot/send_errors.pxd). Each is one line; if the underlay of many
peers is down, the first LOGGED of them are named.
"""

from __future__ import annotations

import errno
import logging
import os

from fastpump._core import SharedTables
from fastpump.constants import SECOND
from fastpump.device.log_budget import LogBudget
from fastpump.device.peer import Peer

log = logging.getLogger("fastpump.device")

LOGGED = 10
LOG_INTERVAL = 10 * SECOND

NO_ROOM = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM})
"""Errors that say nothing about the way to a peer."""


def error_text(number: int) -> str:
    """Network is unreachable (ENETUNREACH)"""
    return f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"


class SendErrors:
    """The peers of a device to which nothing can be sent now."""

    def __init__(self, tables: SharedTables) -> None:
        self._tables = tables
        self._errors: dict[Peer, int] = {}
        self._logged: set[Peer] = set()
        self._budget = LogBudget(LOGGED, LOG_INTERVAL)

    def of(self, peer: Peer) -> str | None:
        """Why nothing can be sent to a peer; None if it can."""
        number = self._errors.get(peer)
        return None if number is None else error_text(number)

    def sent(self, peer: Peer, number: int, now: int) -> None:
        """The device sent a message to the peer, or could not, by an errno."""
        if (number or peer in self._errors) and number not in NO_ROOM:
            self._tables.peers.record_send_outcome(peer.slot, number, now)
            self.look(peer, now)

    def look(self, peer: Peer, now: int) -> None:
        """See what the shared tables have of the peer, and log it if it is new. (Not what events
        say: those of two workers may come in the wrong order, and a worker's last be lost.)"""
        number = self._tables.peers.send_error(peer.slot)
        if number == self._errors.get(peer, 0):
            return
        if number:
            self._fails(peer, number, now)
        else:
            level = logging.INFO if peer in self._logged else logging.DEBUG
            log.log(level, "sending to %(peer)s works again", {"peer": peer})
            self.forget(peer)

    def _fails(self, peer: Peer, number: int, now: int) -> None:
        self._errors[peer] = number
        self._tables.has_send_errors = True
        level = logging.DEBUG
        if self._budget.take(now):
            level = logging.WARNING
            self._logged.add(peer)
        log.log(level, "sending to %(peer)s fails: %(error)s",
                {"peer": peer, "error": error_text(number)})

    def forget(self, peer: Peer) -> None:
        """It works, or the peer is gone."""
        self._errors.pop(peer, None)
        self._logged.discard(peer)
        self._tables.has_send_errors = bool(self._errors)
