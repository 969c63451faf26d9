"""Endpoints that were given as host names: looked up at a reload, and again when an initiation has
no answer, for the name may mean another address by now (dynamic DNS)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import weakref

from fastpump.clock import now_ns
from fastpump.conn import endpoint
from fastpump.conn.endpoint import Endpoint
from fastpump.device.device import Device
from fastpump.device.peer import HostAndPort, Peer
from fastpump.device.peer_change import PeerChange, Presence
from fastpump.errors import ConfigError, FastpumpError, SystemSetupError

log = logging.getLogger("fastpump")

MAX_LOOKUPS = 16
"""At a time; each has a thread."""


class Resolver:
    """Resolves the name of a peer that does not answer (Peer.endpoint_name), at most every
    `interval_s` seconds; 0: never."""

    def __init__(self, interval_s: int) -> None:
        self.interval_s = interval_s
        self.device: Device | None = None
        self._resolved_at: weakref.WeakKeyDictionary[Peer, float] = weakref.WeakKeyDictionary()
        self._errors: weakref.WeakKeyDictionary[Peer, str] = weakref.WeakKeyDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._free_lookups = asyncio.Semaphore(MAX_LOOKUPS)

    async def look_up(self, host: str, port: int) -> Endpoint:
        """Resolve a name; ConfigError, and SystemSetupError if the system cannot do it now. A
        daemon thread asks: an answer that does not come must not keep the process from ending."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Endpoint] = loop.create_future()

        def deliver(found: Endpoint | ConfigError) -> None:
            self._free_lookups.release()        # with the thread, whoever still waits
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
                loop.call_soon_threadsafe(deliver, found)

        await self._free_lookups.acquire()
        try:
            threading.Thread(target=ask, daemon=True).start()
        except RuntimeError:
            self._free_lookups.release()
            raise SystemSetupError(f"the endpoint host {host!r} cannot be resolved: no thread can "
                                   "be started; raise the limit of processes (ulimit -u, "
                                   "pids.max)") from None
        return await answer

    def note_resolved(self, peer: Peer) -> None:
        """The peer's name was resolved just now."""
        self._resolved_at[peer] = asyncio.get_running_loop().time()

    def on_unanswered(self, peer: Peer) -> None:
        """An initiation to the peer had no answer."""
        if peer.endpoint_name is None or not self._is_due(peer):
            return
        self.note_resolved(peer)
        task = asyncio.get_running_loop().create_task(self._resolve(peer, peer.endpoint_name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _is_due(self, peer: Peer) -> bool:
        now = asyncio.get_running_loop().time()
        return bool(self.interval_s) \
            and now >= self._resolved_at.get(peer, 0.0) + self.interval_s

    async def _resolve(self, peer: Peer, name: HostAndPort) -> None:
        try:
            found = await self.look_up(*name)
            if self._is_news(peer, name, found):
                assert self.device is not None
                self.device.configure_peer(
                    PeerChange(peer.public_key, Presence.UPDATE, endpoint=found), now_ns())
                log.info("%(host)s is %(address)s now: %(peer)s",
                         {"host": name[0], "address": found.address, "peer": peer})
            self._errors.pop(peer, None)
        except FastpumpError as error:
            is_known = self._errors.get(peer) == str(error)
            log.log(logging.DEBUG if is_known else logging.WARNING, "%(error)s", {"error": error})
            self._errors[peer] = str(error)

    def _is_news(self, peer: Peer, name: HostAndPort, found: Endpoint) -> bool:
        """Whether the peer is still there, still configured by that name, and elsewhere."""
        return self.device is not None and self.device.peers.get(peer.public_key) is peer \
            and peer.endpoint_name == name and peer.endpoint != found
