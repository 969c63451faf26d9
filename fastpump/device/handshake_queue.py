"""The queue of handshake messages between admission control and the device.

A handshake costs a hundred microseconds or more, and bursts are admitted: they wait here, and are
served in slices, so that timers, workers' events and control clients do not have to. While many
wait, overload is declared (hot/admission.pxd).

Before each slice the workers' events are handed to the device. A peer starts a new handshake after
it has used the session before, but the two take different paths to us: without this, the initiation
could drop the session whose confirmation is still in a worker's ring. All messages of a slice were
queued before it began, so what preceded them is in the rings by then.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fastpump._core import Admission
from fastpump.conn.endpoint import Endpoint
from fastpump.constants import COOKIE_SECRET_MAX_AGE, SECOND
from fastpump.device.device import Device
from fastpump.verdicts import Verdict

QUEUE_LEN = 512
OVERLOAD_LEN = 128
OVERLOAD_HOLD = SECOND
SLICE = SECOND // 200

Datagram = tuple[bytes, bytes, bytes]
"""(message, sockaddr of the sender, the address of ours that it came to)"""


@dataclass(frozen=True, slots=True)
class QueueCallbacks:
    """What the queue needs from its owner."""

    on_slice: Callable[[], None]
    """A slice begins: hand the workers' events to the device."""
    on_passed_on: Callable[[Iterable[int]], None]
    """Transport messages that came behind handshake messages were given to these workers: wake
    them."""


class HandshakeQueue:
    """Queues admitted messages, and hands them to the device."""

    def __init__(self, device: Device, admission: Admission, callbacks: QueueCallbacks) -> None:
        self._device = device
        self._admission = admission
        self._callbacks = callbacks
        self._queue: deque[Datagram] = deque()
        self._secret_renewed_at = 0
        self.verdicts: Counter[str] = Counter()

    def receive(self, fd: int, now: int) -> int:
        """Receive once from the handshake socket: how many messages came, ADMISSION_BATCH at
        most. OSError reports an ICMP error of an earlier send."""
        if now >= self._secret_renewed_at + COOKIE_SECRET_MAX_AGE:
            self._admission.renew_cookie_secret()
            self._secret_renewed_at = now
        received, admitted, passed_on = self._admission.receive(fd, now)
        for datagram in admitted:
            self.add(datagram, now)
        self._callbacks.on_passed_on(passed_on)
        return received

    def receive_misdelivered(self, worker: int, fd: int, now: int) -> None:
        """Take the handshake messages that a worker's socket has received; cookies leave by the
        handshake socket."""
        for datagram in self._admission.receive_misdelivered(worker, fd, now):
            self.add(datagram, now)

    def add(self, datagram: Datagram, now: int) -> None:
        """Queue an admitted message."""
        if len(self._queue) < QUEUE_LEN:
            self._queue.append(datagram)
        else:
            self.verdicts[Verdict.DROP_HANDSHAKE_OVERLOAD] += 1
        if len(self._queue) >= OVERLOAD_LEN:
            self._admission.declare_overload(now + OVERLOAD_HOLD)

    def serve(self, clock: Callable[[], int]) -> bool:
        """Handle messages for a slice of time; whether some still wait."""
        if not self._queue:
            return False
        self._callbacks.on_slice()
        now = clock()
        end = now + SLICE
        while self._queue and now < end:
            message, sockaddr, source_address = self._queue.popleft()
            self._device.receive(message, Endpoint.from_sockaddr(sockaddr), source_address, now)
            now = clock()
        return bool(self._queue)
