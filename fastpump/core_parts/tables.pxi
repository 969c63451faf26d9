# The tables as a whole: their creation, their header, their parts.

import fcntl
import os

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from fastpump.hot.atomics cimport RELAXED, SEQ_CST, load32, store32, store64
from fastpump.hot.constants cimport FDB_WAYS, MAX_QUEUES
from fastpump.hot.ecn cimport ECN_MASK
from fastpump.hot.halt cimport halt_begin, halt_end, halt_number
from fastpump.hot.layout cimport configuration_lay_out, state_lay_out
from fastpump.hot.shm cimport (
    OFFLOAD_TUN_TCP4, OFFLOAD_TUN_TCP6, OFFLOAD_TUN_UDP4, OFFLOAD_TUN_UDP6, OFFLOAD_UDP_GSO,
    Configuration, Header, InterfaceState, Tables,
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


cdef class AttachedTables:
    """The shared memory as a worker has it: the configuration cannot be written."""

    cdef Mapping mapping

    @classmethod
    def attach(cls, int configuration_fd, int state_fd):
        """By the supervisor's `readonly_fd` and `state_fd`."""
        cdef AttachedTables self = cls.__new__(cls)
        self.mapping = Mapping()
        self.mapping.map_fds(configuration_fd, state_fd, False)
        return self

    @property
    def queue_count(self):
        return self.mapping.tables.header.queue_count

    @property
    def aead_backends(self):
        """{cipher: name of the AEAD backend}, which the supervisor and all workers use."""
        return {cipher: backend_name(self.mapping.tables.header.aead_backends[number])
                for cipher, number in CIPHERS.items()}

    @property
    def is_tap(self):
        return bool(self.mapping.tables.header.is_tap)


cdef class SharedTables(AttachedTables):
    """The tables that the supervisor writes and the workers read.

    Create them with `create`; hand `readonly_fd` and `state_fd` to the workers, who attach by
    them (AttachedTables). Slots are plain integers. All changes are safe while workers run, and
    whatever they have written.
    """

    cdef readonly int configuration_fd      # stays with the supervisor
    cdef readonly int readonly_fd           # the same memory, never to be written by it
    cdef readonly int state_fd
    cdef readonly Retired retired
    cdef readonly Peers peers
    cdef readonly Keypairs keypairs
    cdef readonly Lanes lanes
    cdef readonly AllowedIps allowed_ips
    cdef readonly Fdb fdb
    cdef readonly Limiters limiters
    cdef readonly Workers workers

    def __cinit__(self):
        self.configuration_fd = self.readonly_fd = self.state_fd = -1

    def close(self):
        """Close the file descriptors; the mappings stay until the object goes."""
        for fd in (self.configuration_fd, self.readonly_fd, self.state_fd):
            if fd >= 0:
                os.close(fd)
        self.configuration_fd = self.readonly_fd = self.state_fd = -1

    @classmethod
    def create(cls, uint32_t queue_count, uint32_t peer_capacity=16384,
               uint32_t node_capacity=1 << 20, *, str backend=None, bint is_tap=False,
               uint32_t mac_limit=32768):
        """New, empty tables for `queue_count` workers (1 to 256). `backend`: of all ciphers; None:
        as `choose_backends` says. A TAP's have room for so many MAC addresses."""
        cdef SharedTables self = cls.__new__(cls)
        cdef Header header
        if not 1 <= queue_count <= MAX_QUEUES:
            raise ValueError(f"a TUN has 1 to {MAX_QUEUES} queues, not {queue_count}")
        header_fill(&header, queue_count, peer_capacity, node_capacity)
        names = dict.fromkeys(CIPHERS, backend) if backend else choose_backends()
        for cipher, number in CIPHERS.items():
            header.aead_backends[<int>number] = backend_number(names[cipher])
        if is_tap:
            header_fill_tap(&header, mac_limit)
        try:
            self.make_memory(&header)
            self.make_parts()
            backends_start(&self.mapping.aead, header.aead_backends[AEAD_CHACHA20_POLY1305],
                           header.aead_backends[AEAD_AES_256_GCM])
        except BaseException:
            self.close()
            raise
        return self

    cdef int make_memory(self, const Header *header) except -1:
        cdef Configuration configuration
        cdef Tables state
        self.configuration_fd = make_memfd(
            "configuration", configuration_lay_out(&configuration, header, NULL))
        os.fchmod(self.configuration_fd, 0o400)
        self.state_fd = make_memfd("state", state_lay_out(&state, header, NULL))
        os.pwrite(self.configuration_fd,
                  PyBytes_FromStringAndSize(<char *>header, sizeof(Header)), 0)
        # A descriptor of its own, not a seal: a seal would bind a supervisor, too, that takes the
        # memory over. What is mapped by it can never be made writable.
        self.readonly_fd = os.open(f"/proc/self/fd/{self.configuration_fd}",
                                   os.O_RDONLY | os.O_CLOEXEC)
        self.mapping = Mapping()
        self.mapping.map_fds(self.configuration_fd, self.state_fd, True)
        return 0

    cdef int make_parts(self) except -1:
        cdef Mapping mapping = self.mapping
        self.retired = Retired(mapping)
        self.peers = Peers(mapping, self.retired)
        self.keypairs = Keypairs(mapping, self.retired)
        self.lanes = Lanes(mapping, self.retired)
        self.allowed_ips = AllowedIps(mapping, self.retired)
        self.fdb = Fdb(mapping)
        self.limiters = Limiters(mapping)
        self.peers.limiters = self.limiters
        self.workers = Workers(mapping, self.keypairs, self.lanes)
        return 0

    @property
    def offloads(self):
        """Names of OFFLOAD_BITS in use now; workers clear what fails."""
        cdef uint32_t bits = load32(&self.mapping.tables.interface.offloads, RELAXED)
        return [name for name, bit in OFFLOAD_BITS.items() if bits & bit]

    @offloads.setter
    def offloads(self, names):
        cdef uint32_t bits = 0
        for name in names:
            bits |= <uint32_t>OFFLOAD_BITS[name]
        store32(&self.mapping.tables.interface.offloads, bits, RELAXED)

    @property
    def mtu(self):
        return self.mapping.tables.header.mtu

    @mtu.setter
    def mtu(self, uint32_t value):
        store32(&self.mapping.configuration.header.mtu, value, RELAXED)

    @property
    def spread_queues(self):
        """How many queues the received flows of a peer are written to, by their hash."""
        return self.mapping.tables.header.spread_queues

    @spread_queues.setter
    def spread_queues(self, uint32_t value):
        store32(&self.mapping.configuration.header.spread_queues, value, RELAXED)

    def halt(self):
        """Let nothing leave that is sealed with the keys of now (hot/halt.pxd). For any thread."""
        halt_begin(self.mapping.configuration.header)

    def resume(self):
        """All keys of before `halt` have been retired."""
        halt_end(self.mapping.configuration.header)

    @property
    def is_halted(self):
        return bool(halt_number(self.mapping.tables.header) & 1)

    @property
    def takes_control_packets(self):
        """Whether peers may negotiate lanes."""
        return bool(self.mapping.tables.header.takes_control_packets)

    @takes_control_packets.setter
    def takes_control_packets(self, bint value):
        store32(&self.mapping.configuration.header.takes_control_packets, value, RELAXED)

    def set_dscp(self, dscp):
        """What datagrams have besides the packet's ECN: its DSCP ("copy"), or that number."""
        cdef uint32_t copied = 0xff if dscp == "copy" else ECN_MASK
        cdef uint32_t fixed = 0 if dscp == "copy" else dscp << 2
        if fixed & ~0xfc:
            raise ValueError(f"a DSCP is 0 to 63, not {dscp}")
        store32(&self.mapping.configuration.header.tos_copied, copied, RELAXED)
        store32(&self.mapping.configuration.header.tos_fixed, fixed, RELAXED)

    @property
    def max_pause_us(self):
        """How long workers may pause for more packets, where many come (hot/moderation.pxd); 0:
        never."""
        return self.mapping.tables.header.max_pause_ns // 1000

    @max_pause_us.setter
    def max_pause_us(self, uint32_t value):
        store32(&self.mapping.configuration.header.max_pause_ns, 1000 * value, RELAXED)

    @property
    def has_send_errors(self):
        """Whether workers are to look for the end of a peer's send errors."""
        return bool(self.mapping.tables.header.has_send_errors)

    @has_send_errors.setter
    def has_send_errors(self, bint value):
        store32(&self.mapping.configuration.header.has_send_errors, value, RELAXED)

    def set_originator_id(self, uint64_t id):
        """The originator, in relay headers, of frames that come in here (docs/PROTOCOL.md)."""
        store64(&self.mapping.configuration.header.originator_id, id, SEQ_CST)

    def configure_switch(self, *, bint is_relay, uint32_t ageing_s, uint32_t limit_per_peer,
                         uint64_t storm_limit):
        """`storm_limit`: flooded frames per second, from the interface and from each peer that
        is added later; 0 for none."""
        cdef Header *header = self.mapping.configuration.header
        cdef InterfaceState *interface = self.mapping.tables.interface
        cdef uint64_t moves = MOVES_PER_S
        header.is_relay = is_relay
        header.mac_ageing_s = ageing_s
        header.mac_limit_per_peer = limit_per_peer
        header.storm_limit = storm_limit
        bucket_configure(&interface.storm, storm_bucket(storm_limit), 0)
        if storm_limit and storm_limit // 10 < moves:
            moves = storm_limit // 10 + 1
        bucket_configure(&interface.moves, storm_bucket(moves), 0)

    @property
    def switch_configuration(self):
        """What is configured, by the names of fastpump/config/model.py."""
        cdef const Header *header = self.mapping.tables.header
        return {"relay": bool(header.is_relay), "mac_ageing_s": header.mac_ageing_s,
                "mac_limit": header.mac_limit_per_peer, "mac_table": header.mac_limit,
                "storm_limit": header.storm_limit}


cdef int make_memfd(str name, size_t size) except -1:
    """Shared memory of a size that it keeps: nobody can take pages from under a mapping."""
    cdef int fd = os.memfd_create(f"fastpump {name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS,
                    fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


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
    header.takes_control_packets = True
    header.tos_copied = ECN_MASK
    return 0


cdef int header_fill_tap(Header *header, uint32_t mac_limit) except -1:
    header.is_tap = True
    header.mac_limit = header.mac_limit_per_peer = mac_limit
    # A quarter full, so that hardly a bucket overflows.
    header.mac_buckets = 1 << max(4 * mac_limit // FDB_WAYS - 1, 1).bit_length()
    header.mac_seed = int.from_bytes(os.urandom(8), "little")
    header.mac_ageing_s = 300
    return 0
