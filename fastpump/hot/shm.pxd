# The memory that the supervisor and its workers share: two mappings, no locks.
#
#   configuration   Header, PeerSlot, Keypair, Lane, TrieNode. Only the supervisor writes it;
#                   workers have it by a read-only descriptor, and cannot map it otherwise.
#   state           InterfaceState, WorkerShared, PeerState, KeypairState, LaneState, Limiter,
#                   verdicts of peers and, of a TAP, MacEntry and hashes of flooded frames
#                   (`duplicates`): what workers write.
#
# Arrays and their order: hot/layout.pxd. A slot has one number in both.
#
# What a worker can write, the supervisor, which has the private key, does not believe. No bound,
# index or length of its own comes from the state: those are in the configuration, and where it
# is in a ring is a copy of its own (core_parts/workers.pxi). What it takes out of the state is
# loaded once, checked, and then used; a loop over the state ends by a bound of the configuration.
# So a worker that was taken over can lie about traffic and endpoints, but not make the supervisor
# read or write elsewhere, or end. Workers do trust each other.
#
# Who writes what of the state (everybody reads everything):
#   the supervisor, or the session's worker   a peer's lanes: the worker takes them away when the
#               peer has lost them (hot/fence.pxd).
#   the supervisor, or the keypair's worker   send_keypair: the worker when the first message
#               confirms the keypair.
#   whoever gets the odd sequence of an Endpoint   the supervisor, or the worker that
#               receives from another address (its answer must go there already).
#   any worker  KeypairState.send_counter, the peer's counters and `reported` bits (atomic),
#               the peer's activity times (plain stores; a lost race moves a timer
#               by less than one iteration of a loop), its own WorkerShared.
#   the keypair's worker alone   KeypairState.replay. Its number stands in the low bits
#               of the receiver index, and steering keeps to it.
#   the lane's worker alone      all of a LaneState that packets change. Exceptions: `bits` and
#               `send_counter`, both atomic (the supervisor sends probes, and other
#               workers send while their own lanes are dead); and what those others store plainly
#               then: the times for timers, where a lost race moves a timer, `tx_bytes`, which
#               may lack some, `is_started` and `is_fenced` (hot/fence.pxd).
#   any worker  MacEntry (hot/fdb.pxd), duplicates[] (hot/duplicates.pxd),
#               Bucket (hot/token_bucket.pxd), verdicts of peers: atomic.
#   the supervisor   a slot's state before it is published and after it is retired.
#
# Who owns a (key, counter) pair: whoever takes the counter from `send_counter` by
# an atomic addition. The counter lives here, not in the worker, so that a worker's
# death cannot make one come back.
#
# Publication: fill, then store the index that leads there (release). Retirement: unpublish,
# then wipe and reuse after a grace period (hot/reclaim.pxd).

from libc.stdint cimport uint32_t, uint64_t, uint8_t

from fastpump.hot.aead cimport AEAD_KEY_LEN
from fastpump.hot.atomics cimport ACQUIRE, RELAXED, add64, load32
from fastpump.hot.constants cimport (
    BATCH_BUCKETS, CONTROL_PACKET_LEN, CONTROL_RING_LEN, EVENT_RING_LEN, MISDELIVERED_LEN,
    MISDELIVERED_RING_LEN, REPLAY_WORDS,
)
from fastpump.hot.verdict cimport COUNTER_COUNT, VERDICT_COUNT, Verdict

cdef enum:
    NONE = 0xffffffff
    UNPROBED = 0xfffffffe           # PeerSlot.payload_mtu: nothing is known of the path
    ADDRESS_LEN = 28                # struct sockaddr_in6; an IPv4 endpoint is v4-mapped
    SOURCE_ADDRESS_LEN = 16         # one of ours; IPv4 v4-mapped; zeros: unknown

# Bits of PeerState.reported: an event of this kind was sent, and is not sent again before the
# supervisor has dealt with it and cleared the bit. So for all *_REPORTED.
cdef enum:
    REPORTED_UNANSWERED_TX = 1
    REPORTED_UNANSWERED_RX = 2
    REPORTED_WANT_SESSION = 4
    REPORTED_ROAM = 8
    REPORTED_SOURCE_ADDRESS_GONE = 16
    REPORTED_GSO_REFUSED = 32
    REPORTED_LOOP = 64
    REPORTED_RESENT = 128
    REPORTED_RESENT_ACKED = 256

