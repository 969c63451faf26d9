# Whether a path takes UDP GSO. The kernel refuses a GSO send for reasons that concern one
# destination only:
#
#   EIO                no checksum offload on the way out (udp_send_skb(); since Linux 6.11 only if
#                      IPsec is on it): no size is taken
#   EMSGSIZE, EINVAL   the segments exceed the path MTU: smaller ones are taken (EINVAL may also
#                      concern the source address, hot/batch.pxd)
#
# Then datagrams of that size are sent there one by one from the start (the kernel makes fragments
# of those that are too large), and from time to time one message tries again: routes and path MTUs
# change. Other paths are not concerned.
#
# The state is in the path's Endpoint. It holds hints: whichever worker sends there reads and stores
# them, a lost race costs one try, and they are forgotten when the peer is elsewhere
# (hot/endpoint.pxd).

from libc.stdint cimport uint32_t

from fastpump.hot.atomics cimport RELAXED, cas32, load32, store32
from fastpump.hot.linux cimport EIO
from fastpump.hot.shm cimport Endpoint

cdef enum:
    GSO_RETRY_S = 1
    GSO_RETRY_DOUBLINGS = 5         # of it, at most


cdef inline bint gso_is_refused(Endpoint *self, uint32_t segment_len) noexcept nogil:
    """Whether the path refused such segments, lately."""
    cdef uint32_t refused = load32(&self.gso_refused, RELAXED)
    return refused != 0 and segment_len >= refused


cdef inline bint gso_may_retry(Endpoint *self, uint32_t now_s) noexcept nogil:
    """Whether it is time to try again; True for one caller only."""
    cdef uint32_t retry_s = load32(&self.gso_retry_s, RELAXED)
    return now_s >= retry_s and cas32(&self.gso_retry_s, retry_s, now_s + GSO_RETRY_S)


cdef inline bint gso_refuse(Endpoint *self, uint32_t segment_len, int error, bint is_retry,
                            uint32_t now_s) noexcept nogil:
    """The path has refused a message; True if it refused none before, or one that tried again."""
    cdef uint32_t refused = load32(&self.gso_refused, RELAXED)
    cdef uint32_t failures = load32(&self.gso_failures, RELAXED)
    if error == EIO:
        segment_len = 1
    if refused == 0 or segment_len < refused:
        store32(&self.gso_refused, segment_len, RELAXED)
    if refused == 0 or is_retry:
        store32(&self.gso_failures, failures + 1, RELAXED)
        store32(&self.gso_retry_s, now_s + (<uint32_t>GSO_RETRY_S << (
            failures if failures < GSO_RETRY_DOUBLINGS else GSO_RETRY_DOUBLINGS)), RELAXED)
    return refused == 0 or is_retry


cdef inline void gso_accept(Endpoint *self) noexcept nogil:
    """The path has taken a message that tried again."""
    store32(&self.gso_failures, 0, RELAXED)
    store32(&self.gso_refused, 0, RELAXED)
