# Confinement of a worker process; see sandbox.h.

cdef extern from "sandbox.h" nogil:
    int sandbox_drop_capabilities()
    int sandbox_filter_syscalls()
    int sandbox_tie_to_parent(int parent)
