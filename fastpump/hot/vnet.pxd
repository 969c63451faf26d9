# The virtio-net header in front of every packet of a TUN/TAP queue opened with
# IFF_VNET_HDR (include/uapi/linux/virtio_net.h; native byte order on TUN).
#
# It has the length of struct virtio_net_hdr_v1_hash_tunnel (TUNSETVNETHDRSZ), of which kernels
# before 6.17 know the first fields only: they skip the others, and leave in them what was there.
#
# The kernel's offsets are used after a bounds check; its hdr_len is wrong on forwarded packets and
# is not used at all. csum_start and csum_offset are those of the innermost header.

from libc.stdint cimport uint16_t, uint32_t, uint8_t
from libc.string cimport memcpy

from fastpump.hot.checksum cimport checksum_fold, checksum_store, checksum_sum
from fastpump.hot.ip cimport ip_can_be_partial, ip_check_offset
from fastpump.hot.linux cimport VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN
from fastpump.hot.packet cimport Packet

cdef struct VnetHeader:
    uint8_t flags
    uint8_t gso_type
    uint16_t hdr_len
    uint16_t gso_size
    uint16_t csum_start
    uint16_t csum_offset
    uint8_t unused[10]
    uint16_t outer_l4_at            # of a superpacket in a UDP tunnel: the outer UDP header, ...
    uint16_t inner_ip_at            # ... and the IP header in it

cdef enum:                          # not in Debian 12's header
    GSO_UDP_L4 = 5                  # VIRTIO_NET_HDR_GSO_UDP_L4
    GSO_IN_UDP4 = 0x20              # VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4
    GSO_IN_UDP6 = 0x40              # VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV6
    GSO_IN_UDP = GSO_IN_UDP4 | GSO_IN_UDP6
    OUTER_CSUM = 8                  # flags: VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM


cdef inline void vnet_load(VnetHeader *self, const uint8_t *bytes) noexcept nogil:
    memcpy(self, bytes, sizeof(VnetHeader))


cdef inline uint8_t vnet_segment_type(const VnetHeader *self) noexcept nogil:
    """Of what a superpacket is made, whether in a tunnel or not: VIRTIO_NET_HDR_GSO_*."""
    return self.gso_type & ~<uint8_t>(VIRTIO_NET_HDR_GSO_ECN | GSO_IN_UDP)


cdef inline bint vnet_checksum_complete(const VnetHeader *self, Packet *packet) noexcept nogil:
    """Finish a partial checksum (CHECKSUM_PARTIAL), which only the local kernel can be given. False
    if the header points into the IP header or outside.

    As skb_checksum_help() does, a result of zero becomes 0xffff.
    """
    cdef uint32_t start = self.csum_start
    cdef uint32_t field = start + self.csum_offset
    cdef uint16_t check
    if not self.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        return True
    if start < packet.link_len + 20 or start >= packet.length or field + 2 > packet.length:
        return False                # in the IP header, or outside
    # The field holds the pseudo-header's sum, so it takes part in the sum. What follows the
    # IP packet in a frame does not.
    check = <uint16_t>~checksum_fold(checksum_sum(packet.start + start, (
        packet.link_len + packet.ip.total_len if packet.link_len + packet.ip.total_len > start
        else packet.length) - start))
    checksum_store(packet.start + field, check if check else 0xffff)
    return True


cdef inline bint vnet_is_plain_partial(const VnetHeader *self,
                                       const Packet *packet) noexcept nogil:
    """Whether the checksum that the header leaves to us is that of a TCP or UDP header right
    behind the IP header: the receiver can find its place."""
    return self.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 \
        and self.csum_start == packet.link_len + packet.ip.header_len \
        and self.csum_offset == ip_check_offset(&packet.ip) and ip_can_be_partial(&packet.ip)


cdef inline void vnet_set_partial(VnetHeader *self, const Packet *packet) noexcept nogil:
    """Leave the checksum of a packet (of `ip_can_be_partial`) to the kernel."""
    self.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM
    self.csum_start = <uint16_t>(packet.link_len + packet.ip.header_len)
    self.csum_offset = <uint16_t>ip_check_offset(&packet.ip)


cdef inline uint32_t vnet_segment_len(const VnetHeader *self,
                                      const Packet *packet) noexcept nogil:
    """How long a packet is, or each segment of a superpacket but the last."""
    cdef uint32_t bytes, count = vnet_segment_count(self, packet, &bytes)
    return packet.length if count == 1 else (
        (bytes - packet.length) / (count - 1) + self.gso_size)


cdef inline uint32_t vnet_segment_count(const VnetHeader *self, const Packet *packet,
                                        uint32_t *bytes) noexcept nogil:
    """How many packets a superpacket stands for, and how long they are together; one for a
    packet. As the splitter has it, but what it would refuse counts as one."""
    cdef uint32_t header_len = self.csum_start, count
    bytes[0] = packet.length
    if self.gso_type == 0 or self.gso_size == 0 or header_len + 20 > packet.length:
        return 1
    if vnet_segment_type(self) == GSO_UDP_L4:
        header_len += 8
    else:
        header_len += <uint32_t>(packet.start[header_len + 12] >> 4) * 4
    if header_len >= packet.length:
        return 1
    count = (packet.length - header_len + self.gso_size - 1) / self.gso_size
    bytes[0] = packet.length + (count - 1) * header_len
    return count
