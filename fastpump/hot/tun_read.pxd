# tun_to_udp: read the interface, in a bounded iteration, and give each packet to the stages of
# hot/egress.pxd (a TAP's frames to hot/switch.pxd first).
#
# A read gives one packet, frame or superpacket, vnet header first, into one buffer: the packet is
# used up (sealed, staged, copied) before the next read. TUN_READ_BUDGET and TUN_READ_BYTES bound an
# iteration; copies of flooded frames count as bytes read. Whatever was sealed is sent at its end.
#
# Errors: EBADFD means that the interface was deleted, or the queue taken off it: the loop ends.
# Other errors concern one packet, which the kernel has dropped.

from libc.stdint cimport uint32_t, uint8_t

from fastpump.hot.constants cimport (
    BUFFER_STRIDE, READ_HEADROOM, READ_TAILROOM, TUN_READ_BUDGET, TUN_READ_BYTES, VNET_HEADER_LEN,
)
from fastpump.hot.egress cimport egress_flush, egress_packet
from fastpump.hot.linux cimport EAGAIN, EBADFD, EINTR, VIRTIO_NET_HDR_GSO_NONE, errno, read
from fastpump.hot.switch cimport switch_from_interface
from fastpump.hot.verdict cimport (
    FAILED_INTERFACE_READ, TUN_RX_BYTES, TUN_RX_PACKETS, TUN_RX_SUPERPACKETS, Verdict,
)
from fastpump.hot.vnet cimport VnetHeader, vnet_load
from fastpump.hot.worker cimport Worker, worker_count


cdef inline bint tun_to_udp(Worker *worker) noexcept nogil:
    """One iteration; True if the interface may hold more."""
    cdef uint8_t *start = worker.read_buffer + READ_HEADROOM
    cdef uint32_t reads = 0, bytes_read = 0
    cdef bint has_more = True
    cdef long length
    worker.flooded_bytes = 0
    while reads < TUN_READ_BUDGET and bytes_read + worker.flooded_bytes < TUN_READ_BYTES:
        length = read(worker.tun_fd, start - VNET_HEADER_LEN,
                      BUFFER_STRIDE - READ_HEADROOM - READ_TAILROOM)
        if length < VNET_HEADER_LEN:
            if length < 0 and errno not in (EAGAIN, EINTR, EBADFD):
                # For example a packet that a vnet header cannot describe.
                worker.shared.verdicts[FAILED_INTERFACE_READ] += 1
                reads += 1
                continue
            has_more = False
            worker.is_interface_gone = length < 0 and errno == EBADFD
            break
        reads += 1
        bytes_read += <uint32_t>length
        worker_count(worker, tun_read_packet(worker, start, <uint32_t>length - VNET_HEADER_LEN))
    egress_flush(worker)
    return has_more


cdef inline Verdict tun_read_packet(Worker *worker, uint8_t *start, uint32_t length) noexcept nogil:
    """What was read, a packet or a frame; its vnet header stands before it."""
    cdef VnetHeader vnet
    vnet_load(&vnet, start - VNET_HEADER_LEN)
    worker.shared.counters[TUN_RX_PACKETS] += 1
    worker.shared.counters[TUN_RX_BYTES] += length
    worker.shared.counters[TUN_RX_SUPERPACKETS] += vnet.gso_type != VIRTIO_NET_HDR_GSO_NONE
    if worker.is_tap:
        return switch_from_interface(worker, &vnet, start, length)
    return egress_packet(worker, &vnet, start, length)
