"""The data plane, as Python sees it.

Thin: the mechanisms are inline functions in hot/*.pxd, compiled into this one
module. Here live the objects that own memory:

SharedTables  the supervisor's hand on the shared memory (layout: hot/shm.pxd)
Pump          one worker: its buffers, its loop
Intake        the supervisor's handshake socket: its buffers, what is let in
and plain functions over the same inline code, for tests and tools.

Three kinds of errors: hostile input ends in a counted verdict; a system error
(-errno) is raised here, once; a caller's bug raises ValueError or IndexError.
"""

import os
import socket
import sys

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint16_t, uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from fastpump.hot.aead cimport (
    AEAD_AES_256_GCM, AEAD_CHACHA20_POLY1305, AEAD_IPSEC_MB, AEAD_KEY_LEN, AEAD_OPENSSL,
    AEAD_RAW_KEY_LEN, Aead, aead_free, aead_has_ipsec_mb, aead_init, aead_is_null, aead_key_set,
    aead_open, aead_seal,
)
from fastpump.hot.atomics cimport (
    ACQUIRE, RELAXED, RELEASE, SEQ_CST, add32, add64, and32, cas64, fence, load32, load64, or32,
    store32, store64,
)
from fastpump.hot.batch cimport send_init
from fastpump.hot.fdb cimport (
    MAC_LOCAL, MAC_NOBODY, MAC_STATIC, MAC_VALID, mac_bucket, mac_busy, mac_claim, mac_fill,
    mac_find, mac_forget, mac_is_aged, mac_key, mac_lookup, mac_owner, mac_value, mac_victim,
)
from fastpump.hot.gro cimport (
    Candidate, Gro, gro_is_full, gro_receive, gro_reset, item_finish,
)
from fastpump.hot.ingress cimport recv_init, take_held
from fastpump.hot.admission cimport (
    COOKIE_REPLY_LEN, INTAKE_ACCEPT, INTAKE_COOKIE, INTAKE_DROP_INVALID_MAC1, INTAKE_DROP_MALFORMED,
    INTAKE_DROP_OVERLOAD, INTAKE_DROP_REPLAYED, INTAKE_DROP_SOURCE_RATE, INTAKE_MESSAGES,
    INTAKE_STRIDE, INTAKE_TRANSPORT, INTAKE_VERDICTS, XChaCha, Intake as IntakeState,
    cookie_reply_write, intake_judge, known_add, mac_free, mac_init, replies_send,
    reply_add, xchacha_free, xchacha_init, xchacha_run,
)
from fastpump.hot.tun_read cimport tun_to_udp
from fastpump.hot.ip cimport ip_can_be_partial
from fastpump.hot.token_bucket cimport limiter_of_peer
from fastpump.hot.constants cimport (
    BATCH_BUCKETS, BUFFER_STRIDE, CONTROL_LEN, EVENT_RING_LEN, FDB_WAYS, GRO_MAX_TCP_SEGMENTS,
    HELD_BYTES, LANE_FLAGS, LANE_FRAME_FLAGS, MAX_QUEUES, MESSAGE_LEN, READ_HEADROOM, RECV_MESSAGES,
    SEEN_BUCKETS, SEEN_WAYS, SEND_MESSAGES, SHAPE_BIG, SHAPE_SMALL, SHAPE_SMALL_LEN, STAGED_SLOTS,
    TAG_LEN, VNET_HEADER_LEN,
)
from fastpump.hot.constants cimport FEATURE_BUNDLE as _FEATURE_BUNDLE
from fastpump.hot.constants cimport FEATURE_PARTIAL as _FEATURE_PARTIAL
from fastpump.hot.constants cimport MAX_LANES as _MAX_LANES
from fastpump.hot.constants cimport MAX_LANE_SOCKETS as _MAX_LANE_SOCKETS
from fastpump.hot.constants cimport REPLAY_WINDOW as _REPLAY_WINDOW
from fastpump.hot.constants cimport REJECT_AFTER_MESSAGES as _REJECT_AFTER_MESSAGES
from fastpump.hot.linux cimport (
    EAGAIN, EINTR, MADV_DONTDUMP, MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE,
    MAP_SHARED, MSG_DONTWAIT, MSG_TRUNC, PROT_READ, PROT_WRITE, errno, iovec, madvise, mmap,
    msghdr, munmap, now_ns, recvmmsg, sockaddr_in6,
)
from fastpump.hot.pktinfo cimport RECV_CONTROL_LEN, control_read

from fastpump.hot.loop cimport (
    loop_doorbell, loop_init, loop_receive, loop_release, loop_run, loop_turn,
)
from fastpump.hot.lookup cimport lookup_peer, prefix_load
from fastpump.hot.rings cimport (
    control_first, control_pop, message_first, message_pop, message_push,
)
from fastpump.hot.packet cimport Packet, packet_parse
from fastpump.hot.replay cimport replay_is_fresh, replay_mark
from fastpump.hot.sandbox cimport (
    sandbox_drop_capabilities, sandbox_filter_syscalls, sandbox_tie_to_parent,
)
from fastpump.hot.shaper cimport shape_init
from fastpump.hot.shm cimport (
    ADDRESS_LEN, ARMED_LOCAL_GONE, ARMED_ROAM, ARMED_UNANSWERED_RX, ARMED_UNANSWERED_TX,
    ARMED_WANT_SESSION, EVENT_CONFIRMED, EVENT_LANE_ASKED, EVENT_LANE_ROAM, EVENT_LANE_UNANSWERED,
    EVENT_LANE_USABLE, EVENT_LOCAL_GONE, EVENT_OFFLOAD_OFF, EVENT_REKEY, EVENT_ROAM,
    EVENT_SEND_ERROR, EVENT_UNANSWERED_RX, EVENT_UNANSWERED_TX, EVENT_WANT_SESSION,
    KEYPAIR_CONFIRM_TOLD, KEYPAIR_INITIATOR, KEYPAIR_REKEY_TOLD, KEYPAIR_UNCONFIRMED, LANE_ASKED,
    LANE_DEAD, LANE_FREE, LANE_LIVE, LANE_REKEY_TOLD, LANE_RESERVED, LANE_ROAM_TOLD,
    LANE_UNANSWERED_TOLD, LANE_USABLE, LANE_USABLE_TOLD, LIMIT_RX, LIMIT_TX, LOCAL_LEN, NONE,
    OFFLOAD_TUN_TCP4, OFFLOAD_TUN_TCP6, OFFLOAD_TUN_UDP4, OFFLOAD_TUN_UDP6, OFFLOAD_UDP_GSO,
    POLICY_ANY, POLICY_LANES, POLICY_NOTHING, BUCKET_EPOCH_NS, Bucket, Control, ControlRing,
    Endpoint, Event, Header, Keypair, Lane, Limiter, MacEntry, Message, MessageRing, PeerSlot,
    Replay, Tables, TrieNode, WorkerShared, endpoint_read, endpoint_write, tables_resolve,
)
from fastpump.hot.split cimport Splitter, splitter_init, splitter_next
from fastpump.hot.staged cimport staged_init
from fastpump.hot.trie cimport trie_insert, trie_move, trie_remove
from fastpump.hot cimport verdict as v
from fastpump.hot.vnet cimport VnetHeader, vnet_checksum_complete, vnet_load
from fastpump.hot.worker cimport Worker

