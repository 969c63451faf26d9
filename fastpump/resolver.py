"""Endpoints that were given as host names: resolved again when a handshake keeps failing, for
the name may mean another address by now (dynamic DNS)."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from fastpump import endpoint
from fastpump.device import Device
from fastpump.errors import ConfigError
from fastpump.peer import Peer

log = logging.getLogger("fastpump")


@dataclass(slots=True)
class _Name:
    host: str
    port: int
    asked_at: float


class Resolver:
    """Asks for a peer's name at most every `interval_s` seconds; 0: never again."""

    def __init__(self, interval_s: int) -> None:
        self._interval_s = interval_s
        self._names: dict[bytes, _Name] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.device: Device | None = None

    def set_interval(self, interval_s: int) -> None:
        """Another interval; 0: never again."""
        self._interval_s = interval_s

    def watch(self, public_key: bytes, host: str, port: int) -> None:
        """The peer was configured with this name, which was resolved just now."""
        try:
            endpoint.parse_host(host)
        except ValueError:
            self._names[public_key] = _Name(host, port, asyncio.get_running_loop().time())

    def forget(self, public_key: bytes) -> None:
        """The peer is gone, or has another endpoint."""
        self._names.pop(public_key, None)

    def is_unanswered(self, peer: Peer) -> None:
        """An initiation to the peer had no answer."""
        name = self._names.get(peer.public_key)
        if name is None or not self._interval_s:
            return
        loop = asyncio.get_running_loop()
        if loop.time() < name.asked_at + self._interval_s:
            return
        name.asked_at = loop.time()
        task = loop.create_task(self._resolve(peer.public_key, name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _resolve(self, public_key: bytes, name: _Name) -> None:
        try:
            found = await asyncio.to_thread(endpoint.resolve, name.host, name.port)
        except ConfigError as error:
            log.warning("%s", error)
            return
        peer = None if self.device is None else self.device.peers.get(public_key)
        if peer is None or self.device is None or self._names.get(public_key) is not name \
                or found == peer.endpoint:
            return
        try:
            self.device.set_endpoint(peer, found)
        except ConfigError as error:
            log.warning("%s", error)
            return
        log.info("%s is %s now: %s", name.host, found.address, peer)
