# The worker's loop: wait, then give each direction a bounded turn.
#
# Under load the wait is asked with timeout 0, so that neither direction starves the
# other; when both are empty it blocks, and a lone packet is on its way as soon as
# it arrives. With busy polling the worker first spins for a while.

from libc.stdint cimport uint32_t, uint64_t

from fastpump.hot.atomics cimport RELAXED, SEQ_CST, load32, store64
from fastpump.hot.tun_write cimport write_release
from fastpump.hot.egress cimport egress_flush, egress_release, staged_send
from fastpump.hot.ingress cimport take_held, take_strays, udp_to_tun
from fastpump.hot.tun_read cimport tun_to_udp
from fastpump.hot.linux cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLLIN, epoll_create1, epoll_ctl, epoll_event,
    epoll_wait, errno, now_ns, read, write,
)
from fastpump.hot.shaper cimport shape_pop, shape_slot_free, shape_timeout_ms
from fastpump.hot.shm cimport LIMIT_RX, NONE
from fastpump.hot.staged cimport staged_purge
from fastpump.hot.verdict cimport PASS, WAKEUPS, Verdict
from fastpump.hot.worker cimport ShapedPacket, Worker

cdef enum:
    READY_TUN = 1
    READY_UDP = 2
    READY_DOORBELL = 4
    READY_LANE_SHIFT = 3            # the bits from there on: our lane sockets
    LOOP_EVENTS = 40
    HOLD_POLL_MS = 1                # others tell nobody that what we wait for was delivered


cdef inline int loop_watch(Worker *self, int fd, uint64_t ready) noexcept nogil:
    cdef epoll_event event
    event.events = EPOLLIN
    event.data.u64 = ready
    return epoll_ctl(self.epoll_fd, EPOLL_CTL_ADD, fd, &event)


cdef inline int loop_init(Worker *self) noexcept nogil:
    """0 or -errno."""
    cdef uint32_t i
    self.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
    if self.epoll_fd < 0:
        return -errno
    if loop_watch(self, self.tun_fd, READY_TUN) < 0 \
            or loop_watch(self, self.udp_fd, READY_UDP) < 0 \
            or loop_watch(self, self.doorbell_fd, READY_DOORBELL) < 0:
        return -errno
    for i in range(self.own_lane_fds):
        if loop_watch(self, self.lane_fds[self.number + i * self.queue_count],
                      <uint64_t>1 << (READY_LANE_SHIFT + i)) < 0:
            return -errno
    return 0


cdef inline uint64_t loop_wait(Worker *self, uint64_t *epoch, int timeout) noexcept nogil:
    """What is ready (READY_*). The epoch is even exactly while this blocks."""
    cdef epoll_event events[LOOP_EVENTS]
    cdef uint64_t ready = 0
    cdef int count, i
    if timeout:
        epoch[0] += 1
        store64(&self.shared.epoch, epoch[0], SEQ_CST)
        count = epoll_wait(self.epoll_fd, events, LOOP_EVENTS, timeout)
        self.shared.counters[WAKEUPS] += 1
        epoch[0] += 1
    else:
        count = epoll_wait(self.epoll_fd, events, LOOP_EVENTS, 0)
        epoch[0] += 2
    store64(&self.shared.epoch, epoch[0], SEQ_CST)
    for i in range(count):
        ready |= events[i].data.u64
    return ready


cdef inline void loop_doorbell(Worker *self) noexcept nogil:
    cdef uint64_t rings
    read(self.doorbell_fd, &rings, sizeof(rings))
    take_strays(self)
    staged_purge(self)
    staged_send(self, NONE)
    egress_flush(self)


cdef inline void loop_release(Worker *self) noexcept nogil:
    """Let go what has waited for its rate limit."""
    cdef ShapedPacket shaped
    cdef Verdict verdict
    while shape_pop(&self.shape, self.now_ns, &shaped):
        verdict = PASS
        if shaped.way == LIMIT_RX:
            write_release(self, &shaped)
        else:
            verdict = egress_release(self, &shaped)
        shape_slot_free(&self.shape, &shaped)
        if verdict != PASS:
            self.shared.verdicts[verdict] += 1
    egress_flush(self)


cdef inline void loop_turn(Worker *self) noexcept nogil:
    """What may change between two turns, and is the same during one."""
    self.send.now_ns = self.now_ns
    self.now_s = <uint32_t>(self.now_ns / 1000000000)
    self.mtu = load32(&self.tables.header.mtu, RELAXED)
    self.spread_queues = load32(&self.tables.header.spread_queues, RELAXED)
    self.has_limits = load32(&self.tables.header.has_limits, RELAXED) != 0


cdef inline int loop_timeout(const Worker *self) noexcept nogil:
    """How long to wait, ms, if nothing is ready."""
    cdef int timeout = HOLD_POLL_MS if self.hold.count else -1
    cdef int release
    if self.shape.count:
        release = shape_timeout_ms(self)
        if timeout < 0 or release < timeout:
            timeout = release
    return timeout


cdef inline bint loop_receive(Worker *self, uint64_t ready) noexcept nogil:
    """A turn of each socket that is ready; True if one may hold more."""
    cdef uint32_t i
    cdef bint has_more = False
    if ready & READY_UDP:
        has_more |= udp_to_tun(self, self.udp_fd)
    ready >>= READY_LANE_SHIFT
    for i in range(self.own_lane_fds if ready else 0):
        if ready >> i & 1:
            has_more |= udp_to_tun(self, self.lane_fds[self.number + i * self.queue_count])
    return has_more


cdef inline void loop_run(Worker *self) noexcept nogil:
    """Until the process is killed, or its interface is gone."""
    cdef uint64_t epoch = self.shared.epoch | 1
    cdef uint64_t one = 1, idle_since_ns = 0
    cdef uint64_t ready = READY_DOORBELL
    cdef bint has_more
    cdef int timeout
    store64(&self.shared.epoch, epoch, SEQ_CST)
    self.send.has_events = True     # tells the supervisor that this worker runs
    while not self.interface_gone:
        self.now_ns = now_ns()
        loop_turn(self)
        has_more = False
        if self.shape.count:
            loop_release(self)
        if ready & READY_DOORBELL:
            loop_doorbell(self)
        if ready & READY_TUN:
            has_more |= tun_to_udp(self)
        if self.hold.count:
            take_held(self)
        has_more |= loop_receive(self, ready)
        if self.send.has_events:
            self.send.has_events = False
            write(self.event_fd, &one, sizeof(one))
        timeout = 0 if has_more else loop_timeout(self)
        if self.busy_poll_ns and not has_more:
            if ready:
                idle_since_ns = self.now_ns
            if self.now_ns - idle_since_ns < self.busy_poll_ns:
                timeout = 0
        ready = loop_wait(self, &epoch, timeout)
