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
# The sequence, from the low bits: 1 bit, locked; 9 bits, by whom; the rest counts the writes.

from libc.stdint cimport uint16_t, uint32_t, uint8_t
from libc.string cimport memcpy, memset

from fastpump.hot.atomics cimport ACQUIRE, RELAXED, RELEASE, cas32, fence, load32, store32
from fastpump.hot.bytes cimport load_be32, load_be64
from fastpump.hot.linux cimport AF_INET, AF_INET6, sched_yield, sockaddr_in6
from fastpump.hot.pktinfo cimport source_address_is_known
from fastpump.hot.shm cimport ADDRESS_LEN, SOURCE_ADDRESS_LEN, Endpoint

cdef enum:
    ENDPOINT_LOCKED = 1
    ENDPOINT_LOCK_MASK = 0x3ff      # with the owner
    ENDPOINT_WRITTEN = 0x400        # what a write adds
    ENDPOINT_SUPERVISOR = 0x1ff     # as an owner; a worker has its number
    ENDPOINT_READS = 10000          # some microseconds, until its readers do without
    ENDPOINT_WRITES = 1000
    SOCKADDR_IN_LEN = 16
    SIN6_ADDR_AT = 8                # in a struct sockaddr_in6


cdef inline bint endpoint_write(Endpoint *self, uint32_t owner, const void *address,
                                uint32_t length, const uint8_t *source_address) noexcept nogil:
    """False, and nothing is written, if another process is writing it now."""
    cdef uint32_t before = load32(&self.sequence, RELAXED)
    if before & ENDPOINT_LOCKED \
            or not cas32(&self.sequence, before, before | owner << 1 | ENDPOINT_LOCKED):
        return False
    fence(RELEASE)
    memcpy(self.address, address, length)
    memcpy(self.source_address, source_address, SOURCE_ADDRESS_LEN)
    self.length = length
    self.gso_refused = self.gso_failures = 0
    store32(&self.sequence, before + ENDPOINT_WRITTEN, RELEASE)
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
    if before & ENDPOINT_LOCKED \
            or not cas32(&self.sequence, before, before | owner << 1 | ENDPOINT_LOCKED):
        return False
    fits = endpoint_takes_source(self, source_address)
    if fits:
        fence(RELEASE)
        memcpy(self.source_address, source_address, SOURCE_ADDRESS_LEN)
    store32(&self.sequence, before + ENDPOINT_WRITTEN, RELEASE)
    return fits


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


cdef inline bint address_is_v4(const uint8_t *address) noexcept nogil:
    """Whether 16 bytes are a v4-mapped address."""
    return load_be64(address) == 0 and load_be32(address + 8) == 0xffff


# -- the supervisor's side; it believes no length, no family

cdef inline uint32_t endpoint_get(Endpoint *self, uint8_t *out,
                                  uint8_t *source_address) noexcept nogil:
    """As endpoint_read, and what is no struct sockaddr_in or sockaddr_in6 is unknown."""
    cdef uint32_t length
    cdef int _
    for _ in range(ENDPOINT_WRITES):
        if endpoint_try_read(self, out, source_address, &length):
            return length if sockaddr_is_valid(out, length) else 0
        sched_yield()               # a worker is writing
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
    cdef int _
    for _ in range(ENDPOINT_WRITES):
        if endpoint_forget_source_address(self, ENDPOINT_SUPERVISOR):
            return
        sched_yield()


cdef inline bint endpoint_set(Endpoint *self, const void *address, uint32_t length,
                              const uint8_t *source_address) noexcept nogil:
    """Write it, waiting a little for a worker that is just writing; False if that has not ended."""
    cdef int _
    for _ in range(ENDPOINT_WRITES):
        if endpoint_write(self, ENDPOINT_SUPERVISOR, address, length, source_address):
            return True
        sched_yield()
    return False


cdef inline uint32_t endpoint_sequence_after(Endpoint *self) noexcept nogil:
    """What the sequence is when the write that is under way has ended, and no other has begun."""
    return (load32(&self.sequence, ACQUIRE) & ~<uint32_t>ENDPOINT_LOCK_MASK) + ENDPOINT_WRITTEN


cdef inline bint endpoint_repair(Endpoint *self, uint32_t worker) noexcept nogil:
    """A worker has died: if it was writing this, make it unknown; True if so."""
    cdef uint32_t sequence = load32(&self.sequence, ACQUIRE)
    if sequence & ENDPOINT_LOCK_MASK != (worker << 1 | ENDPOINT_LOCKED):
        return False
    self.length = 0
    store32(&self.sequence, endpoint_sequence_after(self), RELEASE)
    return True
