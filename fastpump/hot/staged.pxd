# Staged packets: what came for a peer while there was no session to seal it with.
#
# Per worker, in the order of arrival, at most STAGED_PER_PEER of one peer: then its
# oldest is dropped, as in the kernel's WireGuard. They leave, before anything newer
# of that peer, as soon as the worker sees a session: at the peer's next packet, or
# when the supervisor rings the doorbell. They are dropped when the supervisor moves
# the peer's purge_count (the handshake failed, or the peer was removed).

from libc.stdint cimport uint32_t, uint8_t
from libc.string cimport memcpy, memmove

from fastpump.hot.constants cimport (
    BUFFER_STRIDE, READ_HEADROOM, STAGED_FLOODED_PER_PEER, STAGED_PER_PEER, STAGED_SLOTS,
    VNET_HEADER_LEN,
)
from fastpump.hot.verdict cimport DROP_STAGED_FULL, DROP_STAGED_TIMEOUT
from fastpump.hot.worker cimport (
    Relay, Staged, StagedPacket, Worker, peer_verdict, worker_count, worker_count_of,
)


cdef inline void staged_init(Staged *self) noexcept nogil:
    cdef int i
    self.count = 0
    self.free_count = STAGED_SLOTS
    for i in range(STAGED_SLOTS):
        self.free_slots[i] = i


cdef inline uint8_t *staged_packet(Staged *self, uint32_t slot) noexcept nogil:
    """Where a slot's packet begins; its vnet header lies right before it."""
    return self.buffers + <size_t>slot * BUFFER_STRIDE + READ_HEADROOM


cdef inline void staged_remove(Staged *self, uint32_t position) noexcept nogil:
    cdef StagedPacket *packet = &self.packets[position]
    self.per_peer[packet.peer] -= 1
    self.free_slots[self.free_count] = packet.slot
    self.free_count += 1
    self.count -= 1
    memmove(packet, packet + 1, (self.count - position) * sizeof(StagedPacket))


cdef inline void staged_add(Worker *worker, uint32_t peer, const uint8_t *packet,
                            uint32_t packet_len, const Relay *relay) noexcept nogil:
    """Keep a copy of the packet and of the vnet header before it. Of frames that go to all
    peers only few: most of them may never come back."""
    cdef Staged *self = &worker.staged
    cdef StagedPacket *entry
    cdef uint32_t position
    if relay.word and self.per_peer[peer] >= STAGED_FLOODED_PER_PEER:
        worker_count_of(worker, peer, DROP_STAGED_FULL, 1)
        return
    if self.per_peer[peer] >= STAGED_PER_PEER:
        for position in range(self.count):
            if self.packets[position].peer == peer:
                staged_remove(self, position)
                break
        worker_count_of(worker, peer, DROP_STAGED_FULL, 1)
    if self.free_count == 0:        # other peers use all of it: the newest is dropped
        worker_count_of(worker, peer, DROP_STAGED_FULL, 1)
        return
    self.free_count -= 1
    entry = &self.packets[self.count]
    self.count += 1
    entry.peer = peer
    entry.purge_count = worker.tables.peers[peer].purge_count
    entry.packet_len = packet_len
    entry.relay = relay[0]
    entry.slot = self.free_slots[self.free_count]
    self.per_peer[peer] += 1
    memcpy(staged_packet(self, entry.slot) - VNET_HEADER_LEN, packet - VNET_HEADER_LEN,
           packet_len + VNET_HEADER_LEN)


cdef inline void staged_purge(Worker *worker) noexcept nogil:
    """Drop what the supervisor has given up. A slot that got another peer meanwhile was purged
    twice, and that peer is not blamed."""
    cdef Staged *self = &worker.staged
    cdef uint32_t position = 0, peer, purges
    while position < self.count:
        peer = self.packets[position].peer
        purges = worker.tables.peers[peer].purge_count - self.packets[position].purge_count
        if purges == 0:
            position += 1
            continue
        staged_remove(self, position)
        worker_count(worker, DROP_STAGED_TIMEOUT if purges > 1 else peer_verdict(
            worker, peer, DROP_STAGED_TIMEOUT))
