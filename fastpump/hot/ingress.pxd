# udp_to_tun: from the peers to the interface.
#
#   receive     recvmmsg; a message is a GRO train of equal-sized datagrams
#   open        each datagram in place, after the checks below
#   unbundle    a lane message may hold several small packets (hot/bundle.pxd)
#   switch      frames only: learn, relay (hot/switch.pxd)
#   coalesce    hot/gro.pxd
#   write       one writev for each packet or superpacket (hot/tun_write.pxd)
#
# The order of the checks on a datagram, cheapest first and nothing believed before
# the tag has proved it (each failure is a verdict):
#   1 length, type, flags      5 mark the counter; timers, confirmation
#   2 receiver index, lane     6 inner version and length
#   3 the keys' age            7 inner source in the peer's allowed IPs; a frame's not another's
#   4 replay (quick), AEAD     8 only then: endpoint (roaming), deliver
# A keepalive (empty inside) ends behind 5, and moves the endpoint as well. A handshake
# message that came with a train goes to the supervisor (hot/rings.pxd), and so does a
# control packet of a session. A lane message that comes too early waits, before 3 if its keys
# are not known yet, behind 5 if it is fenced (hot/reorder.pxd).
#
# Queues: a worker writes to its own. Which queue a flow's other direction is read from is the
# steering program's decision (tun/steering.py). Where there is none, the kernel takes the
# queue on which the flow was last written (tun_flow_update()): one WireGuard session is
# received by one worker, which would then also have to send for all flows of the peer. With
# many peers that is best (a peer's state stays on one core), and the peers spread over the
# workers. With few, flows are written to several queues by their hash (Header.spread_queues;
# the supervisor decides).
#
# Who owns what: a keypair's or lane's replay window belongs to this worker (keypair_find
# and lane_find check it), whatever the steering did.

from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memcmp, memset

