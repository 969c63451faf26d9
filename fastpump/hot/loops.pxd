# Loops: a datagram of ours that comes back as a packet to be sent to the very peer that it was for.
#
# It would be sealed and come back for ever. Where the way out leads through the interface itself,
# the kernel drops it for us (tun/loop_guard.py). What comes back by a detour (another network
# namespace, a router that sends it here, a bridge that floods it), or where that filter may not be
# had, is recognised here: a UDP packet whose payload has the receiver index that we would put on
# it. An index is drawn at random for each session and set of lanes, by the peer.
#
# Accepted limit: later fragments of a datagram that came back by a detour, and the datagrams of a
# record behind its first, have no index to see, and go round, unless somebody on the way puts them
# together.

from libc.stdint cimport uint32_t, uint8_t

from fastpump.hot.bytes cimport load_le32
from fastpump.hot.constants cimport LANE_TYPE, TRANSPORT_MIN_LEN, TRANSPORT_TYPE
from fastpump.hot.ip cimport PROTOCOL_UDP, IpPacket

cdef enum:
    UDP_HEADER_LEN = 8


cdef inline bint loops_back(const IpPacket *ip, uint32_t remote_index) noexcept nogil:
    """Whether a packet is a message to the session or set of lanes that it would be sent to."""
    cdef const uint8_t *message = ip.start + ip.header_len + UDP_HEADER_LEN
    if ip.protocol != PROTOCOL_UDP or ip.is_fragment \
            or ip.total_len < ip.header_len + UDP_HEADER_LEN + TRANSPORT_MIN_LEN:
        return False
    return (message[0] == LANE_TYPE or message[0] == TRANSPORT_TYPE) \
        and load_le32(message + 4) == remote_index
