"""Ports: bridges, what is in them, and redirects from one interface to another (tc).

A redirect is a filter at the ingress of an interface that matches every frame and has one
action, mirred: out at the other one, as it came in (superpackets, checksums that are not computed
yet, VLAN tags). Other filters of the interface are left alone and come first: ours has the
lowest priority that is free. It is known by its handle.

When the other interface is deleted, the kernel keeps the redirect, without a target, and
drops what comes in: `Redirect.is_dangling`.

With routes.py the only user of pyroute2.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from fastpump.errors import SystemSetupError

# include/uapi/linux/if.h, if_arp.h, pkt_sched.h, if_ether.h
IFF_UP = 0x1
IFF_LOOPBACK = 0x8
ARPHRD_ETHER = 1
AT_INGRESS = 0xFFFFFFF2
AT_EGRESS = 0xFFFFFFF3
ETH_P_ALL = 3
TCA_EGRESS_REDIR = 1
ADDR_GEN_MODE_NONE = 1

LOWEST_PRIORITY = 65000
HANDLE = 0xF57
"""Of our filters. It fits the 12 bits that u32 leaves to us."""
U32_NODE = 0xFFF

# What matches every frame: either will do, and a kernel may have only one of them.
MATCHES: dict[str, dict[str, Any]] = {"matchall": {}, "u32": {"keys": [], "target": 0}}


@dataclass(frozen=True, slots=True)
class Link:
    """An interface as it is now. `master`: the index of what it is a port of, or 0."""

    index: int
    name: str
    mac: str
    mtu: int
    kind: str
    alias: str
    master: int
    is_up: bool
    is_ethernet: bool
    is_loopback: bool

    @property
    def is_bridge(self) -> bool:
        """Whether others can be its ports."""
        return self.kind == "bridge"


@dataclass(frozen=True, slots=True)
class Redirect:
    """A redirect of ours. `target`: index of the interface where frames leave, or 0."""

    target: int
    kind: str
    priority: int
    handle: int

    @property
    def is_dangling(self) -> bool:
        """Whether that interface is gone."""
        return self.target == 0


def find(which: str | int) -> Link | None:
    """The interface of that name or index, if there is one."""
    key = {"ifname": which} if isinstance(which, str) else {"index": which}
    with IPRoute() as route:
        try:
            return _link(route.link("get", **key)[0])
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return None
            raise SystemSetupError(f"the interface {which} cannot be looked at: "
                                   f"{error.args[1]}") from None


def ports(bridge: int) -> list[Link]:
    """What is in the bridge with that index."""
    with IPRoute() as route:
        return [link for link in map(_link, route.get_links()) if link.master == bridge]


def _link(message: Any) -> Link:
    about = message.get_attr("IFLA_LINKINFO")
    return Link(message["index"], os.fsdecode(message.get_attr("IFLA_IFNAME")),
                message.get_attr("IFLA_ADDRESS") or "", message.get_attr("IFLA_MTU"),
                about.get_attr("IFLA_INFO_KIND") or "" if about is not None else "",
                message.get_attr("IFLA_IFALIAS") or "", message.get_attr("IFLA_MASTER") or 0,
                bool(message["flags"] & IFF_UP), message["ifi_type"] == ARPHRD_ETHER,
                bool(message["flags"] & IFF_LOOPBACK))


def make_bridge(name: str) -> int:
    """Make a bridge without spanning tree and multicast snooping; its index."""
    with IPRoute() as route:
        _do(f"the bridge {name} cannot be made", route.link, "add", ifname=name, kind="bridge",
            br_stp_state=0, br_mcast_snooping=0)
    link = find(name)
    if link is None:
        raise SystemSetupError(f"the bridge {name} was deleted as it was made")
    return link.index


def set_alias(link: Link | int, alias: str) -> None:
    """What `ip link` shows as the alias of an interface."""
    _set(link, f"the alias {alias!r} cannot be set", ifalias=alias)


def set_mac(link: Link, mac: str) -> None:
    """Set an interface's hardware address."""
    _set(link, f"the hardware address of {link.name} cannot be set", address=mac)


def set_up(link: Link) -> None:
    """Set an interface up."""
    _set(link, f"{link.name} cannot be brought up", state="up")


def set_down(link: Link) -> None:
    """Set an interface down."""
    _set(link, f"{link.name} cannot be set down", state="down")


def enslave(link: Link, bridge: Link) -> None:
    """Make an interface a port of a bridge."""
    _set(link, f"{link.name} cannot become a port of {bridge.name}", master=bridge.index)


def release(link: Link) -> None:
    """Take an interface out of its bridge."""
    _set(link, f"{link.name} cannot be taken out of its bridge", master=0)


def set_address_generation_off(link: Link) -> None:
    """Have the kernel give an interface no link-local IPv6 address: the host does not speak
    there itself."""
    _set(link, f"IPv6 of {link.name} cannot be configured", IFLA_AF_SPEC={"attrs": [
        ("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", ADDR_GEN_MODE_NONE)]})]})