# Bits of KeypairState.flags.
cdef enum:
    KEYPAIR_INITIATOR = 1
    KEYPAIR_UNCONFIRMED = 2         # responder: nothing received on it yet
    KEYPAIR_CONFIRM_REPORTED = 4
    KEYPAIR_REKEY_REPORTED = 8

# Lane.state.
cdef enum:
    LANE_FREE = 0
    LANE_RESERVED                   # the peer knows its index, but its keys are not known yet
    LANE_LIVE

# Bits of LaneState.bits.
cdef enum:
    LANE_USABLE = 1                 # the peer sent on it: send on it, too
    LANE_DRAINED = 2                # what the peer sent before it has been written (hot/fence.pxd)
    LANE_ECHO_REPORTED = 4          # the peer wants an echo reply
    LANE_USABLE_REPORTED = 8
    LANE_REKEY_REPORTED = 16
    LANE_UNANSWERED_REPORTED = 32
    LANE_DEAD = 64                  # no answer on it: its flows may take others
    LANE_ROAM_REPORTED = 128
    LANE_RECORDS = 256              # its path brings records whole (hot/record.pxd)

# PeerSlot.policy: what data may travel by.
cdef enum:
    POLICY_ANY
    POLICY_LANES                    # lanes only; packets wait for them
    POLICY_NOTHING                  # lanes only, and the peer does not support them

# Bits of InterfaceState.offloads: what is in use now. Workers clear a bit of the TUN's when it
# fails; which paths refuse UDP GSO stands in their Endpoints (hot/gso.pxd).
cdef enum:
    OFFLOAD_UDP_GSO = 1
    OFFLOAD_TUN_TCP4 = 2
    OFFLOAD_TUN_TCP6 = 4
    OFFLOAD_TUN_UDP4 = 8
    OFFLOAD_TUN_UDP6 = 16

# Event.kind. Their names in Python are these, without EVENT_, in lower case.
cdef enum:
    EVENT_WANT_SESSION = 1          # a packet waits for a session of `peer`
    EVENT_UNANSWERED_TX             # data sent: start the timer of a silent peer
    EVENT_UNANSWERED_RX             # data received: start the timer of the passive keepalive
    EVENT_CONFIRMED                 # first message on the responder's new keypair
    EVENT_REKEY                     # the keypair in use is old
    EVENT_ROAM                      # `peer` sends from another address
    EVENT_OFFLOAD_OFF               # `detail` is the OFFLOAD_TUN_* bit, `error` the errno
    EVENT_SEND_ERROR                # `error` is the errno of sendmmsg, 0: it works again
    EVENT_SOURCE_ADDRESS_GONE       # sendmmsg refused the peer's `source_address`
    EVENT_LANE_USABLE               # first message on the lane in slot `detail`
    EVENT_LANE_ECHO_REQUEST         # the peer wants an echo reply on it
    EVENT_LANE_UNANSWERED           # data left on it, the first since the peer last sent on it
    EVENT_LANE_ROAM                 # the peer sends on it from another address
    EVENT_LOOP                      # a datagram to the peer came back into the interface
    EVENT_GSO_REFUSED               # the way to the peer takes no UDP GSO (EIO)
    EVENT_PATH_PROBE                # it probes the path MTU, on the lane in slot `detail`, or NONE
    EVENT_PATH_ACK                  # it has received such a probe; `error`: hot/path_probe.pxd
    EVENT_RESENT                    # a large TCP segment to the peer was sent again and again
    EVENT_RESENT_ACKED              # that flow goes on; `detail`: it was in pieces that fit, or not
    EVENT_LANE_BULK                 # much leaves on the lane in slot `detail` (hot/record.pxd)
    EVENT_RECORD_CUT                # a record on that lane came in part
    EVENT_RECORDS_END               # the peer says that of ours
    EVENT_COUNT

