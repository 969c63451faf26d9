# Write what was coalesced (hot/gro.pxd) to the interface, one writev a packet or superpacket:
#
#   flush     all items, in order
#   shape     what exceeds a rate limit waits in a copy, or is dropped (hot/shaper.pxd); it is
#             written by tun_write_release when it is due
#   queue     ours, or one chosen by the flow's hash ("Queues" in hot/ingress.pxd)
#   write     vnet header, packet, further payloads
#
# Errors: EINVAL for a superpacket means that the kernel takes vnet headers but not this kind:
# it is switched off, and the packets are written one by one. Others drop the packet, and are
# counted (EIO: the interface is down).

from libc.stdint cimport uint32_t, uint8_t
from libc.string cimport memcpy, memset

from fastpump.hot.atomics cimport ACQUIRE, RELAXED, and32, load32
from fastpump.hot.constants cimport VNET_HEADER_LEN
from fastpump.hot.events cimport event_push
from fastpump.hot.gro cimport Item, gro_reset, item_finish
from fastpump.hot.linux cimport EAGAIN, EINVAL, EIO, ENOBUFS, ENOMEM, errno, iovec, writev
from fastpump.hot.packet cimport Packet, packet_parse
from fastpump.hot.shaper cimport shaper_buffer, shaper_is_used, shaper_push, shaper_schedule
from fastpump.hot.shm cimport DIRECTION_RX, EVENT_OFFLOAD_OFF, NONE
from fastpump.hot.split cimport Splitter, splitter_init, splitter_next
from fastpump.hot.verdict cimport (
    DROP_INTERFACE_DOWN, DROP_INTERFACE_ERROR, DROP_INTERFACE_FULL, DROP_RATE_LIMIT,
    DROP_STAGED_TIMEOUT, FAILED_TUN_GSO, TUN_TX_BYTES, TUN_TX_PACKETS, TUN_TX_SUPERPACKETS,
    TUN_TX_WRITES,
)
from fastpump.hot.vnet cimport VnetHeader, vnet_set_partial
from fastpump.hot.worker cimport ShaperEntry, Worker, worker_count, worker_count_of


cdef inline void tun_write_flush(Worker *worker) noexcept nogil:
    """Write everything that was coalesced, in order, and start anew."""
    cdef uint32_t i
    for i in range(worker.gro.item_count):
        tun_write_item(worker, &worker.gro.items[i])
    gro_reset(&worker.gro, load32(&worker.tables.interface.offloads, RELAXED))


cdef inline void tun_write_item(Worker *worker, Item *item) noexcept nogil:
    cdef int count
    if item.is_record and not worker.gro.offloads & item.offload:
        tun_write_split(worker, item, shaper_is_used(worker))
        return
    count = item_finish(&worker.gro, item, worker.write_iov)
    if shaper_is_used(worker) and not tun_write_shape(worker, item, count):
        return
    if tun_write_vector(worker, tun_write_queue(worker, item), worker.write_iov, count,
                        item.segment_count, item.link_len + item.total_len):
        worker.shared.counters[TUN_TX_SUPERPACKETS] += item.segment_count > 1
    elif errno == EINVAL and item.segment_count > 1:
        # The kernel takes vnet headers but not this kind of superpacket.
        tun_write_disable_offload(worker, item.offload)
        if item.is_record:
            tun_write_split(worker, item, False)    # it was shaped
        else:
            tun_write_one_by_one(worker, item)
    else:
        tun_write_count_error(worker, item.peer, errno, item.segment_count)


cdef inline int tun_write_queue(Worker *worker, const Item *item) noexcept nogil:
    """The queue that a flow is written to; see "Queues" in hot/ingress.pxd."""
    if worker.spread_queues > 1 and item.flow_hash:
        return worker.tun_fds[(worker.number + item.flow_hash % worker.spread_queues)
                              % worker.queue_count]
    return worker.tun_fd


cdef inline bint tun_write_vector(Worker *worker, int fd, const iovec *iov, int count,
                                  uint32_t packets, uint32_t length) noexcept nogil:
    """Write a packet or superpacket, vnet header first; False with errno if it is refused."""
    if writev(fd, iov, count) < 0:
        return False
    worker.shared.counters[TUN_TX_WRITES] += 1
    worker.shared.counters[TUN_TX_PACKETS] += packets
    worker.shared.counters[TUN_TX_BYTES] += length
    return True


