"""Setting up a TAP: its MTU, and what it is joined to on this host.

The MTU of an Ethernet is the same everywhere, or large frames are lost silently: so the TAP takes
that of what it is joined to, even where datagrams then have to be fragmented; the log warns of
both.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import ExitStack

from fastpump.config.model import TunnelConfig
from fastpump.constants import ETHERNET_MTU
from fastpump.host import attach, ipv6
from fastpump.host.attach import Attachment
from fastpump.ip import Address
from fastpump.netlink import links, routes

log = logging.getLogger("fastpump")

FRAME_OVERHEAD = 38
"""Of a frame's headers, Ethernet with two VLAN tags (22 bytes), and of a relay header (16)."""


def attachment_of(config: TunnelConfig) -> Attachment:
    """What a TAP is to be joined to."""
    return Attachment(config.bridge, config.attach, config.attach_mode, config.bridge_vlans)


def configure(config: TunnelConfig, index: int, cleanup: ExitStack,
              endpoints: Collection[Address]) -> None:
    """Give a TAP its MAC address, MTU and IP addresses, join it, and set it up. `endpoints`: the
    peers', to which its frames should fit in one datagram."""
    tap = links.get(index)
    attachment = attachment_of(config)
    fitting = routes.fitting_mtu(endpoints) - FRAME_OVERHEAD
    # What comes into a bridge later has the usual MTU, too.
    mtu = config.mtu or attach.plan_mtu(attachment) or (
        ETHERNET_MTU if attachment else min(ETHERNET_MTU, fitting))
    addresses = config.addresses
    if ipv6.is_left_out(tap.name, addresses):
        addresses = tuple(each for each in addresses if each.version == 4)
    attach.join(attachment, tap, cleanup, addresses=addresses, mtu=mtu)
    if config.mac is not None:
        links.set_mac(tap, config.mac.hex(":"))
    if endpoints and mtu > fitting:
        log.warning("frames of %(tap)s may need datagrams larger than the path to the peers takes; "
                    "they go in fragments, which is slow: raise the MTU of that path to "
                    "%(path_mtu)d, or lower that of the hosts, and of the tunnel, to %(mtu)d",
                    {"tap": tap.name, "mtu": fitting,
                     "path_mtu": mtu + routes.OUTER_OVERHEAD + FRAME_OVERHEAD})


class JoinWatch:
    """Warns when something is not joined any more, and of interfaces whose frames are larger than
    the TAP takes; of each once, as long as it stays so."""

    def __init__(self, config: TunnelConfig) -> None:
        self._attachment = attachment_of(config)
        self._logged: list[str] = []

    def check(self, index: int, mtu: int) -> None:
        """Check now; `index` and `mtu` are the TAP's."""
        if not self._attachment:
            return
        found = attach.warnings(self._attachment, index, mtu)
        for sentence in found:
            if sentence not in self._logged:
                log.warning("%(warning)s", {"warning": sentence})
        self._logged = found
