# ICMP errors: what is answered to a host whose packet has no way through a TUN.
#
# As the kernel's WireGuard (wg_xmit()): a packet to an address that no peer owns, or to a peer
# whose endpoint is not known, is answered with "host unreachable" (RFC 792; RFC 4443: "address
# unreachable"), so that programs fail at once instead of after minutes. The answer comes from the
# address that was asked for, and out of the interface: an address of the host's own would be a
# martian there.
#
# A packet that is larger than the path to its peer takes is answered with "fragmentation needed"
# (RFC 1191) or "packet too big" (RFC 4443), and the MTU.
#
# Nothing is answered to what must not be (RFC 1122, 3.2.2; RFC 4443, 2.4): an ICMP error, a
# fragment but the first, a group, a source that is no single host. Each worker has ICMP_RATE a
# second.

from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy, memset

from fastpump.hot.bytes cimport load_be16, load_be32, load_be64, store_be16, store_be32
from fastpump.hot.checksum cimport (
    checksum_fold, checksum_store, checksum_sum, ipv4_checksum_set, pseudo_sum,
)
from fastpump.hot.constants cimport VNET_HEADER_LEN
from fastpump.hot.ip cimport IpPacket, ip_destination, ip_source
from fastpump.hot.linux cimport iovec
from fastpump.hot.rate cimport rate_take
from fastpump.hot.tun_write cimport tun_write_vector
from fastpump.hot.verdict cimport ICMP_ERRORS
from fastpump.hot.worker cimport Worker

cdef enum:
    ICMP_RATE = 100
    ICMP_BURST = 50
    ICMP_HEADER_LEN = 8
    ICMP_MAX_LEN4 = 576             # of the whole answer (RFC 1812, 4.3.2.3)
    ICMP_MAX_LEN6 = 1280            # RFC 4443, 2.4 (c)
    ICMP_MAX_LINK_LEN = 30          # an Ethernet header with MAX_VLAN_TAGS
    ICMP_TOS = 0xc0                 # internetwork control (RFC 1812, 4.3.2.5)
    ICMP_HOPS = 64

    PROTOCOL_ICMP = 1
    PROTOCOL_ICMPV6 = 58
    IPV6_FRAGMENT = 44
    ICMP_UNREACHABLE = 3
    ICMP_HOST_UNREACHABLE = 1
    ICMP_FRAGMENTATION_NEEDED = 4
    ICMPV6_UNREACHABLE = 1
    ICMPV6_ADDRESS_UNREACHABLE = 3
    ICMPV6_PACKET_TOO_BIG = 2


cdef inline void icmp_unreachable(Worker *worker, const IpPacket *ip) noexcept nogil:
    """Tell the sender of a packet from the interface that nobody is there."""
    if ip.is_v6:
        icmp_answer(worker, &worker.icmp_full_at_ns, ip, 0, ICMPV6_UNREACHABLE,
                    ICMPV6_ADDRESS_UNREACHABLE, 0)
    else:
        icmp_answer(worker, &worker.icmp_full_at_ns, ip, 0, ICMP_UNREACHABLE,
                    ICMP_HOST_UNREACHABLE, 0)


cdef inline bint icmp_too_big(Worker *worker, const IpPacket *ip, uint32_t link_len,
                              uint32_t mtu) noexcept nogil:
    """Tell the sender of a packet from the interface how large it may be; False if it may not be
    told, or not now. `link_len`: of the Ethernet header before it."""
    if ip.is_v6:
        return icmp_answer(worker, &worker.too_big_full_at_ns, ip, link_len, ICMPV6_PACKET_TOO_BIG,
                           0, mtu)
    return icmp_answer(worker, &worker.too_big_full_at_ns, ip, link_len, ICMP_UNREACHABLE,
                       ICMP_FRAGMENTATION_NEEDED, mtu)


cdef inline bint icmp_answer(Worker *worker, uint64_t *full_at_ns, const IpPacket *ip,
                             uint32_t link_len, uint8_t kind, uint8_t code,
                             uint32_t mtu) noexcept nogil:
    """`mtu`: the second word of the header. A frame is answered to where it came from, with its
    tags. `full_at_ns`: of the rate of such answers. False if there is none."""
    cdef uint8_t answer[VNET_HEADER_LEN + ICMP_MAX_LINK_LEN + ICMP_MAX_LEN6]
    cdef uint8_t *written = answer + VNET_HEADER_LEN + link_len
    cdef iovec iov
    cdef uint32_t length
    if not icmp_may_answer(ip) \
            or not rate_take(full_at_ns, worker.now_ns, ICMP_RATE, ICMP_BURST):
        return False
    memset(answer, 0, VNET_HEADER_LEN)
    memcpy(answer + VNET_HEADER_LEN, ip.start - link_len, link_len)
    if link_len:
        memcpy(answer + VNET_HEADER_LEN, ip.start - link_len + 6, 6)
        memcpy(answer + VNET_HEADER_LEN + 6, ip.start - link_len, 6)
    if ip.is_v6:
        length = link_len + icmp6_write(written, ip, kind, code, mtu)
    else:
        length = link_len + icmp4_write(written, ip, kind, code, mtu)
    iov.iov_base = answer
    iov.iov_len = VNET_HEADER_LEN + length
    if not tun_write_vector(worker, worker.tun_fd, &iov, 1, 1, length):
        return False
    worker.shared.counters[ICMP_ERRORS] += 1
    return True


