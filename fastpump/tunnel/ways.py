"""When the host's way to a peer changes: DHCP gives another address, Wi-Fi is lost, LTE is there.

To a peer, datagrams leave from the address of ours that it sends to. When the way leads by another
interface, an address that is still there may be the wrong one: whoever forwards the datagrams there
has no way back to it. The kernel's WireGuard looks at each datagram whether the route still leads
by the interface that the peer was received on (drivers/net/wireguard/socket.c, send4()). Here it is
looked at when the kernel says that something has changed: whether it would choose another source
address than before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from fastpump.clock import now_ns
from fastpump.conn.endpoint import NO_SOURCE_ADDRESS, Endpoint, source_address_of
from fastpump.device.device import Device
from fastpump.ip import Address
from fastpump.netlink.notifications import WayNotifications
from fastpump.tunnel.containment import Containment

log = logging.getLogger("fastpump")

DELAY_S = 0.1
"""What changes together is looked at together."""
AGAIN_S = 0.3, 1.0
"""What still comes by the way before makes workers send from the address before. So it is done
again after so long."""
MIN_KNOWN = 64


class Ways:
    """The ways to the peers of a device, looked after while a loop runs."""

    def __init__(self, device: Device, contained: Containment,
                 source_towards: Callable[[Endpoint], str | None]) -> None:
        """`source_towards`: the source address that the kernel chooses; None: there is no way."""
        self._device = device
        self._contained = contained
        self._source_towards = source_towards
        self.known: dict[Address, str | None] = {}
        """What the kernel sends from, by where peers are, or were."""
        self._notifications: WayNotifications | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.on_change: Callable[[], None] = lambda: None
        """Called when anything has changed: links, addresses, default routes, rules."""
        self._again: list[asyncio.TimerHandle] = []

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look from now on."""
        try:
            self._notifications = WayNotifications()
        except OSError as error:
            log.warning("it will not be noticed at once when the way to a peer changes: %(error)s",
                        {"error": error.strerror})
            return
        self._loop = loop
        loop.add_reader(self._notifications, self._on_change)

    def stop(self) -> None:
        """Look no more."""
        for each in (self._timer, *self._again):
            if each is not None:
                each.cancel()
        if self._notifications is not None:
            assert self._loop is not None
            self._loop.remove_reader(self._notifications)
            self._notifications.close()
            self._notifications = None

    def note(self, endpoint: Endpoint) -> None:
        """A peer is there."""
        if len(self.known) > MIN_KNOWN + 2 * len(self._device.peers):
            there = set(self._endpoints())
            self.known = {each: source for each, source in self.known.items() if each in there}
        self.known[endpoint.address] = self._source_towards(endpoint)

    def _endpoints(self) -> dict[Address, Endpoint]:
        return {peer.endpoint.address: peer.endpoint for peer in self._device.peers.values()
                if peer.endpoint is not None}

    def _on_change(self) -> None:
        assert self._notifications is not None
        assert self._loop is not None
        self._notifications.drain()
        if self._timer is None:
            self._timer = self._loop.call_later(DELAY_S, self._turn)

    def _turn(self) -> None:
        assert self._loop is not None
        self._timer = None
        with self._contained:
            self.on_change()
            changed = self.find_changed()
            if changed:
                self.follow(changed)
                self._again = [each for each in self._again if each.when() > self._loop.time()]
                self._again += [self._loop.call_later(delay, self._follow_again, changed)
                                for delay in AGAIN_S]

    def _follow_again(self, changed: Mapping[Address, str | None]) -> None:
        with self._contained:
            self.follow(changed)

    def find_changed(self) -> dict[Address, str | None]:
        """Where the peers are to which the kernel sends from another address than before; that."""
        before = self.known
        self.known = {address: self._source_towards(endpoint)
                      for address, endpoint in self._endpoints().items()}
        return {address: before[address] for address, source in self.known.items()
                if address in before and before[address] != source}

    def follow(self, changed: Mapping[Address, str | None]) -> None:
        """Send to the peers there as the kernel would, if it was by that way: whoever sends to
        another address of ours (of another uplink, by a rule) is sent to from there, as before."""
        for peer in list(self._device.peers.values()):
            if peer.endpoint is None or peer.endpoint.address not in changed:
                continue
            before = changed[peer.endpoint.address]
            if before is not None and peer.source_address not in (
                    NO_SOURCE_ADDRESS, source_address_of(before)):
                continue
            with self._contained:
                log.debug("the way to %(peer)s has changed: from %(source)s",
                          {"peer": peer, "source": self.known.get(peer.endpoint.address)})
                self._device.endpoints.way_changed(peer, now_ns())
                self._device.redirect(peer, now_ns())