from fastpump.hot.aead cimport AEAD_CHACHA20_POLY1305, aead_open, nonce_set
from fastpump.hot.atomics cimport (
    ACQUIRE, RELAXED, RELEASE, add64, and32, cas32, load32, or32, store32,
)
from fastpump.hot.batch cimport batch_bucket
from fastpump.hot.bundle cimport BundleEntry, bundle_next
from fastpump.hot.bytes cimport load_le16, load_le32, load_le64
from fastpump.hot.tun_write cimport ingress_write
from fastpump.hot.egress cimport egress_flush
from fastpump.hot.endpoint cimport endpoint_write
from fastpump.hot.events cimport event_push_once, events_have_room
from fastpump.hot.gro cimport Candidate, gro_is_full, gro_receive, gro_reset
from fastpump.hot.reorder cimport hold_add, hold_compact, hold_is_over, hold_wants
from fastpump.hot.ip cimport ip_can_be_partial, ip_source
from fastpump.hot.lane cimport lane_find, lane_slot
from fastpump.hot.constants cimport (
    BUFFER_STRIDE, CONTROL_END, CONTROL_END_LEN, CONTROL_HELLO, CONTROL_IN_USE_AT,
    CONTROL_IN_USE_FIELD, CONTROL_MARK, CONTROL_OFFER, LANE_FLAG_ASK, LANE_FLAG_BUNDLE,
    LANE_FLAG_FRAME, LANE_FLAG_PARTIAL, LANE_FLAG_RELAY, LANE_TYPE, MESSAGE_LEN, RECV_MESSAGES,
    REJECT_AFTER_TIME_NS, RELAY_HEADER_LEN, TAG_LEN, TRANSPORT_HEADER_LEN, TRANSPORT_MIN_LEN,
    TRANSPORT_TYPE,
)
from fastpump.hot.linux cimport (
    EAGAIN, EINTR, MSG_DONTWAIT, MSG_TRUNC, errno, msghdr, recvmmsg, sockaddr_in6,
)
from fastpump.hot.pktinfo cimport control_read
from fastpump.hot.lookup cimport lookup_peer
from fastpump.hot.rings cimport control_push, message_first, message_pop, message_push
from fastpump.hot.packet cimport packet_parse_frame, packet_parse_ip
from fastpump.hot.replay cimport replay_is_fresh, replay_mark
from fastpump.hot.shm cimport (
    ARMED_ROAM, ARMED_UNANSWERED_RX, EVENT_CONFIRMED, EVENT_LANE_ASKED, EVENT_LANE_ROAM,
    EVENT_LANE_USABLE, EVENT_REKEY, EVENT_ROAM, EVENT_UNANSWERED_RX, KEYPAIR_CONFIRM_TOLD,
    KEYPAIR_INITIATOR, KEYPAIR_REKEY_TOLD, KEYPAIR_UNCONFIRMED, LANE_ASKED, LANE_DEAD,
    LANE_DRAINED, LANE_LIVE, LANE_REKEY_TOLD, LANE_ROAM_TOLD, LANE_USABLE, LANE_USABLE_TOLD,
    LOCAL_LEN, NONE, POLICY_ANY, Endpoint, Keypair, Lane, Message, PeerSlot, Tables, keypair_find,
)
from fastpump.hot.switch cimport switch_receive
from fastpump.hot.verdict cimport (
    DROP_CONTROL_FULL, DROP_EXPIRED_KEYPAIR, DROP_HOLD_FULL, DROP_MALFORMED_BUNDLE,
    DROP_MALFORMED_INNER, DROP_MALFORMED_MESSAGE, DROP_MALFORMED_PARTIAL, DROP_NOT_IN_LANES,
    DROP_REPLAYED, DROP_SOURCE_NOT_ALLOWED, DROP_TRUNCATED, DROP_UNAUTHENTIC, DROP_UNKNOWN_INDEX,
    FAILED_EVENT_RING_FULL, KEEPALIVES_RECEIVED, PASS, UDP_RX_BYTES, UDP_RX_CALLS,
    UDP_RX_DATAGRAMS, UDP_RX_MESSAGES, Verdict,
)
from fastpump.hot.vnet cimport VnetHeader, vnet_set_partial
from fastpump.hot.worker cimport HeldMessage, RecvBatch, Relay, Worker

cdef struct Origin:
    # Where a datagram came from, and to which of our addresses.
    const sockaddr_in6 *remote
    uint32_t remote_len
    const uint8_t *local            # LOCAL_LEN


cdef inline void recv_prepare(RecvBatch *self, uint32_t which) noexcept nogil:
    """Make a message ready to receive into; the kernel shortens what it uses."""
    cdef msghdr *message = &self.messages[which].msg_hdr
    message.msg_name = &self.names[which]
    message.msg_namelen = sizeof(sockaddr_in6)
    message.msg_iov = &self.iov[which]
    message.msg_iovlen = 1
    message.msg_control = self.control[which]
    message.msg_controllen = sizeof(self.control[which])
    message.msg_flags = 0
    self.iov[which].iov_base = self.buffers + <size_t>which * BUFFER_STRIDE
    self.iov[which].iov_len = BUFFER_STRIDE


cdef inline void recv_init(RecvBatch *self) noexcept nogil:
    cdef int i
    for i in range(RECV_MESSAGES):
        recv_prepare(self, i)


cdef inline bint address_is_equal(const uint8_t *a, const uint8_t *b,
                                  uint32_t length) noexcept nogil:
    """Compare sockaddrs without sin6_flowinfo, which says nothing about who it is."""
    if length < sizeof(sockaddr_in6):
        return memcmp(a, b, 8) == 0         # sockaddr_in: family, port, address
    return memcmp(a, b, 4) == 0 and memcmp(a + 8, b + 8, 20) == 0


