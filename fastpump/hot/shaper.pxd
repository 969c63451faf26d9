# Shaper: the queue of packets that wait for a rate limit (hot/token_bucket.pxd), a heap by the time
# when each is due.
#
# What is due leaves at once, without a copy. What is due soon is copied here, and leaves in the
# loop's first iteration after that time. What would be due later than SHAPER_HORIZON_NS, or finds
# no slot, is dropped and counted, and takes no tokens: so a sender sees a queue that fills, and a
# loss at its end, as at a slow link. Other peers do not wait for it, and each has no more than its
# share of the slots. What waits for a peer that is removed meanwhile is dropped.
#
# Packets of one peer in one direction stay in order: a later one is due no earlier, also when a
# limit was changed or lifted in between. Each worker has a queue of its own, as it has flows of its
# own.

from libc.stdint cimport uint32_t, uint64_t, uint8_t

from fastpump.hot.atomics cimport RELAXED, load32
from fastpump.hot.constants cimport (
    BUFFER_STRIDE, READ_TAILROOM, SHAPER_BIG, SHAPER_BIG_WEIGHT, SHAPER_HORIZON_NS, SHAPER_SHARE,
    SHAPER_SMALL, SHAPER_SMALL_LEN,
)
from fastpump.hot.shm cimport NONE
from fastpump.hot.token_bucket cimport limiter_take, limiter_wait
from fastpump.hot.verdict cimport SHAPED_PACKETS
from fastpump.hot.worker cimport Shaper, ShaperEntry, Worker


cdef inline void shaper_init(Shaper *self) noexcept nogil:
    cdef uint32_t i
    self.count = 0
    self.small_free_count = SHAPER_SMALL
    self.big_free_count = SHAPER_BIG
    for i in range(<uint32_t>SHAPER_SMALL):
        self.small_free[i] = SHAPER_SMALL - 1 - i
    for i in range(<uint32_t>SHAPER_BIG):
        self.big_free[i] = SHAPER_SMALL + SHAPER_BIG - 1 - i


cdef inline bint shaper_is_used(const Worker *worker) noexcept nogil:
    """Whether packets may have to wait."""
    return worker.has_rate_limits or worker.shaper.count != 0


cdef inline bint shaper_schedule(Worker *worker, ShaperEntry *packet, uint32_t bytes,
                                 uint32_t room) noexcept nogil:
    """Give a packet (of so many bytes as limits count them) the time when it is due, and if it has
    to wait a buffer of `room` bytes; NONE as the slot: it is due now. False: drop it."""
    cdef uint64_t now_ns = worker.now_ns
    cdef uint64_t *last = &worker.shaper.due_ns[2 * packet.peer + packet.direction]
    cdef uint64_t due_ns = now_ns + limiter_wait(&worker.tables, packet.peer, packet.direction,
                                                 bytes, packet.packet_count, now_ns)
    packet.slot = NONE
    if due_ns < last[0]:
        due_ns = last[0]
    if due_ns > now_ns and (due_ns > now_ns + SHAPER_HORIZON_NS or not shaper_slot_take(
            &worker.shaper, packet, room)):
        return False
    due_ns = now_ns + limiter_take(&worker.tables, packet.peer, packet.direction, bytes,
                                   packet.packet_count, now_ns)
    if due_ns < last[0]:
        due_ns = last[0]
    if packet.slot != NONE and due_ns <= now_ns:
        due_ns = now_ns + 1         # nothing behind it passes in this iteration
    last[0] = packet.due_ns = due_ns
    packet.purge_count = load32(&worker.tables.peers[packet.peer].purge_count, RELAXED)
    return True


cdef inline bint shaper_slot_take(Shaper *self, ShaperEntry *packet, uint32_t room) noexcept nogil:
    """A buffer of `room` bytes, and some behind them; False if there is none, or the share of
    the packet's peer is used up."""
    cdef uint32_t *in_use = shaper_in_use(self, packet)
    if room + READ_TAILROOM <= SHAPER_SMALL_LEN:
        if self.small_free_count == 0 or in_use[0] >= SHAPER_SHARE:
            return False
        in_use[0] += 1
        self.small_free_count -= 1
        packet.slot = self.small_free[self.small_free_count]
        return True
    if room + READ_TAILROOM > BUFFER_STRIDE or self.big_free_count == 0 \
            or in_use[0] >= SHAPER_SHARE:
        return False
    in_use[0] += SHAPER_BIG_WEIGHT
    self.big_free_count -= 1
    packet.slot = self.big_free[self.big_free_count]
    return True


cdef inline uint32_t *shaper_in_use(Shaper *self, const ShaperEntry *packet) noexcept nogil:
    return &self.in_use[2 * packet.peer + packet.direction]


cdef inline uint8_t *shaper_buffer(const Shaper *self, uint32_t slot) noexcept nogil:
    if slot < SHAPER_SMALL:
        return self.small + <size_t>slot * SHAPER_SMALL_LEN
    return self.big + <size_t>(slot - SHAPER_SMALL) * BUFFER_STRIDE


cdef inline void shaper_push(Worker *worker, ShaperEntry *packet) noexcept nogil:
    """Put a packet in; its contents are in its slot already."""
    cdef Shaper *self = &worker.shaper
    cdef uint32_t at = self.count, parent
    self.count += 1                 # there are as many entries as slots
    packet.sequence = self.sequence
    self.sequence += 1
    worker.shared.counters[SHAPED_PACKETS] += packet.packet_count
    while at:
        parent = (at - 1) / 2
        if not shaper_entry_is_before(packet, &self.heap[parent]):
            break
        self.heap[at] = self.heap[parent]
        at = parent
    self.heap[at] = packet[0]


cdef inline bint shaper_pop(Shaper *self, uint64_t now_ns, ShaperEntry *packet) noexcept nogil:
    """Take the first packet out if it is due. The caller frees its slot."""
    cdef ShaperEntry *moved
    cdef uint32_t at = 0, child = 1
    if self.count == 0 or self.heap[0].due_ns > now_ns:
        return False
    packet[0] = self.heap[0]
    self.count -= 1
    moved = &self.heap[self.count]
    while child < self.count:
        if child + 1 < self.count and shaper_entry_is_before(&self.heap[child + 1],
                                                             &self.heap[child]):
            child += 1
        if not shaper_entry_is_before(&self.heap[child], moved):
            break
        self.heap[at] = self.heap[child]
        at = child
        child = 2 * at + 1
    self.heap[at] = moved[0]
    return True


cdef inline void shaper_slot_free(Shaper *self, const ShaperEntry *packet) noexcept nogil:
    if packet.slot < SHAPER_SMALL:
        shaper_in_use(self, packet)[0] -= 1
        self.small_free[self.small_free_count] = packet.slot
        self.small_free_count += 1
    else:
        shaper_in_use(self, packet)[0] -= SHAPER_BIG_WEIGHT
        self.big_free[self.big_free_count] = packet.slot
        self.big_free_count += 1


cdef inline int shaper_timeout_ms(const Worker *worker) noexcept nogil:
    """How long until the first packet is due; there is one."""
    cdef uint64_t due_ns = worker.shaper.heap[0].due_ns
    if due_ns <= worker.now_ns:
        return 0
    return <int>((due_ns - worker.now_ns + 999999) / 1000000)


cdef inline bint shaper_entry_is_before(const ShaperEntry *a, const ShaperEntry *b) noexcept nogil:
    return a.due_ns < b.due_ns or (a.due_ns == b.due_ns and a.sequence < b.sequence)
