"""DNS as this host has it, in one of three ways. The first that fits is chosen when a tunnel first
sets DNS, and stays the tunnel's until it unsets it:

resolved    /etc/resolv.conf is systemd-resolved's, and that runs in this network namespace (another
            one's has other interfaces): `resolvectl`, for the tunnel's interface, which takes the
            settings with it when it goes.
resolvconf  There is a resolvconf(8), Debian's or openresolv: a record in it. Not where that is
            another name of resolvectl.
file        /etc/resolv.conf itself (host/resolv_conf.py).

The way is in the tunnel's record (host/network.py) before anything is done.
"""

from __future__ import annotations

import logging
import re
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastpump import paths
from fastpump.host import programs, resolv_conf
from fastpump.host.resolv_conf import RESOLV_CONF

log = logging.getLogger("fastpump")

RESOLVED, RESOLVCONF, FILE = "resolved", "resolvconf", "file"
RESOLVED_FILES = Path("/run/systemd/resolve")
RESOLVED_STUBS = {"127.0.0.53", "127.0.0.54"}
RESOLVED_COMMAND = "systemd-resolve"      # the kernel keeps 15 characters
RESOLVCONF_ORDER = Path("/etc/resolvconf/interface-order")
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Way:
    """How a tunnel sets DNS. `index`: of its interface, for resolved. `is_set`: whether that was
    done, not only begun."""

    by: str
    index: int = 0
    is_set: bool = False

    def done(self) -> Way:
        """It is set."""
        return replace(self, is_set=True)

    def to_json(self) -> list[str | int | bool]:
        """For a record."""
        return [self.by, self.index, self.is_set]


def way_in(said: Mapping[str, Any]) -> Way | None:
    """The way in a record; None if nothing was done about DNS."""
    if not said.get("has_dns", False):
        return None
    if "dns" not in said:       # of an earlier version
        return Way(RESOLVCONF)
    return Way(*said["dns"]) if said["dns"] else None


def choose(index: int, way: Way | None) -> Way:
    """The way for the tunnel with that interface, which has `way` so far, or inherits it from one
    that was killed, whose interface is gone."""
    if way is not None and (way.by != RESOLVED or way.index == index):
        return way
    if _is_of_resolved() and shutil.which("resolvectl") and _resolved_runs():
        return Way(RESOLVED, index)
    return Way(RESOLVCONF if _has_resolvconf() else FILE)


def set_dns(way: Way, record: Path, servers: Sequence[str], domains: Sequence[str]) -> None:
    """Use these servers and search domains, before and instead of others, for the tunnel with that
    record. SystemSetupError."""
    if way.by == RESOLVED:
        _ask_resolved("dns", way, *servers or [""])
        # "~.": all names, also where other interfaces have servers.
        _ask_resolved("domain", way, *["~."][:len(servers)], *domains)
        _ask_resolved("default-route", way, "yes" if servers else "no")
    elif way.by == RESOLVCONF:
        text = "".join(f"nameserver {server}\n" for server in servers)
        text += f"search {' '.join(domains)}\n" if domains else ""
        # -x: no servers but these; openresolv would leave none at all if there are none.
        _ask_resolvconf(text, "-a", _resolvconf_record(record.stem), "-m", "0",
                        *["-x"][:len(servers)])
    else:
        resolv_conf.add(record, servers, domains)


def unset_dns(way: Way, record: Path) -> None:
    """Undo that."""
    if way.by == RESOLVED:
        if _exists(way.index):
            _ask_resolved("revert", way)
    elif way.by == RESOLVCONF:
        _ask_resolvconf("", "-d", _resolvconf_record(record.stem), "-f")
    elif not resolv_conf.remove(record) and way.is_set:
        log.warning("%(file)s was changed by another program meanwhile, and stays as it is",
                    {"file": RESOLV_CONF})


# -- systemd-resolved

def _is_of_resolved() -> bool:
    """Whether /etc/resolv.conf leads to a file of systemd-resolved's, or to its server."""
    if RESOLVED_FILES in RESOLV_CONF.resolve().parents:
        return True
    try:
        lines = RESOLV_CONF.read_bytes().decode(errors="replace").splitlines()
    except OSError:
        return False
    return any(words[:1] == ["nameserver"] and words[1:2] and words[1] in RESOLVED_STUBS
               for words in map(str.split, lines))


def _resolved_runs() -> bool:
    """Whether there is a process of it in this network namespace: asked by D-Bus, that of another
    would take our interface's index for one of its own."""
    own = paths.namespace_inode()
    for process in _PROC.iterdir():
        if not process.name.isdigit():
            continue
        try:
            if (process / "comm").read_text(errors="replace").strip() == RESOLVED_COMMAND \
                    and (process / "ns" / "net").stat().st_ino == own:
                return True
        except OSError:     # it has ended
            continue
    return False


def _exists(index: int) -> bool:
    try:
        return bool(socket.if_indextoname(index))
    except OSError:
        return False


def _ask_resolved(verb: str, way: Way, *words: str) -> None:
    """By the interface's index: it may have another name by now."""
    programs.run(["resolvectl", verb, str(way.index), *words], "", "systemd-resolved", "DNS")


# -- resolvconf

def _has_resolvconf() -> bool:
    program = shutil.which("resolvconf")
    return program is not None and Path(program).resolve().name != "resolvectl"


def _ask_resolvconf(text: str, *words: str) -> None:
    programs.run(["resolvconf", *words], text, "openresolv", "DNS")


def _resolvconf_record(name: str) -> str:
    """The name of our record. Debian's resolvconf orders records by their prefix: that of
    the first pattern like `tun*` in its list. It may have left that list behind where resolvconf is
    a link to another program by now, which wants the interface's name."""
    program = shutil.which("resolvconf")
    if program is not None and Path(program).is_symlink():
        return name
    try:
        lines = RESOLVCONF_ORDER.read_text().splitlines()
    except OSError:
        return name
    found = (re.fullmatch(r"([A-Za-z0-9-]+)\*", line.strip()) for line in lines)
    return next((f"{match[1]}.{name}" for match in found if match), name)
