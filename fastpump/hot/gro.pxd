# Coalesce: merge the packets of one flow into superpackets (GRO) without copying.
#
# Packets were opened in place, in the receive buffers, and stay there. A superpacket
# is the first packet followed by the payloads of the next ones, gathered by one
# writev: the kernel's copy into the interface is the only copy.
#
#   receive buffer:        [hdr][IP TCP payload 0]  [hdr][IP TCP payload 1] ...
#   writev:          {vnet}     {IP TCP payload 0}             {payload 1} ...
#
# Only what the peer's kernel would have merged by its own GRO is merged (net/ipv4/af_inet.c,
# tcp_offload.c, udp_offload.c): all headers equal except length, id, sequence, checksum, PSH
# and FIN; contiguous; not behind a shorter segment; PSH and FIN end a merge; SYN, RST, URG and
# CWR are never merged. All checksums are verified before a merge, because the
# merged packet goes to the kernel with a new header checksum and a partial one; a
# packet that stays alone keeps its own, right or wrong. Packets whose checksums are
# partial (they came on a lane, whose AEAD vouches for every byte) merge only with each other.
#
# Order: items are written in the order of their first packets; a packet that cannot
# join its flow's open item closes it. So a flow is never reordered. What has no ports
# to know its flow by (fragments, packets with IPv4 options) may be overtaken by packets
# of the same two hosts that merge into an earlier item, as in the kernel's GRO.
# Frames (TAP): their Ethernet headers must be equal to the last bit, and nothing may follow the
# IP packet; the offsets of an item count from its IP header, before which the other stands.
# Accepted limit: the flow table has one entry per bucket. A collision ends a merge
# early and costs no correctness.

from libc.stdint cimport uint16_t, uint32_t, uint8_t
from libc.string cimport memcmp, memcpy, memset

from fastpump.hot.bytes cimport load_be16, load_be32, store_be16
from fastpump.hot.checksum cimport (
    checksum_fold, checksum_sum, ipv4_checksum_set, l4_checksum_is_valid, l4_checksum_set_partial,
)
from fastpump.hot.constants cimport (
    GRO_FLOW_BUCKETS, GRO_MAX_PIECES, GRO_MAX_TCP_SEGMENTS, GRO_MAX_UDP_SEGMENTS, MAX_PACKET_LEN,
    VNET_HEADER_LEN,
)
from fastpump.hot.flow cimport flow_hash
from fastpump.hot.ip cimport (
    PROTOCOL_TCP, PROTOCOL_UDP, TCP_ACK, TCP_ECE, TCP_FIN, TCP_PSH, IpPacket, ip_total_len_set,
)
from fastpump.hot.linux cimport (
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, iovec,
)
from fastpump.hot.packet cimport Packet, packet_has_trailer
from fastpump.hot.shm cimport OFFLOAD_TUN_TCP4, OFFLOAD_TUN_TCP6, OFFLOAD_TUN_UDP4, OFFLOAD_TUN_UDP6
from fastpump.hot.vnet cimport GSO_UDP_L4, VnetHeader, vnet_set_partial

cdef enum:
    GRO_MAX_HEADER = 100            # IPv6 and a full TCP header

cdef enum:
    FLOW_NONE                       # no ports to look at: passes alone, ends nothing
    FLOW_ENDS                       # of a flow, but can never merge (SYN, pure ACK, ...)
    FLOW_MERGES

cdef struct Piece:
    uint8_t *start                  # a payload in the receive buffer
    uint32_t length
    uint32_t next                   # index + 1 in the pieces, 0 at the end

cdef struct Item:
    uint8_t *packet                 # the IP header; of a frame that holds none, its contents
    uint32_t link_len               # of the Ethernet header before it
    uint32_t packet_len             # of the first packet
    uint32_t total_len              # with all merged payloads
    uint32_t peer                   # whose packet it is
    uint32_t l4_at
    uint32_t header_len
    uint32_t segment_size           # payload of the first packet
    uint32_t segment_count
    uint32_t first_piece, last_piece
    uint32_t next_sequence
    uint32_t offload                # OFFLOAD_TUN_* that a merge needs
    uint32_t flow_hash              # 0 for a packet without ports
    uint16_t last_id
    uint16_t id_step                # 1 counting, 0 fixed; set by the first merge
    uint8_t added_flags             # PSH and FIN of merged packets
    bint is_v6
    bint is_tcp
    bint is_partial
    bint is_open
    bint is_record                  # it came as a superpacket (hot/record.pxd): all is there
    VnetHeader vnet
    uint8_t saved_header[GRO_MAX_HEADER]    # of the first packet, once something merged

