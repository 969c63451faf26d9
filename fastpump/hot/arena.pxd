# One mapping, cut into arrays.
#
# Whoever lays memory out writes one list: what it takes, in order. The list is gone through
# twice: without memory, to learn how much it needs; then with it, to place the arrays. Each
# array begins on a page of its own.

from libc.stdint cimport uint8_t

cdef enum:
    PAGE = 4096
    HUGE_PAGE = 2097152

cdef struct Arena:
    uint8_t *memory                 # NULL: to measure; what is taken must not be used
    size_t used


cdef inline void *arena_take(Arena *self, size_t size) noexcept nogil:
    """The next `size` bytes."""
    cdef size_t at = self.used
    self.used += (size + PAGE - 1) // PAGE * PAGE
    return <void *>(<size_t>self.memory + at)
