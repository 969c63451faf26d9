# udp_to_tun: from the peers to the interface.
#
#   receive     recvmmsg (hot/recv.pxd); a message is a GRO train of equal-sized datagrams
#   open        each datagram in place, after the checks below
#   unbundle    a lane message may hold several small packets (hot/bundle.pxd)
#   switch      frames only: learn, relay (hot/switch.pxd)
#   coalesce    hot/gro.pxd
#   write       one writev for each packet or superpacket (hot/tun_write.pxd)
#
# The order of the checks on a datagram, cheapest first, and nothing trusted before
# the tag is verified (each failure is a verdict):
#   1 length, type, flags      5 mark the counter; endpoint, timers (hot/activity.pxd)
#   2 receiver index, lane     6 inner version and length
#   3 the keys' age            7 inner source: allowed IPs; a frame's: not locked elsewhere
#   4 replay (quick), AEAD     8 write
# The endpoint follows behind 4, as in the kernel (wg_packet_consume_data_done()): whoever has the
# keys has moved, whatever is inside. A keepalive (empty inside) ends behind 5. A lane message that
# comes too early waits (hot/reorder.pxd): before 3 if its keys are not known yet, behind 5 if it
# is fenced. An end marker lifts a fence (hot/fence.pxd); path probes become events behind 5
# (hot/path_probe.pxd); other control packets, and a handshake message that came with a train, go to
# the supervisor (hot/rings.pxd).
#
# What comes later than its iteration, or by a detour, enters by hot/ingress_delayed.pxd.
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
# and lane_find check it), whatever the steering did. What was opened lies in the buffer that it
# came in until tun_write_flush: no buffer is used again before that.

from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memset

from fastpump.hot.activity cimport (
    activity_lane_received, activity_lane_roams, activity_peer_roams, activity_session_received,
)
from fastpump.hot.aead cimport AEAD_CHACHA20_POLY1305, aead_open, nonce_set
from fastpump.hot.atomics cimport ACQUIRE, RELAXED, add64, load32
from fastpump.hot.batch cimport batch_bucket
from fastpump.hot.bundle cimport BundleEntry, bundle_next
from fastpump.hot.bytes cimport load_le32, load_le64
from fastpump.hot.constants cimport (
    CONTROL_MAGIC, CONTROL_PATH_ACK, CONTROL_PATH_PROBE, FEATURE_RECORDS, LANE_FLAG_BUNDLE,
    LANE_FLAG_EXTENSION, LANE_FLAG_FRAME, LANE_FLAG_PARTIAL, LANE_FLAG_RECORD, LANE_FLAG_RELAY,
    LANE_TYPE, RECV_MESSAGES, RELAY_HEADER_LEN, TAG_LEN, TRANSPORT_HEADER_LEN, TRANSPORT_MIN_LEN,
    TRANSPORT_TYPE,
)
from fastpump.hot.ecn cimport ECN_MASK, ecn_leave
from fastpump.hot.egress cimport egress_flush
from fastpump.hot.fence cimport fence_is_end_marker, fence_check_lanes, fence_lift
from fastpump.hot.gro cimport (
    Candidate, gro_is_full, gro_receive, gro_receive_record, gro_reset,
)
from fastpump.hot.ip cimport ip_can_be_partial, ip_is_link_local, ip_source
from fastpump.hot.lane cimport lane_find
from fastpump.hot.linux cimport EAGAIN, EINTR, errno
from fastpump.hot.lookup cimport lookup_peer
from fastpump.hot.packet cimport packet_parse, packet_parse_frame, packet_parse_ip
from fastpump.hot.path_mtu cimport path_mtu_received
from fastpump.hot.path_probe cimport path_probe_is, path_probe_on_lane, path_probe_on_session
from fastpump.hot.record cimport (
    lane_header_len, record_begins, record_cut, record_is_rest, record_is_whole, record_parse,
)
from fastpump.hot.recv cimport Sender, Train, recv_batch, recv_prepare, recv_train
from fastpump.hot.reorder cimport reorder_add, reorder_must_wait
from fastpump.hot.replay cimport replay_is_fresh, replay_mark
from fastpump.hot.rings cimport control_packet_fits, control_packet_push, misdelivered_push
from fastpump.hot.shm cimport (
    LANE_LIVE, NONE, POLICY_ANY, Keypair, KeypairState, Lane, LaneState, keypair_find,
    keypair_state, lane_state,
)
from fastpump.hot.switch cimport switch_from_peer
from fastpump.hot.tun_write cimport tun_write_flush
from fastpump.hot.upcall cimport handshake_has_length, upcall_take
from fastpump.hot.verdict cimport (
    DROP_CONTROL_FULL, DROP_CONTROL_RATE, DROP_CONTROL_UNWANTED, DROP_ECN, DROP_EXPIRED_KEYPAIR,
    DROP_HOLD_FULL, DROP_LINK_LOCAL, DROP_MALFORMED_BUNDLE, DROP_MALFORMED_INNER,
    DROP_MALFORMED_MESSAGE, DROP_MALFORMED_PARTIAL, DROP_MALFORMED_RECORD, DROP_MISDELIVERED,
    DROP_NOT_IN_LANES, DROP_REPLAYED, DROP_SOURCE_NOT_ALLOWED, DROP_TRUNCATED, DROP_UNAUTHENTIC,
    DROP_UNKNOWN_INDEX, FAILED_EVENT_RING_FULL, KEEPALIVES_RECEIVED, PASS, UDP_RX_BYTES,
    UDP_RX_CALLS, UDP_RX_DATAGRAMS, UDP_RX_MESSAGES, UDP_RX_RECORDS, Verdict,
)
from fastpump.hot.vnet cimport VnetHeader, vnet_set_partial
from fastpump.hot.worker cimport Relay, Worker, peer_verdict, worker_count, worker_count_of


