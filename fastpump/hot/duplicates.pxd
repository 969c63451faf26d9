# Duplicate filter of flooded frames: where relays are redundant, a frame comes by several routes,
# and the first one counts (as in IEEE 802.1CB's elimination of replicas).
#
# The first to flood a frame gives it a random flood id, which travels with it. A bucket holds the
# latest DUPLICATES_WAYS ids, each with a coarse time, in one word: the oldest is replaced, by
# compare and swap. Two workers that bring the same id at once choose the same victim, and the one
# that loses finds the id when it looks again.
#
# An id that was pushed out early would let a copy pass, which RELAY_MAX_HOPS ends. The table
# holds 65536, which the storm limit makes last for seconds.

from libc.stdint cimport uint32_t, uint64_t

from fastpump.hot.atomics cimport ACQUIRE, cas64, load64
from fastpump.hot.constants cimport DUPLICATES_BUCKETS, DUPLICATES_WAYS
from fastpump.hot.shm cimport Tables

cdef enum:
    DUPLICATES_TIME_SHIFT = 26      # of nanoseconds: 67 ms
    DUPLICATES_TIME_MASK = 0xffff
    DUPLICATES_AHEAD = 15


cdef inline bint duplicates_test_and_set(const Tables *tables, uint64_t flood_id,
                                         uint64_t now_ns) noexcept nogil:
    """Enter a flood id (56 bits); True if it was there already."""
    cdef uint64_t mix = flood_id * <uint64_t>0x9e3779b97f4a7c15u
    cdef uint64_t *bucket = &tables.duplicates[
        ((mix ^ mix >> 32) % DUPLICATES_BUCKETS) * DUPLICATES_WAYS]
    cdef uint64_t mark = mix & ~<uint64_t>DUPLICATES_TIME_MASK  # 48 bits
    cdef uint64_t time = (now_ns >> DUPLICATES_TIME_SHIFT) & DUPLICATES_TIME_MASK
    cdef uint64_t entry, oldest = 0
    cdef uint32_t age, oldest_age, victim = 0
    cdef int i, _
    for _ in range(DUPLICATES_WAYS):
        oldest_age = 0
        for i in range(DUPLICATES_WAYS):
            entry = load64(&bucket[i], ACQUIRE)
            if entry & ~<uint64_t>DUPLICATES_TIME_MASK == mark and entry != 0:
                return True
            age = DUPLICATES_TIME_MASK + 1
            if entry != 0:
                age = <uint32_t>((time - entry) & DUPLICATES_TIME_MASK)
                if age > DUPLICATES_TIME_MASK - DUPLICATES_AHEAD:
                    age = 0         # another worker's time is a little ahead
            if i == 0 or age > oldest_age:
                oldest, oldest_age, victim = entry, age, i
        if cas64(&bucket[victim], oldest, mark | time):
            return False
    return False
