"""Bridges: make them, their ports, the VLANs that those carry, and the MACs that they know."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.rtnl.ndmsg import NTF_SELF, NUD_NOARP, NUD_PERMANENT

from fastpump.errors import SystemSetupError
from fastpump.netlink import links
from fastpump.netlink.links import Change, Link
from fastpump.netlink.refusal import Refusal, explaining

VlanRange = tuple[int, int]
"""The first and the last VLAN id."""

# linux/if_bridge.h, linux/rtnetlink.h; pyroute2 has the first two by name only.
BRIDGE_VLAN_INFO_UNTAGGED = 0x04
BRIDGE_VLAN_INFO_RANGE_BEGIN = 0x08
RTEXT_FILTER_BRVLAN_COMPRESSED = 0x04       # ranges as ranges


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """A MAC that a bridge knows: `origin` is "local" (a port's own), "static" (set by hand) or
    "learned" (from a frame that came in there, `age_s` seconds ago)."""

    bridge: int
    port: int
    mac: str
    vlan: int | None
    origin: str
    age_s: float | None


def make(name: str, mac: str) -> Link:
    """A new bridge, without spanning tree and multicast snooping. It keeps its MAC address
    whatever its ports are, since that is given here (br_stp_recalculate_bridge_id())."""
    with explaining(f"the bridge {name} cannot be made"), IPRoute() as netlink:
        netlink.link("add", ifname=name, kind="bridge", address=mac, br_stp_state=0,
                     br_mcast_snooping=0)
    bridge = links.find(name)
    if bridge is None:
        raise SystemSetupError(f"the bridge {name} was deleted while it was being made")
    return bridge


def ports(bridge: Link | int) -> list[Link]:
    """The ports of a bridge."""
    index = bridge.index if isinstance(bridge, Link) else bridge
    return [link for link in links.read_all() if link.master == index]


def add_port(bridge: Link, link: Link) -> None:
    """Make an interface a port of a bridge."""
    links.change_all([Change(link.index, f"{link.name} cannot become a port of {bridge.name}",
                             master=bridge.index)])


def remove_port(link: Link) -> None:
    """Take an interface out of its bridge."""
    links.change_all([Change(link.index, f"{link.name} cannot be taken out of its bridge",
                             master=0)])


def add_vlans(bridge: Link, port: Link, ranges: Iterable[VlanRange]) -> None:
    """Have a port carry VLANs, tagged, besides those that it has. A kernel without VLAN filtering
    refuses; there every bridge passes all of them anyway."""
    with explaining(f"the VLANs of {port.name} cannot be changed"), IPRoute() as netlink:
        for first, last in ranges:
            vlan = str(first) if first == last else f"{first}-{last}"
            try:
                with explaining(f"{port.name} cannot carry the VLANs {vlan} of {bridge.name}"):
                    netlink.vlan_filter("add", index=port.index, vlan_info={"vid": vlan})
            except Refusal as error:
                if error.errno != errno.EOPNOTSUPP or bridge.filters_vlans:
                    raise
                return


def tagged_vlans(port: Link) -> list[VlanRange]:
    """The VLANs that frames leave a port in with their tags."""
    with explaining(f"the VLANs of {port.name} cannot be read"), IPRoute() as netlink:
        messages = netlink.link("dump", family=socket.AF_BRIDGE,
                                ext_mask=RTEXT_FILTER_BRVLAN_COMPRESSED)
        return [vlans for message in messages if message["index"] == port.index
                for vlans in tagged_of(message)]


def tagged_of(message: Any) -> Iterator[VlanRange]:
    """Those in an RTM_NEWLINK message of AF_BRIDGE: a single one, or a range's first and last."""
    found = message.get_attr("IFLA_AF_SPEC")
    first = None
    for vlan in [] if found is None else found.get_attrs("IFLA_BRIDGE_VLAN_INFO"):
        if vlan["flags"] & BRIDGE_VLAN_INFO_RANGE_BEGIN:
            first = vlan["vid"]
        else:
            if not vlan["flags"] & BRIDGE_VLAN_INFO_UNTAGGED:
                yield (vlan["vid"] if first is None else first, vlan["vid"])
            first = None


def read_fdb() -> list[FdbEntry]:
    """What all bridges know (fdb_fill_info() in net/bridge/br_fdb.c)."""
    with explaining("the forwarding databases of bridges cannot be read"), IPRoute() as netlink:
        return [_entry(message) for message in netlink.fdb("dump")
                if message.get_attr("NDA_MASTER") and not message["flags"] & NTF_SELF]


def _entry(message: Any) -> FdbEntry:
    state = message["state"]
    origin = ("local" if state & NUD_PERMANENT else "static" if state & NUD_NOARP
              else "learned")
    times = message.get_attr("NDA_CACHEINFO")
    return FdbEntry(
        bridge=message.get_attr("NDA_MASTER"), port=message["ifindex"],
        mac=message.get_attr("NDA_LLADDR"), vlan=message.get_attr("NDA_VLAN"), origin=origin,
        age_s=times["ndm_updated"] / os.sysconf("SC_CLK_TCK")
        if times is not None and origin == "learned" else None)
