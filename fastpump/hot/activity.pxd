# Activity: what traffic means for the timers, and for where a peer is.
#
# This file answers "when does a timer move?". Workers only write times into the shared memory,
# and report the first packet of a kind by an event (hot/events.pxd); the supervisor looks at the
# times when a timer fires (protocol/timers.py). The functions are called
#
#   before sealing    activity_session_used    the session's age: rekey
#   after sealing     activity_sent, activity_lane_sent
#   after opening     before what is inside is judged, in this order:
#                     activity_peer_roams, activity_lane_roams     where the peer is
#                     activity_received, by one of the next two
#                     activity_session_received    confirmation of a responder's keys; rekey
#                     activity_lane_received       the lane is usable; echo requests; rekey
#
# Who owns what: times are plain stores by whichever worker sends or receives for the peer; a lost
# race moves a timer by less than one iteration of a loop, or to the next packet. An endpoint is
# written by whoever gets its sequence (hot/shm.pxd), at once: the answer to this very packet may
# leave before the supervisor has woken up.
#
# Invariant: nothing here is called for a message whose tag has not been verified.

from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memcmp

from fastpump.hot.atomics cimport (
    RELAXED, RELEASE, SEQ_CST, and32, fence, load32, or32, store32,
)
from fastpump.hot.constants cimport (
    LANE_FLAG_ECHO_REQUEST, LANE_REKEY_AFTER_MESSAGES, REKEY_AFTER_MESSAGES,
)
from fastpump.hot.endpoint cimport endpoint_set_source_address, endpoint_write
from fastpump.hot.events cimport event_push_once, events_have_room
from fastpump.hot.lane cimport lane_slot
from fastpump.hot.linux cimport sockaddr_in6
from fastpump.hot.recv cimport Sender
from fastpump.hot.shm cimport (
    EVENT_CONFIRMED, EVENT_LANE_ECHO_REQUEST, EVENT_LANE_ROAM, EVENT_LANE_UNANSWERED,
    EVENT_LANE_USABLE, EVENT_REKEY, EVENT_ROAM, EVENT_UNANSWERED_RX, EVENT_UNANSWERED_TX,
    KEYPAIR_CONFIRM_REPORTED, KEYPAIR_INITIATOR, KEYPAIR_REKEY_REPORTED, KEYPAIR_UNCONFIRMED,
    LANE_DEAD, LANE_ECHO_REPORTED, LANE_RECORDS, LANE_REKEY_REPORTED, LANE_ROAM_REPORTED,
    LANE_UNANSWERED_REPORTED, LANE_USABLE, LANE_USABLE_REPORTED, NONE, REPORTED_ROAM,
    REPORTED_UNANSWERED_RX, REPORTED_UNANSWERED_TX, SOURCE_ADDRESS_LEN, Endpoint, Keypair,
    KeypairState, Lane, LaneState, PeerState, keypair_slot, keypair_state, lane_state,
)
from fastpump.hot.upcall cimport upcall_take_echo, upcall_take_lane_roam, upcall_take_roam
from fastpump.hot.worker cimport Worker


cdef inline void activity_session_used(Worker *worker, const Keypair *keypair,
                                       uint64_t counter) noexcept nogil:
    """A session's initiator sends with it: is it time for the next one?"""
    cdef KeypairState *state = keypair_state(&worker.tables, keypair)
    if state.flags & KEYPAIR_INITIATOR and (
            worker.now_ns >= keypair.rekey_at_ns or counter >= REKEY_AFTER_MESSAGES):
        worker.send.has_events |= event_push_once(
            worker.shared, &state.flags, KEYPAIR_REKEY_REPORTED, EVENT_REKEY, keypair.peer,
            keypair_slot(&worker.tables, keypair), worker.now_ns)


cdef inline void activity_sent(Worker *worker, uint32_t index, PeerState *peer) noexcept nogil:
    """Data went out, which also answers what the peer sent."""
    if peer.last_tx_ns != worker.now_ns:
        peer.last_tx_ns = worker.now_ns
    if peer.first_unanswered_rx_ns:
        peer.first_unanswered_rx_ns = 0
    if not peer.first_unanswered_tx_ns:
        peer.first_unanswered_tx_ns = worker.now_ns
    if not load32(&peer.reported, RELAXED) & REPORTED_UNANSWERED_TX:
        worker.send.has_events |= event_push_once(
            worker.shared, &peer.reported, REPORTED_UNANSWERED_TX, EVENT_UNANSWERED_TX, index, 0,
            worker.now_ns)


