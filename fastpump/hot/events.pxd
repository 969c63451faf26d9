# Worker -> supervisor: a ring of events per worker (one producer, one consumer).
#
# Events are rare: each kind is reported at most once per peer, keypair or lane until the supervisor
# has dealt with it and cleared its *_REPORTED bit. When the ring is full the event is not sent and
# its bit cleared again, so the next packet tries again (a roaming peer's endpoint is not written
# before there is room, or no later packet would differ). A worker killed between the two leaves a
# bit without an event: all bits are cleared on its death (hot/worker_exit.pxd).

from libc.stdint cimport uint32_t, uint64_t

from fastpump.hot.atomics cimport (
    ACQUIRE, RELAXED, RELEASE, SEQ_CST, and32, load32, load64, or32, store64,
)
from fastpump.hot.constants cimport EVENT_RING_LEN
from fastpump.hot.rings cimport ring_end
from fastpump.hot.shm cimport Event, WorkerShared
from fastpump.hot.verdict cimport FAILED_EVENT_RING_FULL


cdef inline bint event_push_once(WorkerShared *shared, uint32_t *bits, uint32_t bit, uint32_t kind,
                                 uint32_t peer, uint32_t detail, uint64_t now) noexcept nogil:
    """Push unless `bit` says that it was reported; True if it was pushed now. Whoever handles the
    event clears the bit first and looks then, so what is news is stored before this; with a fence
    in between if no later packet would say it again."""
    if load32(bits, RELAXED) & bit or or32(bits, bit, SEQ_CST) & bit:
        return False
    # The bit is set before the event can be read: whoever handles the event clears it.
    if event_push(shared, kind, peer, detail, 0, now):
        return True
    and32(bits, ~bit, RELAXED)
    return False


cdef inline bint event_push(WorkerShared *shared, uint32_t kind, uint32_t peer, uint32_t detail,
                            uint32_t error, uint64_t now) noexcept nogil:
    cdef uint64_t tail = shared.events_tail
    cdef Event *event
    if not events_have_room(shared):
        shared.verdicts[FAILED_EVENT_RING_FULL] += 1
        return False
    event = &shared.events[tail % EVENT_RING_LEN]
    event.kind = kind
    event.peer = peer
    event.detail = detail
    event.error = error
    event.at_ns = now
    store64(&shared.events_tail, tail + 1, RELEASE)
    return True


cdef inline bint events_have_room(WorkerShared *shared) noexcept nogil:
    """Whether the next push will succeed; it stays so, as this worker alone adds to the ring."""
    return shared.events_tail - load64(&shared.events_head, ACQUIRE) < EVENT_RING_LEN


cdef inline bint events_are_many(WorkerShared *shared) noexcept nogil:
    """Whether the ring is half full: the rest is for what a peer cannot cause as it likes."""
    return shared.events_tail - load64(&shared.events_head, ACQUIRE) >= EVENT_RING_LEN // 2


# -- the supervisor's side

cdef inline uint64_t events_end(WorkerShared *shared, uint64_t *head) noexcept nogil:
    """Behind the last event that there is now; `head`: the next to take (hot/rings.pxd)."""
    return ring_end(head, &shared.events_tail, EVENT_RING_LEN)


cdef inline Event *event_at(WorkerShared *shared, uint64_t position) noexcept nogil:
    return &shared.events[position % EVENT_RING_LEN]


cdef inline void events_pop(WorkerShared *shared, uint64_t head) noexcept nogil:
    """All before `head` were taken."""
    store64(&shared.events_head, head, RELEASE)
