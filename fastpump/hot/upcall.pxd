# Upcalls: which messages a worker passes up to the supervisor, and how many.
#
# Control packets, and handshake messages that GRO put behind data, are the supervisor's. Each costs
# it up to 40 us, and all senders share the worker's rings (hot/rings.pxd). So there is a share for
# each sender, and what exceeds it is dropped here, where that costs nothing:
#
#   a peer      UPCALL_RATE: control packets in its sessions; handshake messages in a train that
#               holds an authentic message of its
#   strangers   STRANGER_RATE, of all of them together: handshake messages in other trains. Those
#               of a peer whose session we have forgotten are among them
#
# An honest peer sends a few control packets for each session, and tries again if they are lost.
#
# Events cost as much, and three kinds a peer could cause by each of its packets, as fast as the
# supervisor handles them: that it (or a lane of its) moved, that it probes a lane, and that it
# probes the path MTU. They have rates, too. Whoever moves more often is sent to where it was; other
# probes are not answered.

from libc.stdint cimport uint32_t, uint64_t

from fastpump.hot.constants cimport (
    COOKIE_REPLY_LEN, COOKIE_REPLY_TYPE, INITIATION_LEN, INITIATION_TYPE, RESPONSE_LEN,
    RESPONSE_TYPE,
)
from fastpump.hot.rate cimport rate_take
from fastpump.hot.shm cimport NONE, LaneState
from fastpump.hot.worker cimport Worker

cdef enum:
    UPCALL_RATE = 10
    UPCALL_BURST = 10
    STRANGER_RATE = 100
    STRANGER_BURST = 20
    ROAM_RATE = 10
    ROAM_BURST = 10
    LANE_ROAM_RATE = 2
    LANE_ROAM_BURST = 5
    LANE_ECHO_RATE = 50             # as often as they are answered: LANE_ANSWER_INTERVAL
    LANE_ECHO_BURST = 2
    PATH_RATE = 50                  # path probes and their acks, of a lane or of a session
    PATH_BURST = 60                 # rounds of a search (protocol/path_mtu.py)
    CUT_RATE = 5                    # records that came in part, or that somebody says so of
    CUT_BURST = 5


cdef inline bint upcall_take(Worker *worker, uint32_t peer) noexcept nogil:
    """Whether a peer (NONE: a stranger) may pass up a message now."""
    if peer == NONE:
        return rate_take(&worker.strangers_full_at_ns, worker.now_ns, STRANGER_RATE,
                         STRANGER_BURST)
    return rate_take(&worker.upcalls_full_at_ns[peer], worker.now_ns, UPCALL_RATE, UPCALL_BURST)


cdef inline bint upcall_take_roam(Worker *worker, uint32_t peer) noexcept nogil:
    """Whether a peer may move now."""
    return rate_take(&worker.roams_full_at_ns[peer], worker.now_ns, ROAM_RATE, ROAM_BURST)


cdef inline bint upcall_take_lane_roam(Worker *worker, LaneState *lane) noexcept nogil:
    """Whether a lane may move now."""
    return rate_take(&lane.roam_full_at_ns, worker.now_ns, LANE_ROAM_RATE, LANE_ROAM_BURST)


cdef inline bint upcall_take_echo(Worker *worker, LaneState *lane) noexcept nogil:
    """Whether a lane may be probed now."""
    return rate_take(&lane.echo_full_at_ns, worker.now_ns, LANE_ECHO_RATE, LANE_ECHO_BURST)


cdef inline bint upcall_take_path(Worker *worker, uint64_t *full_at_ns) noexcept nogil:
    """Whether a path probe or its ack may be reported now."""
    return rate_take(full_at_ns, worker.now_ns, PATH_RATE, PATH_BURST)


cdef inline bint upcall_take_cut(Worker *worker, LaneState *lane) noexcept nogil:
    """Whether a record that came in part may be reported now."""
    return rate_take(&lane.cuts_full_at_ns, worker.now_ns, CUT_RATE, CUT_BURST)


cdef inline bint handshake_has_length(uint32_t kind, uint32_t length) noexcept nogil:
    """Whether a handshake message of that type is as long."""
    return kind == INITIATION_TYPE and length == INITIATION_LEN \
        or kind == RESPONSE_TYPE and length == RESPONSE_LEN \
        or kind == COOKIE_REPLY_TYPE and length == COOKIE_REPLY_LEN
