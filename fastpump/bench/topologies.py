"""Where load runs: between the ends of the tunnel, or between hosts beyond them.

hosts      a ==== tunnel ==== b; load from a to b

gateways   client ---- a ==== tunnel ==== b ---- server
           10.20.0.2   gateway            gateway, which masquerades
                                                 10.30.0.2

Each host is a network namespace. What the gateways do besides the tunnel is the same for all
contenders: IPv4 forwarding, segment sizes that fit the way, and at b NAT, by nftables. The client's
packets of 1500 bytes, the tunnel's of less and an address that is translated are what a router has
to do with; the load is at neither end of the tunnel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from fastpump.bench.contender import Contender, Place, Processes
from fastpump.lab.networks import OUTSIDE4, Lab

HOSTS, GATEWAYS = "hosts", "gateways"
TOPOLOGIES = {
    HOSTS: "two hosts, the ends of the tunnel",
    GATEWAYS: "client, gateway, gateway, server; one gateway masquerades",
}

CLIENT, SERVER = "client", "server"
BEHIND = {"a": "10.20.0.0/24", "b": "10.30.0.0/24"}
SERVER_ADDRESS = "10.30.0.2"
_GATEWAY = """\
table inet gateway {
  chain clamp {
    type filter hook forward priority mangle
    tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
  }
"""
_NAT = """\
  chain leaving {
    type nat hook postrouting priority srcnat
    oifname "lan" masquerade
  }
"""


@contextlib.contextmanager
def built(topology: str, contender: Contender, program: str, lab: Lab,
          directory: Path) -> Iterator[tuple[str, str, str, Processes]]:
    """The topology with the contender in it: the host that sends, the one that receives, the
    latter's address, and the tunnel's processes."""
    if topology == HOSTS:
        with contender.setup(Place(lab, directory, program)) as processes:
            yield "a", "b", contender.target, processes
        return
    _add_sites(lab)
    with contender.setup(Place(lab, directory, program, BEHIND)) as processes:
        if not processes:
            _route_over_the_cable(lab)
        yield CLIENT, SERVER, SERVER_ADDRESS, processes


def _add_sites(lab: Lab) -> None:
    """Add the sites, and make a and b gateways."""
    for side, host in (("a", CLIENT), ("b", SERVER)):
        gateway, own = (f"{BEHIND[side].removesuffix('.0/24')}.{number}" for number in (1, 2))
        lab.add_host(host)
        lab.join(side, host, "lan", [f"{gateway}/24"], [f"{own}/24"])
        lab.sysctl(side, {"net.ipv4.ip_forward": 1})
        lab.run(side, "nft", "-f", "-", input=_GATEWAY + _NAT * (side == "b") + "}\n")
    lab.ip(CLIENT, "route", "add", "default", "via", "10.20.0.1")


def _route_over_the_cable(lab: Lab) -> None:
    """No tunnel: the gateways route over the cable between them."""
    for side, other in (("a", "b"), ("b", "a")):
        lab.ip(side, "route", "add", BEHIND[other], "via", OUTSIDE4[other])
