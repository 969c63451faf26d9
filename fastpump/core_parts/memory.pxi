# Memory that lives outside of Python's heap: how it is mapped, and the object that owns the
# tables' mapping.

import os

from libc.stdint cimport uint32_t

from fastpump.hot.aead cimport Aead, aead_free
from fastpump.hot.linux cimport (
    MADV_DONTDUMP, MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, MAP_SHARED, PROT_READ,
    PROT_WRITE, errno, madvise, mmap, munmap,
)
from fastpump.hot.shm cimport PeerSlot, Tables, WorkerShared


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


cdef class Mapping:
    """Owns this process's mapping of the tables: every object with pointers into it references
    this. Bounds of our own memory are copies: what is in the mapping, workers can write."""

    cdef Tables tables
    cdef Aead aead                  # of the supervisor; a worker has its own
    cdef size_t size
    cdef uint32_t queue_count, peer_capacity
    cdef uint32_t peers_end         # of the peers that this process has added

    def __dealloc__(self):
        aead_free(&self.aead)
        if self.tables.header != NULL:
            munmap(self.tables.header, self.size)

    cdef PeerSlot *peer(self, uint32_t slot) except NULL:
        if slot >= self.peers_end or not self.tables.peers[slot].live:
            raise IndexError(f"no peer in slot {slot}")
        return &self.tables.peers[slot]

    cdef WorkerShared *worker(self, uint32_t number) except NULL:
        if number >= self.queue_count:
            raise IndexError(f"no worker {number}")
        return &self.tables.workers[number]
