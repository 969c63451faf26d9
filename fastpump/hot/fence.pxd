# Fence: the switch from the session to lanes and from one set of lanes to the next, with nothing
# reordered (docs/PROTOCOL.md); and the way back to the session.
#
# What a worker sent by the session may arrive after what it sends on a lane: they go by different
# sockets, and another worker may receive them. So, in order:
#
#   1 sender     before its first message on a lane, sends an end marker by the route before
#                (`fence_raise`), and puts the FENCE flag on the lane's messages
#   2 receiver   lane messages with that flag wait in the reorder buffer (hot/reorder.pxd)
#   3 receiver   the worker that receives the end marker writes what came before it, and lifts the
#                fence (`fence_lift`: LANE_DRAINED)
#   4 receiver   the lane's worker sees that in its loop, and releases what waits. If the end marker
#                was lost, it does so after REORDER_TIMEOUT_NS
#
# No fence is needed if nothing was sent by the route before within FENCE_AFTER_NS, nor from lane n
# of a set to lane n of the next, which uses the same sockets; unless both sides opened a set at
# once, and the sockets differ: then the end marker goes by the older lane.
#
# And back: a peer that was restarted has no lanes, and says so in its HELLO or OFFER, which name
# the set that it has. `fence_check_lanes` takes ours out of use at once, as the answer to what
# comes right behind must not leave on a lane; the supervisor does the rest.
#
# Who owns what: is_started and is_fenced belong to the lane's worker; but another worker whose own
# lane is dead may be the first to send on it, and its fence says nothing about what the owner sent
# by the session. LANE_DRAINED is set, and lanes[0] taken away, by the worker that received the
# marker or control packet (both atomic).

from libc.stdint cimport uint32_t, uint64_t, uint8_t

from fastpump.hot.atomics cimport ACQUIRE, RELAXED, RELEASE, add64, cas32, load32, load64, or32
from fastpump.hot.batch cimport Path
from fastpump.hot.bundle cimport bundle_flush
from fastpump.hot.bytes cimport load_le16, load_le32, store_le16, store_le32
from fastpump.hot.constants cimport (
    CONTROL_END_MARKER, CONTROL_HELLO, CONTROL_IN_USE_AT, CONTROL_IN_USE_FIELD, CONTROL_MAGIC,
    CONTROL_OFFER, END_MARKER_LEN, FENCE_AFTER_NS, PADDING_MULTIPLE, REJECT_AFTER_MESSAGES,
    REJECT_AFTER_TIME_NS,
)
from fastpump.hot.lane cimport lane_before, lane_path
from fastpump.hot.seal cimport seal_on_lane, seal_on_session
from fastpump.hot.shm cimport (
    LANE_DRAINED, LANE_LIVE, NONE, Keypair, KeypairState, Lane, LaneState, PeerState, Tables,
    keypair_state, lane_state,
)
from fastpump.hot.tun_write cimport tun_write_flush
from fastpump.hot.tx_route cimport tx_route_session
from fastpump.hot.verdict cimport DROP_UNKNOWN_INDEX, PASS, Verdict
from fastpump.hot.worker cimport Worker


cdef inline void fence_raise(Worker *worker, const Lane *lane, PeerState *peer) noexcept nogil:
    """Before a lane's first message: fence it off from the route before, if need be."""
    cdef uint64_t session_sent_ns = worker.session_sent_ns[lane.peer]
    cdef const Lane *before = lane_before(worker, lane, peer)
    cdef LaneState *state = lane_state(&worker.tables, lane)
    cdef LaneState *old = NULL if before == NULL else lane_state(&worker.tables, before)
    state.is_started = True
    bundle_flush(worker)
    if old != NULL and old.is_started and old.last_data_ns >= session_sent_ns:
        if fence_is_needed(worker, old.last_data_ns) \
                and (before.socket == NONE) != (lane.socket == NONE):
            state.is_fenced = end_marker_send_on_lane(worker, lane, before)
    elif fence_is_needed(worker, session_sent_ns):
        state.is_fenced = end_marker_send_on_session(worker, lane)


cdef inline bint fence_is_needed(const Worker *worker, uint64_t sent_ns) noexcept nogil:
    """Whether what was sent then, by the route before, may still be under way."""
    return sent_ns != 0 and worker.now_ns < sent_ns + FENCE_AFTER_NS


