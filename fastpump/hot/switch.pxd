# The switch: on a TAP, which frame goes where.
#
# From the interface (switch_from_interface):
#   learn       the source is on our side (hot/fdb.pxd)
#   forward     to the peer on whose side the destination is; to nobody if it is on ours
#   flood       what has no owner, and groups: to all peers, within the storm limit. Also the
#               first frame of a host that came over from a peer, so that all sides learn it;
#               not many of those, for a peer can make a host seem to move to and fro
# From a peer (switch_from_peer):
#   storm, copies   of flooded frames (hot/token_bucket.pxd, hot/duplicates.pxd)
#   learn       the source is on that peer's side, unless it is locked to another
#   relay       if this side is one: to the peer that has the destination, or flooded, to all
#               but the one it came from. Else never: what came from a peer goes to no peer
#   deliver     to the interface, unless it was relayed to its only destination
#
# Without loops, and without copies: a flooded frame carries a random name, and passes each side
# once, whatever ways there are (the frames of a superpacket are named by numbers in a row);
# any relayed frame carries a count of hops, and who brought it in, where it never comes back. Of
# several ways by which an address is heard, the one of the fewest hops among the copies counts.
#
# A frame that goes to several is copied for each: to split and seal it destroys it. A turn of
# the interface counts those copies. Accepted limit: a turn of a socket does not, so a relay with
# very many peers answers late while it is flooded; the storm limit bounds it.

from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy

from fastpump.hot.atomics cimport ACQUIRE, load32, load64
from fastpump.hot.egress cimport egress_shape
from fastpump.hot.fdb cimport (
    LEARN_FULL, LEARN_LOCKED, LEARN_MOVED, LEARN_NEW, MAC_LOCAL, MAC_NOBODY, Learned, MacEntry,
    mac_find, mac_hops, mac_key, mac_learn, mac_lookup, mac_owner,
)
from fastpump.hot.token_bucket cimport bucket_try
from fastpump.hot.constants cimport (
    RANDOM_WORDS, READ_HEADROOM, RELAY_MAX_FRAMES, RELAY_MAX_HOPS, RELAY_NAME_BITS,
    RELAY_NAME_MASK, VNET_HEADER_LEN,
)
from fastpump.hot.linux cimport getrandom
from fastpump.hot.packet cimport (
    Packet, frame_destination, frame_is_for_group, frame_source, packet_parse_frame,
)
from fastpump.hot.duplicates cimport seen_before
from fastpump.hot.shm cimport NONE, PeerSlot, Tables
from fastpump.hot.tx_route cimport TxRoute, tx_route_choose
from fastpump.hot.verdict cimport (
    DROP_DUPLICATE_FRAME, DROP_HOP_LIMIT, DROP_LOCAL_FRAME, DROP_MAC_LOCKED,
    DROP_MALFORMED_PACKET, DROP_NO_PEER, DROP_STORM, FAILED_MAC_LIMIT, FRAMES_FLOODED,
    FRAMES_RELAYED, MACS_LEARNED, MACS_MOVED, PASS, Verdict,
)
from fastpump.hot.vnet cimport VnetHeader, vnet_segment_count
from fastpump.hot.worker cimport Relay, Worker, worker_count


cdef inline Verdict switch_from_interface(Worker *worker, const VnetHeader *vnet, uint8_t *start,
                                          uint32_t length) noexcept nogil:
    """A frame from the interface."""
    cdef Tables *tables = &worker.tables
    cdef Packet frame
    cdef Relay relay
    cdef Learned learned
    cdef uint32_t owner, frame_count, bytes
    if not packet_parse_frame(&frame, start, length):
        return DROP_MALFORMED_PACKET
    learned = switch_learn(worker, mac_key(frame_source(&frame), frame.vlan), MAC_LOCAL, 0)
    if learned == LEARN_LOCKED:
        return DROP_MAC_LOCKED
    owner = switch_owner(worker, &frame)
    if owner != MAC_NOBODY and (learned != LEARN_MOVED or vnet.gso_type != 0 or not (
            bucket_try(&tables.header.moves, 1, worker.now_ns)
            and bucket_try(&tables.header.storm, 1, worker.now_ns))):
        if owner == MAC_LOCAL:
            return DROP_LOCAL_FRAME
        relay.word = 0
        return egress_shape(worker, owner, vnet, &frame, &relay)
    if tables.header.peers_end == 0:
        return DROP_NO_PEER
    frame_count = vnet_segment_count(vnet, &frame, &bytes)
    if frame_count > RELAY_MAX_FRAMES:
        return DROP_MALFORMED_PACKET        # smaller segments than TCP or UDP may have
    if owner == MAC_NOBODY and not bucket_try(&tables.header.storm, frame_count, worker.now_ns):
        return DROP_STORM
    worker.shared.counters[FRAMES_FLOODED] += 1
    relay.word = relay_name(worker)
    relay.origin = tables.header.own_id
    switch_flood(worker, vnet, &frame, &relay, NONE)
    return PASS


cdef inline Verdict switch_from_peer(Worker *worker, uint32_t peer, const VnetHeader *vnet,
                                     const Packet *frame, const Relay *relay,
                                     bint *is_for_us) noexcept nogil:
    """A frame of a peer's; `is_for_us`: whether it is to be delivered to the interface."""
    cdef uint64_t key = mac_key(frame_source(frame), frame.vlan)
    cdef Verdict verdict = relay_check(worker, peer, key, frame, relay)
    is_for_us[0] = False
    if verdict != PASS:
        return verdict
    if switch_learn(worker, key, peer, <uint32_t>(relay.word >> RELAY_NAME_BITS)) == LEARN_LOCKED:
        return DROP_MAC_LOCKED
    is_for_us[0] = True
    if worker.tables.header.is_relay:
        return switch_relay(worker, peer, vnet, frame, relay, is_for_us)
    return PASS


