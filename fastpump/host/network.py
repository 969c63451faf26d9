"""What a tunnel of IP packets changes on the host: addresses, MTU, routes, rules, firewall, DNS.

The wanted state is described whole (HostNet), and the host is changed to it step by step, by what
the kernel has at that moment; so coming up, a reload, going on after a failed step, and putting
back what somebody else has removed are the same.

Addresses and routes go away with the interface. Rules, firewall and DNS do not: they are written
down in /run/fastpump/<network namespace>/<interface>.json before they are made. The process
holds a lock on that file while it lives, and undoes them however it ends; if it is killed, whoever
asks for its Leftover does. All of it means something in that network namespace only: what a record
says of another one, which is gone, is passed over.

Several tunnels, and wg-quick(8), may have a default route at the same time. Each has a routing
table of its own (host/full_tunnel.py: which routes are there): it is taken from those that no
route, rule or record names, by one process at a time, and is in the record from then on. Their
rules differ in priority, by which they are removed.

Such a tunnel fails closed. Before rules lead to its table, each of its networks has an unreachable
route there, which is worse than that through the interface, and stays when that goes: when it is
set down, or its process is killed. Who takes the record of a killed tunnel over has what is in it
from then on, rules and all, and changes it to what is wanted: in between, nothing goes in clear.
The order of the steps sees to it, too: closed first, then rules, then routes; and back again.

PreDown and PostDown are in that record, too. They are run by `down`, not by the process: so it
leaves the record with those that are still to be run, and `down` removes it.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastpump import paths
from fastpump.errors import SystemSetupError
from fastpump.host import (
    attach_undo,
    dns,
    gateway,
    kill_switch,
    protection,
    resolv_conf,
)
from fastpump.host.down_commands import DownCommands
from fastpump.host.kill_switch import KillSwitch
from fastpump.host.undo_record import Record, locked, namespace_cookie
from fastpump.ip import Interface, Network
from fastpump.netlink import links, routes, rules
from fastpump.netlink.rules import TableRules

log = logging.getLogger("fastpump")

SUFFIX = ".json"
# The steps of a change, as `reload` names them.
ADDRESSES, FIREWALL, MTU, DNS, RULES, ROUTES = (
    "the addresses", "the firewall", "the MTU", "DNS", "the rules", "the routes")
KILL_SWITCH = "the kill switch"
CLOSED, OPENED = "unreachable routes", "the rules that are not needed any more"     # not named
SRC_VALID_MARK = Path("/proc/sys/net/ipv4/conf/all/src_valid_mark")


@dataclass(frozen=True, slots=True)
class HostNet:
    """`mtu` 0: left alone. `routes`: (destination, routing table). `default_table`: where
    routes are that rules lead to; 0: nowhere."""

    addresses: tuple[Interface, ...] = ()
    mtu: int = 0
    routes: tuple[tuple[Network, int], ...] = ()
    default_table: int = 0
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    kill_switch: KillSwitch | None = None

    @property
    def closed(self) -> frozenset[tuple[Network, int]]:
        """The routes that rules lead to, as (destination, table)."""
        everything = () if self.kill_switch is None else self.kill_switch.networks
        return frozenset((network, table) for network, table in (
            *self.routes, *((network, self.default_table) for network in everything))
            if self.default_table and table == self.default_table)

    def rules(self, interface: str) -> list[TableRules]:
        """The rules that lead to them, of a priority yet to be found."""
        networks = [network for network, _ in self.closed]
        return [self._rules_of(version, interface, [
            network for network in networks if network.version == version])
            for version in sorted({network.version for network in networks})]

    def _rules_of(self, version: int, interface: str, networks: list[Network]) -> TableRules:
        if self.kill_switch is not None:
            return TableRules(version, self.default_table, 0, (), interface,
                              self.kill_switch.exceptions(version))
        return TableRules(version, self.default_table, 0, tuple(
            sorted({network.prefixlen for network in networks}, reverse=True)))

    @property
    def has_dns(self) -> bool:
        """Whether DNS is to be the tunnel's."""
        return bool(self.dns or self.dns_search)


