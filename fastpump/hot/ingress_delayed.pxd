# udp_to_tun of what comes later, or by a detour: two more entries to hot/ingress.pxd.
#
#   misdelivered   transport messages that the supervisor's socket received, and passed on by a ring
#                  (hot/rings.pxd): all checks are still to come
#   reordered      lane messages that came too early and have waited long enough
#                  (hot/reorder.pxd): from check 3 on if their lane had no keys, else from 6
#
# As in udp_to_tun, what was opened lies where it came in: the ring's slot, or the reorder buffer,
# is used again only after ingress_finish has written it to the interface.

from libc.stdint cimport uint32_t, uint8_t

from fastpump.hot.atomics cimport ACQUIRE, load32
from fastpump.hot.ingress cimport (
    ingress_datagram, ingress_finish, ingress_lane_inner, ingress_lane_open,
)
from fastpump.hot.linux cimport sockaddr_in6
from fastpump.hot.recv cimport Sender
from fastpump.hot.reorder cimport hold_compact, hold_is_over, reorder_lane
from fastpump.hot.rings cimport message_first, message_pop
from fastpump.hot.shm cimport LANE_LIVE, Lane, Message
from fastpump.hot.verdict cimport DROP_UNKNOWN_INDEX, Verdict
from fastpump.hot.worker cimport HeldMessage, Worker, worker_count


cdef inline void ingress_misdelivered(Worker *worker) noexcept nogil:
    """Transport messages that the supervisor's socket received (hot/rings.pxd)."""
    cdef Message *message = message_first(&worker.shared.down)
    cdef Sender sender
    while message != NULL:
        sender.address = <sockaddr_in6 *>message.address
        sender.address_len = message.address_len
        sender.local = message.local
        worker_count(worker, ingress_datagram(worker, message.data, message.length, &sender))
        ingress_finish(worker)      # before the slot is handed back: what was opened lies in it
        message_pop(&worker.shared.down)
        message = message_first(&worker.shared.down)


cdef inline void ingress_reordered(Worker *worker) noexcept nogil:
    """Lane messages that have waited long enough (hot/reorder.pxd). What may pass is decided from
    the newest to the oldest: others drain lanes meanwhile, and none may pass one before it."""
    cdef HeldMessage *held
    cdef uint32_t i, count = worker.hold.count, kept = 0
    if count == 0:
        return
    for i in range(count):
        held = &worker.hold.messages[count - 1 - i]
        held.may_pass = hold_is_over(worker, held)
    for i in range(count):
        held = &worker.hold.messages[i]
        if held.may_pass:
            worker_count(worker, ingress_reordered_message(worker, held))
        else:
            worker.hold.messages[kept] = held[0]
            kept += 1
    ingress_finish(worker)
    hold_compact(&worker.hold, kept)


cdef inline Verdict ingress_reordered_message(Worker *worker, HeldMessage *held) noexcept nogil:
    """One of them; its lane is found again, for the whole set may be gone."""
    cdef uint8_t *datagram = worker.hold.buffer + held.at
    cdef Lane *lane = reorder_lane(worker, held)
    cdef Sender sender
    if lane == NULL:
        return DROP_UNKNOWN_INDEX
    if lane.held_count:
        lane.held_count -= 1
    if load32(&lane.state, ACQUIRE) != LANE_LIVE:
        return DROP_UNKNOWN_INDEX
    sender.address = &held.remote
    sender.address_len = held.remote_len
    sender.local = held.local
    if held.is_opened:
        return ingress_lane_inner(worker, lane, datagram, held.length, &sender)
    return ingress_lane_open(worker, lane, datagram, held.length, &sender, False)
