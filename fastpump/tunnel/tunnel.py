"""A running tunnel, as its control commands see it: status, peers, rate limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastpump import paths
from fastpump._core import SharedTables
from fastpump.clock import now_ns
from fastpump.config.gateway import Gateway
from fastpump.config.model import TunnelConfig
from fastpump.device import rate_limits
from fastpump.device.peer import Peer
from fastpump.device.peer_change import PeerChange, Presence
from fastpump.errors import ConfigError, SystemSetupError
from fastpump.host import ethernet, gateway_status
from fastpump.ip import Address, network_of
from fastpump.protocol import keys
from fastpump.ratelimit import NO_LIMITS, RateLimits
from fastpump.tun.linkwatch import LinkWatcher, TunState
from fastpump.tun.offloads import Offloads
from fastpump.tunnel import status
from fastpump.tunnel.names import Names
from fastpump.tunnel.repair import RepairWatch
from fastpump.tunnel.resolver import Resolver
from fastpump.tunnel.supervisor import Supervisor


@dataclass(slots=True)
class Tunnel:
    """A running tunnel."""

    config: TunnelConfig
    tables: SharedTables
    supervisor: Supervisor
    resolver: Resolver
    offloads: Offloads
    link: TunState
    watcher: LinkWatcher
    configuration_file: Path | None = None
    rate_limits: RateLimits = NO_LIMITS
    """Of the interface; a peer's are its own."""
    repairs: RepairWatch | None = None
    """Of what it has changed on the host."""
    restore_gateway: Callable[[], list[str]] = list
    """Puts back what others have removed of a gateway; what that was, in words. For a thread."""
    on_link_up: Callable[[], None] = lambda: None
    """Called when the interface was set down, and is up again: its routes are gone."""
    leaves_all: bool = False
    """At the end: what it has changed on the host stays as if it were killed, for a successor."""

    @property
    def is_at_home(self) -> bool:
        """Whether the interface is in the network namespace that we are in."""
        return self.link.namespace == paths.namespace_inode()

    def addresses_of_peers(self) -> list[Address]:
        """Where the peers are, or may be."""
        return [endpoint.address for peer in self.supervisor.device.peers.values()
                for endpoint in dict.fromkeys((*peer.candidates, peer.endpoint))
                if endpoint is not None]

    def status(self) -> dict[str, Any]:
        """One entry of `fastpump status --json`."""
        failed = set(self.offloads.hot) - set(self.tables.offloads)
        in_use = [name for name in self.offloads.names if name not in failed]
        file = None if self.configuration_file is None else str(self.configuration_file)
        return {**status.gather(self.link, in_use, self.tables, self.supervisor,
                                self.resolver.problem),
                "tun_rx_dropped": max(0, self.watcher.dropped() - self.supervisor.loops.dropped),
                "attachment": ethernet.attachment_of(self.config).to_json(),
                "repairs": {} if self.repairs is None else dict(self.repairs.counts),
                "rate_limits": self.rate_limits.to_json(), "configuration_file": file}

    async def gateway(self) -> dict[str, Any] | None:
        """The part of `fastpump status --json` that takes a while; None for what is no gateway."""
        wanted = Gateway.of(self.config.gateway)
        if not wanted:
            return None
        prefixes = [prefix for peer in self.supervisor.device.peers.values()
                    for prefix in peer.allowed_ips]
        versions = {each.version for each in (*self.config.addresses, *map(network_of, prefixes))}
        return await asyncio.to_thread(gateway_status.compare, wanted,
                                       self.link.index if self.is_at_home else None, versions)

    def configure_peer(self, change: PeerChange, names: Names | None = None) -> None:
        """Apply a change of a peer, whose endpoints were given by these names; ConfigError, and
        SystemSetupError if there is no room."""
        try:
            peer = self.supervisor.device.configure_peer(change, now_ns())
        except MemoryError as error:
            raise SystemSetupError(str(error)) from None
        if peer is not None and names is not None:
            self.resolver.follow(peer, names)

    def set_rate_limits(self, public_key: bytes | None, limits: RateLimits) -> None:
        """Limit a peer, or the interface (None), from now on; buckets begin full. ConfigError
        if there is no such peer."""
        if public_key is None:
            self.rate_limits = limits
            rate_limits.apply(self.tables, None, limits, now_ns())
        else:
            self._peer(public_key)
            self.configure_peer(PeerChange(public_key, Presence.UPDATE, rate_limits=limits))

    async def limit(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer {"peer": KEY or null, "limits": as RateLimits.to_json(), or null to query}."""
        key = request.get("peer")
        public_key = None if key is None else keys.decode(str(key), "peer's public key")
        if request.get("limits") is not None:
            self.set_rate_limits(public_key, RateLimits.from_json(request["limits"]))
        if public_key is None:
            return {"limits": self.rate_limits.to_json()}
        return {"limits": self._peer(public_key).rate_limits.to_json()}

    def _peer(self, public_key: bytes) -> Peer:
        peer = self.supervisor.device.peers.get(public_key)
        if peer is None:
            raise ConfigError(f"there is no peer {keys.encode(public_key)}; `fastpump status` "
                              "lists the peers")
        return peer
