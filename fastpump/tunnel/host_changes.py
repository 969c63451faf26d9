"""What a running tunnel has changed on the host, and when that is changed again: at `reload`, when
an endpoint is given that a route covers, and when the interface was set down and up again, which
takes its routes away. One change is made after the other, each in a thread, as it may take long.

At the end all is undone, if the end was wanted: a signal, `down`, the interface deleted. If it was
an error of ours, the host stays as it would be after a SIGKILL (host/network.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from fastpump.config.model import TunnelConfig
from fastpump.conn.endpoint import Endpoint, is_name
from fastpump.constants import DEFAULT_PORT
from fastpump.device.peer import Peer
from fastpump.errors import FastpumpError
from fastpump.host import full_tunnel, gateway_table, ipv6, kill_switch
from fastpump.host.down_commands import DownCommands
from fastpump.host.kill_switch import KillSwitch
from fastpump.host.network import HostNet, HostState
from fastpump.ip import Address, Network
from fastpump.tunnel import kept_endpoints
from fastpump.tunnel.repair import RepairWatch
from fastpump.tunnel.tunnel import Tunnel

log = logging.getLogger("fastpump")


class HostChanges:
    """The changes for one tunnel."""

    def __init__(self, running: Tunnel, name: str, commands: DownCommands, turn: asyncio.Lock,
                 wanted: Callable[[], HostNet]) -> None:
        """Takes the record of the interface, which has that name. `turn`: of whoever changes the
        host, or what is wanted of it. `wanted`: what that is by now; called in a thread."""
        self._has_kill_switch = running.config.kill_switch
        self._running = running
        self._name = name
        self._wanted = wanted
        self.state = HostState(name, commands)
        self.table = 0
        """What rules lead to; 0: nothing, so far."""
        self._turn = turn
        self._networks: Collection[Network] = ()
        self._loop: asyncio.AbstractEventLoop | None = None
        """Once the tunnel is up."""
        self._has_warned = False
        self._is_change_due = False
        self._tasks: set[asyncio.Task[None]] = set()
        running.supervisor.device.endpoints.on_given = self._on_endpoint
        running.on_link_up = self._on_link_up
        self._repairs = running.repairs = RepairWatch(self._restore)

    def ready(self) -> None:
        """The tunnel is up: from now on its changes are followed."""
        self._loop = asyncio.get_running_loop()
        self._watch()
        self._note_names()
        for address in self._endpoints():       # also what became known meanwhile
            self._look_at(address)

    # -- which routes

    def apart(self, networks: Collection[Network]) -> frozenset[Network]:
        """Those of the tunnel's networks whose routes are to be in its own table. The mark of our
        datagrams, which keeps them out of the tunnel, is its number. In a thread."""
        found = (frozenset(networks) if self._has_kill_switch
                 else full_tunnel.apart(networks, self._endpoints()))
        self._networks = networks
        if found:
            self._take_table()
        warning = "" if self._has_warned else full_tunnel.warning(networks)
        if warning:
            log.warning("%(warning)s", {"warning": warning})
            self._has_warned = True
        return found

    def close(self) -> None:
        """From now on nothing leaves in clear, if there is to be a kill switch. In a thread."""
        switch = kill_switch_of(self._running.config)
        if switch is None:
            return
        self._take_table()
        client = kill_switch.cut_off_session(switch.allowed)
        if client is not None:
            log.warning("the kill switch cuts off the SSH session from %(client)s, unless it comes "
                        "through the tunnel; to keep it, allow its network with "
                        "--kill-switch-allow (KillSwitchAllow)", {"client": client})
        self.state.change(self._running.link.index,
                          HostNet(default_table=self.table, kill_switch=switch))

    def _take_table(self) -> None:
        if not self.table:
            self.table = self.state.take_table(self._running.supervisor.fwmark, DEFAULT_PORT)
            self._running.supervisor.mark_of_rules = self.table
            self._set_mark(self.table)
            self._note_names()
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._watch)

    def _set_mark(self, mark: int) -> None:
        if self._loop is None:
            self._running.supervisor.set_fwmark(mark)
            return

        async def set_mark() -> None:       # where the sockets are changed otherwise
            self._running.supervisor.set_fwmark(mark)

        asyncio.run_coroutine_threadsafe(set_mark(), self._loop).result()

    def _endpoints(self) -> set[Address]:
        return {each.address for peer in list(self._running.supervisor.device.peers.values())
                for each in (peer.configured_endpoint, *peer.candidates) if each is not None}

    # -- when

    def _on_endpoint(self, endpoint: Endpoint) -> None:
        """Of a peer, by the operator or the resolver."""
        self._note_names()
        self._look_at(endpoint.address)

    def _look_at(self, address: Address) -> None:
        """A route may have to be apart now. One change is for all peers that are looked at before
        it begins."""
        if self._is_change_due or not any(address in network for network in self._networks):
            return

        def change() -> None:
            self._is_change_due = False
            self.state.change(self._running.link.index, self._wanted())

        self._is_change_due = self._soon(change)

    def _note_names(self) -> None:
        """What the names of peers mean, for a start without name servers, which are behind the
        tunnel."""
        if self._loop is None or not self.table:
            return
        try:
            found = {
                f"{host}:{port}": str(_candidate(peer, port).address)
                for peer in list(self._running.supervisor.device.peers.values())
                if peer.configured_endpoint is not None for host, port in peer.endpoint_names}
            if self.state.set_endpoints(found) and self._has_kill_switch:
                kept_endpoints.keep(self._name, {name: address for name, address in found.items()
                                                 if is_name(name.rpartition(":")[0])})
        except OSError as error:
            log.warning("where the peers are cannot be written down: %(error)s", {"error": error})

    def _on_link_up(self) -> None:
        self._soon(lambda: self.state.restore(self._running.link.index))

    # -- what others remove

    def _watch(self) -> None:
        if self._loop is not None:
            self._repairs.start(self._running.link.index, self.table, (
                *self.state.nft_tables, gateway_table.table_of(self._name)))

    async def _restore(self) -> list[str]:
        if not self._running.is_at_home:
            return []
        async with self._turn:
            return await asyncio.shield(asyncio.to_thread(lambda: [
                *self.state.restore(self._running.link.index),
                *self._running.restore_gateway()]))

    def _soon(self, change: Callable[[], object]) -> bool:
        """False: not now."""
        if self._loop is None or not self._running.is_at_home:
            return False
        task = self._loop.create_task(self._in_turn(change))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _in_turn(self, change: Callable[[], object]) -> None:
        async with self._turn:
            try:
                await asyncio.shield(asyncio.to_thread(change))
            except (FastpumpError, OSError) as error:
                log.error("what the tunnel needs on this host cannot be restored: %(error)s",
                          {"error": error})

    # -- end

    def end(self, *, keeps_commands: bool) -> None:
        """Undo what does not go away with the interface, unless the tunnel has failed. The loop has
        ended."""
        supervisor, was_ready = self._running.supervisor, self._loop is not None
        has_failed = not supervisor.stop_reason or supervisor.failure is not None
        if self.state.is_closed and (self._running.leaves_all or (
                has_failed and (was_ready or self.state.is_taken_over))):
            log.warning("nothing leaves in clear of what was to go through the tunnel, until "
                        "`fastpump down %(name)s`", {"name": self._name})
            self.state.leave_closed(keeps_commands=keeps_commands and was_ready)
        else:
            self.state.undo(keeps_commands=keeps_commands)


def _candidate(peer: Peer, port: int) -> Endpoint:
    """Where the peer is, or else may be, by one of its names, whose port that is."""
    assert peer.configured_endpoint is not None
    if peer.endpoint in peer.candidates and peer.endpoint.port == port:
        return peer.endpoint
    return next((each for each in peer.candidates if each.port == port), peer.configured_endpoint)


def kill_switch_of(config: TunnelConfig) -> KillSwitch | None:
    """What a tunnel is to close; None: nothing."""
    if not config.kill_switch:
        return None
    versions = (4, 6) if ipv6.SETTINGS.exists() else (4,)
    return KillSwitch(config.kill_switch_allow, versions)
