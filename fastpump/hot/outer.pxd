# The outer headers of a superpacket that is inside a UDP tunnel (VXLAN, Geneve): IP and UDP, and
# behind them whatever that tunnel has before the inner IP header. They are the same in all segments
# but for lengths, IPv4 id and checksums. Linux hands over such superpackets from 6.17 on
# (TUN_F_UDP_TUNNEL_GSO); as its __skb_udp_tunnel_segment() does it.
#
# The outer checksum need not read the payload once more (local checksum offload,
# Documentation/networking/checksum-offloads.rst): with a right checksum inside, the inner TCP or
# UDP header and payload add up to the complement of their pseudo-header's sum.

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uint8_t

from fastpump.hot.bytes cimport load_be16, store_be16
from fastpump.hot.checksum cimport (
    checksum_fold, checksum_load, checksum_store, checksum_sum, checksum_word,
)
from fastpump.hot.ip cimport PROTOCOL_UDP, IpPacket, ip_parse
from fastpump.hot.ip_template cimport IpTemplate, ip_template_init, ip_template_write
from fastpump.hot.packet cimport VLAN_TAG_LEN, Packet
from fastpump.hot.vnet cimport GSO_IN_UDP, GSO_IN_UDP4, GSO_IN_UDP6, OUTER_CSUM, VnetHeader

cdef enum:
    UDP_HEADER_LEN = 8

cdef struct Outer:
    uint32_t udp_at                 # from the start of the packet or frame
    uint32_t inner_at               # the IP header inside
    bint has_checksum
    bint leaves_partial
    IpTemplate ip
    uint64_t pseudo_sum             # of the pseudo-header without the length


cdef inline bint outer_init(Outer *self, const VnetHeader *vnet, const Packet *packet,
                            bint may_leave_partial, IpPacket *inner) noexcept nogil:
    """Prepare for a superpacket in a tunnel; False if vnet header and packet do not agree. `inner`:
    the packet in it, which must reach to its end."""
    cdef uint32_t end = packet.link_len + packet.ip.total_len
    cdef uint32_t udp_at = vnet.outer_l4_at, inner_at = vnet.inner_ip_at
    cdef const uint8_t *udp
    if udp_at == packet.link_len + packet.ip.header_len - VLAN_TAG_LEN:
        # Linux writes an accelerated tag into the frame, and counts it for csum_start only.
        udp_at += VLAN_TAG_LEN
        inner_at += VLAN_TAG_LEN
    udp = packet.start + udp_at
    if vnet.gso_type & GSO_IN_UDP != (GSO_IN_UDP6 if packet.ip.is_v6 else GSO_IN_UDP4):
        return False
    if udp_at < packet.link_len + packet.ip.header_len \
            or inner_at < udp_at + UDP_HEADER_LEN or inner_at >= end:
        return False
    if not ip_parse(inner, packet.start + inner_at, end - inner_at) \
            or inner_at + inner.total_len != end:
        return False
    self.udp_at = udp_at
    self.inner_at = inner_at
    self.has_checksum = vnet.flags & OUTER_CSUM != 0
    self.leaves_partial = may_leave_partial and self.has_checksum and not packet.ip.is_fragment \
        and self.udp_at == packet.link_len + packet.ip.header_len \
        and packet.ip.protocol == PROTOCOL_UDP
    ip_template_init(&self.ip, &packet.ip, packet.link_len)
    # The field holds the pseudo-header's sum; adding the complement subtracts.
    self.pseudo_sum = checksum_load(udp + 6) + (0xffff ^ checksum_word(load_be16(udp + 4)))
    return True


cdef inline void outer_write(const Outer *self, uint8_t *packet, uint32_t total_len, uint32_t index,
                             uint32_t l4_at, uint64_t inner_pseudo_sum) noexcept nogil:
    """Complete the headers of segment number `index`, whose inner ones are complete.
    `inner_pseudo_sum`: of the TCP or UDP header inside, which is at `l4_at`."""
    cdef uint8_t *udp = packet + self.udp_at
    cdef uint16_t length = <uint16_t>(total_len - self.udp_at), check
    cdef uint64_t sum = self.pseudo_sum + checksum_word(length)
    ip_template_write(&self.ip, packet, total_len, index)
    store_be16(udp + 4, length)
    if not self.has_checksum:
        return
    check = checksum_fold(sum)
    if not self.leaves_partial:
        store_be16(udp + 6, 0)
        check = <uint16_t>~checksum_fold(sum + checksum_sum(udp, l4_at - self.udp_at)
                                         + (0xffff ^ checksum_fold(inner_pseudo_sum)))
        if check == 0:
            check = 0xffff
    checksum_store(udp + 6, check)
