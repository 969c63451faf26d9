# Records: a superpacket that travels whole, as a lane message in many datagrams (docs/PROTOCOL.md).
#
# One seal, one open and one write instead of forty-five, and headers are neither split nor merged:
# a fifth less CPU time per byte. The sender cuts the sealed message into datagrams by UDP GSO, of
# which only the first has a header; the receiver opens it if UDP GRO brings all of them in one
# buffer. One that does not come whole is lost whole, and nothing of it is kept. So it is for paths
# that bring trains whole, and lose next to nothing:
#
#   watch     a worker tells the supervisor of a lane that sends much (`record_watch`)
#   probe     that one sends a record of zeros, and if it is acknowledged sets LANE_RECORDS
#             (device/records.py)
#   use       superpackets of RECORD_MIN_SEGMENTS and more go as records, if they are what the
#             receiver's own coalescing might have made (`candidate_classify`)
#   cut       a record that came in part is told to the supervisor, which tells the sender, and that
#             one goes back to single messages for a while
#
# The last datagram of a record is always shorter than the others: so it ends a train, for GRO. What
# was sent before must have ended one, too, or GRO might put the first datagram of the record at the
# end of that (net/ipv4/udp_offload.c): if it was not, a datagram with nothing in it is
# (`record_end_train`).
#
# A record takes as many counters as it has RECORD_BYTES_PER_COUNTER, so that limits by messages
# hold (RFC 9001, appendix B.1: packets of up to 2^11 bytes).

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memset

from fastpump.hot.atomics cimport RELAXED, add64, load32
from fastpump.hot.batch cimport Path
from fastpump.hot.bytes cimport load_le16, load_le32
from fastpump.hot.constants cimport (
    EXTENSION_HEADER_LEN, EXTENSION_TRAIN_END, FEATURE_RECORDS, GRO_MAX_TCP_SEGMENTS,
    GRO_MAX_UDP_SEGMENTS, LANE_FLAG_BUNDLE, LANE_FLAG_EXTENSION, LANE_FLAG_PARTIAL,
    LANE_FLAG_RECORD, LANE_FLAG_RELAY, LANE_TYPE, MAX_GSO_SEGMENTS, MAX_UDP_PAYLOAD,
    RECORD_FIELDS_LEN, TAG_LEN, TRANSPORT_HEADER_LEN, TRANSPORT_OVERHEAD,
)
from fastpump.hot.ecn cimport ECN_MASK
from fastpump.hot.events cimport event_push, events_are_many
from fastpump.hot.gro cimport FLOW_MERGES, Candidate, candidate_classify
from fastpump.hot.gso cimport gso_is_refused
from fastpump.hot.lane cimport lane_find, lane_slot
from fastpump.hot.linux cimport VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6
from fastpump.hot.packet cimport Packet, frame_is_for_group
from fastpump.hot.seal cimport seal_on_lane
from fastpump.hot.shm cimport (
    EVENT_LANE_BULK, EVENT_RECORD_CUT, LANE_RECORDS, OFFLOAD_UDP_GSO, UNPROBED, Lane, LaneState,
    lane_state,
)
from fastpump.hot.split cimport Splitter
from fastpump.hot.upcall cimport upcall_take_cut
from fastpump.hot.verdict cimport DROP_RECORD_CUT, Verdict
from fastpump.hot.vnet cimport GSO_UDP_L4, VnetHeader, vnet_set_partial
from fastpump.hot.worker cimport Worker

cdef enum:
    RECORD_MIN_SEGMENTS = 4         # a lost datagram costs as many at least
    RECORD_BULK_BYTES = 1 << 20     # in so long is much: a probe takes a few ms of that
    RECORD_BULK_NS = 100_000_000
    RECORD_BULK_PAUSE_NS = 1_000_000_000
    RECORD_BYTES_PER_COUNTER = 2048


# -- sending

cdef inline uint32_t record_datagram_len(Worker *worker, const Lane *lane, LaneState *state,
                                         const Packet *packet, const Splitter *splitter,
                                         uint32_t tos) noexcept nogil:
    """The length of the datagrams in which a superpacket goes as a record; 0: it does not.

    Not if it is ECT: one mark would break the train."""
    cdef Candidate candidate
    cdef uint32_t payload_mtu = load32(&worker.tables.peers[lane.peer].payload_mtu, RELAXED)
    cdef uint32_t length = packet.length + RECORD_FIELDS_LEN + TRANSPORT_OVERHEAD
    cdef uint32_t datagram_len = (splitter.header_len + splitter.segment_size
                                  + TRANSPORT_OVERHEAD)
    if not lane.features & FEATURE_RECORDS or splitter.count < RECORD_MIN_SEGMENTS \
            or splitter.has_outer or not splitter.leaves_partial or tos & ECN_MASK:
        return 0
    if not load32(&state.bits, RELAXED) & LANE_RECORDS:
        record_watch(worker, lane, state, length)
        return 0
    if payload_mtu < UNPROBED:      # what is larger leaves in fragments
        datagram_len = min(datagram_len, payload_mtu + TRANSPORT_OVERHEAD)
    datagram_len -= length % datagram_len == 0
    if length > MAX_UDP_PAYLOAD or length > datagram_len * MAX_GSO_SEGMENTS \
            or splitter.count > record_max_segments(splitter.is_tcp) \
            or not load32(&worker.tables.interface.offloads, RELAXED) & OFFLOAD_UDP_GSO \
            or gso_is_refused(&state.endpoint, datagram_len):
        return 0
    candidate.packet = packet[0]
    candidate.is_partial = True
    candidate_classify(&candidate)
    return datagram_len if candidate.flow_class == FLOW_MERGES else 0


