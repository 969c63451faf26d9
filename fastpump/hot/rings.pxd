# Datagrams and control packets between worker and supervisor, in rings.
#
# Handshake-sized datagrams: one ring each way per worker.
#
# The kernel's GRO may put a shorter datagram behind others of its 4-tuple and hand the
# train to one socket, chosen by its first datagram. So a handshake message can end a
# train of transport messages (and reach a worker), and a transport message can follow a
# handshake message (and reach the supervisor). Whoever finds a stray passes it on; none
# is longer than the handshake message it travelled with, or is one.
#
# Control packets (docs/PROTOCOL.md) come inside a session, and are the supervisor's: one
# ring up per worker.

from libc.stdint cimport uint32_t, uint8_t
from libc.string cimport memcpy

from fastpump.hot.atomics cimport ACQUIRE, RELEASE, load64, store64
from fastpump.hot.constants cimport CONTROL_LEN, CONTROL_RING_LEN, MESSAGE_LEN, MESSAGE_RING_LEN
from fastpump.hot.shm cimport ADDRESS_LEN, LOCAL_LEN, Control, ControlRing, Message, MessageRing


cdef inline bint message_push(MessageRing *ring, const uint8_t *data, uint32_t length,
                              const void *address, uint32_t address_len,
                              const void *local) noexcept nogil:
    """Copy a datagram in; False if it is too long or the ring is full."""
    cdef Message *message = &ring.messages[ring.tail % MESSAGE_RING_LEN]
    if length > MESSAGE_LEN or address_len > ADDRESS_LEN:
        return False
    if ring.tail - load64(&ring.head, ACQUIRE) >= MESSAGE_RING_LEN:
        return False
    message.length = length
    message.address_len = address_len
    memcpy(message.data, data, length)
    memcpy(message.address, address, address_len)
    memcpy(message.local, local, LOCAL_LEN)
    store64(&ring.tail, ring.tail + 1, RELEASE)
    return True


cdef inline Message *message_first(MessageRing *ring) noexcept nogil:
    """The oldest message, NULL if there is none."""
    if ring.head == load64(&ring.tail, ACQUIRE):
        return NULL
    return &ring.messages[ring.head % MESSAGE_RING_LEN]


cdef inline void message_pop(MessageRing *ring) noexcept nogil:
    store64(&ring.head, ring.head + 1, RELEASE)


cdef inline bint control_push(ControlRing *ring, uint32_t peer, uint32_t local_index,
                              const uint8_t *data, uint32_t length) noexcept nogil:
    """Copy a control packet in; False if it is too long or the ring is full."""
    cdef Control *control = &ring.controls[ring.tail % CONTROL_RING_LEN]
    if length > CONTROL_LEN or ring.tail - load64(&ring.head, ACQUIRE) >= CONTROL_RING_LEN:
        return False
    control.peer = peer
    control.local_index = local_index
    control.length = length
    memcpy(control.data, data, length)
    store64(&ring.tail, ring.tail + 1, RELEASE)
    return True


cdef inline Control *control_first(ControlRing *ring) noexcept nogil:
    """The oldest control packet, NULL if there is none."""
    if ring.head == load64(&ring.tail, ACQUIRE):
        return NULL
    return &ring.controls[ring.head % CONTROL_RING_LEN]


cdef inline void control_pop(ControlRing *ring) noexcept nogil:
    store64(&ring.head, ring.head + 1, RELEASE)
