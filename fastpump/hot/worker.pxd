# A worker's private state: one struct, allocated once, zeroed, never grown. `of the iteration`:
# set or emptied by each iteration of the loop (hot/loop.pxd).

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uint8_t

from fastpump.hot.aead cimport Aead
from fastpump.hot.batch cimport SendBatch
from fastpump.hot.constants cimport (
    GRO_MAX_TCP_SEGMENTS, MAX_LANE_SOCKETS, MAX_QUEUES, RANDOM_WORDS, REORDER_MESSAGES,
    RESENT_FLOWS, RESENT_REPORTS, SHAPER_BIG, SHAPER_SMALL, STAGED_SLOTS,
)
from fastpump.hot.gro cimport Gro
from fastpump.hot.linux cimport iovec, sockaddr_in6
from fastpump.hot.recv cimport RecvBatch
from fastpump.hot.shm cimport SOURCE_ADDRESS_LEN, Lane, Tables, WorkerShared, peer_count
from fastpump.hot.verdict cimport PASS, Verdict

cdef struct Relay:
    # A relay header (docs/PROTOCOL.md); both parts of `word` 0: none.
    uint64_t word                   # flood id (0: not flooded) and hops
    uint64_t originator             # who brought the frame into the network of tunnels

cdef struct StagedPacket:
    uint32_t peer
    uint32_t purge_count            # of the peer, when the packet was staged
    uint32_t packet_len
    uint32_t slot
    Relay relay

cdef struct Staged:
    # Packets that wait for a session, oldest first; see hot/staged.pxd.
    uint32_t count
    StagedPacket packets[STAGED_SLOTS]
    uint32_t free_count
    uint32_t free_slots[STAGED_SLOTS]
    uint16_t *per_peer              # by peer index
    uint8_t *buffers                # STAGED_SLOTS of BUFFER_STRIDE

cdef struct ReceiveRun:
    # Datagrams in a row on one keypair: its peer's counters are touched once.
    uint32_t peer
    uint64_t bytes

cdef struct ReorderEntry:
    uint64_t until_ns
    uint32_t peer
    bint is_opened                  # else it is as it came
    bint may_pass                   # of the iteration
    uint32_t at                     # in the buffer
    uint32_t length
    uint32_t outer_ecn
    uint32_t sender_len
    sockaddr_in6 sender
    uint8_t source_address[SOURCE_ADDRESS_LEN]

cdef struct ReorderBuffer:
    # Lane messages that came too early, oldest first; see hot/reorder.pxd.
    uint32_t count
    uint32_t bytes
    uint32_t charged                # of REORDER_BYTES
    uint32_t charged_unopened       # of that, what nobody has authenticated
    uint32_t *charged_opened        # of that, by peer
    ReorderEntry entries[REORDER_MESSAGES]
    uint8_t *buffer                 # REORDER_BYTES

cdef struct Bundle:
    # Small packets that wait for the end of the iteration; see hot/bundle.pxd.
    const Lane *lane
    uint32_t count
    uint32_t length
    uint32_t first_flags            # of the first packet, should it stay alone
    uint32_t tos
    uint8_t *buffer                 # BUFFER_STRIDE

cdef struct ShaperEntry:
    uint64_t due_ns
    uint64_t sequence               # of arrival
    Relay relay
    uint32_t peer
    uint32_t purge_count            # of the peer, when it came
    uint32_t slot
    uint32_t length
    uint32_t packet_count           # of a superpacket
    int direction                   # DIRECTION_*
    int fd                          # DIRECTION_RX: the queue that it goes to
    uint32_t offload                # DIRECTION_RX: what a superpacket needs

cdef struct Shaper:
    # Packets that wait for a rate limit, the next one first; see hot/shaper.pxd.
    uint32_t count
    uint64_t sequence
    ShaperEntry heap[SHAPER_SMALL + SHAPER_BIG]
    uint32_t small_free_count, big_free_count
    uint32_t small_free[SHAPER_SMALL]
    uint32_t big_free[SHAPER_BIG]
    uint8_t *small                  # SHAPER_SMALL of SHAPER_SMALL_LEN
    uint8_t *big                    # SHAPER_BIG of BUFFER_STRIDE
    uint64_t *due_ns                # by peer and direction: of the last that was put in
    uint32_t *in_use                # by peer and direction: slots, counted in small ones

