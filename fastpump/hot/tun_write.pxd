# Deliver: write what was coalesced to the interface, one writev for each packet or superpacket.
#
# Errors: EINVAL for a superpacket means that the kernel takes vnet headers but not this kind:
# it is switched off, and the packets are written singly. Others drop the packet, and are
# counted. What exceeds a rate limit waits first, or is dropped (hot/shaper.pxd).

from libc.stdint cimport uint32_t, uint8_t
from libc.string cimport memcpy, memset

from fastpump.hot.atomics cimport RELAXED, and32, load32
from fastpump.hot.events cimport event_push
from fastpump.hot.gro cimport Item, gro_reset, item_finish
from fastpump.hot.constants cimport VNET_HEADER_LEN
from fastpump.hot.linux cimport EAGAIN, EINVAL, EIO, ENOBUFS, ENOMEM, errno, iovec, writev
from fastpump.hot.shaper cimport shape_admit, shape_buffer, shape_is_used, shape_push
from fastpump.hot.shm cimport EVENT_OFFLOAD_OFF, LIMIT_RX, NONE
from fastpump.hot.verdict cimport (
    DROP_INTERFACE_DOWN, DROP_INTERFACE_ERROR, DROP_INTERFACE_FULL, DROP_RATE_LIMIT, FAILED_TUN_GSO,
    TUN_TX_BYTES, TUN_TX_PACKETS, TUN_TX_SUPERPACKETS, TUN_TX_WRITES,
)
from fastpump.hot.vnet cimport VnetHeader
from fastpump.hot.worker cimport ShapedPacket, Worker


cdef inline void write_failed(Worker *self, int error, uint32_t packets) noexcept nogil:
    if error == EIO:
        self.shared.verdicts[DROP_INTERFACE_DOWN] += packets
    elif error in (EAGAIN, ENOBUFS, ENOMEM):
        self.shared.verdicts[DROP_INTERFACE_FULL] += packets
    else:
        self.shared.verdicts[DROP_INTERFACE_ERROR] += packets


cdef inline int write_queue(Worker *self, const Item *item) noexcept nogil:
    """The queue that a flow is written to; see "Queues" in hot/ingress.pxd."""
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
    iov[1].iov_base = item.packet - item.link_len
    iov[1].iov_len = item.link_len + item.packet_len
    if not write_vector(self, fd, iov, 2, 1, <uint32_t>iov[1].iov_len):
        write_failed(self, errno, 1)
    while piece:
        iov[1].iov_base = self.gro.pieces[piece - 1].start - item.header_len - item.link_len
        iov[1].iov_len = self.gro.pieces[piece - 1].length + item.header_len + item.link_len
        if not write_vector(self, fd, iov, 2, 1, <uint32_t>iov[1].iov_len):
            write_failed(self, errno, 1)
        piece = self.gro.pieces[piece - 1].next


cdef inline void offload_failed(Worker *self, uint32_t offload) noexcept nogil:
    """Make no such superpackets any more."""
    self.shared.verdicts[FAILED_TUN_GSO] += 1
    if and32(&self.tables.header.offloads, ~offload, RELAXED) & offload:
        self.send.has_events |= event_push(self.shared, EVENT_OFFLOAD_OFF, NONE, offload, EINVAL,
                                           self.now_ns)


cdef inline bint write_limited(Worker *self, const Item *item, int count) noexcept nogil:
    """Whether the rate limits let an item, finished as write_iov, pass now; else it waits in
    a copy, or is dropped."""
    cdef ShapedPacket shaped
    cdef uint8_t *buffer
    cdef uint32_t bytes = item.link_len + item.total_len
    cdef int i
    shaped.length = VNET_HEADER_LEN + bytes
    bytes += (item.segment_count - 1) * (item.link_len + item.header_len)
    shaped.peer = item.peer
    shaped.way = LIMIT_RX
    shaped.packet_count = item.segment_count
    if not shape_admit(self, &shaped, bytes, shaped.length):
        self.shared.verdicts[DROP_RATE_LIMIT] += item.segment_count
        return False
    if shaped.slot == NONE:
        return True
    shaped.fd = write_queue(self, item)
    shaped.offload = item.offload if item.segment_count > 1 else 0
    buffer = shape_buffer(&self.shape, shaped.slot)
    for i in range(count):
        memcpy(buffer, self.write_iov[i].iov_base, self.write_iov[i].iov_len)
        buffer += self.write_iov[i].iov_len
    shape_push(self, &shaped)
    return False


cdef inline void write_release(Worker *self, const ShapedPacket *shaped) noexcept nogil:
    """What waited for a rate limit is due."""
    cdef iovec iov
    cdef int error
    iov.iov_base = shape_buffer(&self.shape, shaped.slot)
    iov.iov_len = shaped.length
    if write_vector(self, shaped.fd, &iov, 1, shaped.packet_count,
                    shaped.length - VNET_HEADER_LEN):
        self.shared.counters[TUN_TX_SUPERPACKETS] += shaped.packet_count > 1
        return
    error = errno
    if error == EINVAL and shaped.offload:
        offload_failed(self, shaped.offload)
    write_failed(self, error, shaped.packet_count)


cdef inline void write_item(Worker *self, Item *item) noexcept nogil:
    cdef int count = item_finish(&self.gro, item, self.write_iov)
    if shape_is_used(self) and not write_limited(self, item, count):
        return
    if write_vector(self, write_queue(self, item), self.write_iov, count, item.segment_count,
                    item.link_len + item.total_len):
        self.shared.counters[TUN_TX_SUPERPACKETS] += item.segment_count > 1
    elif errno == EINVAL and item.segment_count > 1:
        # The kernel takes vnet headers but not this kind of superpacket.
        offload_failed(self, item.offload)
        write_one_by_one(self, item)
    else:
        write_failed(self, errno, item.segment_count)


cdef inline void ingress_write(Worker *self) noexcept nogil:
    """Write everything that was coalesced, in order, and start anew."""
    cdef uint32_t i
    for i in range(self.gro.item_count):
        write_item(self, &self.gro.items[i])
    gro_reset(&self.gro, load32(&self.tables.header.offloads, RELAXED))