cdef inline void peer_note_received(Worker *self, uint32_t index, PeerSlot *peer,
                                    bint is_data) noexcept nogil:
    """Timers: a message is authentic, whatever is inside."""
    if peer.last_rx_ns != self.now_ns:
        peer.last_rx_ns = self.now_ns
    if peer.first_unanswered_tx_ns:
        peer.first_unanswered_tx_ns = 0
    if is_data:
        if not peer.first_unanswered_rx_ns:
            peer.first_unanswered_rx_ns = self.now_ns
        self.send.has_events |= event_push_once(
            self.shared, &peer.armed, ARMED_UNANSWERED_RX, EVENT_UNANSWERED_RX, index, 0,
            self.now_ns)


cdef inline void keypair_note_received(Worker *self, Keypair *keypair, PeerSlot *peer,
                                       bint is_data) noexcept nogil:
    """Timers, confirmation and rekeying of a session."""
    cdef uint32_t index = keypair.peer
    cdef uint32_t slot = <uint32_t>(keypair - self.tables.keypairs)
    peer_note_received(self, index, peer, is_data)
    if keypair.flags & KEYPAIR_UNCONFIRMED and event_push_once(
            self.shared, &keypair.flags, KEYPAIR_CONFIRM_TOLD, EVENT_CONFIRMED, index, slot,
            self.now_ns):
        # Answer with it at once: a peer that was restarted knows no older one, and the
        # reply to this very packet may leave before the supervisor has woken up.
        store32(&peer.send_keypair, slot, RELEASE)
        self.send.has_events = True
    if keypair.flags & KEYPAIR_INITIATOR and self.now_ns >= keypair.rekey_rx_at_ns:
        self.send.has_events |= event_push_once(
            self.shared, &keypair.flags, KEYPAIR_REKEY_TOLD, EVENT_REKEY, index, slot,
            self.now_ns)


cdef inline void lane_note_received(Worker *self, Lane *lane, PeerSlot *peer, uint32_t flags,
                                    bint is_data) noexcept nogil:
    """Timers of a lane and its peer; the lane is usable, and the peer may want an answer. Who
    asks may not hear us: that is no answer, and does not bring a dead lane back."""
    cdef uint32_t slot = lane_slot(&self.tables, lane)
    cdef uint32_t bits = load32(&lane.bits, RELAXED)
    peer_note_received(self, lane.peer, peer, is_data)
    if lane.last_rx_ns != self.now_ns:
        lane.last_rx_ns = self.now_ns
    if flags & LANE_FLAG_ASK:
        self.send.has_events |= event_push_once(
            self.shared, &lane.bits, LANE_ASKED, EVENT_LANE_ASKED, lane.peer, slot, self.now_ns)
    elif lane.first_unanswered_tx_ns:
        lane.first_unanswered_tx_ns = 0
    if not bits & LANE_USABLE and not (flags & LANE_FLAG_ASK and bits & LANE_DEAD):
        and32(&lane.bits, ~<uint32_t>LANE_DEAD, RELAXED)
        or32(&lane.bits, LANE_USABLE, RELEASE)
        self.send.has_events |= event_push_once(
            self.shared, &lane.bits, LANE_USABLE_TOLD, EVENT_LANE_USABLE, lane.peer, slot,
            self.now_ns)
    if self.now_ns >= lane.rekey_rx_at_ns:
        self.send.has_events |= event_push_once(
            self.shared, &lane.bits, LANE_REKEY_TOLD, EVENT_REKEY, lane.peer, NONE, self.now_ns)


cdef inline bint endpoint_is(const Endpoint *self, const Origin *origin) noexcept nogil:
    """Read without the sequence lock: a torn read costs one write too many."""
    return self.length == origin.remote_len and address_is_equal(
        self.address, <const uint8_t *>origin.remote, origin.remote_len) \
        and memcmp(self.local, origin.local, LOCAL_LEN) == 0


