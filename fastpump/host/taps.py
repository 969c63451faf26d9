"""Persistent TAPs for guests: create, delete, list.

Creating: TUNSETIFF and TUNSETPERSIST on an fd of its own for each, which is closed again; then
one netlink message each for bridge, MAC, MTU and up. Deleting: netlink/links.py. Both are all or
nothing: whatever stops `create` in the middle, what it had made is deleted again.

The guest's MAC comes from the TAP's name, this host's machine id and the namespace's name: the
same at every start, and another one for `vm0` of another host on the same Ethernet.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import hashlib
import os
import pwd
import re
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastpump import paths
from fastpump.config.parsers import parse_mac as parse_host_mac
from fastpump.errors import ConfigError, SystemSetupError
from fastpump.host import interfaces, tun_users
from fastpump.netlink.links import Link, LinkSocket
from fastpump.tun.queues import (
    DEVICE,
    IFF_MULTI_QUEUE,
    IFF_NO_PI,
    IFF_TUN_EXCL,
    IFF_VNET_HDR,
    TUNSETIFF,
    check_name,
)

# include/uapi/linux/if_tun.h
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_TUNSETGROUP = 0x400454CE
_IFF_TAP = 0x0002

DEFAULT_MTU = 1500
MAX_BRIDGE_PORTS = 1023     # BR_MAX_PORTS in net/bridge/br_private.h, less the bridge itself
_MACHINE_ID = Path("/etc/machine-id")
_NO_PERMISSION = "run as root, or with CAP_NET_ADMIN"


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


def mac_text(mac: int) -> str:
    """02:00:00:00:00:01"""
    return mac.to_bytes(6, "big").hex(":")


def numbered(prefix: str, count: int) -> tuple[str, ...]:
    """vm0, vm1, ..."""
    return tuple(f"{prefix}{number}" for number in range(count))


# -- create

def create(config: TapConfig) -> list[Tap]:
    """Make the TAPs, all or none; ConfigError or SystemSetupError says why none."""
    _check(config)
    with LinkSocket() as netlink:
        links = {link.name: link for link in netlink.links()}
        bridge = None if config.bridge is None else _find_bridge(links, config.bridge)
        for name in config.names:
            if name in links:
                raise ConfigError(f"the interface {name} exists already; choose another name, or "
                                  f"delete it: {_how_to_delete(links[name])}")
        made: list[str] = []
        try:
            for number, name in enumerate(config.names):
                _open_and_persist(config, name, made)
                _set_up(netlink, config, number, name, bridge)
            macs = {link.name: link.mac for link in netlink.links()}
            return [Tap(name, mac_text(mac if mac_text(mac) != macs.get(name) else mac ^ 1))
                    for name, mac in zip(config.names, _guest_macs(config), strict=True)]
        except BaseException as error:
            left = _remove(netlink, made)
            if left is not None and isinstance(error, SystemSetupError):
                raise SystemSetupError(f"{error}; and {left}") from None
            raise


def _check(config: TapConfig) -> None:
    """What can be judged without asking the kernel."""
    seen = set()
    for name in config.names:
        if check_name(name) in seen:
            raise ConfigError(f"{name} is named twice; name each TAP once")
        seen.add(name)
    last = len(config.names) - 1
    for mac in (config.mac, config.guest_mac):
        if mac is not None and not _is_usable(mac + last):
            raise ConfigError(f"counting up from {mac_text(mac)} leaves the usable MACs: begin "
                              "with 02:00:00:00:00:00")
    if config.mac is not None and config.guest_mac is not None and abs(
            config.mac - config.guest_mac) <= last:
        raise ConfigError("a guest's MAC and its TAP's must differ, or a bridge takes the guest's "
                          "frames for its own; give --mac and --guest-mac different ranges")


def _find_bridge(links: dict[str, Link], name: str) -> Link:
    if name not in links:
        raise ConfigError(f"there is no bridge {name}: make it with `ip link add {name} type "
                          f"bridge`, or let `fastpump tunnel --tap --bridge {name}` make it")
    kind = interfaces.kind_of(links[name])
    if kind != "bridge":
        raise ConfigError(f"{name} is no bridge: it is of the kind "
                          f"{links[name].kernel_kind or kind}; `fastpump interfaces` shows the "
                          "bridges")
    return links[name]


def _how_to_delete(link: Link) -> str:
    is_tap = link.tun is not None and link.tun.is_tap
    return f"{'fastpump tap' if is_tap else 'ip link'} delete {link.name}"


def _open_and_persist(config: TapConfig, name: str, made: list[str]) -> None:
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise SystemSetupError(f"{DEVICE} is missing; load the module: modprobe tun") from None
    except OSError as error:
        raise SystemSetupError(f"{DEVICE} cannot be opened: {error.strerror}; "
                               f"{_NO_PERMISSION}") from None
    flags = _IFF_TAP | IFF_NO_PI | IFF_TUN_EXCL
    flags |= IFF_VNET_HDR if config.has_vnet_header else 0
    flags |= IFF_MULTI_QUEUE if config.is_multi_queue else 0
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", os.fsencode(name), flags))
        # Before it is persistent: when an ioctl fails, it goes away with the fd.
        for request, value in ((_TUNSETOWNER, config.owner), (_TUNSETGROUP, config.group)):
            if value is not None:
                fcntl.ioctl(fd, request, value - (1 << 32) if value >> 31 else value)
        made.append(name)
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    except OSError as error:
        raise SystemSetupError(_explain(name, error)) from None
    finally:
        os.close(fd)


def _explain(name: str, error: OSError) -> str:
    if error.errno in (errno.EBUSY, errno.EEXIST):
        return (f"the interface {name} exists already; choose another name, or delete it: "
                f"ip link delete {name}")
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"the TAP {name} cannot be created: {error.strerror}; {_NO_PERMISSION}"
    if error.errno == errno.EINVAL:
        return (f"the TAP {name} cannot be created: {error.strerror}; in a user namespace --user "
                "and --group must be known there")
    return f"the TAP {name} cannot be created: {error.strerror}"


def _set_up(netlink: LinkSocket, config: TapConfig, number: int, name: str,
            bridge: Link | None) -> None:
    """Bridge, MAC, MTU and up, in one message."""
    what: dict[str, Any] = {}
    if config.mac is not None:
        what["address"] = mac_text(config.mac + number)
    if config.mtu is not None:
        what["mtu"] = config.mtu
    if bridge is not None:
        what["master"] = bridge.index
        if config.mtu is None and bridge.mtu != DEFAULT_MTU:
            what["mtu"] = bridge.mtu        # else a new port lowers that of all
    if config.is_up:
        what["state"] = "up"
    if not what:
        return
    try:
        netlink.change(socket.if_nametoindex(name), **what)
    except OSError as error:
        if error.errno == errno.EXFULL and bridge is not None:
            raise SystemSetupError(f"{name} cannot join the bridge {bridge.name}: it is full, for "
                                   f"a bridge has {MAX_BRIDGE_PORTS} ports at most; take another "
                                   "bridge for the rest") from None
        joined = f" in the bridge {bridge.name}" if bridge is not None else ""
        raise SystemSetupError(f"the TAP {name} cannot be set up{joined}: "
                               f"{error.strerror}") from None


def _remove(netlink: LinkSocket, made: Sequence[str]) -> str | None:
    """Delete what a failed `create` had made; what to say if that fails too."""
    wanted = set(made)
    try:
        netlink.delete([link for link in netlink.links() if link.name in wanted])
    except OSError as error:
        return (f"of what was made before, {made[0]} to {made[-1]}, some may be left "
                f"({error.strerror}): `fastpump tap list` shows it")
    return None


def _guest_macs(config: TapConfig) -> list[int]:
    if config.guest_mac is not None:
        return [config.guest_mac + number for number in range(len(config.names))]
    machine = b""
    with contextlib.suppress(OSError):
        machine = _MACHINE_ID.read_bytes().strip()
    host = machine + b"\0" + os.fsencode(paths.namespace_name() or "")
    return [guest_mac(name, host) for name in config.names]


def guest_mac(name: str, host: bytes) -> int:
    """The MAC for the guest behind a TAP: locally administered, and always the same."""
    seed = b"fastpump guest\0" + host + b"\0" + os.fsencode(name)
    return 0x02 << 40 | int.from_bytes(hashlib.blake2s(seed, digest_size=5).digest(), "big")


# -- delete, list

def delete(names: Sequence[str], prefix: str | None = None, force: bool = False) -> list[str]:
    """Delete TAPs, all or none: those with these names, or all that are named `prefix` and a
    number. One that a process holds is deleted only by force: the process keeps an fd on which
    all reads and writes fail. The names of those that are gone."""
    with LinkSocket() as netlink:
        links = {link.name: link for link in netlink.links()}
        if prefix is not None:
            names = _with_prefix(links, prefix)
        chosen = [_find_tap(links, name) for name in dict.fromkeys(names)]
        if not force:
            _refuse_if_held(chosen)
        try:
            netlink.delete(chosen)
        except OSError as error:
            hint = f"; {_NO_PERMISSION}" if error.errno == errno.EPERM else ""
            reason = ("one of them went away meanwhile" if error.errno == errno.ENODEV
                      else f"{error.strerror}{hint}")
            raise SystemSetupError(f"nothing was deleted: {reason}") from None
    return [link.name for link in chosen]


def _with_prefix(links: dict[str, Link], prefix: str) -> list[str]:
    names = [name for name, link in links.items() if link.tun is not None and link.tun.is_tap
             and re.fullmatch(re.escape(prefix) + "[0-9]+", name)]
    if not names:
        raise ConfigError(f"there is no TAP {prefix}0 or with another number behind {prefix!r}; "
                          "`fastpump tap list` shows those that there are")
    return names


def _find_tap(links: dict[str, Link], name: str) -> Link:
    if name not in links:
        raise ConfigError(f"there is no TAP {name}; `fastpump tap list` shows those that there "
                          "are (nothing was deleted)")
    kind = interfaces.kind_of(links[name])
    if kind != "tap":
        raise ConfigError(f"{name} is no TAP: it is of the kind "
                          f"{links[name].kernel_kind if kind == 'other' else kind}; `ip link "
                          f"delete {name}` deletes it (nothing was deleted)")
    return links[name]


def _refuse_if_held(chosen: Sequence[Link]) -> None:
    held = {link.name: who for link, who in _busy(chosen) if who is not None}
    if held:
        name, who = next(iter(held.items()))
        more = f", and {len(held) - 1} more are held" if len(held) > 1 else ""
        raise ConfigError(f"{name} is held by {who}{more}: end it first, or delete with --force, "
                          "which cuts it off (nothing was deleted)")


def _busy(chosen: Sequence[Link]) -> list[tuple[Link, str | None]]:
    """Who holds each of some TUNs and TAPs."""
    attached = {link.name for link in chosen if link.tun is not None and link.tun.attached_queues}
    holding = tun_users.find(attached)
    return [(link, interfaces.who(holding.get(link.name, []), link.name in attached))
            for link in chosen]


def explain_busy(name: str) -> str | None:
    """Who holds a TUN or TAP of this network namespace open, for an error's sentence:
    "firecracker (pid 123)"; None if nobody does, or there is none of that name."""
    with LinkSocket() as netlink:
        chosen = [link for link in netlink.links() if link.name == name and link.tun is not None]
    return next((who for _, who in _busy(chosen)), None)


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
    ("HELD BY", lambda entry: interfaces.held_by(entry["tuntap"]) or "nobody"),
)


def show(taps: Sequence[dict[str, Any]]) -> str:
    """A table for a terminal."""
    if not taps:
        return "no persistent TAP in this network namespace; `fastpump tap create` makes one"
    rows = [[title for title, _ in _COLUMNS],
            *([interfaces.printable(cell(entry)) for _, cell in _COLUMNS] for entry in taps)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(
        row, widths, strict=True)).rstrip() for row in rows)
