"""Join the tunnel's TAP interface to the host's Ethernet, and undo it.

mode "bridge": the TAP becomes a port of a bridge, which is made if it is not there, and the
attached interfaces become ports of it. mode "tc": what comes in at the one attached interface
leaves into the TAP, and the reverse, by two redirects (netlink/redirects.py).

Nothing is changed before everything has been checked (`_inspect` refuses). Each step is recorded
before it is done (host/attach_undo.py), and undone in the reverse order however the process ends,
as far as nobody changed it since. If the process was killed, `recover` does it: the next `join`
calls that for all dead processes of the network namespace. What no record mentions is recognized by
itself: bridges that we made have an alias, redirects have our handle and no target any more.

The bridge that we make: no spanning tree, no multicast snooping (it forwards like a cable, at
once, and to all). It has a MAC address of its own (host/derived_macs.py), the same whichever ports
come and go, or its neighbours would lose it at each; and no IPv6 but what it is given addresses
for (host/own_ipv6.py). A bridge that exists stays as it is, with its address, which may be the
lowest of its ports': the TAP's begins with fe. The last tunnel to leave a bridge of ours removes
it.

MTUs of others are not changed; a bridge has the smallest of its ports' unless somebody set it,
which the kernel sees to when the TAP comes and goes. In mode "tc" a socket keeps the interfaces
promiscuous: that ends when it is closed.

Accepted limit: a process that is killed between making a bridge and giving it its alias (two system
calls) leaves it behind.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from fastpump.config.wording import OptionError
from fastpump.constants import MAX_TAP_MTU
from fastpump.errors import ConfigError, SystemSetupError
from fastpump.host import derived_macs, own_ipv6
from fastpump.host.attach_undo import AttachState, addresses_of, ports_of, record_file, recover
from fastpump.host.undo_record import Record
from fastpump.ip import Interface
from fastpump.kernel import PACKET_ADD_MEMBERSHIP, PACKET_MR_PROMISC, PACKET_MREQ, SOL_PACKET
from fastpump.netlink import bridges, links, redirects, routes
from fastpump.netlink.bridges import VlanRange
from fastpump.netlink.links import Link
from fastpump.tun.queues import check_name

log = logging.getLogger("fastpump")

ALIAS = "fastpump: made for "


@dataclass(frozen=True, slots=True)
class Attachment:
    """What the TAP is joined to: a bridge and more ports of it, or (mode "tc") one interface."""

    bridge: str | None = None
    interfaces: tuple[str, ...] = ()
    mode: str = "bridge"
    vlans: tuple[VlanRange, ...] = ()
    """That the TAP carries in a bridge that filters them, besides what it has by default."""

    def __bool__(self) -> bool:
        return self.bridge is not None or bool(self.interfaces)

    def to_json(self) -> dict[str, Any] | None:
        """For `status`."""
        return {"bridge": self.bridge, "interfaces": list(self.interfaces), "mode": self.mode,
                "vlans": [list(vlans) for vlans in self.vlans]} if self else None


# -- what is asked for

def check(attachment: Attachment) -> None:
    """What is wrong only in combination; ConfigError."""
    names = attachment.interfaces
    for name in (*names, *filter(None, [attachment.bridge])):
        check_name(name)
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"<attach={name}> is given twice")
        if name == attachment.bridge:
            raise OptionError(f"{name} is given as the bridge and as a port of it; leave out "
                              f"<attach={name}>")
    if attachment.vlans and (not attachment or attachment.mode == "tc"):
        raise OptionError("<bridge_vlans> is for a bridge's port; give <bridge> or <attach>, too, "
                          "or leave it out: without a bridge, all VLANs are carried")
    if attachment.mode == "tc":
        if attachment.bridge is not None:
            raise OptionError("<attach_mode=tc> works without a bridge; leave out <bridge>, or the "
                              "mode")
        if len(names) != 1:
            raise OptionError("<attach_mode=tc> joins exactly one interface; give one <attach>, "
                              "or use a bridge for several")


def _bridge_name(attachment: Attachment) -> str | None:
    """The bridge that is asked for, or the one that the interfaces are in."""
    if attachment.bridge is not None or not attachment.interfaces or attachment.mode == "tc":
        return attachment.bridge
    found = {name: _bridge_of(name) for name in attachment.interfaces}
    for name, bridge in found.items():
        if bridge is None:
            raise OptionError(f"{name} is not in a bridge; name the bridge that it is to join "
                              "(created if needed): <bridge=br0>")
    if len(set(found.values())) > 1:
        raise ConfigError(f"{' and '.join(found)} are in different bridges; the tunnel can be "
                          "a port of one only")
    return found[attachment.interfaces[0]]


def _bridge_of(name: str) -> str | None:
    link = _existing(name)
    master = links.find(link.master) if link.master else None
    return master.name if master is not None and master.is_bridge else None


def _existing(name: str) -> Link:
    link = links.find(name)
    if link is None:
        raise ConfigError(f"there is no interface {name} to attach; `ip link` lists them")
    return link


def plan_mtu(attachment: Attachment) -> int | None:
    """The MTU with which the frames of what is joined fit into the TAP; None for any."""
    mtus = [link.mtu for link in map(links.find, attachment.interfaces) if link is not None]
    name = _bridge_name(attachment)
    bridge = None if name is None else links.find(name)
    # A bridge that a killed process left behind has no MTU to keep.
    if bridge is not None and (not _is_ours(bridge) or bridges.ports(bridge)):
        mtus.append(bridge.mtu)
    return min(max(mtus), MAX_TAP_MTU) if mtus else None


def warnings(attachment: Attachment, tap_index: int, mtu: int) -> list[str]:
    """A sentence for what is not joined any more, and for each interface at the other end whose
    frames may be larger than the TAP's MTU."""
    tap = links.find(tap_index)
    if tap is None:
        return []
    others: list[Link] = []
    if attachment.mode == "tc":
        link = links.find(attachment.interfaces[0])
        if link is None or not redirects.read(link):
            return [f"{attachment.interfaces[0]} is gone, or not joined to {tap.name} any more: "
                    "its frames go nowhere; start the tunnel again when it is back"]
        others = [link]
    elif tap.master:
        others = bridges.ports(tap.master)
    else:
        return [f"{tap.name} is not in a bridge any more: the tunnel joins nothing here; start it "
                "again"]
    there = [link.name for link in others]
    unsaid = [] if attachment.vlans else _vlan_warnings(tap)
    gone = [f"{name} is gone, or not in the bridge any more: it has no part in the tunnel; start "
            "the tunnel again when it is back"
            for name in attachment.interfaces if name not in there]
    return gone + unsaid + [
        f"{link.name} has an MTU of {link.mtu}, the tunnel's interface one of {mtu}: larger "
        f"frames are lost; raise that to {link.mtu}, or lower the other: ip link set "
        f"{link.name} mtu {mtu} (and that of the hosts behind it)"
        for link in others if link.mtu > mtu and link.index != tap_index]