cdef struct Gro:
    uint32_t item_count
    uint32_t piece_count
    uint32_t offloads               # OFFLOAD_TUN_* in use
    uint32_t buckets[GRO_FLOW_BUCKETS]      # index + 1 of the flow's latest item
    Item items[GRO_MAX_PIECES]
    Piece pieces[GRO_MAX_PIECES]

cdef struct Candidate:
    # A packet that is being looked at.
    Packet packet
    uint32_t peer                   # set by the caller: whose it is
    int flow_class
    uint32_t flow_hash
    uint32_t header_len
    uint32_t payload_len
    uint32_t offload
    bint is_tcp
    bint is_partial                 # set by the caller: its checksum is partial


cdef inline void gro_reset(Gro *self, uint32_t offloads) noexcept nogil:
    self.item_count = 0
    self.piece_count = 0
    self.offloads = offloads
    memset(self.buckets, 0, sizeof(self.buckets))


cdef inline bint gro_is_full(const Gro *self) noexcept nogil:
    return self.item_count == GRO_MAX_PIECES or self.piece_count == GRO_MAX_PIECES


cdef inline void gro_receive(Gro *self, Candidate *candidate) noexcept nogil:
    """Take one packet: merge it, or append it. The caller sees to it that there is
    room (`gro_is_full`)."""
    cdef Item *item
    cdef uint8_t *l4
    cdef uint32_t bucket
    candidate_classify(candidate)
    if candidate.flow_class == FLOW_NONE:
        gro_append(self, candidate)
        return
    bucket = candidate.flow_hash % GRO_FLOW_BUCKETS
    if self.buckets[bucket]:
        item = &self.items[self.buckets[bucket] - 1]
        if item_is_same_flow(item, candidate):
            if candidate.flow_class == FLOW_MERGES and item.is_open and item_merge(
                    self, item, candidate):
                return
            item.is_open = False
    if candidate.flow_class == FLOW_ENDS:
        gro_append(self, candidate)
        return
    item = gro_append(self, candidate)
    self.buckets[bucket] = self.item_count
    item.l4_at = candidate.packet.ip.header_len
    l4 = item.packet + item.l4_at
    item.header_len = candidate.header_len
    item.segment_size = candidate.payload_len
    item.is_tcp = candidate.is_tcp
    item.added_flags = 0
    item.offload = candidate.offload
    item.last_id = 0 if item.is_v6 else load_be16(item.packet + 4)
    item.next_sequence = load_be32(l4 + 4) + candidate.payload_len if item.is_tcp else 0
    item.is_open = (self.offloads & candidate.offload) != 0
    if item.is_tcp and l4[13] & (TCP_PSH | TCP_FIN):
        item.is_open = False


cdef inline void gro_receive_record(Gro *self, const Candidate *candidate, const VnetHeader *vnet,
                                    uint32_t segments) noexcept nogil:
    """Take a superpacket, which was classified (FLOW_MERGES), as it is."""
    cdef Item *item = gro_append(self, candidate)
    item.vnet = vnet[0]
    item.is_record = True
    item.segment_count = segments
    item.header_len = candidate.header_len
    item.offload = candidate.offload
    item.is_tcp = candidate.is_tcp
    # Nothing may join what came before it; should another flow have the bucket, that costs little.
    self.buckets[candidate.flow_hash % GRO_FLOW_BUCKETS] = 0


cdef inline void candidate_classify(Candidate *self) noexcept nogil:
    """Set the flow class, and for those with ports the hash and lengths."""
    cdef IpPacket *ip = &self.packet.ip
    cdef uint8_t *l4 = ip.start + ip.header_len
    cdef uint32_t l4_len = ip.total_len - ip.header_len
    cdef uint32_t tcp_header_len
    self.flow_class = FLOW_NONE
    self.flow_hash = 0
    if ip.is_fragment or (not ip.is_v6 and ip.header_len != 20):
        return
    if ip.protocol == PROTOCOL_TCP:
        if l4_len < 20:
            return
        self.is_tcp = True
        self.flow_class = FLOW_ENDS
        self.flow_hash = flow_hash(ip)
        tcp_header_len = <uint32_t>(l4[12] >> 4) * 4
        if tcp_header_len < 20 or tcp_header_len >= l4_len or packet_has_trailer(&self.packet):
            return                  # malformed, or a pure ACK
        if l4[13] & ~(TCP_PSH | TCP_FIN | TCP_ECE) != TCP_ACK:
            return                  # SYN, RST, URG, CWR, or no ACK
        self.header_len = ip.header_len + tcp_header_len
        self.offload = OFFLOAD_TUN_TCP6 if ip.is_v6 else OFFLOAD_TUN_TCP4
    elif ip.protocol == PROTOCOL_UDP:
        if l4_len < 8:
            return
        self.is_tcp = False
        self.flow_class = FLOW_ENDS
        self.flow_hash = flow_hash(ip)
        if load_be16(l4 + 4) != l4_len or l4_len == 8 or packet_has_trailer(&self.packet) \
                or (load_be16(l4 + 6) == 0 and not self.is_partial):
            return
        self.header_len = ip.header_len + 8
        self.offload = OFFLOAD_TUN_UDP6 if ip.is_v6 else OFFLOAD_TUN_UDP4
    else:
        return
    self.payload_len = ip.total_len - self.header_len
    self.flow_class = FLOW_MERGES


