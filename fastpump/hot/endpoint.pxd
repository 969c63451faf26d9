# Where a peer is, and what datagrams to it leave from: a sequence lock per Endpoint.
#
# A writer takes the lock by making the sequence odd, and gives it up by making it even; a reader
# copies, and reads again if the sequence changed. Writers are the supervisor, the worker
# that receives the peer from elsewhere, and one that finds the source address gone. A worker that
# finds the lock taken writes nothing: it tries again at the next message. The supervisor waits. A
# write takes nanoseconds, so a sequence that stays odd was left by a worker that was killed in
# between: the endpoint is torn, and only the supervisor may repair it.

from libc.stdint cimport uint16_t, uint32_t, uint8_t
from libc.string cimport memcpy, memset

from fastpump.hot.atomics cimport ACQUIRE, RELAXED, RELEASE, fence, load32, or32, store32
from fastpump.hot.linux cimport AF_INET, AF_INET6, sched_yield, sockaddr_in6
from fastpump.hot.shm cimport ADDRESS_LEN, SOURCE_ADDRESS_LEN, Endpoint


cdef enum:
    SOCKADDR_IN_LEN = 16


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
    cdef uint32_t length
    cdef int _
    for _ in range(1000000):
        if endpoint_try_read(self, out, source_address, &length):
            return length
    return 0


cdef inline bint endpoint_try_read(Endpoint *self, uint8_t *out, uint8_t *source_address,
                                   uint32_t *length) noexcept nogil:
    """False if it is being written. A length that no address has counts as unknown."""
    cdef uint32_t before = load32(&self.sequence, ACQUIRE)
    if before & 1:
        return False
    length[0] = load32(&self.length, RELAXED)
    if length[0] > ADDRESS_LEN:
        length[0] = 0
    memcpy(out, self.address, ADDRESS_LEN)
    memcpy(source_address, self.source_address, SOURCE_ADDRESS_LEN)
    fence(ACQUIRE)
    return load32(&self.sequence, RELAXED) == before


cdef inline void endpoint_forget_source_address(Endpoint *self) noexcept nogil:
    """Let the kernel choose the source address, until the peer sends again."""
    cdef uint8_t address[ADDRESS_LEN]
    cdef uint8_t source_address[SOURCE_ADDRESS_LEN]
    cdef uint32_t length = endpoint_read(self, address, source_address)
    memset(source_address, 0, SOURCE_ADDRESS_LEN)
    endpoint_write(self, address, length, source_address)


# -- the supervisor's side: it may wait, and repairs; it believes no length, no family

cdef inline uint32_t endpoint_get(Endpoint *self, uint8_t *out,
                                  uint8_t *source_address) noexcept nogil:
    """As endpoint_read, and what is no struct sockaddr_in or sockaddr_in6 is unknown."""
    cdef uint32_t length
    cdef int _
    for _ in range(1000):
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