VERDICT_NAMES = {
    v.DROP_MALFORMED_PACKET: "DROP_MALFORMED_PACKET",
    v.DROP_NO_PEER: "DROP_NO_PEER",
    v.DROP_NO_ENDPOINT: "DROP_NO_ENDPOINT",
    v.DROP_STAGED_FULL: "DROP_STAGED_FULL",
    v.DROP_STAGED_TIMEOUT: "DROP_STAGED_TIMEOUT",
    v.DROP_COUNTER_LIMIT: "DROP_COUNTER_LIMIT",
    v.DROP_NO_LANES: "DROP_NO_LANES",
    v.DROP_TOO_BIG: "DROP_TOO_BIG",
    v.DROP_LOCAL_FRAME: "DROP_LOCAL_FRAME",
    v.DROP_STORM: "DROP_STORM",
    v.DROP_RATE_LIMIT: "DROP_RATE_LIMIT",
    v.DROP_SEND_BUFFER_FULL: "DROP_SEND_BUFFER_FULL",
    v.DROP_SEND_ERROR: "DROP_SEND_ERROR",
    v.DROP_MALFORMED_MESSAGE: "DROP_MALFORMED_MESSAGE",
    v.DROP_TRUNCATED: "DROP_TRUNCATED",
    v.DROP_UNKNOWN_INDEX: "DROP_UNKNOWN_INDEX",
    v.DROP_EXPIRED_KEYPAIR: "DROP_EXPIRED_KEYPAIR",
    v.DROP_REPLAYED: "DROP_REPLAYED",
    v.DROP_UNAUTHENTIC: "DROP_UNAUTHENTIC",
    v.DROP_MALFORMED_INNER: "DROP_MALFORMED_INNER",
    v.DROP_CONTROL_FULL: "DROP_CONTROL_FULL",
    v.DROP_MALFORMED_PARTIAL: "DROP_MALFORMED_PARTIAL",
    v.DROP_MALFORMED_BUNDLE: "DROP_MALFORMED_BUNDLE",
    v.DROP_NOT_IN_LANES: "DROP_NOT_IN_LANES",
    v.DROP_HOLD_FULL: "DROP_HOLD_FULL",
    v.DROP_SOURCE_NOT_ALLOWED: "DROP_SOURCE_NOT_ALLOWED",
    v.DROP_MAC_LOCKED: "DROP_MAC_LOCKED",
    v.DROP_DUPLICATE_FRAME: "DROP_DUPLICATE_FRAME",
    v.DROP_HOP_LIMIT: "DROP_HOP_LIMIT",
    v.DROP_INTERFACE_DOWN: "DROP_INTERFACE_DOWN",
    v.DROP_INTERFACE_FULL: "DROP_INTERFACE_FULL",
    v.DROP_INTERFACE_ERROR: "DROP_INTERFACE_ERROR",
    v.FAILED_UDP_GSO: "FAILED_UDP_GSO",
    v.FAILED_TUN_GSO: "FAILED_TUN_GSO",
    v.FAILED_INTERFACE_READ: "FAILED_INTERFACE_READ",
    v.FAILED_MAC_LIMIT: "FAILED_MAC_LIMIT",
    v.FAILED_EVENT_RING_FULL: "FAILED_EVENT_RING_FULL",
}
COUNTER_NAMES = {
    v.TUN_RX_PACKETS: "tun_rx_packets",
    v.TUN_RX_BYTES: "tun_rx_bytes",
    v.TUN_RX_SUPERPACKETS: "tun_rx_superpackets",
    v.UDP_TX_DATAGRAMS: "udp_tx_datagrams",
    v.UDP_TX_BYTES: "udp_tx_bytes",
    v.UDP_TX_MESSAGES: "udp_tx_messages",
    v.UDP_TX_CALLS: "udp_tx_calls",
    v.UDP_TX_BUNDLES: "udp_tx_bundles",
    v.UDP_RX_DATAGRAMS: "udp_rx_datagrams",
    v.UDP_RX_BYTES: "udp_rx_bytes",
    v.UDP_RX_MESSAGES: "udp_rx_messages",
    v.UDP_RX_CALLS: "udp_rx_calls",
    v.TUN_TX_PACKETS: "tun_tx_packets",
    v.TUN_TX_BYTES: "tun_tx_bytes",
    v.TUN_TX_WRITES: "tun_tx_writes",
    v.TUN_TX_SUPERPACKETS: "tun_tx_superpackets",
    v.KEEPALIVES_RECEIVED: "keepalives_received",
    v.FRAMES_FLOODED: "frames_flooded",
    v.FRAMES_RELAYED: "frames_relayed",
    v.MACS_LEARNED: "macs_learned",
    v.MACS_MOVED: "macs_moved",
    v.SHAPED_PACKETS: "shaped_packets",
    v.WAKEUPS: "wakeups",
}
assert len(VERDICT_NAMES) == v.VERDICT_COUNT - 1
assert len(COUNTER_NAMES) == v.COUNTER_COUNT

EVENT_NAMES = {
    EVENT_WANT_SESSION: "want_session",
    EVENT_UNANSWERED_TX: "unanswered_tx",
    EVENT_UNANSWERED_RX: "unanswered_rx",
    EVENT_CONFIRMED: "confirmed",
    EVENT_REKEY: "rekey",
    EVENT_ROAM: "roam",
    EVENT_OFFLOAD_OFF: "offload_off",
    EVENT_SEND_ERROR: "send_error",
    EVENT_LOCAL_GONE: "local_gone",
    EVENT_LANE_USABLE: "lane_usable",
    EVENT_LANE_ASKED: "lane_asked",
    EVENT_LANE_ROAM: "lane_roam",
    EVENT_LANE_UNANSWERED: "lane_unanswered",
}
OFFLOAD_BITS = {
    "udp-gso": OFFLOAD_UDP_GSO,
    "tun-tcp4": OFFLOAD_TUN_TCP4,
    "tun-tcp6": OFFLOAD_TUN_TCP6,
    "tun-udp4": OFFLOAD_TUN_UDP4,
    "tun-udp6": OFFLOAD_TUN_UDP6,
}
ARMED_BITS = {
    "unanswered_tx": ARMED_UNANSWERED_TX,
    "unanswered_rx": ARMED_UNANSWERED_RX,
    "want_session": ARMED_WANT_SESSION,
    "roam": ARMED_ROAM,
    "local_gone": ARMED_LOCAL_GONE,
}
LIMIT_WAYS = {"tx": LIMIT_TX, "rx": LIMIT_RX}
LANE_BITS = {
    "asked": LANE_ASKED,
    "usable_told": LANE_USABLE_TOLD,
    "unanswered_told": LANE_UNANSWERED_TOLD,
    "rekey_told": LANE_REKEY_TOLD,
    "roam_told": LANE_ROAM_TOLD,
}
POLICIES = {"any": POLICY_ANY, "lanes": POLICY_LANES, "nothing": POLICY_NOTHING}
CIPHERS = {"chacha20-poly1305": AEAD_CHACHA20_POLY1305, "aes-256-gcm": AEAD_AES_256_GCM}
FEATURE_PARTIAL, FEATURE_BUNDLE = _FEATURE_PARTIAL, _FEATURE_BUNDLE
HAS_NULL_CIPHER = bool(aead_is_null())
REPLAY_WINDOW = _REPLAY_WINDOW
REJECT_AFTER_MESSAGES = _REJECT_AFTER_MESSAGES
NO_SLOT = NONE
LOCAL_SIDE = MAC_LOCAL
BACKENDS = ("openssl", "ipsec-mb") if aead_has_ipsec_mb() else ("openssl",)

cdef enum:
    PAGE = 4096
    MOVES_PER_S = 100               # hosts that come over, and are told of


cdef uint64_t round_up(uint64_t value, uint64_t multiple):
    return (value + multiple - 1) // multiple * multiple


cdef int backend_number(str name) except -1:
    if name not in BACKENDS:
        raise ValueError(f"AEAD backend {name!r} is not in this build; it has: "
                         + ", ".join(BACKENDS))
    return AEAD_IPSEC_MB if name == "ipsec-mb" else AEAD_OPENSSL


def default_backend():
    """The AEAD backend's name: FASTPUMP_AEAD if set, else the fastest in this build."""
    name = os.environ.get("FASTPUMP_AEAD") or BACKENDS[len(BACKENDS) - 1]
    backend_number(name)
    return name


cdef void *map_memory(size_t size, int fd) except NULL:
    """Map shared (fd >= 0) or private memory that no core dump shows."""
    cdef int flags = MAP_SHARED if fd >= 0 else MAP_PRIVATE | MAP_ANONYMOUS
    cdef void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0)
    if memory == MAP_FAILED:
        raise OSError(errno, f"cannot map {size} bytes: {os.strerror(errno)}")
    madvise(memory, size, MADV_DONTDUMP)
    if fd < 0:
        madvise(memory, size, MADV_HUGEPAGE)    # fewer TLB misses in the packet buffers
    return memory


