"""What the command line or a file says of peers, as changes for the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from fastpump.config.model import PeerConfig
from fastpump.conn import endpoint
from fastpump.conn.endpoint import Endpoint
from fastpump.constants import KEY_LEN
from fastpump.device.peer import HostAndPort
from fastpump.device.peer_change import UNCHANGED, PeerChange, PrefixChange, Unchanged
from fastpump.errors import ConfigError
from fastpump.ip import prefix_of
from fastpump.protocol import keys
from fastpump.ratelimit import NO_LIMITS


def peer_change_of(peer: PeerConfig, candidates: Sequence[Endpoint] | None = None, *,
                   at: Endpoint | None = None, before: PeerConfig | None = None) -> PeerChange:
    """Make the device's peer what `peer` says; create it if it is absent.

    `candidates`: where its endpoints are, () if that is not known yet; None: they were not asked
    for. Without any the device's peer stays where it is. `at`: where it is now, and stays if that
    is one of several. `before`: what was configured until now. Rate limits that are the same in
    both are not touched: `fastpump limit` may have set others since."""
    has_several = candidates is not None and len(candidates) > 1
    limits_before = NO_LIMITS if before is None else before.rate_limits
    return PeerChange(
        peer.public_key,
        preshared_key=peer.preshared_key or bytes(KEY_LEN),
        endpoint=UNCHANGED if not candidates or (has_several and at in candidates)
        else candidates[0],
        candidates=tuple(candidates) if candidates and has_several else UNCHANGED,
        endpoint_names=_names(peer.endpoints, candidates),
        replaces_allowed_ips=True,
        allowed_ips=tuple(PrefixChange(prefix_of(network))
                          for network in peer.allowed_ips or ()),
        keepalive_s=peer.keepalive_s,
        rate_limits=UNCHANGED if peer.rate_limits == limits_before else peer.rate_limits)


def _names(endpoints: tuple[HostAndPort, ...],
           candidates: Sequence[Endpoint] | None) -> tuple[HostAndPort, ...] | Unchanged:
    """The endpoints, if more can become known of them than where the peer is now."""
    if endpoints and candidates is None:
        return UNCHANGED
    is_open = len(endpoints) > 1 or not candidates or endpoint.is_name(endpoints[0][0])
    return endpoints if is_open else ()


def of_new_peers(peers: Iterable[PeerConfig],
                 candidates: Mapping[bytes, Sequence[Endpoint]]) -> Iterator[PeerChange]:
    """The changes that create peers; ConfigError for one that comes twice."""
    seen = set()
    for peer in peers:
        if peer.public_key in seen:
            raise ConfigError(f"the peer {keys.encode(peer.public_key)} is given twice")
        seen.add(peer.public_key)
        yield peer_change_of(peer, candidates.get(peer.public_key))