cdef inline bint item_is_same_flow(const Item *self, const Candidate *candidate) noexcept nogil:
    cdef const uint8_t *a = self.packet
    cdef const uint8_t *b = candidate.packet.ip.start
    if self.is_v6 != candidate.packet.ip.is_v6 or self.is_tcp != candidate.is_tcp \
            or self.link_len != candidate.packet.link_len or self.peer != candidate.peer:
        return False
    if self.is_v6:
        return memcmp(a + 8, b + 8, 32) == 0 and memcmp(a + 40, b + 40, 4) == 0
    return memcmp(a + 12, b + 12, 12) == 0     # addresses and, right behind, ports


cdef inline bint item_merge(Gro *gro, Item *self, const Candidate *candidate) noexcept nogil:
    """Append the packet's payload to the item if that is allowed. Cheap checks first."""
    cdef uint32_t max_segments = GRO_MAX_TCP_SEGMENTS if self.is_tcp else GRO_MAX_UDP_SEGMENTS
    cdef uint8_t *start = candidate.packet.ip.start
    cdef Piece *piece
    if candidate.payload_len > self.segment_size or self.segment_count >= max_segments:
        return False
    if self.total_len + candidate.payload_len > MAX_PACKET_LEN:
        return False
    if not item_headers_match(self, candidate):
        return False
    if not self.is_partial:
        if self.segment_count == 1 and not gro_checksums_are_valid(
                self.packet, self.is_v6, self.is_tcp, self.l4_at, self.packet_len):
            return False
        if not gro_checksums_are_valid(start, self.is_v6, self.is_tcp, self.l4_at,
                                       candidate.packet.ip.total_len):
            return False
    if self.segment_count == 1:
        memcpy(self.saved_header, self.packet, self.header_len)
        if not self.is_v6:
            self.id_step = <uint16_t>(load_be16(start + 4) - self.last_id)
    piece = &gro.pieces[gro.piece_count]
    gro.piece_count += 1
    piece.start = start + candidate.header_len
    piece.length = candidate.payload_len
    piece.next = 0
    if self.last_piece:
        gro.pieces[self.last_piece - 1].next = gro.piece_count
    else:
        self.first_piece = gro.piece_count
    self.last_piece = gro.piece_count
    self.segment_count += 1
    self.total_len += candidate.payload_len
    self.next_sequence += candidate.payload_len
    if not self.is_v6:
        self.last_id = load_be16(start + 4)
    if self.is_tcp:
        self.added_flags |= start[self.l4_at + 13] & (TCP_PSH | TCP_FIN)
    if candidate.payload_len < self.segment_size or self.added_flags:
        self.is_open = False
    return True


