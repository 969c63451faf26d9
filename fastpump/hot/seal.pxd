# Seal into the send batch: a lane message, or a transport message of a session.
#
# Whoever calls has taken the counter from the lane's or keypair's send_counter. The bytes behind a
# packet, which a transport message's padding borrows, may be the next segment's payload: they are
# put back. A lane message has no padding.

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy, memset

from fastpump.hot.aead cimport AEAD_CHACHA20_POLY1305, aead_seal, nonce_set
from fastpump.hot.atomics cimport RELAXED, load32
from fastpump.hot.batch cimport Path, send_reserve, send_reserve_train
from fastpump.hot.bytes cimport store_le16, store_le32, store_le64
from fastpump.hot.constants cimport (
    LANE_FLAG_EXTENSION, LANE_FLAG_FENCE, LANE_FLAG_RECORD, LANE_TYPE, PADDING_MULTIPLE,
    RECORD_FIELDS_LEN, TRANSPORT_HEADER_LEN, TRANSPORT_OVERHEAD, TRANSPORT_TYPE,
)
from fastpump.hot.shm cimport Keypair, Lane, LaneState, lane_state
from fastpump.hot.worker cimport Worker


cdef inline uint32_t seal_on_lane(Worker *worker, const Lane *lane, const Path *path,
                                  uint64_t counter, uint32_t flags, const uint8_t *payload,
                                  uint32_t payload_len) noexcept nogil:
    """Seal one payload; the datagram's length, 0 if the lane's endpoint is unknown."""
    cdef uint8_t *message = send_reserve(&worker.send, path, payload_len + TRANSPORT_OVERHEAD)
    if message == NULL:
        return 0
    seal_lane_message(worker, lane, message, TRANSPORT_HEADER_LEN, counter, flags, payload,
                      payload_len)
    seal_train_goes_on(worker, lane, payload_len + TRANSPORT_OVERHEAD)
    return payload_len + TRANSPORT_OVERHEAD


cdef inline void seal_train_goes_on(Worker *worker, const Lane *lane,
                                    uint32_t length) noexcept nogil:
    """A datagram leaves on a lane: for GRO, a shorter one ends the train before it."""
    cdef LaneState *state = lane_state(&worker.tables, lane)
    state.open_len = length if length >= state.open_len else 0


cdef inline uint32_t seal_record(Worker *worker, const Lane *lane, const Path *path,
                                 uint64_t counter, uint32_t flags, const uint8_t *payload,
                                 uint32_t payload_len, uint32_t segment_size,
                                 uint32_t datagram_len) noexcept nogil:
    """Seal a superpacket of such segments as a record (hot/record.pxd); the message's length, 0 if
    the lane's endpoint is unknown."""
    cdef uint32_t length = payload_len + RECORD_FIELDS_LEN + TRANSPORT_OVERHEAD
    cdef uint8_t *message = send_reserve_train(&worker.send, path, length, datagram_len)
    if message == NULL:
        return 0
    store_le16(message + TRANSPORT_HEADER_LEN, <uint16_t>length)
    store_le16(message + TRANSPORT_HEADER_LEN + 2, <uint16_t>segment_size)
    seal_lane_message(worker, lane, message, TRANSPORT_HEADER_LEN + RECORD_FIELDS_LEN, counter,
                      flags | LANE_FLAG_RECORD, payload, payload_len)
    lane_state(&worker.tables, lane).open_len = 0
    return length


cdef inline void seal_lane_message(Worker *worker, const Lane *lane, uint8_t *message,
                                   uint32_t header_len, uint64_t counter, uint32_t flags,
                                   const uint8_t *payload, uint32_t payload_len) noexcept nogil:
    """The header and what is sealed; fields behind the first 16 bytes of the header are there."""
    cdef uint8_t nonce[12]
    if lane_state(&worker.tables, lane).is_fenced and not flags & LANE_FLAG_EXTENSION:
        flags |= LANE_FLAG_FENCE
    store_le32(message, LANE_TYPE | flags << 8 | lane.number << 16)
    store_le32(message + 4, lane.remote_index)
    store_le64(message + 8, counter)
    nonce_set(nonce, counter)
    aead_seal(&worker.aead, lane.cipher, lane.send_key, nonce, message, header_len, payload,
              message + header_len, payload_len)


cdef inline uint32_t seal_on_session(Worker *worker, uint32_t peer, const Keypair *keypair,
                                     uint64_t counter, uint32_t tos, uint8_t *packet,
                                     uint32_t packet_len) noexcept nogil:
    """Seal one packet into a datagram with this TOS; its length, 0 if the peer's endpoint is
    unknown."""
    cdef uint32_t payload_mtu = load32(&worker.tables.peers[peer].payload_mtu, RELAXED)
    # What goes in fragments anyway is padded as if nothing were known.
    cdef uint32_t padding = seal_padding_len(packet_len, payload_mtu if packet_len <= payload_mtu
                                             and payload_mtu < worker.mtu else worker.mtu)
    cdef uint32_t sealed_len = packet_len + padding
    cdef uint8_t behind[PADDING_MULTIPLE]
    cdef uint8_t nonce[12]
    cdef uint8_t *message
    cdef Path path
    path.id = path.peer = peer
    path.fd = worker.udp_fd
    path.tos = tos
    path.endpoint = &worker.tables.peer_states[peer].endpoint
    message = send_reserve(&worker.send, &path, sealed_len + TRANSPORT_OVERHEAD)
    if message == NULL:
        return 0
    memcpy(behind, packet + packet_len, PADDING_MULTIPLE)
    if padding:
        memset(packet + packet_len, 0, padding)
    store_le32(message, TRANSPORT_TYPE)
    store_le32(message + 4, keypair.remote_index)
    store_le64(message + 8, counter)
    nonce_set(nonce, counter)
    aead_seal(&worker.aead, AEAD_CHACHA20_POLY1305, keypair.send_key, nonce, NULL, 0,
              packet, message + TRANSPORT_HEADER_LEN, sealed_len)
    if padding:
        memcpy(packet + packet_len, behind, PADDING_MULTIPLE)
    return sealed_len + TRANSPORT_OVERHEAD


cdef inline uint32_t seal_padding_len(uint32_t packet_len, uint32_t mtu) noexcept nogil:
    """Zero bytes behind the packet: to a multiple of 16, not beyond the MTU
    (WireGuard paper, 5.4.6; the kernel's calculate_skb_padding())."""
    cdef uint32_t padded = (packet_len + PADDING_MULTIPLE - 1) & ~<uint32_t>(PADDING_MULTIPLE - 1)
    if padded > mtu:
        padded = mtu
    return padded - packet_len if padded > packet_len else 0