cdef inline void activity_lane_sent(Worker *worker, const Lane *lane, PeerState *peer,
                                    uint64_t counter) noexcept nogil:
    """Data went out on a lane; `counter` is the next that it would take."""
    cdef LaneState *state = lane_state(&worker.tables, lane)
    state.last_tx_ns = state.last_data_ns = worker.now_ns
    if not state.first_unanswered_tx_ns:
        state.first_unanswered_tx_ns = worker.now_ns
    # Not only for the first: the event ring may have been full then.
    if not load32(&state.bits, RELAXED) & LANE_UNANSWERED_REPORTED:
        worker.send.has_events |= event_push_once(
            worker.shared, &state.bits, LANE_UNANSWERED_REPORTED, EVENT_LANE_UNANSWERED, lane.peer,
            lane_slot(&worker.tables, lane), state.first_unanswered_tx_ns)
    if worker.now_ns >= lane.rekey_at_ns or counter >= LANE_REKEY_AFTER_MESSAGES:
        worker.send.has_events |= event_push_once(
            worker.shared, &state.bits, LANE_REKEY_REPORTED, EVENT_REKEY, lane.peer, NONE,
            worker.now_ns)
    activity_sent(worker, lane.peer, peer)


cdef inline void activity_received(Worker *worker, uint32_t index, PeerState *peer,
                                   bint is_data) noexcept nogil:
    """A message was authentic; `is_data`: neither a keepalive nor a control packet."""
    if peer.last_rx_ns != worker.now_ns:
        peer.last_rx_ns = worker.now_ns
    if peer.first_unanswered_tx_ns:
        peer.first_unanswered_tx_ns = 0
    if is_data:
        if not peer.first_unanswered_rx_ns:
            peer.first_unanswered_rx_ns = worker.now_ns
        worker.send.has_events |= event_push_once(
            worker.shared, &peer.reported, REPORTED_UNANSWERED_RX, EVENT_UNANSWERED_RX, index, 0,
            worker.now_ns)


cdef inline void activity_session_received(Worker *worker, const Keypair *keypair,
                                           bint is_data) noexcept nogil:
    """Timers, confirmation and rekeying of a session."""
    cdef uint32_t index = keypair.peer
    cdef uint32_t slot = keypair_slot(&worker.tables, keypair)
    cdef KeypairState *state = keypair_state(&worker.tables, keypair)
    cdef PeerState *peer = &worker.tables.peer_states[index]
    activity_received(worker, index, peer, is_data)
    if state.flags & KEYPAIR_UNCONFIRMED and event_push_once(
            worker.shared, &state.flags, KEYPAIR_CONFIRM_REPORTED, EVENT_CONFIRMED, index, slot,
            worker.now_ns):
        # Answer with it at once: a peer that was restarted knows no older one, and the
        # reply to this very packet may leave before the supervisor has woken up.
        store32(&peer.send_keypair, slot, RELEASE)
        worker.send.has_events = True
    if state.flags & KEYPAIR_INITIATOR and worker.now_ns >= keypair.rekey_rx_at_ns:
        worker.send.has_events |= event_push_once(
            worker.shared, &state.flags, KEYPAIR_REKEY_REPORTED, EVENT_REKEY, index, slot,
            worker.now_ns)


cdef inline void activity_lane_received(Worker *worker, const Lane *lane, uint32_t flags,
                                        bint is_data) noexcept nogil:
    """Timers of a lane and of its peer. An authentic message makes the lane usable; but an echo
    request says that the peer may not receive from us, so it answers nothing that we sent, and
    does not bring a dead lane back."""
    cdef uint32_t slot = lane_slot(&worker.tables, lane)
    cdef LaneState *state = lane_state(&worker.tables, lane)
    cdef uint32_t bits = load32(&state.bits, RELAXED)
    activity_received(worker, lane.peer, &worker.tables.peer_states[lane.peer], is_data)
    if state.last_rx_ns != worker.now_ns:
        state.last_rx_ns = worker.now_ns
    if flags & LANE_FLAG_ECHO_REQUEST:
        if not bits & LANE_ECHO_REPORTED and upcall_take_echo(worker, state):
            worker.send.has_events |= event_push_once(
                worker.shared, &state.bits, LANE_ECHO_REPORTED, EVENT_LANE_ECHO_REQUEST, lane.peer,
                slot, worker.now_ns)
    elif state.first_unanswered_tx_ns:
        state.first_unanswered_tx_ns = 0
    if not bits & LANE_USABLE and not (flags & LANE_FLAG_ECHO_REQUEST and bits & LANE_DEAD):
        and32(&state.bits, ~<uint32_t>LANE_DEAD, RELAXED)
        or32(&state.bits, LANE_USABLE, RELEASE)
        worker.send.has_events |= event_push_once(
            worker.shared, &state.bits, LANE_USABLE_REPORTED, EVENT_LANE_USABLE, lane.peer, slot,
            worker.now_ns)
    if worker.now_ns >= lane.rekey_rx_at_ns:
        worker.send.has_events |= event_push_once(
            worker.shared, &state.bits, LANE_REKEY_REPORTED, EVENT_REKEY, lane.peer, NONE,
            worker.now_ns)


