# The switch: on a TAP, which frame goes where. Its ports: our own interface, the local port, and
# each peer.
#
# From the interface (switch_from_interface):
#   learn       the source is at the local port (hot/fdb.pxd)
#   forward     to the peer where the destination is; not at all if it is at the local port
#   flood       group addresses and unknown destinations: to all peers, within the storm limit.
#               Also the first frame of a host that moved here from a peer, so that all sides learn
#               it; not many of those, for a peer can make a host seem to move to and fro
# From a peer (switch_from_peer):
#   storm, copies   of flooded frames (hot/token_bucket.pxd, hot/duplicates.pxd)
#   learn       the source is at that peer, unless it is locked to another port
#   relay       if this side is one: to the peer that has the destination, or flooded, to all
#               but the one it came from. Else never: what came from a peer goes to no peer
#   deliver     to the interface, unless it was relayed to its only destination
#
# Without loops, and without copies: a flooded frame carries a random flood id, by which, together
# with all else that is in it, it passes each side once, by however many routes it comes (the frames
# of a superpacket have ids in a row; hot/duplicates.pxd); any relayed frame carries a count of hops
# and its originator, where it never comes back. Of several routes to an address, the one of the
# fewest hops among the copies counts.
#
# A frame for several peers is copied for each: to split and seal it destroys it. An iteration of
# the interface counts those copies. Accepted limit: an iteration of a socket does not, so a relay
# with very many peers responds slowly while it is flooded; the storm limit bounds it.

from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy

from fastpump.hot.atomics cimport ACQUIRE, load32, load64
from fastpump.hot.constants cimport (
    FLOOD_ID_BITS, FLOOD_ID_MASK, RANDOM_WORDS, READ_HEADROOM, RELAY_MAX_FRAMES, RELAY_MAX_HOPS,
    VNET_HEADER_LEN,
)
from fastpump.hot.duplicates cimport (
    COPY_FIRST, COPY_NEARER, Copy, duplicates_hash, duplicates_test_and_set,
)
from fastpump.hot.egress cimport egress_shape
from fastpump.hot.fdb cimport (
    LEARN_FULL, LEARN_LOCKED, LEARN_MOVED, LEARN_NEW, MAC_LOCAL_PORT, MAC_UNKNOWN, Learned,
    MacEntry, mac_find, mac_hops, mac_is_locked, mac_key, mac_learn, mac_lookup, mac_owner,
)
from fastpump.hot.linux cimport getrandom
from fastpump.hot.packet cimport (
    Packet, frame_destination, frame_is_for_group, frame_source, packet_parse_frame,
)
from fastpump.hot.shm cimport NONE, Tables
from fastpump.hot.token_bucket cimport bucket_try
from fastpump.hot.tx_route cimport TxRoute, tx_route_choose
from fastpump.hot.verdict cimport (
    DROP_DUPLICATE_FRAME, DROP_HOP_LIMIT, DROP_LOCAL_FRAME, DROP_MAC_LOCKED, DROP_MALFORMED_PACKET,
    DROP_NO_PEER, DROP_STORM, FAILED_MAC_LIMIT, FRAMES_FLOODED, FRAMES_RELAYED, MACS_LEARNED,
    MACS_MOVED, PASS, Verdict,
)
from fastpump.hot.vnet cimport VnetHeader, vnet_segment_count
from fastpump.hot.worker cimport Relay, Worker, peer_verdict, worker_count


cdef inline Verdict switch_from_interface(Worker *worker, const VnetHeader *vnet, uint8_t *start,
                                          uint32_t length) noexcept nogil:
    """A frame from the interface."""
    cdef const Tables *tables = &worker.tables
    cdef Packet frame
    cdef Relay relay
    cdef Learned learned
    cdef uint32_t owner, frame_count, bytes
    if not packet_parse_frame(&frame, start, length):
        return DROP_MALFORMED_PACKET
    learned = switch_learn(worker, mac_key(frame_source(&frame), frame.vlan), MAC_LOCAL_PORT, 0)
    if learned == LEARN_LOCKED:
        return DROP_MAC_LOCKED
    owner = switch_owner(worker, &frame)
    if owner != MAC_UNKNOWN and (learned != LEARN_MOVED or vnet.gso_type != 0 or not (
            bucket_try(&tables.interface.moves, 1, worker.now_ns)
            and bucket_try(&tables.interface.storm, 1, worker.now_ns))):
        if owner == MAC_LOCAL_PORT:
            return DROP_LOCAL_FRAME
        relay.word = 0
        return egress_shape(worker, owner, vnet, &frame, &relay)
    if tables.header.peers_end == 0:
        return DROP_NO_PEER
    frame_count = vnet_segment_count(vnet, &frame, &bytes)
    if frame_count > RELAY_MAX_FRAMES:
        return DROP_MALFORMED_PACKET        # smaller segments than TCP or UDP may have
    if owner == MAC_UNKNOWN and not bucket_try(
            &tables.interface.storm, frame_count, worker.now_ns):
        return DROP_STORM
    worker.shared.counters[FRAMES_FLOODED] += 1
    relay.word = flood_id_new(worker)
    relay.originator = tables.header.originator_id
    switch_flood(worker, vnet, &frame, &relay, NONE)
    return PASS