cdef inline bint udp_to_tun(Worker *worker, int fd) noexcept nogil:
    """One iteration of a socket; True if it may hold more."""
    cdef uint32_t i, datagrams = 0
    cdef int received = recv_batch(&worker.recv, fd)
    if received <= 0:
        # Errors of earlier sends (ICMP) are reported here too; they pass.
        return received < 0 and errno not in (EAGAIN, EINTR)
    worker.shared.counters[UDP_RX_CALLS] += 1
    worker.shared.counters[UDP_RX_MESSAGES] += <uint32_t>received
    gro_reset(&worker.gro, load32(&worker.tables.interface.offloads, RELAXED))
    for i in range(<uint32_t>received):
        datagrams += ingress_train(worker, i)
    worker.shared.counters[UDP_RX_DATAGRAMS] += datagrams
    worker.shared.recv_batches[batch_bucket(datagrams)] += 1
    ingress_finish(worker)
    for i in range(<uint32_t>received):
        recv_prepare(&worker.recv, i)
    return <uint32_t>received == RECV_MESSAGES


cdef inline uint32_t ingress_train(Worker *worker, uint32_t which) noexcept nogil:
    """A received message: a datagram or a train of them; how many."""
    cdef Train train
    cdef uint32_t length, datagrams = 0
    recv_train(&worker.recv, which, &train)
    worker.train_peer = NONE
    worker.outer_ecn = train.tos & ECN_MASK
    worker.is_reassembled = train.is_reassembled
    if train.is_truncated:
        worker.shared.verdicts[DROP_TRUNCATED] += 1
        return 0
    worker.shared.counters[UDP_RX_BYTES] += train.length
    while train.length:
        length = train.length if train.length < train.segment_len else train.segment_len
        if record_begins(train.datagram, length) and record_is_rest(worker, train.datagram,
                                                                    train.length):
            length = train.length
        worker_count(worker, ingress_datagram(worker, train.datagram, length, &train.sender))
        train.datagram += length
        train.length -= length
        datagrams += (length + train.segment_len - 1) / train.segment_len
    return datagrams


