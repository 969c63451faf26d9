# Memory that lives outside of Python's heap: how it is mapped, and the object that owns the
# tables' mappings.

import os

from libc.stdint cimport uint32_t

from fastpump.hot.aead cimport Aead, aead_free
from fastpump.hot.layout cimport configuration_lay_out, state_lay_out, tables_view
from fastpump.hot.linux cimport (
    MADV_DONTDUMP, MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, MAP_SHARED, PROT_READ,
    PROT_WRITE, errno, madvise, mmap, munmap,
)
from fastpump.hot.shm cimport Configuration, Header, PeerState, Tables, WorkerShared


cdef void *map_memory(size_t size, int fd, bint is_writable=True) except NULL:
    """Map shared (fd >= 0) or private memory that no core dump shows."""
    cdef int flags = MAP_SHARED if fd >= 0 else MAP_PRIVATE | MAP_ANONYMOUS
    cdef int protection = PROT_READ | PROT_WRITE if is_writable else PROT_READ
    cdef void *memory = mmap(NULL, size, protection, flags, fd, 0)
    if memory == MAP_FAILED:
        raise OSError(errno, f"cannot map {size} bytes: {os.strerror(errno)}")
    madvise(memory, size, MADV_DONTDUMP)
    if fd < 0:
        madvise(memory, size, MADV_HUGEPAGE)    # fewer TLB misses in the packet buffers
    return memory


cdef class Mapping:
    """Owns this process's mappings of the tables: every object with pointers into them references
    this. `tables` is what everybody reads, and what workers write; `configuration` is the
    supervisor's, to write: in a worker, its pages cannot be written."""

    cdef Tables tables
    cdef Configuration configuration
    cdef size_t configuration_size, state_size
    cdef Aead aead                  # of the supervisor; a worker has its own
    cdef uint32_t peers_end         # of the peers that this process has added

    def __dealloc__(self):
        aead_free(&self.aead)
        if self.configuration.header != NULL:
            munmap(self.configuration.header, self.configuration_size)
        if self.tables.interface != NULL:
            munmap(self.tables.interface, self.state_size)

    cdef int map_fds(self, int configuration_fd, int state_fd, bint is_supervisor) except -1:
        """Map both. The first descriptor may be read-only in a worker."""
        cdef void *memory
        self.configuration_size = os.fstat(configuration_fd).st_size
        memory = map_memory(self.configuration_size, configuration_fd, is_supervisor)
        configuration_lay_out(&self.configuration, <Header *>memory, memory)
        self.state_size = os.fstat(state_fd).st_size
        memory = map_memory(self.state_size, state_fd)
        tables_view(&self.tables, &self.configuration)
        state_lay_out(&self.tables, self.tables.header, memory)
        return 0

    cdef int check_peer(self, uint32_t slot) except -1:
        """IndexError if there is none in the slot."""
        if slot >= self.peers_end or not self.tables.peers[slot].live:
            raise IndexError(f"no peer in slot {slot}")
        return 0

    cdef PeerState *peer_state(self, uint32_t slot) except NULL:
        self.check_peer(slot)
        return &self.tables.peer_states[slot]

    cdef WorkerShared *worker(self, uint32_t number) except NULL:
        if number >= self.tables.header.queue_count:
            raise IndexError(f"no worker {number}")
        return &self.tables.workers[number]
