"""Routing rules: which packets go by the table of a tunnel.

A tunnel's rules come right before all others, but for that of the local table. In order:

    by the longest prefix   (a full tunnel) A pair for each length of a prefix in the tunnel's
                            table, the longest first: the main table, for what it has a longer
                            prefix for; then the tunnel's, for what it has a prefix of that length
                            for. So among the routes of both the longest prefix wins, and the
                            tunnel's of two equal ones. With a default route alone that is the pair
                            of wg-quick(8).
    strict                  (a kill switch) The main table for a few exceptions; then the tunnel's
                            table for all else, also for what is on the same link.

What leads to the tunnel's table leaves out what has the table's number as its mark.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from fastpump.errors import SystemSetupError
from fastpump.netlink.default_routes import FAMILIES, TABLE_MAIN
from fastpump.netlink.refusal import explaining

FIB_RULE_INVERT = 2             # linux/fib_rules.h
RULE_PRIORITY_MAIN = 32766      # net/ipv4/fib_rules.c
DHCP_PORTS = {4: (68, 67), 6: (546, 547)}
"""Of the client, and of the server, by IP version."""

_UDP = 17


@dataclass(frozen=True, slots=True)
class TableRules:
    """Those of one tunnel in one IP version."""

    version: int
    table: int
    priority: int
    """Of the last one; the others are right before it."""
    lengths: tuple[int, ...] = ()
    """By the longest prefix: the lengths of those in the table, the longest first."""
    interface: str = ""
    """Strict: the tunnel's."""
    exceptions: tuple[str, ...] = ()
    """Strict: destinations that the main table is for."""

    @property
    def count(self) -> int:
        """How many rules that are."""
        return 2 * len(self.lengths) if self.lengths else len(self.exceptions) + 3

    def groups(self) -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
        """In the order in which they count: rules that lead to the main table, and the one behind
        them that leads to the tunnel's; as pyroute2 takes them."""
        found, to_main = [], []
        for rule in self._all():
            if rule["table"] == TABLE_MAIN:
                to_main.append(rule)
            else:
                found.append((to_main, rule))
                to_main = []
        return found

    def in_order_of_adding(self) -> list[dict[str, Any]]:
        """The last one first: of two tunnels at once, one has it. And those to the main table
        before all others, so that what it routes never goes astray."""
        groups = self.groups()
        return [*(rule for to_main, _ in reversed(groups) for rule in reversed(to_main)),
                *(to_table for _, to_table in groups)]

    def _all(self) -> list[dict[str, Any]]:
        """In the order in which they count."""
        matches = self._by_length() if self.lengths else self._strict()
        first = self.priority + 1 - len(matches)
        return [{"family": FAMILIES[self.version], "priority": priority, **match}
                for priority, match in enumerate(matches, first)]

    @property
    def _not_ours(self) -> dict[str, Any]:
        return {"table": self.table, "fwmark": self.table, "flags": FIB_RULE_INVERT}

    def _by_length(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for length in self.lengths:
            found += [{"table": TABLE_MAIN, "FRA_SUPPRESS_PREFIXLEN": length},
                      {**self._not_ours, "FRA_SUPPRESS_PREFIXLEN": length - 1}]
        del found[-1]["FRA_SUPPRESS_PREFIXLEN"]     # nothing is shorter
        return found

    def _strict(self) -> list[dict[str, Any]]:
        client, server = DHCP_PORTS[self.version]
        return [
            # What came out of the tunnel may go to networks of this host.
            {"table": TABLE_MAIN, "iifname": self.interface, "FRA_SUPPRESS_PREFIXLEN": 0},
            {"table": TABLE_MAIN, "FRA_IP_PROTO": _UDP,
             "FRA_SPORT_RANGE": f"{client}:{client}", "FRA_DPORT_RANGE": f"{server}:{server}"},
            *({"table": TABLE_MAIN, "dst": network.partition("/")[0],
               "dst_len": int(network.partition("/")[2])} for network in self.exceptions),
            self._not_ours]

    def to_json(self) -> list[Any]:
        """For a record."""
        return [self.version, self.table, self.priority, list(self.lengths), self.interface,
                list(self.exceptions)]

    @classmethod
    def from_json(cls, said: list[Any]) -> TableRules:
        """The reverse; of an older record, which has four items, too."""
        version, table, priority, lengths, interface, exceptions = (*said, "", [])[:6]
        return cls(version, table, priority, tuple(lengths), interface, tuple(exceptions))


def unused_priority(version: int, count: int = 2) -> int:
    """The priority for the last of so many rules of a tunnel, which come before all others."""
    with explaining("the routing rules cannot be read"), IPRoute() as netlink:
        first = min((_priority(rule) for rule in read(netlink, version) if _priority(rule)),
                    default=RULE_PRIORITY_MAIN)
    if first < count + 1:
        raise SystemSetupError(f"there is a routing rule of a priority below {count + 1} "
                               "already, and those of the tunnel must come before it; ip rule "
                               "shows it")
    return first - 1


def add(rules: TableRules) -> bool:
    """Add all of them, or none: False if another program has taken the priority meanwhile."""
    added: list[dict[str, Any]] = []
    with explaining(f"the rules for the routing table {rules.table} cannot be added"), \
            IPRoute() as netlink:
        try:
            for rule in rules.in_order_of_adding():
                netlink.rule("add", **rule)
                added.append(rule)
        except BaseException as error:
            for rule in added:
                netlink.rule("del", **rule)
            if not added and isinstance(error, NetlinkError) and error.code == errno.EEXIST:
                return False
            raise
    return True


def add_missing(rules: TableRules) -> bool:
    """Add those that somebody has removed; whether there were any."""
    with explaining(f"the rules for the routing table {rules.table} cannot be restored"), \
            IPRoute() as netlink:
        there = {(_priority(rule), rule.get_attr("FRA_TABLE", rule["table"]))
                 for rule in read(netlink, rules.version)}
        missing = [rule for rule in rules.in_order_of_adding()
                   if (rule["priority"], rule["table"]) not in there]
        for rule in missing:
            netlink.rule("add", **rule)
    return bool(missing)


def remove(rules: TableRules) -> None:
    """Remove those of them that are ours and are there. Other tunnels have rules like these at
    other priorities."""
    with explaining(f"the rules for the routing table {rules.table} cannot be removed"), \
            IPRoute() as netlink:
        there = list(read(netlink, rules.version))
        ours = {_priority(rule) for rule in there if rule.get_attr("FRA_TABLE") == rules.table
                and rule.get_attr("FRA_FWMARK") == rules.table and rule["flags"] & FIB_RULE_INVERT}
        for to_main, to_table in rules.groups():
            if to_table["priority"] not in ours:
                continue
            netlink.rule("del", **to_table)
            for rule in to_main:
                with contextlib.suppress(NetlinkError):     # wg-quick(8) removes all of this kind
                    netlink.rule("del", **rule)


def read(netlink: IPRoute, version: int) -> Iterator[Any]:
    """The rules of an IP version; none if the kernel lacks it, or rules altogether."""
    try:
        yield from netlink.get_rules(family=FAMILIES[version])
    except NetlinkError as error:
        if error.code not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            raise


def _priority(rule: Any) -> int:
    return int(rule.get_attr("FRA_PRIORITY") or 0)
