# Rate limits (hot/token_bucket.pxd).

from libc.stdint cimport uint64_t

from fastpump.hot.shm cimport DIRECTION_RX, DIRECTION_TX, Bucket, Limiter
from fastpump.hot.token_bucket cimport bucket_set, limiter_of_peer, limits_publish

DIRECTIONS = {"tx": DIRECTION_TX, "rx": DIRECTION_RX}


cdef class Limiters:
    """Token buckets of the interface and of peers, in each direction."""

    cdef Mapping mapping

    def __cinit__(self, Mapping mapping):
        self.mapping = mapping

    def set(self, peer, str direction, bytes_bucket, ops_bucket, uint64_t now):
        """The token buckets of a peer, or of the interface (None), in one of DIRECTIONS: each
        (tokens, refill time in ns, one-time burst), or None for no limit. They begin full.
        `now`: CLOCK_BOOTTIME, ns."""
        cdef int which = DIRECTIONS[direction]
        cdef Limiter *limiter = &self.mapping.tables.limiters[which]
        if peer is not None:
            self.mapping.peer(peer)
            limiter = limiter_of_peer(&self.mapping.tables, peer, which)
        bucket_configure(&limiter.bytes, bytes_bucket, now)
        bucket_configure(&limiter.ops, ops_bucket, now)
        limits_publish(&self.mapping.tables, self.mapping.peers_end)


cdef int bucket_configure(Bucket *bucket, parts, uint64_t now) except -1:
    """`parts`: (tokens, refill time in ns, burst), or None for no limit."""
    cdef uint64_t size = 0, refill_ns = 0, burst = 0
    if parts is not None:
        size, refill_ns, burst = parts
        if size == 0 or refill_ns == 0:
            raise ValueError("the size and refill time of a token bucket must not be 0")
    bucket_set(bucket, size, refill_ns, burst, now)
    return 0