cdef inline bint item_headers_match(const Item *self, const Candidate *candidate) noexcept nogil:
    """Whether everything that the kernel's GRO wants equal is equal."""
    cdef const uint8_t *a = self.packet
    cdef const uint8_t *b = candidate.packet.ip.start
    cdef uint32_t at = candidate.packet.ip.header_len
    cdef uint16_t step
    if self.header_len != candidate.header_len or self.is_partial != candidate.is_partial:
        return False
    if self.link_len and memcmp(a - self.link_len, b - self.link_len, self.link_len) != 0:
        return False
    if self.is_v6:
        # version, traffic class, flow label; next header, hop limit
        if memcmp(a, b, 4) != 0 or memcmp(a + 6, b + 6, 2) != 0:
            return False
    else:
        # version, TOS; DF; TTL, protocol
        if memcmp(a, b, 2) != 0 or memcmp(a + 6, b + 6, 4) != 0:
            return False
        step = <uint16_t>(load_be16(b + 4) - self.last_id)
        if self.segment_count > 1:
            if step != self.id_step:
                return False
        elif step != 1 and not (step == 0 and b[6] & 0x40):
            return False            # a fixed id is fine with DF only (RFC 6864)
    if not self.is_tcp:
        return True
    a += at
    b += at
    if load_be32(b + 4) != self.next_sequence:
        return False
    # acknowledgement, data offset; flags but PSH and FIN; window; urgent pointer, options
    if memcmp(a + 8, b + 8, 5) != 0 or memcmp(a + 14, b + 14, 2) != 0:
        return False
    if (a[13] ^ b[13]) & ~(TCP_PSH | TCP_FIN):
        return False
    return memcmp(a + 18, b + 18, self.header_len - at - 18) == 0


cdef inline bint gro_checksums_are_valid(const uint8_t *packet, bint is_v6, bint is_tcp,
                                         uint32_t l4_at, uint32_t total_len) noexcept nogil:
    """Of the IPv4 header and of TCP or UDP."""
    if not is_v6 and checksum_fold(checksum_sum(packet, l4_at)) != 0xffff:
        return False
    return l4_checksum_is_valid(packet, is_v6, PROTOCOL_TCP if is_tcp else PROTOCOL_UDP,
                                packet + l4_at, total_len - l4_at)


cdef inline Item *gro_append(Gro *self, const Candidate *candidate) noexcept nogil:
    """A new item that holds the packet alone."""
    cdef Item *item = &self.items[self.item_count]
    self.item_count += 1
    item.packet = candidate.packet.ip.start
    item.link_len = candidate.packet.link_len
    item.packet_len = candidate.packet.length - candidate.packet.link_len
    item.total_len = item.packet_len
    item.peer = candidate.peer
    item.flow_hash = candidate.flow_hash
    item.segment_count = 1
    item.first_piece = 0
    item.last_piece = 0
    item.is_v6 = candidate.packet.ip.is_v6
    item.is_partial = candidate.is_partial
    item.is_open = False
    item.is_record = False
    memset(&item.vnet, 0, sizeof(VnetHeader))
    if candidate.is_partial:
        vnet_set_partial(&item.vnet, &candidate.packet)
    return item


cdef inline int item_finish(Gro *gro, Item *self, iovec *iov) noexcept nogil:
    """Complete the headers; fill `iov` (of at least GRO_MAX_TCP_SEGMENTS + 1 entries) and give
    the number of entries."""
    cdef uint32_t next_piece = self.first_piece
    cdef int count = 2
    if self.segment_count > 1 and not self.is_record:
        item_finish_superpacket(self)
    iov[0].iov_base = &self.vnet
    iov[0].iov_len = VNET_HEADER_LEN
    iov[1].iov_base = self.packet - self.link_len
    iov[1].iov_len = self.link_len + self.packet_len
    while next_piece:
        iov[count].iov_base = gro.pieces[next_piece - 1].start
        iov[count].iov_len = gro.pieces[next_piece - 1].length
        next_piece = gro.pieces[next_piece - 1].next
        count += 1
    return count


cdef inline void item_finish_superpacket(Item *self) noexcept nogil:
    """Write the headers of what several packets became."""
    cdef uint8_t *l4 = self.packet + self.l4_at
    ip_total_len_set(self.packet, self.is_v6, self.total_len)
    if not self.is_v6:
        ipv4_checksum_set(self.packet, self.l4_at)
    if self.is_tcp:
        l4[13] |= self.added_flags
        self.vnet.gso_type = (VIRTIO_NET_HDR_GSO_TCPV6 if self.is_v6
                              else VIRTIO_NET_HDR_GSO_TCPV4)
    else:
        store_be16(l4 + 4, <uint16_t>(self.total_len - self.l4_at))
        self.vnet.gso_type = GSO_UDP_L4
    self.vnet.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM
    self.vnet.hdr_len = <uint16_t>(self.link_len + self.header_len)
    self.vnet.gso_size = <uint16_t>self.segment_size
    self.vnet.csum_start = <uint16_t>(self.link_len + self.l4_at)
    self.vnet.csum_offset = 16 if self.is_tcp else 6
    l4_checksum_set_partial(
        self.packet, self.is_v6, PROTOCOL_TCP if self.is_tcp else PROTOCOL_UDP, l4,
        self.total_len - self.l4_at, self.vnet.csum_offset)
