# Explicit congestion notification through the tunnel: RFC 6040, normal mode.
#
# In:   a datagram has the ECN field of what is in it (hot/tos.pxd). So packets of different ECN
#       never share a bundle (hot/bundle.pxd) or a GSO send (hot/batch.pxd). What is no packet
#       (handshakes, probes, keepalives, control packets) or no IP (frames) is Not-ECT.
# Out:  what a router on the way has marked is put into the packet, into each one of a bundle:
#
#         inside \ outside   Not-ECT   ECT(0)    ECT(1)    CE
#         Not-ECT            Not-ECT   Not-ECT   Not-ECT   dropped
#         ECT(0)             ECT(0)    ECT(0)    ECT(1)    CE
#         ECT(1)             ECT(1)    ECT(1)    ECT(1)    CE
#         CE                 CE        CE        CE        CE
#
# The datagrams of a GRO train have one ECN field: the kernel does not merge others (net/ipv4/
# af_inet.c, inet_gro_receive()).

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uint8_t

from fastpump.hot.bytes cimport load_be16
from fastpump.hot.checksum cimport checksum_fold, checksum_load, checksum_store, checksum_word
from fastpump.hot.packet cimport Packet

cdef enum:
    ECN_NOT_ECT = 0
    ECN_ECT1 = 1
    ECN_ECT0 = 2
    ECN_CE = 3
    ECN_MASK = 3


cdef inline uint32_t ecn_of(const Packet *packet) noexcept nogil:
    """The ECN field of a packet, or of the one in a frame."""
    if not packet.is_ip:
        return ECN_NOT_ECT
    if packet.ip.is_v6:
        return packet.ip.start[1] >> 4 & ECN_MASK
    return packet.ip.start[1] & ECN_MASK


cdef inline bint ecn_leave(const Packet *packet, uint32_t outside) noexcept nogil:
    """Put into the packet what the datagram that it came in says; False if it is to be dropped."""
    cdef uint32_t inside
    if outside == ECN_NOT_ECT:
        return True
    inside = ecn_of(packet)
    if inside == ECN_NOT_ECT:
        return outside != ECN_CE
    if outside == ECN_CE and inside != ECN_CE or outside == ECN_ECT1 and inside == ECN_ECT0:
        ecn_set(packet, outside)
    return True


cdef inline void ecn_set(const Packet *packet, uint32_t ecn) noexcept nogil:
    """Write the field, and bring IPv4's checksum up to date (RFC 1624, equation 3)."""
    cdef uint8_t *ip = packet.ip.start
    cdef uint16_t before = load_be16(ip)
    cdef uint16_t check
    if packet.ip.is_v6:
        ip[1] = (ip[1] & ~(ECN_MASK << 4)) | ecn << 4
        return
    ip[1] = (ip[1] & ~ECN_MASK) | ecn
    check = ~checksum_load(ip + 10)
    checksum_store(ip + 10, ~checksum_fold(
        <uint64_t>check + checksum_word(~before) + checksum_word(load_be16(ip))))
