# Rate limits (hot/token_bucket.pxd).

from libc.stdint cimport uint32_t, uint64_t

from fastpump.hot.atomics cimport SEQ_CST, store32
from fastpump.hot.shm cimport DIRECTION_RX, DIRECTION_TX, Bucket, Limiter
from fastpump.hot.token_bucket cimport bucket_set, limiter_of_peer, limits_clear

DIRECTIONS = {"tx": DIRECTION_TX, "rx": DIRECTION_RX}


cdef class Limiters:
    """Token buckets of the interface and of peers, in each direction."""

    cdef Mapping mapping
    cdef set limited                # (peer or None, direction)

    def __cinit__(self, Mapping mapping):
        self.mapping = mapping
        self.limited = set()

    def set(self, peer, str direction, bytes_bucket, ops_bucket, uint64_t now):
        """The token buckets of a peer, or of the interface (None), in one of DIRECTIONS: each
        (tokens, refill time in ns, one-time burst), or None for no limit. They begin full.
        `now`: CLOCK_BOOTTIME, ns."""
        cdef int which = DIRECTIONS[direction]
        cdef Limiter *limiter = &self.mapping.tables.limiters[which]
        if peer is not None:
            self.mapping.check_peer(peer)
            limiter = limiter_of_peer(&self.mapping.tables, peer, which)
        bucket_configure(&limiter.bytes, bytes_bucket, now)
        bucket_configure(&limiter.ops, ops_bucket, now)
        if bytes_bucket is None and ops_bucket is None:
            self.limited.discard((peer, which))
        else:
            self.limited.add((peer, which))
        self.publish()

    cdef int clear(self, uint32_t peer) except -1:
        """A peer that is removed has no limits."""
        limits_clear(&self.mapping.tables, peer)
        self.limited -= {(peer, DIRECTION_TX), (peer, DIRECTION_RX)}
        self.publish()
        return 0

    cdef int publish(self) except -1:
        """Let the workers know whether there is any limit; without one they look at no bucket."""
        store32(&self.mapping.configuration.header.has_rate_limits, len(self.limited) != 0, SEQ_CST)
        return 0


cdef int bucket_configure(Bucket *bucket, parts, uint64_t now) except -1:
    """`parts`: (tokens, refill time in ns, burst), or None for no limit."""
    cdef uint64_t size = 0, refill_ns = 0, burst = 0
    if parts is not None:
        size, refill_ns, burst = parts
        if size == 0 or refill_ns == 0:
            raise ValueError("the size and refill time of a token bucket must not be 0")
    bucket_set(bucket, size, refill_ns, burst, now)
    return 0


cdef storm_bucket(uint64_t per_s):
    """The parts of a bucket for so many flooded frames a second; 0: no limit."""
    return (per_s, 1000000000, 0) if per_s else None
