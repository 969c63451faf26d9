# Datagrams and control packets between worker and supervisor, in rings.
#
# Misdelivered datagrams: one ring in each direction per worker. The kernel's GRO may put a shorter
# datagram behind others of its 4-tuple and hand the train to one socket, chosen by its first
# datagram. So a handshake message can end a train of transport messages (and reach a worker), and a
# transport message can follow a handshake message (and reach the supervisor). Whoever receives such
# a datagram passes it on; none is longer than the handshake message it travelled with, or is one.
#
# Control packets (docs/PROTOCOL.md) come inside a session, and are the supervisor's: one ring up
# per worker. hot/upcall.pxd says how many of both a sender may pass up.
#
# Each ring has one producer and one consumer: a slot is written before `tail` is moved, and used
# up before `head` is. A consumer takes what waits when it begins, and no more: it is woken again
# for what comes meanwhile.

from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy

from fastpump.hot.atomics cimport ACQUIRE, RELEASE, load64, store64
from fastpump.hot.constants cimport (
    CONTROL_PACKET_LEN, CONTROL_RING_LEN, MISDELIVERED_LEN, MISDELIVERED_RING_LEN,
)
from fastpump.hot.shm cimport (
    ADDRESS_LEN, SOURCE_ADDRESS_LEN, ControlPacket, ControlPacketRing, Misdelivered,
    MisdeliveredRing,
)


cdef inline bint misdelivered_push(MisdeliveredRing *ring, const uint8_t *data, uint32_t length,
                                   const void *address, uint32_t address_len,
                                   const void *source_address) noexcept nogil:
    """Copy a datagram in; False if it is too long or the ring is full."""
    cdef Misdelivered *datagram = &ring.datagrams[ring.tail % MISDELIVERED_RING_LEN]
    if length > MISDELIVERED_LEN or address_len > ADDRESS_LEN:
        return False
    if ring.tail - load64(&ring.head, ACQUIRE) >= MISDELIVERED_RING_LEN:
        return False
    datagram.length = length
    datagram.address_len = address_len
    memcpy(datagram.data, data, length)
    memcpy(datagram.address, address, address_len)
    memcpy(datagram.source_address, source_address, SOURCE_ADDRESS_LEN)
    store64(&ring.tail, ring.tail + 1, RELEASE)
    return True


cdef inline uint32_t misdelivered_count(MisdeliveredRing *ring) noexcept nogil:
    """How many wait."""
    return waiting_count(load64(&ring.tail, ACQUIRE) - ring.head, MISDELIVERED_RING_LEN)


cdef inline uint32_t waiting_count(uint64_t count, uint32_t ring_len) noexcept nogil:
    """What the other side's position says, if it can be."""
    return <uint32_t>count if count <= ring_len else ring_len


cdef inline Misdelivered *misdelivered_first(MisdeliveredRing *ring) noexcept nogil:
    """The oldest datagram, NULL if there is none."""
    if ring.head == load64(&ring.tail, ACQUIRE):
        return NULL
    return &ring.datagrams[ring.head % MISDELIVERED_RING_LEN]


cdef inline void misdelivered_pop(MisdeliveredRing *ring) noexcept nogil:
    store64(&ring.head, ring.head + 1, RELEASE)


cdef inline bint control_packet_fits(ControlPacketRing *ring, uint32_t length) noexcept nogil:
    """Whether the next push will succeed: a control packet is not too long, the ring not full."""
    return length <= CONTROL_PACKET_LEN \
        and ring.tail - load64(&ring.head, ACQUIRE) < CONTROL_RING_LEN


cdef inline bint control_packet_push(ControlPacketRing *ring, uint32_t peer, uint32_t local_index,
                                     const uint8_t *data, uint32_t length) noexcept nogil:
    """Copy a control packet in, if it fits."""
    cdef ControlPacket *packet = &ring.packets[ring.tail % CONTROL_RING_LEN]
    if not control_packet_fits(ring, length):
        return False
    packet.peer = peer
    packet.local_index = local_index
    packet.length = length
    memcpy(packet.data, data, length)
    store64(&ring.tail, ring.tail + 1, RELEASE)
    return True


cdef inline uint32_t control_packet_count(ControlPacketRing *ring) noexcept nogil:
    """How many wait."""
    return waiting_count(load64(&ring.tail, ACQUIRE) - ring.head, CONTROL_RING_LEN)


cdef inline ControlPacket *control_packet_first(ControlPacketRing *ring) noexcept nogil:
    """The oldest control packet, NULL if there is none."""
    if ring.head == load64(&ring.tail, ACQUIRE):
        return NULL
    return &ring.packets[ring.head % CONTROL_RING_LEN]


cdef inline void control_packet_pop(ControlPacketRing *ring) noexcept nogil:
    store64(&ring.head, ring.head + 1, RELEASE)