cdef inline void peer_note_origin(Worker *self, uint32_t index,
                                  const Origin *origin) noexcept nogil:
    """Roaming, of the peer or of ours, after everything has been checked."""
    cdef PeerSlot *peer = &self.tables.peers[index]
    if endpoint_is(&peer.endpoint, origin):
        return
    # At once: the answer to this very packet may leave before the supervisor wakes up.
    # Not when that could not be told: no later packet would differ from what is written.
    if not events_have_room(self.shared) or not endpoint_write(
            &peer.endpoint, origin.remote, origin.remote_len, origin.local):
        return
    self.send.has_events |= event_push_once(
        self.shared, &peer.armed, ARMED_ROAM, EVENT_ROAM, index, 0, self.now_ns)


cdef inline void lane_note_origin(Worker *self, Lane *lane, const Origin *origin) noexcept nogil:
    """A lane roams by itself. If we opened it, it comes from where the session comes from; else
    the supervisor may find out where that is now."""
    cdef bint was_known = lane.endpoint.length != 0
    if endpoint_is(&lane.endpoint, origin) or not events_have_room(self.shared) \
            or not endpoint_write(&lane.endpoint, origin.remote, origin.remote_len, origin.local):
        return
    if lane.socket != NONE:
        peer_note_origin(self, lane.peer, origin)
    elif was_known:
        self.send.has_events |= event_push_once(
            self.shared, &lane.bits, LANE_ROAM_TOLD, EVENT_LANE_ROAM, lane.peer,
            lane_slot(&self.tables, lane), self.now_ns)


cdef inline void run_finish(Worker *self) noexcept nogil:
    if self.run.bytes:
        add64(&self.tables.peers[self.run.peer].rx_bytes, self.run.bytes, RELAXED)
    self.run.bytes = 0


cdef inline void run_count(Worker *self, uint32_t peer, uint32_t length) noexcept nogil:
    """Count a message for its peer."""
    if self.run.peer != peer:
        run_finish(self)
        self.run.peer = peer
    self.run.bytes += length


cdef inline void ingress_take(Worker *self, Candidate *candidate, uint32_t peer,
                              bint is_partial) noexcept nogil:
    """On to the interface."""
    candidate.peer = peer
    candidate.is_partial = is_partial
    if gro_is_full(&self.gro):
        ingress_write(self)
    gro_receive(&self.gro, candidate)


cdef inline Verdict ingress_packet(Worker *self, uint32_t peer, uint8_t *start, uint32_t available,
                                   bint is_partial) noexcept nogil:
    """Take an inner packet of a peer's, if it is one and may be the peer's."""
    cdef Candidate candidate
    if not packet_parse_ip(&candidate.packet, start, available):
        return DROP_MALFORMED_INNER
    if is_partial and not ip_can_be_partial(&candidate.packet.ip):
        return DROP_MALFORMED_PARTIAL
    if lookup_peer(&self.tables, ip_source(&candidate.packet.ip),
                   candidate.packet.ip.is_v6) != peer:
        return DROP_SOURCE_NOT_ALLOWED
    ingress_take(self, &candidate, peer, is_partial)
    return PASS


cdef inline Verdict ingress_frame(Worker *self, uint32_t peer, uint8_t *start, uint32_t length,
                                  bint is_partial, const Relay *relay) noexcept nogil:
    """Take a frame of a peer's, if it is one."""
    cdef Candidate candidate
    cdef VnetHeader vnet
    cdef Verdict verdict
    cdef bint is_for_us
    if not packet_parse_frame(&candidate.packet, start, length):
        return DROP_MALFORMED_INNER
    memset(&vnet, 0, sizeof(VnetHeader))
    if is_partial:
        if not ip_can_be_partial(&candidate.packet.ip):
            return DROP_MALFORMED_PARTIAL
        vnet_set_partial(&vnet, &candidate.packet)
    verdict = switch_receive(self, peer, &vnet, &candidate.packet, relay, &is_for_us)
    if is_for_us:
        ingress_take(self, &candidate, peer, is_partial)
    return verdict


