"""Changes of the tunnel's own interface: renamed, up or down, another MTU, moved to another
network namespace, deleted.

A netlink socket in the interface's namespace only wakes us; the state is then read by ioctl
(netdevice(7)). The TUN fd knows the interface's name wherever it is, and leads to its namespace
(TUNGETDEVNETNS): when the interface has moved, the sockets are opened again there, by a thread
that enters that namespace for a moment.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass

from fastpump import paths
from fastpump.kernel import (
    CLONE_NEWNET,
    IF_STATS,
    IFF_UP,
    IFINFO,
    IFLA_STATS_LINK_64,
    IFREQ_FLAGS,
    IFREQ_INT,
    LINK_STATS64,
    NL_ATTRIBUTE,
    NLM_F_REQUEST,
    NLMSG_HEADER,
    RTM_GETSTATS,
    RTM_NEWLINK,
    RTM_NEWSTATS,
    RTMGRP_LINK,
    SIOCGIFFLAGS,
    SIOCGIFINDEX,
    SIOCGIFMTU,
)
from fastpump.tun.queues import TunQueues


@dataclass(frozen=True, slots=True)
class TunState:
    """The tunnel's interface now. `namespace` is the inode of its network namespace."""

    name: str
    index: int
    mtu: int
    is_up: bool
    namespace: int


class LinkWatcher:
    """Notices changes of one interface from the moment it is made; a file for select."""

    def __init__(self, tun: TunQueues, on_moved: Callable[[str], None] = lambda _: None) -> None:
        """`on_moved`: called with the interface's name, in a thread that is in the other network
        namespace, when it has come there."""
        self._tun = tun
        self._on_moved = on_moved
        self._last: TunState | None = None
        self._was_down = False
        self._namespace = paths.namespace_inode()
        self._open()

    def _open(self) -> None:
        self._notifications = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._notifications.bind((0, RTMGRP_LINK))
        self._query = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._statistics = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)

    def fileno(self) -> int:
        """For select, poll and asyncio; another one after the interface has moved."""
        return self._notifications.fileno()

    def read(self) -> TunState | None:
        """The state of the interface; None when it was deleted."""
        self._drain()
        for _ in range(3):      # it may move or be renamed between two calls
            name = self._tun.current_name()
            if name is None:
                return None
            self._follow(name)
            with contextlib.suppress(OSError):
                self._last = self._ask(name)
                break
        return self._last       # its last state, when it is where we may not look

    def dropped(self) -> int:
        """Packets that the kernel had for the interface's queues, and lost because they were full:
        its tx_dropped, of all queues. 0 when the interface was deleted."""
        index = 0 if self._last is None else self._last.index
        request = NLMSG_HEADER.pack(NLMSG_HEADER.size + IF_STATS.size, RTM_GETSTATS, NLM_F_REQUEST,
                                    0, 0) + IF_STATS.pack(0, index, 1 << IFLA_STATS_LINK_64 - 1)
        try:
            self._statistics.send(request)
            return tx_dropped(self._statistics.recv(1 << 16))
        except OSError:
            return 0

    def _drain(self) -> None:
        while True:
            try:
                notification = self._notifications.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:     # ENOBUFS: some were lost, and we read the state anyway
                self._was_down = True
            else:
                self._was_down |= self._says_down(notification)

    def _says_down(self, notification: bytes) -> bool:
        """Whether the interface was down then; by now it may be up again."""
        _, kind, *_ = NLMSG_HEADER.unpack_from(notification)
        _, _, index, flags, _ = IFINFO.unpack_from(notification, NLMSG_HEADER.size)
        return kind == RTM_NEWLINK and self._last is not None and index == self._last.index \
            and not flags & IFF_UP

    def take_down(self) -> bool:
        """Whether the interface may have been down since the last time that this was asked."""
        was_down, self._was_down = self._was_down, False
        return was_down

    def _ask(self, name: str) -> TunState:
        def ask(number: int, layout: struct.Struct) -> int:
            answer = fcntl.ioctl(self._query, number, layout.pack(name.encode(), 0))
            return int(layout.unpack(answer)[1])

        return TunState(name, ask(SIOCGIFINDEX, IFREQ_INT), ask(SIOCGIFMTU, IFREQ_INT),
                        bool(ask(SIOCGIFFLAGS, IFREQ_FLAGS) & IFF_UP), self._namespace)

    def _follow(self, name: str) -> None:
        """Open the sockets again in the namespace that the interface is in."""
        namespace = self._tun.open_namespace()
        if namespace is None:
            return
        inode = os.fstat(namespace).st_ino

        def enter() -> None:
            if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET) == 0:
                old = (self._notifications, self._query, self._statistics)
                self._open()
                self._namespace = inode
                for sock in old:
                    sock.close()
                self._on_moved(name)

        try:
            if inode != self._namespace:
                thread = threading.Thread(target=enter)
                thread.start()
                thread.join()
        finally:
            os.close(namespace)

    def close(self) -> None:
        """Stop watching."""
        with contextlib.suppress(OSError):
            self._notifications.close()
            self._query.close()
            self._statistics.close()


def tx_dropped(answer: bytes) -> int:
    """That field of an RTM_NEWSTATS message; 0 if it is another message, as of an error."""
    end, kind, *_ = NLMSG_HEADER.unpack_from(answer)
    at = NLMSG_HEADER.size + IF_STATS.size
    while kind == RTM_NEWSTATS and at + NL_ATTRIBUTE.size <= min(end, len(answer)):
        length, attribute = NL_ATTRIBUTE.unpack_from(answer, at)
        if attribute == IFLA_STATS_LINK_64:
            return int(LINK_STATS64.unpack_from(answer, at + NL_ATTRIBUTE.size)[0])
        at += max(length + 3 & ~3, NL_ATTRIBUTE.size)
    return 0
