"""Which routes of a tunnel must not be in the main table, so that its own datagrams stay outside.

A route that covers the endpoint of a peer would lead the datagrams to that peer back into the
tunnel: so it goes to a table of the tunnel's own, to which rules lead everything but those
(netlink/rules.py). They go where the rest of the host's routes lead, whatever that is
at the moment. Such a route is

    wide                    the default route, its halves, anything shorter than WIDE: wherever the
                            peers are, now or later, it is probably there
    or holds an endpoint    that the operator gave, as an address or a name, whenever its address
                            becomes known

Where a peer has roamed to does not count: one datagram with a wrong source address, by anybody on
the path, would lead what is for a network behind the tunnel to its table. If that is in a narrower
route, the peer is given up there (tun/loop_guard.py). Nor do the networks of the interface's own
addresses, which the kernel routes.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection

from fastpump.ip import Address, Network
from fastpump.netlink import default_routes

log = logging.getLogger("fastpump")

WIDE = {4: 8, 6: 7}
"""By IP version. A network of that length is often a private one, behind the tunnel: 10.0.0.0/8,
fc00::/7."""


def is_wide(network: Network) -> bool:
    """Whether it is a part of everything, more than of anything else."""
    return network.prefixlen < WIDE[network.version]


def apart(networks: Collection[Network], endpoints: Collection[Address]) -> frozenset[Network]:
    """Those whose routes must be apart from the main table's."""
    return frozenset(network for network in networks if is_wide(network) or any(
        each in network for each in endpoints))


def warning(networks: Collection[Network]) -> str:
    """What to tell of packets that go outside of a tunnel that seems to be for all; or nothing."""
    wide = {network.version for network in networks if is_wide(network)}
    if wide != {4} or not _has_ipv6():
        return ""
    return ("only IPv4 goes through the tunnel: this host has IPv6, too, and what it sends there "
            "goes outside of it, in clear; add ::/0 to the allowed IPs, and an IPv6 address to the "
            "interface if the peer forwards IPv6")


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError):      # a kernel without IPv6
        return bool(default_routes.read(6))
    return False
