# Sets of lanes. The lanes of a set lie in a row; the slot of the first stands for the set.

import os
from collections import namedtuple

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memset

from fastpump.hot cimport constants
from fastpump.hot.aead cimport aead_forget, aead_key_set, aead_seal, nonce_set
from fastpump.hot.atomics cimport (
    RELAXED, RELEASE, SEQ_CST, add64, and32, load32, load64, or32, store32,
)
from fastpump.hot.bytes cimport store_le16, store_le32, store_le64
from fastpump.hot.constants cimport (
    LANE_FLAG_RECORD, LANE_TYPE, RECORD_FIELDS_LEN, TAG_LEN, TRANSPORT_HEADER_LEN,
)
from fastpump.hot.endpoint cimport endpoint_unset_source_address
from fastpump.hot.shm cimport (
    LANE_DEAD, LANE_ECHO_REPORTED, LANE_FREE, LANE_LIVE, LANE_RECORDS, LANE_REKEY_REPORTED,
    LANE_RESERVED, LANE_ROAM_REPORTED, LANE_UNANSWERED_REPORTED, LANE_USABLE,
    LANE_USABLE_REPORTED, NONE, SOURCE_ADDRESS_LEN, Header, Lane, LaneState,
)

FEATURE_PARTIAL, FEATURE_BUNDLE = constants.FEATURE_PARTIAL, constants.FEATURE_BUNDLE
FEATURE_PATH_MTU, FEATURE_RECORDS = constants.FEATURE_PATH_MTU, constants.FEATURE_RECORDS
LANE_BITS = {
    "echo_reported": LANE_ECHO_REPORTED,
    "usable_reported": LANE_USABLE_REPORTED,
    "unanswered_reported": LANE_UNANSWERED_REPORTED,
    "rekey_reported": LANE_REKEY_REPORTED,
    "roam_reported": LANE_ROAM_REPORTED,
}

NewLanes = namedtuple("NewLanes", (
    "remote_index",                 # receiver index of what we send
    "cipher",                       # a name of CIPHERS
    "features",                     # FEATURE_* that the peer takes
    "keys",                         # (send, receive) of each lane: Secret, or 32 bytes
    "endpoints",                    # (sockaddr, source address) of each; b"" for unknown
    "sockets",                      # how many lane sockets there are; None: the set uses our port
    "rekey_at_ns",                  # CLOCK_BOOTTIME; as a NewKeypair's
    "rekey_rx_at_ns",
    "reject_at_ns",
))
NewLanes.__doc__ = "What a negotiation gave: the lanes for a reserved set."


