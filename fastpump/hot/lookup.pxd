# Longest-prefix match: cryptokey routing's allowed IPs (WireGuard paper, section 2).
#
# A path-compressed binary trie per address family. Readers walk it without locks
# while the supervisor changes it:
#   insert  fill new nodes, then store the one child link that leads to them
#   move    store the node's peer
#   remove  store NONE as the node's peer; then unlink the node if it has at most
#           one child, and reuse it after a grace period (hot/reclaim.pxd)
# A reader sees the trie before or after a change, never between.
#
# Prefixes are left-aligned in two host-order 64-bit words; IPv4 uses the top 32
# bits of the first. Node 0 of the array is unused, so that index 0 means "none".

from libc.stdint cimport uint32_t, uint64_t, uint8_t

from fastpump.hot.atomics cimport ACQUIRE, RELAXED, load32
from fastpump.hot.bytes cimport load_be32, load_be64
from fastpump.hot.shm cimport NONE, Tables, TrieNode


cdef inline void prefix_load(uint64_t *bits, const uint8_t *address, bint is_v6) noexcept nogil:
    if is_v6:
        bits[0] = load_be64(address)
        bits[1] = load_be64(address + 8)
    else:
        bits[0] = <uint64_t>load_be32(address) << 32
        bits[1] = 0


cdef inline uint64_t prefix_mask(uint32_t prefix_len) noexcept nogil:
    """The top `prefix_len` bits of one word; 64 at most."""
    if prefix_len == 0:
        return 0
    return ~<uint64_t>0 << (64 - prefix_len)


cdef inline bint prefix_covers(const TrieNode *node, const uint64_t *bits) noexcept nogil:
    cdef uint32_t length = node.prefix_len
    if length <= 64:
        return ((node.bits[0] ^ bits[0]) & prefix_mask(length)) == 0
    return node.bits[0] == bits[0] and ((node.bits[1] ^ bits[1]) & prefix_mask(length - 64)) == 0


cdef inline uint32_t prefix_bit(const uint64_t *bits, uint32_t position) noexcept nogil:
    return <uint32_t>(bits[position >> 6] >> (63 - (position & 63))) & 1


cdef inline uint32_t lookup_peer(const Tables *tables, const uint8_t *address,
                                 bint is_v6) noexcept nogil:
    """The peer whose allowed IPs hold the longest prefix of `address`, or NONE."""
    cdef uint64_t bits[2]
    cdef uint32_t best = NONE, peer, index
    cdef uint32_t width = 128 if is_v6 else 32
    cdef const TrieNode *node
    cdef int _
    prefix_load(bits, address, is_v6)
    index = load32(&tables.header.root[is_v6], ACQUIRE)
    for _ in range(130):            # a path is at most 129 nodes long
        if index == 0 or index >= tables.header.node_capacity:
            break
        node = &tables.nodes[index]
        if not prefix_covers(node, bits):
            break
        peer = load32(&node.peer, RELAXED)
        if peer != NONE:
            best = peer
        if node.prefix_len >= width:
            break
        index = load32(&node.child[prefix_bit(bits, node.prefix_len)], ACQUIRE)
    return best
