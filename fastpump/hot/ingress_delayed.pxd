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
from fastpump.hot.constants cimport MISDELIVERED_LEN
from fastpump.hot.ecn cimport ECN_NOT_ECT
from fastpump.hot.ingress cimport (
    ingress_datagram, ingress_finish, ingress_lane_inner, ingress_lane_open,
)
from fastpump.hot.linux cimport sockaddr_in6
from fastpump.hot.recv cimport Sender
from fastpump.hot.reorder cimport (
    reorder_check, reorder_compact, reorder_discharge, reorder_lane,
)
from fastpump.hot.rings cimport misdelivered_count, misdelivered_first, misdelivered_pop
from fastpump.hot.shm cimport (
    ADDRESS_LEN, LANE_LIVE, NONE, Lane, LaneState, Misdelivered, lane_state,
)
from fastpump.hot.verdict cimport DROP_UNKNOWN_INDEX, Verdict
from fastpump.hot.worker cimport ReorderEntry, Worker, peer_verdict, worker_count


cdef inline void ingress_misdelivered(Worker *worker) noexcept nogil:
    """Transport messages that the supervisor's socket received (hot/rings.pxd)."""
    cdef Misdelivered *datagram
    cdef Sender sender
    cdef uint32_t length, _
    worker.train_peer = NONE
    worker.outer_ecn = ECN_NOT_ECT          # it did not come with them
    worker.is_reassembled = True            # nor did that
    for _ in range(misdelivered_count(&worker.shared.down)):
        datagram = misdelivered_first(&worker.shared.down)
        if datagram == NULL:
            break
        sender.address = <sockaddr_in6 *>datagram.address
        sender.address_len = min(datagram.address_len, <uint32_t>ADDRESS_LEN)
        sender.source_address = datagram.source_address
        length = min(datagram.length, <uint32_t>MISDELIVERED_LEN)
        worker_count(worker, ingress_datagram(worker, datagram.data, length, &sender))
        ingress_finish(worker)      # before the slot is handed back: what was opened lies in it
        misdelivered_pop(&worker.shared.down)


cdef inline void ingress_reordered(Worker *worker) noexcept nogil:
    """Lane messages that have waited long enough (hot/reorder.pxd). What may pass is decided from
    the newest to the oldest: others drain lanes meanwhile, and none may pass one before it."""
    cdef ReorderEntry *entry
    cdef uint32_t i, count = worker.reorder.count, kept = 0
    if count == 0:
        return
    for i in range(count):
        entry = &worker.reorder.entries[count - 1 - i]
        entry.may_pass = reorder_check(worker, entry)
    for i in range(count):
        entry = &worker.reorder.entries[i]
        if entry.may_pass:
            reorder_discharge(&worker.reorder, entry)
            worker_count(worker, ingress_reordered_message(worker, entry))
        else:
            worker.reorder.entries[kept] = entry[0]
            kept += 1
    ingress_finish(worker)
    reorder_compact(&worker.reorder, kept)


cdef inline Verdict ingress_reordered_message(Worker *worker, ReorderEntry *entry) noexcept nogil:
    """One of them; its lane is found again, for the whole set may be gone."""
    cdef uint8_t *datagram = worker.reorder.buffer + entry.at
    cdef const Lane *lane = reorder_lane(worker, entry)
    cdef LaneState *state
    cdef Sender sender
    if lane == NULL:
        return DROP_UNKNOWN_INDEX
    state = lane_state(&worker.tables, lane)
    worker.outer_ecn = entry.outer_ecn
    worker.is_reassembled = True            # that is not known any more
    if state.reorder_count:
        state.reorder_count -= 1
    if load32(&lane.state, ACQUIRE) != LANE_LIVE:
        return DROP_UNKNOWN_INDEX
    if entry.is_opened:
        return peer_verdict(worker, lane.peer, ingress_lane_inner(worker, lane, datagram,
                                                                  entry.length))
    sender.address = &entry.sender
    sender.address_len = entry.sender_len
    sender.source_address = entry.source_address
    return peer_verdict(worker, lane.peer, ingress_lane_open(worker, lane, datagram, entry.length,
                                                             &sender, False))