cdef inline Verdict ingress_inner(Worker *self, uint32_t peer, uint8_t *start, uint32_t length,
                                  bint is_partial) noexcept nogil:
    """What a lane message, or an entry of a bundle, holds."""
    cdef Relay relay
    if self.is_tap:
        relay.word = 0
        return ingress_frame(self, peer, start, length, is_partial, &relay)
    return ingress_packet(self, peer, start, length, is_partial)


cdef inline bint control_is_end(const uint8_t *inner, uint32_t inner_len) noexcept nogil:
    return inner_len >= CONTROL_END_LEN and inner[0] == CONTROL_MARK and inner[1] == CONTROL_END


cdef inline Verdict ingress_end(Worker *self, uint32_t peer, const uint8_t *inner) noexcept nogil:
    """What the peer sent before it turned to that lane has come."""
    cdef Tables *tables = &self.tables
    cdef uint32_t index, number, slot
    cdef Lane *lane
    index = load_le32(inner + 4)
    number = load_le16(inner + 8)
    slot = (index & ((1u << tables.header.lane_bits) - 1)) + number
    if slot >= tables.header.lane_capacity:
        return DROP_UNKNOWN_INDEX
    lane = &tables.lanes[slot]
    if load32(&lane.state, ACQUIRE) != LANE_LIVE or lane.local_index != index \
            or lane.number != number or lane.peer != peer:
        return DROP_UNKNOWN_INDEX
    ingress_write(self)             # what came before the END is delivered
    or32(&lane.bits, LANE_DRAINED, RELEASE)
    return PASS


cdef inline void ingress_in_use(Worker *self, Keypair *keypair, const uint8_t *inner,
                                uint32_t inner_len) noexcept nogil:
    """A HELLO or OFFER begins with the set of lanes that the peer has. If that is none of ours
    it was restarted, and the answer to what comes right behind must not go on a lane."""
    cdef Tables *tables = &self.tables
    cdef PeerSlot *peer = &tables.peers[keypair.peer]
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
        if tables.lanes[newest + i].last_rx_ns + REJECT_AFTER_TIME_NS > keypair.reject_at_ns:
            return                  # it was heard there since
    cas32(&peer.lanes[0], newest, NONE)             # the supervisor does the rest


cdef inline Verdict ingress_control(Worker *self, Keypair *keypair, const uint8_t *inner,
                                    uint32_t inner_len) noexcept nogil:
    """A control packet: an END is dealt with here, the others are the supervisor's."""
    if control_is_end(inner, inner_len):
        return ingress_end(self, keypair.peer, inner)
    ingress_in_use(self, keypair, inner, inner_len)
    if not control_push(&self.shared.controls, keypair.peer, keypair.local_index, inner,
                        inner_len):
        return DROP_CONTROL_FULL
    self.send.has_events = True
    return PASS


cdef inline Verdict ingress_session(Worker *self, uint8_t *datagram, uint32_t length,
                                    const Origin *origin) noexcept nogil:
    """A transport message."""
    cdef uint8_t *inner = datagram + TRANSPORT_HEADER_LEN
    cdef uint32_t inner_len = length - TRANSPORT_HEADER_LEN - TAG_LEN
    cdef Keypair *keypair = keypair_find(&self.tables, load_le32(datagram + 4), self.number)
    cdef PeerSlot *peer
    cdef Verdict verdict = PASS
    cdef uint8_t nonce[12]
    cdef uint64_t counter
    cdef bint is_control
    if keypair == NULL:
        return DROP_UNKNOWN_INDEX
    if self.now_ns >= keypair.reject_at_ns:
        return DROP_EXPIRED_KEYPAIR
    counter = load_le64(datagram + 8)
    if not replay_is_fresh(&keypair.replay, counter):
        return DROP_REPLAYED
    nonce_set(nonce, counter)
    if aead_open(&self.aead, AEAD_CHACHA20_POLY1305, keypair.receive_key, nonce, NULL, 0,
                 inner, inner, inner_len) != 0:
        return DROP_UNAUTHENTIC
    replay_mark(&keypair.replay, counter)
    peer = &self.tables.peers[keypair.peer]
    run_count(self, keypair.peer, length)
    is_control = inner_len != 0 and inner[0] == CONTROL_MARK
    keypair_note_received(self, keypair, peer, inner_len != 0 and not is_control)
    if inner_len == 0:
        self.shared.counters[KEEPALIVES_RECEIVED] += 1
    elif is_control:
        verdict = ingress_control(self, keypair, inner, inner_len)
    elif peer.policy != POLICY_ANY:
        verdict = DROP_NOT_IN_LANES
    else:
        verdict = ingress_packet(self, keypair.peer, inner, inner_len, False)
    if verdict == PASS:
        peer_note_origin(self, keypair.peer, origin)
    return verdict


