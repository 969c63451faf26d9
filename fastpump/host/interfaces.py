"""Every interface of this network namespace and how they hang together: gather and show.

The JSON keys are stable and documented in docs/fastpump.1.md. Drawn as a tree: a bridge (or a
bond) has its ports below it, a vlan stands below its parent.
"""

from __future__ import annotations

import contextlib
import grp
import pwd
from collections.abc import Sequence
from typing import Any

from fastpump.host import tun_users
from fastpump.host.tun_users import TunUser, printable
from fastpump.netlink import bridges, links, namespaces, routes
from fastpump.netlink.bridges import FdbEntry
from fastpump.netlink.links import Link, TunDetails

KINDS = {
    "physical": "a network card, or what the machine's hypervisor shows as one",
    "loopback": "this host talking to itself",
    "tun": "whole IP packets to and from a program",
    "tap": "whole Ethernet frames to and from a program",
    "bridge": "a switch in the kernel: frames go to the port where their MAC was learned",
    "veth": "a cable with two ends: what goes in at one comes out at the other",
    "vlan": "the frames of its parent that have one VLAN's tag, without it",
}
OTHER_KINDS = {
    "bond": "several cards used as one",
    "dummy": "swallows all that is sent to it",
    "ifb": "a detour for shaping what other interfaces receive",
    "ipvlan": "more addresses on its parent's MAC",
    "macvlan": "one more MAC on its parent",
    "macvtap": "one more MAC on its parent, for a program",
    "vrf": "its ports have a routing table of their own",
    "vxlan": "Ethernet frames in UDP, to other hosts",
    "wireguard": "IP packets encrypted in UDP, by the kernel",
}
_UNKNOWN_KIND = "one of the kernel's other kinds: see ip-link(8)"
_MACS_SHOWN = 16
_LINES = ("├─ ", "└─ ", "│  ")
_PLAIN_LINES = ("|- ", "`- ", "|  ")


def gather() -> list[dict[str, Any]]:
    """The entries of `interfaces`, by index."""
    found = links.read_all()
    names = {link.index: link.name for link in found}
    addresses = routes.addresses_by_index()
    fdb = bridges.read_fdb() if any(link.is_bridge for link in found) else []
    elsewhere = [link for link in found if link.lower_namespace is not None]
    namespace_names = namespaces.names_by_id() if elsewhere else {}
    names_elsewhere = namespaces.names_of_lower(elsewhere) if elsewhere else {}
    users = tun_users.find({link.name for link in found if link.tun})

    def entry(link: Link) -> dict[str, Any]:
        kind = kind_of(link)
        namespace = link.lower_namespace
        lower = (names.get(link.lower or 0) if namespace is None
                 else names_elsewhere.get(link.index))
        return {
            "name": link.name,
            "ifindex": link.index,
            "kind": kind,
            "kernel_kind": link.kernel_kind,
            "mac": link.mac,
            "addresses": [str(address) for address in addresses.get(link.index, [])],
            "mtu": link.mtu,
            "is_up": link.is_up,
            "has_carrier": link.has_carrier,
            "tx_queues": link.tx_queues,
            "rx_queues": link.rx_queues,
            "master": names.get(link.master),
            "parent": None if kind == "veth" else lower,
            "peer": lower if kind == "veth" else None,
            "namespace_id": namespace,
            "namespace": None if namespace is None else namespace_names.get(namespace),
            "vlan_id": link.vlan_id,
            "tuntap": None if link.tun is None else _tuntap(link.tun, users.get(link.name, [])),
            "bridge": _bridge(link, found, fdb, names) if link.is_bridge else None,
        }

    return [entry(link) for link in found]


def kind_of(link: Link) -> str:
    """What we call a kind of interface: one of KINDS, or "other"."""
    if link.tun is not None:
        return "tap" if link.tun.is_tap else "tun"
    if link.kernel_kind is None:
        return "loopback" if link.is_loopback else "physical"
    return link.kernel_kind if link.kernel_kind in KINDS else "other"


def _tuntap(tun: TunDetails, users: Sequence[TunUser]) -> dict[str, Any]:
    return {
        "is_persistent": tun.is_persistent,
        "is_multi_queue": tun.is_multi_queue,
        "has_vnet_header": tun.has_vnet_header,
        "owner": tun.owner,
        "group": tun.group,
        "attached_queues": tun.attached_queues,
        "holders": [{"pid": user.pid, "command": user.command, "fds": user.fds}
                    for user in users],
    }


def _bridge(bridge: Link, all_links: Sequence[Link], fdb: Sequence[FdbEntry],
            names: dict[int, str]) -> dict[str, Any]:
    return {
        "ports": [link.name for link in all_links if link.master == bridge.index],
        "macs": [{"mac": entry.mac, "vlan": entry.vlan, "port": names.get(entry.port),
                  "origin": entry.origin, "age_seconds": entry.age_s}
                 for entry in fdb if entry.bridge == bridge.index],
    }


def users_text(users: Sequence[TunUser], is_attached: bool) -> str | None:
    """Who has a TUN or TAP open, in words; None: no process."""
    if users or not is_attached:
        return ", ".join(map(str, users)) or None
    return "a program that cannot be seen from here (root sees those of its PID namespace)"


def in_use_by(tuntap: dict[str, Any]) -> str | None:
    """That of an entry's `tuntap`."""
    return users_text([TunUser(**user) for user in tuntap["holders"]],
                      tuntap["attached_queues"] > 0)