def _vlan_warnings(tap: Link) -> list[str]:
    """A sentence if the TAP is in a bridge that filters VLANs, and carries none that are tagged."""
    bridge = links.find(tap.master) if tap.master else None
    if bridge is None or not bridge.filters_vlans or bridges.tagged_vlans(tap):
        return []
    return [f"the bridge {bridge.name} filters VLANs, and lets no tagged frame pass to or from "
            f"{tap.name}: say which VLANs the tunnel carries, such as --bridge-vlans 2-4094"]


# -- doing it

def join(attachment: Attachment, tap: Link, cleanup: ExitStack, *,
         addresses: tuple[Interface, ...] = (), mtu: int) -> None:
    """Set the TAP up with that MTU, joined; how to undo it goes on the stack.

    `addresses` go to the bridge, or to the TAP if there is none. ConfigError says what cannot be
    joined, SystemSetupError which step failed.
    """
    check(attachment)
    recover()
    if not attachment:
        routes.configure(tap, addresses, mtu)
        return
    bridge_name = _bridge_name(attachment)
    others = _inspect(attachment, bridge_name, tap.name)
    if attachment.mode == "tc" and addresses:
        raise OptionError("<attach_mode=tc> leaves the host out of the network that it joins, so "
                          "<addresses> would not work; leave it out, or use a bridge")
    state = AttachState(record=_take_record(tap))
    cleanup.callback(state.undo)
    links.set_mtu(tap, mtu)
    own_ipv6.switch_off(tap)
    for link in others:
        _remove_dangling_redirects(link)
    if bridge_name is None:
        _redirect(state, others[0], tap, cleanup)
    else:
        _bridge(state, bridge_name, others, tap, addresses)
        if attachment.vlans:
            bridges.add_vlans(links.get(links.get(tap.index).master), tap, attachment.vlans)


def _take_record(tap: Link) -> Record:
    """The record is ours, as the index is; a process that recovers may just read it."""
    path = record_file(tap.name, tap.index)
    for _ in range(100):
        record = Record.take(path)
        if record is not None:
            return record
        time.sleep(0.01)
    raise SystemSetupError(f"{path} is locked by another process; remove it")


def _inspect(attachment: Attachment, bridge_name: str | None, tap: str) -> list[Link]:
    """The interfaces to attach; ConfigError if one cannot be."""
    bridge = None if bridge_name is None else links.find(bridge_name)
    if bridge is not None and not bridge.is_bridge:
        raise OptionError(f"{bridge_name} is not a bridge; name another one, or make it a port: "
                          f"<attach={bridge_name}>")
    if tap in (bridge_name, *attachment.interfaces):
        raise ConfigError(f"{tap} is the tunnel's own interface; name another one")
    others = [_existing(name) for name in attachment.interfaces]
    for link in others:
        _refuse_what_cannot_be_joined(link)
        if bridge is not None and link.master == bridge.index:
            continue
        _refuse_what_is_taken(link)
        _refuse_what_has_addresses(link, bridge_name)
    return others


