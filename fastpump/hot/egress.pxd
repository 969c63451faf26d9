# tun_to_udp: from the interface to the peers. One packet at a time, to completion:
#
#   read        one packet, frame or superpacket, vnet header first
#   route       inner destination -> peer, by longest prefix; frames: hot/switch.pxd
#   limit       what exceeds a rate waits, or is dropped (hot/shaper.pxd)
#   way         a lane of the peer's (hot/lane.pxd), else its session's keypair; without
#               either the packet is staged and the supervisor asked for a handshake
#   split       a superpacket into segments, in place (hot/split.pxd)
#   seal        each segment into the send batch: the only copy. Small packets on a
#               lane are bundled first (hot/bundle.pxd)
#   flush       sendmmsg when the interface is empty, the budget used or the batch full
#
# A superpacket's counters are taken at once, by one atomic addition; a counter that
# is taken and then not used (no endpoint) is lost, never given out again.
#
# Changing the way: data that this worker sent by the session may arrive after what it sends
# on a lane. So the first use of a lane sends an END by the session, and lane messages then
# carry the FENCE flag: the receiver holds them until it has delivered what came before the
# END (hot/reorder.pxd). Lane n of the next set takes the same sockets, and needs none; unless
# both sides started a session at once, and each opened a set: then the END goes by the lane.

from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy

from fastpump.hot.atomics cimport ACQUIRE, RELAXED, add64, load32, load64
from fastpump.hot.batch cimport Path, send_flush
from fastpump.hot.bundle cimport bundle_add, bundle_flush, bundle_takes
from fastpump.hot.bytes cimport store_le16, store_le32, store_le64
from fastpump.hot.events cimport event_push_once
from fastpump.hot.ip cimport ip_destination
from fastpump.hot.lane cimport lane_before, lane_choose, lane_path, lane_slot
from fastpump.hot.constants cimport (
    CONTROL_END, CONTROL_END_LEN, CONTROL_MARK, FEATURE_PARTIAL, FENCE_AFTER_NS, LANE_FLAG_FRAME,
    LANE_FLAG_PARTIAL, LANE_FLAG_RELAY, LANE_REKEY_AFTER_MESSAGES, MAX_UDP_PAYLOAD,
    PADDING_MULTIPLE, READ_HEADROOM, REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES, RELAY_HEADER_LEN,
    TRANSPORT_OVERHEAD, VNET_HEADER_LEN,
)
from fastpump.hot.linux cimport VIRTIO_NET_HDR_GSO_NONE
from fastpump.hot.lookup cimport lookup_peer
from fastpump.hot.packet cimport Packet, packet_parse, packet_parse_ip
from fastpump.hot.seal cimport lane_seal, session_seal
from fastpump.hot.shm cimport (
    ARMED_UNANSWERED_TX, ARMED_WANT_SESSION, EVENT_LANE_UNANSWERED, EVENT_REKEY,
    EVENT_UNANSWERED_TX, EVENT_WANT_SESSION, KEYPAIR_INITIATOR, KEYPAIR_REKEY_TOLD,
    LANE_REKEY_TOLD, LANE_UNANSWERED_TOLD, LIMIT_TX, NONE, POLICY_ANY, POLICY_NOTHING, Keypair,
    Lane, PeerSlot,
)
from fastpump.hot.shaper cimport shape_admit, shape_buffer, shape_is_used, shape_push
from fastpump.hot.split cimport Splitter, splitter_init, splitter_next
from fastpump.hot.staged cimport staged_add, staged_packet, staged_purge, staged_remove
from fastpump.hot.verdict cimport (
    DROP_COUNTER_LIMIT, DROP_MALFORMED_PACKET, DROP_NO_ENDPOINT, DROP_NO_LANES, DROP_NO_PEER,
    DROP_RATE_LIMIT, DROP_STAGED_TIMEOUT, DROP_TOO_BIG, PASS, Verdict,
)
from fastpump.hot.vnet cimport (
    VnetHeader, vnet_checksum_complete, vnet_is_plain_partial, vnet_load, vnet_segment_count,
)
from fastpump.hot.worker cimport Relay, ShapedPacket, Worker

