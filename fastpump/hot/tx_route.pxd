# TX route: how a packet to a peer leaves now: on a lane, or by the session.
#
# A lane if one may be used (hot/lane.pxd says which); else the session, unless the peer's policy
# requires lanes. Without either, packets are staged (hot/staged.pxd). A route is chosen for each
# packet and is valid while the worker holds it: until the end of its loop's iteration.

from libc.stdint cimport uint32_t

from fastpump.hot.atomics cimport ACQUIRE, load32
from fastpump.hot.lane cimport lane_choose
from fastpump.hot.packet cimport Packet
from fastpump.hot.shm cimport POLICY_ANY, Keypair, Lane, PeerState
from fastpump.hot.worker cimport Worker

cdef struct TxRoute:
    # One of the two, or neither.
    const Lane *lane
    const Keypair *keypair


cdef inline bint tx_route_choose(Worker *worker, uint32_t index, const Packet *packet,
                                 TxRoute *route) noexcept nogil:
    """How a packet to the peer leaves; False if it cannot now."""
    cdef PeerState *peer = &worker.tables.peer_states[index]
    route.keypair = NULL
    route.lane = lane_choose(worker, index, peer, &packet.ip)
    if route.lane == NULL and worker.tables.peers[index].policy == POLICY_ANY:
        route.keypair = tx_route_session(worker, index)
    return route.lane != NULL or route.keypair != NULL


cdef inline const Keypair *tx_route_session(Worker *worker, uint32_t index) noexcept nogil:
    """The keypair to send with, or NULL: also when it is past REJECT_AFTER_TIME, or was retired
    just as a worker confirmed it (the supervisor puts that right)."""
    cdef uint32_t slot = load32(&worker.tables.peer_states[index].send_keypair, ACQUIRE)
    cdef const Keypair *keypair
    if slot >= worker.tables.header.keypair_capacity:
        return NULL
    keypair = &worker.tables.keypairs[slot]
    if not load32(&keypair.live, ACQUIRE) or keypair.peer != index \
            or worker.now_ns >= keypair.reject_at_ns:
        return NULL
    return keypair
