# Where a peer is, and what datagrams to it leave from: a sequence lock per Endpoint.
#
# A writer takes the lock by making the sequence odd, and gives it up by making it even; a reader
# copies, and reads again if the sequence changed. Writers are the supervisor, the worker
# that receives the peer from elsewhere, and one that finds the source address gone (which must not
# write back where the peer was meanwhile, so it changes that address alone). A worker that
# finds the lock taken writes nothing: it tries again at the next message. The supervisor waits. A
# write takes nanoseconds, so a sequence that stays odd was left by a worker that was killed in
# between: the endpoint is torn, and only the supervisor may repair it.

from libc.stdint cimport uint32_t, uint8_t
from libc.string cimport memcpy, memset

from fastpump.hot.atomics cimport ACQUIRE, RELAXED, RELEASE, fence, load32, or32, store32
from fastpump.hot.bytes cimport load_be32, load_be64
from fastpump.hot.linux cimport sched_yield, sockaddr_in6
from fastpump.hot.pktinfo cimport source_address_is_known
from fastpump.hot.shm cimport ADDRESS_LEN, SOURCE_ADDRESS_LEN, Endpoint

cdef enum:
    SIN6_ADDR_AT = 8                # in a struct sockaddr_in6


cdef inline bint endpoint_write(Endpoint *self, const void *address, uint32_t length,
                                const uint8_t *source_address) noexcept nogil:
    """False, and nothing is written, if another process is writing it now."""
    cdef uint32_t before = or32(&self.sequence, 1, ACQUIRE)
    if before & 1:
        return False
    fence(RELEASE)
    memcpy(self.address, address, length)
    memcpy(self.source_address, source_address, SOURCE_ADDRESS_LEN)
    self.length = length
    store32(&self.sequence, before + 2, RELEASE)
    return True


cdef inline uint32_t endpoint_read(Endpoint *self, uint8_t *out,
                                   uint8_t *source_address) noexcept nogil:
    """Copy the address and the source address to send from; the address's length, 0 when it
    is unknown. Retries while they change (which takes a few nanoseconds; bounded all the
    same)."""
    cdef uint32_t before, length
    cdef int _
    for _ in range(1000000):
        before = load32(&self.sequence, ACQUIRE)
        if before & 1:
            continue
        length = self.length
        memcpy(out, self.address, ADDRESS_LEN)
        memcpy(source_address, self.source_address, SOURCE_ADDRESS_LEN)
        fence(ACQUIRE)
        if load32(&self.sequence, RELAXED) == before:
            return length
    return 0


cdef inline bint endpoint_set_source_address(Endpoint *self,
                                             const uint8_t *source_address) noexcept nogil:
    """Send there from another address of ours (zeros: the kernel's choice); where it is stays as it
    is. False if that is of the other IP version, or another process is writing the endpoint now."""
    cdef uint32_t before = or32(&self.sequence, 1, ACQUIRE)
    cdef bint fits
    if before & 1:
        return False
    fits = endpoint_takes_source(self, source_address)
    if fits:
        fence(RELEASE)
        memcpy(self.source_address, source_address, SOURCE_ADDRESS_LEN)
    store32(&self.sequence, before + 2, RELEASE)
    return fits


cdef inline bint endpoint_forget_source_address(Endpoint *self) noexcept nogil:
    """Let the kernel choose the source address, until the peer sends again."""
    cdef uint8_t source_address[SOURCE_ADDRESS_LEN]
    memset(source_address, 0, SOURCE_ADDRESS_LEN)
    return endpoint_set_source_address(self, source_address)


cdef inline bint endpoint_takes_source(const Endpoint *self,
                                       const uint8_t *source_address) noexcept nogil:
    """Whether both are of one IP version; an AF_INET socket knows only one."""
    return self.length < sizeof(sockaddr_in6) or not source_address_is_known(source_address) \
        or address_is_v4(self.address + SIN6_ADDR_AT) == address_is_v4(source_address)


cdef inline bint address_is_v4(const uint8_t *address) noexcept nogil:
    """Whether 16 bytes are a v4-mapped address."""
    return load_be64(address) == 0 and load_be32(address + 8) == 0xffff


# -- the supervisor's side: it may wait, and repairs

cdef inline void endpoint_unlock(Endpoint *self) noexcept nogil:
    """Release a lock whose owner is dead."""
    store32(&self.sequence, (load32(&self.sequence, RELAXED) | 1) + 1, RELEASE)


cdef inline void endpoint_set(Endpoint *self, const void *address, uint32_t length,
                              const uint8_t *source_address) noexcept nogil:
    """Write it, even if the lock is taken."""
    cdef int _
    for _ in range(1000):
        if endpoint_write(self, address, length, source_address):
            return
        sched_yield()               # a worker is writing
    endpoint_unlock(self)
    endpoint_write(self, address, length, source_address)


cdef inline void endpoint_unset_source_address(Endpoint *self) noexcept nogil:
    """The same as endpoint_forget_source_address; a lock that stays taken is left to the repair."""
    cdef int _
    for _ in range(1000):
        if endpoint_forget_source_address(self):
            return
        sched_yield()


cdef inline bint endpoint_is_torn(Endpoint *self) noexcept nogil:
    """Whether a writer died mid-update; a live one finishes in nanoseconds."""
    cdef uint32_t sequence = load32(&self.sequence, ACQUIRE)
    cdef int _
    for _ in range(100):
        if not sequence & 1 or load32(&self.sequence, ACQUIRE) != sequence:
            return False
        sched_yield()
    return True


cdef inline bint endpoint_repair(Endpoint *self) noexcept nogil:
    """Make a torn endpoint unknown; True if it was torn."""
    if not endpoint_is_torn(self):
        return False
    self.length = 0
    endpoint_unlock(self)
    return True
