# Split: undo the kernel's segmentation offload (GSO), one segment at a time and in
# place, so that sealing it into the send buffer is the only copy.
#
# Segments are taken in order. By the time segment i is wanted, segment i-1 has been
# sealed, so the bytes just before segment i's payload are used up: its header is
# written there, and header and payload are one run. The original header is kept
# aside as the template.
#
#   read buffer:  [header][payload 0][payload 1][payload 2]
#   segment 0:    [header][payload 0]
#   segment 1:                [header][payload 1]      (over the end of payload 0)
#
# The header of a frame begins with its Ethernet header, the same in all segments.
#
# As the kernel's tcp_gso_segment() and __udp_gso_segment() do it: IPv4 ids count up,
# sequence numbers advance, CWR stays on the first segment only, PSH and FIN go to
# the last only. Checksums are written complete; or partial (CHECKSUM_PARTIAL: the
# pseudo-header's sum), where the transport can mark them so. The pseudo-header's sum comes from
# the superpacket's checksum, which is partial: its addresses are not always the IP header's (the
# destination is the last one of an IPv6 routing header, RFC 8200, 8.1, or IPv4 source route).
#
# A superpacket may be one of a UDP tunnel (VXLAN, Geneve; hot/outer.pxd): all of that is then about
# the headers inside, whose checksum is always written complete; the outer ones are a part of the
# template, too.
#
# A guest behind a TAP may ask for segments of one byte, which the kernel lets pass: 65,000 of them
# would keep a worker from all others for long. More than SPLIT_MAX_SEGMENTS are refused.

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy

from fastpump.hot.bytes cimport load_be16, load_be32, store_be16, store_be32
from fastpump.hot.checksum cimport (
    checksum_fold, checksum_load, checksum_store, checksum_word, l4_checksum_finish,
)
from fastpump.hot.ip cimport (
    PROTOCOL_TCP, PROTOCOL_UDP, TCP_CWR, TCP_FIN, TCP_PSH, IpPacket,
)
from fastpump.hot.ip_template cimport IpTemplate, ip_template_init, ip_template_write
from fastpump.hot.linux cimport (
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
)
from fastpump.hot.outer cimport Outer, outer_init, outer_write
from fastpump.hot.packet cimport Packet
from fastpump.hot.vnet cimport GSO_IN_UDP, GSO_UDP_L4, VnetHeader, vnet_segment_type

cdef enum:
    SPLIT_MAX_HEADER = 512          # Ethernet, IP (with extension headers), Geneve, and TCP
    SPLIT_MAX_SEGMENTS = 2048       # more than any TCP makes of 64 KiB; see the head

cdef struct Splitter:
    uint8_t *packet
    uint32_t payload_len
    uint32_t done                   # payload bytes already given out
    uint32_t segment_size           # payload bytes of each segment but the last
    uint32_t count
    uint32_t index
    uint32_t l4_at
    uint32_t header_len             # everything before the payload
    bint is_tcp
    bint leaves_partial             # the only checksum, or the outer one
    bint has_outer
    uint32_t first_sequence
    uint64_t pseudo_sum             # of the pseudo-header without the length; see the head
    IpTemplate ip
    Outer outer
    uint8_t header[SPLIT_MAX_HEADER]


