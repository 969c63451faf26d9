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
# for what comes meanwhile. Both positions lie in the state, and a worker goes by them. The
# supervisor goes by copies of its own, and only stores them there: `head` of a ring that it empties
# (that of hot/events.pxd, too), `tail` of the one that it fills.

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


cdef inline bint misdelivered_push(MisdeliveredRing *ring, uint64_t tail, const uint8_t *data,
                                   uint32_t length, const void *address, uint32_t address_len,
                                   const void *source_address) noexcept nogil:
    """Copy a datagram in, behind `tail`; False if it is too long or the ring is full."""
    cdef Misdelivered *datagram = &ring.datagrams[tail % MISDELIVERED_RING_LEN]
    if length > MISDELIVERED_LEN or address_len > ADDRESS_LEN:
        return False
    if tail - load64(&ring.head, ACQUIRE) >= MISDELIVERED_RING_LEN:
        return False
    datagram.length = length
    datagram.address_len = address_len
    memcpy(datagram.data, data, length)
    memcpy(datagram.address, address, address_len)
    memcpy(datagram.source_address, source_address, SOURCE_ADDRESS_LEN)
    store64(&ring.tail, tail + 1, RELEASE)
    return True


cdef inline uint32_t misdelivered_count(MisdeliveredRing *ring) noexcept nogil:
    """How many wait, if the other side's position can be."""
    cdef uint64_t count = load64(&ring.tail, ACQUIRE) - ring.head
    return <uint32_t>count if count <= MISDELIVERED_RING_LEN else MISDELIVERED_RING_LEN


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


# -- the supervisor's side

cdef inline uint64_t ring_end(uint64_t *head, const uint64_t *tail,
                              uint64_t capacity) noexcept nogil:
    """Behind the last entry that the supervisor, which is at `head`, may take now: `capacity` at
    most. A worker that claims more than the ring holds is not believed, and loses them."""
    cdef uint64_t end = load64(tail, ACQUIRE)
    if end - head[0] > capacity:
        head[0] = end
    return end


cdef inline Misdelivered *misdelivered_at(MisdeliveredRing *ring, uint64_t position) noexcept nogil:
    return &ring.datagrams[position % MISDELIVERED_RING_LEN]


cdef inline ControlPacket *control_packet_at(ControlPacketRing *ring,
                                             uint64_t position) noexcept nogil:
    return &ring.packets[position % CONTROL_RING_LEN]