cdef inline Verdict ingress_bundle(Worker *self, uint32_t peer, uint8_t *at,
                                   uint32_t left) noexcept nogil:
    """The packets of a bundle, each with a verdict of its own: that of the last."""
    cdef BundleEntry entry
    cdef Verdict verdict = PASS
    while bundle_next(&at, &left, &entry):
        if verdict != PASS:
            self.shared.verdicts[verdict] += 1
        verdict = ingress_inner(self, peer, entry.packet, entry.length, entry.is_partial)
    if left:
        if verdict != PASS:
            self.shared.verdicts[verdict] += 1
        verdict = DROP_MALFORMED_BUNDLE
    return verdict


cdef inline Verdict lane_deliver(Worker *self, Lane *lane, uint8_t *datagram, uint32_t length,
                                 const Origin *origin) noexcept nogil:
    """A lane message that was opened in place: checks 6 to 8."""
    cdef uint8_t *inner = datagram + TRANSPORT_HEADER_LEN
    cdef uint32_t inner_len = length - TRANSPORT_HEADER_LEN - TAG_LEN
    cdef uint32_t flags = datagram[1]
    cdef Verdict verdict = PASS
    cdef Relay relay
    if inner_len == 0:
        self.shared.counters[KEEPALIVES_RECEIVED] += 1
    elif flags & LANE_FLAG_RELAY:
        verdict = DROP_MALFORMED_INNER
        if inner_len > RELAY_HEADER_LEN and flags & (
                LANE_FLAG_FRAME | LANE_FLAG_BUNDLE) == LANE_FLAG_FRAME:
            relay.word = load_le64(inner)
            relay.origin = load_le64(inner + 8)
            verdict = ingress_frame(self, lane.peer, inner + RELAY_HEADER_LEN,
                                    inner_len - RELAY_HEADER_LEN, flags & LANE_FLAG_PARTIAL != 0,
                                    &relay)
    elif not flags & (LANE_FLAG_BUNDLE | LANE_FLAG_FRAME) and control_is_end(inner, inner_len):
        verdict = ingress_end(self, lane.peer, inner)
    elif (flags & LANE_FLAG_FRAME != 0) != self.is_tap:
        verdict = DROP_MALFORMED_INNER
    elif flags & LANE_FLAG_BUNDLE:
        verdict = ingress_bundle(self, lane.peer, inner, inner_len)
    else:
        verdict = ingress_inner(self, lane.peer, inner, inner_len,
                                flags & LANE_FLAG_PARTIAL != 0)
    if verdict == PASS:
        lane_note_origin(self, lane, origin)
    return verdict


