# The IP header of a superpacket, as the template for those of its segments: the length differs, the
# IPv4 id counts up, and the IPv4 checksum follows from a sum that is made once.

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uint8_t

from fastpump.hot.bytes cimport load_be16, store_be16
from fastpump.hot.checksum cimport checksum_fold, checksum_store, checksum_sum, checksum_word
from fastpump.hot.ip cimport IpPacket, ip_total_len_set

cdef struct IpTemplate:
    uint32_t at                     # from the start of the packet or frame
    bint is_v6
    uint16_t first_id
    uint64_t sum                    # of the IPv4 header without length, id and checksum


cdef inline void ip_template_init(IpTemplate *self, const IpPacket *ip, uint32_t at) noexcept nogil:
    self.at = at
    self.is_v6 = ip.is_v6
    if ip.is_v6:
        return
    self.first_id = load_be16(ip.start + 4)
    # The first word, the third and fourth, and what follows the checksum.
    self.sum = checksum_sum(ip.start, 2) + checksum_sum(ip.start + 6, 4) \
        + checksum_sum(ip.start + 12, ip.header_len - 12)


cdef inline void ip_template_write(const IpTemplate *self, uint8_t *packet, uint32_t total_len,
                                   uint32_t index) noexcept nogil:
    """Complete the header of segment number `index`, a copy of the superpacket's; `total_len`: of
    the segment, from its start."""
    cdef uint8_t *ip = packet + self.at
    cdef uint16_t length = <uint16_t>(total_len - self.at)
    cdef uint16_t ident = <uint16_t>(self.first_id + index)
    ip_total_len_set(ip, self.is_v6, length)
    if self.is_v6:
        return
    store_be16(ip + 4, ident)
    checksum_store(ip + 10, <uint16_t>~checksum_fold(
        self.sum + checksum_word(length) + checksum_word(ident)))