cdef inline Verdict switch_from_peer(Worker *worker, uint32_t peer, const VnetHeader *vnet,
                                     const Packet *frame, const Relay *relay,
                                     bint *is_for_us) noexcept nogil:
    """A peer's frame; `is_for_us`: it is to be delivered to the interface."""
    cdef uint64_t key = mac_key(frame_source(frame), frame.vlan)
    cdef bint is_first = True
    cdef Verdict verdict = relay_check(worker, peer, key, frame, relay, &is_first)
    is_for_us[0] = False
    if verdict != PASS:
        return verdict
    if switch_learn(worker, key, peer, <uint32_t>(relay.word >> FLOOD_ID_BITS)) == LEARN_LOCKED:
        return DROP_MAC_LOCKED
    is_for_us[0] = is_first
    if worker.tables.header.is_relay:
        return switch_relay(worker, peer, vnet, frame, relay, is_for_us)
    return PASS


cdef inline Verdict relay_check(Worker *worker, uint32_t peer, uint64_t key, const Packet *frame,
                                const Relay *relay, bint *is_first) noexcept nogil:
    """A peer's frame passes if it was not relayed too often, is not our own, exceeds no storm limit
    and, if it is flooded, is not locked to another port (or that copy would stop the true one), and
    has not come before. At a relay it passes if it came by more hops before: not `is_first`."""
    cdef uint64_t flood_id = relay.word & FLOOD_ID_MASK
    cdef uint32_t hops = <uint32_t>(relay.word >> FLOOD_ID_BITS)
    cdef MacEntry *entry
    cdef uint64_t value
    cdef Copy copy
    if hops > RELAY_MAX_HOPS:
        return DROP_HOP_LIMIT
    if relay.word and relay.originator == worker.tables.header.originator_id:
        return DROP_DUPLICATE_FRAME
    if (flood_id or frame_is_for_group(frame)) and not bucket_try(
            &worker.tables.peer_states[peer].storm, 1, worker.now_ns):
        return DROP_STORM
    if flood_id == 0:
        return PASS
    if mac_is_locked(&worker.tables, key, peer):
        return DROP_MAC_LOCKED
    copy = duplicates_test_and_set(
        &worker.tables, duplicates_hash(&worker.tables, frame, relay), hops, worker.now_ns)
    is_first[0] = copy == COPY_FIRST
    if is_first[0] or (copy == COPY_NEARER and worker.tables.header.is_relay):
        return PASS
    entry = mac_find(&worker.tables, key)
    if entry != NULL:
        value = load64(&entry.value, ACQUIRE)
        if mac_owner(value) != MAC_LOCAL_PORT and hops < mac_hops(value):
            switch_learn(worker, key, peer, hops)  # fewer hops than before
    return DROP_DUPLICATE_FRAME


