"""The queue of handshake messages between the intake and the device.

A handshake costs a hundred microseconds or more, and the intake lets in bursts: they wait here,
and are served in slices, so that timers, workers' events and control clients have their
turn. While many wait, the intake is told that we are overloaded (hot/admission.pxd says what
it does then).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from fastpump._core import ADMIT_HANDSHAKE, ADMIT_TRANSPORT, Admission
from fastpump.conn.endpoint import Endpoint
from fastpump.constants import COOKIE_SECRET_MAX_AGE, SECOND
from fastpump.device.device import Device

QUEUE_LEN = 512
OVERLOAD_LEN = 128
OVERLOAD_HOLD = SECOND
SLICE = SECOND // 200

Admitted = tuple[int, bytes, bytes, bytes]
"""What Admission.receive gives: (verdict, message, sockaddr, own address)."""


class Handshakes:
    """Takes what the intake admits, and serves it to the device."""

    def __init__(self, device: Device, intake: Admission,
                 pass_on: Callable[[bytes, bytes, bytes], None]) -> None:
        """`pass_on(message, sockaddr, own address)` gives a transport message to its worker."""
        self._device = device
        self._intake = intake
        self._pass_on = pass_on
        self._queue: deque[tuple[bytes, bytes, bytes]] = deque()
        self._secret_renewed_at = 0
        self.verdicts: Counter[str] = Counter()

    def receive(self, fd: int, now: int) -> int:
        """Receive once from the handshake socket: how many messages came, ADMISSION_BATCH at
        most. OSError is what ICMP said of an earlier send."""
        if now >= self._secret_renewed_at + COOKIE_SECRET_MAX_AGE:
            self._intake.renew_cookie_secret()
            self._secret_renewed_at = now
        received, admitted = self._intake.receive(fd, now)
        self._take(admitted, now)
        return received

    def _take(self, admitted: list[Admitted], now: int) -> None:
        """Queue messages, pass on what is a worker's."""
        for verdict, message, sockaddr, local in admitted:
            if verdict == ADMIT_TRANSPORT:
                self._pass_on(message, sockaddr, local)
            elif len(self._queue) < QUEUE_LEN:
                self._queue.append((message, sockaddr, local))
            else:
                self.verdicts["DROP_HANDSHAKE_OVERLOAD"] += 1
        if len(self._queue) >= OVERLOAD_LEN:
            self._intake.declare_overload(now + OVERLOAD_HOLD)

    def take_stray(self, message: bytes, sockaddr: bytes, local: bytes, now: int) -> None:
        """A handshake message that a worker's socket received."""
        verdict = self._intake.judge(message, sockaddr, now)
        if verdict in (ADMIT_HANDSHAKE, ADMIT_TRANSPORT):
            self._take([(verdict, message, sockaddr, local)], now)

    def serve(self, clock: Callable[[], int]) -> bool:
        """Handle messages for a slice of time; whether some still wait."""
        now = clock()
        end = now + SLICE
        while self._queue and now < end:
            message, sockaddr, local = self._queue.popleft()
            self._device.receive(message, Endpoint.from_sockaddr(sockaddr), local, now)
            now = clock()
        return bool(self._queue)
