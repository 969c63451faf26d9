"""Setting up a TAP: its MTU, and what it is joined to on this host.

The MTU of an Ethernet is the same everywhere, or large frames are lost without a word: so the TAP
takes that of what it is joined to, even where datagrams then have to go in fragments, and both
are said.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import ExitStack

from fastpump.config.model import TunnelConfig
from fastpump.host import attach
from fastpump.host.attach import Attachment
from fastpump.ip import Address
from fastpump.netlink import routes

log = logging.getLogger("fastpump")

ETHERNET_MTU = 1500
FRAME_OVERHEAD = 38
"""Of a frame's headers, Ethernet with two VLAN tags (22 bytes), and of a relay header (16)."""


def attachment_of(config: TunnelConfig) -> Attachment:
    """What a TAP is to be joined to."""
    return Attachment(config.bridge, config.attach, config.attach_mode)


def configure(config: TunnelConfig, name: str, index: int, made: ExitStack,
              endpoints: Collection[Address]) -> None:
    """Give a TAP its MAC address, MTU and IP addresses, join it, and bring it up. `endpoints`: of
    the peers, whose frames should fit the ways to them."""
    attachment = attachment_of(config)
    fitting = routes.fitting_mtu(endpoints) - FRAME_OVERHEAD
    # What comes into a bridge later has the usual MTU, too.
    mtu = config.mtu or attach.plan_mtu(attachment) or (
        ETHERNET_MTU if attachment else min(ETHERNET_MTU, fitting))
    attach.join(attachment, name, index, made, addresses=config.addresses, mtu=mtu)
    if config.mac is not None:
        routes.set_mac(name, index, config.mac)
    if endpoints and mtu > fitting:
        log.warning("frames of %s may need datagrams that do not fit the way to the peers, and go "
                    "in fragments, which is slow: raise the MTU of that way to %d, or lower that "
                    "of the hosts, and of the tunnel (--mtu), to %d", name,
                    mtu + routes.OUTER_OVERHEAD + FRAME_OVERHEAD, fitting)


class JoinWatch:
    """Says when what was joined is joined no more, and whose frames are larger than the TAP
    takes; each once, as long as it stays so."""

    def __init__(self, config: TunnelConfig) -> None:
        self._attachment = attachment_of(config)
        self._said: list[str] = []

    def look(self, index: int, mtu: int) -> None:
        """Look now; `index` and `mtu` are the TAP's."""
        if not self._attachment:
            return
        found = attach.complaints(self._attachment, index, mtu)
        for sentence in found:
            if sentence not in self._said:
                log.warning("%s", sentence)
        self._said = found
