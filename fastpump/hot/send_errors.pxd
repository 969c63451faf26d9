# Whether datagrams to a peer can be sent, as the operator is to know it.
#
# A peer's state is one errno, 0 while sending works. It changes, and whoever changes it reports
# that (EVENT_SEND_ERROR), when
#   a send fails while sending works    at once
#   it fails by another error           SEND_ERROR_HOLD_NS after the last report at the earliest
#   a send works                        if none has failed for SEND_ERROR_HOLD_NS
# So while the underlay is down each peer is reported once, however much is sent by however many
# workers; and what comes and goes is reported twice in SEND_ERROR_HOLD_NS at most.
#
# Called by any worker, and by the supervisor for what it sends itself. `send_error` is changed by
# compare and swap; the times are plain stores: a lost race moves a report by little.

from libc.stdint cimport uint32_t, uint64_t

from fastpump.hot.atomics cimport RELAXED, cas32, load32
from fastpump.hot.shm cimport PeerState

cdef enum:
    SEND_ERROR_HOLD_NS = 2000000000


cdef inline bint send_error_changes(const PeerState *self, uint32_t error,
                                    uint64_t now) noexcept nogil:
    """Whether the outcome of a send (an errno, or 0) is to be reported."""
    if error == self.send_error:
        return False
    if error == 0:
        return now >= self.send_failed_ns + SEND_ERROR_HOLD_NS
    return self.send_error == 0 or now >= self.send_reported_ns + SEND_ERROR_HOLD_NS


cdef inline bint send_error_set(PeerState *self, uint32_t error, uint64_t now) noexcept nogil:
    """Change the state; False if somebody else does just that."""
    cdef uint32_t before = load32(&self.send_error, RELAXED)
    if before == error or not cas32(&self.send_error, before, error):
        return False
    self.send_reported_ns = now
    return True
