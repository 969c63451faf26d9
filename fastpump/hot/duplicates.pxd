# Flooded frames that passed here: where relays are redundant, a frame comes several ways, and
# the first one counts (as in IEEE 802.1CB's elimination of replicas).
#
# Whoever floods a frame first names it by a random number, which travels with it. A bucket
# holds the latest SEEN_WAYS names, each with a coarse time, in one word: the oldest gives way,
# by compare and swap. Two workers that bring the same name at once choose the same victim, and
# the one that loses finds the name when it looks again.
#
# A name that was pushed out early would let a copy pass, which RELAY_MAX_HOPS ends. The table
# holds 65536, which the storm limit makes last for seconds.

from libc.stdint cimport uint32_t, uint64_t

from fastpump.hot.atomics cimport ACQUIRE, cas64, load64
from fastpump.hot.constants cimport SEEN_BUCKETS, SEEN_WAYS
from fastpump.hot.shm cimport Tables

cdef enum:
    SEEN_TIME_SHIFT = 26            # of nanoseconds: 67 ms
    SEEN_TIME_MASK = 0xffff
    SEEN_AHEAD = 15


cdef inline bint seen_before(const Tables *tables, uint64_t name, uint64_t now_ns) noexcept nogil:
    """Whether a frame with that name (56 bits) passed already; from now on it has."""
    cdef uint64_t mix = name * <uint64_t>0x9e3779b97f4a7c15u
    cdef uint64_t *bucket = &tables.seen[((mix ^ mix >> 32) % SEEN_BUCKETS) * SEEN_WAYS]
    cdef uint64_t mark = mix & ~<uint64_t>SEEN_TIME_MASK    # 48 bits
    cdef uint64_t time = (now_ns >> SEEN_TIME_SHIFT) & SEEN_TIME_MASK
    cdef uint64_t entry, oldest = 0
    cdef uint32_t age, oldest_age, victim = 0
    cdef int i, _
    for _ in range(SEEN_WAYS):
        oldest_age = 0
        for i in range(SEEN_WAYS):
            entry = load64(&bucket[i], ACQUIRE)
            if entry & ~<uint64_t>SEEN_TIME_MASK == mark and entry != 0:
                return True
            age = SEEN_TIME_MASK + 1
            if entry != 0:
                age = <uint32_t>((time - entry) & SEEN_TIME_MASK)
                if age > SEEN_TIME_MASK - SEEN_AHEAD:
                    age = 0         # another worker's time is a little ahead
            if i == 0 or age > oldest_age:
                oldest, oldest_age, victim = entry, age, i
        if cas64(&bucket[victim], oldest, mark | time):
            return False
    return False