cdef inline bint end_marker_send_on_lane(Worker *worker, const Lane *lane,
                                         const Lane *before) noexcept nogil:
    """Send the end marker for a lane on the one before it; False if that has no endpoint."""
    cdef uint8_t marker[END_MARKER_LEN + PADDING_MULTIPLE]
    cdef LaneState *state = lane_state(&worker.tables, before)
    cdef Path path
    end_marker_write(marker, lane)
    lane_path(worker, before, &path)
    return seal_on_lane(worker, before, &path, add64(&state.send_counter, 1, RELAXED), 0, marker,
                        END_MARKER_LEN) != 0


cdef inline bint end_marker_send_on_session(Worker *worker, const Lane *lane) noexcept nogil:
    """Send the end marker for a lane by the session; False if that cannot be sent by."""
    cdef uint8_t marker[END_MARKER_LEN + PADDING_MULTIPLE]
    cdef const Keypair *keypair = tx_route_session(worker, lane.peer)
    cdef KeypairState *state
    if keypair == NULL:
        return False
    state = keypair_state(&worker.tables, keypair)
    if load64(&state.send_counter, RELAXED) >= REJECT_AFTER_MESSAGES - 1:
        return False
    end_marker_write(marker, lane)
    return seal_on_session(worker, lane.peer, keypair, add64(&state.send_counter, 1, RELAXED),
                           worker.send.tos_fixed, marker, END_MARKER_LEN) != 0


cdef inline void end_marker_write(uint8_t *marker, const Lane *lane) noexcept nogil:
    marker[0] = CONTROL_MAGIC
    marker[1] = CONTROL_END_MARKER
    store_le16(marker + 2, END_MARKER_LEN - 4)
    store_le32(marker + 4, lane.remote_index)
    store_le16(marker + 8, lane.number)


cdef inline bint fence_is_end_marker(const uint8_t *inner, uint32_t inner_len) noexcept nogil:
    """Whether a message holds an end marker."""
    return inner_len >= END_MARKER_LEN and inner[0] == CONTROL_MAGIC \
        and inner[1] == CONTROL_END_MARKER


cdef inline Verdict fence_lift(Worker *worker, uint32_t peer,
                               const uint8_t *marker) noexcept nogil:
    """An end marker has come: so has all that the peer sent before it used that lane."""
    cdef const Tables *tables = &worker.tables
    cdef uint32_t index = load_le32(marker + 4), number = load_le16(marker + 8)
    cdef uint32_t slot = (index & ((1u << tables.header.lane_bits) - 1)) + number
    cdef const Lane *lane
    cdef LaneState *state
    if slot >= tables.header.lane_capacity:
        return DROP_UNKNOWN_INDEX
    lane = &tables.lanes[slot]
    state = lane_state(tables, lane)
    if load32(&lane.state, ACQUIRE) != LANE_LIVE or lane.local_index != index \
            or lane.number != number or lane.peer != peer:
        return DROP_UNKNOWN_INDEX
    if load32(&state.bits, ACQUIRE) & LANE_DRAINED:
        return PASS                 # again, or late: it must not cost others their superpackets
    tun_write_flush(worker)         # what came before the marker is delivered
    or32(&state.bits, LANE_DRAINED, RELEASE)
    return PASS


cdef inline void fence_check_lanes(Worker *worker, const Keypair *keypair, const uint8_t *inner,
                                   uint32_t inner_len) noexcept nogil:
    """A HELLO or OFFER begins with the set of lanes that the peer has. If that is none of ours,
    the peer was restarted: back to the session."""
    cdef const Tables *tables = &worker.tables
    cdef PeerState *peer = &tables.peer_states[keypair.peer]
    cdef uint32_t newest = load32(&peer.lanes[0], ACQUIRE)
    cdef uint32_t older = load32(&peer.lanes[1], ACQUIRE)
    cdef uint32_t index, i
    if inner_len < CONTROL_IN_USE_AT + 4 or inner[1] not in (CONTROL_HELLO, CONTROL_OFFER) \
            or inner[4] != CONTROL_IN_USE_FIELD or newest >= tables.header.lane_capacity:
        return
    index = load_le32(inner + CONTROL_IN_USE_AT)
    if tables.lanes[newest].local_index == index or (
            older < tables.header.lane_capacity and tables.lanes[older].local_index == index):
        return
    if tables.lanes[newest].reject_at_ns >= keypair.reject_at_ns:
        return                      # not of an older session
    for i in range(tables.lanes[newest].count):
        if tables.lane_states[newest + i].last_rx_ns + REJECT_AFTER_TIME_NS > keypair.reject_at_ns:
            return                  # it was received from there since
    cas32(&peer.lanes[0], newest, NONE)             # the supervisor does the rest
