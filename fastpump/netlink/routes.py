"""Addresses, links and routes. With ports.py and links.py the only user of
pyroute2."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from fastpump.errors import ConfigError, SystemSetupError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


# include/uapi/linux/rtnetlink.h, fib_rules.h
TABLE_MAIN = 254
SCOPE_LINK = 253
PROTO_STATIC = 4
RULE_PRIORITY_MAIN = 32766
FIB_RULE_INVERT = 2
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
OUTER_OVERHEAD = 80     # IPv6, UDP, WireGuard's 32
TABLE_NAMES = (Path("/etc/iproute2/rt_tables"), Path("/usr/share/iproute2/rt_tables"),
               Path("/usr/lib/iproute2/rt_tables"))


def configure(name: str, index: int, addresses: Iterable[Interface], mtu: int,
              routes: Iterable[Network]) -> None:
    """Set the MTU, add addresses, bring the interface up, add routes through it.

    Everything is the interface's own, and goes with it.
    """
    addresses = list(addresses)
    with IPRoute() as route:
        _do(f"the MTU {mtu} of {name} cannot be set", route.link, "set", index=index, mtu=mtu)
        for address in addresses:
            _address(route, "add", index, address)
        _do(f"{name} cannot be brought up", route.link, "set", index=index, state="up")
        connected = {address.network for address in addresses}
        for network in routes:
            if network not in connected:
                _route(route, "add", index, network, TABLE_MAIN)


def _address(route: IPRoute, verb: str, index: int, address: Interface) -> None:
    _do(f"cannot {verb} the address {address}", route.addr, verb, index=index,
        address=str(address.ip), prefixlen=address.network.prefixlen)


def _route(route: IPRoute, verb: str, index: int, network: Network, table: int) -> None:
    _do(f"cannot {verb} the route to {network} through the tunnel", route.route, verb,
        dst=str(network), oif=index, family=FAMILIES[network.version], table=table,
        **({"scope": SCOPE_LINK} if network.version == 4 else {}))


def change_addresses(index: int, gone: Iterable[Interface], wanted: Iterable[Interface]) -> None:
    """Take addresses from an interface as far as it has them, and give it those that it has
    not. New ones first: without any IPv4 address it would lose its IPv4 routes. And again
    afterwards: with the first address of a network go the others of it."""
    wanted = list(wanted)
    with IPRoute() as route:
        def add_missing() -> None:
            there = _addresses(route, index)
            for address in wanted:
                if address not in there:
                    _address(route, "add", index, address)

        add_missing()
        there = _addresses(route, index)
        for address in gone:
            if address in there:
                _address(route, "del", index, address)
        add_missing()


def change_routes(index: int, gone: Iterable[tuple[Network, int]],
                  wanted: Iterable[tuple[Network, int]]) -> None:
    """Remove routes through an interface as far as they are there, and add those that are
    not: (destination, table)."""
    with IPRoute() as route:
        there = _routes(route, index)
        for network, table in gone:
            if (network, table) in there:
                _route(route, "del", index, network, table)
        for network, table in wanted:
            if (network, table) not in there:
                _route(route, "add", index, network, table)


def _addresses(route: IPRoute, index: int) -> list[Interface]:
    return [ipaddress.ip_interface(
        f"{message.get_attr('IFA_LOCAL') or message.get_attr('IFA_ADDRESS')}"
        f"/{message['prefixlen']}") for message in route.get_addr(index=index)]


def _routes(route: IPRoute, index: int) -> set[tuple[Network, int]]:
    """The routes through an interface that we, or a user, added: (destination, table)."""
    found = set()
    for version, family in FAMILIES.items():
        everything = "0.0.0.0" if version == 4 else "::"
        for message in route.get_routes(family=family, oif=index):
            if message["proto"] == PROTO_STATIC:
                network = ipaddress.ip_network(
                    f"{message.get_attr('RTA_DST') or everything}/{message['dst_len']}")
                found.add((network, message.get_attr("RTA_TABLE", message["table"])))
    return found


def bring_up(name: str, index: int) -> None:
    """Set an interface up."""
    with IPRoute() as route:
        _do(f"{name} cannot be brought up", route.link, "set", index=index, state="up")


def addresses_of(index: int) -> list[Interface]:
    """The addresses of an interface, but those that the kernel gave it (link-local)."""
    with IPRoute() as route:
        found = _addresses(route, index)
    return [address for address in found if not (address.version == 6 and address.is_link_local)]


def network_of(address: bytes, prefix_len: int) -> Network:
    """A prefix as a network."""
    return ipaddress.ip_network((address, prefix_len))


def table_number(name: str) -> int:
    """The number of a routing table, by its number or its name in rt_tables."""
    if name.isdigit():
        return int(name)
    known = {"main": TABLE_MAIN, "default": 253, "local": 255}
    for path in TABLE_NAMES:
        with contextlib.suppress(OSError):
            for line in path.read_text().splitlines():
                words = line.partition("#")[0].split()
                if len(words) == 2 and words[0].isdigit():
                    known.setdefault(words[1], int(words[0]))
    if name not in known:
        raise ConfigError(f"there is no routing table {name!r}: give its number, or add the name "
                          f"to {TABLE_NAMES[0]}")
    return known[name]


def unused_table(first: int) -> int:
    """A routing table without routes, `first` or behind it."""
    with IPRoute() as route:
        used = {message.get_attr("RTA_TABLE", message["table"])
                for family in FAMILIES.values() for message in route.get_routes(family=family)}
    return next(table for table in range(first, first + len(used) + 1) if table not in used)


def add_default_rules(version: int, table: int) -> None:
    """Route everything by `table` but what is marked with that number, and what the main
    table has a route for that is no default route. The rules stand before all others."""
    family = FAMILIES[version]
    with IPRoute() as route:
        first = min([rule.get_attr("FRA_PRIORITY") or RULE_PRIORITY_MAIN
                     for rule in route.get_rules(family=family)
                     if rule.get_attr("FRA_PRIORITY")], default=RULE_PRIORITY_MAIN)
        if first < 3:
            raise SystemSetupError("there is a routing rule of priority 1 or 2 already, and those "
                                   "of the tunnel must stand before it; ip rule shows it")
        _do(f"a rule for the routing table {table} cannot be added", route.rule, "add",
            family=family, table=table, fwmark=table, flags=FIB_RULE_INVERT, priority=first - 1)
        _do("a rule for the routing table main cannot be added", route.rule, "add",
            family=family, table=TABLE_MAIN, FRA_SUPPRESS_PREFIXLEN=0, priority=first - 2)


def remove_default_rules(version: int, table: int) -> None:
    """Undo `add_default_rules`, as far as it is there."""
    family = FAMILIES[version]
    with IPRoute() as route:
        ours = [rule.get_attr("FRA_PRIORITY") for rule in route.get_rules(family=family)
                if rule.get_attr("FRA_TABLE") == table and rule["flags"] & FIB_RULE_INVERT
                and rule.get_attr("FRA_FWMARK") == table and rule.get_attr("FRA_PRIORITY")]
        for priority in ours:
            _do("a rule cannot be removed", route.rule, "del", family=family, table=table,
                fwmark=table, flags=FIB_RULE_INVERT, priority=priority)
            with contextlib.suppress(NetlinkError):
                route.rule("del", family=family, table=TABLE_MAIN, FRA_SUPPRESS_PREFIXLEN=0,
                           priority=priority - 1)


def fitting_mtu(endpoints: Iterable[Address]) -> int:
    """An MTU for the tunnel with which datagrams to these endpoints are not fragmented: the
    smallest on the ways there, or that of the default route, less what WireGuard adds."""
    with IPRoute() as route:
        ways = [_path_mtu(route, address) for address in endpoints]
        if not any(ways):
            ways = [_message_mtu(route, message) for message in route.get_default_routes(
                family=socket.AF_INET)]
    return min([mtu for mtu in ways if mtu], default=1500) - OUTER_OVERHEAD


def _path_mtu(route: IPRoute, address: Address) -> int | None:
    try:
        answer = list(route.route("get", dst=str(address), family=FAMILIES[address.version]))
    except NetlinkError:
        return None
    return _message_mtu(route, answer[0]) if answer else None


def _message_mtu(route: IPRoute, message: Any) -> int | None:
    metrics = message.get_attr("RTA_METRICS")
    mtu = None if metrics is None else metrics.get_attr("RTAX_MTU")
    index = message.get_attr("RTA_OIF")
    if mtu is None and index is not None:
        mtu = route.get_links(index)[0].get_attr("IFLA_MTU")
    return mtu if mtu is None else int(mtu)


def set_mac(name: str, index: int, mac: bytes) -> None:
    """Set the MAC address of an interface."""
    with IPRoute() as route:
        _do(f"the MAC address {mac.hex(':')} of {name} cannot be set", route.link, "set",
            index=index, address=mac.hex(":"))


def set_mtu(index: int, mtu: int) -> None:
    """Set the MTU of an interface."""
    with IPRoute() as route:
        _do(f"the MTU {mtu} cannot be set", route.link, "set", index=index, mtu=mtu)


def _do(complaint: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    try:
        call(*args, **kwargs)
    except NetlinkError as error:
        hint = ("" if error.code != errno.EEXIST or "route" not in complaint else
                " (there is one already; --no-routes, or Table = off, leaves routes alone)")
        raise SystemSetupError(f"{complaint}: {error.args[1]}{hint}") from None
    except OSError as error:
        raise SystemSetupError(f"{complaint}: {error}") from None


def likely_address(but_not_of: int, but_not: Collection[Address] = ()) -> str | None:
    """An address at which other hosts probably reach this one: the first global one of
    the interface with the default route, else any global one; but none of the interface
    with the index `but_not_of`, and none of `but_not`."""
    with IPRoute() as route:
        default = {message.get_attr("RTA_OIF")
                   for family in (2, 10)
                   for message in route.get_default_routes(family=family)}
        found = [(message["index"] not in default, message["family"] != 2,
                  message.get_attr("IFA_ADDRESS"))
                 for message in route.get_addr(scope=0) if message["index"] != but_not_of
                 and ipaddress.ip_address(message.get_attr("IFA_ADDRESS")) not in but_not]
    return min(found)[2] if found else None
