# The source address of what we send: the address of ours that the peer's datagrams come to.
#
# A host with several addresses must answer from the one that it received on, or a peer's firewall
# drops the answer (wireguard-go's "sticky sockets"; the kernel's WireGuard does the same). recvmmsg
# reports it (IPV6_PKTINFO; IP_PKTINFO on a host without IPv6), the peer's slot keeps it with the
# endpoint, and sendmmsg is given it. The interface is left to routing.
#
# A dual-stack socket takes and gives IPV6_PKTINFO with v4-mapped addresses for IPv4 too
# (ip_cmsg_send() and ip6_datagram_recv_common_ctl() of the kernel); but IP_TOS, not IPV6_TCLASS.

from libc.stdint cimport uint16_t, uint32_t, uint8_t
from libc.string cimport memcpy, memset

from fastpump.hot.bytes cimport load_be32, load_be64, load_le64
from fastpump.hot.linux cimport (
    AF_INET, CMSG_DATA, CMSG_FIRSTHDR, CMSG_LEN, CMSG_NXTHDR, IPPROTO_IP, IPPROTO_IPV6,
    IPV6_PKTINFO, IPV6_RECVFRAGSIZE, IPV6_TCLASS, IP_PKTINFO, IP_RECVFRAGSIZE, IP_TOS, SOL_UDP,
    UDP_GRO, cmsghdr, in6_pktinfo, in_pktinfo, msghdr, sockaddr_in6,
)
from fastpump.hot.shm cimport SOURCE_ADDRESS_LEN

cdef enum:
    SIN6_ADDR_AT = 8                # in a struct sockaddr_in6
    PKTINFO_LEN = 40                # CMSG_SPACE(sizeof(struct in6_pktinfo)), the larger one
    TOS_LEN = 24                    # CMSG_SPACE(sizeof(int))
    RECV_CMSG_LEN = 112             # those, and CMSG_SPACE(sizeof(int)) twice: UDP_GRO, fragments


cdef inline bint source_address_is_known(const uint8_t *source_address) noexcept nogil:
    return (load_le64(source_address) | load_le64(source_address + 8)) != 0


cdef inline bint address_is_v4(const uint8_t *address) noexcept nogil:
    """Whether 16 bytes are a v4-mapped address."""
    return load_be64(address) == 0 and load_be32(address + 8) == 0xffff


cdef inline uint32_t cmsg_read(msghdr *message, uint32_t length, uint8_t *source_address,
                               uint8_t *tos, bint *is_reassembled) noexcept nogil:
    """What came with a message: the size of the datagrams in it (`length` if it is a single
    one), the address of ours that it came to, its TOS or traffic class, and whether it came in
    fragments."""
    cdef cmsghdr *control = CMSG_FIRSTHDR(message)
    cdef in_pktinfo info4
    cdef int segment_len = 0, tclass
    memset(source_address, 0, SOURCE_ADDRESS_LEN)
    tos[0] = 0
    is_reassembled[0] = False
    while control != NULL:
        if control.cmsg_level == SOL_UDP and control.cmsg_type == UDP_GRO:
            memcpy(&segment_len, CMSG_DATA(control), sizeof(int))
        elif control.cmsg_level == IPPROTO_IPV6 and control.cmsg_type == IPV6_PKTINFO:
            memcpy(source_address, CMSG_DATA(control), SOURCE_ADDRESS_LEN)
        elif control.cmsg_level == IPPROTO_IP and control.cmsg_type == IP_PKTINFO:
            memcpy(&info4, CMSG_DATA(control), sizeof(in_pktinfo))
            memset(source_address + 10, 0xff, 2)
            memcpy(source_address + 12, &info4.ipi_spec_dst, 4)
        elif control.cmsg_level == IPPROTO_IP and control.cmsg_type == IP_TOS:
            tos[0] = CMSG_DATA(control)[0]
        elif control.cmsg_level == IPPROTO_IPV6 and control.cmsg_type == IPV6_TCLASS:
            memcpy(&tclass, CMSG_DATA(control), sizeof(int))
            tos[0] = <uint8_t>tclass
        elif control.cmsg_level == IPPROTO_IP and control.cmsg_type == IP_RECVFRAGSIZE \
                or control.cmsg_level == IPPROTO_IPV6 and control.cmsg_type == IPV6_RECVFRAGSIZE:
            is_reassembled[0] = True
        control = CMSG_NXTHDR(message, control)
    return <uint32_t>segment_len if segment_len > 0 else length


cdef inline void tos_write(uint8_t *control, const sockaddr_in6 *to, uint32_t tos) noexcept nogil:
    """Write the control message (TOS_LEN bytes) for a datagram's TOS or traffic class."""
    cdef cmsghdr *header = <cmsghdr *>control
    cdef int value = <int>tos
    if to.sin6_family == AF_INET or address_is_v4(<const uint8_t *>to + SIN6_ADDR_AT):
        header.cmsg_level = IPPROTO_IP
        header.cmsg_type = IP_TOS
    else:
        header.cmsg_level = IPPROTO_IPV6
        header.cmsg_type = IPV6_TCLASS
    header.cmsg_len = CMSG_LEN(sizeof(int))
    memcpy(CMSG_DATA(header), &value, sizeof(int))


cdef inline uint32_t pktinfo_write(uint8_t *control, const uint8_t *source_address,
                                   uint16_t family) noexcept nogil:
    """Write the control message for a source address so that it ends at PKTINFO_LEN; how long it
    is, 0 when the address is unknown and the kernel chooses."""
    cdef in_pktinfo info4
    cdef in6_pktinfo info6
    cdef cmsghdr *header = <cmsghdr *>control
    if not source_address_is_known(source_address):
        return 0
    if family == AF_INET:
        header = <cmsghdr *>(control + 8)           # CMSG_SPACE(12) is 32
        memset(&info4, 0, sizeof(in_pktinfo))
        memcpy(&info4.ipi_spec_dst, source_address + 12, 4)
        header.cmsg_level = IPPROTO_IP
        header.cmsg_type = IP_PKTINFO
        header.cmsg_len = CMSG_LEN(sizeof(in_pktinfo))
        memcpy(CMSG_DATA(header), &info4, sizeof(in_pktinfo))
        return PKTINFO_LEN - 8
    memset(&info6, 0, sizeof(in6_pktinfo))
    memcpy(&info6.ipi6_addr, source_address, SOURCE_ADDRESS_LEN)
    header.cmsg_level = IPPROTO_IPV6
    header.cmsg_type = IPV6_PKTINFO
    header.cmsg_len = CMSG_LEN(sizeof(in6_pktinfo))
    memcpy(CMSG_DATA(header), &info6, sizeof(in6_pktinfo))
    return PKTINFO_LEN
