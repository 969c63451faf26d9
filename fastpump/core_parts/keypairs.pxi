# Keypairs of WireGuard sessions.

import os
from collections import namedtuple

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy, memset

from fastpump.hot cimport constants
from fastpump.hot.aead cimport AEAD_CHACHA20_POLY1305, aead_forget, aead_seal, nonce_set
from fastpump.hot.atomics cimport ACQUIRE, RELAXED, RELEASE, SEQ_CST, add64, and32, load32, store32
from fastpump.hot.bytes cimport store_le32, store_le64
from fastpump.hot.constants cimport TAG_LEN, TRANSPORT_HEADER_LEN, TRANSPORT_TYPE
from fastpump.hot.shm cimport (
    KEYPAIR_INITIATOR, KEYPAIR_REKEY_REPORTED, KEYPAIR_UNCONFIRMED, Header, Keypair, KeypairState,
)

REJECT_AFTER_MESSAGES = constants.REJECT_AFTER_MESSAGES

NewKeypair = namedtuple("NewKeypair", (
    "local_index",                  # receiver index of what the peer sends, as `reserve` gave it
    "remote_index",                 # receiver index of what we send
    "peer",                         # its slot
    "worker",                       # who receives
    "send_key",                     # Secret, or 32 bytes
    "receive_key",
    "is_initiator",
    "rekey_at_ns",                  # CLOCK_BOOTTIME: an initiator that sends asks for a new one
    "rekey_rx_at_ns",               # an initiator that receives, shortly before it expires
    "reject_at_ns",                 # expired
))
NewKeypair.__doc__ = "What a handshake gave: the keypair for a reserved slot."


cdef class Keypairs(SlotTable):
    """The table of keypairs. IndexError for a slot that was never reserved."""

    def __cinit__(self, Mapping mapping, Retired retired):
        self.title = "the keypair table"
        self.capacity = mapping.tables.header.keypair_capacity

    cdef Keypair *at(self, uint32_t slot) except NULL:
        if slot >= self.end:
            raise IndexError(f"no keypair in slot {slot}")
        return &self.mapping.configuration.keypairs[slot]

    cdef KeypairState *state_at(self, uint32_t slot) except NULL:
        self.at(slot)
        return &self.mapping.tables.keypair_states[slot]

    def reserve(self, uint32_t worker):
        """(slot, local_index) for a handshake that begins: the index says which worker
        will receive. MemoryError when the table is full."""
        cdef const Header *header = self.mapping.tables.header
        self.mapping.worker(worker)
        slot = self.take()
        taken_bits = header.worker_bits + header.slot_bits
        index = int.from_bytes(os.urandom(4), "little") >> taken_bits << taken_bits
        index |= slot << header.worker_bits | worker
        self.at(slot).local_index = index
        return slot, index

    def install(self, uint32_t slot, new):
        """Fill a reserved slot with a NewKeypair and publish it to the receiving worker.

        A responder's keypair is unconfirmed: the worker reports its first message.
        """
        cdef Keypair *keypair = self.at(slot)
        cdef KeypairState *state = self.state_at(slot)
        cdef const uint8_t *send_key = secret_bytes(new.send_key)
        cdef const uint8_t *receive_key = secret_bytes(new.receive_key)
        memset(keypair, 0, sizeof(Keypair))
        memset(state, 0, sizeof(KeypairState))
        keypair.local_index = new.local_index
        keypair.remote_index = new.remote_index
        keypair.peer = new.peer
        keypair.worker = new.worker
        state.flags = KEYPAIR_INITIATOR if new.is_initiator else KEYPAIR_UNCONFIRMED
        keypair.rekey_at_ns = new.rekey_at_ns
        keypair.rekey_rx_at_ns = new.rekey_rx_at_ns
        keypair.reject_at_ns = new.reject_at_ns
        memcpy(keypair.send_key, send_key, 32)
        memcpy(keypair.receive_key, receive_key, 32)
        store32(&keypair.live, 1, RELEASE)

    cdef bint has_index(self, uint32_t index, bint or_handshake=False) noexcept nogil:
        """Whether there is a session with that receiver index; or a handshake, perhaps. (Slots that
        are free have index 0.)"""
        cdef const Header *header = self.mapping.tables.header
        cdef uint32_t slot = (index >> header.worker_bits) & ((1u << header.slot_bits) - 1)
        cdef const Keypair *keypair = &self.mapping.tables.keypairs[slot]
        return index != 0 and slot < self.end and keypair.local_index == index \
            and (or_handshake or load32(&keypair.live, ACQUIRE) != 0)

    def confirm(self, uint32_t slot):
        """The peer has sent on a responder's keypair."""
        and32(&self.state_at(slot).flags, ~<uint32_t>KEYPAIR_UNCONFIRMED, RELAXED)

    def rearm_rekey(self, uint32_t slot):
        """Let the workers ask for a rekey again (the last attempt failed)."""
        and32(&self.state_at(slot).flags, ~<uint32_t>KEYPAIR_REKEY_REPORTED, RELAXED)

    def take_counter(self, uint32_t slot, uint32_t local_index):
        """A send counter, taken atomically: nobody else gets it. ValueError if the slot's
        keypair is not the one with that index any more: its counters would begin anew."""
        cdef Keypair *keypair = self.at(slot)
        if not load32(&keypair.live, ACQUIRE) or keypair.local_index != local_index:
            raise ValueError(f"the keypair in slot {slot} is gone")
        return add64(&self.state_at(slot).send_counter, 1, RELAXED)

    def seal(self, uint32_t slot, uint32_t local_index, bytes inner):
        """A transport message of the session; ValueError as `take_counter`."""
        cdef Keypair *keypair = self.at(slot)
        cdef uint64_t counter = self.take_counter(slot, local_index)
        cdef uint8_t nonce[12]
        cdef uint8_t *message
        sealed = PyBytes_FromStringAndSize(NULL, TRANSPORT_HEADER_LEN + len(inner) + TAG_LEN)
        message = <uint8_t *>PyBytes_AS_STRING(sealed)
        store_le32(message, TRANSPORT_TYPE)
        store_le32(message + 4, keypair.remote_index)
        store_le64(message + 8, counter)
        nonce_set(nonce, counter)
        if aead_seal(&self.mapping.aead, AEAD_CHACHA20_POLY1305, keypair.send_key, nonce, NULL, 0,
                     <const uint8_t *>PyBytes_AS_STRING(inner), message + TRANSPORT_HEADER_LEN,
                     len(inner)) != 0 or aead_forget(&self.mapping.aead) != 0:
            raise OSError("the AEAD library failed")
        return sealed

    def retire(self, uint32_t slot):
        """Take the keypair out of use; its keys are wiped after the grace period."""
        store32(&self.at(slot).live, 0, SEQ_CST)
        self.retired.add(self, slot)

    cdef int recycle(self, uint32_t slot) except -1:
        memset(&self.mapping.configuration.keypairs[slot], 0, sizeof(Keypair))
        memset(&self.mapping.tables.keypair_states[slot], 0, sizeof(KeypairState))
        return SlotTable.recycle(self, slot)
