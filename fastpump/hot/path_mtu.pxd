# The path MTU of a peer, as far as it is smaller than what the interface's packets need.
#
# The supervisor finds it (device/path_mtus.py), and puts into PeerSlot.payload_mtu what fits into
# one message: a packet, or a frame with its relay header. NONE, the usual case, costs one
# comparison. UNPROBED has TCP watched (hot/resent.pxd). Else:
#
#   TCP that opens   its MSS is lowered to what fits (MSS clamping), of both kinds of interface;
#                    with a TUN also in what comes from the peer: perhaps it does not do so itself
#   a packet         that is larger is answered to its sender: "fragmentation needed", or for IPv6
#                    "packet too big", with the MTU (hot/icmp.pxd). Of a superpacket the segments
#                    count: the kernel makes smaller ones from then on
#   what remains     IPv4 without DF, IPv6 of up to 1280 bytes (nobody may be told less), and frames
#                    leave as they are: their datagrams travel in fragments. The sender of a frame
#                    with TCP is told all the same: its connection is older than the narrow path

from libc.stdint cimport uint32_t, uint8_t

from fastpump.hot.atomics cimport RELAXED, load32
from fastpump.hot.bytes cimport load_be16, store_be16
from fastpump.hot.checksum cimport checksum_replace
from fastpump.hot.constants cimport FLOOD_ID_MASK, RELAY_HEADER_LEN
from fastpump.hot.icmp cimport icmp_too_big
from fastpump.hot.ip cimport PROTOCOL_TCP, ip_can_be_partial
from fastpump.hot.linux cimport VIRTIO_NET_HDR_F_NEEDS_CSUM
from fastpump.hot.packet cimport Packet
from fastpump.hot.resent cimport resent_check, resent_watch
from fastpump.hot.shm cimport UNPROBED
from fastpump.hot.vnet cimport VnetHeader, vnet_segment_len
from fastpump.hot.worker cimport Relay, Worker

cdef enum:
    MIN_MTU6 = 1280                 # RFC 8200, 5
    IPV4_DF = 0x4000
    TCP_SYN = 0x02
    TCP_HEADER_LEN = 20
    TCP_OPTION_END = 0
    TCP_OPTION_NOP = 1
    TCP_OPTION_MSS = 2
    TCP_OPTION_MSS_LEN = 4
    TCP_MIN_MSS = 88                # as the kernel's TCP_MIN_SND_MSS, with room for options


cdef inline bint path_mtu_takes(Worker *worker, uint32_t peer, uint32_t payload_mtu,
                                const VnetHeader *vnet, Packet *packet,
                                const Relay *relay) noexcept nogil:
    """Whether a packet may leave to a peer that has a payload MTU; if not, its sender was told."""
    cdef uint32_t mtu = payload_mtu
    cdef bint is_tcp = packet.ip.protocol == PROTOCOL_TCP and ip_can_be_partial(&packet.ip)
    if payload_mtu == UNPROBED:
        if is_tcp:
            resent_watch(worker, peer, vnet, packet)
        return True
    if worker.is_tap:
        mtu -= packet.link_len + RELAY_HEADER_LEN
    if is_tcp:
        resent_check(worker, peer, mtu, vnet, packet)
    if is_tcp and not relay.word & FLOOD_ID_MASK:       # all copies of a flooded frame are equal
        mss_clamp(packet, mtu, vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
    if packet.ip.is_v6:
        mtu = max(mtu, <uint32_t>MIN_MTU6)
    if vnet_segment_len(vnet, packet) - packet.link_len <= mtu:
        return True
    if not packet.ip.is_v6 and (not packet.is_ip
                                or not load_be16(packet.ip.start + 6) & IPV4_DF):
        return True
    if worker.is_tap and (relay.word or not is_tcp):    # flooded, or not from the interface
        return True
    # Who may not be told, or not now, loses nothing: it goes in fragments.
    return not icmp_too_big(worker, &packet.ip, packet.link_len, mtu) or worker.is_tap


cdef inline void path_mtu_received(Worker *worker, uint32_t peer, Packet *packet,
                                   bint is_partial) noexcept nogil:
    """A packet from a peer is for the interface of a TUN."""
    cdef uint32_t payload_mtu = load32(&worker.tables.peers[peer].payload_mtu, RELAXED)
    if payload_mtu < UNPROBED and packet.ip.protocol == PROTOCOL_TCP \
            and ip_can_be_partial(&packet.ip):
        mss_clamp(packet, payload_mtu, is_partial)


cdef inline void mss_clamp(Packet *packet, uint32_t mtu, bint is_partial) noexcept nogil:
    """Have whoever receives this segment, if it opens a TCP connection, send no more than fits. The
    packet has a whole TCP header; `is_partial`: its checksum is, and holds no options yet."""
    cdef uint8_t *tcp = packet.ip.start + packet.ip.header_len
    cdef uint32_t end = min(<uint32_t>(tcp[12] >> 4) * 4, packet.ip.total_len
                            - packet.ip.header_len)
    cdef uint32_t at = TCP_HEADER_LEN, headers_len = packet.ip.header_len + TCP_HEADER_LEN
    cdef uint32_t mss = mtu - headers_len if mtu >= headers_len + TCP_MIN_MSS else TCP_MIN_MSS
    if not tcp[13] & TCP_SYN:
        return
    while at + TCP_OPTION_MSS_LEN <= end and tcp[at] != TCP_OPTION_END:
        if tcp[at] == TCP_OPTION_NOP:
            at += 1
        elif tcp[at] == TCP_OPTION_MSS and tcp[at + 1] == TCP_OPTION_MSS_LEN:
            if load_be16(tcp + at + 2) > mss:
                if not is_partial:
                    checksum_replace(tcp + 16, at & 1, load_be16(tcp + at + 2), mss)
                store_be16(tcp + at + 2, mss)
            return
        elif tcp[at + 1] < 2:
            return
        else:
            at += tcp[at + 1]
