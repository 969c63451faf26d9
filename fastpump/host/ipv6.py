"""Hosts without IPv6: a kernel that was started with ipv6.disable=1, or disable_ipv6 = 1 for all
interfaces, as containers often have it. What is IPv6 of a tunnel is left out there.

Not so where other interfaces have IPv6 and only the tunnel's may not: packets that the tunnel is to
carry would leave the host beside it, and unencrypted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from fastpump.constants import MIN_IPV6_MTU
from fastpump.errors import SystemSetupError
from fastpump.ip import Interface, Network
from fastpump.netlink import routes

log = logging.getLogger("fastpump")

SETTINGS = Path("/proc/sys/net/ipv6/conf")
"""A directory for each interface that has IPv6; none on a host without."""


def is_left_out(name: str, wanted: Iterable[Interface | Network]) -> bool:
    """Whether what is IPv6 of the wanted addresses and networks of an interface must be left out,
    which is said in the log. SystemSetupError if it can neither be done nor left out."""
    items = list(dict.fromkeys(str(each) for each in wanted if each.version == 6))
    if not items or not _is_off(name):
        return False
    if not _is_off("all") or _has_address():
        raise SystemSetupError(
            f"{name} may have no IPv6 (net.ipv6.conf.default.disable_ipv6 = 1), while this host "
            f"may; allow it, or leave out {', '.join(items)}")
    log.warning("this host has no IPv6: without %(items)s", {"items": ", ".join(items)})
    return True


def _is_off(name: str) -> bool:
    """Whether an interface (or all, as long as no other setting is made for one) may have no
    IPv6."""
    try:
        return (SETTINGS / name / "disable_ipv6").read_text().strip() != "0"
    except FileNotFoundError:
        return not SETTINGS.exists()    # if it does, the MTU is too small for IPv6 now


def _has_address() -> bool:
    """Whether any interface has an IPv6 address, but those that all have."""
    return any(address.version == 6 and not (address.is_loopback or address.is_link_local)
               for addresses in routes.addresses_by_index().values() for address in addresses)


def fitting_mtu(fitting: int, wanted: Iterable[Interface | Network]) -> int:
    """The MTU that fits the paths to the peers, but not less than IPv6 needs, if that is wanted:
    the kernel would silently take the IPv6 addresses away."""
    if fitting >= MIN_IPV6_MTU or all(each.version == 4 for each in wanted):
        return fitting
    log.warning("the paths to the peers fit an MTU of %(fitting)d only, and IPv6 needs %(mtu)d: "
                "larger packets go in fragments", {"fitting": fitting, "mtu": MIN_IPV6_MTU})
    return MIN_IPV6_MTU
