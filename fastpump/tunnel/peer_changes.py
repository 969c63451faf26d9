"""What the command line or a file says of peers, as changes for the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from fastpump.config.model import PeerConfig
from fastpump.conn import endpoint
from fastpump.conn.endpoint import Endpoint
from fastpump.constants import KEY_LEN
from fastpump.device.peer_change import UNCHANGED, PeerChange, PrefixChange
from fastpump.errors import ConfigError
from fastpump.ip import prefix_of
from fastpump.protocol import keys
from fastpump.ratelimit import NO_LIMITS


def peer_change_of(peer: PeerConfig, resolved: Endpoint | None,
                   *, before: PeerConfig | None = None) -> PeerChange:
    """Make the device's peer what `peer` says; create it if it is absent.

    `resolved`: where its endpoint is; None: the device's peer stays where it is. `before`: what was
    configured until now. Rate limits that are the same in both are not touched: `fastpump limit`
    may have set others since."""
    limits_before = NO_LIMITS if before is None else before.rate_limits
    return PeerChange(
        peer.public_key,
        preshared_key=peer.preshared_key or bytes(KEY_LEN),
        endpoint=UNCHANGED if resolved is None else resolved,
        endpoint_name=peer.endpoint if peer.endpoint is not None and endpoint.is_name(
            peer.endpoint[0]) else None,
        replaces_allowed_ips=True,
        allowed_ips=tuple(PrefixChange(prefix_of(network))
                          for network in peer.allowed_ips or ()),
        keepalive_s=peer.keepalive_s,
        rate_limits=UNCHANGED if peer.rate_limits == limits_before else peer.rate_limits)


def of_new_peers(peers: Iterable[PeerConfig],
                 endpoints: Mapping[bytes, Endpoint]) -> Iterator[PeerChange]:
    """The changes that create peers, whose endpoints were resolved; ConfigError for one that
    comes twice."""
    seen = set()
    for peer in peers:
        if peer.public_key in seen:
            raise ConfigError(f"the peer {keys.encode(peer.public_key)} is given twice")
        seen.add(peer.public_key)
        yield peer_change_of(peer, endpoints.get(peer.public_key))
