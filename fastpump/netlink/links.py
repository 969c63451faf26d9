"""All interfaces of this network namespace: read, change and delete them. With routes.py the
only user of pyroute2.

Deleting: the kernel waits for all CPUs after each RTM_DELLINK (some 17 ms), but once only for a
whole group of interfaces. So interfaces that are to go are put into a group that nobody else is
in, and the group is deleted: a thousand go in the time of fifty, all of them or none.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from fastpump import paths

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

# include/uapi/linux/if.h, if_arp.h, if_tun.h, neighbour.h
_IFF_UP = 1
_ARPHRD_LOOPBACK = 772
_ARPHRD_ETHER = 1
_IFF_TAP = 2
_NTF_SELF = 2
_NUD_NOARP = 0x40
_NUD_PERMANENT = 0x80
_UNKNOWN_NAMESPACE = (-1, 0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class TunDetails:
    """What the kernel tells of a TUN or TAP. `attached_queues`: how many fds are open on it."""

    is_tap: bool
    is_persistent: bool
    is_multi_queue: bool
    has_vnet_header: bool
    owner: int | None
    group: int | None
    attached_queues: int


@dataclass(frozen=True, slots=True)
class Link:
    """An interface. `kernel_kind` is None where the kernel has no name for it: loopback and
    hardware. `lower` is the index of what it stands on, or of a veth's other end; in the
    namespace with the id `lower_namespace`, if that is not None."""

    name: str
    index: int
    kernel_kind: str | None
    is_loopback: bool
    mac: str | None
    mtu: int
    is_up: bool
    has_carrier: bool
    tx_queues: int
    rx_queues: int
    master: int | None
    lower: int | None
    lower_namespace: int | None
    vlan_id: int | None
    tun: TunDetails | None
    link_group: int


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """A MAC that a bridge knows: `origin` is "local" (a port's own), "static" (set by somebody)
    or "learned" (from a frame that came from there, `age_s` seconds ago)."""

    bridge: int
    port: int
    mac: str
    vlan: int | None
    origin: str
    age_s: float | None


class LinkSocket:
    """One netlink socket for many questions and changes. Changes raise OSError."""

    def __enter__(self) -> LinkSocket:
        self._route = IPRoute()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._route.close()

    # -- questions

    def links(self) -> list[Link]:
        """All interfaces, by index."""
        return sorted(map(_link, self._route.get_links()), key=lambda link: link.index)

    def addresses(self) -> dict[int, list[Interface]]:
        """The addresses of all interfaces, by index."""
        found: dict[int, list[Interface]] = {}
        for message in self._route.get_addr():
            address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            found.setdefault(message["index"], []).append(
                ipaddress.ip_interface(f"{address}/{message['prefixlen']}"))
        return found

    def bridge_entries(self) -> list[FdbEntry]:
        """What all bridges know (fdb_fill_info() in net/bridge/br_fdb.c)."""
        return [_fdb_entry(message) for message in self._route.fdb("dump")
                if message.get_attr("NDA_MASTER") and not message["flags"] & _NTF_SELF]

    def named_namespaces(self) -> dict[int, str]:
        """The names that `ip netns` has for network namespaces, by the ids that they have
        here; only those that have one."""
        found = {}
        with contextlib.suppress(OSError):
            for entry in sorted(paths.NAMED_NAMESPACES.iterdir()):
                with contextlib.suppress(OSError, NetlinkError):
                    fd = os.open(entry, os.O_RDONLY | os.O_CLOEXEC)
                    try:
                        number = self._route.get_netnsid(fd=fd)["nsid"]
                    finally:
                        os.close(fd)
                    if number not in _UNKNOWN_NAMESPACE:
                        found[number] = entry.name
        return found

    def name_elsewhere(self, index: int, namespace: int) -> str | None:
        """The name of an interface in the namespace with that id; None if we may not know."""
        with contextlib.suppress(OSError, NetlinkError):
            for message in self._route.link("get", index=index, IFLA_IF_NETNSID=namespace):
                return _text(message.get_attr("IFLA_IFNAME"))
        return None

    # -- changes

    def change(self, index: int, **what: Any) -> None:
        """Change an interface by one message: mtu, address, master, state, group."""
        try:
            self._route.link("set", index=index, **what)
        except NetlinkError as error:
            raise OSError(error.code, os.strerror(error.code)) from None

    def delete(self, links: Sequence[Link]) -> None:
        """Delete interfaces, all or none."""
        used = {link.link_group for link in self.links()}
        group = next(number for number in iter(lambda: secrets.randbits(31), None)
                     if number and number not in used)
        moved: list[Link] = []
        try:
            for link in links:
                self.change(link.index, group=group)
                moved.append(link)
            if moved:
                self._route.link("del", group=group)
        except BaseException as error:
            self._put_back(moved)
            if isinstance(error, NetlinkError):
                raise OSError(error.code, os.strerror(error.code)) from None
            raise

    def _put_back(self, moved: Iterable[Link]) -> None:
        for link in moved:
            with contextlib.suppress(OSError):
                self.change(link.index, group=link.link_group)


def _link(message: Any) -> Link:
    get = message.get_attr
    info = get("IFLA_LINKINFO")
    kind = None if info is None else info.get_attr("IFLA_INFO_KIND")
    data = None if info is None else info.get_attr("IFLA_INFO_DATA")
    return Link(
        name=_text(get("IFLA_IFNAME")), index=message["index"], kernel_kind=kind,
        is_loopback=message["ifi_type"] == _ARPHRD_LOOPBACK,
        mac=get("IFLA_ADDRESS") if message["ifi_type"] == _ARPHRD_ETHER else None,
        mtu=get("IFLA_MTU") or 0, is_up=bool(message["flags"] & _IFF_UP),
        has_carrier=bool(get("IFLA_CARRIER")),
        tx_queues=get("IFLA_NUM_TX_QUEUES") or 1, rx_queues=get("IFLA_NUM_RX_QUEUES") or 1,
        master=get("IFLA_MASTER") or None, lower=get("IFLA_LINK") or None,
        lower_namespace=get("IFLA_LINK_NETNSID"),
        vlan_id=data.get_attr("IFLA_VLAN_ID") if kind == "vlan" and data is not None else None,
        tun=_tun(data, message["ifi_type"], bool(get("IFLA_CARRIER"))) if kind == "tun" else None,
        link_group=get("IFLA_GROUP") or 0)


def _text(name: Any) -> str:
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
        is_tap=kind == _IFF_TAP if kind else hardware_type == _ARPHRD_ETHER,
        is_persistent=bool(get("PERSIST")), is_multi_queue=bool(get("MULTI_QUEUE")),
        has_vnet_header=bool(get("VNET_HDR")), owner=get("OWNER"), group=get("GROUP"),
        attached_queues=attached)


def _fdb_entry(message: Any) -> FdbEntry:
    state = message["state"]
    origin = ("local" if state & _NUD_PERMANENT else "static" if state & _NUD_NOARP
              else "learned")
    times = message.get_attr("NDA_CACHEINFO")
    return FdbEntry(
        bridge=message.get_attr("NDA_MASTER"), port=message["ifindex"],
        mac=message.get_attr("NDA_LLADDR"), vlan=message.get_attr("NDA_VLAN"), origin=origin,
        age_s=times["ndm_updated"] / os.sysconf("SC_CLK_TCK")
        if times is not None and origin == "learned" else None)