cdef inline bint tun_write_shape(Worker *worker, const Item *item, int count) noexcept nogil:
    """True if an item, finished as write_iov, is to be written now; else it waits in a copy for its
    rate limit, or was dropped."""
    cdef ShaperEntry shaped
    cdef uint8_t *buffer
    cdef uint32_t bytes = item.link_len + item.total_len
    cdef int i
    shaped.length = VNET_HEADER_LEN + bytes
    bytes += (item.segment_count - 1) * (item.link_len + item.header_len)
    shaped.peer = item.peer
    shaped.direction = DIRECTION_RX
    shaped.packet_count = item.segment_count
    if not shaper_schedule(worker, &shaped, bytes, shaped.length):
        worker_count_of(worker, item.peer, DROP_RATE_LIMIT, item.segment_count)
        return False
    if shaped.slot == NONE:
        return True
    shaped.fd = tun_write_queue(worker, item)
    shaped.offload = item.offload if item.segment_count > 1 else 0
    buffer = shaper_buffer(&worker.shaper, shaped.slot)
    for i in range(count):
        memcpy(buffer, worker.write_iov[i].iov_base, worker.write_iov[i].iov_len)
        buffer += worker.write_iov[i].iov_len
    shaper_push(worker, &shaped)
    return False


cdef inline void tun_write_release(Worker *worker, const ShaperEntry *shaped) noexcept nogil:
    """What waited for a rate limit is due."""
    cdef iovec iov
    cdef int error
    if load32(&worker.tables.peers[shaped.peer].purge_count, ACQUIRE) != shaped.purge_count:
        worker_count(worker, DROP_STAGED_TIMEOUT)       # the peer is gone
        return
    iov.iov_base = shaper_buffer(&worker.shaper, shaped.slot)
    iov.iov_len = shaped.length
    if tun_write_vector(worker, shaped.fd, &iov, 1, shaped.packet_count,
                        shaped.length - VNET_HEADER_LEN):
        worker.shared.counters[TUN_TX_SUPERPACKETS] += shaped.packet_count > 1
        return
    error = errno
    if error == EINVAL and shaped.offload:
        tun_write_disable_offload(worker, shaped.offload)
    tun_write_count_error(worker, shaped.peer, error, shaped.packet_count)


cdef inline void tun_write_count_error(Worker *worker, uint32_t peer, int error,
                                       uint32_t packets) noexcept nogil:
    """Packets from a peer are lost here."""
    if error == EIO:
        worker_count_of(worker, peer, DROP_INTERFACE_DOWN, packets)
    elif error in (EAGAIN, ENOBUFS, ENOMEM):
        worker_count_of(worker, peer, DROP_INTERFACE_FULL, packets)
    else:
        worker_count_of(worker, peer, DROP_INTERFACE_ERROR, packets)


cdef inline void tun_write_disable_offload(Worker *worker, uint32_t offload) noexcept nogil:
    """Make no such superpackets any more."""
    worker.shared.verdicts[FAILED_TUN_GSO] += 1
    if and32(&worker.tables.interface.offloads, ~offload, RELAXED) & offload:
        worker.send.has_events |= event_push(worker.shared, EVENT_OFFLOAD_OFF, NONE, offload,
                                             EINVAL, worker.now_ns)


cdef inline void tun_write_one_by_one(Worker *worker, Item *item) noexcept nogil:
    """Write a superpacket's packets singly: the kernel refused the whole. Those behind
    the first still have their own headers in front of their payloads."""
    cdef uint32_t piece = item.first_piece
    cdef int fd = tun_write_queue(worker, item)
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
    if not tun_write_vector(worker, fd, iov, 2, 1, <uint32_t>iov[1].iov_len):
        tun_write_count_error(worker, item.peer, errno, 1)
    while piece:
        iov[1].iov_base = worker.gro.pieces[piece - 1].start - item.header_len - item.link_len
        iov[1].iov_len = worker.gro.pieces[piece - 1].length + item.header_len + item.link_len
        if not tun_write_vector(worker, fd, iov, 2, 1, <uint32_t>iov[1].iov_len):
            tun_write_count_error(worker, item.peer, errno, 1)
        piece = worker.gro.pieces[piece - 1].next


cdef inline void tun_write_split(Worker *worker, const Item *item,
                                 bint may_shape) noexcept nogil:
    """Write the packets of a record singly: the kernel takes no such superpackets."""
    cdef Packet packet
    cdef Splitter splitter
    cdef VnetHeader vnet
    cdef Item single
    cdef uint8_t *segment
    cdef uint32_t length
    cdef iovec *iov = worker.write_iov
    if not packet_parse(&packet, worker.is_tap, item.packet - item.link_len,
                        item.link_len + item.packet_len) \
            or not splitter_init(&splitter, &item.vnet, &packet, True):
        return                      # cannot be: it was checked (hot/record.pxd)
    memset(&vnet, 0, sizeof(VnetHeader))
    vnet_set_partial(&vnet, &packet)
    single = item[0]
    single.segment_count = 1
    iov[0].iov_base = &vnet
    iov[0].iov_len = VNET_HEADER_LEN
    length = splitter_next(&splitter, &segment)
    while length:
        iov[1].iov_base = segment
        iov[1].iov_len = length
        single.total_len = length - item.link_len
        if (not may_shape or tun_write_shape(worker, &single, 2)) and not tun_write_vector(
                worker, tun_write_queue(worker, item), iov, 2, 1, length):
            tun_write_count_error(worker, item.peer, errno, 1)
        length = splitter_next(&splitter, &segment)
