"""Persistent TAPs for guests: create, delete, list.

Creating: TUNSETIFF and TUNSETPERSIST on an fd of its own for each, which is closed again; then
one netlink message each for bridge, MAC, MTU and up. Deleting: netlink/links.py. Both are all or
nothing: if `create` is stopped in the middle, by whatever, what it had made is deleted again.

With an address a TAP is a router's interface for its guest alone; NAT is host/guest_nat.py's.

The guest's MAC comes from the TAP's name, this host's machine id and the namespace's name: the
same at every start, and another one for `vm0` of another host on the same Ethernet.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import ipaddress
import os
import pwd
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastpump.config.parsers import parse_mac as parse_host_mac
from fastpump.constants import ETHERNET_MTU
from fastpump.errors import ConfigError, SystemSetupError
from fastpump.host import derived_macs, guest_nat, interfaces, own_ipv6, tun_users
from fastpump.host.derived_macs import text as mac_text
from fastpump.ip import Interface
from fastpump.kernel import (
    IFF_MULTI_QUEUE,
    IFF_TAP,
    IFF_VNET_HDR,
    TUNSETGROUP,
    TUNSETOWNER,
    TUNSETPERSIST,
)
from fastpump.netlink import links, routes
from fastpump.netlink.links import Change, Link
from fastpump.netlink.refusal import Refusal, explaining
from fastpump.tun.queues import NO_PERMISSION, check_name, open_queue

MAX_BRIDGE_PORTS = 1023     # BR_MAX_PORTS in net/bridge/br_private.h, less the bridge itself


@dataclass(frozen=True, slots=True)
class TapConfig:
    """What to make. With several names `mac` and `guest_mac` are the first ones, and count up."""

    names: tuple[str, ...]
    owner: int | None = None
    group: int | None = None
    bridge: str | None = None
    mac: int | None = None
    guest_mac: int | None = None
    mtu: int | None = None
    is_multi_queue: bool = False
    has_vnet_header: bool = True
    is_up: bool = True
    addresses: tuple[Interface, ...] = ()
    """Of the host's end of the first one; the others get those of the networks that follow."""
    has_nat: bool = False


@dataclass(frozen=True, slots=True)
class Tap:
    """A TAP that was made, and the MAC of the guest behind it."""

    name: str
    guest_mac: str


# -- parsing

def parse_user(text: str) -> int:
    """A user's number, by name or number."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(text).pw_uid
    return _id(text, "user", "getent passwd")


def parse_group(text: str) -> int:
    """A group's number, by name or number."""
    with contextlib.suppress(KeyError):
        return grp.getgrnam(text).gr_gid
    return _id(text, "group", "getent group")


def _id(text: str, what: str, command: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) >= 0xFFFFFFFF:   # -1 is nobody
        raise ConfigError(f"there is no {what} {text!r}: give a name that `{command}` lists, or a "
                          "number")
    return int(text)


def parse_mac(text: str) -> int:
    """A MAC that an interface can have."""
    return int.from_bytes(parse_host_mac(text), "big")


def _is_usable(mac: int) -> bool:
    return 0 < mac < 1 << 48 and not mac >> 40 & 1


def numbered(prefix: str, count: int) -> tuple[str, ...]:
    """vm0, vm1, ..."""
    return tuple(f"{prefix}{number}" for number in range(count))


# -- create

def create(config: TapConfig) -> list[Tap]:
    """Make the TAPs, all or none; ConfigError or SystemSetupError says why not."""
    _check(config)
    there = _links_by_name()
    bridge = None if config.bridge is None else _find_bridge(there, config.bridge)
    for name in config.names:
        if name in there:
            raise ConfigError(f"the interface {name} exists already; choose another name"
                              + how_to_delete(there[name]))
    made: list[str] = []
    try:
        for name in config.names:
            _make_persistent(config, name, made)
        _set_up(config, bridge)
        if config.addresses:
            _route(config)
        macs = {name: link.mac for name, link in _links_by_name().items()}
        return [Tap(name, mac_text(mac if mac_text(mac) != macs.get(name) else mac ^ 1))
                for name, mac in zip(config.names, _guest_macs(config), strict=True)]
    except BaseException as error:
        left = _remove(made)
        if config.has_nat:
            with contextlib.suppress(SystemSetupError):
                guest_nat.remove(())
        if left is not None and isinstance(error, SystemSetupError):
            raise SystemSetupError(f"{error}; and {left}") from None
        raise


def _links_by_name() -> dict[str, Link]:
    return {link.name: link for link in links.read_all()}


