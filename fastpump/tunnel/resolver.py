"""Endpoints that were given as host names: resolved again when a handshake keeps failing, for
the name may mean another address by now (dynamic DNS)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import weakref

from fastpump.conn import endpoint
from fastpump.conn.endpoint import Endpoint
from fastpump.device.device import Device
from fastpump.device.peer import Peer
from fastpump.errors import ConfigError

log = logging.getLogger("fastpump")


def look_up(host: str, port: int) -> asyncio.Future[Endpoint]:
    """The address of a name, ConfigError; asked by a thread that nobody has to wait for: a
    resolver whose answer does not come must not hold up the end."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Endpoint] = loop.create_future()

    def tell(found: Endpoint | ConfigError) -> None:
        if answer.done():
            return
        if isinstance(found, ConfigError):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    def ask() -> None:
        found: Endpoint | ConfigError
        try:
            found = endpoint.resolve(host, port)
        except ConfigError as error:
            found = error
        with contextlib.suppress(RuntimeError):     # the loop has ended
            loop.call_soon_threadsafe(tell, found)

    threading.Thread(target=ask, daemon=True).start()
    return answer


class Resolver:
    """Asks for the name of a peer (Peer.endpoint_name) at most every `interval_s` seconds;
    0: never again."""

    def __init__(self, interval_s: int) -> None:
        self.interval_s = interval_s
        self.device: Device | None = None
        self._asked_at: weakref.WeakKeyDictionary[Peer, float] = weakref.WeakKeyDictionary()
        self._tasks: set[asyncio.Task[None]] = set()

    def note_resolved(self, peer: Peer) -> None:
        """The peer's name was resolved just now."""
        self._asked_at[peer] = asyncio.get_running_loop().time()

    def is_unanswered(self, peer: Peer) -> None:
        """An initiation to the peer had no answer."""
        if peer.endpoint_name is None or not self.interval_s:
            return
        loop = asyncio.get_running_loop()
        if loop.time() < self._asked_at.get(peer, 0.0) + self.interval_s:
            return
        self._asked_at[peer] = loop.time()
        task = loop.create_task(self._resolve(peer, *peer.endpoint_name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _resolve(self, peer: Peer, host: str, port: int) -> None:
        try:
            found = await look_up(host, port)
            # The peer may be gone by now, or somewhere else by configuration.
            if self.device is None or self.device.peers.get(peer.public_key) is not peer \
                    or peer.endpoint_name != (host, port) or found == peer.endpoint:
                return
            self.device.set_endpoint(peer, found)
        except ConfigError as error:
            log.warning("%s", error)
        else:
            log.info("%s is %s now: %s", host, found.address, peer)
