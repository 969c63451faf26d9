# tun_to_udp, from the packet on: to the peers. Each packet runs to completion, stage by stage:
#
#   read        tun_to_udp (hot/tun_read.pxd): one packet, frame or superpacket at a time
#   route       egress_packet: inner destination -> peer, by longest prefix; frames: hot/switch.pxd
#   fit         egress_shape: what is larger than the path takes is answered (hot/path_mtu.pxd)
#   shape       the same: what exceeds a rate limit waits, or is dropped (hot/shaper.pxd)
#   dispatch    egress_dispatch: by the route that the peer has now (hot/tx_route.pxd); without one,
#               the packet is staged and a handshake requested from the supervisor
#   transmit    egress_transmit, on a lane or a session:
#     record    a superpacket stays whole, where the path allows it (hot/record.pxd)
#     split     or becomes segments, in place (hot/split.pxd)
#     bundle    small packets on a lane (hot/bundle.pxd)
#     seal      each segment into the send batch: the only copy (hot/seal.pxd)
#   send        egress_flush: sendmmsg when the interface is empty, the iteration's budget used, or
#               the batch full (hot/batch.pxd)
#
# One verb is one stage: only the batch sends. What waited joins in where it left: out of the shaper
# by egress_release, out of staging by egress_dispatch_staged. The first message on a lane goes
# through hot/fence.pxd, so that it does not overtake what went by the session.
#
# Who owns what: whoever takes a counter (one atomic addition for all segments of a superpacket)
# owns the (key, counter) pair. One that is taken and then not used (the endpoint is unknown) is
# lost, never given out again.

from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy

from fastpump.hot.activity cimport activity_lane_sent, activity_sent, activity_session_used
from fastpump.hot.atomics cimport ACQUIRE, RELAXED, add64, load32, load64
from fastpump.hot.batch cimport Path, send_flush
from fastpump.hot.bundle cimport bundle_add, bundle_flush, bundle_takes
from fastpump.hot.bytes cimport store_le64
from fastpump.hot.constants cimport (
    FEATURE_PARTIAL, LANE_FLAG_FRAME, LANE_FLAG_PARTIAL, LANE_FLAG_RELAY, MAX_UDP_PAYLOAD,
    PADDING_MULTIPLE, READ_HEADROOM, REJECT_AFTER_MESSAGES, RELAY_HEADER_LEN, TRANSPORT_OVERHEAD,
    VNET_HEADER_LEN,
)
from fastpump.hot.events cimport event_push_once
from fastpump.hot.fence cimport fence_raise
from fastpump.hot.icmp cimport icmp_unreachable
from fastpump.hot.ip cimport ip_destination, ip_is_link_local
from fastpump.hot.lane cimport lane_path
from fastpump.hot.linux cimport VIRTIO_NET_HDR_GSO_NONE
from fastpump.hot.lookup cimport lookup_peer
from fastpump.hot.loops cimport loops_back
from fastpump.hot.packet cimport Packet, packet_parse, packet_parse_ip
from fastpump.hot.path_mtu cimport path_mtu_takes
from fastpump.hot.record cimport record_counters, record_datagram_len, record_end_train
from fastpump.hot.seal cimport seal_on_lane, seal_on_session, seal_record
from fastpump.hot.shaper cimport shaper_buffer, shaper_is_used, shaper_push, shaper_schedule
from fastpump.hot.shm cimport (
    DIRECTION_TX, EVENT_LOOP, EVENT_WANT_SESSION, NONE, POLICY_NOTHING, REPORTED_LOOP,
    REPORTED_WANT_SESSION, Keypair,
    KeypairState, Lane, LaneState, PeerState, keypair_state, lane_state,
)
from fastpump.hot.split cimport Splitter, splitter_init, splitter_next
from fastpump.hot.staged cimport staged_add, staged_packet, staged_purge, staged_remove
from fastpump.hot.tos cimport tos_of
from fastpump.hot.tx_route cimport TxRoute, tx_route_choose, tx_route_session
from fastpump.hot.verdict cimport (
    DROP_COUNTER_LIMIT, DROP_LINK_LOCAL, DROP_LOOP, DROP_MALFORMED_PACKET, DROP_NO_ENDPOINT,
    DROP_NO_LANES, DROP_NO_PEER, DROP_PATH_MTU, DROP_RATE_LIMIT, DROP_STAGED_TIMEOUT, DROP_TOO_BIG,
    PASS, UDP_TX_RECORDS, Verdict,
)
from fastpump.hot.vnet cimport (
    VnetHeader, vnet_checksum_complete, vnet_is_plain_partial, vnet_load, vnet_segment_count,
)
from fastpump.hot.worker cimport (
    Relay, ShaperEntry, Worker, peer_verdict, worker_count, worker_count_of,
)