cdef struct Way:
    # How a packet leaves: on a lane, or by a session; neither: it cannot yet.
    Lane *lane
    Keypair *keypair


cdef inline void peer_note_sent(Worker *self, uint32_t index, PeerSlot *peer) noexcept nogil:
    """Activity for the timers: data went out, and whatever was owed is paid."""
    if peer.last_tx_ns != self.now_ns:
        peer.last_tx_ns = self.now_ns
    if peer.first_unanswered_rx_ns:
        peer.first_unanswered_rx_ns = 0
    if not peer.first_unanswered_tx_ns:
        peer.first_unanswered_tx_ns = self.now_ns
    if not load32(&peer.armed, RELAXED) & ARMED_UNANSWERED_TX:
        self.send.has_events |= event_push_once(
            self.shared, &peer.armed, ARMED_UNANSWERED_TX, EVENT_UNANSWERED_TX, index, 0,
            self.now_ns)


cdef inline Verdict packet_prepare(Splitter *splitter, const VnetHeader *vnet, Packet *packet,
                                   bint may_leave_partial, bint *is_partial) noexcept nogil:
    """Make ready to seal: split a superpacket, or else complete the checksum if it must be."""
    is_partial[0] = False
    if vnet.gso_type != VIRTIO_NET_HDR_GSO_NONE:
        if not splitter_init(splitter, vnet, packet, may_leave_partial):
            return DROP_MALFORMED_PACKET
        is_partial[0] = splitter.leaves_partial
        if splitter.header_len + splitter.segment_size + RELAY_HEADER_LEN \
                + TRANSPORT_OVERHEAD > MAX_UDP_PAYLOAD:
            return DROP_TOO_BIG
        return PASS
    splitter.count = 1
    if packet.length + PADDING_MULTIPLE + TRANSPORT_OVERHEAD > MAX_UDP_PAYLOAD:
        return DROP_TOO_BIG
    is_partial[0] = may_leave_partial and vnet_is_plain_partial(vnet, packet)
    if not is_partial[0] and not vnet_checksum_complete(vnet, packet):
        return DROP_MALFORMED_PACKET
    return PASS


cdef inline Verdict egress_session(Worker *self, uint32_t index, Keypair *keypair,
                                   const VnetHeader *vnet, Packet *packet) noexcept nogil:
    """Split if need be, and seal for the session."""
    cdef PeerSlot *peer = &self.tables.peers[index]
    cdef Splitter splitter
    cdef Verdict verdict
    cdef uint8_t *segment
    cdef uint32_t segment_len, sealed_len, count
    cdef uint64_t counter, wire_bytes = 0
    cdef bint is_partial
    verdict = packet_prepare(&splitter, vnet, packet, False, &is_partial)
    if verdict != PASS:
        return verdict
    count = splitter.count
    if load64(&keypair.send_counter, RELAXED) >= REJECT_AFTER_MESSAGES - count:
        return DROP_COUNTER_LIMIT
    counter = add64(&keypair.send_counter, count, RELAXED)
    if keypair.flags & KEYPAIR_INITIATOR and (
            self.now_ns >= keypair.rekey_at_ns or counter >= REKEY_AFTER_MESSAGES):
        self.send.has_events |= event_push_once(
            self.shared, &keypair.flags, KEYPAIR_REKEY_TOLD, EVENT_REKEY, index,
            <uint32_t>(keypair - self.tables.keypairs), self.now_ns)
    if count == 1 and vnet.gso_type == VIRTIO_NET_HDR_GSO_NONE:
        wire_bytes = session_seal(self, index, keypair, counter, packet.start, packet.length)
    else:
        segment_len = splitter_next(&splitter, &segment)
        while segment_len:
            sealed_len = session_seal(self, index, keypair, counter, segment, segment_len)
            if sealed_len == 0:
                break
            wire_bytes += sealed_len
            counter += 1
            segment_len = splitter_next(&splitter, &segment)
    if wire_bytes == 0:
        return DROP_NO_ENDPOINT
    add64(&peer.tx_bytes, wire_bytes, RELAXED)
    peer_note_sent(self, index, peer)
    self.session_sent_ns[index] = self.now_ns
    return PASS


