# What a worker that was killed at any instruction leaves behind, and how it is repaired.
#
#   its epoch       odd, if it died in an iteration: no grace period would end (hot/reclaim.pxd)
#   reported bits   of peers, keypairs and lanes (others' too, while its own were dead): set, but
#                   the event that they stand for was not pushed (hot/events.pxd). They are cleared:
#                   what is still true is sent again
#   an Endpoint     locked by it, half written (hot/endpoint.pxd); or by nobody there is, if it had
#                   been taken over
#   a MacEntry      claimed, not filled (hot/fdb.pxd)
#   its lanes       messages in its reorder buffer went with its private memory
#
# The supervisor does this after it has taken the worker's last events, and before another
# process takes the worker's number.

from libc.stdint cimport uint32_t

from fastpump.hot.atomics cimport SEQ_CST, and32, store32, store64
from fastpump.hot.endpoint cimport endpoint_repair
from fastpump.hot.shm cimport (
    KEYPAIR_CONFIRM_REPORTED, KEYPAIR_REKEY_REPORTED, LANE_ECHO_REPORTED, LANE_FREE,
    LANE_REKEY_REPORTED, LANE_ROAM_REPORTED, LANE_UNANSWERED_REPORTED, LANE_USABLE_REPORTED,
    KeypairState, Lane, LaneState, PeerState, WorkerShared,
)


cdef inline void worker_repair(WorkerShared *self) noexcept nogil:
    """It holds no pointer any more."""
    store64(&self.epoch, (self.epoch | 1) + 1, SEQ_CST)


cdef inline bint peer_repair(PeerState *self, uint32_t worker, uint32_t count) noexcept nogil:
    """A worker of `count` has died. True if the peer's endpoint was torn, and is unknown now."""
    store32(&self.reported, 0, SEQ_CST)
    return endpoint_repair(&self.endpoint, worker, count)


cdef inline void keypair_repair(KeypairState *self) noexcept nogil:
    cdef uint32_t reported = KEYPAIR_REKEY_REPORTED | KEYPAIR_CONFIRM_REPORTED
    and32(&self.flags, ~reported, SEQ_CST)


cdef inline void lane_repair(const Lane *lane, LaneState *self, uint32_t worker,
                             uint32_t count) noexcept nogil:
    cdef uint32_t reported = (LANE_ECHO_REPORTED | LANE_USABLE_REPORTED | LANE_REKEY_REPORTED
                              | LANE_UNANSWERED_REPORTED | LANE_ROAM_REPORTED)
    if lane.state == LANE_FREE:
        return
    if lane.worker == worker:
        self.reorder_count = 0
        self.first_unanswered_tx_ns = 0
    and32(&self.bits, ~reported, SEQ_CST)
    endpoint_repair(&self.endpoint, worker, count)      # the peer's next message says where it is