cdef inline Verdict lane_open(Worker *self, Lane *lane, uint8_t *datagram, uint32_t length,
                              const Origin *origin, bint may_wait) noexcept nogil:
    """A lane message whose keys are known: checks 3 to 5, and whether it has to wait."""
    cdef uint8_t *inner = datagram + TRANSPORT_HEADER_LEN
    cdef uint32_t inner_len = length - TRANSPORT_HEADER_LEN - TAG_LEN
    cdef uint8_t nonce[12]
    cdef uint64_t counter = load_le64(datagram + 8)
    if self.now_ns >= lane.reject_at_ns:
        return DROP_EXPIRED_KEYPAIR
    if not replay_is_fresh(&lane.replay, counter):
        return DROP_REPLAYED
    nonce_set(nonce, counter)
    if aead_open(&self.aead, lane.cipher, lane.receive_key, nonce, datagram,
                 TRANSPORT_HEADER_LEN, inner, inner, inner_len) != 0:
        return DROP_UNAUTHENTIC
    replay_mark(&lane.replay, counter)
    run_count(self, lane.peer, length)
    lane.rx_bytes += length
    lane_note_received(self, lane, &self.tables.peers[lane.peer], datagram[1], inner_len != 0)
    if may_wait and hold_wants(lane, datagram[1]):
        return PASS if hold_add(self, lane, datagram, length, True, origin.remote,
                                origin.remote_len, origin.local) else DROP_HOLD_FULL
    return lane_deliver(self, lane, datagram, length, origin)


cdef inline Verdict ingress_lane(Worker *self, uint8_t *datagram, uint32_t length,
                                 const Origin *origin) noexcept nogil:
    """A lane message: checks 1 and 2."""
    cdef Lane *lane
    if datagram[1] & ~self.lane_flags or datagram[3] != 0:
        return DROP_MALFORMED_MESSAGE
    lane = lane_find(&self.tables, load_le32(datagram + 4), datagram[2], self.number)
    if lane == NULL:
        return DROP_UNKNOWN_INDEX
    if load32(&lane.state, ACQUIRE) == LANE_LIVE:
        return lane_open(self, lane, datagram, length, origin, True)
    return PASS if hold_add(self, lane, datagram, length, False, origin.remote,
                            origin.remote_len, origin.local) else DROP_HOLD_FULL


cdef inline Verdict ingress_datagram(Worker *self, uint8_t *datagram, uint32_t length,
                                     const Origin *origin) noexcept nogil:
    cdef uint32_t kind
    if length < TRANSPORT_MIN_LEN:
        return DROP_MALFORMED_MESSAGE
    if datagram[0] == LANE_TYPE:
        return ingress_lane(self, datagram, length, origin)
    kind = load_le32(datagram)
    if kind == TRANSPORT_TYPE:
        return ingress_session(self, datagram, length, origin)
    if kind == 0 or kind > TRANSPORT_TYPE:
        return DROP_MALFORMED_MESSAGE
    if not message_push(&self.shared.up, datagram, length, origin.remote, origin.remote_len,
                        origin.local):
        return DROP_MALFORMED_MESSAGE if length > MESSAGE_LEN else FAILED_EVENT_RING_FULL
    self.send.has_events = True
    return PASS


cdef inline void take_strays(Worker *self) noexcept nogil:
    """Transport messages that the supervisor's socket received (hot/rings.pxd)."""
    cdef Message *message = message_first(&self.shared.down)
    cdef Origin origin
    cdef Verdict verdict
    while message != NULL:
        origin.remote = <sockaddr_in6 *>message.address
        origin.remote_len = message.address_len
        origin.local = message.local
        verdict = ingress_datagram(self, message.data, message.length, &origin)
        if verdict != PASS:
            self.shared.verdicts[verdict] += 1
        # Written before the slot is handed back: what was opened lies in it.
        ingress_write(self)
        relay_flush(self)
        message_pop(&self.shared.down)
        message = message_first(&self.shared.down)
    run_finish(self)


cdef inline void relay_flush(Worker *self) noexcept nogil:
    """Send what was relayed."""
    if self.bundle.count or self.send.count:
        egress_flush(self)


cdef inline Lane *held_lane(Worker *self, const HeldMessage *held) noexcept nogil:
    """Found again each time: the whole set may be gone."""
    cdef const uint8_t *datagram = self.hold.buffer + held.at
    return lane_find(&self.tables, load_le32(datagram + 4), datagram[2], self.number)