def _check(config: TapConfig) -> None:
    """What can be checked without the kernel."""
    seen = set()
    for name in config.names:
        if check_name(name) in seen:
            raise ConfigError(f"{name} is named twice; name each TAP once")
        seen.add(name)
    last = len(config.names) - 1
    for address in config.addresses:
        _address(address, last)
    for mac in (config.mac, config.guest_mac):
        if mac is not None and not _is_usable(mac + last):
            raise ConfigError(f"counting up from {mac_text(mac)} leaves the usable MACs: begin "
                              "with 02:00:00:00:00:00")
    if config.mac is not None and config.guest_mac is not None and abs(
            config.mac - config.guest_mac) <= last:
        raise ConfigError("a guest's MAC and its TAP's must differ, or a bridge takes the guest's "
                          "frames for its own; give --mac and --guest-mac different ranges")


def _find_bridge(there: dict[str, Link], name: str) -> Link:
    if name not in there:
        raise ConfigError(f"there is no bridge {name}: make it with `ip link add {name} type "
                          f"bridge`, or let `fastpump tunnel --tap --bridge {name}` make it")
    link = there[name]
    if not link.is_bridge:
        raise ConfigError(f"{name} is not a bridge (its kind: "
                          f"{link.kernel_kind or interfaces.kind_of(link)}); `fastpump interfaces` "
                          "shows the bridges")
    return link


def how_to_delete(link: Link | None) -> str:
    """", or ..." for what may be deleted: a TAP, and by the command that refuses if it is in use.
    Empty for all else, on which the host may depend."""
    is_tap = link is not None and link.tun is not None and link.tun.is_tap
    return f", or delete it: fastpump tap delete {link.name}" if link and is_tap else ""


def _make_persistent(config: TapConfig, name: str, made: list[str]) -> None:
    flags = IFF_TAP
    flags |= IFF_VNET_HDR if config.has_vnet_header else 0
    flags |= IFF_MULTI_QUEUE if config.is_multi_queue else 0
    fd = open_queue(name, flags)
    try:
        # Before it is persistent: when an ioctl fails, it goes away with the fd.
        for request, value in ((TUNSETOWNER, config.owner), (TUNSETGROUP, config.group)):
            if value is not None:
                fcntl.ioctl(fd, request, value - (1 << 32) if value >> 31 else value)
        made.append(name)
        fcntl.ioctl(fd, TUNSETPERSIST, 1)
    except OSError as error:
        hint = ("; in a user namespace --user and --group must be known there"
                if error.errno == errno.EINVAL else "")
        raise SystemSetupError(f"the TAP {name} cannot be created: {error.strerror}"
                               f"{hint}") from None
    finally:
        os.close(fd)


def _set_up(config: TapConfig, bridge: Link | None) -> None:
    """Bridge, MAC, MTU and up, in one message for each TAP."""
    try:
        links.change_all(_change(config, number, name, bridge)
                         for number, name in enumerate(config.names))
    except Refusal as error:
        if error.errno == errno.EXFULL:
            raise SystemSetupError(f"{error.failure}, which is full: a bridge has at most "
                                   f"{MAX_BRIDGE_PORTS} ports; take another bridge for the "
                                   "rest") from None
        raise


def _change(config: TapConfig, number: int, name: str, bridge: Link | None) -> Change:
    mtu = config.mtu
    if mtu is None and bridge is not None and bridge.mtu != ETHERNET_MTU:
        mtu = bridge.mtu        # else a new port lowers that of all
    place = "" if bridge is None else f" in the bridge {bridge.name}"
    failure = f"the TAP {name} cannot be set up{place}"
    with explaining(failure):
        index = socket.if_nametoindex(name)
    return Change(index, failure, mtu=mtu, is_up=config.is_up or None,
                  mac=None if config.mac is None else mac_text(config.mac + number),
                  master=None if bridge is None else bridge.index)


def _route(config: TapConfig) -> None:
    """Make the TAPs, which are new, the routers of their guests."""
    with explaining("the TAPs cannot be given addresses"):
        indices = [socket.if_nametoindex(name) for name in config.names]
    for name in config.names:
        own_ipv6.refuse_advertisements(name)
    routes.add_addresses((index, _address(first, number)) for number, index in enumerate(indices)
                         for first in config.addresses)
    if config.has_nat:
        guest_nat.add(indices, {address.version for address in config.addresses})


def _address(first: Interface, number: int) -> Interface:
    """The same address in the network that comes so many after it; ConfigError."""
    try:
        address = first.ip + number * first.network.num_addresses
    except ValueError:
        raise ConfigError(f"counting up from {first} leaves the addresses that there are: begin "
                          "with a lower one") from None
    return ipaddress.ip_interface(f"{address}/{first.network.prefixlen}")


def _remove(made: Sequence[str]) -> str | None:
    """Delete what a failed `create` had made; what to say if that fails too."""
    wanted = set(made)
    try:
        links.delete_all([link for link in links.read_all() if link.name in wanted])
    except Refusal as error:
        return (f"of what was made before, {made[0]} to {made[-1]}, some may be left "
                f"({error.reason}): `fastpump tap list` shows it")
    return None


