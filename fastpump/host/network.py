"""What a tunnel of a file changes on the host: addresses, MTU, routes, rules, firewall, DNS.

The wanted state is described whole (HostNet), and the host is changed to it step by step; so coming
up, a reload, and going on after a failed step are the same.

Addresses and routes go away with the interface. Rules, firewall and DNS do not: they are written
down in /run/fastpump/<network namespace>/<interface>.json before they are made. The process
holds a lock on that file while it lives, and undoes them however it ends; if it is killed, whoever
asks for its Leftover does.

PreDown and PostDown are in that record, too. They are run by `down`, not by the process: so it
leaves the record with those that are still to be run, and `down` removes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastpump import paths
from fastpump.errors import SystemSetupError
from fastpump.host import attach_undo, firewall
from fastpump.host.down_commands import DownCommands
from fastpump.host.undo_record import Record, namespace_cookie
from fastpump.ip import Interface, Network
from fastpump.netlink import links, routes

log = logging.getLogger("fastpump")

SRC_VALID_MARK = Path("/proc/sys/net/ipv4/conf/all/src_valid_mark")


@dataclass(frozen=True, slots=True)
class HostNet:
    """`mtu` 0: left alone. `routes`: (destination, routing table). `default_table`: where
    default routes are that rules lead to; 0: nowhere."""

    addresses: tuple[Interface, ...] = ()
    mtu: int = 0
    routes: tuple[tuple[Network, int], ...] = ()
    default_table: int = 0
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()

    @property
    def versions(self) -> tuple[int, ...]:
        """IP versions whose default route needs rules."""
        return tuple(sorted({network.version for network, table in self.routes
                             if self.default_table and table == self.default_table}))

    @property
    def has_dns(self) -> bool:
        """Whether resolvconf has a record of ours."""
        return bool(self.dns or self.dns_search)


class HostState:
    """What is done for one interface."""

    def __init__(self, name: str, commands: DownCommands) -> None:
        """Takes the record; SystemSetupError if another process has it."""
        self._commands = commands
        self._name = name
        self._record = _open_record(name)
        self._ruled: tuple[int, ...] = ()
        """IP versions that have rules."""
        self._may_lack_routes = False
        """They go with the last address of an IP version."""
        self.done = HostNet()
        self._write(self.done)

    def set_commands(self, commands: DownCommands) -> None:
        """What `down` is to run."""
        self._commands = commands
        self._write(self.done)

    def change(self, index: int, wanted: HostNet) -> list[str]:
        """Do what is missing, undo what is too much: what was changed, in words.
        SystemSetupError when a step fails; those before it are done, and recorded."""
        changed = []
        self._write(wanted)
        # Rules before routes: a rule that leads to a table without routes leads nowhere, but with
        # the default route there, only both rules together leave the other networks alone.
        for what, step in (("the addresses", self._change_addresses), ("the MTU", self._change_mtu),
                           ("DNS", self._change_dns), ("the rules", self._change_rules),
                           ("the routes", self._change_routes)):
            if step(index, wanted):
                changed.append(what)
        self._write(wanted)
        return changed

    def _change_addresses(self, index: int, wanted: HostNet) -> bool:
        old, new = self.done.addresses, wanted.addresses
        if old == new:
            return False
        routes.change_addresses(index, [each for each in old if each not in new], new)
        self.done = replace(self.done, addresses=new)
        self._may_lack_routes = True
        if self._ruled:
            firewall.protect(self._name, new, self.done.default_table)
        return True

    def _change_mtu(self, index: int, wanted: HostNet) -> bool:
        if wanted.mtu in (0, self.done.mtu):
            return False
        links.set_mtu(links.get(index), wanted.mtu)
        self.done = replace(self.done, mtu=wanted.mtu)
        return True

    def _change_dns(self, _index: int, wanted: HostNet) -> bool:
        if (self.done.dns, self.done.dns_search) == (wanted.dns, wanted.dns_search):
            return False
        if wanted.has_dns:
            firewall.set_dns(self._name, wanted.dns, wanted.dns_search)
        else:
            firewall.unset_dns(self._name)
        self.done = replace(self.done, dns=wanted.dns, dns_search=wanted.dns_search)
        return True

    def _change_routes(self, index: int, wanted: HostNet) -> bool:
        old, new = self.done.routes, wanted.routes
        if old == new and not self._may_lack_routes:
            return False
        kept = set(new)
        routes.change_routes(index, [each for each in old if each not in kept], new)
        self.done = replace(self.done, routes=new)
        self._may_lack_routes = False
        return set(old) != kept

    def _change_rules(self, _index: int, wanted: HostNet) -> bool:
        if self._ruled == wanted.versions:
            return False
        for version in self._ruled:
            if version not in wanted.versions:
                routes.remove_default_rules(version, self.done.default_table)
                self._ruled = tuple(each for each in self._ruled if each != version)
        self.done = replace(self.done, default_table=wanted.default_table)
        if not wanted.versions:
            firewall.unprotect(self._name)
            return True
        if 4 in wanted.versions:
            _validate_sources_by_mark()
        # Before the rules: no default route without it, also when a step fails.
        firewall.protect(self._name, wanted.addresses, wanted.default_table)
        for version in wanted.versions:
            if version not in self._ruled:
                routes.add_default_rules(version, wanted.default_table)
                self._ruled = tuple(sorted((*self._ruled, version)))
        return True

    def _write(self, wanted: HostNet) -> None:
        """Write down what must be undone if we are killed: what is done, and what is about
        to be."""
        self._record.write({
            "namespace": namespace_cookie(), "commands": self._commands.to_json(),
            "table": wanted.default_table or self.done.default_table,
            "versions": sorted({*self._ruled, *wanted.versions}),
            "has_dns": self.done.has_dns or wanted.has_dns})

    def undo(self, *, keeps_commands: bool) -> None:
        """Undo what does not go away with the interface, and give up the record. It stays if there
        are commands in it that are to be run still."""
        _undo(self._name, self._record.read())
        if keeps_commands and self._commands:
            self._record.write({"namespace": namespace_cookie(), "has_ended": True,
                                "commands": self._commands.to_json()})
            self._record.release()
        else:
            self._record.remove()


def _validate_sources_by_mark() -> None:
    """Have the reverse path filter look at marks. In a container, where it may be read-only, it is
    often set already."""
    try:
        if SRC_VALID_MARK.read_text().strip() != "1":
            SRC_VALID_MARK.write_text("1")
    except OSError as error:
        raise SystemSetupError(
            "a default route through the tunnel needs net.ipv4.conf.all.src_valid_mark = 1, which "
            f"cannot be set here ({error.strerror}); set it where this container is started, with "
            "--sysctl net.ipv4.conf.all.src_valid_mark=1 for instance") from None


class Leftover:
    """What is left of a tunnel that did not end by `down`. Nobody else can have it meanwhile."""

    def __init__(self, name: str, record: Record | None) -> None:
        """`find_leftover` makes them. `record` None: all is undone."""
        self._name = name
        self._record = record
        self._said = {} if record is None else record.read()
        self.was_killed = not self._said.get("has_ended", False)
        self.commands = DownCommands() if record is None else _commands(record, self._said)

    def undo(self) -> None:
        """Undo what does not go away with the interface."""
        _undo(self._name, self._said)

    def forget(self) -> None:
        """All is undone, and the commands were run."""
        if self._record is not None:
            self._record.remove()


def find_leftover(name: str) -> Leftover | None:
    """What is left of the tunnel that was called so. SystemSetupError if its process lives."""
    was_attached = attach_undo.recover(name)
    if not _record_file(name).exists():
        return Leftover(name, None) if was_attached else None
    return Leftover(name, _open_record(name))


def commands_of_running(name: str) -> DownCommands:
    """What `down` is to run for a tunnel whose file cannot be read any more."""
    record = Record.peek(_record_file(name))
    if record is None:
        return DownCommands()
    try:
        return _commands(record, record.read())
    finally:
        record.release()


def _open_record(name: str) -> Record:
    record = Record.take(_record_file(name))
    if record is None:
        raise SystemSetupError(f"the tunnel that was brought up as {name} still runs: it is just "
                               "ending, or has another name or network namespace by now: fastpump "
                               "status")
    return record


def _record_file(name: str) -> Path:
    return paths.runtime_dir() / f"{name}.json"


def _commands(record: Record, said: dict[str, Any]) -> DownCommands:
    """Those in a record; none of a namespace that is gone, or that others can have written."""
    if "commands" not in said or said.get("namespace") != namespace_cookie():
        return DownCommands()
    if not record.is_trusted:
        log.warning("%(file)s can be written by others: the commands in it are not run",
                    {"file": record.path})
        return DownCommands()
    try:
        return DownCommands.from_json(said["commands"])
    except ValueError as error:
        log.warning("%(file)s cannot be read (%(error)s): PreDown and PostDown are not run",
                    {"file": record.path, "error": error})
        return DownCommands()


def _undo(name: str, said: dict[str, Any]) -> None:
    """Undo what a record says, as far as it is there; errors go to the log."""
    versions = said.get("versions", [])
    for version in versions:
        _tolerate(routes.remove_default_rules, version, said.get("table", 0))
    if versions:
        _tolerate(firewall.unprotect, name)
    if said.get("has_dns", False):
        _tolerate(firewall.unset_dns, name)


def _tolerate(step: Callable[..., None], *args: object) -> None:
    try:
        step(*args)
    except SystemSetupError as error:
        log.warning("%(error)s", {"error": error})