cdef inline Verdict ingress_datagram(Worker *worker, uint8_t *datagram, uint32_t length,
                                     const Sender *sender) noexcept nogil:
    """Check 1: which kind of message it is."""
    cdef uint32_t kind
    if length < TRANSPORT_MIN_LEN:
        return DROP_MALFORMED_MESSAGE
    if datagram[0] == LANE_TYPE:
        return ingress_lane(worker, datagram, length, sender)
    kind = load_le32(datagram)
    if kind == TRANSPORT_TYPE:
        return ingress_session(worker, datagram, length, sender)
    if handshake_has_length(kind, length):
        return ingress_handshake(worker, datagram, length, sender)
    return DROP_MALFORMED_MESSAGE


cdef inline Verdict ingress_handshake(Worker *worker, uint8_t *datagram, uint32_t length,
                                      const Sender *sender) noexcept nogil:
    """A handshake message: it came with a train, and is the supervisor's (hot/upcall.pxd)."""
    if not upcall_take(worker, worker.train_peer):
        return DROP_MISDELIVERED
    if not misdelivered_push(&worker.shared.up, worker.shared.up.tail, datagram, length,
                             sender.address, sender.address_len, sender.source_address):
        return FAILED_EVENT_RING_FULL
    worker.send.has_events = True
    return PASS


cdef inline Verdict ingress_session(Worker *worker, uint8_t *datagram, uint32_t length,
                                    const Sender *sender) noexcept nogil:
    """A transport message: check 2."""
    cdef const Keypair *keypair = keypair_find(&worker.tables, load_le32(datagram + 4),
                                               worker.number)
    if keypair == NULL:
        return DROP_UNKNOWN_INDEX
    return peer_verdict(worker, keypair.peer,
                        ingress_session_open(worker, keypair, datagram, length, sender))


cdef inline Verdict ingress_session_open(Worker *worker, const Keypair *keypair,
                                         uint8_t *datagram, uint32_t length,
                                         const Sender *sender) noexcept nogil:
    """A transport message whose session is known: checks 3 to 8."""
    cdef uint8_t *inner = datagram + TRANSPORT_HEADER_LEN
    cdef uint32_t inner_len = length - TRANSPORT_HEADER_LEN - TAG_LEN
    cdef KeypairState *state = keypair_state(&worker.tables, keypair)
    cdef uint8_t nonce[12]
    cdef uint64_t counter
    cdef bint is_control
    if worker.now_ns >= keypair.reject_at_ns:
        return DROP_EXPIRED_KEYPAIR
    counter = load_le64(datagram + 8)
    if not replay_is_fresh(&state.replay, counter):
        return DROP_REPLAYED
    nonce_set(nonce, counter)
    if aead_open(&worker.aead, AEAD_CHACHA20_POLY1305, keypair.receive_key, nonce, NULL, 0,
                 inner, inner, inner_len) != 0:
        return DROP_UNAUTHENTIC
    replay_mark(&state.replay, counter)
    ingress_count_bytes(worker, keypair.peer, length)
    is_control = inner_len != 0 and inner[0] == CONTROL_MAGIC
    activity_peer_roams(worker, keypair.peer, sender)
    activity_session_received(worker, keypair, inner_len != 0 and not is_control)
    if inner_len == 0:
        worker.shared.counters[KEEPALIVES_RECEIVED] += 1
        return PASS
    if is_control:
        return ingress_control(worker, keypair, inner, inner_len)
    if worker.tables.peers[keypair.peer].policy != POLICY_ANY:
        return DROP_NOT_IN_LANES
    return ingress_packet(worker, keypair.peer, inner, inner_len, False)


cdef inline Verdict ingress_control(Worker *worker, const Keypair *keypair, const uint8_t *inner,
                                    uint32_t inner_len) noexcept nogil:
    """A control packet: an end marker is dealt with here, the others are the supervisor's."""
    if path_probe_is(inner[1], CONTROL_PATH_PROBE, CONTROL_PATH_ACK):
        return path_probe_on_session(worker, keypair, inner, inner_len)
    if not worker.takes_control_packets:
        return DROP_CONTROL_UNWANTED
    if fence_is_end_marker(inner, inner_len):
        return fence_lift(worker, keypair.peer, inner)
    if not upcall_take(worker, keypair.peer):
        return DROP_CONTROL_RATE
    if not control_packet_fits(&worker.shared.controls, inner_len):
        return DROP_CONTROL_FULL
    fence_check_lanes(worker, keypair, inner, inner_len)
    control_packet_push(&worker.shared.controls, keypair.peer, keypair.local_index, inner,
                        inner_len)
    worker.send.has_events = True
    return PASS


