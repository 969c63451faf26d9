"""The addresses of interfaces, and routes: tables, and path MTUs.

A router may have a million routes, and decoding one takes 0.3 ms. So the kernel is asked for those
of one interface or one table only.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import itertools
import socket
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink import NETLINK_GET_STRICT_CHK, SOL_NETLINK
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import rt_proto, rt_scope, rt_type

from fastpump.constants import ETHERNET_MTU, MAX_MTU, MIN_MTU
from fastpump.errors import ConfigError, SystemSetupError
from fastpump.ip import Address, Interface, Network
from fastpump.netlink import default_routes, links, rules
from fastpump.netlink.default_routes import FAMILIES, TABLE_MAIN
from fastpump.netlink.links import Link
from fastpump.netlink.refusal import Refusal, explaining

# linux/rtnetlink.h; pyroute2 has none of these.
TABLE_DEFAULT, TABLE_LOCAL = 253, 255
CLOSED_METRIC = 4278198272      # worse than any that others choose; usual for VRFs, too

OUTER_OVERHEAD = 80     # IPv6, UDP, WireGuard's 32
TRIES = 5
NOBODY = ipaddress.ip_network("100::fa57:5f5f/128")     # discard-only (RFC 6666)
TABLE_NAMES = (Path("/etc/iproute2/rt_tables"), Path("/usr/share/iproute2/rt_tables"),
               Path("/usr/lib/iproute2/rt_tables"))


def configure(link: Link, addresses: Iterable[Interface], mtu: int) -> None:
    """Set the MTU, add addresses, set the interface up.

    Everything is the interface's own, and goes with it.
    """
    links.set_mtu(link, mtu)
    with explaining("the addresses cannot be set"), IPRoute() as netlink:
        for address in addresses:
            _address(netlink, "add", link.index, address)
    links.set_up(link)


# -- addresses

def _address(netlink: IPRoute, verb: str, index: int, address: Interface) -> None:
    with explaining(f"cannot {verb} the address {address}"):
        netlink.addr(verb, index=index, address=str(address.ip),
                     prefixlen=address.network.prefixlen)


def change_addresses(index: int, gone: Iterable[Interface], wanted: Iterable[Interface]) -> bool:
    """Remove addresses from an interface that has them, and add those that it lacks; whether there
    was anything to do. New ones first: without any IPv4 address it would lose its IPv4 routes. And
    again afterwards: with the first address of a network go the others of it."""
    wanted = list(wanted)
    with explaining("the addresses cannot be set"), IPRoute() as netlink:
        def add_missing() -> bool:
            there = _addresses(netlink, index)
            missing = [address for address in wanted if address not in there]
            for address in missing:
                _address(netlink, "add", index, address)
            return bool(missing)

        is_changed = add_missing()
        there = _addresses(netlink, index)
        for address in gone:
            if address in there:
                _address(netlink, "del", index, address)
                is_changed = True
        add_missing()
    return is_changed


def add_addresses(wanted: Iterable[tuple[int, Interface]]) -> None:
    """Give addresses to new interfaces, by their indices, until one is refused."""
    with explaining("the addresses cannot be set"), IPRoute() as netlink:
        for index, address in wanted:
            _address(netlink, "add", index, address)


def addresses_of(index: int, *, link_local: bool = False) -> list[Interface]:
    """The addresses of an interface. `link_local`: with the link-local ones, which the kernel
    gives to most interfaces, though not to our TUNs."""
    with explaining("the addresses cannot be read"), IPRoute() as netlink:
        found = _addresses(netlink, index)
    return [address for address in found
            if link_local or address.version == 4 or not address.is_link_local]


def addresses_by_index() -> dict[int, list[Interface]]:
    """All addresses of all interfaces, by the interface's index."""
    found: dict[int, list[Interface]] = {}
    with explaining("the addresses cannot be read"), IPRoute() as netlink:
        for message in netlink.get_addr():
            found.setdefault(message["index"], []).append(_interface(message))
    return found


def _addresses(netlink: IPRoute, index: int) -> list[Interface]:
    with explaining("the addresses cannot be read"):
        return [_interface(message) for message in netlink.get_addr(index=index)]


def _interface(message: Any) -> Interface:
    # IFA_ADDRESS is the other end's on a point-to-point link.
    address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    return ipaddress.ip_interface(f"{address}/{message['prefixlen']}")


def likely_address(but_not_of: int, but_not: Collection[Address] = ()) -> str | None:
    """An address at which other hosts probably reach this one: the first global one of
    the interface with the default route, else any global one, of another tunnel last; but none
    of the interface with the index `but_not_of`, and none of `but_not`."""
    tunnels = {link.index for link in links.read_all() if link.kernel_kind in ("tun", "wireguard")}
    with explaining("the default routes cannot be read"), IPRoute() as netlink:
        default = {message.get_attr("RTA_OIF")
                   for version in FAMILIES for message in default_routes.read(version)}
        found = [(message["index"] in tunnels, message["index"] not in default,
                  message["family"] != socket.AF_INET, str(_interface(message).ip))
                 for message in netlink.get_addr(scope=0) if message["index"] != but_not_of
                 and _interface(message).ip not in but_not]
    return min(found)[3] if found else None


