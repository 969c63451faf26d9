# Where the arrays of the shared memory lie: two lists, by the capacities in the header.
#
# Every process goes through them for its own mappings. Memory is sparse: a page costs something
# once it is written.

from libc.stdint cimport uint64_t, uint8_t

from fastpump.hot.arena cimport PAGE, Arena, arena_take
from fastpump.hot.constants cimport DUPLICATES_BUCKETS, DUPLICATES_WAYS, FDB_WAYS
from fastpump.hot.shm cimport (
    Configuration, Header, InterfaceState, Keypair, KeypairState, Lane, LaneState, Limiter,
    MacEntry, PeerSlot, PeerState, Tables, TrieNode, WorkerShared,
)
from fastpump.hot.verdict cimport VERDICT_COUNT


cdef inline size_t configuration_lay_out(Configuration *self, const Header *header,
                                         void *memory) noexcept nogil:
    """Point `self` to the arrays in `memory`; how many bytes they take. `memory` is NULL to
    find that out first; `header` has the capacities, and may be elsewhere until then."""
    cdef Arena arena
    arena.memory = <uint8_t *>memory
    arena.used = 0
    self.header = <Header *>arena_take(&arena, PAGE)
    self.peers = <PeerSlot *>arena_take(&arena, header.peer_capacity * sizeof(PeerSlot))
    self.keypairs = <Keypair *>arena_take(&arena, header.keypair_capacity * sizeof(Keypair))
    self.lanes = <Lane *>arena_take(&arena, header.lane_capacity * sizeof(Lane))
    self.nodes = <TrieNode *>arena_take(&arena, header.node_capacity * sizeof(TrieNode))
    return arena.used


cdef inline size_t state_lay_out(Tables *self, const Header *header, void *memory) noexcept nogil:
    """The same for the state; `header` is the configuration's."""
    cdef Arena arena
    arena.memory = <uint8_t *>memory
    arena.used = 0
    self.interface = <InterfaceState *>arena_take(&arena, sizeof(InterfaceState))
    self.workers = <WorkerShared *>arena_take(&arena, header.queue_count * sizeof(WorkerShared))
    self.peer_states = <PeerState *>arena_take(&arena, header.peer_capacity * sizeof(PeerState))
    self.keypair_states = <KeypairState *>arena_take(
        &arena, header.keypair_capacity * sizeof(KeypairState))
    self.lane_states = <LaneState *>arena_take(&arena, header.lane_capacity * sizeof(LaneState))
    self.limiters = <Limiter *>arena_take(
        &arena, 2 * (1 + <size_t>header.peer_capacity) * sizeof(Limiter))
    self.peer_verdicts = <uint64_t *>arena_take(
        &arena, header.peer_capacity * VERDICT_COUNT * sizeof(uint64_t))
    if header.is_tap:
        self.macs = <MacEntry *>arena_take(
            &arena, header.mac_buckets * FDB_WAYS * sizeof(MacEntry))
        self.duplicates = <uint64_t *>arena_take(
            &arena, DUPLICATES_BUCKETS * DUPLICATES_WAYS * sizeof(uint64_t))
    return arena.used


cdef inline void tables_view(Tables *self, const Configuration *configuration) noexcept nogil:
    """Have readers find the configuration."""
    self.header = configuration.header
    self.peers = configuration.peers
    self.keypairs = configuration.keypairs
    self.lanes = configuration.lanes
    self.nodes = configuration.nodes
