"""Routes that others give an interface, wg-quick or ip(8), and that would lead the tunnel's own
datagrams into it.

`fastpump tunnel` and `fastpump up` put such routes into a table of the tunnel's own
(host/full_tunnel.py). wg-quick does that for a default route alone, and leaves its halves, or a
network that holds the endpoint, in the main table. So when datagrams are dropped because they were
to enter the tunnel, those routes are moved, and the rest is as with `fastpump up`.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack
from functools import partial

from fastpump.errors import FastpumpError
from fastpump.host.down_commands import DownCommands
from fastpump.host.network import HostNet
from fastpump.ip import Network
from fastpump.netlink import routes
from fastpump.tunnel.host_changes import HostChanges
from fastpump.tunnel.tunnel import Tunnel

log = logging.getLogger("fastpump")


class MovedRoutes:
    """Those of one interface, which nothing else of ours changes on the host."""

    def __init__(self, running: Tunnel, cleanup: ExitStack) -> None:
        """`cleanup`: undoes it."""
        self._running = running
        self._cleanup = cleanup
        self._networks: frozenset[Network] = frozenset()
        self._changes: HostChanges | None = None
        running.supervisor.loops.clear = self._clear

    async def _clear(self) -> bool:
        """Move what has to be; whether there was anything."""
        if not self._running.is_at_home:
            return False
        try:
            if self._changes is None:
                self._changes = HostChanges(self._running, self._running.link.name, DownCommands(),
                                            asyncio.Lock(), self._wanted)
                self._cleanup.callback(partial(self._changes.end, keeps_commands=False))
                self._changes.ready()
            return await asyncio.shield(asyncio.to_thread(self._move, self._changes))
        except (FastpumpError, OSError) as error:
            log.error("the routes that lead the tunnel's datagrams into it cannot be moved: "
                      "%(error)s", {"error": error})
            return False

    def _move(self, changes: HostChanges) -> bool:
        index = self._running.link.index
        changes.state.change(index, self._wanted())
        if not routes.take_away(index, self._networks):
            return False
        log.info("the way to the peers led into this tunnel: its routes to %(networks)s are in the "
                 "routing table %(table)d now, to which rules lead all but the tunnel's datagrams",
                 {"networks": ", ".join(sorted(map(str, self._networks))), "table": changes.table})
        return True

    def _wanted(self) -> HostNet:
        assert self._changes is not None
        self._networks = self._changes.apart(
            routes.given(self._running.link.index) | self._networks)
        return HostNet(routes=tuple((each, self._changes.table) for each in sorted(
            self._networks, key=str)), default_table=self._changes.table)
