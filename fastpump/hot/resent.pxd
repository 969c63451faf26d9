# TCP segments that are sent again and again: the sign of a path that loses what is large, and says
# nothing.
#
# Where a peer's path MTU is not known (WireGuard peers cannot be probed), the large TCP segments to
# it are watched: of RESENT_FLOWS flows the last sequence number, and how often it was sent again.
# RESENT_TIMES and RESENT_NS make an event, resent; the next one is sent when the supervisor lets
# it. If the flow goes on after that (its segment was acked, so it arrived in the end), that is
# another, resent_acked. What follows from them: device/black_holes.py.
#
# It costs a comparison where the path MTU is known; else each large packet or superpacket pays for
# the hash of its flow. Flows that collide hide one another, which delays an event.

from libc.stdint cimport int32_t, uint32_t

from fastpump.hot.bytes cimport load_be32
from fastpump.hot.constants cimport RESENT_FLOWS, SECOND_NS, SURELY_FITS
from fastpump.hot.events cimport event_push_once
from fastpump.hot.flow cimport flow_hash
from fastpump.hot.packet cimport Packet
from fastpump.hot.shm cimport (
    EVENT_RESENT, EVENT_RESENT_ACKED, REPORTED_RESENT, REPORTED_RESENT_ACKED, PeerState,
)
from fastpump.hot.vnet cimport VnetHeader, vnet_segment_len
from fastpump.hot.worker cimport Resent, Worker

cdef enum:
    RESENT_TIMES = 3


cdef inline void resent_watch(Worker *worker, uint32_t peer, const VnetHeader *vnet,
                              const Packet *packet) noexcept nogil:
    """TCP leaves to a peer whose path MTU is not known. The packet has a whole TCP header."""
    cdef uint32_t flow, sequence
    cdef Resent *seen
    if worker.resent_reported.flow:
        resent_check(worker, peer, packet)
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
        worker.resent_reported = seen[0]
        worker.send.has_events = True


cdef inline void resent_check(Worker *worker, uint32_t peer, const Packet *packet) noexcept nogil:
    """Whether the flow that was reported goes on."""
    cdef Resent *reported = &worker.resent_reported
    if peer != reported.peer or flow_hash(&packet.ip) != reported.flow \
            or <int32_t>(tcp_sequence(packet) - reported.sequence) <= 0:
        return
    if event_push_once(worker.shared, &worker.tables.peer_states[peer].reported,
                       REPORTED_RESENT_ACKED, EVENT_RESENT_ACKED, peer, 0, worker.now_ns):
        worker.send.has_events = True
    reported.flow = 0


cdef inline uint32_t tcp_sequence(const Packet *packet) noexcept nogil:
    return load_be32(packet.ip.start + packet.ip.header_len + 4)
