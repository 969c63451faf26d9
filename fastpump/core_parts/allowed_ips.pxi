# Allowed IPs: which peer has which prefix (hot/lookup.pxd, hot/trie.pxd).

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint32_t, uint64_t, uint8_t

from fastpump.hot.lookup cimport lookup_peer, prefix_load
from fastpump.hot.shm cimport NONE
from fastpump.hot.trie cimport trie_insert, trie_move, trie_remove


cdef class AllowedIps(SlotTable):
    """The table of prefixes: 4 or 16 address bytes and a length. Its slots are nodes of two
    tries; node 0 means "none". ValueError for an invalid prefix."""

    def __cinit__(self, Mapping mapping, Retired retired):
        self.title = "the table of allowed IPs"
        self.capacity = mapping.tables.header.node_capacity
        self.end = 1

    def insert(self, bytes address, uint32_t prefix_len, uint32_t peer):
        """Give a prefix to a peer, also if another one has it. MemoryError when there is no
        room."""
        cdef uint64_t bits[2]
        cdef uint32_t fresh[2]
        cdef uint32_t i, taken
        cdef bint is_v6 = address_is_v6(address, prefix_len)
        self.mapping.check_peer(peer)
        prefix_load(bits, <const uint8_t *>PyBytes_AS_STRING(address), is_v6)
        if trie_move(&self.mapping.configuration, is_v6, bits, prefix_len, peer):
            return                  # takes no memory: also when there is none
        fresh[0] = <uint32_t>self.take()
        try:
            fresh[1] = <uint32_t>self.take()
        except MemoryError:
            self.free.append(fresh[0])
            raise
        taken = trie_insert(&self.mapping.configuration, is_v6, bits, prefix_len, peer, fresh)
        for i in range(taken, 2):
            self.free.append(fresh[i])

    def remove(self, bytes address, uint32_t prefix_len):
        """Take a prefix away from the peer that has it."""
        cdef uint64_t bits[2]
        cdef uint32_t unlinked[2]
        cdef uint32_t i
        cdef bint is_v6 = address_is_v6(address, prefix_len)
        prefix_load(bits, <const uint8_t *>PyBytes_AS_STRING(address), is_v6)
        for i in range(trie_remove(&self.mapping.configuration, is_v6, bits, prefix_len, unlinked)):
            self.retired.add(self, unlinked[i])

    def lookup(self, bytes address):
        """The peer slot that owns an address, or None."""
        cdef bint is_v6 = address_is_v6(address, 0)
        cdef uint32_t peer = lookup_peer(
            &self.mapping.tables, <const uint8_t *>PyBytes_AS_STRING(address), is_v6)
        return None if peer == NONE else peer


cdef bint address_is_v6(bytes address, uint32_t prefix_len) except -1:
    if len(address) not in (4, 16) or prefix_len > 8 * len(address):
        raise ValueError(f"{len(address)} address bytes with a prefix of {prefix_len}")
    return len(address) == 16
