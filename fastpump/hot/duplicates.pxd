# Duplicate filter of flooded frames: where relays are redundant, a frame comes by several routes,
# and the first one counts (as in IEEE 802.1CB's elimination of replicas).
#
# The first to flood a frame gives it a random flood id, which travels with it. But all who get the
# frame learn the id, and could send another frame by it, before the first has come to others. So
# what is remembered is a keyed hash (hot/poly_hash.h) of the id, the originator and the frame: of
# all but a TCP or UDP checksum, which is partial on some routes and complete on others, and the ECN
# field (with IPv4's header checksum), which a router may have marked on one of them.
#
# And the hops with it: whoever passes a frame on could claim so many that others do not. A copy
# that made fewer hops is flooded once more by relays, and delivered to nobody for a second time.
#
# A bucket holds the latest DUPLICATES_WAYS hashes, each with hops and a coarse time, in one word:
# the oldest is replaced, by compare and swap. Two workers that bring the same frame at once choose
# the same victim, and the one that loses finds the hash when it looks again.
#
# A hash that was pushed out early would let a copy pass, which RELAY_MAX_HOPS ends. The table
# holds 65536, which the storm limit makes last for seconds.

from libc.stdint cimport uint32_t, uint64_t, uint8_t

from fastpump.hot.atomics cimport ACQUIRE, cas64, load64
from fastpump.hot.constants cimport (
    DUPLICATES_BUCKETS, DUPLICATES_WAYS, FLOOD_ID_BITS, FLOOD_ID_MASK,
)
from fastpump.hot.ip cimport ip_can_be_partial, ip_check_offset
from fastpump.hot.packet cimport Packet
from fastpump.hot.shm cimport Tables
from fastpump.hot.worker cimport Relay


cdef extern from "poly_hash.h" nogil:
    uint64_t poly_hash_word(uint64_t hash, uint64_t key, uint64_t word)
    uint64_t poly_hash_bytes(uint64_t hash, uint64_t key, const uint8_t *data, size_t length)

cdef enum:
    DUPLICATES_TIME_SHIFT = 26      # of nanoseconds: 67 ms
    DUPLICATES_TIME_MASK = 0xffff
    DUPLICATES_AHEAD = 15
    DUPLICATES_HOPS_SHIFT = 16
    DUPLICATES_HOPS_MASK = 0xf0000

cdef enum Copy:
    COPY_FIRST
    COPY_NEARER                     # of fewer hops than those before
    COPY_AGAIN


cdef inline uint64_t duplicates_hash(const Tables *tables, const Packet *frame,
                                     const Relay *relay) noexcept nogil:
    """What a flooded frame is known by."""
    cdef uint64_t key = tables.header.mac_seed >> 3 | 1     # below the prime, and not 0
    cdef uint64_t hash = relay.word & FLOOD_ID_MASK
    cdef uint32_t at, length = frame.length, done = 0
    hash = poly_hash_word(hash, key, relay.originator & FLOOD_ID_MASK)
    hash = poly_hash_word(hash, key, relay.originator >> FLOOD_ID_BITS)
    hash = poly_hash_word(hash, key, length)
    if frame.is_ip:
        hash = poly_hash_bytes(hash, key, frame.start, frame.link_len + 1)
        hash = poly_hash_word(hash, key, frame.ip.start[1] & (0xcf if frame.ip.is_v6 else 0xfc))
        done = frame.link_len + 2
        if not frame.ip.is_v6:
            hash = poly_hash_bytes(hash, key, frame.start + done, 8)
            done += 10
    if ip_can_be_partial(&frame.ip):
        at = frame.link_len + frame.ip.header_len + ip_check_offset(&frame.ip)
        hash = poly_hash_bytes(hash, key, frame.start + done, at - done)
        done = at + 2
    return poly_hash_bytes(hash, key, frame.start + done, length - done)


cdef inline Copy duplicates_test_and_set(const Tables *tables, uint64_t hash, uint32_t hops,
                                         uint64_t now_ns) noexcept nogil:
    """Enter the hash of a frame that came over so many relays (15 at most)."""
    cdef uint64_t mix = hash * <uint64_t>0x9e3779b97f4a7c15u
    cdef uint64_t *bucket = &tables.duplicates[
        ((mix ^ mix >> 32) % DUPLICATES_BUCKETS) * DUPLICATES_WAYS]
    cdef uint64_t mark = mix & ~<uint64_t>(DUPLICATES_HOPS_MASK | DUPLICATES_TIME_MASK)  # 44 bits
    cdef uint64_t time = (now_ns >> DUPLICATES_TIME_SHIFT) & DUPLICATES_TIME_MASK
    cdef uint64_t fresh = mark | <uint64_t>hops << DUPLICATES_HOPS_SHIFT | time
    cdef uint64_t entry, oldest = 0
    cdef uint32_t age, oldest_age, victim = 0
    cdef int i, _
    for _ in range(DUPLICATES_WAYS):
        oldest_age = 0
        for i in range(DUPLICATES_WAYS):
            entry = load64(&bucket[i], ACQUIRE)
            if (entry ^ mark) >> 20 == 0 and entry != 0:
                return COPY_NEARER if (entry & DUPLICATES_HOPS_MASK) >> DUPLICATES_HOPS_SHIFT \
                    > hops and cas64(&bucket[i], entry, fresh) else COPY_AGAIN
            age = DUPLICATES_TIME_MASK + 1
            if entry != 0:
                age = <uint32_t>((time - entry) & DUPLICATES_TIME_MASK)
                if age > DUPLICATES_TIME_MASK - DUPLICATES_AHEAD:
                    age = 0         # another worker's time is a little ahead
            if i == 0 or age > oldest_age:
                oldest, oldest_age, victim = entry, age, i
        if cas64(&bucket[victim], oldest, fresh):
            return COPY_FIRST
    return COPY_FIRST
