"""What a device needs from its owner: the supervisor, or a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastpump.conn.endpoint import Endpoint
from fastpump.constants import TIMESTAMP_LEN
from fastpump.device.peer import Peer


def _ignore(*_arguments: object) -> None:
    pass


def _no_timestamp(_public_key: bytes) -> bytes:
    return bytes(TIMESTAMP_LEN)


@dataclass(frozen=True, slots=True)
class DeviceCallbacks:
    """`on_*` say what happened; the others are services that the device uses."""

    transmit: Callable[[bytes, Endpoint, bytes], None]
    """Send a message to an endpoint, from a source address (or NO_SOURCE_ADDRESS). OSError if the
    kernel refuses it."""
    ring: Callable[[], None]
    """Wake all workers, to look at what they have staged."""
    unix_ns: Callable[[], int]
    """The wall clock, for TAI64N."""
    jitter: Callable[[int], int]
    """A random number below its argument."""
    transmit_lane: Callable[[bytes, Endpoint, bytes, int | None], object] = _ignore
    """Like `transmit`, for a lane message: from the lane socket of that number, or our port
    (None)."""
    transmit_probe: Callable[[bytes, Endpoint, bytes, int | None, int], bool] | None = None
    """Like `transmit_lane`, but never in fragments; in datagrams of the last argument's length, or
    in one (0). False if our own link does not take it. None: paths are not probed."""
    on_deadline: Callable[[], None] = _ignore
    """`Device.next_deadline` may be earlier than it was."""
    on_retired: Callable[[], None] = _ignore
    """Something waits in the shared tables to be wiped (SharedTables.retired)."""
    on_endpoint: Callable[[Endpoint | None, Endpoint | None], None] = _ignore
    """A peer was at the first endpoint, and is at the second now (None: nowhere): admit its
    handshakes when others must wait."""
    on_unanswered: Callable[[Peer], None] = _ignore
    """An initiation had no answer in time: the endpoint's name may resolve to another address
    now."""
    load_timestamp: Callable[[bytes], bytes] = _no_timestamp
    """The newest timestamp that may have been sent with our static key of that public key; zeros
    for none."""
    keep_timestamp: Callable[[bytes, bytes, bytes], None] = _ignore
    """Keep a timestamp for that public key, in place of the one that was kept last or loaded; it is
    on disk on return."""