cdef inline Keypair *peer_session(Worker *self, uint32_t index) noexcept nogil:
    """The keypair to send with, or NULL; a keypair past REJECT_AFTER_TIME is none, nor is
    one that was retired just as a worker confirmed it (the supervisor puts that right)."""
    cdef uint32_t slot = load32(&self.tables.peers[index].send_keypair, ACQUIRE)
    cdef Keypair *keypair
    if slot >= self.tables.header.keypair_capacity:
        return NULL
    keypair = &self.tables.keypairs[slot]
    if not load32(&keypair.live, ACQUIRE) or keypair.peer != index \
            or self.now_ns >= keypair.reject_at_ns:
        return NULL
    return keypair


cdef inline bint is_recent(const Worker *self, uint64_t at_ns) noexcept nogil:
    """Whether what was sent then may still be under way."""
    return at_ns != 0 and self.now_ns < at_ns + FENCE_AFTER_NS


cdef inline void lane_start(Worker *self, Lane *lane, PeerSlot *peer) noexcept nogil:
    """Before a lane is used for the first time: fence it off from the way before, if that
    goes by other sockets."""
    cdef uint8_t end[CONTROL_END_LEN + PADDING_MULTIPLE]
    cdef uint64_t session_sent_ns = self.session_sent_ns[lane.peer]
    cdef Lane *before = lane_before(self, lane, peer)
    cdef Keypair *keypair
    cdef Path path
    lane.is_started = True
    bundle_flush(self)
    end[0] = CONTROL_MARK
    end[1] = CONTROL_END
    store_le16(end + 2, CONTROL_END_LEN - 4)
    store_le32(end + 4, lane.remote_index)
    store_le16(end + 8, lane.number)
    if before != NULL and before.is_started and before.last_data_ns >= session_sent_ns:
        if not is_recent(self, before.last_data_ns) \
                or (before.socket == NONE) == (lane.socket == NONE):
            return
        lane_path(self, before, &path)
        lane.is_fenced = lane_seal(self, before, &path, add64(&before.send_counter, 1, RELAXED),
                                   0, end, CONTROL_END_LEN) != 0
        return
    keypair = peer_session(self, lane.peer)
    if keypair == NULL or not is_recent(self, session_sent_ns) \
            or load64(&keypair.send_counter, RELAXED) >= REJECT_AFTER_MESSAGES - 1:
        return
    lane.is_fenced = session_seal(self, lane.peer, keypair,
                                  add64(&keypair.send_counter, 1, RELAXED), end,
                                  CONTROL_END_LEN) != 0


cdef inline void lane_note_sent(Worker *self, Lane *lane, PeerSlot *peer,
                                uint64_t counter) noexcept nogil:
    """Activity for the timers, of the lane and of the peer."""
    lane.last_tx_ns = lane.last_data_ns = self.now_ns
    if not lane.first_unanswered_tx_ns:
        lane.first_unanswered_tx_ns = self.now_ns
        self.send.has_events |= event_push_once(
            self.shared, &lane.bits, LANE_UNANSWERED_TOLD, EVENT_LANE_UNANSWERED, lane.peer,
            lane_slot(&self.tables, lane), self.now_ns)
    if self.now_ns >= lane.rekey_at_ns or counter >= LANE_REKEY_AFTER_MESSAGES:
        self.send.has_events |= event_push_once(
            self.shared, &lane.bits, LANE_REKEY_TOLD, EVENT_REKEY, lane.peer, NONE, self.now_ns)
    peer_note_sent(self, lane.peer, peer)


