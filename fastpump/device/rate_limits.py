"""Write rate limits into the shared tables."""

from __future__ import annotations

from fastpump._core import SharedTables
from fastpump.constants import MILLISECOND
from fastpump.ratelimit import RateLimits, TokenBucket


def apply(tables: SharedTables, slot: int | None, limits: RateLimits, now: int) -> None:
    """Limit the peer in a slot, or the interface (None), from now on. Buckets begin full."""
    for direction, limiter in (("tx", limits.tx), ("rx", limits.rx)):
        tables.limiters.set(slot, direction, _bucket(limiter.bandwidth), _bucket(limiter.ops), now)


def _bucket(bucket: TokenBucket | None) -> tuple[int, int, int] | None:
    """(tokens, refill time in ns, one-time burst)."""
    if bucket is None:
        return None
    return bucket.size, bucket.refill_ms * MILLISECOND, bucket.one_time_burst