def _refuse_what_cannot_be_joined(link: Link) -> None:
    if link.is_loopback:
        raise ConfigError(f"{link.name} is the loopback interface, which cannot be attached; "
                          "name another one")
    if not link.is_ethernet:
        raise OptionError(f"{link.name} is not an Ethernet interface: it carries no frames "
                          "to join; attach another one, or use a tunnel without <mode=tap>")
    if link.is_bridge:
        raise OptionError(f"{link.name} is a bridge, which cannot be a port: "
                          f"<bridge={link.name}> makes the tunnel a port of it")


def _refuse_what_is_taken(link: Link) -> None:
    master = links.find(link.master) if link.master else None
    if master is not None and master.is_bridge:
        raise OptionError(f"{link.name} is a port of the bridge {master.name}: use that "
                          f"(<bridge={master.name}>), or take it out (ip link set {link.name} "
                          "nomaster)")
    if master is not None:
        raise ConfigError(f"{link.name} is a part of {master.name}; attach {master.name} instead, "
                          f"or take it out (ip link set {link.name} nomaster)")
    for redirect in redirects.read(link):
        target = links.find(redirect.target) if redirect.target else None
        if target is not None:
            raise OptionError(f"{link.name} is joined to {target.name} already by "
                              "<attach_mode=tc>; end that tunnel first")


def _refuse_what_has_addresses(link: Link, bridge_name: str | None) -> None:
    addresses = routes.addresses_of(link.index)
    if not addresses:
        return
    away = " && ".join(f"ip addr del {address} dev {link.name}" for address in addresses)
    moved = " ".join(f"<addresses={address}>" for address in addresses)
    if bridge_name is None:
        raise OptionError(f"{link.name} has addresses, which would stop working, as all its frames "
                          f"go into the tunnel: remove them ({away}), or use a bridge and move "
                          f"them to it: <bridge=br0> {moved}")
    raise OptionError(f"{link.name} has addresses, which would stop working in a bridge: move them "
                      f"to the bridge ({away}; {moved}), and routes through {link.name}, too")


def _bridge(state: AttachState, name: str, others: Sequence[Link], tap: Link,
            addresses: Sequence[Interface]) -> None:
    bridge = links.find(name)
    has_ipv6 = any(address.version == 6 for address in addresses)
    if bridge is None:
        mac = derived_macs.of_interface(derived_macs.LOWEST, "bridge", name)
        bridge = bridges.make(name, mac)
        state.note("bridge", bridge.index)
        links.set_alias(bridge, ALIAS + tap.name)
        own_ipv6.prepare_bridge(bridge, has_address=has_ipv6)
    elif _is_ours(bridge):
        state.note("bridge", bridge.index)
        if has_ipv6:
            own_ipv6.prepare_bridge(bridge, has_address=True)   # its maker may have had none
    elif not bridges.ports(bridge):
        state.note("empty", bridge.index, bridge.mac, bridge.mtu)
    _set_up(state, bridge)
    links.set_mac(tap, derived_macs.of_interface(derived_macs.HIGHEST, "port", tap.name))
    links.set_up(tap)
    for link in (tap, *others):
        if link is not tap:
            _set_up(state, link)
        if link.master != bridge.index:
            state.note("port", link.index, bridge.index)
            bridges.add_port(bridge, link)
    there = routes.addresses_of(bridge.index)
    missing = [address for address in addresses if address not in there]
    for address in missing:
        state.note("address", bridge.index, str(address))
    routes.change_addresses(bridge.index, (), missing)


def _redirect(state: AttachState, link: Link, tap: Link, cleanup: ExitStack) -> None:
    _make_promiscuous((link, tap), cleanup)
    links.set_up(tap)
    _set_up(state, link)
    for source, target in ((tap, link), (link, tap)):
        if not redirects.has_qdisc(source):
            state.note("ingress", source.index)
            redirects.add_qdisc(source)
        state.note("redirect", source.index, target.index)
        redirects.add(source, target)


def _remove_dangling_redirects(link: Link) -> None:
    """Those that `recover` does not find, since the record is lost, or was of another tunnel."""
    for redirect in redirects.read(link):
        if redirect.is_dangling:
            log.info("%(name)s has a redirect of a tunnel that was killed; removing it",
                     {"name": link.name})
            redirects.remove(link, redirect)


def _set_up(state: AttachState, link: Link) -> None:
    if not link.is_up:
        state.note("up", link.index, link.master, addresses_of(link), ports_of(link))
        links.set_up(link)


def _make_promiscuous(ends: Sequence[Link], cleanup: ExitStack) -> None:
    """Have interfaces take frames to any address while a socket is open that receives none."""
    try:
        member = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        cleanup.callback(member.close)
        for link in ends:
            member.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP,
                              PACKET_MREQ.pack(link.index, PACKET_MR_PROMISC, 0))
    except OSError as error:
        raise SystemSetupError(f"{ends[0].name} cannot be made promiscuous: {error.strerror}; run "
                               "as root, or with CAP_NET_RAW") from None


def _is_ours(bridge: Link) -> bool:
    return bridge.alias.startswith(ALIAS)
