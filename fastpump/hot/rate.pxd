# Rates of messages: the generic cell rate algorithm (GCRA, ITU-T I.371).
#
# A bucket is one word: when it will be full again, ns. Its owner alone writes it; buckets that
# workers share, of bytes or packets, are in hot/token_bucket.pxd.

from libc.stdint cimport uint64_t

from fastpump.hot.constants cimport SECOND_NS


cdef inline bint rate_take(uint64_t *full_at_ns, uint64_t now, uint64_t rate,
                           uint64_t burst) noexcept nogil:
    """One token of a bucket that holds `burst`, and gets `rate` of them per second."""
    cdef uint64_t interval = SECOND_NS // rate
    if full_at_ns[0] < now:
        full_at_ns[0] = now
    if full_at_ns[0] - now > (burst - 1) * interval:
        return False
    full_at_ns[0] += interval
    return True
