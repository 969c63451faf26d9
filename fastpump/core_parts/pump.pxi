# A worker's data plane.

import os

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free

from fastpump.hot cimport constants
from fastpump.hot.aead cimport aead_free
from fastpump.hot.arena cimport HUGE_PAGE, Arena, arena_take
from fastpump.hot.batch cimport send_init
from fastpump.hot.constants cimport (
    BUFFER_STRIDE, LANE_FLAGS, LANE_FRAME_FLAGS, RECV_MESSAGES, REORDER_BYTES, SEND_MESSAGES,
    SHAPER_BIG, SHAPER_SMALL, SHAPER_SMALL_LEN, STAGED_SLOTS,
)
from fastpump.hot.ingress_delayed cimport ingress_reordered
from fastpump.hot.linux cimport MADV_NOHUGEPAGE, close, madvise, munmap, now_ns
from fastpump.hot.loop cimport (
    loop_doorbell, loop_init, loop_receive, loop_release, loop_run, loop_snapshot,
)
from fastpump.hot.moderation cimport moderation_pause_ns
from fastpump.hot.recv cimport recv_init
from fastpump.hot.sandbox cimport (
    sandbox_drop_capabilities, sandbox_filter_syscalls, sandbox_tie_to_parent,
)
from fastpump.hot.shaper cimport shaper_init
from fastpump.hot.staged cimport staged_init
from fastpump.hot.title cimport title_set
from fastpump.hot.tun_read cimport tun_to_udp
from fastpump.hot.verdict cimport WAKEUPS
from fastpump.hot.worker cimport Worker


cdef Worker *worker_lay_out(Arena *arena, Worker *unplaced, size_t peer_capacity):
    """Take the worker and all its buffers from the arena. While that measures, what it gives goes
    to `unplaced`. In order: what a worker uses that has little to do, all in the first huge page;
    what it has for each peer, and for packets that wait for a session, in small pages; what delays
    packets."""
    cdef Worker *self = <Worker *>arena_take(arena, sizeof(Worker))
    if unplaced != NULL:
        self = unplaced
    self.read_buffer = <uint8_t *>arena_take(arena, BUFFER_STRIDE)
    self.bundle.buffer = <uint8_t *>arena_take(arena, BUFFER_STRIDE)
    self.frame_buffer = <uint8_t *>arena_take(arena, BUFFER_STRIDE)
    self.recv.buffers = <uint8_t *>arena_take(arena, RECV_MESSAGES * BUFFER_STRIDE)
    self.send.buffers = <uint8_t *>arena_take(arena, SEND_MESSAGES * BUFFER_STRIDE)

    self.reorder.charged_opened = <uint32_t *>arena_take(arena, peer_capacity * sizeof(uint32_t))
    self.shaper.due_ns = <uint64_t *>arena_take(arena, 2 * peer_capacity * sizeof(uint64_t))
    self.shaper.in_use = <uint32_t *>arena_take(arena, 2 * peer_capacity * sizeof(uint32_t))
    self.upcalls_full_at_ns = <uint64_t *>arena_take(arena, peer_capacity * sizeof(uint64_t))
    self.roams_full_at_ns = <uint64_t *>arena_take(arena, peer_capacity * sizeof(uint64_t))
    self.paths_full_at_ns = <uint64_t *>arena_take(arena, peer_capacity * sizeof(uint64_t))
    self.session_sent_ns = <uint64_t *>arena_take(arena, peer_capacity * sizeof(uint64_t))
    self.staged.per_peer = <uint16_t *>arena_take(arena, peer_capacity * sizeof(uint16_t))
    self.staged.buffers = <uint8_t *>arena_take(arena, STAGED_SLOTS * BUFFER_STRIDE)

    self.shaper.big = <uint8_t *>arena_take(arena, SHAPER_BIG * BUFFER_STRIDE)
    self.shaper.small = <uint8_t *>arena_take(arena, SHAPER_SMALL * SHAPER_SMALL_LEN)
    self.reorder.buffer = <uint8_t *>arena_take(arena, REORDER_BYTES)
    return self