cdef class SharedTables:
    """The tables that the supervisor writes and the workers read.

    Create them with `create`, hand `fd` to the workers, who `attach`. Slots are
    plain integers. All changes are safe while workers run.
    """

    cdef readonly int fd
    cdef Tables tables
    cdef size_t size
    cdef list free_peers, free_keypairs, free_nodes
    cdef dict free_lanes            # slots of lane 0, by the length of the run: 1, 2, 4, ...
    cdef uint32_t next_peer, next_keypair, next_node, next_lane
    cdef Aead aead                  # to expand lane keys with
    cdef list retired               # (kind, slot) since `waiting` was snapshot
    cdef list waiting
    cdef list waiting_epochs

    def __cinit__(self):
        self.fd = -1
        self.free_peers, self.free_keypairs, self.free_nodes = [], [], []
        self.free_lanes = {}
        self.retired, self.waiting, self.waiting_epochs = [], [], []

    def __dealloc__(self):
        aead_free(&self.aead)
        if self.tables.header != NULL:
            munmap(self.tables.header, self.size)

    def close(self):
        """Close the file descriptor; the mapping stays until the object goes."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @classmethod
    def create(cls, uint32_t queue_count, uint32_t peer_capacity=16384,
               uint32_t node_capacity=1 << 20, *, str backend=None, bint is_tap=False,
               uint32_t mac_limit=32768):
        """New, empty tables for `queue_count` workers (1 to 256), whose AEAD backend it is. A
        TAP's have room for so many MAC addresses."""
        cdef SharedTables self = cls.__new__(cls)
        cdef Header header
        cdef uint64_t at
        if not 1 <= queue_count <= MAX_QUEUES:
            raise ValueError(f"a TUN has 1 to {MAX_QUEUES} queues, not {queue_count}")
        memset(&header, 0, sizeof(header))
        header.queue_count = queue_count
        header.peer_capacity = peer_capacity
        # Three keypairs a peer, one handshake under way.
        header.keypair_capacity = 4 * peer_capacity
        header.node_capacity = node_capacity
        # Three sets a peer, of as many lanes as we have queues or a few more.
        header.lane_capacity = peer_capacity * 3 * max(4, min(queue_count, 16))
        header.lane_bits = (header.lane_capacity - 1).bit_length()
        header.worker_bits = (queue_count - 1).bit_length()
        header.slot_bits = (header.keypair_capacity - 1).bit_length()
        header.workers_at = at = PAGE
        header.peers_at = at = round_up(at + queue_count * sizeof(WorkerShared), PAGE)
        header.keypairs_at = at = round_up(at + peer_capacity * sizeof(PeerSlot), PAGE)
        header.lanes_at = at = round_up(at + header.keypair_capacity * sizeof(Keypair), PAGE)
        header.nodes_at = at = round_up(at + header.lane_capacity * sizeof(Lane), PAGE)
        header.limits_at = at = round_up(at + node_capacity * sizeof(TrieNode), PAGE)
        header.macs_at = at = round_up(at + 2 * (1 + peer_capacity) * sizeof(Limiter), PAGE)
        if is_tap:
            header.is_tap = True
            header.mac_limit = header.mac_limit_per_peer = mac_limit
            # A quarter full, so that hardly a bucket overflows.
            header.mac_buckets = 1 << max(4 * mac_limit // FDB_WAYS - 1, 1).bit_length()
            header.mac_seed = int.from_bytes(os.urandom(8), "little")
            header.mac_ageing_s = 300
            at = round_up(at + header.mac_buckets * FDB_WAYS * sizeof(MacEntry), PAGE)
            header.seen_at = at
            at += SEEN_BUCKETS * SEEN_WAYS * 8
        header.size = round_up(at, PAGE)
        fd = os.memfd_create("fastpump", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, header.size)
            self.attach_fd(fd, header.size)
        except BaseException:
            os.close(fd)
            raise
        memcpy(self.tables.header, &header, sizeof(header))
        tables_resolve(&self.tables, self.tables.header)
        self.next_node = 1
        if aead_init(&self.aead, backend_number(backend or default_backend())) != 0:
            raise OSError("the AEAD library does not start")
        return self

    @classmethod
    def attach(cls, int fd):
        """The tables behind another process's `fd`."""
        cdef SharedTables self = cls.__new__(cls)
        self.attach_fd(fd, os.fstat(fd).st_size)
        tables_resolve(&self.tables, self.tables.header)
        return self

    cdef int attach_fd(self, int fd, size_t size) except -1:
        self.tables.header = <Header *>map_memory(size, fd)
        self.size = size
        self.fd = fd
        return 0

    # -- header

    @property
    def queue_count(self):
        return self.tables.header.queue_count

    @property
    def offloads(self):
        """Names of OFFLOAD_BITS in use now; workers clear what fails."""
        cdef uint32_t bits = load32(&self.tables.header.offloads, RELAXED)
        return [name for name, bit in OFFLOAD_BITS.items() if bits & bit]

    @offloads.setter
    def offloads(self, names):
        cdef uint32_t bits = 0
        for name in names:
            bits |= <uint32_t>OFFLOAD_BITS[name]
        store32(&self.tables.header.offloads, bits, RELAXED)

    @property
    def mtu(self):
        return self.tables.header.mtu

    @mtu.setter
    def mtu(self, uint32_t value):
        store32(&self.tables.header.mtu, value, RELAXED)

    @property
    def spread_queues(self):
        """How many queues the received flows of a peer are written to, by their hash."""
        return self.tables.header.spread_queues

    @spread_queues.setter
    def spread_queues(self, uint32_t value):
        store32(&self.tables.header.spread_queues, value, RELAXED)

    # -- peers

    cdef PeerSlot *peer(self, uint32_t slot) except NULL:
        if slot >= self.next_peer or not self.tables.peers[slot].live:
            raise IndexError(f"no peer in slot {slot}")
        return &self.tables.peers[slot]

    def peer_add(self):
        """A slot for a new peer; MemoryError when the table is full."""
        cdef uint32_t slot, purge_count
        cdef PeerSlot *peer
        if not self.free_peers:
            self.reclaim_all()
        if self.free_peers:
            slot = self.free_peers.pop()
        elif self.next_peer < self.tables.header.peer_capacity:
            slot = self.next_peer
            self.next_peer += 1
            store32(&self.tables.header.peers_end, self.next_peer, RELEASE)
        else:
            raise MemoryError(f"the peer table is full ({self.tables.header.peer_capacity})")
        peer = &self.tables.peers[slot]
        purge_count = peer.purge_count
        memset(peer, 0, sizeof(PeerSlot))
        peer.storm.size = self.tables.header.storm.size
        peer.storm.refill_ns = self.tables.header.storm.refill_ns
        peer.purge_count = purge_count + 1      # what a worker still staged is not its
        peer.send_keypair = peer.lanes[0] = peer.lanes[1] = NONE
        store32(&peer.live, 1, RELEASE)
        return slot

    def peer_remove(self, uint32_t slot):
        """Give the slot back. The caller has taken its prefixes and keypairs away."""
        cdef PeerSlot *peer = self.peer(slot)
        self.macs_flush(slot)
        memset(limiter_of_peer(&self.tables, slot, 0), 0, 2 * sizeof(Limiter))
        if self.tables.header.has_limits:
            self.limits_note()
        store32(&peer.lanes[0], NONE, RELEASE)
        store32(&peer.send_keypair, NONE, RELEASE)
        add32(&peer.purge_count, 1, RELEASE)
        store32(&peer.live, 0, RELEASE)
        self.retired.append(("peer", slot))

    def peer_set_endpoint(self, uint32_t slot, bytes sockaddr, bytes local=bytes(LOCAL_LEN)):
        """`sockaddr`: a struct sockaddr_in or sockaddr_in6 as bytes; b"" for unknown.
        `local`: the own address to send from, 16 bytes; zeros: the kernel's choice."""
        self.endpoint_set(&self.peer(slot).endpoint, sockaddr, local)

    cdef int endpoint_set(self, Endpoint *endpoint, bytes sockaddr, bytes local) except -1:
        cdef const uint8_t *source = <const uint8_t *>PyBytes_AS_STRING(sockaddr)
        cdef const uint8_t *own = <const uint8_t *>PyBytes_AS_STRING(local)
        cdef uint32_t length = <uint32_t>len(sockaddr)
        if length > ADDRESS_LEN or len(local) != LOCAL_LEN:
            raise ValueError(f"a sockaddr of {length} bytes, an own address of {len(local)}")
        for _ in range(1000):
            if endpoint_write(endpoint, source, length, own):
                return 0
            os.sched_yield()        # a worker writes it
        # That worker was killed in between.
        store32(&endpoint.sequence, (endpoint.sequence | 1) + 1, RELEASE)
        endpoint_write(endpoint, source, length, own)
        return 0

    cdef tuple endpoint_get(self, Endpoint *endpoint):
        cdef uint8_t address[ADDRESS_LEN]
        cdef uint8_t local[LOCAL_LEN]
        cdef uint32_t length
        memset(local, 0, LOCAL_LEN)
        length = endpoint_read(endpoint, address, local)
        return (PyBytes_FromStringAndSize(<char *>address, length),
                PyBytes_FromStringAndSize(<char *>local, LOCAL_LEN))

    def peer_endpoint(self, uint32_t slot):
        """(sockaddr, own address) as the workers have them; (b"", zeros) for unknown."""
        return self.endpoint_get(&self.peer(slot).endpoint)

    def set_own_id(self, uint64_t id):
        """What relay headers say of frames that come in here (docs/PROTOCOL.md)."""
        store64(&self.tables.header.own_id, id, SEQ_CST)

    def peer_set_id(self, uint32_t slot, uint64_t id):
        """What they say of frames that came in at the peer."""
        store64(&self.peer(slot).id, id, SEQ_CST)

    def peer_set_policy(self, uint32_t slot, str policy):
        """What the peer's data may travel by: "any" way, "lanes" only, or "nothing"."""
        store32(&self.peer(slot).policy, POLICIES[policy], RELAXED)

    def peer_set_lanes(self, uint32_t slot, newest, older):
        """The sets of lanes that workers send on, by the slots of their first lanes; None for
        none."""
        cdef PeerSlot *peer = self.peer(slot)
        store32(&peer.lanes[1], NONE if older is None else older, SEQ_CST)
        store32(&peer.lanes[0], NONE if newest is None else newest, SEQ_CST)

    def peer_set_send_keypair(self, uint32_t slot, keypair):
        """What workers seal with from now on; None for no session."""
        cdef uint32_t value = NONE if keypair is None else keypair
        store32(&self.peer(slot).send_keypair, value, SEQ_CST)

    def peer_purge_staged(self, uint32_t slot):
        """Drop what waits for a session; ring the workers' doorbells afterwards."""
        add32(&self.peer(slot).purge_count, 1, RELEASE)

    def peer_disarm(self, uint32_t slot, str what, uint64_t handled_ns=0):
        """Let workers send the event of that name for the peer again. `handled_ns`: the
        first unanswered packet that was dealt with; a later one is not forgotten."""
        cdef PeerSlot *peer = self.peer(slot)
        cdef uint32_t bit = ARMED_BITS[what]
        if handled_ns and bit == ARMED_UNANSWERED_TX and (
                peer.first_unanswered_tx_ns == handled_ns):
            peer.first_unanswered_tx_ns = 0
        if handled_ns and bit == ARMED_UNANSWERED_RX and (
                peer.first_unanswered_rx_ns == handled_ns):
            peer.first_unanswered_rx_ns = 0
        and32(&peer.armed, ~bit, SEQ_CST)

    def peer_note_sent(self, uint32_t slot, uint64_t now, uint64_t wire_bytes):
        """The supervisor sent something authenticated to the peer (a keepalive)."""
        cdef PeerSlot *peer = self.peer(slot)
        peer.last_tx_ns = now
        peer.first_unanswered_rx_ns = 0
        add64(&peer.tx_bytes, wire_bytes, RELAXED)

    def peer_note_received(self, uint32_t slot, uint64_t now, uint64_t wire_bytes):
        """The supervisor received something authenticated (a handshake message)."""
        cdef PeerSlot *peer = self.peer(slot)
        peer.last_rx_ns = now
        peer.first_unanswered_tx_ns = 0
        add64(&peer.rx_bytes, wire_bytes, RELAXED)

    def peer_activity(self, uint32_t slot):
        """(first_unanswered_tx_ns, first_unanswered_rx_ns, last_tx_ns, last_rx_ns);
        CLOCK_BOOTTIME, 0 for never or nothing unanswered."""
        cdef PeerSlot *peer = self.peer(slot)
        return (peer.first_unanswered_tx_ns, peer.first_unanswered_rx_ns, peer.last_tx_ns,
                peer.last_rx_ns)

    def peer_bytes(self, uint32_t slot):
        """(rx_bytes, tx_bytes) of transport messages, without UDP and IP headers."""
        cdef PeerSlot *peer = self.peer(slot)
        return load64(&peer.rx_bytes, RELAXED), load64(&peer.tx_bytes, RELAXED)

    # -- keypairs

    cdef Keypair *keypair(self, uint32_t slot) except NULL:
        if slot >= self.next_keypair:
            raise IndexError(f"no keypair in slot {slot}")
        return &self.tables.keypairs[slot]

    def keypair_reserve(self, uint32_t worker):
        """(slot, local_index) for a handshake that begins: the index says which worker
        will receive. MemoryError when the table is full."""
        cdef Header *header = self.tables.header
        cdef uint32_t slot
        if worker >= header.queue_count:
            raise IndexError(f"no worker {worker}")
        if not self.free_keypairs:
            self.reclaim_all()
        if self.free_keypairs:
            slot = self.free_keypairs.pop()
        elif self.next_keypair < header.keypair_capacity:
            slot = self.next_keypair
            self.next_keypair += 1
        else:
            raise MemoryError(f"the keypair table is full ({header.keypair_capacity})")
        taken_bits = header.worker_bits + header.slot_bits
        index = int.from_bytes(os.urandom(4), "little") >> taken_bits << taken_bits
        return slot, index | slot << header.worker_bits | worker

    def keypair_install(self, uint32_t slot, uint32_t local_index, uint32_t remote_index,
                        uint32_t peer, uint32_t worker, bytes send_key, bytes receive_key,
                        bint is_initiator, uint64_t rekey_at_ns, uint64_t rekey_rx_at_ns,
                        uint64_t reject_at_ns):
        """Fill a reserved slot and publish it to the receiving worker.

        A responder's keypair is unconfirmed: the worker reports its first message.
        """
        cdef Keypair *keypair = self.keypair(slot)
        if len(send_key) != 32 or len(receive_key) != 32:
            raise ValueError("transport keys have 32 bytes")
        memset(keypair, 0, sizeof(Keypair))
        keypair.local_index = local_index
        keypair.remote_index = remote_index
        keypair.peer = peer
        keypair.worker = worker
        keypair.flags = KEYPAIR_INITIATOR if is_initiator else KEYPAIR_UNCONFIRMED
        keypair.rekey_at_ns = rekey_at_ns
        keypair.rekey_rx_at_ns = rekey_rx_at_ns
        keypair.reject_at_ns = reject_at_ns
        memcpy(keypair.send_key, PyBytes_AS_STRING(send_key), 32)
        memcpy(keypair.receive_key, PyBytes_AS_STRING(receive_key), 32)
        store32(&keypair.live, 1, RELEASE)

    def keypair_confirm(self, uint32_t slot):
        and32(&self.keypair(slot).flags, ~<uint32_t>KEYPAIR_UNCONFIRMED, RELAXED)

    def keypair_rearm_rekey(self, uint32_t slot):
        """Let the workers ask for a rekey again (the last attempt failed)."""
        and32(&self.keypair(slot).flags, ~<uint32_t>KEYPAIR_REKEY_TOLD, RELAXED)

    def keypair_take_counter(self, uint32_t slot, uint32_t local_index):
        """A send counter, taken atomically: nobody else gets it. ValueError if the slot's
        keypair is not the one with that index any more: its counters would begin anew."""
        cdef Keypair *keypair = self.keypair(slot)
        if not load32(&keypair.live, ACQUIRE) or keypair.local_index != local_index:
            raise ValueError(f"the keypair in slot {slot} is gone")
        return add64(&keypair.send_counter, 1, RELAXED)

    def keypair_retire(self, uint32_t slot):
        """Take the keypair out of use; its keys are wiped after the grace period."""
        store32(&self.keypair(slot).live, 0, SEQ_CST)
        self.retired.append(("keypair", slot))

    # -- lanes

    cdef Lane *lane(self, uint32_t slot) except NULL:
        if slot >= self.next_lane:
            raise IndexError(f"no lane in slot {slot}")
        return &self.tables.lanes[slot]

    def lanes_reserve(self, uint32_t peer, uint32_t count):
        """(slot of lane 0, receiver index) for a set of `count` lanes, whose keys are not known
        yet: what comes for it waits. MemoryError when the table is full."""
        cdef Header *header = self.tables.header
        cdef Lane *lane
        cdef uint32_t slot, i
        self.peer(peer)
        if not 1 <= count <= _MAX_LANES:
            raise ValueError(f"a set has 1 to {_MAX_LANES} lanes, not {count}")
        run = 1 << (count - 1).bit_length()     # few sizes, so that each is used again
        if not self.free_lanes.get(run):
            self.reclaim_all()
        if self.free_lanes.get(run):
            slot = self.free_lanes[run].pop()
        elif self.next_lane + run <= header.lane_capacity:
            slot = self.next_lane
            self.next_lane += run
        else:
            raise MemoryError(f"the table of lanes is full ({header.lane_capacity})")
        index = int.from_bytes(os.urandom(4), "little") >> header.lane_bits << header.lane_bits
        index |= slot
        for i in range(count):
            lane = &self.tables.lanes[slot + i]
            lane.local_index = index
            lane.peer = peer
            lane.number = i
            lane.count = count
            lane.worker = i % header.queue_count
            store32(&lane.state, LANE_RESERVED, RELEASE)
        return slot, index

    def lanes_install(self, uint32_t first, uint32_t remote_index, str cipher, uint32_t features,
                      list keys, list endpoints, sockets, uint64_t rekey_at_ns,
                      uint64_t rekey_rx_at_ns, uint64_t reject_at_ns):
        """Make a reserved set live. `keys`: (send, receive) of each lane, 32 bytes each;
        `endpoints`: (sockaddr, own address) of each, b"" for unknown; `sockets`: how many
        lane sockets there are, None if the set uses our port."""
        cdef Lane *lane
        cdef uint32_t i, count = self.lane(first).count
        cdef bytes send_key, receive_key
        if len(keys) != count or len(endpoints) != count:
            raise ValueError(f"{len(keys)} keys, {len(endpoints)} endpoints for {count} lanes")
        for i in range(count):
            lane = self.lane(first + i)
            send_key, receive_key = keys[i]
            if len(send_key) != AEAD_RAW_KEY_LEN or len(receive_key) != AEAD_RAW_KEY_LEN:
                raise ValueError("lane keys have 32 bytes")
            lane.remote_index = remote_index
            lane.socket = NONE if sockets is None else i % <uint32_t>sockets
            lane.cipher = CIPHERS[cipher]
            lane.features = features
            lane.rekey_at_ns = rekey_at_ns
            lane.rekey_rx_at_ns = rekey_rx_at_ns
            lane.reject_at_ns = reject_at_ns
            aead_key_set(&self.aead, lane.cipher, <const uint8_t *>PyBytes_AS_STRING(send_key),
                         lane.send_key)
            aead_key_set(&self.aead, lane.cipher, <const uint8_t *>PyBytes_AS_STRING(receive_key),
                         lane.receive_key)
            sockaddr, local = endpoints[i]
            self.endpoint_set(&lane.endpoint, sockaddr, local)
            store32(&lane.state, LANE_LIVE, RELEASE)

    def lanes_retire(self, uint32_t first):
        """Take a set out of use; its keys are wiped after the grace period."""
        cdef uint32_t i
        for i in range(self.lane(first).count):
            store32(&self.tables.lanes[first + i].state, LANE_FREE, SEQ_CST)
        self.retired.append(("lanes", first))

    def lane_status(self, uint32_t slot):
        """What is known of a lane: a dict; times are CLOCK_BOOTTIME, ns, 0 for never."""
        cdef Lane *lane = self.lane(slot)
        return {
            "number": lane.number,
            "worker": lane.worker,
            "is_usable": load32(&lane.bits, RELAXED) & LANE_USABLE != 0,
            "endpoint": self.endpoint_get(&lane.endpoint)[0],
            "tx_messages": load64(&lane.send_counter, RELAXED),
            "rx_newest": lane.replay.newest,
            "tx_bytes": lane.tx_bytes,
            "rx_bytes": lane.rx_bytes,
            "last_tx_ns": lane.last_tx_ns,
            "last_rx_ns": lane.last_rx_ns,
            "first_unanswered_tx_ns": lane.first_unanswered_tx_ns,
        }

    def lane_endpoint(self, uint32_t slot):
        """(sockaddr, own address) as the lane's worker has them; (b"", zeros) for unknown."""
        return self.endpoint_get(&self.lane(slot).endpoint)

    def lane_set_endpoint(self, uint32_t slot, bytes sockaddr, bytes local=bytes(LOCAL_LEN)):
        """As `peer_set_endpoint`, for a lane."""
        self.endpoint_set(&self.lane(slot).endpoint, sockaddr, local)

    def lane_clear(self, uint32_t slot, str bit):
        """Let something of LANE_BITS be told again."""
        and32(&self.lane(slot).bits, ~<uint32_t>LANE_BITS[bit], SEQ_CST)

    def lane_set_dead(self, uint32_t slot):
        """Let the flows of a lane that is not answered take others, until it is heard."""
        cdef Lane *lane = self.lane(slot)
        or32(&lane.bits, LANE_DEAD, SEQ_CST)
        and32(&lane.bits, ~<uint32_t>LANE_USABLE, SEQ_CST)

    def lane_take_counter(self, uint32_t slot, uint64_t now):
        """A send counter, taken atomically for a message that leaves now."""
        cdef Lane *lane = self.lane(slot)
        lane.last_tx_ns = now
        return add64(&lane.send_counter, 1, RELAXED)

    # -- allowed IPs

    def allowed_insert(self, bytes address, uint32_t prefix_len, uint32_t peer):
        """Give a prefix (4 or 16 address bytes) to a peer, whoever had it before."""
        cdef uint64_t bits[2]
        cdef uint32_t fresh[2]
        cdef uint32_t taken
        cdef bint is_v6 = self.address_is_v6(address, prefix_len)
        self.peer(peer)
        prefix_load(bits, <const uint8_t *>PyBytes_AS_STRING(address), is_v6)
        if trie_move(&self.tables, is_v6, bits, prefix_len, peer):
            return                  # takes no memory: also when there is none
        fresh[0] = self.node_take()
        try:
            fresh[1] = self.node_take()
        except MemoryError:
            self.free_nodes.append(fresh[0])
            raise
        taken = trie_insert(&self.tables, is_v6, bits, prefix_len, peer, fresh)
        for i in range(taken, 2):
            self.free_nodes.append(fresh[i])

    def allowed_remove(self, bytes address, uint32_t prefix_len):
        """Take a prefix away from whoever has it."""
        cdef uint64_t bits[2]
        cdef uint32_t unlinked[2]
        cdef bint is_v6 = self.address_is_v6(address, prefix_len)
        prefix_load(bits, <const uint8_t *>PyBytes_AS_STRING(address), is_v6)
        for i in range(trie_remove(&self.tables, is_v6, bits, prefix_len, unlinked)):
            self.retired.append(("node", unlinked[i]))

    def allowed_lookup(self, bytes address):
        """The peer slot that owns an address, or None."""
        cdef bint is_v6 = self.address_is_v6(address, 0)
        cdef uint32_t peer = lookup_peer(
            &self.tables, <const uint8_t *>PyBytes_AS_STRING(address), is_v6)
        return None if peer == NONE else peer

    cdef bint address_is_v6(self, bytes address, uint32_t prefix_len) except -1:
        if len(address) not in (4, 16) or prefix_len > 8 * len(address):
            raise ValueError(f"{len(address)} address bytes with a prefix of {prefix_len}")
        return len(address) == 16

    cdef uint32_t node_take(self) except 0:
        cdef uint32_t index
        if not self.free_nodes:
            self.reclaim_all()
        if self.free_nodes:
            return self.free_nodes.pop()
        if self.next_node >= self.tables.header.node_capacity:
            raise MemoryError("the table of allowed IPs is full "
                              f"({self.tables.header.node_capacity} nodes)")
        index = self.next_node
        self.next_node += 1
        return index

    # -- MAC addresses (TAP only)

    @property
    def is_tap(self):
        return bool(self.tables.header.is_tap)

    def switch_configure(self, *, bint is_relay, uint32_t ageing_s, uint32_t limit_per_peer,
                         uint64_t storm_limit):
        """`storm_limit`: flooded frames per second, from the interface and from each peer that
        is added later; 0 for none."""
        cdef Header *header = self.tables.header
        cdef uint64_t moves = MOVES_PER_S
        header.is_relay = is_relay
        header.mac_ageing_s = ageing_s
        header.mac_limit_per_peer = limit_per_peer
        self.bucket_set(&header.storm, (storm_limit, 1000000000, 0) if storm_limit else None, 0)
        if storm_limit and storm_limit // 10 < moves:
            moves = storm_limit // 10 + 1
        self.bucket_set(&header.moves, (moves, 1000000000, 0), 0)

    @property
    def switch_configuration(self):
        """What is configured, by the names of fastpump/config.py."""
        cdef Header *header = self.tables.header
        return {"relay": bool(header.is_relay), "mac_ageing_s": header.mac_ageing_s,
                "mac_limit": header.mac_limit_per_peer, "mac_table": header.mac_limit,
                "storm_limit": header.storm.size}

    cdef uint64_t key_of(self, bytes mac, uint32_t vlan) except 0:
        if len(mac) != 6 or mac[0] & 1 or vlan > 4095:
            raise ValueError(f"no address of a host: {mac.hex(':')} in VLAN {vlan}")
        if not self.tables.header.is_tap:
            raise ValueError("a TUN has no MAC addresses")
        return mac_key(int.from_bytes(mac, "big"), vlan)

    def mac_add(self, bytes mac, uint32_t vlan, uint32_t owner, uint64_t now):
        """A static entry: the address is on that side (a peer's slot, or LOCAL_SIDE), and
        locked to it. MemoryError when there is no room for it."""
        cdef uint64_t key = self.key_of(mac, vlan)
        cdef uint32_t now_s = <uint32_t>(now // 1000000000)
        cdef MacEntry *entry
        cdef bint is_busy = False
        if owner != MAC_LOCAL:
            self.peer(owner)
        for _ in range(1000):
            entry = mac_find(&self.tables, key)
            if entry != NULL:
                mac_forget(&self.tables, entry, key)
                continue
            entry = mac_victim(&self.tables, mac_bucket(&self.tables, key), now_s, &is_busy)
            if entry == NULL and not is_busy:
                break
            if entry != NULL and mac_claim(&self.tables, entry, now_s, MAX_QUEUES):
                mac_fill(&self.tables, entry, key, MAC_STATIC | mac_value(owner, 0, 0),
                         MAX_QUEUES)
                return
        raise MemoryError("there is no room for that MAC address")

    def mac_remove(self, bytes mac, uint32_t vlan):
        """Forget an address; False if it was not known."""
        cdef uint64_t key = self.key_of(mac, vlan)
        cdef MacEntry *entry = mac_find(&self.tables, key)
        return entry != NULL and bool(mac_forget(&self.tables, entry, key))

    def mac_owner(self, bytes mac, uint32_t vlan, uint64_t now):
        """On whose side an address is: a peer's slot or LOCAL_SIDE; None when unknown."""
        cdef uint32_t owner = mac_lookup(&self.tables, self.key_of(mac, vlan),
                                         <uint32_t>(now // 1000000000))
        return None if owner == MAC_NOBODY else owner

    def macs(self, uint64_t now):
        """All that is known: [(address, VLAN, owner, is_static, age in seconds)]."""
        cdef uint32_t now_s = <uint32_t>(now // 1000000000)
        cdef MacEntry *entry
        cdef uint64_t key, value, i
        found = []
        for i in range(<uint64_t>self.tables.header.mac_buckets * FDB_WAYS):
            entry = &self.tables.macs[i]
            key, value = load64(&entry.key, ACQUIRE), load64(&entry.value, ACQUIRE)
            if key & MAC_VALID and not mac_is_aged(&self.tables, value, now_s):
                found.append((((key & ~MAC_VALID) >> 12).to_bytes(6, "big"), key & 0xfff,
                              mac_owner(value), bool(value & MAC_STATIC),
                              0 if value & MAC_STATIC else max(0, now_s - (value & 0xffffffff))))
        return found

    def macs_flush(self, owner=None, *, bint with_static=True):
        """Forget the addresses of one side, or all; how many."""
        cdef MacEntry *entry
        cdef uint64_t i, key, value
        count = 0
        for i in range(<uint64_t>self.tables.header.mac_buckets * FDB_WAYS):
            entry = &self.tables.macs[i]
            key, value = load64(&entry.key, ACQUIRE), load64(&entry.value, ACQUIRE)
            if key & MAC_VALID and (owner is None or mac_owner(value) == owner) and (
                    with_static or not value & MAC_STATIC):
                count += bool(mac_forget(&self.tables, entry, key))
        return count

    def macs_sweep(self, uint64_t now):
        """Take aged entries out, and count the others anew."""
        cdef uint32_t now_s = <uint32_t>(now // 1000000000)
        cdef Header *header = self.tables.header
        cdef MacEntry *entry
        cdef uint64_t key, value, i
        cdef uint32_t owner, slot, total = 0, local = 0
        counts = {}
        for i in range(<uint64_t>header.mac_buckets * FDB_WAYS):
            entry = &self.tables.macs[i]
            key, value = load64(&entry.key, ACQUIRE), load64(&entry.value, ACQUIRE)
            if not key & MAC_VALID:
                continue
            if mac_is_aged(&self.tables, value, now_s):
                cas64(&entry.key, key, 0)
                continue
            owner = mac_owner(value)
            total += 1
            if owner == MAC_LOCAL:
                local += 1
            else:
                counts[owner] = counts.get(owner, 0) + 1
        store32(&header.mac_count, total, RELAXED)
        store32(&header.mac_count_local, local, RELAXED)
        for slot in range(self.next_peer):
            store32(&self.tables.peers[slot].mac_count, counts.get(slot, 0), RELAXED)

    def mac_counts(self):
        """(all, of our own side, {peer's slot: of that peer})."""
        cdef Header *header = self.tables.header
        return (header.mac_count, header.mac_count_local, {
            slot: self.tables.peers[<uint32_t>slot].mac_count for slot in range(self.next_peer)
            if self.tables.peers[<uint32_t>slot].live})

    # -- rate limits

    cdef int bucket_set(self, Bucket *bucket, parts, uint64_t now) except -1:
        """`parts`: (tokens, refill time in ns, burst), or None for no limit."""
        cdef uint64_t size = 0, refill_ns = 0, burst = 0
        if parts is not None:
            size, refill_ns, burst = parts
            if size == 0 or refill_ns == 0:
                raise ValueError("a token bucket holds something, and fills in some time")
        store64(&bucket.size, 0, SEQ_CST)
        store64(&bucket.refill_ns, refill_ns, SEQ_CST)
        store64(&bucket.burst, burst, SEQ_CST)
        store64(&bucket.empty_ns, now + BUCKET_EPOCH_NS - refill_ns, SEQ_CST)
        store64(&bucket.size, size, SEQ_CST)
        return 0

    def set_limits(self, peer, str way, bytes_bucket, ops_bucket, uint64_t now):
        """The token buckets of a peer, or of the interface (None), one `way` (LIMIT_WAYS): each
        (tokens, refill time in ns, one-time burst), or None for no limit. They begin full."""
        cdef int which = LIMIT_WAYS[way]
        cdef Limiter *limiter = &self.tables.limits[which]
        if peer is not None:
            self.peer(peer)
            limiter = limiter_of_peer(&self.tables, peer, which)
        self.bucket_set(&limiter.bytes, bytes_bucket, now)
        self.bucket_set(&limiter.ops, ops_bucket, now)
        self.limits_note()

    cdef int limits_note(self) except -1:
        """Tell the workers whether there are limits at all."""
        cdef Limiter *limiter
        cdef uint32_t i
        cdef bint has_limits = False
        for i in range(2 + 2 * self.next_peer):
            limiter = &self.tables.limits[i]
            has_limits |= limiter.bytes.size != 0 or limiter.ops.size != 0
        store32(&self.tables.header.has_limits, has_limits, SEQ_CST)
        return 0

    # -- grace periods

    @property
    def has_retired(self):
        """Whether something waits for `reclaim`."""
        return bool(self.retired or self.waiting)

    def reclaim(self):
        """Wipe and reuse what every worker has let go of; how many still wait.

        A worker has let go when its epoch moved since, or when it is idle (even).
        """
        cdef uint32_t i
        cdef uint64_t then
        if not self.waiting:
            self.waiting, self.retired = self.retired, []
            fence(SEQ_CST)
            self.waiting_epochs = [load64(&self.tables.workers[i].epoch, SEQ_CST)
                                   for i in range(self.tables.header.queue_count)]
        for i, then in enumerate(self.waiting_epochs):
            if then & 1 and load64(&self.tables.workers[i].epoch, SEQ_CST) == then:
                return len(self.waiting) + len(self.retired)
        for kind, slot in self.waiting:
            if kind == "lanes":
                self.lanes_wipe(slot)
            elif kind == "keypair":
                memset(&self.tables.keypairs[<uint32_t>slot], 0, sizeof(Keypair))
                self.free_keypairs.append(slot)
            elif kind == "node":
                self.free_nodes.append(slot)
            else:
                self.macs_flush(slot)       # what a worker learned while it was removed
                self.free_peers.append(slot)
        self.waiting = []
        return len(self.retired)

    cdef int lanes_wipe(self, uint32_t first) except -1:
        cdef uint32_t count = self.tables.lanes[first].count
        memset(&self.tables.lanes[first], 0, count * sizeof(Lane))
        self.free_lanes.setdefault(1 << (count - 1).bit_length(), []).append(first)
        return 0

    cdef reclaim_all(self):
        """What waits since the last time, and what was retired after it."""
        self.reclaim()
        if self.retired:
            self.reclaim()

    # -- workers

    cdef WorkerShared *worker(self, uint32_t number) except NULL:
        if number >= self.tables.header.queue_count:
            raise IndexError(f"no worker {number}")
        return &self.tables.workers[number]

    def worker_is_dead(self, uint32_t number):
        """The worker's process has ended: it holds nothing any more. Take its events
        first; then all may be told again, for it may have died before it told. The slots of
        peers whose endpoint it was just writing: they need one."""
        cdef WorkerShared *worker = self.worker(number)
        cdef PeerSlot *peer
        cdef Lane *lane
        cdef uint32_t told = KEYPAIR_REKEY_TOLD | KEYPAIR_CONFIRM_TOLD
        cdef uint32_t lane_told = (LANE_ASKED | LANE_USABLE_TOLD | LANE_REKEY_TOLD
                                   | LANE_UNANSWERED_TOLD | LANE_ROAM_TOLD)
        cdef uint32_t slot
        cdef uint64_t entry
        store64(&worker.epoch, (worker.epoch | 1) + 1, SEQ_CST)
        torn = []
        for slot in range(self.next_peer):
            peer = &self.tables.peers[slot]
            store32(&peer.armed, 0, SEQ_CST)
            if self.endpoint_is_torn(&peer.endpoint):
                peer.endpoint.length = 0
                store32(&peer.endpoint.sequence, peer.endpoint.sequence + 1, RELEASE)
                torn.append(slot)
        for slot in range(self.next_keypair):
            and32(&self.tables.keypairs[slot].flags, ~told, SEQ_CST)
        for slot in range(self.next_lane):
            lane = &self.tables.lanes[slot]
            if lane.state == LANE_FREE:
                continue
            if lane.worker == number:
                lane.held_count = 0     # what it held is gone
                lane.first_unanswered_tx_ns = 0
                and32(&lane.bits, ~lane_told, SEQ_CST)
            if self.endpoint_is_torn(&lane.endpoint):
                # The peer's next message says where it is.
                lane.endpoint.length = 0
                store32(&lane.endpoint.sequence, lane.endpoint.sequence + 1, RELEASE)
        for entry in range(<uint64_t>self.tables.header.mac_buckets * FDB_WAYS):
            cas64(&self.tables.macs[entry].key, mac_busy(number), 0)    # it was just learning
        return torn

    cdef bint endpoint_is_torn(self, Endpoint *endpoint):
        """Whether nobody ends what was begun; one who lives needs nanoseconds."""
        cdef uint32_t sequence = load32(&endpoint.sequence, ACQUIRE)
        for _ in range(100):
            if not sequence & 1 or load32(&endpoint.sequence, ACQUIRE) != sequence:
                return False
            os.sched_yield()
        return True

    def worker_counters(self, uint32_t number):
        """{"counters": {name: n}, "verdicts": {name: n}, "tx_batches": [n], "rx_batches":
        [n]}; bucket i of a batch histogram holds calls of 2^i to 2^(i+1)-1 datagrams."""
        cdef WorkerShared *worker = self.worker(number)
        return {
            "counters": {name: worker.counters[<int>i] for i, name in COUNTER_NAMES.items()},
            "verdicts": {name: worker.verdicts[<int>i] for i, name in VERDICT_NAMES.items()},
            "tx_batches": [worker.send_batches[i] for i in range(BATCH_BUCKETS)],
            "rx_batches": [worker.recv_batches[i] for i in range(BATCH_BUCKETS)],
        }

    def worker_messages(self, uint32_t number):
        """Take the handshake messages that reached a worker: [(data, sockaddr, local)]."""
        cdef MessageRing *ring = &self.worker(number).up
        cdef Message *message = message_first(ring)
        taken = []
        while message != NULL:
            taken.append((
                PyBytes_FromStringAndSize(<char *>message.data,
                                          min(message.length, <uint32_t>MESSAGE_LEN)),
                PyBytes_FromStringAndSize(<char *>message.address, ADDRESS_LEN),
                PyBytes_FromStringAndSize(<char *>message.local, LOCAL_LEN)))
            message_pop(ring)
            message = message_first(ring)
        return taken

    def worker_controls(self, uint32_t number):
        """Take the control packets that a worker received: [(peer, local index of the session,
        data)]; padding may follow in `data`."""
        cdef ControlRing *ring = &self.worker(number).controls
        cdef Control *control = control_first(ring)
        taken = []
        while control != NULL:
            taken.append((control.peer, control.local_index, PyBytes_FromStringAndSize(
                <char *>control.data, min(control.length, <uint32_t>CONTROL_LEN))))
            control_pop(ring)
            control = control_first(ring)
        return taken

    def worker_inject(self, uint32_t number, bytes data, bytes sockaddr,
                      bytes local=bytes(LOCAL_LEN)):
        """Give a worker a transport message that reached the supervisor; ring its doorbell
        afterwards. False if it is too long or the ring is full."""
        return bool(message_push(
            &self.worker(number).down, <const uint8_t *>PyBytes_AS_STRING(data),
            <uint32_t>len(data), PyBytes_AS_STRING(sockaddr), <uint32_t>len(sockaddr),
            PyBytes_AS_STRING(local)))

    def worker_events(self, uint32_t number):
        """Take all events of one worker: [(name, peer, detail, error, at_ns)]."""
        cdef WorkerShared *worker = self.worker(number)
        cdef uint64_t head = worker.events_head
        cdef uint64_t tail = load64(&worker.events_tail, ACQUIRE)
        cdef Event *event
        events = []
        if tail - head > EVENT_RING_LEN:    # cannot be; a worker is trusted with no more
            head = tail
        while head < tail:
            event = &worker.events[head % EVENT_RING_LEN]
            events.append((EVENT_NAMES.get(event.kind, "unknown"), event.peer, event.detail,
                           event.error, event.at_ns))
            head += 1
        store64(&worker.events_head, head, RELEASE)
        return events


cdef class Pump:
    """One worker's data plane: the TUN fds of all queues (it reads that of queue
    `number`), its UDP socket, and the tables.

    `run` never returns while the interface lives; `turn` does one turn of both
    directions without waiting, for tests and for other event loops.
    """

    cdef Worker *worker
    cdef SharedTables tables
    cdef void *memory
    cdef size_t memory_len

    def __init__(self, SharedTables tables, uint32_t number, list tun_fds, int udp_fd,
                 int doorbell_fd, int event_fd, *, lane_fds=(), str backend=None,
                 uint64_t busy_poll_us=0):
        cdef Worker *worker
        cdef uint8_t *at
        cdef int error
        if self.worker != NULL:
            raise ValueError("already set up")
        if number >= tables.queue_count or len(tun_fds) != tables.queue_count:
            raise IndexError(f"worker {number} of {tables.queue_count}, {len(tun_fds)} queues")
        if len(lane_fds) > _MAX_LANE_SOCKETS or len(lane_fds) % tables.queue_count:
            raise IndexError(f"{len(lane_fds)} lane sockets for {tables.queue_count} queues")
        self.memory_len = (round_up(sizeof(Worker), PAGE)
                           + (SEND_MESSAGES + RECV_MESSAGES + STAGED_SLOTS + SHAPE_BIG + 3)
                           * BUFFER_STRIDE
                           + HELD_BYTES + SHAPE_SMALL * SHAPE_SMALL_LEN
                           + round_up(16 * tables.tables.header.peer_capacity, PAGE)
                           + round_up(8 * tables.tables.header.peer_capacity, PAGE)
                           + round_up(8 * tables.tables.header.peer_capacity, PAGE)
                           + round_up(2 * tables.tables.header.peer_capacity, PAGE))
        self.memory = map_memory(self.memory_len, -1)
        at = <uint8_t *>self.memory
        worker = self.worker = <Worker *>at
        at += round_up(sizeof(Worker), PAGE)
        worker.send.buffers = at
        at += SEND_MESSAGES * BUFFER_STRIDE
        worker.recv.buffers = at
        at += RECV_MESSAGES * BUFFER_STRIDE
        worker.read_buffer = at
        at += BUFFER_STRIDE
        worker.staged.buffers = at
        at += STAGED_SLOTS * BUFFER_STRIDE
        worker.bundle.buffer = at
        at += BUFFER_STRIDE
        worker.frame_buffer = at
        at += BUFFER_STRIDE
        worker.shape.big = at
        at += SHAPE_BIG * BUFFER_STRIDE
        worker.shape.small = at
        at += SHAPE_SMALL * SHAPE_SMALL_LEN
        worker.hold.buffer = at
        at += HELD_BYTES
        worker.shape.due_ns = <uint64_t *>at
        at += round_up(16 * tables.tables.header.peer_capacity, PAGE)
        worker.shape.held = <uint32_t *>at
        at += round_up(8 * tables.tables.header.peer_capacity, PAGE)
        worker.session_sent_ns = <uint64_t *>at
        at += round_up(8 * tables.tables.header.peer_capacity, PAGE)
        worker.staged.per_peer = <uint16_t *>at
        self.tables = tables
        worker.tables = tables.tables
        worker.shared = &tables.tables.workers[number]
        worker.number = number
        for i, fd in enumerate(tun_fds):
            worker.tun_fds[<int>i] = fd
        worker.queue_count = tables.tables.header.queue_count
        worker.is_tap = tables.tables.header.is_tap != 0
        worker.lane_flags = LANE_FRAME_FLAGS if worker.is_tap else LANE_FLAGS
        worker.tun_fd = worker.tun_fds[number]
        worker.udp_fd = udp_fd
        worker.doorbell_fd = doorbell_fd
        worker.event_fd = event_fd
        worker.epoll_fd = -1
        worker.busy_poll_ns = 1000 * busy_poll_us
        worker.send.tables = &worker.tables
        worker.send.shared = worker.shared
        for i, fd in enumerate(lane_fds):
            worker.lane_fds[<int>i] = fd
        worker.own_lane_fds = <uint32_t>len(lane_fds) // worker.queue_count
        send_init(&worker.send)
        recv_init(&worker.recv)
        staged_init(&worker.staged)
        shape_init(&worker.shape)
        if aead_init(&worker.aead, backend_number(backend or default_backend())) != 0:
            raise OSError("the AEAD library does not start")
        error = loop_init(worker)
        if error < 0:
            raise OSError(-error, f"epoll: {os.strerror(-error)}")

    def __dealloc__(self):
        if self.worker != NULL:
            aead_free(&self.worker.aead)
            if self.worker.epoll_fd >= 0:
                os.close(self.worker.epoll_fd)
            munmap(self.memory, self.memory_len)

    def run(self):
        """Pump until the interface is gone."""
        with nogil:
            loop_run(self.worker)

    def turn(self, now=None):
        """One turn: doorbell, tun_to_udp, udp_to_tun. `now`: CLOCK_BOOTTIME in ns."""
        cdef Worker *worker = self.worker
        worker.now_ns = now_ns() if now is None else now
        with nogil:
            loop_turn(worker)
            loop_release(worker)
            loop_doorbell(worker)
            tun_to_udp(worker)
            take_held(worker)
            loop_receive(worker, <uint64_t>-1)


INTAKE_VERDICT_NAMES = {
    INTAKE_COOKIE: "SENT_COOKIE_REPLY",
    INTAKE_DROP_MALFORMED: "DROP_MALFORMED_HANDSHAKE",
    INTAKE_DROP_INVALID_MAC1: "DROP_INVALID_MAC1",
    INTAKE_DROP_REPLAYED: "DROP_REPLAYED_INITIATION",
    INTAKE_DROP_SOURCE_RATE: "DROP_HANDSHAKE_RATE",
    INTAKE_DROP_OVERLOAD: "DROP_HANDSHAKE_OVERLOAD",
}
assert len(INTAKE_VERDICT_NAMES) == INTAKE_VERDICTS - INTAKE_COOKIE
MUST_ACCEPT, MUST_PASS_ON, WAS_ANSWERED = INTAKE_ACCEPT, INTAKE_TRANSPORT, INTAKE_COOKIE
INTAKE_BATCH = INTAKE_MESSAGES


cdef class Intake:
    """What is let in of the datagrams at the handshake socket (hot/admission.pxd).

    Times are CLOCK_BOOTTIME, ns. `verdicts` counts what was dropped, by name.
    """

    cdef IntakeState *state
    cdef size_t size

    def __init__(self):
        cdef IntakeState *state
        cdef int i
        if self.state != NULL:
            raise ValueError("already set up")
        self.size = round_up(sizeof(IntakeState), PAGE) + INTAKE_MESSAGES * INTAKE_STRIDE
        state = self.state = <IntakeState *>map_memory(self.size, -1)
        state.buffers = <uint8_t *>state + round_up(sizeof(IntakeState), PAGE)
        if mac_init(&state.mac) != 0 or xchacha_init(&state.xchacha) != 0:
            raise OSError("libcrypto lacks BLAKE2s or ChaCha20")
        keys = os.urandom(32)
        memcpy(state.source_key, PyBytes_AS_STRING(keys), 16)
        memcpy(state.known_key, PyBytes_AS_STRING(keys) + 16, 16)
        state.source_key[0] |= 1
        state.known_key[0] |= 1
        self.renew_cookie_secret()
        for i in range(INTAKE_MESSAGES):
            state.messages[i].msg_hdr.msg_name = &state.names[i]
            state.messages[i].msg_hdr.msg_iov = &state.iov[i]
            state.messages[i].msg_hdr.msg_iovlen = 1
            state.messages[i].msg_hdr.msg_control = state.control[i]
            state.iov[i].iov_base = state.buffers + <size_t>i * INTAKE_STRIDE

    def __dealloc__(self):
        if self.state != NULL:
            mac_free(&self.state.mac)
            xchacha_free(&self.state.xchacha)
            munmap(self.state, self.size)

    def set_keys(self, mac1_key, cookie_key):
        """The keys of mac1 for messages to us and of our cookie replies (32 bytes each);
        None: nothing is let in."""
        self.state.has_identity = mac1_key is not None
        if mac1_key is not None:
            if len(mac1_key) != 32 or len(cookie_key) != 32:
                raise ValueError("a key has 32 bytes")
            memcpy(self.state.mac1_key, PyBytes_AS_STRING(mac1_key), 32)
            memcpy(self.state.cookie_key, PyBytes_AS_STRING(cookie_key), 32)

    def renew_cookie_secret(self):
        """Cookies made so far are worth nothing any more."""
        secret = os.urandom(32)
        memcpy(self.state.cookie_secret, PyBytes_AS_STRING(secret), 32)

    def add_known(self, bytes sockaddr):
        """The address of a peer's endpoint: under overload it has a share of its own."""
        self.check_sockaddr(sockaddr)
        known_add(self.state, <const uint8_t *>PyBytes_AS_STRING(sockaddr))

    def declare_overload(self, uint64_t until):
        """More handshakes wait than can be served."""
        self.state.overload_until_ns = max(self.state.overload_until_ns, until)

    def is_overloaded(self, uint64_t now):
        """Whether senders must prove their address now."""
        return now < self.state.overload_until_ns

    def cookie_reply(self, bytes message, bytes sockaddr):
        """What a message of that source is answered with under overload."""
        cdef uint8_t reply[COOKIE_REPLY_LEN]
        self.check_sockaddr(sockaddr)
        if len(message) < COOKIE_REPLY_LEN or not cookie_reply_write(
                self.state, reply, <const uint8_t *>PyBytes_AS_STRING(message),
                <uint32_t>len(message), <const uint8_t *>PyBytes_AS_STRING(sockaddr)):
            raise ValueError("no handshake message")
        return PyBytes_FromStringAndSize(<char *>reply, COOKIE_REPLY_LEN)

    @property
    def verdicts(self):
        """{name: count} of what was dropped or answered with a cookie."""
        return {name: self.state.verdicts[<int>i] for i, name in INTAKE_VERDICT_NAMES.items()}

    cdef int check_sockaddr(self, bytes sockaddr) except -1:
        family = int.from_bytes(sockaddr[:2], sys.byteorder)
        if len(sockaddr) != ADDRESS_LEN and (len(sockaddr) != 16 or family != socket.AF_INET):
            raise ValueError(f"a sockaddr of {len(sockaddr)} bytes")
        return 0

    def judge(self, bytes message, bytes sockaddr, uint64_t now):
        """MUST_ACCEPT, MUST_PASS_ON, WAS_ANSWERED (which only `receive` does); None if it
        was dropped."""
        self.check_sockaddr(sockaddr)
        cdef int verdict = intake_judge(
            self.state, <const uint8_t *>PyBytes_AS_STRING(message), <uint32_t>len(message),
            <const uint8_t *>PyBytes_AS_STRING(sockaddr), now)
        self.state.verdicts[verdict] += 1
        return verdict if verdict <= INTAKE_COOKIE else None

    def receive(self, int fd, uint64_t now):
        """Receive once from a socket, judge, and send cookies: (how many messages came,
        [(verdict, data, sockaddr, local)] of what is let in). OSError is what ICMP said of
        an earlier send."""
        cdef IntakeState *state = self.state
        cdef msghdr *message
        cdef uint8_t *data
        cdef uint8_t local[LOCAL_LEN]
        cdef uint32_t left, length, segment_len
        cdef int i, received, verdict
        for i in range(INTAKE_MESSAGES):
            message = &state.messages[i].msg_hdr
            message.msg_namelen = sizeof(sockaddr_in6)
            message.msg_controllen = RECV_CONTROL_LEN
            state.iov[i].iov_len = INTAKE_STRIDE
        with nogil:
            received = recvmmsg(fd, state.messages, INTAKE_MESSAGES, MSG_DONTWAIT, NULL)
        if received < 0:
            if errno in (EAGAIN, EINTR):
                return 0, []
            raise OSError(errno, os.strerror(errno))
        admitted = []
        for i in range(received):
            message = &state.messages[i].msg_hdr
            left = 0 if message.msg_flags & MSG_TRUNC else state.messages[i].msg_len
            data = <uint8_t *>state.iov[i].iov_base
            segment_len = control_read(message, left, local)
            while left:
                length = left if left < segment_len else segment_len
                verdict = intake_judge(state, data, length, <uint8_t *>&state.names[i], now)
                state.verdicts[verdict] += 1
                if verdict == INTAKE_COOKIE:
                    reply_add(state, fd, data, length, &state.names[i], message.msg_namelen,
                              local)
                elif verdict <= INTAKE_TRANSPORT:
                    admitted.append((
                        verdict, PyBytes_FromStringAndSize(<char *>data, length),
                        PyBytes_FromStringAndSize(<char *>&state.names[i],
                                                  message.msg_namelen),
                        PyBytes_FromStringAndSize(<char *>local, LOCAL_LEN)))
                data += length
                left -= length
        replies_send(state, fd)
        return received, admitted


def confine(int parent):
    """Lock this process in: it dies with `parent`, has no capabilities, and may call
    nothing but what the pump calls (hot/sandbox.h). OSError if the kernel refuses."""
    for what, error in (("parent", sandbox_tie_to_parent(parent)),
                        ("capabilities", sandbox_drop_capabilities()),
                        ("seccomp", sandbox_filter_syscalls())):
        if error < 0:
            raise OSError(-error, f"sandbox, {what}: {os.strerror(-error)}")


# -- plain functions over the hot code, for tests and tools

def aead(str backend, str cipher, bytes key, bytes nonce, bytes aad, bytes data, *, bint seal):
    """Seal or open one message: `cipher` is chacha20-poly1305 or aes-256-gcm, `key` 32
    bytes, `nonce` 12. Opening takes ciphertext and tag; None if it is not authentic."""
    cdef Aead context
    cdef int number = backend_number(backend)
    cdef int which = CIPHERS[cipher]
    cdef Py_ssize_t length = len(data)
    cdef uint8_t *room
    cdef uint8_t *expanded
    cdef int result
    if len(key) != 32 or len(nonce) != 12 or (not seal and length < TAG_LEN):
        raise ValueError("key 32 bytes, nonce 12, sealed data at least 16")
    if aead_init(&context, number) != 0:
        raise OSError("the AEAD library does not start")
    room = <uint8_t *>calloc(2, AEAD_KEY_LEN)       # aligned to 64
    if room == NULL:
        aead_free(&context)
        raise MemoryError
    expanded = room + (64 - <size_t>room % 64)
    aead_key_set(&context, which, key, expanded)
    try:
        if seal:
            out = bytearray(length + TAG_LEN)
            result = aead_seal(&context, which, expanded, nonce, aad, len(aad), data,
                               <uint8_t *>out, length)
            if result != 0:
                raise OSError("the AEAD library failed")
            return bytes(out)
        length -= TAG_LEN
        out = bytearray(length)
        result = aead_open(&context, which, expanded, nonce, aad, len(aad), data, <uint8_t *>out,
                           length)
        return bytes(out) if result == 0 else None
    finally:
        memset(room, 0, 2 * AEAD_KEY_LEN)
        free(room)
        aead_free(&context)


def xchacha20_poly1305(bytes key, bytes nonce, bytes aad, bytes data, *, bint seal):
    """Seal or open one message (hot/xchacha.h): `key` 32 bytes, `nonce` 24. Opening takes
    ciphertext and tag; None if it is not authentic."""
    cdef XChaCha context
    cdef Py_ssize_t length = len(data) if seal else len(data) - TAG_LEN
    cdef int result
    if len(key) != 32 or len(nonce) != 24 or length < 0:
        raise ValueError("key 32 bytes, nonce 24, sealed data at least 16")
    out = bytearray(length + TAG_LEN)
    if xchacha_init(&context) != 0:
        raise OSError("libcrypto lacks ChaCha20")
    result = xchacha_run(&context, seal, key, nonce, aad, len(aad), data, <uint8_t *>out, length)
    xchacha_free(&context)
    if seal:
        if result != 0:
            raise OSError("the AEAD library failed")
        return bytes(out)
    return bytes(out[:length]) if result == 0 else None


cdef class ReplayWindow:
    """The replay window of hot/replay.pxd."""

    cdef Replay replay

    def is_fresh(self, uint64_t counter):
        return bool(replay_is_fresh(&self.replay, counter))

    def mark(self, uint64_t counter):
        """Accept the counter; False if it was seen before or is too old."""
        return bool(replay_mark(&self.replay, counter))


def split(bytes vnet_and_packet, *, bint may_leave_partial=False, bint is_frame=False):
    """What leaves for a packet (or frame) read from the interface: [packet, ...], with complete
    checksums unless they may stay partial; None if the vnet header lies. Input: vnet header
    (10 bytes), packet."""
    cdef VnetHeader vnet
    cdef Packet packet
    cdef Splitter splitter
    cdef uint8_t *segment
    cdef uint32_t length
    if len(vnet_and_packet) < VNET_HEADER_LEN:
        return None
    work = bytearray(vnet_and_packet)
    cdef uint8_t *start = <uint8_t *>work
    vnet_load(&vnet, start)
    if not packet_parse(&packet, is_frame, start + VNET_HEADER_LEN,
                        <uint32_t>len(work) - VNET_HEADER_LEN):
        return None
    if vnet.gso_type == 0:
        if not vnet_checksum_complete(&vnet, &packet):
            return None
        return [PyBytes_FromStringAndSize(<char *>packet.start, packet.length)]
    if not splitter_init(&splitter, &vnet, &packet, may_leave_partial):
        return None
    segments = []
    length = splitter_next(&splitter, &segment)
    while length:
        segments.append(PyBytes_FromStringAndSize(<char *>segment, length))
        length = splitter_next(&splitter, &segment)
    return segments


def coalesce(list packets, offloads=("tun-tcp4", "tun-tcp6", "tun-udp4", "tun-udp6"), *,
             bint is_partial=False, bint is_frame=False):
    """What is written to the interface for packets (or frames) received in one batch: [vnet
    header (10 bytes) + packet or superpacket, ...]. ValueError for none."""
    cdef Gro *gro = <Gro *>calloc(1, sizeof(Gro))
    cdef uint8_t *buffers = <uint8_t *>calloc(len(packets) + 1, BUFFER_STRIDE)
    cdef iovec iov[GRO_MAX_TCP_SEGMENTS + 1]
    cdef Candidate candidate
    cdef uint8_t *at
    cdef uint32_t bits = 0
    cdef int count, k
    cdef bytes data
    if gro == NULL or buffers == NULL:
        free(gro)
        free(buffers)
        raise MemoryError
    try:
        for name in offloads:
            bits |= <uint32_t>OFFLOAD_BITS[name]
        gro_reset(gro, bits)
        for i, data in enumerate(packets):
            at = buffers + <size_t>i * BUFFER_STRIDE + READ_HEADROOM
            memcpy(at, PyBytes_AS_STRING(data), min(len(data), 65535))
            if not packet_parse(&candidate.packet, is_frame, at, min(len(data), 65535)):
                raise ValueError("neither an IP packet nor a frame")
            candidate.is_partial = is_partial and ip_can_be_partial(&candidate.packet.ip)
            candidate.peer = 0
            if gro_is_full(gro):
                raise ValueError("too many packets for one batch")
            gro_receive(gro, &candidate)
        written = []
        for i in range(gro.item_count):
            count = item_finish(gro, &gro.items[<uint32_t>i], iov)
            written.append(b"".join(
                PyBytes_FromStringAndSize(<char *>iov[k].iov_base, iov[k].iov_len)
                for k in range(count)))
        return written
    finally:
        free(gro)
        free(buffers)


include "core_parts/shared_constants.pxi"