# -- routes

def _route(netlink: IPRoute, verb: str, index: int, network: Network, table: int) -> None:
    # As `ip route` does for a route without a gateway; but not in a table that rules lead to before
    # the main one. The kernel would find the next hop of a new route there: `ip route add default
    # via ROUTER` without `dev` would lead into the tunnel (net/ipv4/fib_semantics.c, fib_check_nh).
    is_main = table == TABLE_MAIN
    scope = {"scope": rt_scope["link" if is_main else "universe"]} if network.version == 4 else {}
    with _explaining_route(f"cannot {verb} the route to {network} through the tunnel"):
        netlink.route(verb, dst=str(network), oif=index, family=FAMILIES[network.version],
                      table=table, **scope)


@contextlib.contextmanager
def _explaining_route(failure: str) -> Iterator[None]:
    try:
        with explaining(failure):
            yield
    except Refusal as error:
        if error.errno != errno.EEXIST:
            raise
        raise SystemSetupError(f"{error} (there is one already; --no-routes, or Table = off, "
                               "leaves routes alone)") from None


def change_routes(index: int, gone: Iterable[tuple[Network, int]],
                  wanted: Iterable[tuple[Network, int]]) -> bool:
    """Remove routes through an interface if they exist, and add those that do not: (destination,
    table). Whether there was anything to do."""
    with explaining("the routes cannot be read"), \
            IPRoute(strict_check=_kernel_filters()) as netlink:
        there = _routes(netlink, index)
        too_much = [each for each in gone if each in there]
        missing = [each for each in wanted if each not in there]
        for network, table in too_much:
            _route(netlink, "del", index, network, table)
        for network, table in missing:
            _route(netlink, "add", index, network, table)
    return bool(too_much or missing)


def _routes(netlink: IPRoute, index: int) -> set[tuple[Network, int]]:
    """The routes through an interface that we, or a user, added: (destination, table)."""
    found = set()
    for version in FAMILIES:
        for message in _dump(netlink, version, oif=index):
            if message["proto"] == rt_proto["static"]:
                found.add((_destination(message, version),
                           message.get_attr("RTA_TABLE", message["table"])))
    return found


def given(index: int) -> set[Network]:
    """The networks to which somebody, not the kernel itself, gave a route through an interface in
    the main table."""
    with explaining("the routes cannot be read"), \
            IPRoute(strict_check=_kernel_filters()) as netlink:
        return {network for network, _ in _given(netlink, index)}


def take_away(index: int, networks: Collection[Network]) -> bool:
    """Remove such routes; whether there were any."""
    with explaining("the routes cannot be changed"), \
            IPRoute(strict_check=_kernel_filters()) as netlink:
        gone = [each for each in _given(netlink, index) if each[0] in networks]
        for network, message in gone:
            netlink.route("del", dst=str(network), oif=index, family=message["family"],
                          table=TABLE_MAIN, proto=message["proto"], scope=message["scope"],
                          priority=message.get_attr("RTA_PRIORITY") or 0)
    return bool(gone)


def _given(netlink: IPRoute, index: int) -> list[tuple[Network, Any]]:
    return [(_destination(message, version), message) for version in FAMILIES
            for message in _dump(netlink, version, oif=index)
            if message["type"] == rt_type["unicast"] and message["proto"] != rt_proto["kernel"]
            and message.get_attr("RTA_TABLE", message["table"]) == TABLE_MAIN]


def _destination(message: Any, version: int) -> Network:
    everything = "0.0.0.0" if version == 4 else "::"
    return ipaddress.ip_network(
        f"{message.get_attr('RTA_DST') or everything}/{message['dst_len']}")