cdef inline Verdict egress_packet(Worker *worker, const VnetHeader *vnet, uint8_t *start,
                                  uint32_t length) noexcept nogil:
    """A packet from a TUN; its vnet header stands right before it, too."""
    cdef Packet packet
    cdef Relay relay
    cdef uint32_t index
    if not packet_parse_ip(&packet, start, length):
        return DROP_MALFORMED_PACKET
    index = lookup_peer(&worker.tables, ip_destination(&packet.ip), packet.ip.is_v6)
    if index == NONE:
        if ip_is_link_local(ip_destination(&packet.ip), packet.ip.is_v6):
            return DROP_LINK_LOCAL
        icmp_unreachable(worker, &packet.ip)
        return DROP_NO_PEER
    relay.word = 0
    return egress_shape(worker, index, vnet, &packet, &relay)


cdef inline Verdict egress_shape(Worker *worker, uint32_t index, const VnetHeader *vnet,
                                 Packet *packet, const Relay *relay) noexcept nogil:
    """To a peer: now, or when the rate limits allow it. Not what is larger than its path takes."""
    cdef uint32_t payload_mtu = load32(&worker.tables.peers[index].payload_mtu, RELAXED)
    if payload_mtu != NONE and not path_mtu_takes(worker, index, payload_mtu, vnet, packet, relay):
        return peer_verdict(worker, index, DROP_PATH_MTU)
    if shaper_is_used(worker):
        return peer_verdict(worker, index,
                            egress_shape_limited(worker, index, vnet, packet, relay))
    return peer_verdict(worker, index, egress_dispatch(worker, index, vnet, packet, relay))


cdef inline Verdict egress_shape_limited(Worker *worker, uint32_t index, const VnetHeader *vnet,
                                         Packet *packet, const Relay *relay) noexcept nogil:
    """Dispatch what no limit delays; a copy of the rest waits in the shaper, or it is dropped."""
    cdef ShaperEntry shaped
    cdef uint8_t *buffer
    cdef uint32_t bytes
    shaped.peer = index
    shaped.direction = DIRECTION_TX
    shaped.packet_count = vnet_segment_count(vnet, packet, &bytes)
    if not shaper_schedule(worker, &shaped, bytes, packet.length + READ_HEADROOM):
        return DROP_RATE_LIMIT
    if shaped.slot == NONE:
        return egress_dispatch(worker, index, vnet, packet, relay)
    shaped.relay = relay[0]
    shaped.length = packet.length
    buffer = shaper_buffer(&worker.shaper, shaped.slot) + READ_HEADROOM
    memcpy(buffer - VNET_HEADER_LEN, vnet, VNET_HEADER_LEN)
    memcpy(buffer, packet.start, packet.length)
    shaper_push(worker, &shaped)
    return PASS


cdef inline Verdict egress_release(Worker *worker, const ShaperEntry *shaped) noexcept nogil:
    """What waited for a rate limit is due. Its peer may be gone by now, and another have its
    slot."""
    cdef uint8_t *buffer = shaper_buffer(&worker.shaper, shaped.slot) + READ_HEADROOM
    cdef VnetHeader vnet
    cdef Packet packet
    if load32(&worker.tables.peers[shaped.peer].purge_count, ACQUIRE) != shaped.purge_count:
        return DROP_STAGED_TIMEOUT
    vnet_load(&vnet, buffer - VNET_HEADER_LEN)
    if not packet_parse(&packet, worker.is_tap, buffer, shaped.length):
        return DROP_MALFORMED_PACKET    # cannot be: it was parsed before
    return peer_verdict(worker, shaped.peer, egress_dispatch(worker, shaped.peer, &vnet, &packet,
                                                             &shaped.relay))


cdef inline Verdict egress_dispatch(Worker *worker, uint32_t index, const VnetHeader *vnet,
                                    Packet *packet, const Relay *relay) noexcept nogil:
    """To a peer by the route that it has now, behind what is staged for it; else to be staged."""
    cdef PeerState *peer = &worker.tables.peer_states[index]
    cdef TxRoute route
    if worker.staged.per_peer[index]:
        staged_purge(worker)
        egress_dispatch_staged(worker, index)
    if tx_route_choose(worker, index, packet, &route):
        return egress_transmit(worker, index, &route, vnet, packet, relay)
    if peer.endpoint.length == 0:
        if not worker.is_tap:
            icmp_unreachable(worker, &packet.ip)
        return DROP_NO_ENDPOINT
    if tx_route_session(worker, index) == NULL:     # else lanes are waited for
        worker.send.has_events |= event_push_once(
            worker.shared, &peer.reported, REPORTED_WANT_SESSION, EVENT_WANT_SESSION, index, 0,
            worker.now_ns)
    if worker.tables.peers[index].policy == POLICY_NOTHING:
        return DROP_NO_LANES
    staged_add(worker, index, packet.start, packet.length, relay)
    return PASS


