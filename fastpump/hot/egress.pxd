# tun_to_udp: from the interface to the peers. One packet at a time, to completion:
#
#   read        one packet or superpacket, vnet header first
#   route       inner destination -> peer, by longest prefix
#   session     the peer's keypair; without one the packet is staged and the
#               supervisor asked for a handshake
#   split       a superpacket into segments, in place (hot/split.pxd)
#   seal        each segment into the send batch: the only copy
#   flush       sendmmsg when the interface is empty, the budget used or the batch full
#
# A superpacket's counters are taken at once, by one atomic addition; a counter that
# is taken and then not used (no endpoint) is lost, never given out again.

from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy, memset

from fastpump.hot.aead cimport AEAD_CHACHA20_POLY1305, aead_seal, nonce_set
from fastpump.hot.atomics cimport ACQUIRE, RELAXED, add64, load32, load64
from fastpump.hot.batch cimport send_flush, send_reserve
from fastpump.hot.bytes cimport store_le32, store_le64
from fastpump.hot.events cimport event_push_once
from fastpump.hot.ip cimport IpPacket, ip_destination, ip_parse
from fastpump.hot.limits cimport (
    BUFFER_STRIDE, MAX_UDP_PAYLOAD, PADDING_MULTIPLE, READ_HEADROOM, READ_TAILROOM,
    REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES,
    TRANSPORT_HEADER_LEN, TRANSPORT_OVERHEAD, TRANSPORT_TYPE, TUN_READ_BUDGET,
    TUN_READ_BYTES, VNET_HEADER_LEN,
)
from fastpump.hot.linux cimport EAGAIN, EBADFD, EINTR, VIRTIO_NET_HDR_GSO_NONE, errno, read
from fastpump.hot.lookup cimport lookup_peer
from fastpump.hot.shm cimport (
    ARMED_UNANSWERED_TX, ARMED_WANT_SESSION, EVENT_REKEY, EVENT_UNANSWERED_TX,
    EVENT_WANT_SESSION, KEYPAIR_INITIATOR, KEYPAIR_REKEY_TOLD, NONE,
    Keypair, PeerSlot,
)
from fastpump.hot.split cimport Splitter, splitter_init, splitter_next
from fastpump.hot.staged cimport staged_add, staged_packet, staged_purge, staged_remove
from fastpump.hot.verdict cimport (
    DROP_COUNTER_LIMIT, DROP_MALFORMED_PACKET, DROP_NO_ENDPOINT, DROP_NO_PEER, DROP_TOO_BIG,
    FAILED_INTERFACE_READ, PASS, TUN_RX_BYTES, TUN_RX_PACKETS, TUN_RX_SUPERPACKETS, Verdict,
)
from fastpump.hot.vnet cimport VnetHeader, vnet_checksum_complete, vnet_load
from fastpump.hot.worker cimport Worker


cdef inline uint32_t padding_len(uint32_t packet_len, uint32_t mtu) noexcept nogil:
    """Zero bytes behind the packet: to a multiple of 16, not beyond the MTU
    (WireGuard paper, 5.4.6; the kernel's calculate_skb_padding())."""
    cdef uint32_t padded = (packet_len + PADDING_MULTIPLE - 1) & ~<uint32_t>(PADDING_MULTIPLE - 1)
    if padded > mtu:
        padded = mtu
    return padded - packet_len if padded > packet_len else 0


cdef inline uint32_t seal_segment(Worker *self, uint32_t peer, Keypair *keypair,
                                  uint64_t counter, uint8_t *packet,
                                  uint32_t packet_len) noexcept nogil:
    """Seal one packet into the send batch; the datagram's length, 0 if the endpoint is
    unknown. The bytes behind the packet, which padding borrows (they may be the next
    segment's payload), are put back."""
    cdef uint32_t padding = padding_len(packet_len, self.mtu)
    cdef uint32_t sealed_len = packet_len + padding
    cdef uint8_t behind[PADDING_MULTIPLE]
    cdef uint8_t nonce[12]
    cdef uint8_t *message = send_reserve(&self.send, peer, sealed_len + TRANSPORT_OVERHEAD)
    if message == NULL:
        return 0
    memcpy(behind, packet + packet_len, PADDING_MULTIPLE)
    if padding:
        memset(packet + packet_len, 0, padding)
    store_le32(message, TRANSPORT_TYPE)
    store_le32(message + 4, keypair.remote_index)
    store_le64(message + 8, counter)
    nonce_set(nonce, counter)
    aead_seal(&self.aead, AEAD_CHACHA20_POLY1305, keypair.send_key, nonce, NULL, 0,
              packet, message + TRANSPORT_HEADER_LEN, sealed_len)
    if padding:
        memcpy(packet + packet_len, behind, PADDING_MULTIPLE)
    return sealed_len + TRANSPORT_OVERHEAD


cdef inline void peer_note_sent(Worker *self, uint32_t index, PeerSlot *peer,
                                uint64_t wire_bytes) noexcept nogil:
    """Activity for the timers: data went out, and whatever was owed is paid."""
    add64(&peer.tx_bytes, wire_bytes, RELAXED)
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