cdef inline bint splitter_init(Splitter *self, const VnetHeader *vnet,
                               const Packet *packet, bint may_leave_partial) noexcept nogil:
    """Prepare for a superpacket; False if vnet header and packet do not agree.

    The L4 header's place is csum_start: behind options and extension headers. Partial
    checksums are left only where the receiver can find the place without csum_start.
    """
    cdef uint8_t gso_type = vnet_segment_type(vnet)
    cdef const IpPacket *ip = &packet.ip
    cdef IpPacket inner
    cdef uint32_t l4_header_len = 8, end = packet.link_len + ip.total_len, ip_at = packet.link_len
    cdef uint16_t length
    cdef uint8_t *l4
    if not vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM or vnet.gso_size == 0 or not packet.is_ip:
        return False
    self.packet = packet.start
    self.l4_at = vnet.csum_start
    self.is_tcp = gso_type != GSO_UDP_L4
    self.has_outer = vnet.gso_type & GSO_IN_UDP != 0
    if self.has_outer:
        if not outer_init(&self.outer, vnet, packet, may_leave_partial, &inner):
            return False
        ip = &inner
        ip_at = self.outer.inner_at
        self.leaves_partial = self.outer.leaves_partial
    else:
        self.leaves_partial = may_leave_partial and self.l4_at == ip_at + ip.header_len \
            and not ip.is_fragment \
            and ip.protocol == (PROTOCOL_TCP if self.is_tcp else PROTOCOL_UDP)
    if gso_type == VIRTIO_NET_HDR_GSO_TCPV4 and ip.is_v6:
        return False
    if gso_type == VIRTIO_NET_HDR_GSO_TCPV6 and not ip.is_v6:
        return False
    if gso_type not in (VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, GSO_UDP_L4):
        return False
    if vnet.csum_offset != (16 if self.is_tcp else 6):
        return False
    if self.l4_at < ip_at + ip.header_len or self.l4_at + (20 if self.is_tcp else 8) > end:
        return False
    l4 = packet.start + self.l4_at
    if self.is_tcp:
        l4_header_len = <uint32_t>(l4[12] >> 4) * 4
        if l4_header_len < 20:
            return False
    self.header_len = self.l4_at + l4_header_len
    if self.header_len > SPLIT_MAX_HEADER or self.header_len > end:
        return False
    self.payload_len = end - self.header_len
    self.segment_size = vnet.gso_size
    self.count = 1
    if self.payload_len > self.segment_size:
        self.count = (self.payload_len + self.segment_size - 1) / self.segment_size
    if self.count > SPLIT_MAX_SEGMENTS:
        return False
    self.done = 0
    self.index = 0
    self.first_sequence = load_be32(l4 + 4) if self.is_tcp else 0
    memcpy(self.header, packet.start, self.header_len)
    ip_template_init(&self.ip, ip, ip_at)
    # Without the superpacket's length: adding the complement subtracts.
    length = <uint16_t>(end - self.l4_at) if self.is_tcp else load_be16(l4 + 4)
    self.pseudo_sum = checksum_load(l4 + vnet.csum_offset) + (0xffff ^ checksum_word(length))
    return True


cdef inline uint32_t splitter_next(Splitter *self, uint8_t **segment) noexcept nogil:
    """The next segment, complete, and its length; 0 when there is none left.

    The segment before it must have been used up: its last bytes are overwritten.
    """
    cdef uint32_t payload = self.payload_len - self.done
    cdef uint32_t total_len
    cdef bint is_last
    cdef uint8_t *start = self.packet + self.done
    cdef uint8_t *l4 = start + self.l4_at
    if self.index == self.count:
        return 0
    if payload > self.segment_size:
        payload = self.segment_size
    is_last = self.index + 1 == self.count
    total_len = self.header_len + payload
    memcpy(start, self.header, self.header_len)
    ip_template_write(&self.ip, start, total_len, self.index)
    if self.is_tcp:
        store_be32(l4 + 4, self.first_sequence + self.done)
        if not is_last:
            l4[13] &= <uint8_t>~(TCP_FIN | TCP_PSH)
        if self.index:
            l4[13] &= <uint8_t>~TCP_CWR
        splitter_checksum(self, start, PROTOCOL_TCP, total_len - self.l4_at, 16)
    else:
        store_be16(l4 + 4, <uint16_t>(total_len - self.l4_at))
        splitter_checksum(self, start, PROTOCOL_UDP, total_len - self.l4_at, 6)
    if self.has_outer:
        outer_write(&self.outer, start, total_len, self.index, self.l4_at,
                    self.pseudo_sum + checksum_word(<uint16_t>(total_len - self.l4_at)))
    self.done += payload
    self.index += 1
    segment[0] = start
    return total_len


cdef inline void splitter_checksum(const Splitter *self, uint8_t *packet, uint8_t protocol,
                                   uint32_t l4_len, uint32_t check_offset) noexcept nogil:
    cdef uint8_t *l4 = packet + self.l4_at
    checksum_store(l4 + check_offset,
                   checksum_fold(self.pseudo_sum + checksum_word(<uint16_t>l4_len)))
    if self.has_outer or not self.leaves_partial:
        l4_checksum_finish(protocol, l4, l4_len, check_offset)
