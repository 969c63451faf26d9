# Grace periods: when a slot that was taken out of use may be wiped and used again.
#
# Workers read the tables without locks, so one may still hold a pointer to a slot that the
# supervisor has just unpublished. As with RCU in the kernel, a reader announces nothing per
# access; it passes a quiescent state between two iterations of its loop, where it holds no
# pointer into the tables:
#
#   worker      WorkerShared.epoch is odd during an iteration and even while it waits for
#               packets. It changes with each iteration (hot/loop.pxd).
#   supervisor  1 unpublish the slots (store NONE, 0 or LANE_FREE where workers find them)
#               2 grace_begin: record every worker's epoch
#               3 grace_is_over: each has changed, or was even when it was recorded
#               4 wipe the slots, and give them to the next who needs one
#
# A worker that was waiting in step 2 sees the slots unpublished when it goes on: both sides have a
# full fence, between its store of the epoch and its loads of slots, and between our stores and the
# load of the epoch. (A sequentially consistent store alone does not order later acquiring loads: on
# aarch64 with LDAPR they may be done before it.) A worker that dies in an iteration would keep its
# epoch odd for ever; hot/worker_exit.pxd makes it even.
#
# Slots that are retired during a grace period wait for the next one. Nothing waits here: the
# supervisor looks again later (tunnel/alarms.py), or when it has no free slot left.

from libc.stdint cimport uint32_t, uint64_t

from fastpump.hot.atomics cimport RELEASE, SEQ_CST, fence, load64, store64
from fastpump.hot.constants cimport MAX_QUEUES
from fastpump.hot.shm cimport Tables, WorkerShared

cdef struct Grace:
    uint64_t epochs[MAX_QUEUES]     # of each worker, when it began


cdef inline void epoch_enter(WorkerShared *self, uint64_t epoch) noexcept nogil:
    """The worker begins an iteration (`epoch` is odd): its loads come after this."""
    store64(&self.epoch, epoch, RELEASE)
    fence(SEQ_CST)


cdef inline void epoch_leave(WorkerShared *self, uint64_t epoch) noexcept nogil:
    """The worker waits (`epoch` is even): its loads came before this."""
    store64(&self.epoch, epoch, RELEASE)


# -- the supervisor's side

cdef inline void grace_begin(Grace *self, const Tables *tables) noexcept nogil:
    """What was unpublished until now may be reused when this grace period is over."""
    cdef uint32_t i
    fence(SEQ_CST)
    for i in range(tables.header.queue_count):
        self.epochs[i] = load64(&tables.workers[i].epoch, SEQ_CST)


cdef inline bint grace_is_over(const Grace *self, const Tables *tables) noexcept nogil:
    """Whether every worker has let go of what was unpublished before."""
    cdef uint32_t i
    for i in range(tables.header.queue_count):
        if self.epochs[i] & 1 and load64(&tables.workers[i].epoch, SEQ_CST) == self.epochs[i]:
            return False
    return True