cdef inline Verdict ingress_lane(Worker *worker, uint8_t *datagram, uint32_t length,
                                 const Sender *sender) noexcept nogil:
    """A lane message: the rest of check 1, check 2."""
    cdef const Lane *lane
    if datagram[1] & ~worker.lane_flags or datagram[3] != 0:
        return DROP_MALFORMED_MESSAGE
    if datagram[1] & LANE_FLAG_RECORD and not record_begins(datagram, length):
        return DROP_MALFORMED_MESSAGE
    lane = lane_find(&worker.tables, load_le32(datagram + 4), datagram[2], worker.number)
    if lane == NULL:
        return DROP_UNKNOWN_INDEX
    if datagram[1] & LANE_FLAG_RECORD:
        if not lane.features & FEATURE_RECORDS:     # not live yet, or we said that we take none
            return peer_verdict(worker, lane.peer, DROP_MALFORMED_RECORD)
        if not record_is_whole(datagram, length):
            return peer_verdict(worker, lane.peer, record_cut(worker, lane))
    if load32(&lane.state, ACQUIRE) == LANE_LIVE:
        return peer_verdict(worker, lane.peer, ingress_lane_open(worker, lane, datagram, length,
                                                                 sender, True))
    if reorder_add(worker, lane, datagram, length, False, sender):
        return PASS
    return peer_verdict(worker, lane.peer, DROP_HOLD_FULL)


cdef inline Verdict ingress_lane_open(Worker *worker, const Lane *lane, uint8_t *datagram,
                                      uint32_t length, const Sender *sender,
                                      bint may_wait) noexcept nogil:
    """A lane message whose keys are known: checks 3 to 5, and whether it has to wait."""
    cdef uint32_t header_len = lane_header_len(datagram)
    cdef uint8_t *inner = datagram + header_len
    cdef uint32_t inner_len = length - header_len - TAG_LEN
    cdef uint8_t nonce[12]
    cdef uint64_t counter = load_le64(datagram + 8)
    cdef LaneState *state = lane_state(&worker.tables, lane)
    if worker.now_ns >= lane.reject_at_ns:
        return DROP_EXPIRED_KEYPAIR
    if not replay_is_fresh(&state.replay, counter):
        return DROP_REPLAYED
    nonce_set(nonce, counter)
    if aead_open(&worker.aead, lane.cipher, lane.receive_key, nonce, datagram, header_len, inner,
                 inner, inner_len) != 0:
        return DROP_UNAUTHENTIC
    replay_mark(&state.replay, counter)
    ingress_count_bytes(worker, lane.peer, length)
    state.rx_bytes += length
    activity_lane_roams(worker, lane, sender)
    if datagram[1] & LANE_FLAG_EXTENSION:
        return path_probe_on_lane(worker, lane, datagram[1] & ~LANE_FLAG_RECORD, inner, inner_len)
    activity_lane_received(worker, lane, datagram[1], inner_len != 0)
    if may_wait and reorder_must_wait(state, datagram[1]):
        return PASS if reorder_add(worker, lane, datagram, length, True,
                                   sender) else DROP_HOLD_FULL
    return ingress_lane_inner(worker, lane, datagram, length)


