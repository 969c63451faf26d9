# Slots of the tables: taken, retired, and free again after a grace period (hot/reclaim.pxd).

from libc.stdint cimport int64_t, uint32_t

from fastpump.hot.reclaim cimport Grace, grace_begin, grace_is_over

cdef class SlotTable


cdef class Retired:
    """Slots that were taken out of use: `reclaim` gives them back when no worker can hold a
    pointer to them any more; and writes the `endpoints` that a worker was just writing. Its
    length: how many wait."""

    cdef Mapping mapping
    cdef EndpointWriter endpoints
    cdef Grace grace
    cdef list waiting               # (SlotTable, slot) whose grace period runs
    cdef list newest                # retired since it began

    def __cinit__(self, Mapping mapping):
        self.mapping = mapping
        self.endpoints = EndpointWriter()
        self.waiting, self.newest = [], []

    def __len__(self):
        return len(self.waiting) + len(self.newest) + len(self.endpoints)

    cdef int add(self, SlotTable table, uint32_t slot) except -1:
        self.newest.append((table, slot))
        return 0

    def reclaim(self):
        """Wipe and reuse what every worker has let go of; how many still wait."""
        if not self.waiting:
            self.waiting, self.newest = self.newest, []
            grace_begin(&self.grace, &self.mapping.tables)
        if grace_is_over(&self.grace, &self.mapping.tables):
            for table, slot in self.waiting:
                (<SlotTable>table).recycle(slot)
            self.waiting = []
        self.endpoints.write_late()
        return len(self)

    cdef int reclaim_all(self) except -1:
        """What waits since the last time, and what was retired after it."""
        self.reclaim()
        if self.newest:
            self.reclaim()
        return 0


cdef class SlotTable:
    """A table of the shared memory as its owner sees it: which slots are free."""

    cdef Mapping mapping
    cdef Retired retired
    cdef str title                  # for errors
    cdef list free
    cdef uint32_t capacity
    cdef uint32_t end               # from here on, no slot was ever used

    def __cinit__(self, Mapping mapping, Retired retired):
        self.mapping = mapping
        self.retired = retired
        self.free = []

    cdef int64_t take(self) except -1:
        """A free slot; MemoryError when the table is full."""
        if not self.free:
            self.retired.reclaim_all()
        if self.free:
            return self.free.pop()
        if self.end >= self.capacity:
            raise MemoryError(f"{self.title} is full ({self.capacity})")
        self.end += 1
        return self.end - 1

    cdef int recycle(self, uint32_t slot) except -1:
        """A grace period after the slot was retired."""
        self.free.append(slot)
        return 0