def _guest_macs(config: TapConfig) -> list[int]:
    if config.guest_mac is not None:
        return [config.guest_mac + number for number in range(len(config.names))]
    host = derived_macs.this_host()
    return [guest_mac(name, host) for name in config.names]


def guest_mac(name: str, host: bytes) -> int:
    """The MAC for the guest behind a TAP: locally administered, and always the same."""
    return derived_macs.derive(derived_macs.LOWEST, "guest", name, host)


# -- delete, list

def delete(names: Sequence[str], prefix: str | None = None, force: bool = False) -> list[str]:
    """Delete TAPs, all or none: those with these names, or all that are named `prefix` and a
    number. One that a process has open is deleted only by force: the process keeps an fd on which
    all reads and writes fail. The names of those that are gone."""
    there = _links_by_name()
    if prefix is not None:
        names = _with_prefix(there, prefix)
    chosen = [_find_tap(there, name) for name in dict.fromkeys(names)]
    if not force:
        _refuse_if_in_use(chosen)
    try:
        links.delete_all(chosen)
    except Refusal as error:
        hint = f"; {NO_PERMISSION}" if error.errno == errno.EPERM else ""
        reason = ("one of them was deleted meanwhile" if error.errno == errno.ENODEV
                  else f"{error.reason}{hint}")
        raise SystemSetupError(f"nothing was deleted: {reason}") from None
    guest_nat.remove([link.index for link in chosen])
    return [link.name for link in chosen]


def _with_prefix(there: dict[str, Link], prefix: str) -> list[str]:
    names = [name for name, link in there.items() if link.tun is not None and link.tun.is_tap
             and re.fullmatch(re.escape(prefix) + "[0-9]+", name)]
    if not names:
        raise ConfigError(f"there is no TAP {prefix}0 or with another number behind {prefix!r}; "
                          "`fastpump tap list` lists the TAPs")
    return names


def _find_tap(there: dict[str, Link], name: str) -> Link:
    if name not in there:
        raise ConfigError(f"there is no TAP {name}; `fastpump tap list` lists the TAPs "
                          "(nothing was deleted)")
    link = there[name]
    kind = interfaces.kind_of(link)
    if kind != "tap":
        raise ConfigError(f"{name} is not a TAP (its kind: "
                          f"{link.kernel_kind if kind == 'other' else kind}); `fastpump tap list` "
                          "lists the TAPs (nothing was deleted)")
    return link


def _refuse_if_in_use(chosen: Sequence[Link]) -> None:
    in_use = {link.name: users for link, users in _users(chosen) if users is not None}
    if in_use:
        name, users = next(iter(in_use.items()))
        more = f", and {len(in_use) - 1} more are in use" if len(in_use) > 1 else ""
        raise ConfigError(f"{name} is in use by {users}{more}: end it first, or delete with "
                          "--force, which cuts it off (nothing was deleted)")


def _users(chosen: Sequence[Link]) -> list[tuple[Link, str | None]]:
    """Who has each of some TUNs and TAPs open."""
    attached = {link.name for link in chosen if link.tun is not None and link.tun.attached_queues}
    users = tun_users.find(attached)
    return [(link, interfaces.users_text(users.get(link.name, []), link.name in attached))
            for link in chosen]


def users_of(name: str) -> str | None:
    """Who has a TUN or TAP of this network namespace open, for an error's sentence:
    "firecracker (pid 123)"; None if nobody has, or there is none of that name."""
    link = links.find(name)
    chosen = [] if link is None or link.tun is None else [link]
    return next((users for _, users in _users(chosen)), None)


def gather() -> list[dict[str, Any]]:
    """The persistent TAPs, each as `interfaces.gather` describes it."""
    return [entry for entry in interfaces.gather()
            if entry["kind"] == "tap" and entry["tuntap"]["is_persistent"]]


_COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("TAP", lambda entry: str(entry["name"])),
    ("STATE", lambda entry: "up" if entry["is_up"] else "down"),
    ("BRIDGE", lambda entry: entry["master"] or "-"),
    ("MADE AS", lambda entry: ", ".join(
        fact for fact in interfaces.tun_facts(entry["tuntap"]) if fact != "persistent")),
    ("IN USE BY", lambda entry: interfaces.in_use_by(entry["tuntap"]) or "nobody"),
)


def show(taps: Sequence[dict[str, Any]]) -> str:
    """A table for a terminal."""
    if not taps:
        return "no persistent TAP in this network namespace; `fastpump tap create` makes one"
    rows = [[title for title, _ in _COLUMNS],
            *([tun_users.printable(cell(entry)) for _, cell in _COLUMNS] for entry in taps)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(
        row, widths, strict=True)).rstrip() for row in rows)
