# What an interface carries: an IP packet (TUN), or an Ethernet frame (TAP) in which there may
# be one, behind VLAN tags (IEEE 802.1Q, also stacked).
#
# A frame is carried whole, whatever is in it. If it is an IP packet, all that is done to packets
# (split, coalesce, partial checksums) is done to it behind its Ethernet header; otherwise
# `ip` describes a fragment of no protocol, which none of that touches.

from libc.stdint cimport uint32_t, uint64_t, uint8_t

from fastpump.hot.bytes cimport load_be16, load_be32
from fastpump.hot.ip cimport IpPacket, ip_parse

cdef enum:
    ETHERNET_HEADER_LEN = 14
    VLAN_TAG_LEN = 4
    MAX_VLAN_TAGS = 4
    ETHERTYPE_IPV4 = 0x0800
    ETHERTYPE_IPV6 = 0x86dd
    ETHERTYPE_VLAN = 0x8100         # IEEE 802.1Q
    ETHERTYPE_SERVICE_VLAN = 0x88a8     # IEEE 802.1ad: the outer tag of two
    ETHERTYPE_OLD_QINQ = 0x9100

cdef struct Packet:
    uint8_t *start                  # of what is carried
    uint32_t length
    uint32_t link_len               # the Ethernet header with its tags; 0 on a TUN
    uint32_t vlan                   # id of the outer tag; 0: none, or a priority tag
    bint is_ip
    IpPacket ip


cdef inline bint packet_parse_ip(Packet *self, uint8_t *start, uint32_t available) noexcept nogil:
    """What a TUN carries; False if it is not a whole IP packet."""
    self.start = start
    self.link_len = 0
    self.vlan = 0
    self.is_ip = True
    if not ip_parse(&self.ip, start, available):
        return False
    self.length = self.ip.total_len
    return True


cdef inline bint ethertype_is_vlan(uint32_t ethertype) noexcept nogil:
    return ethertype in (ETHERTYPE_VLAN, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_OLD_QINQ)


cdef inline bint packet_parse_frame(Packet *self, uint8_t *start, uint32_t length) noexcept nogil:
    """What a TAP carries; False if it is not a whole Ethernet frame, or its source is a
    group address."""
    cdef uint32_t at = ETHERNET_HEADER_LEN, ethertype, version
    cdef int tags
    if length < ETHERNET_HEADER_LEN or start[6] & 1:
        return False
    self.start = start
    self.length = length
    self.vlan = 0
    self.is_ip = False
    ethertype = load_be16(start + 12)
    for tags in range(MAX_VLAN_TAGS):
        if not ethertype_is_vlan(ethertype) or length < at + VLAN_TAG_LEN:
            break
        if tags == 0:
            self.vlan = load_be16(start + at) & 0x0fff
        ethertype = load_be16(start + at + 2)
        at += VLAN_TAG_LEN
    self.link_len = at
    if ethertype in (ETHERTYPE_IPV4, ETHERTYPE_IPV6) and length > at:
        version = start[at] >> 4
        self.is_ip = version == (4 if ethertype == ETHERTYPE_IPV4 else 6) and ip_parse(
            &self.ip, start + at, length - at)
    if not self.is_ip:
        self.ip.start = start + at
        self.ip.total_len = length - at
        self.ip.header_len = 0
        self.ip.protocol = 0
        self.ip.is_v6 = False
        self.ip.is_fragment = True
    return True


cdef inline bint packet_parse(Packet *self, bint is_frame, uint8_t *start,
                              uint32_t length) noexcept nogil:
    """What an interface of either kind carries; False if it is not that."""
    if is_frame:
        return packet_parse_frame(self, start, length)
    return packet_parse_ip(self, start, length)


cdef inline bint packet_has_trailer(const Packet *self) noexcept nogil:
    """Whether bytes follow the IP packet in its frame (padding to 60 bytes, mostly)."""
    return self.length != self.link_len + self.ip.total_len


cdef inline bint frame_is_for_group(const Packet *frame) noexcept nogil:
    """Broadcast or multicast."""
    return frame.start[0] & 1 != 0


cdef inline uint64_t frame_destination(const Packet *frame) noexcept nogil:
    """48 bits."""
    return <uint64_t>load_be16(frame.start) << 32 | load_be32(frame.start + 2)


cdef inline uint64_t frame_source(const Packet *frame) noexcept nogil:
    """48 bits."""
    return <uint64_t>load_be16(frame.start + 6) << 32 | load_be32(frame.start + 8)
