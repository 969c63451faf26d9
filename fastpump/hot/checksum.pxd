# The Internet checksum (RFC 1071) and the pseudo-headers of TCP and UDP.
#
# Sums are kept in native byte order, unfolded, in 64 bits; `checksum_fold` gives
# the 16 bits that go into a header as they are (no byte swap), complemented or
# not as the caller needs: a complete checksum is the complement, a partial one
# (CHECKSUM_PARTIAL, vnet NEEDS_CSUM) is the pseudo-header's sum uncomplemented.

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy

from fastpump.hot.bytes cimport store_be16, store_be32


cdef extern from "checksum.h" nogil:
    uint64_t checksum_sum(const uint8_t *p, size_t length)


cdef inline uint16_t checksum_fold(uint64_t sum) noexcept nogil:
    """Fold a native-order sum to 16 bits, not complemented."""
    sum = (sum & 0xffffffffu) + (sum >> 32)
    sum = (sum & 0xffffffffu) + (sum >> 32)
    sum = (sum & 0xffffu) + (sum >> 16)
    sum = (sum & 0xffffu) + (sum >> 16)
    return <uint16_t>sum


cdef inline uint64_t checksum_word(uint16_t value) noexcept nogil:
    """What a 16-bit field with that value adds to a native-order sum."""
    cdef uint16_t native
    store_be16(<uint8_t *>&native, value)
    return native


cdef inline void checksum_replace(uint8_t *field, bint is_odd, uint16_t old,
                                  uint16_t new) noexcept nogil:
    """A 16-bit field changes that the checksum covers (RFC 1624, equation 3). `is_odd`: it stands
    across two words of the sum."""
    cdef uint64_t sum = <uint16_t>~checksum_load(field)
    if is_odd:
        old = <uint16_t>(old << 8 | old >> 8)
        new = <uint16_t>(new << 8 | new >> 8)
    sum += checksum_word(<uint16_t>~old) + checksum_word(new)
    checksum_store(field, <uint16_t>~checksum_fold(sum))


cdef inline uint64_t pseudo_sum(const uint8_t *ip, bint is_v6, uint8_t protocol,
                                uint32_t l4_len) noexcept nogil:
    """Sum of the pseudo-header: RFC 793 for IPv4, RFC 8200 section 8.1 for IPv6."""
    cdef uint8_t tail[8]
    store_be32(tail, l4_len)
    store_be32(tail + 4, protocol)
    if is_v6:
        return checksum_sum(ip + 8, 32) + checksum_sum(tail, 8)
    return checksum_sum(ip + 12, 8) + checksum_sum(tail, 8)


cdef inline uint16_t checksum_load(const uint8_t *p) noexcept nogil:
    """A checksum field as a native-order sum."""
    cdef uint16_t native
    memcpy(&native, p, 2)
    return native


cdef inline void checksum_store(uint8_t *p, uint16_t native) noexcept nogil:
    memcpy(p, &native, 2)


cdef inline void ipv4_checksum_set(uint8_t *ip, uint32_t header_len) noexcept nogil:
    """Write the header checksum of an IPv4 header of `header_len` bytes."""
    store_be16(ip + 10, 0)
    checksum_store(ip + 10, <uint16_t>~checksum_fold(checksum_sum(ip, header_len)))


cdef inline void l4_checksum_finish(uint8_t protocol, uint8_t *l4, uint32_t l4_len,
                                    uint32_t check_offset) noexcept nogil:
    """Make the partial TCP or UDP checksum at `l4 + check_offset` complete: the pseudo-header's sum
    that is there takes part in the sum.

    A UDP checksum of zero is sent as 0xffff (RFC 768).
    """
    cdef uint16_t check = <uint16_t>~checksum_fold(checksum_sum(l4, l4_len))
    if check == 0 and protocol == 17:
        check = 0xffff
    checksum_store(l4 + check_offset, check)


cdef inline void l4_checksum_set_partial(uint8_t *ip, bint is_v6, uint8_t protocol, uint8_t *l4,
                                         uint32_t l4_len, uint32_t check_offset) noexcept nogil:
    """Write the pseudo-header's sum, which whoever finishes the checksum adds to."""
    checksum_store(l4 + check_offset, checksum_fold(pseudo_sum(ip, is_v6, protocol, l4_len)))


cdef inline bint l4_checksum_is_valid(const uint8_t *ip, bint is_v6, uint8_t protocol,
                                      const uint8_t *l4, uint32_t l4_len) noexcept nogil:
    return checksum_fold(
        pseudo_sum(ip, is_v6, protocol, l4_len) + checksum_sum(l4, l4_len)) == 0xffff