cdef struct Misdelivered:
    # A handshake-sized datagram that reached the wrong socket; see hot/rings.pxd.
    uint32_t length
    uint32_t address_len
    uint8_t address[ADDRESS_LEN]
    uint8_t source_address[SOURCE_ADDRESS_LEN]
    uint8_t data[MISDELIVERED_LEN]

cdef struct MisdeliveredRing:
    uint64_t head                   # written by the consumer
    uint64_t padding[7]
    uint64_t tail                   # written by the producer
    Misdelivered datagrams[MISDELIVERED_RING_LEN]

cdef struct ControlPacket:
    # A control packet that came in the session with receiver index `local_index`.
    uint32_t peer
    uint32_t local_index
    uint32_t length
    uint8_t data[CONTROL_PACKET_LEN]

cdef struct ControlPacketRing:
    uint64_t head                   # written by the consumer
    uint64_t padding[7]
    uint64_t tail                   # written by the producer
    ControlPacket packets[CONTROL_RING_LEN]

cdef struct Event:
    uint32_t kind
    uint32_t peer
    uint32_t detail                 # keypair slot, lane slot or OFFLOAD_* bit
    uint32_t error                  # an errno, or what the kind says
    uint64_t at_ns

cdef struct Bucket:
    # A token bucket (hot/token_bucket.pxd). What is configured, and its state.
    uint64_t size                   # tokens that it holds; 0: no limit
    uint64_t refill_ns              # until an empty one is full
    uint64_t burst                  # tokens that come only once, what is left of them
    uint64_t empty_ns               # when it was, or will be, empty, plus BUCKET_EPOCH_NS

cdef struct Limiter:
    # Of one direction. One line.
    Bucket bytes
    Bucket ops

cdef extern from *:
    """
    #define FASTPUMP_BUCKET_EPOCH_NS (1ULL << 61)
    """
    # Added to the clock, which may be younger than a full bucket.
    unsigned long long BUCKET_EPOCH_NS "FASTPUMP_BUCKET_EPOCH_NS"

# Which Limiter of two.
cdef enum:
    DIRECTION_TX                    # from the interface into the tunnel
    DIRECTION_RX

# -- the configuration

cdef struct Header:
    uint32_t queue_count
    uint32_t peer_capacity
    uint32_t keypair_capacity
    uint32_t lane_capacity
    uint32_t node_capacity
    uint32_t worker_bits            # low bits of a receiver index: the worker
    uint32_t slot_bits              # the next: the keypair's slot; the rest is random
    uint32_t lane_bits              # low bits of a set's index: the slot of its lane 0
    uint32_t root[2]                # trie roots, IPv4 and IPv6
    uint32_t mtu
    uint32_t spread_queues          # how many queues a peer's flows are written to
    uint32_t peers_end              # no peer has this slot, or one behind it
    uint32_t has_rate_limits        # somewhere: the interface, or any peer
    uint32_t halts                  # odd: nothing may be sent (hot/halt.pxd)
    uint32_t takes_control_packets  # else the transport is plain WireGuard
    uint32_t has_send_errors        # of some peer (hot/send_errors.pxd)
    uint32_t tos_copied             # bits of a packet's TOS that its datagram has, too: ECN, DSCP
    uint32_t tos_fixed              # DSCP bits that it has in any case
    uint32_t max_pause_ns           # for more packets to come (hot/moderation.pxd); 0: none
    uint32_t aead_backends[2]       # by cipher, of all processes: an expanded key is one library's
    # TAP only.
    uint32_t is_tap
    uint32_t is_relay
    uint32_t mac_buckets            # a power of two
    uint32_t mac_limit              # of all MACs that are learned
    uint32_t mac_limit_per_peer
    uint32_t mac_ageing_s
    uint64_t mac_seed
    uint64_t originator_id          # ours, in relay headers of frames that come in here
    uint64_t storm_limit            # flooded frames a second, of each port; 0: no limit

cdef struct PeerSlot:
    uint32_t live
    uint32_t purge_count            # moves when staged packets must be dropped
    uint32_t policy                 # POLICY_*
    uint32_t payload_mtu            # what fits into one message (hot/path_mtu.pxd); NONE: all
    uint64_t originator_id          # in relay headers of frames that come in at the peer
    uint64_t padding1

