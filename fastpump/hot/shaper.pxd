# Packets that wait for a rate limit (hot/token_bucket.pxd): a heap by the time when each is due.
#
# What is due leaves at once, without a copy. What is due soon is copied here, and leaves at the
# loop's first turn after that time. What would be due later than SHAPE_HORIZON_NS, or finds no
# slot, is dropped and counted, and takes no tokens: so a sender sees a queue that fills, and a
# loss at its end, as at a slow link. Nobody else waits for it, and nobody has more than his
# share of the slots. What waits for a peer that is removed meanwhile is dropped.
#
# Packets of one peer, one way, stay in order: a later one is due no earlier, also when a limit
# was changed or lifted in between. A worker has a queue of its own, as it has flows of its own.

from libc.stdint cimport uint32_t, uint64_t, uint8_t

from fastpump.hot.atomics cimport RELAXED, load32
from fastpump.hot.token_bucket cimport limit_take, limit_wait
from fastpump.hot.constants cimport (
    BUFFER_STRIDE, READ_TAILROOM, SHAPE_BIG, SHAPE_BIG_WEIGHT, SHAPE_HORIZON_NS, SHAPE_SHARE,
    SHAPE_SMALL, SHAPE_SMALL_LEN,
)
from fastpump.hot.shm cimport NONE
from fastpump.hot.verdict cimport SHAPED_PACKETS
from fastpump.hot.worker cimport Shape, ShapedPacket, Worker


cdef inline void shape_init(Shape *self) noexcept nogil:
    cdef uint32_t i
    self.count = 0
    self.small_free_count = SHAPE_SMALL
    self.big_free_count = SHAPE_BIG
    for i in range(<uint32_t>SHAPE_SMALL):
        self.small_free[i] = SHAPE_SMALL - 1 - i
    for i in range(<uint32_t>SHAPE_BIG):
        self.big_free[i] = SHAPE_SMALL + SHAPE_BIG - 1 - i


cdef inline bint shape_is_used(const Worker *worker) noexcept nogil:
    """Whether packets may have to wait."""
    return worker.has_limits or worker.shape.count != 0


cdef inline bint shape_admit(Worker *worker, ShapedPacket *packet, uint32_t bytes,
                             uint32_t room) noexcept nogil:
    """Whether a packet passes, of so many bytes as limits count them. Then it has a time, and if
    it has to wait a buffer of `room` bytes; NONE as the slot: it goes now."""
    cdef uint64_t now_ns = worker.now_ns
    cdef uint64_t *last = &worker.shape.due_ns[2 * packet.peer + packet.way]
    cdef uint64_t due_ns = now_ns + limit_wait(&worker.tables, packet.peer, packet.way, bytes,
                                               packet.packet_count, now_ns)
    packet.slot = NONE
    if due_ns < last[0]:
        due_ns = last[0]
    if due_ns > now_ns and (due_ns > now_ns + SHAPE_HORIZON_NS or not shape_slot_take(
            &worker.shape, packet, room)):
        return False
    due_ns = now_ns + limit_take(&worker.tables, packet.peer, packet.way, bytes,
                                 packet.packet_count, now_ns)
    if due_ns < last[0]:
        due_ns = last[0]
    if packet.slot != NONE and due_ns <= now_ns:
        due_ns = now_ns + 1         # behind it nothing passes in this turn
    last[0] = packet.due_ns = due_ns
    packet.purge_count = load32(&worker.tables.peers[packet.peer].purge_count, RELAXED)
    return True


cdef inline bint shape_slot_take(Shape *self, ShapedPacket *packet, uint32_t room) noexcept nogil:
    """A buffer of `room` bytes, and some behind them; False if there is none, or the share of
    the packet's peer is used up."""
    cdef uint32_t *held = shape_held(self, packet)
    if room + READ_TAILROOM <= SHAPE_SMALL_LEN:
        if self.small_free_count == 0 or held[0] >= SHAPE_SHARE:
            return False
        held[0] += 1
        self.small_free_count -= 1
        packet.slot = self.small_free[self.small_free_count]
        return True
    if room + READ_TAILROOM > BUFFER_STRIDE or self.big_free_count == 0 \
            or held[0] >= SHAPE_SHARE:
        return False
    held[0] += SHAPE_BIG_WEIGHT
    self.big_free_count -= 1
    packet.slot = self.big_free[self.big_free_count]
    return True


cdef inline uint32_t *shape_held(Shape *self, const ShapedPacket *packet) noexcept nogil:
    return &self.held[2 * packet.peer + packet.way]


cdef inline uint8_t *shape_buffer(const Shape *self, uint32_t slot) noexcept nogil:
    if slot < SHAPE_SMALL:
        return self.small + <size_t>slot * SHAPE_SMALL_LEN
    return self.big + <size_t>(slot - SHAPE_SMALL) * BUFFER_STRIDE


cdef inline void shape_push(Worker *worker, ShapedPacket *packet) noexcept nogil:
    """Put a packet in; its contents are in its slot already."""
    cdef Shape *self = &worker.shape
    cdef uint32_t at = self.count, parent
    self.count += 1                 # there are as many entries as slots
    packet.sequence = self.sequence
    self.sequence += 1
    worker.shared.counters[SHAPED_PACKETS] += packet.packet_count
    while at:
        parent = (at - 1) / 2
        if not shaped_is_before(packet, &self.heap[parent]):
            break
        self.heap[at] = self.heap[parent]
        at = parent
    self.heap[at] = packet[0]


cdef inline bint shape_pop(Shape *self, uint64_t now_ns, ShapedPacket *packet) noexcept nogil:
    """Take the first packet out if it is due. The caller frees its slot."""
    cdef ShapedPacket *moved
    cdef uint32_t at = 0, child = 1
    if self.count == 0 or self.heap[0].due_ns > now_ns:
        return False
    packet[0] = self.heap[0]
    self.count -= 1
    moved = &self.heap[self.count]
    while child < self.count:
        if child + 1 < self.count and shaped_is_before(&self.heap[child + 1], &self.heap[child]):
            child += 1
        if not shaped_is_before(&self.heap[child], moved):
            break
        self.heap[at] = self.heap[child]
        at = child
        child = 2 * at + 1
    self.heap[at] = moved[0]
    return True


cdef inline void shape_slot_free(Shape *self, const ShapedPacket *packet) noexcept nogil:
    if packet.slot < SHAPE_SMALL:
        shape_held(self, packet)[0] -= 1
        self.small_free[self.small_free_count] = packet.slot
        self.small_free_count += 1
    else:
        shape_held(self, packet)[0] -= SHAPE_BIG_WEIGHT
        self.big_free[self.big_free_count] = packet.slot
        self.big_free_count += 1


cdef inline int shape_timeout_ms(const Worker *worker) noexcept nogil:
    """How long until the first packet is due; there is one."""
    cdef uint64_t due_ns = worker.shape.heap[0].due_ns
    if due_ns <= worker.now_ns:
        return 0
    return <int>((due_ns - worker.now_ns + 999999) / 1000000)


cdef inline bint shaped_is_before(const ShapedPacket *a, const ShapedPacket *b) noexcept nogil:
    return a.due_ns < b.due_ns or (a.due_ns == b.due_ns and a.sequence < b.sequence)