cdef inline void egress_dispatch_staged(Worker *worker, uint32_t only_peer) noexcept nogil:
    """Transmit what is staged for peers that have a route now; of all peers when `only_peer` is
    NONE."""
    cdef uint32_t position = 0, peer
    cdef VnetHeader vnet
    cdef Packet packet
    cdef TxRoute route
    cdef uint8_t *start
    while position < worker.staged.count:
        peer = worker.staged.packets[position].peer
        start = staged_packet(&worker.staged, worker.staged.packets[position].slot)
        if (only_peer != NONE and only_peer != peer) or not packet_parse(
                &packet, worker.is_tap, start, worker.staged.packets[position].packet_len) \
                or not tx_route_choose(worker, peer, &packet, &route):
            position += 1           # packet_parse was true once, and is
            continue
        vnet_load(&vnet, start - VNET_HEADER_LEN)
        worker_count(worker, peer_verdict(worker, peer, egress_transmit(
            worker, peer, &route, &vnet, &packet, &worker.staged.packets[position].relay)))
        staged_remove(&worker.staged, position)


cdef inline Verdict egress_transmit(Worker *worker, uint32_t index, const TxRoute *route,
                                    const VnetHeader *vnet, Packet *packet,
                                    const Relay *relay) noexcept nogil:
    if loops_back(&packet.ip, route.keypair.remote_index if route.lane == NULL
                  else route.lane.remote_index):
        worker.send.has_events |= event_push_once(
            worker.shared, &worker.tables.peer_states[index].reported, REPORTED_LOOP, EVENT_LOOP,
            index, 0, worker.now_ns)
        return DROP_LOOP
    if route.lane != NULL:
        return egress_transmit_on_lane(worker, route.lane, vnet, packet, relay)
    return egress_transmit_on_session(worker, index, route.keypair, vnet, packet)


cdef inline Verdict egress_transmit_on_lane(Worker *worker, const Lane *lane,
                                            const VnetHeader *vnet, Packet *packet,
                                            const Relay *relay) noexcept nogil:
    """Split if need be, and seal for a lane; or bundle. A relay header overwrites the
    bytes before each packet, which are not needed any more."""
    cdef PeerState *peer = &worker.tables.peer_states[lane.peer]
    cdef LaneState *state = lane_state(&worker.tables, lane)
    cdef Splitter splitter
    cdef Verdict verdict
    cdef Path path
    cdef uint8_t *segment = packet.start
    cdef uint32_t segment_len = packet.length, datagram_len, sealed_len, flags, before = 0
    cdef uint64_t counter, wire_bytes = 0, word = relay.word
    cdef bint is_partial, is_super = vnet.gso_type != VIRTIO_NET_HDR_GSO_NONE
    verdict = egress_prepare(&splitter, vnet, packet, lane.features & FEATURE_PARTIAL != 0,
                             &is_partial)
    if verdict != PASS:
        return verdict
    if not state.is_started:
        fence_raise(worker, lane, peer)
    flags = (LANE_FLAG_PARTIAL if is_partial else 0) | (LANE_FLAG_FRAME if worker.is_tap else 0)
    if not is_super and not word and bundle_takes(lane, packet.length):
        bundle_add(worker, lane, packet.start, packet.length, flags,
                   tos_of(worker, packet))
        activity_lane_sent(worker, lane, peer, load64(&state.send_counter, RELAXED))
        return PASS
    if worker.bundle.count and worker.bundle.lane == lane:
        bundle_flush(worker)
    if word:
        flags |= LANE_FLAG_RELAY
        before = RELAY_HEADER_LEN
    lane_path(worker, lane, &path)
    path.tos = tos_of(worker, packet)
    if is_super and not word:
        datagram_len = record_datagram_len(worker, lane, state, packet, &splitter, path.tos)
        if datagram_len:
            return egress_transmit_record(worker, lane, state, &path, packet, &splitter, flags,
                                          datagram_len)
    # lane_is_usable() leaves room between LANE_REJECT_AFTER_MESSAGES and what GCM bears.
    counter = add64(&state.send_counter, splitter.count, RELAXED)
    if is_super:
        segment_len = splitter_next(&splitter, &segment)
    while segment_len:
        if word:
            store_le64(segment - 16, word)
            store_le64(segment - 8, relay.originator)
        sealed_len = seal_on_lane(worker, lane, &path, counter, flags, segment - before,
                                  segment_len + before)
        if sealed_len == 0:
            egress_count_lost(worker, lane.peer, &splitter, wire_bytes)
            break
        wire_bytes += sealed_len
        counter += 1
        word += is_super            # each has a flood id of its own (hot/switch.pxd)
        segment_len = splitter_next(&splitter, &segment) if is_super else 0
    if wire_bytes == 0:
        return DROP_NO_ENDPOINT
    state.tx_bytes += wire_bytes
    add64(&peer.tx_bytes, wire_bytes, RELAXED)
    activity_lane_sent(worker, lane, peer, counter)
    return PASS