cdef struct Keypair:
    # Line 0, written before publication.
    uint32_t live
    uint32_t local_index
    uint32_t remote_index
    uint32_t peer
    uint32_t worker
    uint32_t padding
    uint64_t rekey_at_ns            # initiator, sending: REKEY_AFTER_TIME
    uint64_t rekey_rx_at_ns         # initiator, receiving: shortly before rejection
    uint64_t reject_at_ns           # REJECT_AFTER_TIME
    uint8_t padding1[16]
    # Line 1.
    uint8_t send_key[32]
    uint8_t receive_key[32]

cdef struct Lane:
    # Line 0, written before publication. The lanes of a set lie in a row.
    uint32_t state                  # LANE_*
    uint32_t local_index            # of the set: the same for all its lanes
    uint32_t remote_index
    uint32_t peer
    uint32_t number                 # in the set
    uint32_t count                  # of lanes in the set
    uint32_t worker                 # number modulo our queues
    uint32_t socket                 # in Worker.lane_fds; NONE: the one of our port
    uint32_t cipher                 # AEAD_*
    uint32_t features               # FEATURE_*: what the peer takes
    uint64_t rekey_at_ns, rekey_rx_at_ns, reject_at_ns      # as a keypair's
    # Line 1 and on.
    uint8_t send_key[AEAD_KEY_LEN]
    uint8_t receive_key[AEAD_KEY_LEN]

cdef struct TrieNode:
    uint64_t bits[2]                # the prefix, left-aligned, host byte order
    uint32_t child[2]
    uint32_t peer                   # NONE: only a fork
    uint32_t prefix_len

cdef struct Configuration:
    # The supervisor's view, to write.
    Header *header
    PeerSlot *peers
    Keypair *keypairs
    Lane *lanes
    TrieNode *nodes

# -- the state

cdef struct InterfaceState:
    uint32_t offloads               # OFFLOAD_*
    uint32_t mac_count              # learned, of all; counted anew when the table is swept
    uint32_t mac_count_local_port   # of those, at our local port
    uint32_t padding
    Bucket storm                    # flooded frames from the interface
    Bucket moves                    # of them, those that only announce where a host is now

cdef struct WorkerShared:
    uint64_t epoch                  # odd: in an iteration of the loop; even: waiting
    uint64_t padding[7]
    uint64_t events_head            # written by the supervisor
    uint64_t padding2[7]
    uint64_t events_tail            # written by the worker
    uint64_t verdicts[VERDICT_COUNT]
    uint64_t counters[COUNTER_COUNT]
    uint64_t send_batches[BATCH_BUCKETS]
    uint64_t recv_batches[BATCH_BUCKETS]
    Event events[EVENT_RING_LEN]
    MisdeliveredRing up             # handshake messages, for the supervisor
    MisdeliveredRing down           # transport messages, for the worker
    ControlPacketRing controls      # for the supervisor

cdef struct Endpoint:
    # Where a peer is, and what datagrams to it leave from (hot/endpoint.pxd). One line.
    uint32_t sequence               # odd while it is being written; by whom: in its low bits
    uint32_t length                 # 0: unknown
    uint8_t address[ADDRESS_LEN]
    uint8_t source_address[SOURCE_ADDRESS_LEN]
    # Outside of the sequence: hints of workers that send there (hot/gso.pxd).
    uint32_t gso_refused            # segments of this length and more; 0: none
    uint32_t gso_retry_s            # CLOCK_BOOTTIME
    uint32_t gso_failures           # in a row

cdef struct PeerState:
    # Line 0: how packets leave; read by all, seldom written.
    uint32_t send_keypair           # NONE: no session
    uint32_t lanes[2]               # lane 0's slot of the newest set, the one before; or NONE
    uint32_t padding0[13]
    Endpoint endpoint               # of the session
    # Line 2: written by all workers.
    uint32_t reported               # REPORTED_*
    uint32_t mac_count              # learned
    uint64_t first_unanswered_tx_ns  # 0: every data message was answered
    uint64_t last_tx_ns
    uint64_t tx_bytes
    uint32_t send_error             # the errno that was reported, 0 for none: hot/send_errors.pxd
    uint32_t padding1
    uint64_t send_failed_ns, send_reported_ns
    uint64_t padding2[1]
    # Line 3: written by the worker that receives for this peer.
    uint64_t first_unanswered_rx_ns
    uint64_t last_rx_ns
    uint64_t rx_bytes
    Bucket storm                    # flooded frames from the peer
    uint64_t padding3[1]