cdef class Pump:
    """One worker's data plane: the TUN fds of all queues (it reads that of queue
    `number`), its UDP socket, and the tables.

    `run` never returns while the interface lives; `poll` is one iteration of both directions
    without waiting, for tests and for other event loops.
    """

    cdef Worker *worker
    cdef Mapping mapping
    cdef Arena arena
    cdef uint8_t *memory            # which the arena is in
    cdef size_t memory_size

    def __init__(self, AttachedTables tables, uint32_t number, list tun_fds, int udp_fd,
                 int doorbell_fd, int event_fd, *, lane_fds=(), uint64_t busy_poll_us=0):
        cdef Worker *worker
        cdef int error
        if self.worker != NULL:
            raise ValueError("already set up")
        if number >= tables.queue_count or len(tun_fds) != tables.queue_count:
            raise IndexError(f"worker {number} of {tables.queue_count}, {len(tun_fds)} queues")
        if len(lane_fds) > constants.MAX_LANE_SOCKETS or len(lane_fds) % tables.queue_count:
            raise IndexError(f"{len(lane_fds)} lane sockets for {tables.queue_count} queues")
        self.mapping = tables.mapping
        self.allocate()
        worker = self.worker
        worker.tables = self.mapping.tables
        worker.shared = self.mapping.worker(number)
        worker.number = number
        for i, fd in enumerate(tun_fds):
            worker.tun_fds[<int>i] = fd
        worker.queue_count = tables.queue_count
        worker.is_tap = tables.is_tap
        worker.lane_flags = LANE_FRAME_FLAGS if worker.is_tap else LANE_FLAGS
        worker.tun_fd = worker.tun_fds[number]
        worker.udp_fd = udp_fd
        worker.doorbell_fd = doorbell_fd
        worker.event_fd = event_fd
        worker.busy_poll_ns = 1000 * busy_poll_us
        worker.send.tables = &worker.tables
        worker.send.shared = worker.shared
        for i, fd in enumerate(lane_fds):
            worker.lane_fds[<int>i] = fd
        worker.own_lane_fds = <uint32_t>len(lane_fds) // worker.queue_count
        send_init(&worker.send)
        recv_init(&worker.recv)
        staged_init(&worker.staged)
        shaper_init(&worker.shaper)
        backends_start(&worker.aead,
                       self.mapping.tables.header.aead_backends[AEAD_CHACHA20_POLY1305],
                       self.mapping.tables.header.aead_backends[AEAD_AES_256_GCM])
        error = loop_init(worker)
        if error < 0:
            raise OSError(-error, f"epoll: {os.strerror(-error)}")

    cdef int allocate(self) except -1:
        cdef size_t peer_capacity = self.mapping.tables.header.peer_capacity
        cdef Arena measured
        cdef uint8_t *sparse
        cdef Worker *unplaced = <Worker *>calloc(1, sizeof(Worker))
        if unplaced == NULL:
            raise MemoryError
        measured.memory = NULL
        measured.used = 0
        worker_lay_out(&measured, unplaced, peer_capacity)
        free(unplaced)
        self.memory_size = measured.used + HUGE_PAGE
        self.memory = <uint8_t *>map_memory(self.memory_size, -1)
        self.arena.memory = self.memory + (HUGE_PAGE - <size_t>self.memory % HUGE_PAGE) % HUGE_PAGE
        self.worker = worker_lay_out(&self.arena, NULL, peer_capacity)
        sparse = <uint8_t *>self.worker.reorder.charged_opened
        madvise(sparse, self.worker.shaper.big - sparse, MADV_NOHUGEPAGE)
        self.worker.epoll_fd = -1
        return 0

    def __dealloc__(self):
        if self.worker != NULL:
            aead_free(&self.worker.aead)
            if self.worker.epoll_fd >= 0:
                close(self.worker.epoll_fd)     # libc's: Python may be ending
            munmap(self.memory, self.memory_size)

    def run(self):
        """Pump until the interface is gone."""
        with nogil:
            loop_run(self.worker)

    def poll(self, now=None):
        """One iteration: doorbell, tun_to_udp, udp_to_tun. `now`: CLOCK_BOOTTIME in ns. How long
        `run` would pause after it, ns."""
        cdef Worker *worker = self.worker
        worker.now_ns = now_ns() if now is None else now
        worker.shared.counters[WAKEUPS] += 1
        with nogil:
            loop_snapshot(worker)
            loop_release(worker)
            loop_doorbell(worker)
            tun_to_udp(worker)
            ingress_reordered(worker)
            loop_receive(worker, <uint64_t>-1)
        return moderation_pause_ns(worker)


def set_title(bytes title, bytes short_name):
    """Have ps show this process by that title, and top by the short name, of at most 15 bytes."""
    title_set(title, short_name)


def confine(int parent):
    """Confine this process: it dies with `parent`, has no capabilities, and only the system
    calls of the pump (hot/sandbox.h). OSError if the kernel refuses."""
    for what, error in (("parent", sandbox_tie_to_parent(parent)),
                        ("capabilities", sandbox_drop_capabilities()),
                        ("seccomp", sandbox_filter_syscalls())):
        if error < 0:
            raise OSError(-error, f"sandbox, {what}: {os.strerror(-error)}")