cdef inline Verdict egress_transmit_record(Worker *worker, const Lane *lane, LaneState *state,
                                           const Path *path, const Packet *packet,
                                           const Splitter *splitter, uint32_t flags,
                                           uint32_t datagram_len) noexcept nogil:
    """A superpacket as one message."""
    cdef PeerState *peer = &worker.tables.peer_states[lane.peer]
    cdef uint32_t counters = record_counters(packet.length), sealed_len
    cdef uint64_t counter
    record_end_train(worker, lane, path, datagram_len)
    counter = add64(&state.send_counter, counters, RELAXED)
    sealed_len = seal_record(worker, lane, path, counter, flags, packet.start, packet.length,
                             splitter.segment_size, datagram_len)
    if sealed_len == 0:
        return DROP_NO_ENDPOINT
    worker.shared.counters[UDP_TX_RECORDS] += 1
    state.tx_bytes += sealed_len
    add64(&peer.tx_bytes, sealed_len, RELAXED)
    activity_lane_sent(worker, lane, peer, counter + counters)
    return PASS


cdef inline Verdict egress_transmit_on_session(Worker *worker, uint32_t index,
                                               const Keypair *keypair, const VnetHeader *vnet,
                                               Packet *packet) noexcept nogil:
    """Split if need be, and seal for the session."""
    cdef PeerState *peer = &worker.tables.peer_states[index]
    cdef KeypairState *state = keypair_state(&worker.tables, keypair)
    cdef Splitter splitter
    cdef Verdict verdict
    cdef uint8_t *segment
    cdef uint32_t segment_len, sealed_len, count, tos = tos_of(worker, packet)
    cdef uint64_t counter, wire_bytes = 0
    cdef bint is_partial
    verdict = egress_prepare(&splitter, vnet, packet, False, &is_partial)
    if verdict != PASS:
        return verdict
    count = splitter.count
    if load64(&state.send_counter, RELAXED) >= REJECT_AFTER_MESSAGES - count:
        return DROP_COUNTER_LIMIT
    counter = add64(&state.send_counter, count, RELAXED)
    activity_session_used(worker, keypair, counter)
    if count == 1 and vnet.gso_type == VIRTIO_NET_HDR_GSO_NONE:
        wire_bytes = seal_on_session(worker, index, keypair, counter, tos, packet.start,
                                     packet.length)
    else:
        segment_len = splitter_next(&splitter, &segment)
        while segment_len:
            sealed_len = seal_on_session(worker, index, keypair, counter, tos, segment,
                                         segment_len)
            if sealed_len == 0:
                egress_count_lost(worker, index, &splitter, wire_bytes)
                break
            wire_bytes += sealed_len
            counter += 1
            segment_len = splitter_next(&splitter, &segment)
    if wire_bytes == 0:
        return DROP_NO_ENDPOINT
    add64(&peer.tx_bytes, wire_bytes, RELAXED)
    activity_sent(worker, index, peer)
    worker.session_sent_ns[index] = worker.now_ns
    return PASS


cdef inline void egress_count_lost(Worker *worker, uint32_t peer, const Splitter *splitter,
                                   uint64_t wire_bytes) noexcept nogil:
    """The rest of a superpacket is lost; if all of it is, that is the caller's verdict."""
    if wire_bytes:
        worker_count_of(worker, peer, DROP_NO_ENDPOINT, splitter.count - splitter.index + 1)


cdef inline Verdict egress_prepare(Splitter *splitter, const VnetHeader *vnet, Packet *packet,
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


cdef inline void egress_flush(Worker *worker) noexcept nogil:
    """Send all that was sealed or bundled."""
    bundle_flush(worker)
    send_flush(&worker.send)