cdef inline Verdict egress_seal(Worker *self, uint32_t index, Keypair *keypair, VnetHeader *vnet,
                                IpPacket *ip) noexcept nogil:
    """Split if need be, and seal."""
    cdef PeerSlot *peer = &self.tables.peers[index]
    cdef Splitter splitter
    cdef uint8_t *segment
    cdef uint32_t segment_len
    cdef uint64_t counter, wire_bytes = 0
    cdef uint32_t count = 1, sealed_len
    if vnet.gso_type != VIRTIO_NET_HDR_GSO_NONE:
        if not splitter_init(&splitter, vnet, ip):
            return DROP_MALFORMED_PACKET
        count = splitter.count
        if splitter.header_len + splitter.segment_size + TRANSPORT_OVERHEAD > MAX_UDP_PAYLOAD:
            return DROP_TOO_BIG
    else:
        if ip.total_len + PADDING_MULTIPLE + TRANSPORT_OVERHEAD > MAX_UDP_PAYLOAD:
            return DROP_TOO_BIG
        if not vnet_checksum_complete(vnet, ip.start, ip.total_len):
            return DROP_MALFORMED_PACKET
    if load64(&keypair.send_counter, RELAXED) >= REJECT_AFTER_MESSAGES - count:
        return DROP_COUNTER_LIMIT
    counter = add64(&keypair.send_counter, count, RELAXED)
    if keypair.flags & KEYPAIR_INITIATOR and (
            self.now_ns >= keypair.rekey_at_ns or counter >= REKEY_AFTER_MESSAGES):
        self.send.has_events |= event_push_once(
            self.shared, &keypair.flags, KEYPAIR_REKEY_TOLD, EVENT_REKEY, index,
            <uint32_t>(keypair - self.tables.keypairs), self.now_ns)
    if count == 1 and vnet.gso_type == VIRTIO_NET_HDR_GSO_NONE:
        wire_bytes = seal_segment(self, index, keypair, counter, ip.start, ip.total_len)
    else:
        segment_len = splitter_next(&splitter, &segment)
        while segment_len:
            sealed_len = seal_segment(self, index, keypair, counter, segment, segment_len)
            if sealed_len == 0:
                break
            wire_bytes += sealed_len
            counter += 1
            segment_len = splitter_next(&splitter, &segment)
    if wire_bytes == 0:
        return DROP_NO_ENDPOINT
    peer_note_sent(self, index, peer, wire_bytes)
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


cdef inline void staged_send(Worker *self, uint32_t only_peer) noexcept nogil:
    """Send what is staged for peers that have a session now; of all peers when
    `only_peer` is NONE."""
    cdef uint32_t position = 0, peer
    cdef Keypair *keypair
    cdef VnetHeader vnet
    cdef IpPacket ip
    cdef uint8_t *packet
    cdef Verdict verdict
    while position < self.staged.count:
        peer = self.staged.packets[position].peer
        keypair = NULL
        if only_peer == NONE or only_peer == peer:
            keypair = peer_session(self, peer)
        if keypair == NULL:
            position += 1
            continue
        packet = staged_packet(&self.staged, self.staged.packets[position].slot)
        vnet_load(&vnet, packet - VNET_HEADER_LEN)
        verdict = DROP_MALFORMED_PACKET
        if ip_parse(&ip, packet, self.staged.packets[position].packet_len):
            verdict = egress_seal(self, peer, keypair, &vnet, &ip)
        if verdict != PASS:
            self.shared.verdicts[verdict] += 1
        staged_remove(&self.staged, position)


cdef inline Verdict egress_packet(Worker *self, uint8_t *packet,
                                  uint32_t packet_len) noexcept nogil:
    cdef VnetHeader vnet
    cdef IpPacket ip
    cdef Keypair *keypair
    cdef PeerSlot *peer
    cdef uint32_t index
    vnet_load(&vnet, packet - VNET_HEADER_LEN)
    self.shared.counters[TUN_RX_PACKETS] += 1
    self.shared.counters[TUN_RX_BYTES] += packet_len
    self.shared.counters[TUN_RX_SUPERPACKETS] += vnet.gso_type != VIRTIO_NET_HDR_GSO_NONE
    if not ip_parse(&ip, packet, packet_len):
        return DROP_MALFORMED_PACKET
    index = lookup_peer(&self.tables, ip_destination(&ip), ip.is_v6)
    if index == NONE:
        return DROP_NO_PEER
    peer = &self.tables.peers[index]
    if self.staged.per_peer[index]:
        staged_purge(self)
        staged_send(self, index)
    keypair = peer_session(self, index)
    if keypair != NULL:
        return egress_seal(self, index, keypair, &vnet, &ip)
    if peer.endpoint_len == 0:
        return DROP_NO_ENDPOINT
    staged_add(self, index, packet, packet_len)
    self.send.has_events |= event_push_once(
        self.shared, &peer.armed, ARMED_WANT_SESSION, EVENT_WANT_SESSION, index, 0,
        self.now_ns)
    return PASS


cdef inline bint tun_to_udp(Worker *self) noexcept nogil:
    """One turn; True if the interface may hold more."""
    cdef uint8_t *packet = self.read_buffer + READ_HEADROOM
    cdef uint32_t reads = 0, bytes_read = 0
    cdef bint has_more = True
    cdef Verdict verdict
    cdef long length
    while reads < TUN_READ_BUDGET and bytes_read < TUN_READ_BYTES:
        length = read(self.tun_fd, packet - VNET_HEADER_LEN,
                      BUFFER_STRIDE - READ_HEADROOM - READ_TAILROOM)
        if length < VNET_HEADER_LEN:
            if length < 0 and errno not in (EAGAIN, EINTR, EBADFD):
                # A packet that a vnet header cannot describe, say: the kernel dropped it.
                self.shared.verdicts[FAILED_INTERFACE_READ] += 1
                reads += 1
                continue
            has_more = False
            # EBADFD: the interface was deleted, or the queue taken off it.
            self.interface_gone = length < 0 and errno == EBADFD
            break
        reads += 1
        bytes_read += <uint32_t>length
        verdict = egress_packet(self, packet, <uint32_t>length - VNET_HEADER_LEN)
        if verdict != PASS:
            self.shared.verdicts[verdict] += 1
    send_flush(&self.send)
    return has_more