cdef class Lanes(SlotTable):
    """The table of lanes. Times are CLOCK_BOOTTIME, ns. IndexError for a slot that was never
    reserved."""

    cdef dict free_runs             # slots of first lanes, by how many lie in a row: 1, 2, 4, ...

    def __cinit__(self, Mapping mapping, Retired retired):
        self.title = "the table of lanes"
        self.capacity = mapping.tables.header.lane_capacity
        self.free_runs = {}

    cdef Lane *at(self, uint32_t slot) except NULL:
        if slot >= self.end:
            raise IndexError(f"no lane in slot {slot}")
        return &self.mapping.configuration.lanes[slot]

    cdef LaneState *state_at(self, uint32_t slot) except NULL:
        self.at(slot)
        return &self.mapping.tables.lane_states[slot]

    cdef int64_t take_run(self, uint32_t count) except -1:
        """The first of `count` free slots in a row; MemoryError when there are none."""
        cdef uint32_t run = run_of(count)
        if not self.free_runs.get(run):
            self.retired.reclaim_all()
        if self.free_runs.get(run):
            return self.free_runs[run].pop()
        if self.end + run > self.capacity:
            raise MemoryError(f"{self.title} is full ({self.capacity})")
        self.end += run
        return self.end - run

    def reserve(self, uint32_t peer, uint32_t count):
        """(slot of lane 0, receiver index) for a set of `count` lanes, whose keys are not known
        yet: what comes for it waits. MemoryError when the table is full."""
        cdef const Header *header = self.mapping.tables.header
        cdef Lane *lane
        cdef uint32_t first, index, i
        self.mapping.check_peer(peer)
        if not 1 <= count <= constants.MAX_LANES:
            raise ValueError(f"a set has 1 to {constants.MAX_LANES} lanes, not {count}")
        first = <uint32_t>self.take_run(count)
        index = 0                   # on the wire: no set
        while index == 0:
            random = int.from_bytes(os.urandom(4), "little")
            index = random >> header.lane_bits << header.lane_bits | first
        for i in range(count):
            lane = &self.mapping.configuration.lanes[first + i]
            lane.local_index = index
            lane.peer = peer
            lane.number = i
            lane.count = count
            lane.worker = i % header.queue_count
            store32(&lane.state, LANE_RESERVED, RELEASE)
        return first, index

    def install(self, uint32_t first, new):
        """Make a reserved set live, by a NewLanes."""
        cdef uint32_t i, count = self.at(first).count
        if len(new.keys) != count or len(new.endpoints) != count:
            raise ValueError(f"{len(new.keys)} keys, {len(new.endpoints)} endpoints for {count} "
                             "lanes")
        for i in range(count):
            self.install_one(first + i, i, new)

    cdef int install_one(self, uint32_t slot, uint32_t i, new) except -1:
        cdef Lane *lane = self.at(slot)
        send_key, receive_key = new.keys[i]
        secret_bytes(send_key)
        secret_bytes(receive_key)
        lane.remote_index = new.remote_index
        lane.socket = NONE if new.sockets is None else i % <uint32_t>new.sockets
        lane.cipher = CIPHERS[new.cipher]
        lane.features = new.features
        lane.rekey_at_ns = new.rekey_at_ns
        lane.rekey_rx_at_ns = new.rekey_rx_at_ns
        lane.reject_at_ns = new.reject_at_ns
        aead_key_set(&self.mapping.aead, lane.cipher, secret_bytes(send_key), lane.send_key)
        aead_key_set(&self.mapping.aead, lane.cipher, secret_bytes(receive_key), lane.receive_key)
        sockaddr, source_address = new.endpoints[i]
        self.retired.endpoints.write(&self.state_at(slot).endpoint, sockaddr, source_address)
        store32(&lane.state, LANE_LIVE, RELEASE)
        return 0

    def retire(self, uint32_t first):
        """Take a set out of use; its keys are wiped after the grace period."""
        cdef uint32_t i
        for i in range(self.at(first).count):
            self.retired.endpoints.forget(&self.state_at(first + i).endpoint)
            store32(&self.mapping.configuration.lanes[first + i].state, LANE_FREE, SEQ_CST)
        self.retired.add(self, first)

    cdef int recycle(self, uint32_t first) except -1:
        cdef uint32_t count = self.mapping.tables.lanes[first].count
        memset(&self.mapping.configuration.lanes[first], 0, count * sizeof(Lane))
        memset(&self.mapping.tables.lane_states[first], 0, count * sizeof(LaneState))
        self.free_runs.setdefault(run_of(count), []).append(first)
        return 0

    def status(self, uint32_t slot):
        """What is known of a lane: a dict; 0 for a time: never."""
        cdef LaneState *lane = self.state_at(slot)
        return {
            "number": self.at(slot).number,
            "worker": self.at(slot).worker,
            "is_usable": load32(&lane.bits, RELAXED) & LANE_USABLE != 0,
            "has_records": load32(&lane.bits, RELAXED) & LANE_RECORDS != 0,
            "endpoint": endpoint_load(&lane.endpoint)[0],
            "tx_messages": load64(&lane.send_counter, RELAXED),
            "rx_newest": lane.replay.newest,
            "tx_bytes": lane.tx_bytes,
            "rx_bytes": lane.rx_bytes,
            "last_tx_ns": lane.last_tx_ns,
            "last_data_ns": lane.last_data_ns,      # as last_tx_ns, of data
            "last_rx_ns": lane.last_rx_ns,
            "first_unanswered_tx_ns": lane.first_unanswered_tx_ns,
        }

    def endpoint(self, uint32_t slot):
        """(sockaddr, source address) as the lane's worker has them; (b"", zeros) for unknown."""
        return endpoint_load(&self.state_at(slot).endpoint)

    def set_endpoint(self, uint32_t slot, bytes sockaddr,
                     bytes source_address=bytes(SOURCE_ADDRESS_LEN)):
        """As of a peer. No records leave on a lane that is elsewhere."""
        self.set_records(slot, False)
        self.retired.endpoints.write(&self.state_at(slot).endpoint, sockaddr, source_address)

    def forget_source_address(self, uint32_t slot):
        """As of a peer."""
        endpoint_unset_source_address(&self.state_at(slot).endpoint)

    def rearm(self, uint32_t slot, str bit):
        """Let the worker send the event that a bit of LANE_BITS stands for again."""
        and32(&self.state_at(slot).bits, ~<uint32_t>LANE_BITS[bit], SEQ_CST)

    def set_dead(self, uint32_t slot):
        """Let the flows of an unanswered lane take others, until the peer sends on it."""
        cdef LaneState *lane = self.state_at(slot)
        or32(&lane.bits, LANE_DEAD, SEQ_CST)
        and32(&lane.bits, ~<uint32_t>LANE_USABLE, SEQ_CST)

    def set_records(self, uint32_t slot, bint are_used):
        """Whether superpackets may leave on a lane as records (hot/record.pxd)."""
        if are_used:
            or32(&self.state_at(slot).bits, LANE_RECORDS, RELAXED)
        else:
            and32(&self.state_at(slot).bits, ~<uint32_t>LANE_RECORDS, RELAXED)

    def seal(self, uint32_t slot, uint32_t flags, uint64_t now, bytes payload=b""):
        """A message of that lane, which leaves now; a record, with that flag."""
        cdef uint32_t header_len = TRANSPORT_HEADER_LEN
        cdef uint8_t *message
        cdef uint8_t nonce[12]
        cdef Lane *lane = self.at(slot)
        cdef uint64_t counter = self.take_counter(slot, now)
        if flags & LANE_FLAG_RECORD:
            header_len += RECORD_FIELDS_LEN
        sealed = PyBytes_FromStringAndSize(NULL, header_len + len(payload) + TAG_LEN)
        message = <uint8_t *>PyBytes_AS_STRING(sealed)
        store_le32(message, LANE_TYPE | flags << 8 | lane.number << 16)
        store_le32(message + 4, lane.remote_index)
        store_le64(message + 8, counter)
        if flags & LANE_FLAG_RECORD:
            store_le16(message + TRANSPORT_HEADER_LEN, <uint16_t>len(sealed))
            store_le16(message + TRANSPORT_HEADER_LEN + 2, 0)
        nonce_set(nonce, counter)
        if aead_seal(&self.mapping.aead, lane.cipher, lane.send_key, nonce, message, header_len,
                     <const uint8_t *>PyBytes_AS_STRING(payload), message + header_len,
                     len(payload)) != 0 \
                or aead_forget(&self.mapping.aead) != 0:
            raise OSError("the AEAD library failed")
        return sealed

    def expect_answer(self, uint32_t slot, uint64_t now):
        """As if data left on the lane now, if all of it was answered."""
        cdef LaneState *lane = self.state_at(slot)
        if not lane.first_unanswered_tx_ns:
            lane.first_unanswered_tx_ns = now

    def take_counter(self, uint32_t slot, uint64_t now):
        """A send counter, taken atomically for a message that leaves now."""
        cdef LaneState *lane = self.state_at(slot)
        lane.last_tx_ns = now
        return add64(&lane.send_counter, 1, RELAXED)


cdef uint32_t run_of(uint32_t count):
    """Sets take a power of two of slots: few sizes, so that each is used again."""
    return 1 << (count - 1).bit_length()
