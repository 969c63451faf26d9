# Handshake-sized datagrams between worker and supervisor: one ring each way per worker.
#
# The kernel's GRO may put a shorter datagram behind others of its 4-tuple and hand the
# train to one socket, chosen by its first datagram. So a handshake message can end a
# train of transport messages (and reach a worker), and a transport message can follow a
# handshake message (and reach the supervisor). Whoever finds a stray passes it on; none
# is longer than the handshake message it travelled with, or is one.

from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy

from fastpump.hot.atomics cimport ACQUIRE, RELEASE, load64, store64
from fastpump.hot.limits cimport MESSAGE_LEN, MESSAGE_RING_LEN
from fastpump.hot.shm cimport ADDRESS_LEN, LOCAL_LEN, Message, MessageRing


cdef inline bint message_push(MessageRing *self, const uint8_t *data, uint32_t length,
                              const void *address, uint32_t address_len,
                              const void *local) noexcept nogil:
    """Copy a datagram in; False if it is too long or the ring is full."""
    cdef Message *message = &self.messages[self.tail % MESSAGE_RING_LEN]
    if length > MESSAGE_LEN or address_len > ADDRESS_LEN:
        return False
    if self.tail - load64(&self.head, ACQUIRE) >= MESSAGE_RING_LEN:
        return False
    message.length = length
    message.address_len = address_len
    memcpy(message.data, data, length)
    memcpy(message.address, address, address_len)
    memcpy(message.local, local, LOCAL_LEN)
    store64(&self.tail, self.tail + 1, RELEASE)
    return True


cdef inline Message *message_first(MessageRing *self) noexcept nogil:
    """The oldest message, NULL if there is none."""
    if self.head == load64(&self.tail, ACQUIRE):
        return NULL
    return &self.messages[self.head % MESSAGE_RING_LEN]


cdef inline void message_pop(MessageRing *self) noexcept nogil:
    store64(&self.head, self.head + 1, RELEASE)