class HostState:
    """What is done for one interface."""

    def __init__(self, name: str, commands: DownCommands) -> None:
        """Takes the record; SystemSetupError if another process has it."""
        self._commands = commands
        self._name = name
        self._record = _open_record(name)
        self._writing = threading.Lock()
        """`set_commands` may come while a thread changes the host."""
        left = self._record.read()
        if not _is_of_here(left):
            left = {}
        self._rules: list[TableRules] = _rules_of(left)
        self._kill_switch = kill_switch.table(name)
        self._has_kill_switch: bool = left.get("has_kill_switch", False)
        self._closed: set[tuple[Network, int]] = _closed_of(left)
        """Networks that have an unreachable route, and in which table."""
        self._protection = protection.table(name)
        self._protected: tuple[tuple[Interface, ...], int] | None = (
            ((), 0) if left.get("is_protected", False) else None)
        """What that was made of."""
        self.is_taken_over = bool(self._rules or self._closed or self._has_kill_switch)
        """Whether a killed tunnel left it closed."""
        self._endpoints: Mapping[str, str] = left.get("endpoints", {})
        self._is_dns_half_done: bool = left.get("has_dns", False)
        self._dns = dns.way_in(left)
        self.done = HostNet(default_table=left.get("table", 0) if self.is_taken_over else 0)
        """Where a step failed: what is there at most."""
        self._wanted = self.done
        self._write()

    def set_endpoints(self, endpoints: Mapping[str, str]) -> bool:
        """Where the peers are that were given by a name: NAME:PORT, and the address. False if that
        was known."""
        if endpoints == self._endpoints:
            return False
        self._endpoints = endpoints
        self._write()
        return True

    def set_commands(self, commands: DownCommands) -> None:
        """What `down` is to run."""
        self._commands = commands
        self._write()

    def take_table(self, fixed: int, first: int) -> int:
        """The routing table that rules lead to: `fixed`, else the one that we have, else the first
        unused one from `first` on. It is ours from now on, also while nothing is in it."""
        if self.done.default_table and fixed in (0, self.done.default_table):
            return self.done.default_table
        with locked(self._record.path.parent):
            table = fixed or routes.unused_table(first, _tables_of_others(self._record.path))
            self.done = replace(self.done, default_table=table)
            self._write()
        return table

    def change(self, index: int, wanted: HostNet) -> list[str]:
        """Do what is missing, undo what is too much: what was changed, in words.
        SystemSetupError when a step fails; those before it are done, and recorded."""
        changed = []
        self._wanted = wanted
        self._write()
        # Rules before routes: with the default route there, only all rules together leave the other
        # networks alone. And the firewall before both: no default route without it.
        for what, step in ((KILL_SWITCH, self._change_kill_switch),
                           (ADDRESSES, self._change_addresses), (FIREWALL, self._change_firewall),
                           (MTU, self._change_mtu), (DNS, self._change_dns),
                           (CLOSED, self._close), (RULES, self._change_rules),
                           (ROUTES, self._change_routes), (OPENED, self._reopen)):
            if step(index, wanted):
                changed.append(RULES if what == OPENED else what)
        if not {CLOSED, RULES, ROUTES}.isdisjoint(changed) and any(
                table == wanted.default_table and network.version == 6
                for network, table in (*wanted.routes, *wanted.closed)):
            routes.forget_default_routes()
        self._write()
        return list(dict.fromkeys(what for what in changed if what != CLOSED))

    def restore(self, index: int) -> list[str]:
        """Put back what somebody else has taken away, or the kernel when the interface was set
        down: what that was, in words."""
        return self.change(index, self._wanted)

    def _change_kill_switch(self, _index: int, wanted: HostNet) -> bool:
        """`_reopen` removes it."""
        switch = wanted.kill_switch
        if switch is None or (switch == self.done.kill_switch and self._kill_switch.is_as_made()):
            return False
        if not self._has_kill_switch:
            self._refuse_second_kill_switch()
        self._has_kill_switch = True
        self._write()
        self._kill_switch.make(kill_switch.chains(self._name, wanted.default_table, switch))
        self.done = replace(self.done, kill_switch=switch)
        return True

    def _refuse_second_kill_switch(self) -> None:
        for path, said in _records_of_others(self._record.path):
            if said.get("has_kill_switch", False):
                other = path.name.removesuffix(SUFFIX)
                raise SystemSetupError(
                    f"{other} has a kill switch, which would keep the datagrams of {self._name} "
                    f"from leaving, and the other way round: only one tunnel of a host can have "
                    f"one; `fastpump down {other}` ends that one")

    def _change_addresses(self, index: int, wanted: HostNet) -> bool:
        old, new = self.done.addresses, wanted.addresses
        self.done = replace(self.done, addresses=(*old, *new))
        is_changed = routes.change_addresses(index, [each for each in old if each not in new], new)
        self.done = replace(self.done, addresses=new)
        return is_changed

    def _change_firewall(self, _index: int, wanted: HostNet) -> bool:
        """As long as there are rules: `_reopen` removes it after them."""
        protected = wanted.addresses, wanted.default_table
        if not wanted.closed or (self._protected == protected and self._protection.is_as_made()):
            return False
        self._protection.make(protection.chains(self._name, *protected))
        self._protected = protected
        return True

    def _change_mtu(self, index: int, wanted: HostNet) -> bool:
        if wanted.mtu in (0, self.done.mtu):
            return False
        links.set_mtu(links.get(index), wanted.mtu)
        self.done = replace(self.done, mtu=wanted.mtu)
        return True

    def _change_dns(self, index: int, wanted: HostNet) -> bool:
        if (self.done.dns, self.done.dns_search) == (wanted.dns, wanted.dns_search) \
                and not self._is_dns_half_done:
            return False
        self._is_dns_half_done = True
        if wanted.has_dns:
            self._dns = dns.choose(index, self._dns)
            self._write()
            dns.set_dns(self._dns, self._record.path, wanted.dns, wanted.dns_search)
            self._dns = self._dns.done()
        elif self._dns is not None:
            dns.unset_dns(self._dns, self._record.path)
            self._dns = None
        self.done = replace(self.done, dns=wanted.dns, dns_search=wanted.dns_search)
        self._is_dns_half_done = False
        return True

    def _close(self, _index: int, wanted: HostNet) -> bool:
        there = {(network, table) for table in {table for _, table in wanted.closed}
                 for network in routes.closed(table)}
        missing = sorted(wanted.closed - (self._closed & there), key=str)
        for network, table in missing:
            if (network, table) in there:
                raise SystemSetupError(
                    f"the routing table {table} has routes of another tunnel (there is one already "
                    f"to {network}): choose another firewall mark, whose number the table has")
            self._closed.add((network, table))
            self._write()
            try:
                routes.close(network, table)
            except BaseException:
                self._closed.discard((network, table))
                self._write()
                raise
        return bool(missing)

    def _change_rules(self, _index: int, wanted: HostNet) -> bool:
        """Add those that are missing."""
        restored = [each for each in self._rules if rules.add_missing(each)]
        self.done = replace(self.done, default_table=wanted.default_table
                            or self.done.default_table)
        there = [replace(each, priority=0) for each in self._rules]
        missing = [each for each in wanted.rules(self._name) if each not in there]
        if any(each.version == 4 for each in missing):
            _validate_sources_by_mark()
        for each in missing:
            self._add_rules(each)
        return bool(restored or missing)

    def _add_rules(self, wanted: TableRules) -> None:
        is_added = False
        while not is_added:     # other programs may add theirs just now
            with locked(self._record.path.parent):     # and other tunnels
                made = replace(wanted, priority=rules.unused_priority(wanted.version,
                                                                      wanted.count))
                self._rules.append(made)
                self._write()
                try:
                    is_added = rules.add(made)
                finally:
                    if not is_added:
                        self._rules.remove(made)

    def _reopen(self, _index: int, wanted: HostNet) -> bool:
        """Remove the rules, the firewall and the unreachable routes that are not wanted any
        more."""
        stays = wanted.rules(self._name)
        gone = [each for each in self._rules if replace(each, priority=0) not in stays]
        for each in gone:
            rules.remove(each)
            self._rules.remove(each)
        if self._protected is not None and not wanted.closed:
            self._protection.remove()
            self._protected = None
        for network, table in sorted(self._closed - wanted.closed, key=str):
            routes.reopen(network, table)
            self._closed.remove((network, table))
        if self._has_kill_switch and wanted.kill_switch is None:
            self._kill_switch.remove()
            self._has_kill_switch = False
            self.done = replace(self.done, kill_switch=None)
        return bool(gone)

    def _change_routes(self, index: int, wanted: HostNet) -> bool:
        """An interface that is down has none: they come when it is up again."""
        if not links.get(index).is_up:
            return False
        old, new = self.done.routes, wanted.routes
        kept = set(new)
        self.done = replace(self.done, routes=(*old, *new))
        is_changed = routes.change_routes(index, [each for each in old if each not in kept], new)
        self.done = replace(self.done, routes=new)
        return is_changed

    def _write(self) -> None:
        """Write down what must be undone if we are killed: what is done, and what is about
        to be."""
        with self._writing:
            self._record.write({
                "namespace": namespace_cookie(), "commands": self._commands.to_json(),
                "table": self.done.default_table or self._wanted.default_table,
                "rules": [each.to_json() for each in list(self._rules)],
                "has_kill_switch": self._has_kill_switch,
                "endpoints": dict(self._endpoints),
                "closed": sorted((str(network), table) for network, table in list(self._closed)),
                "is_protected": self._protected is not None or bool(self._wanted.closed),
                "has_dns": self.done.has_dns or self._wanted.has_dns or self._is_dns_half_done,
                "dns": None if self._dns is None else self._dns.to_json()})

    def undo(self, *, keeps_commands: bool) -> None:
        """Undo what does not go away with the interface, and give up the record. It stays if there
        are commands in it that are to be run still."""
        self._kill_switch.release()
        _undo(self._name, self._record.read())
        if keeps_commands and self._commands:
            self._record.write({"namespace": namespace_cookie(), "has_ended": True,
                                "commands": self._commands.to_json()})
            self._record.release()
        else:
            self._record.remove()

    def leave_closed(self, *, keeps_commands: bool) -> None:
        """Undo nothing, as if we were killed, and give up the record. `keeps_commands`: whether
        those in it are to be run still."""
        if not keeps_commands:
            self.set_commands(DownCommands())
        self._kill_switch.release()
        self._record.write({**self._record.read(), "has_ended": True, "is_left": True})
        self._record.release()

    @property
    def nft_tables(self) -> tuple[str, ...]:
        """The names of those that it may have."""
        return self._protection.name, self._kill_switch.name

    @property
    def is_closed(self) -> bool:
        """Whether anything is that others would route otherwise."""
        return bool(self._rules or self._has_kill_switch)


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
        self.is_left = bool(self._said.get("is_left", False))
        """By `down --keep-closed`."""
        self.is_closed = _says_closed(self._said)
        """Whether it keeps packets from going in clear."""
        self.commands = DownCommands() if record is None else _commands(record, self._said)

    def undo(self) -> None:
        """Undo what does not go away with the interface."""
        _undo(self._name, self._said)

    def keep(self) -> None:
        """The commands were run; the next tunnel of that name takes all else over."""
        if self._record is not None:
            self._record.write({**self._said, "commands": DownCommands().to_json()})
            self._record.release()

    def forget(self) -> None:
        """All is undone, and the commands were run."""
        if self._record is not None:
            self._record.remove()

    @property
    def is_empty(self) -> bool:
        """Whether it is of a `fastpump tunnel` that has left nothing."""
        commands = self._said.get("commands")
        return isinstance(commands, dict) and commands.get("file") == "" and not any(
            self._said.get(each) for each in ("rules", "closed", "is_protected", "has_dns",
                                              "has_kill_switch"))


