# Token buckets, after Firecracker's rate limiter: `size` tokens fill in `refill_ns`, and `burst`
# tokens more are there once, at the start. A packet takes its bytes from one bucket, and one
# token for itself from another; what comes first are the tokens of the burst.
#
# A bucket is a point in time: when it was, or will be, empty (`empty_ns`). Taking tokens moves
# that point on, by one compare and swap, so all workers share a bucket without locks, and its
# rate is exact for all of them together. A packet has to wait until the bucket holds what it
# takes; it takes it at once all the same, so the next one waits longer: packets of one bucket are
# due in order. A packet larger than the bucket waits until the bucket is full, and leaves it in
# debt.
#
# Bytes: of packets as they would be without offloads, from the IP header on (TUN) or the
# Ethernet header (TAP). Operations: such packets.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from fastpump.hot.atomics cimport RELAXED, SEQ_CST, cas64, load64, store64
from fastpump.hot.shm cimport BUCKET_EPOCH_NS, Bucket, Limiter, Tables

cdef enum:
    BUCKET_MAX_TAKEN = 1 << 22      # tokens at once, so that times an hour is below 2^64


cdef inline uint64_t bucket_time(uint64_t tokens, uint64_t size, uint64_t refill_ns) noexcept nogil:
    """How long so many tokens take to fill."""
    if tokens > BUCKET_MAX_TAKEN:
        tokens = BUCKET_MAX_TAKEN
    return tokens * refill_ns / size


cdef inline uint64_t bucket_wait(Bucket *self, uint64_t tokens, uint64_t now_ns) noexcept nogil:
    """How long a packet that takes so many would have to wait, ns."""
    cdef uint64_t size = load64(&self.size, RELAXED)
    cdef uint64_t refill_ns = load64(&self.refill_ns, RELAXED)
    cdef uint64_t due_ns
    if size == 0 or load64(&self.burst, RELAXED) >= tokens:
        return 0
    now_ns += BUCKET_EPOCH_NS
    due_ns = load64(&self.empty_ns, RELAXED) + bucket_time(
        tokens if tokens < size else size, size, refill_ns)
    return due_ns - now_ns if due_ns > now_ns else 0


cdef inline uint64_t bucket_take(Bucket *self, uint64_t tokens, uint64_t now_ns) noexcept nogil:
    """Take tokens; how long the packet has to wait for them, ns."""
    cdef uint64_t size, refill_ns, burst, before, empty_ns, due_ns
    if load64(&self.size, RELAXED) == 0:
        return 0
    while True:
        burst = load64(&self.burst, RELAXED)
        if burst == 0:
            break
        if cas64(&self.burst, burst, burst - tokens if burst > tokens else 0):
            if burst >= tokens:
                return 0
            tokens -= burst
            break
    now_ns += BUCKET_EPOCH_NS
    while True:
        before = load64(&self.empty_ns, RELAXED)
        size = load64(&self.size, RELAXED)
        refill_ns = load64(&self.refill_ns, RELAXED)
        if size == 0:
            return 0
        empty_ns = before
        if empty_ns + refill_ns < now_ns:
            empty_ns = now_ns - refill_ns       # it is full
        due_ns = empty_ns + bucket_time(tokens if tokens < size else size, size, refill_ns)
        # A limit that is changed just now is read again.
        if load64(&self.size, RELAXED) == size and cas64(
                &self.empty_ns, before, empty_ns + bucket_time(tokens, size, refill_ns)):
            return due_ns - now_ns if due_ns > now_ns else 0


cdef inline bint bucket_try(Bucket *self, uint64_t tokens, uint64_t now_ns) noexcept nogil:
    """Take tokens if there are so many; with no limit there always are."""
    if bucket_wait(self, tokens, now_ns):
        return False
    bucket_take(self, tokens, now_ns)
    return True


cdef inline Limiter *limiter_of_peer(const Tables *tables, uint32_t peer,
                                     int direction) noexcept nogil:
    return &tables.limiters[2 + 2 * peer + direction]


cdef inline uint64_t longer(uint64_t a, uint64_t b) noexcept nogil:
    return a if a > b else b


cdef inline uint64_t limiter_wait(const Tables *tables, uint32_t peer, int direction,
                                  uint32_t length, uint32_t packet_count,
                                  uint64_t now_ns) noexcept nogil:
    """How long packets of a peer would have to wait for all limits, ns."""
    cdef Limiter *interface = &tables.limiters[direction]
    cdef Limiter *own = limiter_of_peer(tables, peer, direction)
    return longer(longer(bucket_wait(&interface.bytes, length, now_ns),
                         bucket_wait(&interface.ops, packet_count, now_ns)),
                  longer(bucket_wait(&own.bytes, length, now_ns),
                         bucket_wait(&own.ops, packet_count, now_ns)))


cdef inline uint64_t limiter_take(const Tables *tables, uint32_t peer, int direction,
                                  uint32_t length, uint32_t packet_count,
                                  uint64_t now_ns) noexcept nogil:
    """Take their tokens from all limits; how long they have to wait, ns."""
    cdef Limiter *interface = &tables.limiters[direction]
    cdef Limiter *own = limiter_of_peer(tables, peer, direction)
    return longer(longer(bucket_take(&interface.bytes, length, now_ns),
                         bucket_take(&interface.ops, packet_count, now_ns)),
                  longer(bucket_take(&own.bytes, length, now_ns),
                         bucket_take(&own.ops, packet_count, now_ns)))


# -- the supervisor's side: limits are set while workers take tokens

cdef inline void bucket_set(Bucket *self, uint64_t size, uint64_t refill_ns, uint64_t burst,
                            uint64_t now_ns) noexcept nogil:
    """Configure a full bucket; `size` 0: no limit. There is none while it changes; a worker that
    took the old size just before may use it once more, with the new refill time."""
    store64(&self.size, 0, SEQ_CST)
    store64(&self.refill_ns, refill_ns, SEQ_CST)
    store64(&self.burst, burst, SEQ_CST)
    store64(&self.empty_ns, now_ns + BUCKET_EPOCH_NS - refill_ns, SEQ_CST)
    store64(&self.size, size, SEQ_CST)


cdef inline void limits_clear(const Tables *tables, uint32_t peer) noexcept nogil:
    """A peer that is removed has none."""
    memset(limiter_of_peer(tables, peer, 0), 0, 2 * sizeof(Limiter))