cdef inline void take_held(Worker *self) noexcept nogil:
    """Lane messages that have waited long enough (hot/reorder.pxd). What may pass is decided from
    the newest to the oldest: others drain lanes meanwhile, and none may pass one before it."""
    cdef HeldMessage *held
    cdef Lane *lane
    cdef Origin origin
    cdef Verdict verdict
    cdef uint8_t *datagram
    cdef uint32_t i, count = self.hold.count, kept = 0
    if count == 0:
        return
    for i in range(count):
        held = &self.hold.messages[count - 1 - i]
        lane = held_lane(self, held)
        held.may_pass = lane == NULL or hold_is_over(self, held, lane,
                                                     self.hold.buffer[held.at + 1])
    for i in range(count):
        held = &self.hold.messages[i]
        if not held.may_pass:
            self.hold.messages[kept] = held[0]
            kept += 1
            continue
        datagram = self.hold.buffer + held.at
        lane = held_lane(self, held)
        verdict = DROP_UNKNOWN_INDEX
        if lane != NULL:
            if lane.held_count:
                lane.held_count -= 1
            if load32(&lane.state, ACQUIRE) == LANE_LIVE:
                origin.remote = &held.remote
                origin.remote_len = held.remote_len
                origin.local = held.local
                verdict = (lane_deliver(self, lane, datagram, held.length, &origin)
                           if held.is_opened else
                           lane_open(self, lane, datagram, held.length, &origin, False))
        if verdict != PASS:
            self.shared.verdicts[verdict] += 1
    run_finish(self)
    ingress_write(self)             # before the buffer is used again
    relay_flush(self)
    hold_compact(&self.hold, kept)


cdef inline bint udp_to_tun(Worker *self, int fd) noexcept nogil:
    """One turn of a socket; True if it may hold more."""
    cdef RecvBatch *recv = &self.recv
    cdef msghdr *message
    cdef uint8_t *datagram
    cdef uint8_t local[LOCAL_LEN]
    cdef Origin origin
    cdef uint32_t i, left, length, segment_len, datagrams
    cdef Verdict verdict
    cdef int received
    received = recvmmsg(fd, recv.messages, RECV_MESSAGES, MSG_DONTWAIT, NULL)
    if received <= 0:
        # Errors of earlier sends (ICMP) are reported here too; they pass.
        return received < 0 and errno not in (EAGAIN, EINTR)
    self.shared.counters[UDP_RX_CALLS] += 1
    self.shared.counters[UDP_RX_MESSAGES] += <uint32_t>received
    datagrams = 0
    gro_reset(&self.gro, load32(&self.tables.header.offloads, RELAXED))
    for i in range(<uint32_t>received):
        message = &recv.messages[i].msg_hdr
        left = recv.messages[i].msg_len
        datagram = <uint8_t *>recv.iov[i].iov_base
        segment_len = control_read(message, left, local)
        origin.remote = &recv.names[i]
        origin.remote_len = message.msg_namelen
        origin.local = local
        if message.msg_flags & MSG_TRUNC:
            self.shared.verdicts[DROP_TRUNCATED] += 1
            left = 0
        self.shared.counters[UDP_RX_BYTES] += left
        while left:
            length = left if left < segment_len else segment_len
            verdict = ingress_datagram(self, datagram, length, &origin)
            if verdict != PASS:
                self.shared.verdicts[verdict] += 1
            datagram += length
            left -= length
            datagrams += 1
    self.shared.counters[UDP_RX_DATAGRAMS] += datagrams
    self.shared.recv_batches[batch_bucket(datagrams)] += 1
    run_finish(self)
    ingress_write(self)
    relay_flush(self)
    for i in range(<uint32_t>received):
        recv_prepare(recv, i)
    return <uint32_t>received == RECV_MESSAGES
