# Reading the interface: one turn of tun_to_udp.

from libc.stdint cimport uint32_t, uint8_t

from fastpump.hot.egress cimport egress_flush, egress_packet
from fastpump.hot.constants cimport (
    BUFFER_STRIDE, READ_HEADROOM, READ_TAILROOM, TUN_READ_BUDGET, TUN_READ_BYTES, VNET_HEADER_LEN,
)
from fastpump.hot.linux cimport EAGAIN, EBADFD, EINTR, VIRTIO_NET_HDR_GSO_NONE, errno, read
from fastpump.hot.switch cimport switch_send
from fastpump.hot.verdict cimport (
    FAILED_INTERFACE_READ, PASS, TUN_RX_BYTES, TUN_RX_PACKETS, TUN_RX_SUPERPACKETS, Verdict,
)
from fastpump.hot.vnet cimport VnetHeader, vnet_load
from fastpump.hot.worker cimport Worker


cdef inline Verdict interface_take(Worker *self, uint8_t *start, uint32_t length) noexcept nogil:
    """What was read, a packet or a frame; its vnet header stands before it."""
    cdef VnetHeader vnet
    vnet_load(&vnet, start - VNET_HEADER_LEN)
    self.shared.counters[TUN_RX_PACKETS] += 1
    self.shared.counters[TUN_RX_BYTES] += length
    self.shared.counters[TUN_RX_SUPERPACKETS] += vnet.gso_type != VIRTIO_NET_HDR_GSO_NONE
    if self.is_tap:
        return switch_send(self, &vnet, start, length)
    return egress_packet(self, &vnet, start, length)


cdef inline bint tun_to_udp(Worker *self) noexcept nogil:
    """One turn; True if the interface may hold more."""
    cdef uint8_t *start = self.read_buffer + READ_HEADROOM
    cdef uint32_t reads = 0, bytes_read = 0
    cdef bint has_more = True
    cdef Verdict verdict
    cdef long length
    self.flooded_bytes = 0
    while reads < TUN_READ_BUDGET and bytes_read + self.flooded_bytes < TUN_READ_BYTES:
        length = read(self.tun_fd, start - VNET_HEADER_LEN,
                      BUFFER_STRIDE - READ_HEADROOM - READ_TAILROOM)
        if length < VNET_HEADER_LEN:
            if length < 0 and errno not in (EAGAIN, EINTR, EBADFD):
                # A packet that a vnet header cannot describe, say: the kernel dropped it.
                self.shared.verdicts[FAILED_INTERFACE_READ] += 1
                reads += 1
                continue
            has_more = False
            # EBADFD: the interface was deleted, or the queue taken off it.
            self.interface_gone = length < 0 and errno == EBADFD
            break
        reads += 1
        bytes_read += <uint32_t>length
        verdict = interface_take(self, start, <uint32_t>length - VNET_HEADER_LEN)
        if verdict != PASS:
            self.shared.verdicts[verdict] += 1
    egress_flush(self)
    return has_more
