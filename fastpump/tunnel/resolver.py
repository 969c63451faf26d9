"""Endpoints that were given as host names, of which a peer may have several.

start, reload  All names of a peer are asked for at once, and waited for ANSWER_WAIT_S at most
               (`ask`). The peer is configured by what is known then (`follow`): if that is
               nothing, without an endpoint. A name without an answer is asked for again after 1 s,
               then after twice as long each time, up to 60 s; and at once, and from 1 s on, when
               the host's way out has changed (`hurry`). Its answer configures the peer, and
               whatever waits there starts a handshake.
unanswered     When an initiation has no answer, the names may mean other addresses by now (dynamic
               DNS): they are asked for again, at most every `interval_s` seconds. If the peer is at
               none of their addresses then, it moves.

All addresses of all names are candidates, which the device tries in turn (device/endpoints.py).

Times are CLOCK_BOOTTIME, which goes on while the machine sleeps, as the loop's clock does not:
after a sleep, what is due is done within TURN_S.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastpump.clock import now_ns
from fastpump.conn import endpoint
from fastpump.conn.endpoint import Endpoint
from fastpump.constants import SECOND
from fastpump.device.device import Device
from fastpump.device.peer import HostAndPort, Peer
from fastpump.device.peer_change import UNCHANGED, PeerChange, Presence
from fastpump.errors import ConfigError, FastpumpError, SystemSetupError
from fastpump.tunnel.names import Names, no_answer

log = logging.getLogger("fastpump")

MAX_LOOKUPS = 16
"""At a time; each has a thread."""
ANSWER_WAIT_S = 3.0
"""How long a start waits for answers; a name server that is there needs less."""
FIRST_RETRY_S, LAST_RETRY_S = 1, 60
TURN_S = 1.0


LookUp = Callable[[str, int], tuple[Endpoint, ...]]
"""The endpoints of a host and a port; ConfigError."""


class Resolver:
    """Resolves the names of a device's peers."""

    def __init__(self, interval_s: int, clock: Callable[[], int] = now_ns, *,
                 resolve: LookUp | None = None) -> None:
        """`interval_s`: between questions about a peer that does not answer; 0: never. `resolve`:
        asks for a name, in a thread; None: as the host does."""
        self.interval_s = interval_s
        self._resolve = resolve
        self.device: Device | None = None
        self._clock = clock
        self._names: weakref.WeakKeyDictionary[Peer, Names] = weakref.WeakKeyDictionary()
        self._resolved_at: weakref.WeakKeyDictionary[Peer, int] = weakref.WeakKeyDictionary()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._free_lookups = asyncio.Semaphore(MAX_LOOKUPS)
        self._hurried = asyncio.Event()
        self._hurried_at: int | None = None

    # -- a start, or a reload

    async def ask(self, wanted: Mapping[bytes, tuple[HostAndPort, ...]]) -> dict[bytes, Names]:
        """Ask for the endpoints of peers, by public key. What has no answer in time is told, and
        still waited for if the peer is followed."""
        asked = {key: Names(given) for key, given in wanted.items()}
        for names in asked.values():
            unknown = tuple(each for each in names.given if not self._is_address(names, each))
            if unknown:
                names.asking = self._start(self._ask(names, unknown))
        rounds = [names.asking for names in asked.values() if names.asking is not None]
        if rounds:
            await asyncio.wait(rounds, timeout=ANSWER_WAIT_S)
        for names in asked.values():
            for each in names.missing:
                if each not in names.errors:
                    self._tell(names, each, no_answer(each))
        return asked

    async def ask_again(self, asked: Iterable[Names]) -> None:
        """Ask once more for what has had no answer."""
        await asyncio.gather(*(self._ask(names, names.missing) for names in asked))

    def _is_address(self, names: Names, name: HostAndPort) -> bool:
        """Whether there is nobody to ask; there may be thousands of those."""
        if endpoint.is_name(name[0]):
            return False
        try:
            names.found[name] = endpoint.resolve(*name)
        except ConfigError as error:        # the interface of a link-local address is missing
            self._tell(names, name, str(error))
        return True

    def candidates(self, names: Names) -> tuple[Endpoint, ...]:
        """What is known of where a peer may be."""
        assert self.device is not None
        return names.candidates(self.device.endpoints.is_possible)

    def follow(self, peer: Peer, names: Names) -> None:
        """The peer was configured by what is known of these names."""
        self._names[peer] = names
        self.note_resolved(peer)
        names.is_placed = bool(names.found)
        if names.missing:
            self._start(self._keep_asking(peer, names))

    async def _keep_asking(self, peer: Peer, names: Names) -> None:
        if names.asking is not None:
            await names.asking
            self._place(peer, names)
        delay_s = FIRST_RETRY_S
        while names.missing:
            delay_s = await self.pause(delay_s)
            if not self._are_of(peer, names):
                return
            await self._ask(names, names.missing)
            self._place(peer, names)

    async def pause(self, delay_s: int) -> int:
        """Wait before a name is asked for again, unless there may be an answer now; for how long
        to wait the next time."""
        if await self._sleep(delay_s):
            return FIRST_RETRY_S
        return min(2 * delay_s, LAST_RETRY_S)

    async def _sleep(self, delay_s: int) -> bool:
        """Whether it was cut short."""
        due, hurried = self._clock() + delay_s * SECOND, self._hurried
        while (left := due - self._clock()) > 0 and not hurried.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(hurried.wait(), min(TURN_S, left / SECOND))
        return hurried.is_set()

    def hurry(self) -> None:
        """Name servers may be there now that were not before."""
        now = self._clock()
        if self._hurried_at is None or now >= self._hurried_at + FIRST_RETRY_S * SECOND:
            self._hurried_at = now
            self._hurried.set()
            self._hurried = asyncio.Event()

    def problem(self, peer: Peer) -> str | None:
        """Why the peer waits for an address; None if it does not."""
        names = self._names.get(peer)
        if names is None or not self._are_of(peer, names) or (
                peer.endpoint is not None and not names.missing):
            return None
        return names.problem()

    # -- a peer that does not answer

    def note_resolved(self, peer: Peer) -> None:
        """The peer's name was resolved just now."""
        self._resolved_at[peer] = self._clock()

    def on_unanswered(self, peer: Peer) -> None:
        """An initiation to the peer had no answer."""
        if not any(endpoint.is_name(host) for host, _ in peer.endpoint_names) \
                or not self._is_due(peer):
            return
        self.note_resolved(peer)
        names = self._names.get(peer)
        if names is None or names.given != peer.endpoint_names:
            names = self._names[peer] = Names(peer.endpoint_names, is_placed=True)
        self._start(self._ask_again(peer, names))

    def _is_due(self, peer: Peer) -> bool:
        before = self._resolved_at.get(peer)
        return bool(self.interval_s) and (
            before is None or self._clock() >= before + self.interval_s * SECOND)

    async def _ask_again(self, peer: Peer, names: Names) -> None:
        await self._ask(names, names.given)
        self._place(peer, names, is_lost=True)

    # -- answers

    async def _ask(self, names: Names, which: tuple[HostAndPort, ...]) -> None:
        """Ask once, all at the same time."""
        await asyncio.gather(*(self._ask_one(names, each) for each in which))

    async def _ask_one(self, names: Names, name: HostAndPort) -> None:
        try:
            names.found[name] = await self.look_up(*name)
        except FastpumpError as error:
            self._tell(names, name, str(error))
        else:
            names.errors.pop(name, None)
            names.told.discard(name)

    @staticmethod
    def _tell(names: Names, name: HostAndPort, why: str) -> None:
        log.log(logging.DEBUG if name in names.told else logging.WARNING, "%(why)s; trying on",
                {"why": why})
        names.errors[name] = why
        names.told.add(name)

    def _place(self, peer: Peer, names: Names, *, is_lost: bool = False) -> None:
        """Tell the device what is known of the names by now. The peer moves to one of its
        candidates if it is not at one of them, and was told of none yet or does not answer."""
        if not names.found or not self._are_of(peer, names):
            return
        assert self.device is not None
        candidates = self.candidates(names)
        must_move = peer.endpoint not in candidates and (
            is_lost or peer.endpoint is None or not names.is_placed)
        try:
            self.device.configure_peer(PeerChange(
                peer.public_key, Presence.UPDATE, candidates=candidates,
                endpoint=candidates[0] if must_move else UNCHANGED), self._clock())
        except ConfigError as error:
            self._tell(names, names.given[0], str(error))
            return
        names.is_placed = True
        if must_move:
            log.info("%(host)s is %(address)s now: %(peer)s", {
                "host": next(host for (host, _), found in names.found.items()
                             if candidates[0] in found),
                "address": candidates[0].address, "peer": peer})

    def _are_of(self, peer: Peer, names: Names) -> bool:
        """Whether the peer is still there, and still configured by those names."""
        return self.device is not None and self.device.peers.get(peer.public_key) is peer \
            and self._names.get(peer) is names and names.given == peer.endpoint_names

    def _start(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def look_up(self, host: str, port: int) -> tuple[Endpoint, ...]:
        """Resolve a name; ConfigError, and SystemSetupError if the system cannot do it now. A
        daemon thread asks: an answer that does not come must not keep the process from ending."""
        if not endpoint.is_name(host):
            return endpoint.resolve(host, port)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[Endpoint, ...]] = loop.create_future()

        def deliver(found: tuple[Endpoint, ...] | ConfigError) -> None:
            self._free_lookups.release()        # with the thread, whoever still waits
            if answer.done():
                return
            if isinstance(found, ConfigError):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def ask() -> None:
            found: tuple[Endpoint, ...] | ConfigError
            try:
                found = (self._resolve or endpoint.resolve)(host, port)
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
