# TCP segments that are sent again and again: the sign of a path that loses what is large, and says
# nothing.
#
# Where a peer's path MTU is not known (WireGuard peers cannot be probed), the large TCP segments to
# it are watched: of RESENT_FLOWS flows the last sequence number, and how often it was sent again.
# RESENT_TIMES in a second or more make an event, resent; the next one is sent when the supervisor
# lets it. If the flow goes on after that, with data, its segment was acked, which is another event,
# resent_acked: whether it had been sent in smaller pieces before decides what was wrong. What
# follows from them: device/black_holes.py.
#
# It costs a comparison where the path MTU is known; else each large packet or superpacket pays for
# the hash of its flow. Flows that collide hide one another, which delays an event; so do peers
# whose reports share a place.

from libc.stdint cimport int32_t, uint32_t, uint8_t

from fastpump.hot.bytes cimport load_be32
from fastpump.hot.constants cimport RESENT_FLOWS, RESENT_REPORTS, SECOND_NS, SURELY_FITS
from fastpump.hot.events cimport event_push_once
from fastpump.hot.flow cimport flow_hash
from fastpump.hot.packet cimport Packet
from fastpump.hot.shm cimport (
    EVENT_RESENT, EVENT_RESENT_ACKED, REPORTED_RESENT, REPORTED_RESENT_ACKED, UNPROBED,
)
from fastpump.hot.vnet cimport VnetHeader, vnet_segment_len
from fastpump.hot.worker cimport Resent, Worker

cdef enum:
    RESENT_TIMES = 3
    RESENT_STALE_S = 30             # a report of so long ago is about another trial
    TCP_RST = 0x04


cdef inline void resent_watch(Worker *worker, uint32_t peer, const VnetHeader *vnet,
                              const Packet *packet) noexcept nogil:
    """TCP leaves to a peer whose path MTU is not known. The packet has a whole TCP header."""
    cdef uint32_t flow, sequence
    cdef Resent *seen
    resent_check(worker, peer, UNPROBED, vnet, packet)
    if vnet_segment_len(vnet, packet) - packet.link_len <= SURELY_FITS:
        return
    flow = flow_hash(&packet.ip)
    sequence = tcp_sequence(packet)
    seen = &worker.resent[flow % RESENT_FLOWS]
    if seen.flow != flow or seen.peer != peer or sequence != seen.sequence:
        # One that lies behind is sent again for the first time: TCP goes back.
        seen.times = seen.flow == flow and seen.peer == peer \
            and <int32_t>(sequence - seen.sequence) < 0
        seen.peer, seen.flow, seen.sequence = peer, flow, sequence
        seen.since_ns = worker.now_ns
        return
    seen.times += 1
    if seen.times >= RESENT_TIMES and worker.now_ns >= seen.since_ns + SECOND_NS \
            and event_push_once(worker.shared, &worker.tables.peer_states[peer].reported,
                                REPORTED_RESENT, EVENT_RESENT, peer, 0, worker.now_ns):
        worker.send.has_events = True
        worker.resent_reports[peer % RESENT_REPORTS] = seen[0]
        worker.resent_reports[peer % RESENT_REPORTS].since_ns = worker.now_ns
        worker.resent_reports[peer % RESENT_REPORTS].times = 0


cdef inline void resent_check(Worker *worker, uint32_t peer, uint32_t mtu, const VnetHeader *vnet,
                              const Packet *packet) noexcept nogil:
    """Whether the flow that was reported of a peer goes on. `times`: that its segment was sent in
    pieces that fit."""
    cdef Resent *report = &worker.resent_reports[peer % RESENT_REPORTS]
    cdef const uint8_t *tcp = packet.ip.start + packet.ip.header_len
    cdef uint32_t length
    cdef int32_t ahead
    if report.flow == 0 or report.peer != peer or report.flow != flow_hash(&packet.ip):
        return
    if worker.now_ns > report.since_ns + RESENT_STALE_S * SECOND_NS:
        report.flow = 0
        return
    # A bare ACK or RST has the number of what would come next, whatever was acked.
    if tcp[13] & TCP_RST or packet.ip.header_len + <uint32_t>(tcp[12] >> 4) * 4 \
            >= packet.ip.total_len:
        return
    length = vnet_segment_len(vnet, packet) - packet.link_len
    ahead = <int32_t>(tcp_sequence(packet) - report.sequence)
    if ahead == 0 and mtu != UNPROBED and length <= mtu:
        report.times = 1
    # What is small may be sent while the large one is not acked yet.
    if ahead > 0 and (report.times or length > SURELY_FITS) and event_push_once(
            worker.shared, &worker.tables.peer_states[peer].reported, REPORTED_RESENT_ACKED,
            EVENT_RESENT_ACKED, peer, report.times, worker.now_ns):
        worker.send.has_events = True
        report.flow = 0


cdef inline uint32_t tcp_sequence(const Packet *packet) noexcept nogil:
    return load_be32(packet.ip.start + packet.ip.header_len + 4)
