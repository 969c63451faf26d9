"""TAI64N timestamps (WireGuard paper, section 5.1; cr.yp.to/libtai/tai64.html)."""

from __future__ import annotations

from fastpump.constants import SECOND, TIMESTAMP_LEN

_TAI64_BASE = 0x400000000000000A
# The low bits of the clock are not revealed (the kernel does the same).
_GRANULARITY_NS = 1 << 24


def emit(unix_ns: int) -> bytes:
    """12 bytes, big-endian: their order is the order of time."""
    seconds, nanoseconds = divmod(unix_ns, SECOND)
    nanoseconds -= nanoseconds % _GRANULARITY_NS
    return (_TAI64_BASE + seconds).to_bytes(8, "big") + nanoseconds.to_bytes(4, "big")


def emit_after(previous: bytes, unix_ns: int) -> bytes:
    """A timestamp greater than `previous`, also when the clock was set back."""
    timestamp = emit(unix_ns)
    if timestamp > previous:
        return timestamp
    return (int.from_bytes(previous, "big") + 1).to_bytes(12, "big")


def later(timestamp: bytes, ns: int) -> bytes:
    """The one so much later."""
    seconds, nanoseconds = divmod(int.from_bytes(timestamp[8:], "big") + ns, SECOND)
    return (int.from_bytes(timestamp[:8], "big") + seconds).to_bytes(8, "big") \
        + nanoseconds.to_bytes(4, "big")


def is_valid(timestamp: bytes) -> bool:
    """Whether it is a time at all, from 1970 on, that others can follow."""
    return len(timestamp) == TIMESTAMP_LEN and int.from_bytes(timestamp[8:], "big") < SECOND \
        and _TAI64_BASE <= int.from_bytes(timestamp[:8], "big") < 1 << 63