cdef inline Verdict relay_check(Worker *worker, uint32_t peer, uint64_t key, const Packet *frame,
                                const Relay *relay) noexcept nogil:
    """Whether a frame of a peer's may pass: not too often relayed, not our own, flooded no more
    often than is allowed, and the first of its name."""
    cdef uint64_t name = relay.word & RELAY_NAME_MASK
    cdef uint32_t hops = <uint32_t>(relay.word >> RELAY_NAME_BITS)
    cdef MacEntry *entry
    cdef uint64_t value
    if hops > RELAY_MAX_HOPS:
        return DROP_HOP_LIMIT
    if relay.word and relay.origin == worker.tables.header.own_id:
        return DROP_DUPLICATE_FRAME
    if (name or frame_is_for_group(frame)) and not bucket_try(
            &worker.tables.peers[peer].storm, 1, worker.now_ns):
        return DROP_STORM
    if name == 0 or not seen_before(&worker.tables, name, worker.now_ns):
        return PASS
    entry = mac_find(&worker.tables, key)
    if entry != NULL:
        value = load64(&entry.value, ACQUIRE)
        if mac_owner(value) != MAC_LOCAL and hops < mac_hops(value):
            switch_learn(worker, key, peer, hops)     # it is nearer this way
    return DROP_DUPLICATE_FRAME


cdef inline Verdict switch_relay(Worker *worker, uint32_t peer, const VnetHeader *vnet,
                                 const Packet *frame, const Relay *came,
                                 bint *is_for_us) noexcept nogil:
    """Pass a frame of a peer's on to others."""
    cdef uint64_t name = came.word & RELAY_NAME_MASK
    cdef uint64_t hop = (came.word >> RELAY_NAME_BITS) + 1
    cdef uint32_t owner = MAC_NOBODY if name else switch_owner(worker, frame)
    cdef Relay relay
    is_for_us[0] = owner in (MAC_LOCAL, MAC_NOBODY)
    if owner == MAC_LOCAL:
        return PASS
    if owner == peer:
        return DROP_LOCAL_FRAME
    if hop > RELAY_MAX_HOPS:
        return PASS if is_for_us[0] else DROP_HOP_LIMIT
    relay.origin = came.origin if came.word else worker.tables.peers[peer].id
    worker.shared.counters[FRAMES_RELAYED] += 1
    if owner != MAC_NOBODY:
        relay.word = hop << RELAY_NAME_BITS
        switch_copy(worker, owner, vnet, frame, &relay)
        return PASS
    if name == 0:
        # A group's frame without a name was counted in relay_check.
        if not frame_is_for_group(frame) and not bucket_try(
                &worker.tables.peers[peer].storm, 1, worker.now_ns):
            is_for_us[0] = False
            return DROP_STORM
        name = relay_name(worker)
        seen_before(&worker.tables, name, worker.now_ns)        # should it come back
    relay.word = name | hop << RELAY_NAME_BITS
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
        worker.shared.verdicts[FAILED_MAC_LIMIT] += 1
    return learned


cdef inline uint32_t switch_owner(const Worker *worker, const Packet *frame) noexcept nogil:
    """On whose side the destination is: a live peer, MAC_LOCAL or MAC_NOBODY."""
    cdef uint32_t owner
    if frame_is_for_group(frame):
        return MAC_NOBODY
    owner = mac_lookup(&worker.tables, mac_key(frame_destination(frame), frame.vlan), worker.now_s)
    if owner != MAC_NOBODY and owner != MAC_LOCAL and not load32(
            &worker.tables.peers[owner].live, ACQUIRE):
        return MAC_NOBODY
    return owner


cdef inline void switch_flood(Worker *worker, const VnetHeader *vnet, const Packet *frame,
                              const Relay *relay, uint32_t but) noexcept nogil:
    """Send copies to all peers that can be reached now or may soon be, but to one."""
    cdef uint32_t index, end = load32(&worker.tables.header.peers_end, ACQUIRE)
    cdef PeerSlot *peer
    cdef TxRoute way
    for index in range(end):
        peer = &worker.tables.peers[index]
        if index != but and load32(&peer.live, ACQUIRE) and (
                peer.endpoint.length != 0 or tx_route_choose(worker, index, frame, &way)):
            switch_copy(worker, index, vnet, frame, relay)


cdef inline void switch_copy(Worker *worker, uint32_t index, const VnetHeader *vnet,
                             const Packet *frame, const Relay *relay) noexcept nogil:
    """Send a copy to a peer."""
    cdef uint8_t *copy = worker.frame_buffer + READ_HEADROOM
    cdef Packet packet
    memcpy(copy - VNET_HEADER_LEN, vnet, VNET_HEADER_LEN)
    memcpy(copy, frame.start, frame.length)
    packet_parse_frame(&packet, copy, frame.length)
    worker_count(worker, egress_shape(worker, index, vnet, &packet, relay))
    worker.flooded_bytes += frame.length


cdef inline uint64_t relay_name(Worker *worker) noexcept nogil:
    """A random name for a frame that is flooded from here, and the numbers behind it for the
    others of a superpacket: nobody can send a copy before the frame has come."""
    cdef uint64_t name = 0
    while name == 0:
        if worker.random_left == 0:
            if getrandom(worker.random, sizeof(worker.random), 0) != <long>sizeof(worker.random):
                worker.random[0] = worker.now_ns << 12      # cannot be, after boot
            worker.random_left = RANDOM_WORDS
        worker.random_left -= 1
        name = worker.random[worker.random_left] & RELAY_NAME_MASK & ~<uint64_t>RELAY_MAX_FRAMES
    return name