cdef inline bint icmp_may_answer(const IpPacket *ip) noexcept nogil:
    """Whether a packet may be answered with an ICMP error."""
    cdef const uint8_t *source = ip_source(ip)
    cdef const uint8_t *destination = ip_destination(ip)
    cdef const uint8_t *l4 = ip.start + ip.header_len
    if ip.is_v6:
        if destination[0] == 0xff or source[0] == 0xff or (
                load_be64(source) == 0 and load_be64(source + 8) <= 1):
            return False
        if ip.protocol == IPV6_FRAGMENT:
            return ip.total_len >= ip.header_len + 8 and load_be16(l4 + 2) & 0xfff8 == 0
        return ip.protocol != PROTOCOL_ICMPV6 or (ip.total_len > ip.header_len and l4[0] & 0x80)
    if destination[0] >= 224 or source[0] >= 224 or source[0] == 127 or load_be32(source) == 0 \
            or load_be16(ip.start + 6) & 0x1fff:
        return False
    # Queries are answered: echo, timestamp, information, address mask (and their replies).
    return ip.protocol != PROTOCOL_ICMP or (
        ip.total_len > ip.header_len and l4[0] not in (3, 4, 5, 11, 12))


cdef inline uint32_t icmp4_write(uint8_t *answer, const IpPacket *ip, uint8_t kind, uint8_t code,
                                 uint32_t mtu) noexcept nogil:
    """Write the answer; its length."""
    cdef uint8_t *icmp = answer + 20
    cdef uint32_t quoted = min(ip.total_len, ICMP_MAX_LEN4 - 20 - ICMP_HEADER_LEN)
    memset(answer, 0, 20 + ICMP_HEADER_LEN)
    answer[0] = 0x45
    answer[1] = ICMP_TOS
    store_be16(answer + 2, 20 + ICMP_HEADER_LEN + quoted)
    answer[8] = ICMP_HOPS
    answer[9] = PROTOCOL_ICMP
    memcpy(answer + 12, ip_destination(ip), 4)
    memcpy(answer + 16, ip_source(ip), 4)
    ipv4_checksum_set(answer, 20)
    icmp[0] = kind
    icmp[1] = code
    store_be32(icmp + 4, mtu)
    memcpy(icmp + ICMP_HEADER_LEN, ip.start, quoted)
    checksum_store(icmp + 2, ~checksum_fold(checksum_sum(icmp, ICMP_HEADER_LEN + quoted)))
    return 20 + ICMP_HEADER_LEN + quoted


cdef inline uint32_t icmp6_write(uint8_t *answer, const IpPacket *ip, uint8_t kind, uint8_t code,
                                 uint32_t mtu) noexcept nogil:
    """Write the answer; its length."""
    cdef uint8_t *icmp = answer + 40
    cdef uint32_t quoted = min(ip.total_len, ICMP_MAX_LEN6 - 40 - ICMP_HEADER_LEN)
    memset(answer, 0, 40 + ICMP_HEADER_LEN)
    store_be32(answer, 6 << 28 | ICMP_TOS << 20)
    store_be16(answer + 4, ICMP_HEADER_LEN + quoted)
    answer[6] = PROTOCOL_ICMPV6
    answer[7] = ICMP_HOPS
    memcpy(answer + 8, ip_destination(ip), 16)
    memcpy(answer + 24, ip_source(ip), 16)
    icmp[0] = kind
    icmp[1] = code
    store_be32(icmp + 4, mtu)
    memcpy(icmp + ICMP_HEADER_LEN, ip.start, quoted)
    checksum_store(icmp + 2, ~checksum_fold(
        pseudo_sum(answer, True, PROTOCOL_ICMPV6, ICMP_HEADER_LEN + quoted)
        + checksum_sum(icmp, ICMP_HEADER_LEN + quoted)))
    return 40 + ICMP_HEADER_LEN + quoted