cdef struct Replay:
    uint64_t newest                 # highest counter accepted, plus one
    uint64_t bitmap[REPLAY_WORDS]

cdef struct KeypairState:
    # Line 0, atomic, contended.
    uint64_t send_counter
    uint32_t flags                  # KEYPAIR_*
    uint32_t padding[13]
    # Line 1 and on: the receiving worker's.
    Replay replay
    uint8_t padding1[56]

cdef struct LaneState:
    # Line 0.
    Endpoint endpoint
    # Line 1, atomic.
    uint32_t bits
    uint32_t padding0
    uint64_t send_counter
    uint64_t padding1[6]
    # Line 2 and on: the lane's worker's.
    uint64_t first_unanswered_tx_ns     # 0: the peer sent on it since
    uint64_t last_tx_ns, last_rx_ns
    uint64_t tx_bytes, rx_bytes
    uint64_t reorder_count          # messages that wait (hot/reorder.pxd)
    uint32_t is_started             # something was sent on it
    uint32_t is_fenced              # an end marker was sent for it (hot/fence.pxd)
    uint64_t last_data_ns           # as last_tx_ns, of data
    Replay replay
    # Its share of events (hot/upcall.pxd).
    uint64_t roam_full_at_ns, echo_full_at_ns, path_full_at_ns
    uint64_t bulk_until_ns          # superpackets that left until then (hot/record.pxd)
    uint64_t cuts_full_at_ns        # records that came in part: their share of events
    uint32_t bulk_bytes
    uint32_t open_len               # of the last datagram sent, if a train may go on behind it
    uint8_t padding2[8]

cdef struct MacEntry:
    uint64_t key                    # MAC_*: address and VLAN; 0: free
    uint64_t value                  # owner, hops, time of the last frame from it

cdef struct Tables:
    # A process's view: pointers into its own mappings.
    const Header *header
    const PeerSlot *peers
    const Keypair *keypairs
    const Lane *lanes
    const TrieNode *nodes
    InterfaceState *interface
    WorkerShared *workers
    PeerState *peer_states
    KeypairState *keypair_states
    LaneState *lane_states
    Limiter *limiters               # by DIRECTION_*: two of the interface; then two of each peer
    MacEntry *macs
    uint64_t *duplicates
    uint64_t *peer_verdicts         # VERDICT_COUNT of each peer


cdef inline void peer_count(Tables *tables, uint32_t peer, Verdict verdict,
                            uint64_t count) noexcept nogil:
    """Count a verdict for a peer; for the worker the caller counts it."""
    add64(&tables.peer_verdicts[<size_t>peer * VERDICT_COUNT + <size_t>verdict], count, RELAXED)


cdef inline const Keypair *keypair_find(const Tables *tables, uint32_t index,
                                        uint32_t worker) noexcept nogil:
    """The live keypair of receiver index `index`, if `worker` receives for it."""
    cdef const Header *header = tables.header
    cdef uint32_t slot = (index >> header.worker_bits) & ((1u << header.slot_bits) - 1)
    cdef const Keypair *keypair
    if slot >= header.keypair_capacity:
        return NULL
    keypair = &tables.keypairs[slot]
    if not load32(&keypair.live, ACQUIRE):
        return NULL
    if keypair.local_index != index or keypair.worker != worker:
        return NULL
    return keypair


cdef inline uint32_t keypair_slot(const Tables *tables, const Keypair *keypair) noexcept nogil:
    return <uint32_t>(keypair - tables.keypairs)


cdef inline KeypairState *keypair_state(const Tables *tables,
                                        const Keypair *keypair) noexcept nogil:
    return &tables.keypair_states[keypair - tables.keypairs]


cdef inline LaneState *lane_state(const Tables *tables, const Lane *lane) noexcept nogil:
    return &tables.lane_states[lane - tables.lanes]
