"""What the host's own IPv6 does on interfaces that we make.

A network card that somebody plugs into a network is expected to configure itself: a link-local
address, router solicitations, and a default route from whoever advertises one. What we make must
not: guests behind a bridge, and the far sides of a tunnel, would choose the host's default route.

    TUN     as the kernel's WireGuard has it (wg_open(), wg_setup()): no link-local address but one
            that is configured, no multicast flag, which has the kernel announce groups; and no
            router advertisements. An idle tunnel stays idle then, whatever its allowed IPs.
    bridge  without an IPv6 address: no IPv6 at all. With one: no router advertisements.
    TAP, attached       no IPv6 at all: what comes there is the bridge's, or another interface's.
    TAP with an address (`tap create --address`): no router advertisements of its guest.
    TAP, by itself      is a network card, and is left alone.

Only the link-local address can be had by netlink; the rest is in /proc/sys, which a container may
not write: then a bridge gets a warning, if what is there by default is not as good.
"""

from __future__ import annotations

import logging
from contextlib import suppress

from fastpump.constants import MIN_IPV6_MTU
from fastpump.errors import SystemSetupError
from fastpump.host.ipv6 import SETTINGS
from fastpump.netlink import links
from fastpump.netlink.links import Link

log = logging.getLogger("fastpump")


def quieten_tun(tun: Link) -> None:
    """Have the kernel send nothing through a new TUN, still down, that nobody asked for."""
    links.set_multicast(tun, is_on=False)
    # On a router it is in the group of all routers by now, and would announce that. An MTU that is
    # too small for IPv6 ends that (addrconf_notify()); then IPv6 begins anew, without the flag.
    links.set_mtu(tun, MIN_IPV6_MTU - 1)
    links.set_mtu(tun, tun.mtu)
    _have_nothing_unasked(tun)


def quieten_moved_tun(name: str) -> None:
    """The same in another network namespace, where IPv6 begins anew with that namespace's defaults.
    The flag has come along. To be called in that namespace, before the interface is set up."""
    with suppress(SystemSetupError):
        tun = links.find(name)
        if tun is not None:
            _have_nothing_unasked(tun)


def _have_nothing_unasked(tun: Link) -> None:
    _set_link_local(tun, is_on=False)
    _write(tun, "accept_ra", 0)


def switch_off(link: Link) -> None:
    """No IPv6 on an interface of ours, which has no IPv6 address."""
    _set_link_local(link, is_on=False)
    _write(link, "accept_ra", 0)
    _write(link, "disable_ipv6", 1)


def prepare_bridge(bridge: Link, *, has_address: bool) -> None:
    """Of a bridge of ours; `has_address`: it gets an IPv6 address."""
    if has_address:
        _set_link_local(bridge, is_on=True)
        _write(bridge, "accept_ra", 0)
        _write(bridge, "disable_ipv6", 0)
    else:
        switch_off(bridge)
    if _takes_advertisements(bridge):
        log.warning("%(bridge)s takes router advertisements, since %(settings)s cannot be written: "
                    "a guest or the far site can become this host's default route; set "
                    "net.ipv6.conf.default.accept_ra to 0 before this starts",
                    {"bridge": bridge.name, "settings": SETTINGS})


def refuse_advertisements(name: str) -> None:
    """Take no default route from the guest behind a TAP of ours."""
    with suppress(OSError):
        (SETTINGS / name / "accept_ra").write_text("0")


def _set_link_local(link: Link, *, is_on: bool) -> None:
    with suppress(SystemSetupError):        # a host without IPv6 gives none anyway
        links.set_link_local(link, is_on=is_on)


def _takes_advertisements(link: Link) -> bool:
    """ipv6_accept_ra() in include/net/ipv6.h; False on a host without IPv6."""
    accepted = _read(link, "accept_ra")
    return accepted != 0 and not _read(link, "disable_ipv6") and (
        accepted == 2 or not _read(link, "forwarding"))


def _read(link: Link, name: str) -> int:
    """A setting; 0 if there is no IPv6."""
    try:
        return int((SETTINGS / link.name / name).read_text())
    except OSError:
        return 0


def _write(link: Link, name: str, value: int) -> None:
    """Change a setting if it can be; what comes of it is `_takes_advertisements`'s to find out."""
    with suppress(OSError):
        (SETTINGS / link.name / name).write_text(str(value))