cdef inline Verdict egress_lane(Worker *self, Lane *lane, const VnetHeader *vnet, Packet *packet,
                                const Relay *relay) noexcept nogil:
    """Split if need be, and seal for a lane; or bundle. A relay header overwrites the
    bytes before each packet, which nobody needs any more."""
    cdef PeerSlot *peer = &self.tables.peers[lane.peer]
    cdef Splitter splitter
    cdef Verdict verdict
    cdef Path path
    cdef uint8_t *segment = packet.start
    cdef uint32_t segment_len = packet.length, sealed_len, flags, before = 0
    cdef uint64_t counter, wire_bytes = 0, word = relay.word
    cdef bint is_partial, is_super = vnet.gso_type != VIRTIO_NET_HDR_GSO_NONE
    verdict = packet_prepare(&splitter, vnet, packet, lane.features & FEATURE_PARTIAL != 0,
                             &is_partial)
    if verdict != PASS:
        return verdict
    if not lane.is_started:
        lane_start(self, lane, peer)
    flags = (LANE_FLAG_PARTIAL if is_partial else 0) | (LANE_FLAG_FRAME if self.is_tap else 0)
    if not is_super and not word and bundle_takes(lane, packet.length):
        bundle_add(self, lane, packet.start, packet.length, flags)
        lane_note_sent(self, lane, peer, load64(&lane.send_counter, RELAXED))
        return PASS
    if self.bundle.count and self.bundle.lane == lane:
        bundle_flush(self)
    if word:
        flags |= LANE_FLAG_RELAY
        before = RELAY_HEADER_LEN
    lane_path(self, lane, &path)
    # lane_is_usable() leaves room between LANE_REJECT_AFTER_MESSAGES and what GCM bears.
    counter = add64(&lane.send_counter, splitter.count, RELAXED)
    if is_super:
        segment_len = splitter_next(&splitter, &segment)
    while segment_len:
        if word:
            store_le64(segment - 16, word)
            store_le64(segment - 8, relay.origin)
        sealed_len = lane_seal(self, lane, &path, counter, flags, segment - before,
                               segment_len + before)
        if sealed_len == 0:
            break
        wire_bytes += sealed_len
        counter += 1
        word += is_super        # each has a name of its own (hot/switch.pxd)
        segment_len = splitter_next(&splitter, &segment) if is_super else 0
    if wire_bytes == 0:
        return DROP_NO_ENDPOINT
    lane.tx_bytes += wire_bytes
    add64(&peer.tx_bytes, wire_bytes, RELAXED)
    lane_note_sent(self, lane, peer, counter)
    return PASS


cdef inline bint way_choose(Worker *self, uint32_t index, const Packet *packet,
                            Way *way) noexcept nogil:
    """How a packet to the peer leaves; False if it cannot now."""
    cdef PeerSlot *peer = &self.tables.peers[index]
    way.keypair = NULL
    way.lane = lane_choose(self, index, peer, &packet.ip)
    if way.lane == NULL and peer.policy == POLICY_ANY:
        way.keypair = peer_session(self, index)
    return way.lane != NULL or way.keypair != NULL


cdef inline Verdict way_send(Worker *self, uint32_t index, const Way *way, const VnetHeader *vnet,
                             Packet *packet, const Relay *relay) noexcept nogil:
    if way.lane != NULL:
        return egress_lane(self, way.lane, vnet, packet, relay)
    return egress_session(self, index, way.keypair, vnet, packet)


cdef inline void staged_send(Worker *self, uint32_t only_peer) noexcept nogil:
    """Send what is staged for peers that can be sent to now; of all peers when
    `only_peer` is NONE."""
    cdef uint32_t position = 0, peer
    cdef VnetHeader vnet
    cdef Packet packet
    cdef Way way
    cdef uint8_t *start
    cdef Verdict verdict
    while position < self.staged.count:
        peer = self.staged.packets[position].peer
        start = staged_packet(&self.staged, self.staged.packets[position].slot)
        if (only_peer != NONE and only_peer != peer) or not packet_parse(
                &packet, self.is_tap, start, self.staged.packets[position].packet_len) \
                or not way_choose(self, peer, &packet, &way):
            position += 1           # packet_parse was true once, and is
            continue
        vnet_load(&vnet, start - VNET_HEADER_LEN)
        verdict = way_send(self, peer, &way, &vnet, &packet,
                           &self.staged.packets[position].relay)
        if verdict != PASS:
            self.shared.verdicts[verdict] += 1
        staged_remove(&self.staged, position)


