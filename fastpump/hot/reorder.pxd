# Reorder buffer: lane messages that came too early wait here for a moment.
#
# Too early is what comes before the lane's keys (the peer's ACCEPT is on its way through the
# supervisor): that waits as it came. And what is fenced and comes before the end marker of what was
# sent before it (hot/fence.pxd; the worker that receives the marker has not written that yet): it
# has been opened by then, so an unauthenticated sender can neither delay nor displace anything.
#
# Each iteration of the loop looks at both again (hot/ingress_delayed.pxd): they pass, in order,
# when the lane is live and, those that were opened, drained; or REORDER_TIMEOUT_NS after they came.
# So a lost end marker costs that time and no data; the lane then counts as drained. What does not
# fit into the buffer is dropped, so no sender can make us wait for more than that.
#
# All peers share the buffer, and none can fill it: a peer may hold as much as it leaves free for
# the others (a dynamic threshold, after Choudhury and Hahne), and what was not opened, whoever sent
# it, an eighth of that. So a peer alone has half of it, and there is room for one more always.
#
# The buffer is one run of bytes, oldest message first; it is compacted when messages leave.

from libc.stdint cimport uint32_t, uint8_t
from libc.string cimport memcpy, memmove

from fastpump.hot.atomics cimport ACQUIRE, RELAXED, load32, or32
from fastpump.hot.bytes cimport load_le32
from fastpump.hot.constants cimport (
    LANE_FLAG_FENCE, REORDER_BYTES, REORDER_MIN_CHARGE, REORDER_TIMEOUT_NS,
)
from fastpump.hot.lane cimport lane_find
from fastpump.hot.recv cimport Sender
from fastpump.hot.shm cimport (
    LANE_DRAINED, LANE_LIVE, SOURCE_ADDRESS_LEN, Lane, LaneState, lane_state,
)
from fastpump.hot.worker cimport ReorderBuffer, ReorderEntry, Worker

cdef enum:
    REORDER_UNOPENED_PART = 8       # of what is free, one in so many for unopened messages


cdef inline bint reorder_must_wait(LaneState *lane, uint32_t flags) noexcept nogil:
    """Whether a message that was opened has to wait: fenced, or behind those that wait."""
    return lane.reorder_count != 0 or (
        flags & LANE_FLAG_FENCE != 0 and not load32(&lane.bits, ACQUIRE) & LANE_DRAINED)


cdef inline bint reorder_add(Worker *worker, const Lane *lane, const uint8_t *datagram,
                             uint32_t length, bint is_opened, const Sender *sender) noexcept nogil:
    """Keep a copy of a message; False if there is no room."""
    cdef ReorderBuffer *self = &worker.reorder
    cdef ReorderEntry *entry
    if not reorder_charge(self, lane.peer, is_opened, length):
        return False
    lane_state(&worker.tables, lane).reorder_count += 1
    entry = &self.entries[self.count]
    entry.peer = lane.peer
    entry.until_ns = worker.now_ns + REORDER_TIMEOUT_NS
    entry.is_opened = is_opened
    entry.at = self.bytes
    entry.length = length
    entry.outer_ecn = worker.outer_ecn
    entry.sender_len = sender.address_len
    memcpy(&entry.sender, sender.address, sender.address_len)
    memcpy(entry.source_address, sender.source_address, SOURCE_ADDRESS_LEN)
    memcpy(self.buffer + self.bytes, datagram, length)
    self.count += 1
    self.bytes += length
    return True


cdef inline uint32_t charge_of(uint32_t length) noexcept nogil:
    return length if length > REORDER_MIN_CHARGE else REORDER_MIN_CHARGE


cdef inline bint reorder_charge(ReorderBuffer *self, uint32_t peer, bint is_opened,
                                uint32_t length) noexcept nogil:
    """Take room from a sender's share; False if it is used up."""
    cdef uint32_t charge = charge_of(length), free = REORDER_BYTES - self.charged
    if charge > free:
        return False
    if is_opened:
        if self.charged_opened[peer] + charge > free - charge:
            return False
        self.charged_opened[peer] += charge
    else:
        if (self.charged_unopened + charge) * REORDER_UNOPENED_PART > free - charge:
            return False
        self.charged_unopened += charge
    self.charged += charge
    return True


cdef inline void reorder_discharge(ReorderBuffer *self, const ReorderEntry *entry) noexcept nogil:
    """A message leaves."""
    cdef uint32_t charge = charge_of(entry.length)
    if entry.is_opened:
        self.charged_opened[entry.peer] -= charge
    else:
        self.charged_unopened -= charge
    self.charged -= charge


cdef inline const Lane *reorder_lane(Worker *worker, const ReorderEntry *entry) noexcept nogil:
    """The lane of a message that waits; NULL if it is gone by now."""
    cdef const uint8_t *datagram = worker.reorder.buffer + entry.at
    return lane_find(&worker.tables, load_le32(datagram + 4), datagram[2], worker.number)


cdef inline bint reorder_check(Worker *worker, const ReorderEntry *entry) noexcept nogil:
    """Whether a message passes now. Once it may, it stays so; a fence whose end marker is late
    counts as lifted."""
    cdef const Lane *lane = reorder_lane(worker, entry)
    cdef uint32_t flags = worker.reorder.buffer[entry.at + 1]
    cdef LaneState *state
    cdef bint is_live
    if lane == NULL:
        return True
    state = lane_state(&worker.tables, lane)
    is_live = load32(&lane.state, ACQUIRE) == LANE_LIVE
    if is_live and (not entry.is_opened or not flags & LANE_FLAG_FENCE
                    or load32(&state.bits, ACQUIRE) & LANE_DRAINED):
        return True
    if worker.now_ns < entry.until_ns:
        return False
    if is_live:
        or32(&state.bits, LANE_DRAINED, RELAXED)    # its end marker was lost
    return True


cdef inline void reorder_compact(ReorderBuffer *self, uint32_t kept) noexcept nogil:
    """Only the first `kept` entries are left, with holes in the buffer between them."""
    cdef uint32_t i, at = 0
    for i in range(kept):
        if self.entries[i].at != at:
            memmove(self.buffer + at, self.buffer + self.entries[i].at, self.entries[i].length)
            self.entries[i].at = at
        at += self.entries[i].length
    self.count = kept
    self.bytes = at
