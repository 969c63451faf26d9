"""A running tunnel, as its control commands see it: status, peers, rate limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastpump import paths
from fastpump._core import SharedTables
from fastpump.clock import now_ns
from fastpump.config.model import PeerConfig, TunnelConfig
from fastpump.conn import endpoint
from fastpump.constants import KEY_LEN, MILLISECOND
from fastpump.device.peer import Peer
from fastpump.errors import ConfigError, SystemSetupError
from fastpump.host import ethernet
from fastpump.protocol import keys
from fastpump.ratelimit import NO_LIMITS, RateLimits, TokenBucket
from fastpump.tun.linkwatch import LinkState
from fastpump.tun.offloads import Capabilities
from fastpump.tunnel import status
from fastpump.tunnel.resolver import Resolver
from fastpump.tunnel.supervisor import Supervisor


@dataclass(slots=True)
class Tunnel:
    """A running tunnel."""

    config: TunnelConfig
    tables: SharedTables
    supervisor: Supervisor
    resolver: Resolver
    offloads: Capabilities
    link: LinkState
    configuration_file: Path | None = None
    rate_limits: RateLimits = NO_LIMITS
    """Of the interface; a peer's are its own."""

    @property
    def is_at_home(self) -> bool:
        """Whether the interface is in the network namespace that we are in."""
        return self.link.namespace == paths.namespace_inode()

    def status(self) -> dict[str, Any]:
        """One entry of `fastpump status --json`."""
        failed = set(self.offloads.hot) - set(self.tables.offloads)
        in_use = [name for name in self.offloads.names if name not in failed]
        file = None if self.configuration_file is None else str(self.configuration_file)
        return {**status.gather(self.link, in_use, self.tables, self.supervisor),
                "attachment": ethernet.attachment_of(self.config).to_json(),
                "rate_limits": self.rate_limits.to_json(), "configuration_file": file}

    def add_peer(self, peer: PeerConfig, where: endpoint.Endpoint | None) -> None:
        """Configure a new peer; its endpoint's name was resolved to `where`."""
        try:
            self.supervisor.device.add_peer(peer.public_key)
        except MemoryError as error:
            raise SystemSetupError(str(error)) from None
        self.change_peer(peer, where)
        if not peer.rate_limits.is_empty:
            self.set_rate_limits(peer.public_key, peer.rate_limits)

    def change_peer(self, peer: PeerConfig, where: endpoint.Endpoint | None) -> None:
        """Configure a peer that is there; its endpoint stays if `where` is None, and its
        session in any case."""
        device = self.supervisor.device
        changed = device.peers[peer.public_key]
        changed.preshared_key = peer.preshared_key or bytes(KEY_LEN)
        if where is not None:
            device.set_endpoint(changed, where)
            self.resolver.note_resolved(changed)
        changed.endpoint_name = peer.endpoint if peer.endpoint is not None and endpoint.is_name(
            peer.endpoint[0]) else None
        wanted = {(network.network_address.packed, network.prefixlen)
                  for network in peer.allowed_ips or ()}
        for prefix in changed.allowed_ips - wanted:
            device.remove_allowed_ip(changed, prefix)
        try:
            for prefix in wanted - changed.allowed_ips:
                device.add_allowed_ip(changed, prefix)
        except MemoryError as error:
            raise SystemSetupError(str(error)) from None
        if peer.keepalive_s != changed.persistent_keepalive_s:
            device.set_persistent_keepalive(changed, peer.keepalive_s, now_ns())

    def set_rate_limits(self, public_key: bytes | None, limits: RateLimits) -> None:
        """Limit a peer, or the interface (None), from now on; buckets begin full. ConfigError
        if there is no such peer."""
        slot = None
        if public_key is None:
            self.rate_limits = limits
        else:
            peer = self._peer(public_key)
            peer.rate_limits, slot = limits, peer.slot
        for way, limiter in (("tx", limits.tx), ("rx", limits.rx)):
            self.tables.limiters.set(slot, way, _bucket(limiter.bandwidth), _bucket(limiter.ops),
                                   now_ns())

    async def limit(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer {"peer": KEY or null, "limits": as RateLimits.to_json(), or null to ask}."""
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


def _bucket(bucket: TokenBucket | None) -> tuple[int, int, int] | None:
    """(tokens, refill time in ns, one-time burst)."""
    if bucket is None:
        return None
    return bucket.size, bucket.refill_ms * MILLISECOND, bucket.one_time_burst
