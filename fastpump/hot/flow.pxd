# A packet's flow: addresses and ports, mixed. Collisions are harmless, so a cheap mix will do.

from libc.stdint cimport uint32_t, uint64_t

from fastpump.hot.bytes cimport load_be32, load_le64
from fastpump.hot.ip cimport PROTOCOL_TCP, PROTOCOL_UDP, IpPacket


cdef inline uint32_t flow_hash(const IpPacket *ip) noexcept nogil:
    """0 for what has no ports to know its flow by."""
    cdef uint64_t mix
    cdef uint32_t hash
    cdef int i
    if ip.is_fragment or ip.total_len < ip.header_len + 4 \
            or ip.protocol not in (PROTOCOL_TCP, PROTOCOL_UDP):
        return 0
    mix = load_be32(ip.start + ip.header_len) ^ <uint64_t>ip.protocol << 32
    if ip.is_v6:
        for i in range(4):
            mix = (mix ^ load_le64(ip.start + 8 + 8 * i)) * <uint64_t>0x9e3779b97f4a7c15u
    else:
        mix = (mix ^ load_le64(ip.start + 12)) * <uint64_t>0x9e3779b97f4a7c15u
    hash = <uint32_t>(mix >> 32)
    return hash if hash else 1
