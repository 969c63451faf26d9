# Halt: all keys are to be dropped at once, because another machine may use them too
# (tunnel/clones.py). Dropping takes a while; nothing that was sealed with them may leave from the
# first moment on.
#
#   supervisor  1 Header.halts becomes odd
#               2 all keypairs and lanes are unpublished
#               3 Header.halts becomes even: another number than before
#   worker      takes the number at the beginning of an iteration, and compares it before each
#               sendmmsg: what was sealed in an iteration that began before 3 is discarded. One that
#               begins later finds none of the old keys.
#
# Counters that are taken for what is discarded are lost, never given out again.

from libc.stdint cimport uint32_t

from fastpump.hot.atomics cimport ACQUIRE, SEQ_CST, add32, load32, or32
from fastpump.hot.shm cimport Header


cdef inline uint32_t halt_number(const Header *header) noexcept nogil:
    """At the beginning of an iteration."""
    return load32(&header.halts, ACQUIRE)


cdef inline bint halt_forbids(const Header *header, uint32_t number) noexcept nogil:
    """Whether what was sealed in an iteration that began with `number` may not be sent."""
    return number & 1 or load32(&header.halts, ACQUIRE) != number


# -- the supervisor's side

cdef inline void halt_begin(Header *header) noexcept nogil:
    or32(&header.halts, 1, SEQ_CST)


cdef inline void halt_end(Header *header) noexcept nogil:
    if load32(&header.halts, ACQUIRE) & 1:
        add32(&header.halts, 1, SEQ_CST)
