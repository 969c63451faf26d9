"""Hosts without IPv6: a kernel that was started with ipv6.disable=1, or disable_ipv6 = 1 for all
interfaces, as containers often have it. What is IPv6 of a tunnel is left out there.

Not so where other interfaces have IPv6 and only the tunnel's may not: packets that the tunnel is to
carry would leave the host beside it, and unencrypted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from fastpump.errors import SystemSetupError
from fastpump.ip import Interface, Network
from fastpump.netlink import routes

log = logging.getLogger("fastpump")

SETTINGS = Path("/proc/sys/net/ipv6/conf")


def is_left_out(name: str, wanted: Iterable[Interface | Network]) -> bool:
    """Whether what is IPv6 of the wanted addresses and networks of an interface must be left out,
    which is said in the log. SystemSetupError if it can neither be done nor left out."""
    items = list(dict.fromkeys(str(each) for each in wanted if each.version == 6))
    if not items or _may_have_ipv6(name):
        return False
    if any(address.version == 6 and not (address.is_loopback or address.is_link_local)
           for addresses in routes.addresses_by_index().values() for address in addresses):
        raise SystemSetupError(
            f"{name} may have no IPv6 (net.ipv6.conf.default.disable_ipv6 = 1), while this host "
            f"has it; allow it, or leave out {', '.join(items)}")
    log.warning("this host has no IPv6: without %s", ", ".join(items))
    return True


def _may_have_ipv6(name: str) -> bool:
    try:
        return (SETTINGS / name / "disable_ipv6").read_text().strip() == "0"
    except FileNotFoundError:
        return False
