"""Other network namespaces: their names, those of interfaces there, and how to go there."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterable
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from fastpump import paths
from fastpump.errors import ConfigError, SystemSetupError
from fastpump.kernel import CLONE_NEWNET
from fastpump.netlink.links import Link, text_of
from fastpump.netlink.refusal import explaining

NETNSA_NSID_NOT_ASSIGNED = (-1, 0xFFFFFFFF)
"""linux/net_namespace.h; pyroute2 reads it without its sign."""


def enter(name: str) -> None:
    """Go to the network namespace that `ip netns` knows by that name, or that is mounted at that
    path, for good. Only before other threads are started. ConfigError or SystemSetupError."""
    path = Path(name) if "/" in name else paths.NAMED_NAMESPACES / name
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"there is no network namespace {name} ({error.strerror}): `ip netns` "
                          "lists those that have a name") from None
    libc = ctypes.CDLL(None, use_errno=True)
    failure = ctypes.get_errno() if libc.setns(fd, CLONE_NEWNET) else 0
    os.close(fd)
    if failure == errno.EINVAL:
        raise ConfigError(f"{path} is no network namespace: give the name of one, or the path "
                          "where it is mounted")
    if failure:
        raise SystemSetupError(f"the network namespace {name} cannot be entered: "
                               f"{os.strerror(failure)}; run as root")


def names_by_id() -> dict[int, str]:
    """The names that `ip netns` has for network namespaces, by the ids that they have here; only
    those that have one."""
    found = {}
    with contextlib.suppress(OSError), IPRoute() as netlink:
        for entry in sorted(paths.NAMED_NAMESPACES.iterdir()):
            with contextlib.suppress(OSError, NetlinkError):
                fd = os.open(entry, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    number = netlink.get_netnsid(fd=fd)["nsid"]
                finally:
                    os.close(fd)
                if number not in NETNSA_NSID_NOT_ASSIGNED:
                    found[number] = entry.name
    return found


def names_of_lower(links: Iterable[Link]) -> dict[int, str]:
    """What interfaces in other namespaces are called that these stand on or are the other end of,
    by the index here; only those that we may know."""
    found = {}
    with explaining("the other ends of interfaces cannot be read"), IPRoute() as netlink:
        for link in links:
            if link.lower and link.lower_namespace is not None:
                with contextlib.suppress(OSError, NetlinkError):
                    message, *_ = netlink.link("get", index=link.lower,
                                               IFLA_IF_NETNSID=link.lower_namespace)
                    found[link.index] = text_of(message.get_attr("IFLA_IFNAME"))
    return found