cdef inline void record_end_train(Worker *worker, const Lane *lane, const Path *path,
                                  uint32_t datagram_len) noexcept nogil:
    """Before a record of such datagrams: end the train that GRO might have it go on."""
    cdef uint8_t nothing[EXTENSION_HEADER_LEN]
    cdef LaneState *state = lane_state(&worker.tables, lane)
    if state.open_len < datagram_len:
        return
    memset(nothing, 0, sizeof(nothing))
    nothing[0] = EXTENSION_TRAIN_END
    seal_on_lane(worker, lane, path, add64(&state.send_counter, 1, RELAXED), LANE_FLAG_EXTENSION,
                 nothing, sizeof(nothing))


cdef inline uint32_t record_max_segments(bint is_tcp) noexcept nogil:
    return GRO_MAX_TCP_SEGMENTS if is_tcp else GRO_MAX_UDP_SEGMENTS


cdef inline void record_watch(Worker *worker, const Lane *lane, LaneState *state,
                              uint32_t length) noexcept nogil:
    """A superpacket leaves on a lane without records: tell if there are many."""
    if worker.now_ns >= state.bulk_until_ns:
        state.bulk_until_ns = worker.now_ns + RECORD_BULK_NS
        state.bulk_bytes = 0
    elif state.bulk_bytes >= RECORD_BULK_BYTES:
        return                      # told
    state.bulk_bytes += length
    if state.bulk_bytes >= RECORD_BULK_BYTES:
        state.bulk_until_ns = worker.now_ns + RECORD_BULK_PAUSE_NS
        if not events_are_many(worker.shared):
            worker.send.has_events |= event_push(
                worker.shared, EVENT_LANE_BULK, lane.peer, lane_slot(&worker.tables, lane), 0,
                worker.now_ns)


cdef inline uint32_t record_counters(uint32_t length) noexcept nogil:
    """How many counters a record of that length takes; it uses the first."""
    return (length + RECORD_BYTES_PER_COUNTER - 1) / RECORD_BYTES_PER_COUNTER


# -- receiving

cdef inline bint record_begins(const uint8_t *datagram, uint32_t length) noexcept nogil:
    """Whether a datagram is the first of a record, or all of it."""
    return length >= TRANSPORT_HEADER_LEN + RECORD_FIELDS_LEN + TAG_LEN \
        and datagram[0] == LANE_TYPE and datagram[1] & LANE_FLAG_RECORD != 0


cdef inline bint record_is_rest(const Worker *worker, const uint8_t *datagram,
                                uint32_t length) noexcept nogil:
    """Whether a record takes all that follows in a train. Only if the header knows its index: else
    who puts one datagram into trains of others would cost them the rest."""
    return record_is_whole(datagram, length) and lane_find(
        &worker.tables, load_le32(datagram + 4), datagram[2], worker.number) != NULL


cdef inline bint record_is_whole(const uint8_t *datagram, uint32_t length) noexcept nogil:
    """Whether what came is all of a record."""
    return load_le16(datagram + TRANSPORT_HEADER_LEN) == length


cdef inline Verdict record_cut(Worker *worker, const Lane *lane) noexcept nogil:
    """A record came in part. That it is the peer's is not known."""
    if not events_are_many(worker.shared) and upcall_take_cut(
            worker, lane_state(&worker.tables, lane)):
        worker.send.has_events |= event_push(
            worker.shared, EVENT_RECORD_CUT, lane.peer, lane_slot(&worker.tables, lane), 0,
            worker.now_ns)
    return DROP_RECORD_CUT


cdef inline uint32_t lane_header_len(const uint8_t *datagram) noexcept nogil:
    """Of a lane message, before its payload."""
    return TRANSPORT_HEADER_LEN + (
        RECORD_FIELDS_LEN if datagram[1] & LANE_FLAG_RECORD else 0)


cdef inline bint record_parse(Candidate *candidate, VnetHeader *vnet, const uint8_t *datagram,
                              uint32_t *segments) noexcept nogil:
    """The superpacket of a record, a parsed packet (`candidate.packet`): its vnet header, and how
    many packets it stands for. False if the receiver might not have made it itself."""
    cdef uint32_t flags = datagram[1]
    cdef uint32_t segment_size = load_le16(datagram + TRANSPORT_HEADER_LEN + 2)
    cdef Packet *packet = &candidate.packet
    candidate.is_partial = True
    candidate_classify(candidate)
    if flags & (LANE_FLAG_PARTIAL | LANE_FLAG_BUNDLE | LANE_FLAG_RELAY | LANE_FLAG_EXTENSION) \
            != LANE_FLAG_PARTIAL or segment_size == 0 or candidate.flow_class != FLOW_MERGES:
        return False
    if packet.link_len and frame_is_for_group(packet):
        return False
    segments[0] = (candidate.payload_len + segment_size - 1) / segment_size
    if not 2 <= segments[0] <= record_max_segments(candidate.is_tcp):
        return False
    vnet_set_partial(vnet, packet)
    vnet.gso_size = <uint16_t>segment_size
    vnet.hdr_len = <uint16_t>(packet.link_len + candidate.header_len)
    vnet.gso_type = GSO_UDP_L4
    if candidate.is_tcp:
        vnet.gso_type = (VIRTIO_NET_HDR_GSO_TCPV6 if packet.ip.is_v6
                         else VIRTIO_NET_HDR_GSO_TCPV4)
    return True
