"""The timestamps of our initiations (TAI64N), also over a restart.

A responder remembers the newest timestamp of each key, and answers no initiation that is not newer:
if the clock were set back, it would shut us out until the clock is there again. So each timestamp
is newer than the last one, and before one is sent, a later one is on disk; a process that starts
goes on behind that.

    STEP     how far ahead that is, so that the disk is written rarely
    NUDGE    the same while timestamps are ahead of the clock, and grow by a nanosecond: a process
             that is killed over and over must not get far ahead of the clock
    close    at an orderly end, the newest that was sent is what is on disk

What is kept belongs to the key, as it does at the responder. If it is lost, the clock is all that
there is to go by.
"""

from __future__ import annotations

from fastpump.constants import SECOND, TIMESTAMP_LEN
from fastpump.device.callbacks import DeviceCallbacks
from fastpump.protocol import tai64n

STEP = 600 * SECOND
NUDGE = SECOND // 1000
_NONE = bytes(TIMESTAMP_LEN)


class Timestamps:
    """Of the initiations of a device."""

    def __init__(self, callbacks: DeviceCallbacks) -> None:
        self._callbacks = callbacks
        self._public_key: bytes | None = None
        self._newest = _NONE
        """That was sent, or may have been by a process before us."""
        self._kept = _NONE
        """What is on disk."""

    def set_key(self, public_key: bytes | None) -> None:
        """Our static key is another one."""
        self.close()
        self._public_key = public_key
        self._newest = self._kept = _NONE if public_key is None \
            else self._callbacks.load_timestamp(public_key)

    def after(self, previous: bytes) -> bytes:
        """A timestamp for a peer that was sent `previous` (zeros: nothing by this process). It is
        to be sent."""
        now = self._callbacks.unix_ns()
        timestamp = tai64n.emit_after(previous if any(previous) else self._newest, now)
        self._newest = max(self._newest, timestamp)
        if timestamp > self._kept:
            is_of_clock = timestamp == tai64n.emit(now)
            self._keep(tai64n.later(timestamp, STEP if is_of_clock else NUDGE))
        return timestamp

    def close(self) -> None:
        """No more are sent with this key."""
        if self._newest < self._kept:
            self._keep(self._newest)

    def _keep(self, timestamp: bytes) -> None:
        assert self._public_key is not None
        before, self._kept = self._kept, timestamp
        self._callbacks.keep_timestamp(self._public_key, before, timestamp)