cdef inline Verdict ingress_lane_inner(Worker *worker, const Lane *lane, uint8_t *datagram,
                                       uint32_t length) noexcept nogil:
    """A lane message that was opened in place: checks 6 to 8."""
    cdef uint32_t header_len = lane_header_len(datagram)
    cdef uint8_t *inner = datagram + header_len
    cdef uint32_t inner_len = length - header_len - TAG_LEN
    cdef uint32_t flags = datagram[1]
    if inner_len == 0:
        worker.shared.counters[KEEPALIVES_RECEIVED] += 1
        return PASS
    if flags & LANE_FLAG_RECORD:
        return ingress_record(worker, lane.peer, datagram, inner, inner_len)
    if flags & LANE_FLAG_RELAY:
        return ingress_relayed(worker, lane.peer, inner, inner_len, flags)
    if not flags & (LANE_FLAG_BUNDLE | LANE_FLAG_FRAME) and fence_is_end_marker(inner, inner_len):
        return fence_lift(worker, lane.peer, inner)
    if (flags & LANE_FLAG_FRAME != 0) != worker.is_tap:
        return DROP_MALFORMED_INNER
    if flags & LANE_FLAG_BUNDLE:
        return ingress_bundle(worker, lane.peer, inner, inner_len)
    return ingress_inner(worker, lane.peer, inner, inner_len, flags & LANE_FLAG_PARTIAL != 0)


cdef inline Verdict ingress_record(Worker *worker, uint32_t peer, const uint8_t *datagram,
                                   uint8_t *inner, uint32_t inner_len) noexcept nogil:
    """A superpacket that came whole."""
    cdef Candidate candidate
    cdef VnetHeader vnet
    cdef Relay relay
    cdef Verdict verdict = PASS
    cdef uint32_t segments
    cdef bint is_for_us = True
    if (datagram[1] & LANE_FLAG_FRAME != 0) != worker.is_tap \
            or not packet_parse(&candidate.packet, worker.is_tap, inner, inner_len):
        return DROP_MALFORMED_INNER
    memset(&vnet, 0, sizeof(VnetHeader))
    if not record_parse(&candidate, &vnet, datagram, &segments):
        return DROP_MALFORMED_RECORD
    if not worker.is_tap and lookup_peer(&worker.tables, ip_source(&candidate.packet.ip),
                                         candidate.packet.ip.is_v6) != peer:
        verdict = DROP_LINK_LOCAL if ip_is_link_local(
            ip_source(&candidate.packet.ip), candidate.packet.ip.is_v6) else DROP_SOURCE_NOT_ALLOWED
    elif not ecn_leave(&candidate.packet, worker.outer_ecn):
        verdict = DROP_ECN
    if verdict != PASS:
        worker_count_of(worker, peer, verdict, segments - 1)
        return verdict
    worker.shared.counters[UDP_RX_RECORDS] += 1
    if worker.is_tap:
        relay.word = 0
        verdict = switch_from_peer(worker, peer, &vnet, &candidate.packet, &relay, &is_for_us)
    if is_for_us:
        if gro_is_full(&worker.gro):
            tun_write_flush(worker)
        candidate.peer = peer
        gro_receive_record(&worker.gro, &candidate, &vnet, segments)
    return verdict


cdef inline Verdict ingress_relayed(Worker *worker, uint32_t peer, uint8_t *inner,
                                    uint32_t inner_len, uint32_t flags) noexcept nogil:
    """A frame behind a relay header."""
    cdef Relay relay
    if inner_len <= RELAY_HEADER_LEN or flags & (
            LANE_FLAG_FRAME | LANE_FLAG_BUNDLE) != LANE_FLAG_FRAME:
        return DROP_MALFORMED_INNER
    relay.word = load_le64(inner)
    relay.originator = load_le64(inner + 8)
    return ingress_frame(worker, peer, inner + RELAY_HEADER_LEN, inner_len - RELAY_HEADER_LEN,
                         flags & LANE_FLAG_PARTIAL != 0, &relay)


cdef inline Verdict ingress_bundle(Worker *worker, uint32_t peer, uint8_t *at,
                                   uint32_t left) noexcept nogil:
    """The packets of a bundle, each with a verdict of its own: that of the last."""
    cdef BundleEntry entry
    cdef Verdict verdict = PASS
    while bundle_next(&at, &left, &entry):
        worker_count(worker, peer_verdict(worker, peer, verdict))
        verdict = ingress_inner(worker, peer, entry.packet, entry.length, entry.is_partial)
    if left:
        worker_count(worker, peer_verdict(worker, peer, verdict))
        verdict = DROP_MALFORMED_BUNDLE
    return verdict


