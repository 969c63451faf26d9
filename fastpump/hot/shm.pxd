# The memory that the supervisor and its workers share: one mapping, no locks.
#
# Layout: Header | WorkerShared[queues] | PeerSlot[peers] | Keypair[keypairs] |
# TrieNode[nodes]. It is sparse: a page costs memory once it is written.
#
# Who writes what (everybody reads everything):
#   supervisor  Header, the trie, a peer's send_keypair, a keypair before it is
#               published and after it is retired.
#   the keypair's worker   also send_keypair, when the first message confirms it.
#   whoever gets the odd endpoint_seq   a peer's endpoint: the supervisor, or the worker
#               that hears the peer from elsewhere (its answer must go there already).
#   any worker  Keypair.send_counter, the peer's counters and `armed` bits (atomic),
#               the peer's activity times (plain stores; a lost race moves a timer
#               by less than one turn of a loop), its own WorkerShared.
#   the keypair's worker alone   Keypair.replay. Its number stands in the low bits
#               of the receiver index, and steering keeps to it.
#
# Who owns a (key, counter) pair: whoever takes the counter from `send_counter` by
# an atomic addition. The counter lives here, not in the worker, so that a worker's
# death cannot make one come back.
#
# Publication: fill, then store the index that leads there (release). Retirement:
# unpublish, then wait until each worker's `epoch` has moved or is even (idle), then
# wipe and reuse: a worker that still holds the pointer has finished by then.

from libc.stdint cimport uint32_t, uint64_t, uint8_t

from fastpump.hot.atomics cimport ACQUIRE, RELAXED, RELEASE, fence, load32, or32, store32
from fastpump.hot.limits cimport (
    BATCH_BUCKETS, EVENT_RING_LEN, MESSAGE_LEN, MESSAGE_RING_LEN, REPLAY_WORDS,
)
from fastpump.hot.verdict cimport COUNTER_COUNT, VERDICT_COUNT
from libc.string cimport memcpy

cdef enum:
    NONE = 0xffffffff
    ADDRESS_LEN = 28                # struct sockaddr_in6; an IPv4 endpoint is v4-mapped
    LOCAL_LEN = 16                  # an own address, IPv4 v4-mapped; zeros: unknown

# Bits of PeerSlot.armed: an event of this kind is under way, do not tell again.
cdef enum:
    ARMED_UNANSWERED_TX = 1
    ARMED_UNANSWERED_RX = 2
    ARMED_WANT_SESSION = 4
    ARMED_ROAM = 8
    ARMED_LOCAL_GONE = 16

# Bits of Keypair.flags.
cdef enum:
    KEYPAIR_INITIATOR = 1
    KEYPAIR_UNCONFIRMED = 2         # responder: nothing received on it yet
    KEYPAIR_CONFIRM_TOLD = 4
    KEYPAIR_REKEY_TOLD = 8

# Bits of Header.offloads: what is in use now. Workers clear a bit when it fails.
cdef enum:
    OFFLOAD_UDP_GSO = 1
    OFFLOAD_TUN_TCP4 = 2
    OFFLOAD_TUN_TCP6 = 4
    OFFLOAD_TUN_UDP4 = 8
    OFFLOAD_TUN_UDP6 = 16

cdef enum:
    EVENT_WANT_SESSION = 1          # a packet waits for a session of `peer`
    EVENT_UNANSWERED_TX             # data sent; arm the timer of a silent peer
    EVENT_UNANSWERED_RX             # data received; arm the passive keepalive
    EVENT_CONFIRMED                 # first message on the responder's new keypair
    EVENT_REKEY                     # the keypair in use is old
    EVENT_ROAM                      # `peer` was heard from elsewhere
    EVENT_OFFLOAD_OFF               # `detail` is the OFFLOAD_* bit, `error` the errno
    EVENT_SEND_ERROR                # `error` is the errno of sendmmsg
    EVENT_LOCAL_GONE                # nothing can be sent from the peer's `local` any more

cdef struct Message:
    # A handshake-sized datagram that reached the wrong socket; see hot/messages.pxd.
    uint32_t length
    uint32_t address_len
    uint8_t address[ADDRESS_LEN]
    uint8_t local[LOCAL_LEN]
    uint8_t data[MESSAGE_LEN]

cdef struct MessageRing:
    uint64_t head                   # written by the consumer
    uint64_t padding[7]
    uint64_t tail                   # written by the producer
    Message messages[MESSAGE_RING_LEN]

cdef struct Event:
    uint32_t kind
    uint32_t peer
    uint32_t detail                 # keypair slot or OFFLOAD_* bit
    uint32_t error
    uint64_t at_ns

cdef struct Header:
    uint64_t size
    uint32_t queue_count
    uint32_t peer_capacity
    uint32_t keypair_capacity
    uint32_t node_capacity
    uint32_t worker_bits            # low bits of a receiver index: the worker
    uint32_t slot_bits              # the next: the keypair's slot; the rest is random
    uint64_t workers_at, peers_at, keypairs_at, nodes_at
    uint32_t root[2]                # trie roots, IPv4 and IPv6
    uint32_t offloads
    uint32_t mtu
    uint32_t spread_queues          # how many queues a peer's flows are written to

