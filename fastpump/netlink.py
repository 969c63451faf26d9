"""Addresses, links and routes. The only user of pyroute2."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Callable, Iterable
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTMGRP_LINK
from pyroute2.netlink.rtnl.iprsocket import MarshalRtnl

from fastpump.errors import SystemSetupError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


def configure(name: str, index: int, addresses: Iterable[Interface], mtu: int,
              routes: Iterable[Network]) -> None:
    """Set the MTU, add addresses, bring the interface up, add routes through it.

    Everything is the interface's own, and goes with it.
    """
    addresses = list(addresses)
    with IPRoute() as route:
        _do(f"the MTU {mtu} of {name} cannot be set", route.link, "set", index=index, mtu=mtu)
        for address in addresses:
            _do(f"the address {address} cannot be given to {name}", route.addr, "add",
                index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
        _do(f"{name} cannot be brought up", route.link, "set", index=index, state="up")
        connected = {address.network for address in addresses}
        for network in routes:
            if network in connected:
                continue
            _do(f"the route to {network} through {name} cannot be added", route.route, "add",
                dst=str(network), oif=index, family=2 if network.version == 4 else 10,
                **({"scope": 253} if network.version == 4 else {}))


def _do(complaint: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    try:
        call(*args, **kwargs)
    except NetlinkError as error:
        if error.code == errno.EEXIST and "route" in complaint:
            complaint += " (there is one already; --no-routes leaves routes alone)"
        raise SystemSetupError(f"{complaint}: {error.args[1]}") from None
    except OSError as error:
        raise SystemSetupError(f"{complaint}: {error}") from None


class LinkWatcher:
    """Hears of changes to one interface from the moment it is made; a file for select."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK,
                                     socket.NETLINK_ROUTE)
        self._socket.bind((0, RTMGRP_LINK))
        self._marshal = MarshalRtnl()

    def fileno(self) -> int:
        """For select, poll and asyncio."""
        return self._socket.fileno()

    def read(self) -> tuple[bool, int | None]:
        """(whether the interface still exists here, its MTU if that was told)."""
        mtu = None
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return True, mtu
            except OSError as error:
                if error.errno != errno.ENOBUFS:        # too many changes: some are lost
                    raise
                return _exists(self._index), mtu
            for message in self._marshal.parse(data):
                if message.get("index") != self._index:
                    continue
                if message["event"] == "RTM_DELLINK":
                    return False, mtu
                mtu = message.get_attr("IFLA_MTU") or mtu

    def close(self) -> None:
        """Stop watching."""
        self._socket.close()


def _exists(index: int) -> bool:
    try:
        socket.if_indextoname(index)
    except OSError:
        return False
    return True


def likely_address(but_not_of: int) -> str | None:
    """An address at which other hosts probably reach this one: the first global one of
    the interface with the default route, else any global one but those of the interface
    with the index `but_not_of`."""
    with IPRoute() as route:
        default = {message.get_attr("RTA_OIF")
                   for family in (2, 10)
                   for message in route.get_default_routes(family=family)}
        found = [(message["index"] not in default, message["family"] != 2,
                  message.get_attr("IFA_ADDRESS"))
                 for message in route.get_addr(scope=0) if message["index"] != but_not_of]
    return min(found)[2] if found else None
