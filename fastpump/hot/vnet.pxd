# The virtio-net header in front of every packet of a TUN/TAP queue opened with
# IFF_VNET_HDR (include/uapi/linux/virtio_net.h; native byte order on TUN).
#
# What the kernel says of csum_start and csum_offset is used after a bounds check;
# its hdr_len is wrong on forwarded packets and is not used at all.

from libc.stdint cimport uint16_t, uint32_t, uint8_t
from libc.string cimport memcpy

from fastpump.hot.checksum cimport checksum_fold, checksum_store, checksum_sum
from fastpump.hot.ip cimport IpPacket, ip_can_be_partial, ip_check_offset
from fastpump.hot.linux cimport VIRTIO_NET_HDR_F_NEEDS_CSUM

cdef struct VnetHeader:
    uint8_t flags
    uint8_t gso_type
    uint16_t hdr_len
    uint16_t gso_size
    uint16_t csum_start
    uint16_t csum_offset

cdef enum:
    GSO_UDP_L4 = 5                  # VIRTIO_NET_HDR_GSO_UDP_L4: not in Debian 12's header


cdef inline void vnet_load(VnetHeader *self, const uint8_t *bytes) noexcept nogil:
    memcpy(self, bytes, sizeof(VnetHeader))


cdef inline bint vnet_checksum_complete(const VnetHeader *self, uint8_t *packet,
                                        uint32_t packet_len) noexcept nogil:
    """Finish a partial checksum (CHECKSUM_PARTIAL), which peers other than the local
    kernel cannot be handed. False if the header points into the IP header or outside.

    As skb_checksum_help() does, a result of zero becomes 0xffff.
    """
    cdef uint32_t start = self.csum_start
    cdef uint32_t field = start + self.csum_offset
    cdef uint16_t check
    if not self.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM:
        return True
    if start < 20 or start >= packet_len or field + 2 > packet_len:
        return False                # in the IP header, or outside
    # The field holds the pseudo-header's sum, so it takes part in the sum.
    check = <uint16_t>~checksum_fold(checksum_sum(packet + start, packet_len - start))
    checksum_store(packet + field, check if check else 0xffff)
    return True


cdef inline bint vnet_is_plain_partial(const VnetHeader *self, const IpPacket *ip) noexcept nogil:
    """Whether the checksum that the header leaves to us is that of a TCP or UDP header right
    behind the IP header: its place needs not be told."""
    return self.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 and self.csum_start == ip.header_len \
        and self.csum_offset == ip_check_offset(ip) and ip_can_be_partial(ip)


cdef inline void vnet_set_partial(VnetHeader *self, const IpPacket *ip) noexcept nogil:
    """Leave the checksum of a packet (of `ip_can_be_partial`) to the kernel."""
    self.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM
    self.csum_start = <uint16_t>ip.header_len
    self.csum_offset = <uint16_t>ip_check_offset(ip)
