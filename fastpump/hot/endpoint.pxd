# Where a peer is, and what datagrams to it leave from: a sequence lock per Endpoint.
#
# A writer takes the lock by making the sequence odd, with its own number in it, and gives it up by
# making it even; a reader copies, and reads again if the sequence changed. Writers are the
# supervisor, the worker that receives the peer from elsewhere, and one that finds the source
# address gone (which must not write back where the peer was meanwhile, so it changes that address
# alone). Whoever finds the lock taken writes nothing: a worker tries again at the next
# message, the supervisor after a while (core_parts/endpoints.pxi). Nobody is overruled: a write
# takes nanoseconds, but a writer may be stopped or preempted in between, and would go on later.
# Only the lock of a worker that has died is released, by the supervisor: its endpoint is torn.
#
# The sequence, from the low bits: 1 bit, locked; 9 bits, by whom; 1 bit, locked for a move, which
# is a write of the address too; 10 bits count the writes of the source address alone, 11 the moves.

from libc.stdint cimport uint16_t, uint32_t, uint8_t
from libc.string cimport memcmp, memcpy, memset

from fastpump.hot.atomics cimport ACQUIRE, RELAXED, RELEASE, cas32, fence, load32, store32
from fastpump.hot.linux cimport AF_INET, AF_INET6, sched_yield, sockaddr_in6
from fastpump.hot.pktinfo cimport SIN6_ADDR_AT, address_is_v4, source_address_is_known
from fastpump.hot.shm cimport ADDRESS_LEN, SOURCE_ADDRESS_LEN, Endpoint

cdef enum:
    ENDPOINT_LOCKED = 1
    ENDPOINT_OWNER_MASK = 0x3fe
    ENDPOINT_MOVES = 0x400          # while it is locked
    ENDPOINT_LOCK_MASK = 0x7ff
    ENDPOINT_SOURCE_WRITTEN = 0x800         # what such a write adds
    ENDPOINT_SOURCE_MASK = 0x1ff800
    ENDPOINT_MOVED = 0x200000               # what a move adds
    ENDPOINT_SUPERVISOR = 0x1ff     # as an owner; a worker has its number
    ENDPOINT_READS = 10000          # some microseconds, until its readers do without
    ENDPOINT_TRIES = 2              # of the supervisor, between which it lets others run
    SOCKADDR_IN_LEN = 16


cdef inline bint endpoint_write(Endpoint *self, uint32_t owner, const void *address,
                                uint32_t length, const uint8_t *source_address) noexcept nogil:
    """False, and nothing is written, if another process is writing it now."""
    cdef uint32_t before = load32(&self.sequence, RELAXED)
    if not endpoint_lock(self, before, owner, ENDPOINT_MOVES):
        return False
    if self.length != length or memcmp(self.address, address, length) != 0:
        self.gso_refused = self.gso_failures = 0
    memcpy(self.address, address, length)
    memcpy(self.source_address, source_address, SOURCE_ADDRESS_LEN)
    self.length = length
    store32(&self.sequence, before + ENDPOINT_MOVED, RELEASE)
    return True


cdef inline bint endpoint_lock(Endpoint *self, uint32_t before, uint32_t owner,
                               uint32_t moves) noexcept nogil:
    """Take the lock, if the sequence is still what it was; `moves`: ENDPOINT_MOVES or 0."""
    if before & ENDPOINT_LOCKED \
            or not cas32(&self.sequence, before, before | owner << 1 | moves | ENDPOINT_LOCKED):
        return False
    fence(RELEASE)
    return True


cdef inline uint32_t endpoint_read(Endpoint *self, uint8_t *out,
                                   uint8_t *source_address) noexcept nogil:
    """Copy the address and the source address to send from; the address's length, 0 when it
    is unknown. Retries while they change, which takes a few nanoseconds; 0 if the writer has
    stopped."""
    cdef uint32_t length
    cdef int _
    for _ in range(ENDPOINT_READS):
        if endpoint_try_read(self, out, source_address, &length):
            return length
    return 0


cdef inline bint endpoint_try_read(Endpoint *self, uint8_t *out, uint8_t *source_address,
                                   uint32_t *length) noexcept nogil:
    """False if it is being written. A length that no address has counts as unknown."""
    cdef uint32_t before = load32(&self.sequence, ACQUIRE)
    if before & ENDPOINT_LOCKED:
        return False
    length[0] = load32(&self.length, RELAXED)
    if length[0] > ADDRESS_LEN:
        length[0] = 0
    memcpy(out, self.address, ADDRESS_LEN)
    memcpy(source_address, self.source_address, SOURCE_ADDRESS_LEN)
    fence(ACQUIRE)
    return load32(&self.sequence, RELAXED) == before


