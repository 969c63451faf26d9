# Reorder buffer: lane messages that came too early wait here for a moment.
#
# Too early is what comes before the lane's keys (the peer's ACCEPT is on its way through the
# supervisor): that waits as it came. And what is fenced and comes before the end marker of what was
# sent before it (hot/fence.pxd; the worker that receives the marker has not written that yet): it
# has been opened by then, so that no stranger can have anything held up or pushed out.
#
# Each iteration of the loop looks at both again (hot/ingress_delayed.pxd): they pass, in order,
# when the lane is live and drained, or REORDER_TIMEOUT_NS after they came. So a lost end marker
# costs that time and no data; the lane then counts as drained. What does not fit into the buffer is
# dropped, so nobody can make us wait for more than that.
#
# The buffer is one run of bytes, oldest message first; it is compacted when messages leave.

from libc.stdint cimport uint32_t, uint8_t
from libc.string cimport memcpy, memmove

from fastpump.hot.atomics cimport ACQUIRE, RELAXED, load32, or32
from fastpump.hot.bytes cimport load_le32
from fastpump.hot.constants cimport HELD_BYTES, HELD_MESSAGES, HOLD_NS, LANE_FLAG_FENCE
from fastpump.hot.lane cimport lane_find
from fastpump.hot.recv cimport Sender
from fastpump.hot.shm cimport LANE_DRAINED, LANE_LIVE, LOCAL_LEN, Lane
from fastpump.hot.worker cimport HeldMessage, Hold, Worker


cdef inline bint hold_wants(Lane *lane, uint32_t flags) noexcept nogil:
    """Whether a message that was opened has to wait: fenced, or behind those that wait."""
    return lane.held_count != 0 or (
        flags & LANE_FLAG_FENCE != 0 and not load32(&lane.bits, ACQUIRE) & LANE_DRAINED)


cdef inline bint hold_add(Worker *worker, Lane *lane, const uint8_t *datagram, uint32_t length,
                          bint is_opened, const Sender *sender) noexcept nogil:
    """Keep a copy of a message; False if there is no room."""
    cdef Hold *self = &worker.hold
    cdef HeldMessage *held
    if self.count == HELD_MESSAGES or self.bytes + length > HELD_BYTES:
        return False
    lane.held_count += 1
    held = &self.messages[self.count]
    held.until_ns = worker.now_ns + HOLD_NS
    held.is_opened = is_opened
    held.at = self.bytes
    held.length = length
    held.remote_len = sender.address_len
    memcpy(&held.remote, sender.address, sender.address_len)
    memcpy(held.local, sender.local, LOCAL_LEN)
    memcpy(self.buffer + self.bytes, datagram, length)
    self.count += 1
    self.bytes += length
    return True


cdef inline Lane *reorder_lane(Worker *worker, const HeldMessage *held) noexcept nogil:
    """The lane of a message that waits; NULL if it is gone by now."""
    cdef const uint8_t *datagram = worker.hold.buffer + held.at
    return lane_find(&worker.tables, load_le32(datagram + 4), datagram[2], worker.number)


cdef inline bint hold_is_over(Worker *worker, const HeldMessage *held) noexcept nogil:
    """Whether a message passes now. Once it may, it stays so; a fence whose end marker is late
    counts as lifted."""
    cdef Lane *lane = reorder_lane(worker, held)
    cdef uint32_t flags = worker.hold.buffer[held.at + 1]
    cdef bint is_live
    if lane == NULL:
        return True
    is_live = load32(&lane.state, ACQUIRE) == LANE_LIVE
    if is_live and (not held.is_opened or not flags & LANE_FLAG_FENCE
                    or load32(&lane.bits, ACQUIRE) & LANE_DRAINED):
        return True
    if worker.now_ns < held.until_ns:
        return False
    if is_live:
        or32(&lane.bits, LANE_DRAINED, RELAXED)     # its end marker was lost
    return True


cdef inline void hold_compact(Hold *self, uint32_t kept) noexcept nogil:
    """Only the first `kept` entries are left, with holes in the buffer between them."""
    cdef uint32_t i, at = 0
    for i in range(kept):
        if self.messages[i].at != at:
            memmove(self.buffer + at, self.buffer + self.messages[i].at, self.messages[i].length)
            self.messages[i].at = at
        at += self.messages[i].length
    self.count = kept
    self.bytes = at