cdef inline Verdict ingress_inner(Worker *worker, uint32_t peer, uint8_t *start, uint32_t length,
                                  bint is_partial) noexcept nogil:
    """What a lane message, or an entry of a bundle, holds."""
    cdef Relay relay
    if worker.is_tap:
        relay.word = 0
        return ingress_frame(worker, peer, start, length, is_partial, &relay)
    return ingress_packet(worker, peer, start, length, is_partial)


cdef inline Verdict ingress_packet(Worker *worker, uint32_t peer, uint8_t *start,
                                   uint32_t available, bint is_partial) noexcept nogil:
    """Take a peer's inner packet, if it is one (check 6) and may be the peer's (check 7)."""
    cdef Candidate candidate
    if not packet_parse_ip(&candidate.packet, start, available):
        return DROP_MALFORMED_INNER
    if is_partial and not ip_can_be_partial(&candidate.packet.ip):
        return DROP_MALFORMED_PARTIAL
    if lookup_peer(&worker.tables, ip_source(&candidate.packet.ip),
                   candidate.packet.ip.is_v6) != peer:
        return DROP_LINK_LOCAL if ip_is_link_local(
            ip_source(&candidate.packet.ip), candidate.packet.ip.is_v6) else DROP_SOURCE_NOT_ALLOWED
    if not ecn_leave(&candidate.packet, worker.outer_ecn):
        return DROP_ECN
    path_mtu_received(worker, peer, &candidate.packet, is_partial)
    ingress_coalesce(worker, &candidate, peer, is_partial)
    return PASS


cdef inline Verdict ingress_frame(Worker *worker, uint32_t peer, uint8_t *start, uint32_t length,
                                  bint is_partial, const Relay *relay) noexcept nogil:
    """Take a peer's frame, if it is one (check 6) and the switch lets it pass (check 7)."""
    cdef Candidate candidate
    cdef VnetHeader vnet
    cdef Verdict verdict
    cdef bint is_for_us
    if not packet_parse_frame(&candidate.packet, start, length):
        return DROP_MALFORMED_INNER
    if not ecn_leave(&candidate.packet, worker.outer_ecn):
        return DROP_ECN
    memset(&vnet, 0, sizeof(VnetHeader))
    if is_partial:
        if not ip_can_be_partial(&candidate.packet.ip):
            return DROP_MALFORMED_PARTIAL
        vnet_set_partial(&vnet, &candidate.packet)
    verdict = switch_from_peer(worker, peer, &vnet, &candidate.packet, relay, &is_for_us)
    if is_for_us:
        ingress_coalesce(worker, &candidate, peer, is_partial)
    return verdict


cdef inline void ingress_coalesce(Worker *worker, Candidate *candidate, uint32_t peer,
                                  bint is_partial) noexcept nogil:
    """On its way to the interface."""
    candidate.peer = peer
    candidate.is_partial = is_partial
    if gro_is_full(&worker.gro):
        tun_write_flush(worker)
    gro_receive(&worker.gro, candidate)


cdef inline void ingress_finish(Worker *worker) noexcept nogil:
    """Write what was coalesced, and send what was relayed; the buffers are free then."""
    ingress_count_flush(worker)
    tun_write_flush(worker)
    if worker.bundle.count or worker.send.count:
        egress_flush(worker)


cdef inline void ingress_count_bytes(Worker *worker, uint32_t peer,
                                     uint32_t length) noexcept nogil:
    """Count an authentic message for its peer; messages in a row touch its counter once."""
    worker.train_peer = peer
    if worker.receive_run.peer != peer:
        ingress_count_flush(worker)
        worker.receive_run.peer = peer
    worker.receive_run.bytes += length


cdef inline void ingress_count_flush(Worker *worker) noexcept nogil:
    if worker.receive_run.bytes:
        add64(&worker.tables.peer_states[worker.receive_run.peer].rx_bytes,
              worker.receive_run.bytes, RELAXED)
    worker.receive_run.bytes = 0