def show(interfaces: Sequence[dict[str, Any]], encoding: str = "utf-8") -> str:
    """The tree for a terminal, and what the kinds in it are."""
    lines: list[str] = []
    art = _LINES
    try:
        "".join(_LINES).encode(encoding)
    except (UnicodeError, LookupError):
        art = _PLAIN_LINES
    names = {entry["name"] for entry in interfaces}
    above = {entry["name"]: _above(entry, names) for entry in interfaces}
    below: dict[str | None, list[dict[str, Any]]] = {}
    for entry in interfaces:
        below.setdefault(above[entry["name"]], []).append(entry)
    for top in (None, *names):      # a loop (changed while it was read) has no root
        for entry in below.pop(top, []):
            _draw(entry, below, art, "", "", lines)
    kinds = {entry["kind"] if entry["kind"] != "other" else entry["kernel_kind"]: None
             for entry in interfaces}
    width = max((len(kind) for kind in kinds), default=0)
    lines += ["", *(f"{kind + ':':<{width + 1}} {_explain(kind)}" for kind in kinds)]
    return "\n".join(map(printable, lines))


def _above(entry: dict[str, Any], names: set[str]) -> str | None:
    """The name of what an interface is drawn below."""
    name = entry["master"] or (entry["parent"] if entry["namespace_id"] is None else None)
    return name if name in names else None


def _explain(kind: str) -> str:
    return KINDS.get(kind) or OTHER_KINDS.get(kind, _UNKNOWN_KIND)


def _draw(entry: dict[str, Any], below: dict[str | None, list[dict[str, Any]]],
          art: tuple[str, str, str], head: str, rest: str, lines: list[str]) -> None:
    branch, last, through = art
    children = below.pop(entry["name"], [])
    lines.append(f"{head}{entry['name']}  {', '.join(_facts(entry))}")
    lines += [f"{rest}{through if children else '   '}  {line}" for line in _details(entry)]
    for number, child in enumerate(children, 1):
        is_last = number == len(children)
        _draw(child, below, art, rest + (last if is_last else branch),
              rest + ("   " if is_last else through), lines)


def _facts(entry: dict[str, Any]) -> list[str]:
    kind = entry["kernel_kind"] if entry["kind"] == "other" else entry["kind"]
    if entry["vlan_id"] is not None:
        kind += f" {entry['vlan_id']}"
    if entry["kind"] != "veth" and (entry["parent"] or entry["namespace_id"] is not None):
        kind += f" of {_elsewhere(entry, entry['parent'])}"
    state = "down" if not entry["is_up"] else "up" if entry["has_carrier"] else "up, no carrier"
    facts = [kind, state, f"MTU {entry['mtu']}"]
    return facts + ([f"MAC {entry['mac']}"] if entry["mac"] else [])


def _elsewhere(entry: dict[str, Any], name: str | None) -> str:
    """An interface by name, and the namespace that it is in if that is another one."""
    if entry["namespace_id"] is None:
        return name or "something unknown"
    where = (f"namespace {entry['namespace']}" if entry["namespace"]
             else f"another namespace (id {entry['namespace_id']})")
    return f"{name or 'something'} in {where}"


def _details(entry: dict[str, Any]) -> list[str]:
    details = []
    if entry["addresses"]:
        details.append(", ".join(entry["addresses"]))
    if entry["kind"] == "veth":
        details.append(f"other end: {_elsewhere(entry, entry['peer'])}")
    tuntap = entry["tuntap"]
    if tuntap is not None:
        details.append(", ".join(tun_facts(tuntap)))
        users = in_use_by(tuntap)
        details.append(f"in use by {users}" if users else "nobody has it open")
    elif max(entry["tx_queues"], entry["rx_queues"]) > 1:
        details.append(f"{entry['tx_queues']} queues to send, {entry['rx_queues']} to receive")
    if entry["bridge"] is not None:
        details += _macs(entry["bridge"]["macs"])
        if not entry["bridge"]["ports"]:
            details.append("no ports yet: ip link set NAME master " + entry["name"])
    return details


def tun_facts(tuntap: dict[str, Any]) -> list[str]:
    """What a TUN or TAP was made with, in words."""
    count = tuntap["attached_queues"]
    facts = [f"multi-queue, {count} attached" if tuntap["is_multi_queue"] else "single queue"]
    if tuntap["has_vnet_header"]:
        facts.append("vnet header")
    facts.append("persistent" if tuntap["is_persistent"] else "gone when it is closed")
    if tuntap["owner"] is not None:
        facts.append(f"owner {owner_name(tuntap['owner'])}")
    if tuntap["group"] is not None:
        facts.append(f"group {group_name(tuntap['group'])}")
    return facts


def owner_name(number: int) -> str:
    """A user's name, or the number if it has none."""
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(number).pw_name
    return str(number)


def group_name(number: int) -> str:
    """A group's name, or the number if it has none."""
    with contextlib.suppress(KeyError):
        return grp.getgrgid(number).gr_name
    return str(number)


def _macs(macs: Sequence[dict[str, Any]]) -> list[str]:
    """The forwarding database of a bridge; its ports' own MACs are shown with them."""
    known = [entry for entry in macs if entry["origin"] != "local"]
    lines = []
    for entry in known[:_MACS_SHOWN]:
        vlan = "" if entry["vlan"] is None else f" in vlan {entry['vlan']}"
        how = ("set by hand" if entry["origin"] == "static" else
               f"seen {entry['age_seconds']:.0f} s ago" if entry["age_seconds"] is not None
               else "learned")
        lines.append(f"knows {entry['mac']}{vlan} behind {entry['port'] or 'a port'}, {how}")
    if len(known) > _MACS_SHOWN:
        lines.append(f"and {len(known) - _MACS_SHOWN} more: --json shows all")
    return lines