@functools.cache
def _kernel_filters() -> bool:
    """Whether the kernel itself can leave out of a dump what was not asked for (Linux 4.20)."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as probe:
        try:
            probe.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        except OSError:
            return False
    return True


def _dump(netlink: IPRoute, version: int, **wanted: int) -> Iterator[Any]:
    """The routes of an IP version with `oif` or `table`. The kernel before 4.20 sends all, and one
    without that IP version those of others."""
    def is_wanted(message: Any) -> bool:
        values = {"oif": message.get_attr("RTA_OIF"),
                  "table": message.get_attr("RTA_TABLE", message["table"])}
        return (message["family"] == FAMILIES[version]
                and all(values[name] == value for name, value in wanted.items()))

    try:
        yield from netlink.route("dump", dump_filter=is_wanted, family=FAMILIES[version], **wanted)
    except NetlinkError as error:
        if error.code not in (errno.ENOENT, errno.EOPNOTSUPP):      # no such table, or version
            raise


# -- tables

def table_number(name: str) -> int:
    """The number of a routing table, by its number or its name in rt_tables."""
    if name.isascii() and name.isdigit():
        return int(name)
    known = {"main": TABLE_MAIN, "default": TABLE_DEFAULT, "local": TABLE_LOCAL}
    for path in TABLE_NAMES:
        with contextlib.suppress(OSError):
            for line in path.read_text().splitlines():
                words = line.partition("#")[0].split()
                if len(words) == 2 and words[0].isascii() and words[0].isdigit():
                    known.setdefault(words[1], int(words[0]))
    if name not in known:
        raise ConfigError(f"there is no routing table {name!r}: give its number, or add the name "
                          f"to {TABLE_NAMES[0]}")
    return known[name]


def unused_table(first: int, taken: Collection[int]) -> int:
    """The first routing table, from `first` on, that has no routes, that no rule leads to, and that
    is not in `taken`. (A tunnel's routes go when its interface is set down, its rules do not.)"""
    with explaining("the routing tables cannot be read"):
        with IPRoute() as netlink:
            used = {*taken, *(rule.get_attr("FRA_TABLE", rule["table"]) for version in FAMILIES
                              for rule in rules.read(netlink, version))}
        with IPRoute(strict_check=_kernel_filters()) as netlink:
            return next(table for table in itertools.count(first) if table not in used and not any(
                True for version in FAMILIES for _ in _dump(netlink, version, table=table)))


# -- what is closed

def closed(table: int) -> set[Network]:
    """The networks that have an unreachable route of ours in a table."""
    with explaining("the routes cannot be read"), \
            IPRoute(strict_check=_kernel_filters()) as netlink:
        return {_destination(message, version) for version in FAMILIES
                for message in _dump(netlink, version, table=table)
                if message["type"] == rt_type["unreachable"]
                and message.get_attr("RTA_PRIORITY") == CLOSED_METRIC}


def close(network: Network, table: int) -> None:
    """Make a network unreachable for what a table routes, as long as no interface has a route to it
    there. Such a route stays when the interface goes."""
    _change_closed("add", network, table)


def reopen(network: Network, table: int) -> None:
    """Undo `close`."""
    try:
        _change_closed("del", network, table)
    except Refusal as error:
        if error.errno != errno.ESRCH:      # somebody else has
            raise


def _change_closed(verb: str, network: Network, table: int) -> None:
    with IPRoute() as netlink, \
            _explaining_route(f"cannot {verb} the unreachable route to {network}"):
        netlink.route(verb, dst=str(network), type="unreachable", table=table,
                      family=FAMILIES[network.version], priority=CLOSED_METRIC)


def forget_default_routes() -> None:
    """Have connected sockets that found an IPv6 default route look again. By themselves they do
    when the table of their route changes, but not when a rule leads to a route that is new in
    another table (net/ipv6/ip6_fib.c, fib6_update_sernum_upto_root; IPv4 forgets all at any
    change). So the main table has another route for a moment, NOBODY's."""
    for tries in reversed(range(TRIES)):
        try:
            _change_closed("add", NOBODY, TABLE_MAIN)
            break
        except SystemSetupError:    # it may be another tunnel's
            if not tries:
                raise
            remove_nobody()
    remove_nobody()


def remove_nobody() -> None:
    """Remove the route of `forget_default_routes`, if it is there."""
    reopen(NOBODY, TABLE_MAIN)


# -- path MTUs

def fitting_mtu(endpoints: Iterable[Address], mark: int = 0) -> int:
    """An MTU for the tunnel with which datagrams to these endpoints are not fragmented: the
    smallest of the path MTUs, or that of the default route, less what WireGuard adds; within what
    an interface may have. `mark`: of the datagrams."""
    with explaining("the path MTUs cannot be read"), IPRoute() as netlink:
        mtus = [_path_mtu(netlink, address, mark) for address in endpoints]
        for version in FAMILIES:
            if not any(mtus):
                mtus = [_message_mtu(netlink, message) for message in _default_routes(version)]
    fitting = min([mtu for mtu in mtus if mtu], default=ETHERNET_MTU) - OUTER_OVERHEAD
    return min(max(fitting, MIN_MTU), MAX_MTU)


def _default_routes(version: int) -> list[Any]:
    """None on a host without that IP version."""
    try:
        return default_routes.read(version)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            raise
        return []


def _path_mtu(netlink: IPRoute, address: Address, mark: int) -> int | None:
    marked = {"RTA_MARK": mark} if mark else {}
    try:
        answer = list(netlink.route("get", dst=str(address), family=FAMILIES[address.version],
                                    **marked))
    except NetlinkError:
        return None
    return _message_mtu(netlink, answer[0]) if answer else None


def _message_mtu(netlink: IPRoute, message: Any) -> int | None:
    metrics = message.get_attr("RTA_METRICS")
    mtu = None if metrics is None else metrics.get_attr("RTAX_MTU")
    index = message.get_attr("RTA_OIF")
    if mtu is None and index is not None:
        mtu = netlink.get_links(index)[0].get_attr("IFLA_MTU")
    return mtu if mtu is None else int(mtu)
