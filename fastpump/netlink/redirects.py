"""Redirects from one interface to another (tc).

A redirect is a filter at the ingress of an interface that matches every frame and has one
action, mirred: out at the other one, as it came in (superpackets, checksums that are not computed
yet, VLAN tags). Other filters of the interface are left alone and come first: ours has the
lowest priority that is free. It is known by its handle.

When the other interface is deleted, the kernel keeps the redirect, without a target, and
drops what comes in: `Redirect.is_dangling`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import TC_H_CLSACT
from pyroute2.protocols import ETH_P_ALL

from fastpump.errors import SystemSetupError
from fastpump.netlink.links import Link
from fastpump.netlink.refusal import Refusal, explaining

# linux/pkt_sched.h, linux/tc_act/tc_mirred.h; pyroute2 has none of these.
AT_INGRESS = TC_H_CLSACT & 0xFFFF0000 | 0xFFF2      # TC_H_MIN_INGRESS
AT_EGRESS = TC_H_CLSACT & 0xFFFF0000 | 0xFFF3       # TC_H_MIN_EGRESS
TCA_EGRESS_REDIR = 1

LOWEST_PRIORITY = 65000
HANDLE = 0xF57
"""Of our filters. It fits the 12 bits that u32 leaves to us."""
U32_NODE = 0xFFF

# What matches every frame: either will do, and a kernel may have only one of them.
MATCHES: dict[str, dict[str, Any]] = {"matchall": {}, "u32": {"keys": [], "target": 0}}


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


# -- the qdisc that filters at an interface's ingress hang on

def has_qdisc(link: Link) -> bool:
    """Whether an interface has one: clsact or ingress."""
    with explaining(f"the qdiscs of {link.name} cannot be read"), IPRoute() as netlink:
        return any(message["index"] == link.index and message.get_attr("TCA_KIND")
                   in ("clsact", "ingress") for message in netlink.get_qdiscs(index=link.index))


def add_qdisc(link: Link) -> None:
    """Make it (clsact)."""
    with explaining(f"{link.name} cannot have filters (tc, clsact)"), IPRoute() as netlink:
        netlink.tc("add", "clsact", link.index)


def remove_unused_qdisc(link: Link) -> bool:
    """Remove it if it has no filters; whether it did."""
    with explaining(f"the filters of {link.name} (tc, clsact) cannot be removed"), \
            IPRoute() as netlink:
        if any(_filters(netlink, link, parent) for parent in (AT_INGRESS, AT_EGRESS)):
            return False
        netlink.tc("del", "clsact", link.index)
    return True


# -- redirects

def read(link: Link) -> list[Redirect]:
    """Ours of an interface."""
    with explaining(f"the filters of {link.name} cannot be read"), IPRoute() as netlink:
        return list(_redirects(_filters(netlink, link, AT_INGRESS)))


def add(source: Link, target: Link) -> None:
    """Have everything that comes in at `source` leave at `target`."""
    failure = f"{source.name} cannot be redirected to {target.name} (tc, mirred)"
    with explaining(failure), IPRoute() as netlink:
        used = {message["info"] >> 16 for message in _filters(netlink, source, AT_INGRESS)}
        priority = next(each for each in range(LOWEST_PRIORITY, 0, -1) if each not in used)
        for kind, match in MATCHES.items():
            try:
                with explaining(failure):
                    netlink.tc("add-filter", kind, source.index, parent=AT_INGRESS, prio=priority,
                               handle=HANDLE, protocol=ETH_P_ALL, **match, action=[{
                                   "kind": "mirred", "direction": "egress", "action": "redirect",
                                   "ifindex": target.index}])
            except Refusal as error:
                if error.errno != errno.ENOENT:
                    raise
            else:
                return
    raise SystemSetupError(f"{failure}: the kernel lacks act_mirred, or both of "
                           f"{', '.join('cls_' + kind for kind in MATCHES)}; load them with "
                           "modprobe, or use a bridge")


def remove(source: Link, redirect: Redirect) -> None:
    """Remove one of ours."""
    what = {"parent": AT_INGRESS, "prio": redirect.priority, "protocol": ETH_P_ALL,
            **MATCHES[redirect.kind]}
    with explaining(f"the redirect of {source.name} cannot be removed"), IPRoute() as netlink:
        netlink.tc("del-filter", redirect.kind, source.index, handle=redirect.handle, **what)
        # u32 keeps an empty priority while other priorities have filters of it.
        left = [message["handle"] for message in _filters(netlink, source, AT_INGRESS)
                if message["info"] >> 16 == redirect.priority]
        if left and not any(handle & U32_NODE for handle in left):
            netlink.tc("del-filter", redirect.kind, source.index, **what)


def _filters(netlink: IPRoute, link: Link, parent: int) -> list[Any]:
    try:
        return list(netlink.get_filters(index=link.index, parent=parent))
    except NetlinkError:
        return []       # there is no qdisc


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