cdef inline Verdict egress_pass(Worker *self, uint32_t index, const VnetHeader *vnet,
                                Packet *packet, const Relay *relay) noexcept nogil:
    """To a peer, by a way that it has now, or else to be staged."""
    cdef PeerSlot *peer = &self.tables.peers[index]
    cdef Way way
    if self.staged.per_peer[index]:
        staged_purge(self)
        staged_send(self, index)
    if way_choose(self, index, packet, &way):
        return way_send(self, index, &way, vnet, packet, relay)
    if peer.endpoint.length == 0:
        return DROP_NO_ENDPOINT
    if peer_session(self, index) == NULL:       # else lanes are waited for
        self.send.has_events |= event_push_once(
            self.shared, &peer.armed, ARMED_WANT_SESSION, EVENT_WANT_SESSION, index, 0,
            self.now_ns)
    if peer.policy == POLICY_NOTHING:
        return DROP_NO_LANES
    staged_add(self, index, packet.start, packet.length, relay)
    return PASS


cdef inline Verdict egress_limited(Worker *self, uint32_t index, const VnetHeader *vnet,
                                   Packet *packet, const Relay *relay) noexcept nogil:
    """To a peer, when the rate limits let it."""
    cdef ShapedPacket shaped
    cdef uint8_t *buffer
    cdef uint32_t bytes
    shaped.peer = index
    shaped.way = LIMIT_TX
    shaped.packet_count = vnet_segment_count(vnet, packet, &bytes)
    if not shape_admit(self, &shaped, bytes, packet.length + READ_HEADROOM):
        return DROP_RATE_LIMIT
    if shaped.slot == NONE:
        return egress_pass(self, index, vnet, packet, relay)
    shaped.relay = relay[0]
    shaped.length = packet.length
    buffer = shape_buffer(&self.shape, shaped.slot) + READ_HEADROOM
    memcpy(buffer - VNET_HEADER_LEN, vnet, VNET_HEADER_LEN)
    memcpy(buffer, packet.start, packet.length)
    shape_push(self, &shaped)
    return PASS


cdef inline Verdict egress_release(Worker *self, const ShapedPacket *shaped) noexcept nogil:
    """What waited for a rate limit is due. Its peer may be gone by now, and another have its
    slot."""
    cdef uint8_t *buffer = shape_buffer(&self.shape, shaped.slot) + READ_HEADROOM
    cdef VnetHeader vnet
    cdef Packet packet
    if load32(&self.tables.peers[shaped.peer].purge_count, ACQUIRE) != shaped.purge_count:
        return DROP_STAGED_TIMEOUT
    vnet_load(&vnet, buffer - VNET_HEADER_LEN)
    if not packet_parse(&packet, self.is_tap, buffer, shaped.length):
        return DROP_MALFORMED_PACKET    # cannot be: it was parsed before
    return egress_pass(self, shaped.peer, &vnet, &packet, &shaped.relay)


cdef inline Verdict egress_send(Worker *self, uint32_t index, const VnetHeader *vnet,
                                Packet *packet, const Relay *relay) noexcept nogil:
    """To a peer. The vnet header stands right before the packet, too."""
    if shape_is_used(self):
        return egress_limited(self, index, vnet, packet, relay)
    return egress_pass(self, index, vnet, packet, relay)


cdef inline Verdict egress_packet(Worker *self, const VnetHeader *vnet, uint8_t *start,
                                  uint32_t length) noexcept nogil:
    """A packet from a TUN."""
    cdef Packet packet
    cdef Relay relay
    cdef uint32_t index
    if not packet_parse_ip(&packet, start, length):
        return DROP_MALFORMED_PACKET
    index = lookup_peer(&self.tables, ip_destination(&packet.ip), packet.ip.is_v6)
    if index == NONE:
        return DROP_NO_PEER
    relay.word = 0
    return egress_send(self, index, vnet, &packet, &relay)


cdef inline void egress_flush(Worker *self) noexcept nogil:
    """Send all that was sealed or bundled."""
    bundle_flush(self)
    send_flush(&self.send)