cdef struct WorkerShared:
    uint64_t epoch                  # odd: inside a turn of the loop; even: waiting
    uint64_t padding[7]
    uint64_t events_head            # written by the supervisor
    uint64_t padding2[7]
    uint64_t events_tail            # written by the worker
    uint64_t verdicts[VERDICT_COUNT]
    uint64_t counters[COUNTER_COUNT]
    uint64_t send_batches[BATCH_BUCKETS]
    uint64_t recv_batches[BATCH_BUCKETS]
    Event events[EVENT_RING_LEN]
    MessageRing up                  # handshake messages for the supervisor
    MessageRing down                # transport messages for the worker

cdef struct PeerSlot:
    # Line 0: configuration, read by all, written by the supervisor.
    uint32_t live
    uint32_t send_keypair           # NONE: no session
    uint32_t purge_count            # moves when staged packets must be dropped
    uint32_t endpoint_seq           # odd while the endpoint is being written
    uint32_t endpoint_len           # 0: unknown
    uint8_t endpoint[ADDRESS_LEN]
    uint8_t local[LOCAL_LEN]        # what datagrams to it leave from; hot/local.pxd
    # Line 1: written by all workers.
    uint32_t armed
    uint32_t padding1
    uint64_t first_unanswered_tx_ns  # 0: every data message was answered
    uint64_t last_tx_ns
    uint64_t tx_bytes
    uint64_t padding2[4]
    # Line 2: written by the worker that receives for this peer.
    uint64_t first_unanswered_rx_ns
    uint64_t last_rx_ns
    uint64_t rx_bytes
    uint64_t padding3[5]

cdef struct Replay:
    uint64_t newest                 # highest counter seen, plus one
    uint64_t bitmap[REPLAY_WORDS]

cdef struct Keypair:
    # Line 0, written before publication.
    uint32_t live
    uint32_t local_index
    uint32_t remote_index
    uint32_t peer
    uint32_t worker
    uint32_t flags
    uint64_t rekey_at_ns            # initiator, sending: REKEY_AFTER_TIME
    uint64_t rekey_rx_at_ns         # initiator, receiving: shortly before rejection
    uint64_t reject_at_ns           # REJECT_AFTER_TIME
    uint8_t padding[16]
    # Line 1.
    uint8_t send_key[32]
    uint8_t receive_key[32]
    # Line 2, contended.
    uint64_t send_counter
    uint64_t padding2[7]
    # Line 3 and on: the receiving worker's.
    Replay replay

cdef struct TrieNode:
    uint64_t bits[2]                # the prefix, left-aligned, host byte order
    uint32_t child[2]
    uint32_t peer                   # NONE: only a fork
    uint32_t prefix_len

cdef struct Tables:
    # A process's view: pointers into its own mapping.
    Header *header
    WorkerShared *workers
    PeerSlot *peers
    Keypair *keypairs
    TrieNode *nodes


cdef inline void tables_resolve(Tables *self, void *base) noexcept nogil:
    cdef uint8_t *start = <uint8_t *>base
    self.header = <Header *>base
    self.workers = <WorkerShared *>(start + self.header.workers_at)
    self.peers = <PeerSlot *>(start + self.header.peers_at)
    self.keypairs = <Keypair *>(start + self.header.keypairs_at)
    self.nodes = <TrieNode *>(start + self.header.nodes_at)


cdef inline Keypair *keypair_find(Tables *self, uint32_t index, uint32_t worker) noexcept nogil:
    """The live keypair of receiver index `index`, if `worker` receives for it."""
    cdef Header *header = self.header
    cdef uint32_t slot = (index >> header.worker_bits) & ((1u << header.slot_bits) - 1)
    cdef Keypair *keypair
    if slot >= header.keypair_capacity:
        return NULL
    keypair = &self.keypairs[slot]
    if not load32(&keypair.live, ACQUIRE):
        return NULL
    if keypair.local_index != index or keypair.worker != worker:
        return NULL
    return keypair


cdef inline bint peer_endpoint_write(PeerSlot *peer, const void *address, uint32_t length,
                                     const uint8_t *local) noexcept nogil:
    """False, and nothing is written, if somebody else is writing it now."""
    cdef uint32_t before = or32(&peer.endpoint_seq, 1, ACQUIRE)
    if before & 1:
        return False
    fence(RELEASE)
    memcpy(peer.endpoint, address, length)
    memcpy(peer.local, local, LOCAL_LEN)
    peer.endpoint_len = length
    store32(&peer.endpoint_seq, before + 2, RELEASE)
    return True


cdef inline uint32_t peer_endpoint_read(PeerSlot *peer, uint8_t *out,
                                        uint8_t *local) noexcept nogil:
    """Copy the endpoint and the own address to send from; the endpoint's length, 0 when it
    is unknown. Retries while they change (which takes a few nanoseconds; bounded all the
    same)."""
    cdef uint32_t before, length
    cdef int _
    for _ in range(1000000):
        before = load32(&peer.endpoint_seq, ACQUIRE)
        if before & 1:
            continue
        length = peer.endpoint_len
        memcpy(out, peer.endpoint, ADDRESS_LEN)
        memcpy(local, peer.local, LOCAL_LEN)
        fence(ACQUIRE)
        if load32(&peer.endpoint_seq, RELAXED) == before:
            return length
    return 0
