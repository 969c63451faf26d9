# Changing the allowed-IPs trie: the supervisor's side of hot/lookup.pxd. It lies in the
# configuration: nobody else can write to it, so the indices that are found in it are right.
#
# Node memory comes from a free list of indices; what is unlinked is handed back to
# the caller, who may reuse it after a grace period (hot/reclaim.pxd).

from libc.stdint cimport uint32_t, uint64_t

from fastpump.hot.atomics cimport RELEASE, store32
from fastpump.hot.lookup cimport prefix_bit, prefix_mask
from fastpump.hot.shm cimport NONE, Configuration, TrieNode


cdef inline uint32_t common_bits(const uint64_t *a, const uint64_t *b,
                                 uint32_t max_count) noexcept nogil:
    """How many leading bits are equal, `max_count` at most."""
    cdef uint32_t count = 0
    while count < max_count and prefix_bit(a, count) == prefix_bit(b, count):
        count += 1
    return count


cdef inline void node_fill(TrieNode *node, const uint64_t *bits, uint32_t prefix_len,
                           uint32_t peer) noexcept nogil:
    node.bits[0] = bits[0] & prefix_mask(prefix_len if prefix_len < 64 else 64)
    node.bits[1] = bits[1] & prefix_mask(prefix_len - 64 if prefix_len > 64 else 0)
    node.child[0] = 0
    node.child[1] = 0
    node.peer = peer
    node.prefix_len = prefix_len


cdef inline bint trie_move(Configuration *tables, bint is_v6, const uint64_t *bits,
                           uint32_t prefix_len, uint32_t peer) noexcept nogil:
    """Give a prefix that has a node already to `peer`; False if it has none."""
    cdef uint32_t index = tables.header.root[is_v6]
    cdef TrieNode *node
    while index:
        node = &tables.nodes[index]
        if node.prefix_len > prefix_len or common_bits(
                node.bits, bits, node.prefix_len) < node.prefix_len:
            return False
        if node.prefix_len == prefix_len:
            store32(&node.peer, peer, RELEASE)
            return True
        index = node.child[prefix_bit(bits, node.prefix_len)]
    return False


cdef inline uint32_t trie_insert(Configuration *tables, bint is_v6, const uint64_t *bits,
                                 uint32_t prefix_len, uint32_t peer,
                                 const uint32_t *fresh) noexcept nogil:
    """Give a prefix that has no node (trie_move) to `peer`. `fresh` holds two unused nodes;
    returns how many of them were taken, in order."""
    cdef uint32_t *link = &tables.header.root[is_v6]
    cdef uint32_t index, common
    cdef TrieNode *node
    cdef TrieNode *leaf = &tables.nodes[fresh[0]]
    cdef TrieNode *fork = &tables.nodes[fresh[1]]
    while True:
        index = link[0]
        if index == 0:
            node_fill(leaf, bits, prefix_len, peer)
            store32(link, fresh[0], RELEASE)
            return 1
        node = &tables.nodes[index]
        common = common_bits(node.bits, bits,
                             node.prefix_len if node.prefix_len < prefix_len else prefix_len)
        if common < node.prefix_len:
            break
        link = &node.child[prefix_bit(bits, node.prefix_len)]
    node_fill(leaf, bits, prefix_len, peer)
    if common == prefix_len:        # the new prefix covers the node
        leaf.child[prefix_bit(node.bits, prefix_len)] = index
        store32(link, fresh[0], RELEASE)
        return 1
    node_fill(fork, bits, common, NONE)
    fork.child[prefix_bit(bits, common)] = fresh[0]
    fork.child[prefix_bit(node.bits, common)] = index
    store32(link, fresh[1], RELEASE)
    return 2


cdef inline uint32_t trie_remove(Configuration *tables, bint is_v6, const uint64_t *bits,
                                 uint32_t prefix_len, uint32_t *unlinked) noexcept nogil:
    """Take the prefix away. Fills `unlinked` with up to two nodes that are out of the
    trie now; returns how many, 0 also when the prefix was not there."""
    cdef uint32_t *link = &tables.header.root[is_v6]
    cdef uint32_t *parent_link = NULL
    cdef TrieNode *parent = NULL
    cdef TrieNode *node
    while link[0]:
        node = &tables.nodes[link[0]]
        if node.prefix_len > prefix_len or common_bits(
                node.bits, bits, node.prefix_len) < node.prefix_len:
            return 0
        if node.prefix_len == prefix_len:
            break
        parent = node
        parent_link = link
        link = &node.child[prefix_bit(bits, node.prefix_len)]
    else:
        return 0
    store32(&node.peer, NONE, RELEASE)
    if node.child[0] and node.child[1]:
        return 0                    # stays as a fork
    unlinked[0] = link[0]
    store32(link, node.child[0] if node.child[0] else node.child[1], RELEASE)
    if link[0] or parent == NULL or parent.peer != NONE:
        return 1
    # The parent was a fork of two and has one child left: shortcut it.
    unlinked[1] = parent_link[0]
    store32(parent_link, parent.child[0] if parent.child[0] else parent.child[1], RELEASE)
    return 2
