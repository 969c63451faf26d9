# Deliver: write what was coalesced to the interface, one writev for each packet or superpacket.
#
# Errors: EINVAL for a superpacket means that the kernel takes vnet headers but not this kind:
# it is switched off, and the packets are written singly. Others drop the packet, and are
# counted.

from libc.stdint cimport uint32_t
from libc.string cimport memcpy, memset

from fastpump.hot.atomics cimport RELAXED, and32, load32
from fastpump.hot.events cimport event_push
from fastpump.hot.gro cimport Item, gro_reset, item_finish
from fastpump.hot.limits cimport VNET_HEADER_LEN
from fastpump.hot.linux cimport EAGAIN, EINVAL, EIO, ENOBUFS, ENOMEM, errno, iovec, writev
from fastpump.hot.shm cimport EVENT_OFFLOAD_OFF, NONE
from fastpump.hot.verdict cimport (
    DROP_INTERFACE_DOWN, DROP_INTERFACE_ERROR, DROP_INTERFACE_FULL, FAILED_TUN_GSO, TUN_TX_BYTES,
    TUN_TX_PACKETS, TUN_TX_SUPERPACKETS, TUN_TX_WRITES,
)
from fastpump.hot.vnet cimport VnetHeader
from fastpump.hot.worker cimport Worker


cdef inline void write_failed(Worker *self, int error, uint32_t packets) noexcept nogil:
    if error == EIO:
        self.shared.verdicts[DROP_INTERFACE_DOWN] += packets
    elif error in (EAGAIN, ENOBUFS, ENOMEM):
        self.shared.verdicts[DROP_INTERFACE_FULL] += packets
    else:
        self.shared.verdicts[DROP_INTERFACE_ERROR] += packets


cdef inline int write_queue(Worker *self, const Item *item) noexcept nogil:
    """The queue that a flow is written to; see "Queues" at the head of the file."""
    if self.spread_queues > 1 and item.flow_hash:
        return self.tun_fds[(self.number + item.flow_hash % self.spread_queues)
                            % self.queue_count]
    return self.tun_fd


cdef inline bint write_vector(Worker *self, int fd, const iovec *iov, int count,
                              uint32_t packets, uint32_t length) noexcept nogil:
    """Write a packet or superpacket, vnet header first; False with errno if it is refused."""
    if writev(fd, iov, count) < 0:
        return False
    self.shared.counters[TUN_TX_WRITES] += 1
    self.shared.counters[TUN_TX_PACKETS] += packets
    self.shared.counters[TUN_TX_BYTES] += length
    return True


cdef inline void write_one_by_one(Worker *self, Item *item) noexcept nogil:
    """Write a superpacket's packets singly: the kernel refused the whole. Those behind
    the first still have their own headers in front of their payloads."""
    cdef uint32_t piece = item.first_piece
    cdef int fd = write_queue(self, item)
    cdef iovec iov[2]
    if item.is_partial:
        item.vnet.gso_type = 0
        item.vnet.gso_size = item.vnet.hdr_len = 0
    else:
        memset(&item.vnet, 0, sizeof(VnetHeader))
    memcpy(item.packet, item.saved_header, item.header_len)
    iov[0].iov_base = &item.vnet
    iov[0].iov_len = VNET_HEADER_LEN
    iov[1].iov_base = item.packet
    iov[1].iov_len = item.packet_len
    if not write_vector(self, fd, iov, 2, 1, item.packet_len):
        write_failed(self, errno, 1)
    while piece:
        iov[1].iov_base = self.gro.pieces[piece - 1].start - item.header_len
        iov[1].iov_len = self.gro.pieces[piece - 1].length + item.header_len
        if not write_vector(self, fd, iov, 2, 1, <uint32_t>iov[1].iov_len):
            write_failed(self, errno, 1)
        piece = self.gro.pieces[piece - 1].next


cdef inline void write_item(Worker *self, Item *item) noexcept nogil:
    cdef int count = item_finish(&self.gro, item, self.write_iov)
    if write_vector(self, write_queue(self, item), self.write_iov, count, item.segment_count,
                    item.total_len):
        self.shared.counters[TUN_TX_SUPERPACKETS] += item.segment_count > 1
    elif errno == EINVAL and item.segment_count > 1:
        # The kernel takes vnet headers but not this kind of superpacket.
        self.shared.verdicts[FAILED_TUN_GSO] += 1
        if and32(&self.tables.header.offloads, ~item.offload, RELAXED) & item.offload:
            self.send.has_events |= event_push(self.shared, EVENT_OFFLOAD_OFF, NONE,
                                               item.offload, EINVAL, self.now_ns)
        write_one_by_one(self, item)
    else:
        write_failed(self, errno, item.segment_count)


cdef inline void ingress_write(Worker *self) noexcept nogil:
    """Write everything that was coalesced, in order, and start anew."""
    cdef uint32_t i
    for i in range(self.gro.item_count):
        write_item(self, &self.gro.items[i])
    gro_reset(&self.gro, load32(&self.tables.header.offloads, RELAXED))
