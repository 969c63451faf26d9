"""Where load runs: between the ends of the tunnel, or between hosts beyond them.

hosts      a ==== tunnel ==== b; load from a to b

gateways   client ---- a ==== tunnel ==== b ---- server
           10.20.0.2   gateway            gateway, which masquerades
                                                 10.30.0.2

bridges    client ---- a ==== tunnel ==== b ---- server
           10.40.0.1   bridge             bridge   10.40.0.2

peers      as hosts, and b knows 1,000 other peers, each with an address of its own, who are silent
           unless the load is their handshakes; for WireGuard, and what has its handshake

Each host is a network namespace. What a and b do besides the tunnel is the same for all contenders.
Gateways: IPv4 forwarding, segment sizes that fit the way, and at b NAT, by nftables. The client's
packets of 1500 bytes, the tunnel's of less and an address that is translated are what a router has
to do with; the load is at neither end of the tunnel. Bridges: the tunnel's interface and the cable
to the site are ports of a bridge; client and server have the tunnel's MTU.

Each of them is there once more with `-plain`: the cable between a and b then has no GSO, GRO and
checksum offload. Virtual cables carry trains of UDP datagrams in one piece, network cards may not.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Iterator
from pathlib import Path

from fastpump.bench.contender import BARE, Contender, Place
from fastpump.bench.ends import Crowd, Ends, OfProcesses
from fastpump.lab.networks import OUTSIDE4, Lab, need
from fastpump.protocol import keys

HOSTS, GATEWAYS, BRIDGES, PEERS = "hosts", "gateways", "bridges", "peers"
PLAIN = "-plain"
_SHAPES = {
    HOSTS: "two hosts, the ends of the tunnel",
    GATEWAYS: "client, gateway, gateway, server; one gateway masquerades",
    BRIDGES: "client, bridge, bridge, server; the tunnel carries Ethernet",
    PEERS: "two hosts, the ends of the tunnel; one of them has 1,000 other peers",
}
TOPOLOGIES = _SHAPES | {name + PLAIN: f"{text}; a cable without offloads"
                        for name, text in _SHAPES.items()}
REAL = "real"
"""Of results only: this host and another one (real.py)."""
_PROGRAMS = {GATEWAYS: "nft", PLAIN: "ethtool"}

CLIENT, SERVER = "client", "server"
BEHIND = {"a": "10.20.0.0/24", "b": "10.30.0.0/24"}
SERVER_ADDRESS = "10.30.0.2"
BRIDGED = {CLIENT: "10.40.0.1", SERVER: "10.40.0.2"}
OTHERS, OTHERS_ADDRESS = 1000, ipaddress.IPv4Address("10.64.0.0")
WIREGUARD_PORT = 51820
_SITES = (("a", CLIENT), ("b", SERVER))
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
_NO_OFFLOADS = "tx", "off", "rx", "off", "tso", "off", "gso", "off", "gro", "off"


def shape(topology: str) -> str:
    """Its name without PLAIN."""
    return topology.removesuffix(PLAIN)


def check_programs(topologies: list[str]) -> None:
    """SystemSetupError if a program is missing that they need."""
    need(*(program for part, program in _PROGRAMS.items()
           if any(part in topology for topology in topologies)))


@contextlib.contextmanager
def built(topology: str, contender: Contender, program: str, lab: Lab,
          directory: Path) -> Iterator[Ends]:
    """The topology with the contender in it."""
    if topology.endswith(PLAIN):
        for side in "ab":
            lab.run(side, "ethtool", "-K", "wire", *_NO_OFFLOADS)
    kind = shape(topology)
    if kind == GATEWAYS:
        _add_gateways(lab)
    behind = BEHIND if kind == GATEWAYS else None
    privates = [keys.generate_private() for _ in range(OTHERS)] if kind == PEERS else []
    others = [(keys.encode(keys.public_of(private)), f"{OTHERS_ADDRESS + number}/32")
              for number, private in enumerate(privates)]
    begun_s = time.monotonic()
    with contender.setup(Place(lab, directory, program, behind, others)) as processes:
        is_tunnel = contender is not BARE
        if kind in (HOSTS, PEERS):
            between = "a", "b", contender.target
        elif kind == GATEWAYS:
            between = CLIENT, SERVER, SERVER_ADDRESS
            if not is_tunnel:
                _route_over_the_cable(lab)
        else:
            between = CLIENT, SERVER, BRIDGED[SERVER]
            _add_bridges(lab, contender.device)
        yield Ends(*between, OfProcesses(processes) if processes else None,
                   begun_s if is_tunnel else None, _crowd(directory, privates))


def _crowd(directory: Path, privates: list[bytes]) -> Crowd | None:
    """Whoever knows other peers has its key in a file of lab.networks.key_files."""
    if not privates:
        return None
    gateway = keys.read_file(directory / "b.key", "private key")
    return Crowd(tuple(map(keys.encode, privates)), keys.encode(keys.public_of(gateway)),
                 (OUTSIDE4["b"], WIREGUARD_PORT))


def _add_gateways(lab: Lab) -> None:
    """Add the sites, and make a and b gateways."""
    for side, host in _SITES:
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


def _add_bridges(lab: Lab, device: str) -> None:
    """Add the sites, and join each to an interface that is there already."""
    for side, host in _SITES:
        mtu = lab.run(side, "cat", f"/sys/class/net/{device}/mtu").stdout.strip()
        lab.add_host(host)
        lab.join(side, host, "lan", [], [f"{BRIDGED[host]}/24"])
        lab.ip(side, "link", "add", "bridge", "type", "bridge")
        for port in ("lan", device):
            lab.ip(side, "link", "set", port, "master", "bridge", "up")
        lab.ip(side, "link", "set", "bridge", "up")
        lab.ip(host, "link", "set", "wire", "mtu", mtu)
