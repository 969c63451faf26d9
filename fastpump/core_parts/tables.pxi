# The tables as a whole: their creation, their header, their parts.

import os

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from fastpump.hot.atomics cimport RELAXED, SEQ_CST, load32, store32, store64
from fastpump.hot.constants cimport FDB_WAYS, MAX_QUEUES
from fastpump.hot.layout cimport tables_lay_out
from fastpump.hot.shm cimport (
    OFFLOAD_TUN_TCP4, OFFLOAD_TUN_TCP6, OFFLOAD_TUN_UDP4, OFFLOAD_TUN_UDP6, OFFLOAD_UDP_GSO, Header,
    Tables,
)

OFFLOAD_BITS = {
    "udp-gso": OFFLOAD_UDP_GSO,
    "tun-tcp4": OFFLOAD_TUN_TCP4,
    "tun-tcp6": OFFLOAD_TUN_TCP6,
    "tun-udp4": OFFLOAD_TUN_UDP4,
    "tun-udp6": OFFLOAD_TUN_UDP6,
}

cdef enum:
    MOVES_PER_S = 100               # hosts that moved here, and are announced


cdef class SharedTables:
    """The tables that the supervisor writes and the workers read.

    Create them with `create`, hand `fd` to the workers, who `attach`. Slots are
    plain integers. All changes are safe while workers run.
    """

    cdef readonly int fd
    cdef Mapping mapping
    cdef readonly Retired retired
    cdef readonly Peers peers
    cdef readonly Keypairs keypairs
    cdef readonly Lanes lanes
    cdef readonly AllowedIps allowed_ips
    cdef readonly Fdb fdb
    cdef readonly Limiters limiters
    cdef readonly Workers workers

    def __cinit__(self):
        self.fd = -1

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
        cdef Tables measured
        if not 1 <= queue_count <= MAX_QUEUES:
            raise ValueError(f"a TUN has 1 to {MAX_QUEUES} queues, not {queue_count}")
        header_fill(&header, queue_count, peer_capacity, node_capacity)
        header.aead_backend = backend_number(backend or default_backend())
        if is_tap:
            header_fill_tap(&header, mac_limit)
        size = tables_lay_out(&measured, &header, NULL)
        self.fd = os.memfd_create("fastpump", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, size)
            os.pwrite(self.fd, PyBytes_FromStringAndSize(<char *>&header, sizeof(header)), 0)
            self.map_fd(size)
            self.lanes.start_aead(header.aead_backend)
        except BaseException:
            self.close()
            raise
        return self

    @classmethod
    def attach(cls, int fd):
        """The tables behind another process's `fd`."""
        cdef SharedTables self = cls.__new__(cls)
        self.fd = fd
        self.map_fd(os.fstat(fd).st_size)
        return self

    cdef int map_fd(self, size_t size) except -1:
        cdef Mapping mapping = Mapping()
        mapping.tables.header = <Header *>map_memory(size, self.fd)
        mapping.size = size
        mapping.queue_count = mapping.tables.header.queue_count
        mapping.peer_capacity = mapping.tables.header.peer_capacity
        tables_lay_out(&mapping.tables, mapping.tables.header, mapping.tables.header)
        self.mapping = mapping
        self.retired = Retired(mapping)
        self.peers = Peers(mapping, self.retired)
        self.keypairs = Keypairs(mapping, self.retired)
        self.lanes = Lanes(mapping, self.retired)
        self.allowed_ips = AllowedIps(mapping, self.retired)
        self.fdb = Fdb(mapping)
        self.limiters = Limiters(mapping)
        self.workers = Workers(mapping, self.keypairs, self.lanes)
        return 0

    @property
    def queue_count(self):
        return self.mapping.queue_count

    @property
    def aead_backend(self):
        """The name of the AEAD backend that the supervisor and all workers use."""
        return backend_name(self.mapping.tables.header.aead_backend)

    @property
    def is_tap(self):
        return bool(self.mapping.tables.header.is_tap)

    @property
    def offloads(self):
        """Names of OFFLOAD_BITS in use now; workers clear what fails."""
        cdef uint32_t bits = load32(&self.mapping.tables.header.offloads, RELAXED)
        return [name for name, bit in OFFLOAD_BITS.items() if bits & bit]

    @offloads.setter
    def offloads(self, names):
        cdef uint32_t bits = 0
        for name in names:
            bits |= <uint32_t>OFFLOAD_BITS[name]
        store32(&self.mapping.tables.header.offloads, bits, RELAXED)

    @property
    def mtu(self):
        return self.mapping.tables.header.mtu

    @mtu.setter
    def mtu(self, uint32_t value):
        store32(&self.mapping.tables.header.mtu, value, RELAXED)

    @property
    def spread_queues(self):
        """How many queues the received flows of a peer are written to, by their hash."""
        return self.mapping.tables.header.spread_queues

    @spread_queues.setter
    def spread_queues(self, uint32_t value):
        store32(&self.mapping.tables.header.spread_queues, value, RELAXED)

    def set_originator_id(self, uint64_t id):
        """The originator, in relay headers, of frames that come in here (docs/PROTOCOL.md)."""
        store64(&self.mapping.tables.header.originator_id, id, SEQ_CST)

    def configure_switch(self, *, bint is_relay, uint32_t ageing_s, uint32_t limit_per_peer,
                         uint64_t storm_limit):
        """`storm_limit`: flooded frames per second, from the interface and from each peer that
        is added later; 0 for none."""
        cdef Header *header = self.mapping.tables.header
        cdef uint64_t moves = MOVES_PER_S
        header.is_relay = is_relay
        header.mac_ageing_s = ageing_s
        header.mac_limit_per_peer = limit_per_peer
        bucket_configure(&header.storm, (storm_limit, 1000000000, 0) if storm_limit else None, 0)
        if storm_limit and storm_limit // 10 < moves:
            moves = storm_limit // 10 + 1
        bucket_configure(&header.moves, (moves, 1000000000, 0), 0)

    @property
    def switch_configuration(self):
        """What is configured, by the names of fastpump/config/model.py."""
        cdef Header *header = self.mapping.tables.header
        return {"relay": bool(header.is_relay), "mac_ageing_s": header.mac_ageing_s,
                "mac_limit": header.mac_limit_per_peer, "mac_table": header.mac_limit,
                "storm_limit": header.storm.size}


cdef int header_fill(Header *header, uint32_t queue_count, uint32_t peer_capacity,
                     uint32_t node_capacity) except -1:
    """How much there is room for, and what follows from that."""
    memset(header, 0, sizeof(Header))
    header.queue_count = queue_count
    header.peer_capacity = peer_capacity
    header.keypair_capacity = 4 * peer_capacity     # three, and one handshake under way
    header.node_capacity = node_capacity
    # Three sets a peer, of as many lanes as we have queues or a few more.
    header.lane_capacity = peer_capacity * 3 * max(4, min(queue_count, 16))
    header.lane_bits = (header.lane_capacity - 1).bit_length()
    header.worker_bits = (queue_count - 1).bit_length()
    header.slot_bits = (header.keypair_capacity - 1).bit_length()
    return 0


cdef int header_fill_tap(Header *header, uint32_t mac_limit) except -1:
    header.is_tap = True
    header.mac_limit = header.mac_limit_per_peer = mac_limit
    # A quarter full, so that hardly a bucket overflows.
    header.mac_buckets = 1 << max(4 * mac_limit // FDB_WAYS - 1, 1).bit_length()
    header.mac_seed = int.from_bytes(os.urandom(8), "little")
    header.mac_ageing_s = 300
    return 0
