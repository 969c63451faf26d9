# The compiler's atomic builtins, typed. All shared state of the pump has a single
# writer or goes through these; there are no locks (see hot/shm.pxd).

from libc.stdint cimport uint32_t, uint64_t


cdef extern from * nogil:
    """
    static inline int fastpump_cas32(uint32_t *p, uint32_t expected, uint32_t value)
    {
        return __atomic_compare_exchange_n(p, &expected, value, 0, __ATOMIC_SEQ_CST,
                                           __ATOMIC_RELAXED);
    }
    static inline int fastpump_cas64(uint64_t *p, uint64_t expected, uint64_t value)
    {
        return __atomic_compare_exchange_n(p, &expected, value, 0, __ATOMIC_SEQ_CST,
                                           __ATOMIC_RELAXED);
    }
    """
    enum:
        RELAXED "__ATOMIC_RELAXED"
        ACQUIRE "__ATOMIC_ACQUIRE"
        RELEASE "__ATOMIC_RELEASE"
        SEQ_CST "__ATOMIC_SEQ_CST"
    uint32_t load32 "__atomic_load_n"(const uint32_t *p, int order)
    uint64_t load64 "__atomic_load_n"(const uint64_t *p, int order)
    void store32 "__atomic_store_n"(uint32_t *p, uint32_t value, int order)
    void store64 "__atomic_store_n"(uint64_t *p, uint64_t value, int order)
    uint32_t add32 "__atomic_fetch_add"(uint32_t *p, uint32_t value, int order)
    uint64_t add64 "__atomic_fetch_add"(uint64_t *p, uint64_t value, int order)
    uint32_t or32 "__atomic_fetch_or"(uint32_t *p, uint32_t value, int order)
    bint cas32 "fastpump_cas32"(uint32_t *p, uint32_t expected, uint32_t value)
    bint cas64 "fastpump_cas64"(uint64_t *p, uint64_t expected, uint64_t value)
    uint32_t and32 "__atomic_fetch_and"(uint32_t *p, uint32_t value, int order)
    void fence "__atomic_thread_fence"(int order)
    void signal_fence "__atomic_signal_fence"(int order)     # for the compiler: no instruction