cdef struct Resent:
    # A TCP flow to a peer; see hot/resent.pxd.
    uint32_t peer
    uint32_t flow                   # its hash; 0: none
    uint32_t sequence               # of the last large segment
    uint32_t times                  # that it was sent again
    uint64_t since_ns               # its first time; of a report, when that was made

cdef struct Worker:
    Tables tables
    WorkerShared *shared
    uint32_t number
    int tun_fd                      # this worker's queue: what it reads
    int tun_fds[MAX_QUEUES]         # all queues, to write to
    uint32_t queue_count
    uint32_t spread_queues          # of the iteration; 1: write to this worker's queue only
    int udp_fd
    int lane_fds[MAX_LANE_SOCKETS]  # of all workers, to send from; see hot/lane.pxd
    uint32_t own_lane_fds           # we receive on every queue_count-th of them, from `number` on
    int doorbell_fd                 # eventfd: the supervisor changed what staged packets wait for
    int event_fd                    # eventfd: wakes the supervisor to read events
    int epoll_fd
    uint64_t busy_poll_ns
    uint64_t max_pause_ns           # of the iteration; see hot/moderation.pxd
    uint64_t window_began_ns        # when packets were counted last,
    uint64_t window_sent            # those from the interface,
    uint64_t window_received        # those to it,
    uint64_t window_bytes           # the bytes of both,
    uint64_t window_wakeups         # and wake-ups
    uint64_t next_pause_ns
    uint64_t now_ns                 # of the iteration
    uint32_t now_s
    uint32_t mtu                    # of the iteration
    bint has_rate_limits            # of the iteration
    bint takes_control_packets      # of the iteration
    uint32_t tos_copied             # of the iteration
    bint is_tap
    uint32_t lane_flags             # that lane messages may have
    bint is_interface_gone
    uint8_t *read_buffer
    Aead aead
    SendBatch send
    RecvBatch recv
    ReceiveRun receive_run
    uint32_t outer_ecn              # of the message that is looked at (hot/ecn.pxd)
    bint is_reassembled             # that message; or it waited, and it is not known
    uint32_t train_peer             # whose authentic messages the train holds so far; or NONE
    uint64_t *upcalls_full_at_ns    # by peer: its share of what goes up; see hot/upcall.pxd
    uint64_t strangers_full_at_ns
    uint64_t *roams_full_at_ns      # by peer
    uint64_t *paths_full_at_ns      # by peer, of its sessions
    uint64_t icmp_full_at_ns        # the answers of hot/icmp.pxd: nobody is there
    uint64_t too_big_full_at_ns     # and: too big
    Resent resent[RESENT_FLOWS]
    Resent resent_reports[RESENT_REPORTS]   # by peer: the last one
    Staged staged
    ReorderBuffer reorder
    Bundle bundle
    Shaper shaper
    uint8_t *frame_buffer           # BUFFER_STRIDE, for a copy of a flooded or relayed frame
    uint64_t flooded_bytes          # of the iteration
    uint64_t random[RANDOM_WORDS]
    uint32_t random_left
    uint64_t *session_sent_ns       # by peer: when data left by its session
    Gro gro
    iovec write_iov[GRO_MAX_TCP_SEGMENTS + 1]


cdef inline void worker_count(Worker *self, Verdict verdict) noexcept nogil:
    if verdict != PASS:
        self.shared.verdicts[verdict] += 1


cdef inline Verdict peer_verdict(Worker *self, uint32_t peer, Verdict verdict) noexcept nogil:
    """A verdict on its way to `worker_count`, counted for its peer in passing."""
    if verdict != PASS:
        peer_count(&self.tables, peer, verdict, 1)
    return verdict


cdef inline void worker_count_of(Worker *self, uint32_t peer, Verdict verdict,
                                 uint32_t packets) noexcept nogil:
    """Count a verdict that concerns several packets of a peer."""
    self.shared.verdicts[verdict] += packets
    peer_count(&self.tables, peer, verdict, packets)
