# Lanes: which one a message came on, and which one a packet leaves on (docs/PROTOCOL.md).
#
# The lanes of a set lie in a row in the table; the set's receiver index gives the place of lane 0,
# and the lane number in the message counts on from there. Lane n is the job of worker n modulo
# queues: it alone receives on it, so it owns the replay window, and it alone sends on it, unless
# another worker's lane is dead, whose flows then take any usable one.
#
# Sockets: one side of a set, the opener, has a socket of its own for each of its lanes; the
# other side's lanes share its port, where steering goes by the lane number. Lane n of an
# opener is socket n modulo the number of lane sockets, which is a multiple of the queues:
# so worker n modulo queues is the one that receives on it.
#
# A worker sends on its own lane of the newest set as soon as that is usable, else on that of
# the set before; if its own lane of the newest set is dead, on any usable lane; else
# by the session. A lane on which nothing was received yet is not dead: to take another meanwhile
# would reorder flows later. The first message on a lane goes through hot/fence.pxd.
#
# What is done to a lane's messages is named by the stage that does it: seal_on_lane,
# egress_transmit_on_lane, ingress_lane_open, activity_lane_sent.

from libc.stdint cimport uint32_t

from fastpump.hot.atomics cimport ACQUIRE, RELAXED, load32, load64
from fastpump.hot.batch cimport Path
from fastpump.hot.constants cimport LANE_REJECT_AFTER_MESSAGES
from fastpump.hot.flow cimport flow_hash
from fastpump.hot.ip cimport IpPacket
from fastpump.hot.shm cimport (
    LANE_DEAD, LANE_FREE, LANE_LIVE, LANE_USABLE, NONE, Lane, LaneState, PeerState, Tables,
    lane_state,
)
from fastpump.hot.worker cimport Worker

cdef enum:
    PATH_IS_LANE = 0x80000000       # in Path.id: a lane's slot


cdef inline const Lane *lane_find(const Tables *tables, uint32_t index, uint32_t number,
                                  uint32_t worker) noexcept nogil:
    """The reserved or live lane of a set's index, if `worker` receives on it."""
    cdef uint32_t slot = (index & ((1u << tables.header.lane_bits) - 1)) + number
    cdef const Lane *lane
    if slot >= tables.header.lane_capacity:
        return NULL
    lane = &tables.lanes[slot]
    if load32(&lane.state, ACQUIRE) == LANE_FREE:
        return NULL
    if lane.local_index != index or lane.number != number or lane.worker != worker:
        return NULL
    return lane


cdef inline const Lane *lane_choose(Worker *worker, uint32_t index, PeerState *peer,
                                    const IpPacket *ip) noexcept nogil:
    """The lane that a packet to the peer leaves on; NULL: none is usable."""
    cdef uint32_t newest = load32(&peer.lanes[0], ACQUIRE)
    cdef const Lane *lanes
    cdef const Lane *older
    cdef const Lane *own
    cdef const Lane *lane
    if newest == NONE:
        return NULL
    lanes = lane_set(worker, newest)
    if lanes == NULL:
        return NULL
    own = &lanes[lane_own_number(worker, lanes.count, ip)]
    if lane_is_usable(worker, own, index):
        return own
    older = lane_set(worker, load32(&peer.lanes[1], ACQUIRE))
    if load32(&lane_state(&worker.tables, own).bits, RELAXED) & LANE_DEAD:
        # So is that of the set before, mostly.
        lane = lane_any_usable(worker, lanes, index)
        if lane == NULL and older != NULL:
            lane = lane_any_usable(worker, older, index)
        return lane
    if older != NULL:
        lane = &older[lane_own_number(worker, older.count, ip)]
        if lane_is_usable(worker, lane, index):
            return lane
    return NULL


cdef inline uint32_t lane_own_number(const Worker *worker, uint32_t count,
                                     const IpPacket *ip) noexcept nogil:
    """The number of our lane that a packet belongs to: with fewer queues than the peer we
    have several, and a flow keeps to one."""
    cdef uint32_t own_count
    if count <= worker.queue_count:
        return worker.number % count
    own_count = (count - worker.number + worker.queue_count - 1) / worker.queue_count
    return worker.number + flow_hash(ip) % own_count * worker.queue_count


cdef inline bint lane_is_usable(const Worker *worker, const Lane *lane,
                                uint32_t peer) noexcept nogil:
    cdef LaneState *state = lane_state(&worker.tables, lane)
    return load32(&lane.state, ACQUIRE) == LANE_LIVE and lane.peer == peer \
        and load32(&state.bits, RELAXED) & LANE_USABLE != 0 \
        and worker.now_ns < lane.reject_at_ns \
        and load64(&state.send_counter, RELAXED) < LANE_REJECT_AFTER_MESSAGES


cdef inline const Lane *lane_any_usable(Worker *worker, const Lane *lanes,
                                        uint32_t peer) noexcept nogil:
    """Any usable lane of a set."""
    cdef uint32_t i
    for i in range(lanes.count):
        if lane_is_usable(worker, &lanes[(worker.number + i) % lanes.count], peer):
            return &lanes[(worker.number + i) % lanes.count]
    return NULL


cdef inline const Lane *lane_set(Worker *worker, uint32_t first) noexcept nogil:
    """Lane 0 of the live set in slot `first`; NULL for NONE, or when it is gone."""
    if first >= worker.tables.header.lane_capacity \
            or load32(&worker.tables.lanes[first].state, ACQUIRE) != LANE_LIVE:
        return NULL
    return &worker.tables.lanes[first]


cdef inline const Lane *lane_before(Worker *worker, const Lane *lane,
                                    PeerState *peer) noexcept nogil:
    """The lane of the set before that has the same number, if both sets have the same."""
    cdef const Lane *older = lane_set(worker, load32(&peer.lanes[1], ACQUIRE))
    if older == NULL or older.count != lane.count or older.peer != lane.peer \
            or older.local_index == lane.local_index:
        return NULL
    return &older[lane.number]


cdef inline void lane_path(Worker *worker, const Lane *lane, Path *path) noexcept nogil:
    path.id = PATH_IS_LANE | lane_slot(&worker.tables, lane)
    path.peer = lane.peer
    path.fd = worker.udp_fd if lane.socket == NONE else worker.lane_fds[lane.socket]
    path.tos = worker.send.tos_fixed
    path.endpoint = &lane_state(&worker.tables, lane).endpoint


cdef inline uint32_t lane_slot(const Tables *tables, const Lane *lane) noexcept nogil:
    return <uint32_t>(lane - tables.lanes)