def find_leftover(name: str, *, masquerades: bool = False) -> Leftover | None:
    """What is left of the tunnel that was called so. SystemSetupError if its process lives.
    `masquerades`: the next one of that name, which takes over what is left of a gateway."""
    was_there = attach_undo.recover(name)
    if not masquerades:
        was_there |= gateway.recover(name)
    was_there |= resolv_conf.forget_gone(name)
    if not _record_file(name).exists():
        return Leftover(name, None) if was_there else None
    return Leftover(name, _open_record(name))


@dataclass(frozen=True, slots=True)
class Closed:
    """A killed tunnel that is still closed; false if there is none."""

    table: int = 0
    """Its routing table, which is the mark of what may leave."""
    endpoints: Mapping[str, str] = field(default_factory=dict)
    """As HostState.set_endpoints has it: name servers may be out of reach now."""

    def __bool__(self) -> bool:
        return bool(self.table)


def find_closed(name: str) -> Closed:
    """Of the tunnel that was called so."""
    record = Record.peek(_record_file(name))
    if record is None:
        return Closed()
    try:
        said = record.read()
    finally:
        record.release()
    if not _says_closed(said):
        return Closed()
    return Closed(int(said.get("table", 0)), dict(said.get("endpoints", {})))


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
    return paths.runtime_dir() / f"{name}{SUFFIX}"