cdef inline void activity_path_probed(Worker *worker, const Lane *lane) noexcept nogil:
    """The peer probes the path MTU of a lane. Like an echo request, that is no answer; it need not
    make the lane usable, as only usable lanes are probed."""
    activity_received(worker, lane.peer, &worker.tables.peer_states[lane.peer], False)
    lane_state(&worker.tables, lane).last_rx_ns = worker.now_ns


cdef inline void activity_peer_roams(Worker *worker, uint32_t index,
                                     const Sender *sender) noexcept nogil:
    """Send to where the peer is now, from the address of ours that it sends to."""
    cdef PeerState *peer = &worker.tables.peer_states[index]
    if sender_is_at(sender, &peer.endpoint):
        return
    # Not while the event ring is full: no later packet would differ from what is written.
    if not events_have_room(worker.shared) or not upcall_take_roam(worker, index) \
            or not endpoint_write(&peer.endpoint, worker.number, sender.address,
                                  sender.address_len, sender.source_address):
        return
    fence(SEQ_CST)
    worker.send.has_events |= event_push_once(
        worker.shared, &peer.reported, REPORTED_ROAM, EVENT_ROAM, index, 0, worker.now_ns)


cdef inline void activity_lane_roams(Worker *worker, const Lane *lane,
                                     const Sender *sender) noexcept nogil:
    """A lane roams by itself. If we opened it, it comes from where the session comes from; else
    the supervisor may find out where that is now, but both come to one address of ours."""
    cdef LaneState *state = lane_state(&worker.tables, lane)
    cdef bint was_known = state.endpoint.length != 0
    if sender_is_at(sender, &state.endpoint) or not events_have_room(worker.shared) \
            or (was_known and not upcall_take_lane_roam(worker, state)) \
            or not endpoint_write(&state.endpoint, worker.number, sender.address,
                                  sender.address_len, sender.source_address):
        return
    and32(&state.bits, ~<uint32_t>LANE_RECORDS, RELAXED)    # another path
    if lane.socket != NONE:
        activity_peer_roams(worker, lane.peer, sender)
        return
    activity_source_follows(worker, lane.peer, sender)
    if was_known:
        fence(SEQ_CST)
        worker.send.has_events |= event_push_once(
            worker.shared, &state.bits, LANE_ROAM_REPORTED, EVENT_LANE_ROAM, lane.peer,
            lane_slot(&worker.tables, lane), worker.now_ns)


cdef inline void activity_source_follows(Worker *worker, uint32_t index,
                                         const Sender *sender) noexcept nogil:
    """Send the session from the address of ours that the peer sends to now: what came from another
    one would bring the peer back to that."""
    cdef PeerState *peer = &worker.tables.peer_states[index]
    if memcmp(peer.endpoint.source_address, sender.source_address, SOURCE_ADDRESS_LEN) != 0 \
            and events_have_room(worker.shared) \
            and endpoint_set_source_address(&peer.endpoint, worker.number,
                                            sender.source_address):
        fence(SEQ_CST)
        worker.send.has_events |= event_push_once(
            worker.shared, &peer.reported, REPORTED_ROAM, EVENT_ROAM, index, 0, worker.now_ns)


cdef inline bint sender_is_at(const Sender *self, const Endpoint *endpoint) noexcept nogil:
    """Reads the endpoint without its sequence: a torn read costs one write too many."""
    return endpoint.length == self.address_len and sockaddr_is_equal(
        endpoint.address, <const uint8_t *>self.address, self.address_len) \
        and memcmp(endpoint.source_address, self.source_address, SOURCE_ADDRESS_LEN) == 0


cdef inline bint sockaddr_is_equal(const uint8_t *a, const uint8_t *b,
                                   uint32_t length) noexcept nogil:
    """Compare without sin6_flowinfo, which is not part of the address."""
    if length < sizeof(sockaddr_in6):
        return memcmp(a, b, 8) == 0         # sockaddr_in: family, port, address
    return memcmp(a, b, 4) == 0 and memcmp(a + 8, b + 8, 20) == 0