cdef inline Verdict switch_relay(Worker *worker, uint32_t peer, const VnetHeader *vnet,
                                 const Packet *frame, const Relay *came,
                                 bint *is_for_us) noexcept nogil:
    """Pass a peer's frame on to others."""
    cdef uint64_t flood_id = came.word & FLOOD_ID_MASK
    cdef uint64_t hop = (came.word >> FLOOD_ID_BITS) + 1
    cdef uint32_t owner = MAC_UNKNOWN if flood_id else switch_owner(worker, frame)
    cdef Relay relay
    is_for_us[0] = is_for_us[0] and owner in (MAC_LOCAL_PORT, MAC_UNKNOWN)
    if owner == MAC_LOCAL_PORT:
        return PASS
    if owner == peer:
        return DROP_LOCAL_FRAME
    if hop > RELAY_MAX_HOPS:
        return PASS if is_for_us[0] else DROP_HOP_LIMIT
    relay.originator = came.originator if came.word else worker.tables.peers[peer].originator_id
    worker.shared.counters[FRAMES_RELAYED] += 1
    if owner != MAC_UNKNOWN:
        relay.word = hop << FLOOD_ID_BITS
        switch_copy(worker, owner, vnet, frame, &relay)
        return PASS
    if flood_id == 0:
        # A group's frame without a flood id was counted in relay_check.
        if not frame_is_for_group(frame) and not bucket_try(
                &worker.tables.peer_states[peer].storm, 1, worker.now_ns):
            is_for_us[0] = False
            return DROP_STORM
        flood_id = relay.word = flood_id_new(worker)
        duplicates_test_and_set(    # should it come back
            &worker.tables, duplicates_hash(&worker.tables, frame, &relay), 0, worker.now_ns)
    relay.word = flood_id | hop << FLOOD_ID_BITS
    switch_flood(worker, vnet, frame, &relay, peer)
    return PASS


cdef inline Learned switch_learn(Worker *worker, uint64_t key, uint32_t owner,
                                 uint32_t hops) noexcept nogil:
    cdef Learned learned = mac_learn(&worker.tables, key, owner, hops, worker.now_s, worker.number)
    if learned == LEARN_NEW:
        worker.shared.counters[MACS_LEARNED] += 1
    elif learned == LEARN_MOVED:
        worker.shared.counters[MACS_MOVED] += 1
    elif learned == LEARN_FULL:
        worker_count(worker, FAILED_MAC_LIMIT if owner == MAC_LOCAL_PORT else peer_verdict(
            worker, owner, FAILED_MAC_LIMIT))
    return learned


cdef inline uint32_t switch_owner(const Worker *worker, const Packet *frame) noexcept nogil:
    """Where the destination is: at a live peer, MAC_LOCAL_PORT or MAC_UNKNOWN."""
    cdef uint32_t owner
    if frame_is_for_group(frame):
        return MAC_UNKNOWN
    owner = mac_lookup(&worker.tables, mac_key(frame_destination(frame), frame.vlan), worker.now_s)
    if owner != MAC_UNKNOWN and owner != MAC_LOCAL_PORT and not load32(
            &worker.tables.peers[owner].live, ACQUIRE):
        return MAC_UNKNOWN
    return owner


cdef inline void switch_flood(Worker *worker, const VnetHeader *vnet, const Packet *frame,
                              const Relay *relay, uint32_t except_peer) noexcept nogil:
    """A copy to all peers that can be reached now or may soon be, except one."""
    cdef uint32_t index, end = load32(&worker.tables.header.peers_end, ACQUIRE)
    cdef TxRoute route
    for index in range(end):
        if index != except_peer and load32(&worker.tables.peers[index].live, ACQUIRE) and (
                worker.tables.peer_states[index].endpoint.length != 0
                or tx_route_choose(worker, index, frame, &route)):
            switch_copy(worker, index, vnet, frame, relay)


cdef inline void switch_copy(Worker *worker, uint32_t index, const VnetHeader *vnet,
                             const Packet *frame, const Relay *relay) noexcept nogil:
    """A copy to a peer."""
    cdef uint8_t *copy = worker.frame_buffer + READ_HEADROOM
    cdef Packet packet
    memcpy(copy - VNET_HEADER_LEN, vnet, VNET_HEADER_LEN)
    memcpy(copy, frame.start, frame.length)
    packet_parse_frame(&packet, copy, frame.length)
    worker_count(worker, egress_shape(worker, index, vnet, &packet, relay))
    worker.flooded_bytes += frame.length


cdef inline uint64_t flood_id_new(Worker *worker) noexcept nogil:
    """For a frame that is flooded from here; the numbers behind it are for the others of a
    superpacket. Random, so that nobody can send a copy before the frame has come."""
    cdef uint64_t flood_id = 0
    while flood_id == 0:
        if worker.random_left == 0:
            if getrandom(worker.random, sizeof(worker.random), 0) != <long>sizeof(worker.random):
                worker.random[0] = worker.now_ns << 12      # cannot be, after boot
            worker.random_left = RANDOM_WORDS
        worker.random_left -= 1
        flood_id = worker.random[worker.random_left] & FLOOD_ID_MASK & ~<uint64_t>RELAY_MAX_FRAMES
    return flood_id
