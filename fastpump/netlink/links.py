"""The interfaces of this network namespace: read, change and delete them.

As everywhere in this room, each function opens a netlink socket of its own, which costs as much as
a request, and raises what the kernel refuses as a Refusal.

Deleting many: the kernel waits for all CPUs after each RTM_DELLINK (some 17 ms), but only once for
a whole group of interfaces. So interfaces that are to go are put into a group that no other is in,
and the group is deleted: a thousand go in the time of fifty, all of them or none.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute
from pyroute2.arp import ARPHRD_ETHER
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.ifinfmsg import IFF_LOOPBACK, IFF_MULTICAST, IFF_UP

from fastpump.errors import SystemSetupError
from fastpump.kernel import IFF_TAP
from fastpump.netlink.refusal import Refusal, explaining

# linux/if_link.h; pyroute2 has neither.
IN6_ADDR_GEN_MODE_EUI64 = 0
IN6_ADDR_GEN_MODE_NONE = 1


@dataclass(frozen=True, slots=True)
class TunDetails:
    """What the kernel reports of a TUN or TAP. `attached_queues`: how many fds are open on it."""

    is_tap: bool
    is_persistent: bool
    is_multi_queue: bool
    has_vnet_header: bool
    owner: int | None
    group: int | None
    attached_queues: int


@dataclass(frozen=True, slots=True)
class Link:
    """An interface as it is now. `kernel_kind` is None where the kernel has no name for it:
    loopback and hardware. `mac` is None if it is not Ethernet. `master`: the index of the bridge or
    bond that it is a port of, or 0. `lower` is the index of what it stands on, or of a veth's other
    end; in the namespace with the id `lower_namespace`, if that is not None."""

    name: str
    index: int
    kernel_kind: str | None
    is_ethernet: bool
    is_loopback: bool
    mac: str | None
    mtu: int
    alias: str
    is_up: bool
    has_carrier: bool
    tx_queues: int
    rx_queues: int
    master: int
    lower: int | None
    lower_namespace: int | None
    vlan_id: int | None
    tun: TunDetails | None
    group: int
    filters_vlans: bool = False
    """Of a bridge: whether a frame passes its ports only in VLANs that they carry."""

    @property
    def is_bridge(self) -> bool:
        """Whether others can be its ports."""
        return self.kernel_kind == "bridge"


# -- read

def read_all() -> list[Link]:
    """All interfaces, by index."""
    with explaining("the interfaces cannot be read"), IPRoute() as netlink:
        return sorted(map(link_of, netlink.get_links()), key=lambda link: link.index)


def find(which: str | int) -> Link | None:
    """The interface with that name or index, if there is one."""
    key = {"ifname": which} if isinstance(which, str) else {"index": which}
    try:
        with explaining(f"the interface {which} cannot be read"), IPRoute() as netlink:
            return link_of(netlink.link("get", **key)[0])
    except Refusal as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def get(index: int) -> Link:
    """The interface with that index, which was there; SystemSetupError if it was deleted."""
    link = find(index)
    if link is None:
        raise SystemSetupError(f"the interface with the index {index} was deleted meanwhile")
    return link


# -- change

@dataclass(frozen=True, slots=True)
class Change:
    """What to change about an interface; None: that stays. `failure` is the error's beginning.
    `master` 0: a port of nothing."""

    index: int
    failure: str
    mac: str | None = None
    mtu: int | None = None
    alias: str | None = None
    master: int | None = None
    is_up: bool | None = None

    def attributes(self) -> dict[str, Any]:
        """For pyroute2."""
        what = {"address": self.mac, "mtu": self.mtu, "ifalias": self.alias,
                "master": self.master,
                "state": None if self.is_up is None else "up" if self.is_up else "down"}
        return {name: value for name, value in what.items() if value is not None}


def change_all(changes: Iterable[Change]) -> None:
    """Change interfaces, each by one message, until one is refused."""
    with explaining("the interfaces cannot be changed"), IPRoute() as netlink:
        for change in changes:
            attributes = change.attributes()
            if attributes:
                with explaining(change.failure):
                    netlink.link("set", index=change.index, **attributes)


def set_mac(link: Link, mac: str) -> None:
    """Set the MAC address of an interface."""
    change_all([Change(link.index, f"the MAC address {mac} of {link.name} cannot be set", mac=mac)])


def set_mtu(link: Link, mtu: int) -> None:
    """Set the MTU of an interface."""
    change_all([Change(link.index, f"the MTU {mtu} of {link.name} cannot be set", mtu=mtu)])


def set_up(link: Link) -> None:
    """Set an interface up."""
    change_all([Change(link.index, f"{link.name} cannot be set up", is_up=True)])


def set_down(link: Link) -> None:
    """Set an interface down."""
    change_all([Change(link.index, f"{link.name} cannot be set down", is_up=False)])


def set_alias(link: Link, alias: str) -> None:
    """Set what `ip link` shows as the alias of an interface."""
    change_all([Change(link.index, f"the alias {alias!r} of {link.name} cannot be set",
                       alias=alias)])


def set_multicast(link: Link, *, is_on: bool) -> None:
    """Set the flag that says whether an interface takes multicast."""
    with explaining(f"the flags of {link.name} cannot be set"), IPRoute() as netlink:
        netlink.link("set", index=link.index, flags=IFF_MULTICAST if is_on else 0,
                     change=IFF_MULTICAST)


def set_link_local(link: Link, *, is_on: bool) -> None:
    """Whether the kernel gives an interface a link-local IPv6 address when it comes up."""
    number = IN6_ADDR_GEN_MODE_EUI64 if is_on else IN6_ADDR_GEN_MODE_NONE
    mode = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", number)]}
    with explaining(f"IPv6 of {link.name} cannot be configured"), IPRoute() as netlink:
        netlink.link("set", index=link.index, IFLA_AF_SPEC={"attrs": [("AF_INET6", mode)]})


# -- delete

def delete(link: Link) -> None:
    """Delete an interface."""
    with explaining(f"{link.name} cannot be deleted"), IPRoute() as netlink:
        netlink.link("del", index=link.index)


def delete_all(links: Sequence[Link]) -> None:
    """Delete interfaces, all or none."""
    used = {link.group for link in read_all()}
    group = next(number for number in iter(lambda: secrets.randbits(31), None)
                 if number and number not in used)
    moved: list[Link] = []
    with explaining("the interfaces cannot be deleted"), IPRoute() as netlink:
        try:
            for link in links:
                netlink.link("set", index=link.index, group=group)
                moved.append(link)
            if moved:
                netlink.link("del", group=group)
        except BaseException:
            for link in moved:
                with contextlib.suppress(NetlinkError, OSError):
                    netlink.link("set", index=link.index, group=link.group)
            raise


# -- parse

def link_of(message: Any) -> Link:
    """The interface in an RTM_NEWLINK message."""
    get = message.get_attr
    hardware_type = message["ifi_type"]
    info = get("IFLA_LINKINFO")
    kind = None if info is None else info.get_attr("IFLA_INFO_KIND")
    data = None if info is None else info.get_attr("IFLA_INFO_DATA")
    has_carrier = bool(get("IFLA_CARRIER"))
    return Link(
        name=text_of(get("IFLA_IFNAME")), index=message["index"], kernel_kind=kind,
        is_ethernet=hardware_type == ARPHRD_ETHER,
        is_loopback=bool(message["flags"] & IFF_LOOPBACK),
        mac=get("IFLA_ADDRESS") if hardware_type == ARPHRD_ETHER else None,
        mtu=get("IFLA_MTU") or 0, alias=get("IFLA_IFALIAS") or "",
        is_up=bool(message["flags"] & IFF_UP), has_carrier=has_carrier,
        tx_queues=get("IFLA_NUM_TX_QUEUES") or 1, rx_queues=get("IFLA_NUM_RX_QUEUES") or 1,
        master=get("IFLA_MASTER") or 0, lower=get("IFLA_LINK") or None,
        lower_namespace=get("IFLA_LINK_NETNSID"),
        vlan_id=data.get_attr("IFLA_VLAN_ID") if kind == "vlan" and data is not None else None,
        tun=_tun(data, hardware_type, has_carrier) if kind == "tun" else None,
        group=get("IFLA_GROUP") or 0,
        filters_vlans=kind == "bridge" and data is not None
        and bool(data.get_attr("IFLA_BR_VLAN_FILTERING")))


def text_of(name: Any) -> str:
    """A name as it is for os.fsencode: it need not be UTF-8, and is then bytes to pyroute2."""
    return os.fsdecode(name)


def _tun(data: Any, hardware_type: int, has_carrier: bool) -> TunDetails:
    def get(name: str) -> Any:
        return None if data is None else data.get_attr(f"IFLA_TUN_{name}")

    kind = get("TYPE")
    if get("MULTI_QUEUE"):
        attached = (get("NUM_QUEUES") or 0) + (get("NUM_DISABLED_QUEUES") or 0)
    else:       # not counted; without its queue it has no carrier, and must be persistent
        attached = int(has_carrier or not get("PERSIST"))
    return TunDetails(
        is_tap=kind == IFF_TAP if kind else hardware_type == ARPHRD_ETHER,
        is_persistent=bool(get("PERSIST")), is_multi_queue=bool(get("MULTI_QUEUE")),
        has_vnet_header=bool(get("VNET_HDR")), owner=get("OWNER"), group=get("GROUP"),
        attached_queues=attached)
