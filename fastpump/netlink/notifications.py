"""The kernel's word that something was taken away on this host (rules, routes, addresses,
nftables), or that datagrams may have another way out of it.

A router has thousands of changes of routes a second. So a classic BPF program on the socket lets
pass what concerns one interface and one routing table only: removed addresses of the interface,
removed routes through it or of the table, removed rules, and changed settings of forwarding. What
a message says is read from the kernel afterwards, whole; so is all when some were lost (ENOBUFS).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection

from fastpump import classic_bpf
from fastpump.classic_bpf import (
    AD_NLATTR,
    JEQ,
    LD_B_ABS,
    LD_H_ABS,
    LD_IMM,
    LD_W_ABS,
    LD_W_IND,
    LDX_IMM,
    RET_K,
    TAX,
    Instruction,
)
from fastpump.kernel import SO_ATTACH_FILTER
from fastpump.netlink.nft_owner import NETLINK_NETFILTER

# linux/rtnetlink.h, linux/netlink.h, linux/netfilter/nfnetlink.h
RTM_DELADDR, RTM_NEWROUTE, RTM_DELROUTE, RTM_DELRULE, RTM_NEWNETCONF = 21, 24, 25, 33, 80
RTNLGRP = (5, 7, 8, 9, 11, 19, 24, 25)
"""Addresses, routes, rules, settings; of IPv4 and of IPv6."""
RTNLGRP_WAYS = (1, 5, 7, 8, 9, 11, 19)
"""Links, and the same but settings."""
NFNLGRP_NFTABLES = 7
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
_RT_TABLE_COMPAT, _RTA_OIF = 252, 4

_KIND = 4                               # in struct nlmsghdr; 16 bytes
_ADDRESS_INDEX = 16 + 4                 # in struct ifaddrmsg
_ROUTE_LENGTH = 16 + 1                  # in struct rtmsg: of the prefix
_ROUTE_TABLE = 16 + 4                   # in struct rtmsg; 12 bytes
_ROUTE_ATTRIBUTES = 16 + 12


def program(index: int, table: int) -> list[Instruction]:
    """What Notifications hears. Netlink has the numbers of this machine, and loads are
    big-endian."""
    return [
        (LD_H_ABS, 0, 0, _KIND),
        (JEQ, 15, 0, socket.htons(RTM_DELRULE)),
        (JEQ, 14, 0, socket.htons(RTM_NEWNETCONF)),
        (JEQ, 10, 0, socket.htons(RTM_DELADDR)),
        (JEQ, 0, 11, socket.htons(RTM_DELROUTE)),
        (LD_B_ABS, 0, 0, _ROUTE_TABLE),
        (JEQ, 10, 0, table if table < 256 else _RT_TABLE_COMPAT),
        (LDX_IMM, 0, 0, _RTA_OIF),
        (LD_IMM, 0, 0, _ROUTE_ATTRIBUTES),
        (LD_W_ABS, 0, 0, AD_NLATTR),
        (JEQ, 5, 0, 0),
        (TAX, 0, 0, 0),
        (LD_W_IND, 0, 0, 4),
        (JEQ, 3, 2, socket.htonl(index)),
        (LD_W_ABS, 0, 0, _ADDRESS_INDEX),       # of RTM_DELADDR
        (JEQ, 1, 0, socket.htonl(index)),
        (RET_K, 0, 0, 0),
        (RET_K, 0, 0, 0xFFFF),
    ]


def ways_program() -> list[Instruction]:
    """What WayNotifications hears: of routes, only the default ones."""
    return [
        (LD_H_ABS, 0, 0, _KIND),
        (JEQ, 1, 0, socket.htons(RTM_NEWROUTE)),
        (JEQ, 0, 2, socket.htons(RTM_DELROUTE)),
        (LD_B_ABS, 0, 0, _ROUTE_LENGTH),
        (JEQ, 0, 1, 0),
        (RET_K, 0, 0, 0xFFFF),
        (RET_K, 0, 0, 0),
    ]


def _listen(protocol: int, groups: Collection[int],
            program: list[Instruction] | None = None) -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    with contextlib.ExitStack() as failure:
        failure.callback(made.close)
        made.bind((0, 0))
        if program is not None:
            classic_bpf.attach(made, SO_ATTACH_FILTER, program)
        for group in groups:
            made.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        failure.pop_all()
    return made


class WayNotifications:
    """Those that datagrams may leave this network namespace by another interface, or from another
    address: of default routes, rules, addresses and links. A file for select; whoever is woken by
    it calls `drain`."""

    def __init__(self) -> None:
        """OSError."""
        self._socket = _listen(socket.NETLINK_ROUTE, RTNLGRP_WAYS, ways_program())
        self.fileno = self._socket.fileno

    def drain(self) -> None:
        """Take what has come."""
        with contextlib.suppress(OSError):      # EAGAIN; ENOBUFS: some were lost, the rest is ready
            while True:
                self._socket.recv(1 << 16)

    def close(self) -> None:
        """Hear nothing any more."""
        self._socket.close()


class Notifications:
    """Those for one interface, one routing table and some nftables tables, in this network
    namespace. Two files for select; whoever is woken by one of them calls `drain`."""

    def __init__(self, index: int, table: int, nft_tables: Collection[str] = ()) -> None:
        """OSError."""
        self._nft_tables = [name.encode() + b"\0" for name in nft_tables]
        self.sockets = [_listen(socket.NETLINK_ROUTE, RTNLGRP, program(index, table))]
        with contextlib.suppress(OSError):      # a kernel without nftables
            self.sockets.append(_listen(NETLINK_NETFILTER, (NFNLGRP_NFTABLES,)))

    def drain(self) -> bool:
        """Take what has come; whether any of it concerns us."""
        concerns = False
        for number, each in enumerate(self.sockets):
            while True:
                try:
                    data = each.recv(1 << 16)
                except BlockingIOError:
                    break
                except OSError:     # ENOBUFS: some were lost
                    concerns = True
                else:       # of nftables, all changes of all tables come
                    concerns |= number == 0 or any(name in data for name in self._nft_tables)
        return concerns

    def close(self) -> None:
        """Hear nothing any more."""
        for each in self.sockets:
            each.close()
