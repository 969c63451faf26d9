# Bundle: small packets that wait together, to one peer on one lane, travel in one lane message.
#
# payload:  [length, flag][packet] [length, flag][packet] ...
#
# A small packet is copied here instead of being sealed. It is sealed when the iteration ends,
# when the next one does not fit, is for another lane or has another TOS, or before a larger packet
# of the lane: so nothing waits for what has not come yet, and the order on a lane stays. One that
# stayed alone leaves as a plain lane message.

from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy

from fastpump.hot.atomics cimport RELAXED, add64, load32
from fastpump.hot.batch cimport Path
from fastpump.hot.bytes cimport load_le16, store_le16
from fastpump.hot.constants cimport (
    BUNDLE_ENTRY_HEADER, BUNDLE_ENTRY_PARTIAL, BUNDLE_MAX_PACKET, BUNDLE_PACKETS, FEATURE_BUNDLE,
    LANE_FLAG_BUNDLE, LANE_FLAG_FRAME, LANE_FLAG_PARTIAL,
)
from fastpump.hot.lane cimport lane_path
from fastpump.hot.seal cimport seal_on_lane
from fastpump.hot.shm cimport Lane, LaneState, lane_state
from fastpump.hot.verdict cimport DROP_NO_ENDPOINT, UDP_TX_BUNDLES
from fastpump.hot.worker cimport Bundle, Worker, worker_count_of

cdef struct BundleEntry:
    uint8_t *packet
    uint32_t length
    bint is_partial


cdef inline bint bundle_takes(const Lane *lane, uint32_t packet_len) noexcept nogil:
    """Whether a packet of that length may be bundled on the lane."""
    return packet_len <= BUNDLE_MAX_PACKET and lane.features & FEATURE_BUNDLE != 0


cdef inline void bundle_add(Worker *worker, const Lane *lane, const uint8_t *packet,
                            uint32_t packet_len, uint32_t flags, uint32_t tos) noexcept nogil:
    """Put a packet (of `bundle_takes`) behind those of its lane. `flags`, `tos`: as if it went
    alone."""
    cdef Bundle *self = &worker.bundle
    cdef uint32_t needed = packet_len + BUNDLE_ENTRY_HEADER
    if self.count and (self.lane != lane or self.tos != tos or self.count == BUNDLE_PACKETS
                       or self.length + needed > min(
                           worker.mtu, load32(&worker.tables.peers[lane.peer].payload_mtu,
                                              RELAXED))):
        bundle_flush(worker)
    if self.count == 0:
        self.lane = lane
        self.length = 0
        self.first_flags = flags
        self.tos = tos
    store_le16(self.buffer + self.length,
               packet_len | (BUNDLE_ENTRY_PARTIAL if flags & LANE_FLAG_PARTIAL else 0))
    memcpy(self.buffer + self.length + BUNDLE_ENTRY_HEADER, packet, packet_len)
    self.length += needed
    self.count += 1


cdef inline void bundle_flush(Worker *worker) noexcept nogil:
    """Seal what waits."""
    cdef Bundle *self = &worker.bundle
    cdef const Lane *lane = self.lane
    cdef LaneState *state
    cdef uint32_t count = self.count, sealed_len
    cdef uint64_t counter
    cdef Path path
    if count == 0:
        return
    self.count = 0
    state = lane_state(&worker.tables, lane)
    lane_path(worker, lane, &path)
    path.tos = self.tos
    counter = add64(&state.send_counter, 1, RELAXED)
    if count == 1:
        sealed_len = seal_on_lane(worker, lane, &path, counter, self.first_flags,
                                  self.buffer + BUNDLE_ENTRY_HEADER,
                                  self.length - BUNDLE_ENTRY_HEADER)
    else:
        sealed_len = seal_on_lane(worker, lane, &path, counter,
                                  LANE_FLAG_BUNDLE | (self.first_flags & LANE_FLAG_FRAME),
                                  self.buffer, self.length)
        worker.shared.counters[UDP_TX_BUNDLES] += 1
    if sealed_len == 0:
        worker_count_of(worker, lane.peer, DROP_NO_ENDPOINT, count)
        return
    state.tx_bytes += sealed_len
    add64(&worker.tables.peer_states[lane.peer].tx_bytes, sealed_len, RELAXED)


cdef inline bint bundle_next(uint8_t **at, uint32_t *left, BundleEntry *entry) noexcept nogil:
    """The next packet of an opened bundle; False at its end, and with `left` not 0 if what is
    there is not an entry (empty, or longer than what is left)."""
    cdef uint32_t header, length
    if left[0] < BUNDLE_ENTRY_HEADER:
        return False
    header = load_le16(at[0])
    length = header & ~<uint32_t>BUNDLE_ENTRY_PARTIAL
    if length == 0 or length > left[0] - BUNDLE_ENTRY_HEADER:
        return False
    entry.packet = at[0] + BUNDLE_ENTRY_HEADER
    entry.length = length
    entry.is_partial = header & BUNDLE_ENTRY_PARTIAL != 0
    at[0] += BUNDLE_ENTRY_HEADER + length
    left[0] -= BUNDLE_ENTRY_HEADER + length
    return True
