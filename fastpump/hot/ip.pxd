# IP headers: lengths are checked once, here; afterwards accessors cannot fail.

from libc.stdint cimport uint16_t, uint32_t, uint8_t

from fastpump.hot.bytes cimport load_be16, load_be32, load_be64

cdef enum:
    PROTOCOL_TCP = 6
    PROTOCOL_UDP = 17
    TCP_FIN = 0x01
    TCP_PSH = 0x08
    TCP_ACK = 0x10
    TCP_ECE = 0x40
    TCP_CWR = 0x80

cdef struct IpPacket:
    uint8_t *start
    uint32_t total_len              # by the header; what follows it is padding
    uint32_t header_len             # IPv6: 40, extension headers are payload
    uint8_t protocol                # IPv6: next header
    bint is_v6
    bint is_fragment


cdef inline bint ip_parse(IpPacket *self, uint8_t *start, uint32_t available) noexcept nogil:
    """Check version and lengths; False if there is no whole IP packet."""
    cdef uint32_t version
    if available < 20:
        return False
    self.start = start
    version = start[0] >> 4
    if version == 4:
        self.is_v6 = False
        self.header_len = <uint32_t>(start[0] & 15) * 4
        self.total_len = load_be16(start + 2)
        self.protocol = start[9]
        self.is_fragment = (load_be16(start + 6) & 0x3fff) != 0     # MF or an offset
        return 20 <= self.header_len <= self.total_len <= available
    if version == 6:
        if available < 40:
            return False
        self.is_v6 = True
        self.header_len = 40
        self.total_len = 40 + <uint32_t>load_be16(start + 4)
        self.protocol = start[6]
        self.is_fragment = False    # the fragment header is a next header of its own
        return self.total_len <= available
    return False


cdef inline const uint8_t *ip_source(const IpPacket *self) noexcept nogil:
    return self.start + 8 if self.is_v6 else self.start + 12


cdef inline const uint8_t *ip_destination(const IpPacket *self) noexcept nogil:
    return self.start + 24 if self.is_v6 else self.start + 16


cdef inline bint ip_is_link_local(const uint8_t *address, bint is_v6) noexcept nogil:
    """Whether an address means something on one link only, as those that hosts send from and to by
    themselves: link-local (RFC 4291, RFC 3927), groups of link-local scope (RFC 4291, RFC 5771),
    broadcast to this network, and none (a source)."""
    cdef uint32_t first = load_be32(address)
    if not is_v6:
        return first >> 16 == 0xa9fe or first >> 8 == 0xe00000 or first == 0 \
            or first == 0xffffffffu
    if first >> 24 == 0xff:
        return first >> 16 & 0xf <= 2
    return first >> 22 == 0xfe80 >> 6 or (
        load_be64(address) == 0 and load_be64(address + 8) == 0)


cdef inline void ip_total_len_set(uint8_t *ip, bint is_v6, uint32_t total_len) noexcept nogil:
    """Write the length field (the IPv4 header checksum is the caller's)."""
    cdef uint16_t value = <uint16_t>(total_len - 40 if is_v6 else total_len)
    cdef uint8_t *field = ip + 4 if is_v6 else ip + 2
    field[0] = value >> 8
    field[1] = value & 0xff


cdef inline uint32_t ip_check_offset(const IpPacket *self) noexcept nogil:
    """Where TCP's or UDP's header has its checksum."""
    return 16 if self.protocol == PROTOCOL_TCP else 6


cdef inline bint ip_can_be_partial(const IpPacket *self) noexcept nogil:
    """Whether a whole TCP or UDP header stands right behind the IP header."""
    if self.is_fragment:
        return False
    if self.protocol == PROTOCOL_TCP:
        return self.total_len >= self.header_len + 20
    return self.protocol == PROTOCOL_UDP and self.total_len >= self.header_len + 8