def _tables_of_others(own: Path) -> set[int]:
    """The routing tables that are in other records, of living tunnels and killed ones."""
    return {table for _, said in _records_of_others(own)
            for table in (said.get("table", 0), *(each.table for each in _rules_of(said)))}


def _records_of_others(own: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The other records, and what they say, in this network namespace."""
    for path in own.parent.glob(f"*{SUFFIX}"):
        record = None if path == own else Record.peek(path)
        if record is not None:
            said = record.read()
            record.release()
            if _is_of_here(said):
                yield path, said


def _says_closed(said: dict[str, Any]) -> bool:
    """Whether a tunnel keeps packets from going in clear, by its record."""
    return bool(said.get("rules") or said.get("has_kill_switch")) and _is_of_here(said)


def _is_of_here(said: dict[str, Any]) -> bool:
    """Whether a record is of this network namespace. Another one, which is gone, may have had its
    inode, and so its directory."""
    return said.get("namespace") == namespace_cookie()


def _commands(record: Record, said: dict[str, Any]) -> DownCommands:
    """Those in a record; none of a namespace that is gone, or that others can have written."""
    if "commands" not in said or not _is_of_here(said):
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
    if not _is_of_here(said):
        return
    for each in _rules_of(said):
        _tolerate(rules.remove, each)
    for network, table in _closed_of(said):
        _tolerate(routes.reopen, network, table)
    if any(network.version == 6 for network, _ in _closed_of(said)):
        _tolerate(routes.remove_nobody)     # it may have been killed just then
    if said.get("is_protected", False):
        _tolerate(protection.table(name).remove)
    if (way := dns.way_in(said)) is not None:
        _tolerate(dns.unset_dns, way, _record_file(name))
    if said.get("has_kill_switch", False):
        _tolerate(kill_switch.table(name).remove)


def _rules_of(said: dict[str, Any]) -> list[TableRules]:
    """Those in a record."""
    return [TableRules.from_json(each) for each in said.get("rules", [])]


def _closed_of(said: dict[str, Any]) -> set[tuple[Network, int]]:
    """The unreachable routes in a record: (destination, table)."""
    return {(ipaddress.ip_network(network), table) for network, table in said.get("closed", [])}


def _tolerate(step: Callable[..., None], *args: object) -> None:
    try:
        step(*args)
    except Exception as error:      # whatever it is, the other steps are undone
        log.warning("%(error)s", {"error": error})
