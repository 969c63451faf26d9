"""The nftables table of a kill switch: nothing leaves this host in clear.

    leaving     output: what this host sends. Through: to itself; by the tunnel's interface; with
                the tunnel's mark, which its own datagrams and its questions to name servers have;
                DHCP; router and neighbour discovery of IPv6, to the same link only; to networks
                that the operator allows.
    forwarding  forward: what it forwards. Through: from the tunnel, and to it; to networks that the
                operator allows, and from them.

All else is dropped, and counted. There is no exception for connections that exist: those from
before the tunnel end.

The interface is named: the next tunnel of that name takes the table over, with another interface.
This is one of two layers that do not know of each other. The other one is routing: strict rules
(netlink/rules.py), and default routes in the tunnel's table that end nowhere when it is down.

Accepted limits: what is sent by AF_PACKET passes no output chain (dhclient, ARP, whatever has
CAP_NET_RAW); frames between the ports of a bridge are not routed at all.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fastpump.host.gateway_table import OURS, quoted
from fastpump.host.nft_table import Chain, NftTable
from fastpump.ip import Network, everything
from fastpump.netlink.rules import DHCP_PORTS

_FAMILIES = {4: "ipv4", 6: "ipv6"}


@dataclass(frozen=True, slots=True)
class KillSwitch:
    """`allowed`: where packets may go in clear. `versions`: the IP versions that the host has."""

    allowed: tuple[Network, ...] = ()
    versions: tuple[int, ...] = (4, 6)

    @property
    def networks(self) -> tuple[Network, ...]:
        """What it closes."""
        return tuple(everything(version) for version in self.versions)

    def exceptions(self, version: int) -> tuple[str, ...]:
        """The networks of an IP version that it leaves alone."""
        return tuple(str(network) for network in self.allowed if network.version == version)


def table(name: str) -> NftTable:
    """That of the tunnel with that interface."""
    return NftTable(f"{OURS}_kill_switch-{quoted(name)}", "a kill switch", is_owned=True)


def chains(name: str, mark: int, switch: KillSwitch) -> dict[str, Chain]:
    """What is in it, for datagrams with that mark."""
    return {
        "leaving": Chain("type filter hook output priority filter; policy drop", (
            f'oifname {{ "lo", "{name}" }} accept',
            f"meta mark {mark} accept",
            *(f"meta nfproto {_FAMILIES[version]} udp sport {client} udp dport {server} accept"
              for version, (client, server) in DHCP_PORTS.items()),
            "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, "
            "nd-neighbor-advert } ip6 hoplimit 255 accept",
            *_allowing(switch.allowed, ("daddr",)),
            "counter")),
        "forwarding": Chain("type filter hook forward priority filter; policy drop", (
            f'iifname "{name}" accept', f'oifname "{name}" accept',
            *_allowing(switch.allowed, ("daddr", "saddr")),
            "counter"))}


def _allowing(networks: Iterable[Network], sides: Iterable[str]) -> Iterator[str]:
    for network in networks:
        for side in sides:
            yield f"{'ip' if network.version == 4 else 'ip6'} {side} {network} accept"


def cut_off_session(allowed: Iterable[Network]) -> str | None:
    """The address of the host by whose SSH session this was typed, if it would be cut off."""
    client = os.environ.get("SSH_CONNECTION", "").partition(" ")[0]
    try:
        address = ipaddress.ip_address(client.partition("%")[0])
    except ValueError:
        return None
    if address.is_loopback or any(address in network for network in allowed):
        return None
    return str(address)
