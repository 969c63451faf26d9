# The TOS (IPv4) or traffic class (IPv6) of a datagram that carries a packet: the packet's ECN field
# (hot/ecn.pxd) and, as the operator chooses, its DSCP, one number, or 0 (RFC 2983: the uniform and
# the pipe model; the packet's own is not changed at the other end).
#
# Handshakes have a DSCP of their own (AF41), by which a receiver's GRO tells them from data
# (conn/sockets.py). So a packet's AF41 is carried as AF42: the same class.

from libc.stdint cimport uint32_t

from fastpump.hot.packet cimport Packet
from fastpump.hot.worker cimport Worker

cdef enum:
    DSCP_MASK = 0xfc
    TOS_AF41 = 0x88
    TOS_AF42 = 0x90


cdef inline uint32_t tos_of(const Worker *worker, const Packet *packet) noexcept nogil:
    """Of the datagram that a packet leaves in, or the one in a frame."""
    cdef uint32_t tos = 0
    if packet.is_ip:
        tos = packet.ip.start[1]
        if packet.ip.is_v6:
            tos = (packet.ip.start[0] << 4 | tos >> 4) & 0xff
        tos &= worker.tos_copied
        if tos & DSCP_MASK == TOS_AF41:
            tos ^= TOS_AF41 ^ TOS_AF42
    return tos | worker.send.tos_fixed