cdef inline bint endpoint_set_source_address(Endpoint *self, uint32_t owner,
                                             const uint8_t *source_address) noexcept nogil:
    """Send there from another address of ours (zeros: the kernel's choice); where it is stays as it
    is. False if that is of the other IP version, or another process is writing the endpoint now."""
    cdef uint32_t before = load32(&self.sequence, RELAXED)
    cdef bint fits
    if not endpoint_lock(self, before, owner, 0):
        return False
    fits = endpoint_takes_source(self, source_address)
    if fits:
        memcpy(self.source_address, source_address, SOURCE_ADDRESS_LEN)
    store32(&self.sequence, endpoint_after_source(before) if fits else before, RELEASE)
    return fits


cdef inline uint32_t endpoint_after_source(uint32_t before) noexcept nogil:
    """The sequence after a write of the source address; its count does not run into the other."""
    return (before & ~<uint32_t>ENDPOINT_SOURCE_MASK) \
        | ((before + ENDPOINT_SOURCE_WRITTEN) & ENDPOINT_SOURCE_MASK)


cdef inline bint endpoint_forget_source_address(Endpoint *self, uint32_t owner) noexcept nogil:
    """Let the kernel choose the source address, until the peer sends again."""
    cdef uint8_t source_address[SOURCE_ADDRESS_LEN]
    memset(source_address, 0, SOURCE_ADDRESS_LEN)
    return endpoint_set_source_address(self, owner, source_address)


cdef inline bint endpoint_takes_source(const Endpoint *self,
                                       const uint8_t *source_address) noexcept nogil:
    """Whether both are of one IP version; an AF_INET socket knows only one."""
    return self.length < sizeof(sockaddr_in6) or not source_address_is_known(source_address) \
        or address_is_v4(self.address + SIN6_ADDR_AT) == address_is_v4(source_address)


# -- the supervisor's side; it believes no length, no family, and waits for nobody: a process that
# -- runs ends a write within nanoseconds, and one that was preempted may go on when we yield

cdef inline uint32_t endpoint_get(Endpoint *self, uint8_t *out,
                                  uint8_t *source_address) noexcept nogil:
    """As endpoint_read, and what is no struct sockaddr_in or sockaddr_in6 is unknown."""
    cdef uint32_t length
    cdef int _
    for _ in range(ENDPOINT_TRIES):
        length = endpoint_read(self, out, source_address)
        if length:
            return length if sockaddr_is_valid(out, length) else 0
        if not load32(&self.sequence, RELAXED) & ENDPOINT_LOCKED:
            return 0
        sched_yield()
    return 0


cdef inline bint sockaddr_is_valid(const uint8_t *address, uint32_t length) noexcept nogil:
    """Whether so many bytes are a struct sockaddr_in or sockaddr_in6."""
    cdef uint16_t family
    memcpy(&family, address, sizeof(family))
    return (family == AF_INET6 and length == sizeof(sockaddr_in6)) or (
        family == AF_INET and length == SOCKADDR_IN_LEN)


cdef inline void endpoint_unset_source_address(Endpoint *self) noexcept nogil:
    """The same as endpoint_forget_source_address. While a worker is writing it, the address stays:
    that is newer."""
    if not endpoint_forget_source_address(self, ENDPOINT_SUPERVISOR):
        sched_yield()
        endpoint_forget_source_address(self, ENDPOINT_SUPERVISOR)


cdef inline bint endpoint_set(Endpoint *self, const void *address, uint32_t length,
                              const uint8_t *source_address) noexcept nogil:
    """Write it; False if a worker is writing it."""
    if endpoint_write(self, ENDPOINT_SUPERVISOR, address, length, source_address):
        return True
    sched_yield()
    return endpoint_write(self, ENDPOINT_SUPERVISOR, address, length, source_address)


cdef inline uint32_t endpoint_moves(Endpoint *self) noexcept nogil:
    """How often it has moved, with the move that is under way."""
    cdef uint32_t sequence = load32(&self.sequence, ACQUIRE)
    if sequence & ENDPOINT_LOCKED and sequence & ENDPOINT_MOVES:
        sequence += ENDPOINT_MOVED
    return sequence // ENDPOINT_MOVED


cdef inline bint endpoint_repair(Endpoint *self, uint32_t worker, uint32_t count) noexcept nogil:
    """A worker of `count` has died: if it was writing this, or somebody who does not exist, make
    it unknown; True if so."""
    cdef uint32_t sequence = load32(&self.sequence, ACQUIRE)
    cdef uint32_t owner = (sequence & ENDPOINT_OWNER_MASK) >> 1
    cdef uint32_t before
    if not sequence & ENDPOINT_LOCKED or owner != worker and owner < count:
        return False
    self.length = 0
    before = sequence & ~<uint32_t>ENDPOINT_LOCK_MASK
    store32(&self.sequence, before + ENDPOINT_MOVED if sequence & ENDPOINT_MOVES
            else endpoint_after_source(before), RELEASE)
    return True