def delete(link: Link) -> None:
    """Delete an interface."""
    with IPRoute() as route:
        _do(f"{link.name} cannot be deleted", route.link, "del", index=link.index)


def _set(link: Link | int, complaint: str, **change: Any) -> None:
    index = link.index if isinstance(link, Link) else link
    with IPRoute() as route:
        _do(complaint, route.link, "set", index=index, **change)


# -- redirects

def has_ingress(index: int) -> bool:
    """Whether an interface has what filters at its ingress hang on: clsact or ingress."""
    with IPRoute() as route:
        return any(message["index"] == index and message.get_attr("TCA_KIND")
                   in ("clsact", "ingress") for message in route.get_qdiscs(index=index))


def add_ingress(link: Link) -> None:
    """Make that (clsact)."""
    with IPRoute() as route:
        _do(f"{link.name} cannot have filters (tc, clsact)", route.tc, "add", "clsact", link.index)


def remove_ingress(link: Link) -> bool:
    """Remove that if it has no filters; whether it did."""
    with IPRoute() as route:
        if any(_filters(route, link.index, parent) for parent in (AT_INGRESS, AT_EGRESS)):
            return False
        _do(f"the filters of {link.name} (tc, clsact) cannot be removed", route.tc, "del",
            "clsact", link.index)
    return True


def redirects(index: int) -> list[Redirect]:
    """Ours of an interface."""
    with IPRoute() as route:
        return list(_redirects(_filters(route, index, AT_INGRESS)))


def add_redirect(source: Link, target: Link) -> None:
    """Have everything that comes in at `source` leave at `target`."""
    with IPRoute() as route:
        used = {message["info"] >> 16 for message in _filters(route, source.index, AT_INGRESS)}
        priority = next(each for each in range(LOWEST_PRIORITY, 0, -1) if each not in used)
        complaint = f"{source.name} cannot be redirected to {target.name} (tc, mirred)"
        for kind, match in MATCHES.items():
            try:
                route.tc("add-filter", kind, source.index, parent=AT_INGRESS, prio=priority,
                         handle=HANDLE, protocol=ETH_P_ALL, **match, action=[{
                             "kind": "mirred", "direction": "egress", "action": "redirect",
                             "ifindex": target.index}])
            except NetlinkError as error:
                if error.code != errno.ENOENT:
                    raise SystemSetupError(f"{complaint}: {error.args[1]}") from None
            else:
                return
    raise SystemSetupError(f"{complaint}: the kernel lacks act_mirred, or both of "
                           f"{', '.join('cls_' + kind for kind in MATCHES)}; load them with "
                           "modprobe, or use a bridge")


def remove_redirect(source: Link, redirect: Redirect) -> None:
    """Remove one of ours."""
    complaint = f"the redirect of {source.name} cannot be removed"
    what = {"parent": AT_INGRESS, "prio": redirect.priority, "protocol": ETH_P_ALL,
            **MATCHES[redirect.kind]}
    with IPRoute() as route:
        _do(complaint, route.tc, "del-filter", redirect.kind, source.index,
            handle=redirect.handle, **what)
        # u32 keeps an empty priority while other priorities have filters of it.
        left = [message["handle"] for message in _filters(route, source.index, AT_INGRESS)
                if message["info"] >> 16 == redirect.priority]
        if left and not any(handle & U32_NODE for handle in left):
            _do(complaint, route.tc, "del-filter", redirect.kind, source.index, **what)


def _filters(route: IPRoute, index: int, parent: int) -> list[Any]:
    try:
        return list(route.get_filters(index=index, parent=parent))
    except NetlinkError:
        return []       # nothing that filters could hang on


def _redirects(filters: list[Any]) -> Iterator[Redirect]:
    for message in filters:
        kind, handle = message.get_attr("TCA_KIND"), message["handle"]
        options = message.get_attr("TCA_OPTIONS")
        if kind not in MATCHES or options is None:
            continue
        if (handle & U32_NODE if kind == "u32" else handle) != HANDLE:
            continue
        actions = options.get_attr(f"TCA_{kind.upper()}_ACT")
        action = None if actions is None else actions.get_attr("TCA_ACT_PRIO_1")
        if action is None or action.get_attr("TCA_ACT_KIND") != "mirred":
            continue
        said = action.get_attr("TCA_ACT_OPTIONS").get_attr("TCA_MIRRED_PARMS")
        if said["eaction"] == TCA_EGRESS_REDIR:
            yield Redirect(said["ifindex"], kind, message["info"] >> 16, handle)


def _do(complaint: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    try:
        call(*args, **kwargs)
    except NetlinkError as error:
        raise SystemSetupError(f"{complaint}: {error.args[1]}") from None
    except OSError as error:
        raise SystemSetupError(f"{complaint}: {error}") from None
