"""The default routes of the main table.

The kernel cannot be asked for these alone, and a router may have a million others, of which
pyroute2 decodes 3,000 a second. (Its own get_default_routes() ends early where there are many.) So
a dump is read here, a header at a time, a million a second, and only default routes are decoded.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

from pyroute2.netlink import (
    NETLINK_GET_STRICT_CHK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOL_NETLINK,
)
from pyroute2.netlink.rtnl import RTM_GETROUTE, RTM_NEWROUTE, rt_type
from pyroute2.netlink.rtnl.rtmsg import rtmsg

TABLE_MAIN = 254            # linux/rtnetlink.h; pyroute2 has none of these.
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

_HEADER = struct.Struct("=IHHII")       # struct nlmsghdr: length, type, flags, sequence, port
_ROUTE = struct.Struct("=8BI")          # struct rtmsg: family, dst_len, ..., table (4), type (7)
_ERROR = struct.Struct("=i")            # struct nlmsgerr
_BUFFER_LEN = 1 << 17


def read(version: int) -> list[Any]:
    """Those of an IP version, as pyroute2's messages; OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        with contextlib.suppress(OSError):      # so that the kernel filters; Linux 4.20
            netlink.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        netlink.send(_HEADER.pack(_HEADER.size + _ROUTE.size, RTM_GETROUTE,
                                  NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
                     + _ROUTE.pack(FAMILIES[version], 0, 0, 0, TABLE_MAIN, 0, 0,
                                   rt_type["unicast"], 0))
        return [_decoded(message) for message in _messages(netlink)
                if _is_default(message, FAMILIES[version])]


def _messages(netlink: socket.socket) -> Iterator[memoryview]:
    """The routes of a dump, not decoded."""
    while True:
        data = memoryview(netlink.recv(_BUFFER_LEN))
        while data:
            length, kind, *_ = _HEADER.unpack_from(data)
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                number = -_ERROR.unpack_from(data, _HEADER.size)[0]
                raise OSError(number, os.strerror(number))
            if kind == RTM_NEWROUTE:
                yield data[:length]
            data = data[(length + 3) & ~3:]


def _is_default(message: memoryview, family: int) -> bool:
    route = message[_HEADER.size:]
    return route[0] == family and route[1] == 0 and (
        route[4] == TABLE_MAIN and route[7] == rt_type["unicast"])


def _decoded(message: memoryview) -> Any:
    decoded = rtmsg(bytes(message))
    decoded.decode()
    return decoded
