# The worker's loop: wait, then do a bounded amount of work in each direction. An iteration:
#
#   snapshot     the time, and what the supervisor may change between two iterations
#   release      what has waited for its rate limit (hot/shaper.pxd)
#   doorbell     misdelivered datagrams, and packets staged for a session that is there now
#   tun_to_udp   hot/tun_read.pxd, then hot/egress.pxd
#   reordered    lane messages that came too early (hot/reorder.pxd)
#   udp_to_tun   hot/ingress.pxd, each socket
#   report       wake the supervisor if there are events
#   pause        if many packets come, so that more come at once (hot/moderation.pxd)
#   wait         until something is ready or due
#
# Under load the wait has timeout 0, so that neither direction starves the other; when both are
# empty it blocks, and a lone packet is on its way as soon as it arrives. With busy polling the
# worker first spins for a while. The epoch changes with each iteration, and is even exactly while
# the wait blocks: it shows when a worker has let go of all pointers (hot/reclaim.pxd).

from libc.stdint cimport uint32_t, uint64_t

from fastpump.hot.aead cimport aead_forget
from fastpump.hot.atomics cimport RELAXED, load32
from fastpump.hot.egress cimport egress_dispatch_staged, egress_flush, egress_release
from fastpump.hot.halt cimport halt_number
from fastpump.hot.ingress cimport udp_to_tun
from fastpump.hot.ingress_delayed cimport ingress_misdelivered, ingress_reordered
from fastpump.hot.linux cimport (
    CLOCK_MONOTONIC, EPOLLIN, EPOLL_CLOEXEC, EPOLL_CTL_ADD, c_timespec, clock_nanosleep,
    epoll_create1, epoll_ctl, epoll_event, epoll_wait, errno, now_ns, read, write,
)
from fastpump.hot.moderation cimport moderation_pause_ns
from fastpump.hot.reclaim cimport epoch_enter, epoch_leave
from fastpump.hot.shaper cimport shaper_pop, shaper_slot_free, shaper_timeout_ms
from fastpump.hot.shm cimport DIRECTION_RX, NONE
from fastpump.hot.staged cimport staged_purge
from fastpump.hot.tun_read cimport tun_to_udp
from fastpump.hot.tun_write cimport tun_write_release
from fastpump.hot.verdict cimport WAKEUPS
from fastpump.hot.worker cimport ShaperEntry, Worker, worker_count

cdef enum:
    READY_TUN = 1
    READY_UDP = 2
    READY_DOORBELL = 4
    READY_LANE_SHIFT = 3            # the bits from there on: our lane sockets
    LOOP_EVENTS = 40
    REORDER_POLL_MS = 1             # no one wakes us when another worker lifts a fence


cdef inline int loop_init(Worker *worker) noexcept nogil:
    """0 or -errno."""
    cdef uint32_t i
    worker.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
    if worker.epoll_fd < 0:
        return -errno
    if loop_watch(worker, worker.tun_fd, READY_TUN) < 0 \
            or loop_watch(worker, worker.udp_fd, READY_UDP) < 0 \
            or loop_watch(worker, worker.doorbell_fd, READY_DOORBELL) < 0:
        return -errno
    for i in range(worker.own_lane_fds):
        if loop_watch(worker, worker.lane_fds[worker.number + i * worker.queue_count],
                      <uint64_t>1 << (READY_LANE_SHIFT + i)) < 0:
            return -errno
    return 0


cdef inline int loop_watch(Worker *worker, int fd, uint64_t ready) noexcept nogil:
    cdef epoll_event event
    event.events = EPOLLIN
    event.data.u64 = ready
    return epoll_ctl(worker.epoll_fd, EPOLL_CTL_ADD, fd, &event)


cdef inline void loop_run(Worker *worker) noexcept nogil:
    """Until the process is killed, or its interface is gone."""
    cdef uint64_t epoch = worker.shared.epoch | 1
    cdef uint64_t one = 1, idle_since_ns = 0
    cdef uint64_t ready = READY_DOORBELL
    cdef bint has_more
    cdef int timeout
    cdef uint64_t pause_ns
    epoch_enter(worker.shared, epoch)
    worker.send.has_events = True   # the first wake-up says that this worker runs
    while not worker.is_interface_gone:
        worker.now_ns = now_ns()
        loop_snapshot(worker)
        has_more = False
        if worker.shaper.count:
            loop_release(worker)
        if ready & READY_DOORBELL:
            loop_doorbell(worker)
        if ready & READY_TUN:
            has_more |= tun_to_udp(worker)
        if worker.reorder.count:
            ingress_reordered(worker)
        has_more |= loop_receive(worker, ready)
        if worker.send.has_events:
            worker.send.has_events = False
            write(worker.event_fd, &one, sizeof(one))
        timeout = 0 if has_more else loop_timeout(worker)
        if worker.busy_poll_ns and not has_more:
            if ready:
                idle_since_ns = worker.now_ns
            if worker.now_ns - idle_since_ns < worker.busy_poll_ns:
                timeout = 0
        pause_ns = moderation_pause_ns(worker) if timeout else 0
        ready = loop_wait(worker, &epoch, timeout, pause_ns)


cdef inline void loop_snapshot(Worker *worker) noexcept nogil:
    """What may change between two iterations, and is the same during one."""
    cdef uint32_t number = halt_number(worker.tables.header)
    worker.send.now_ns = worker.now_ns
    worker.now_s = <uint32_t>(worker.now_ns / 1000000000)
    worker.mtu = load32(&worker.tables.header.mtu, RELAXED)
    worker.max_pause_ns = load32(&worker.tables.header.max_pause_ns, RELAXED)
    worker.spread_queues = load32(&worker.tables.header.spread_queues, RELAXED)
    worker.send.has_send_errors = load32(&worker.tables.header.has_send_errors, RELAXED) != 0
    worker.tos_copied = load32(&worker.tables.header.tos_copied, RELAXED)
    worker.send.tos_fixed = load32(&worker.tables.header.tos_fixed, RELAXED)
    worker.has_rate_limits = load32(&worker.tables.header.has_rate_limits, RELAXED) != 0
    worker.takes_control_packets = load32(
        &worker.tables.header.takes_control_packets, RELAXED) != 0
    if worker.send.halt_number != number:
        worker.send.halt_number = number
        worker.random_left = 0      # the other machine has the same


cdef inline void loop_release(Worker *worker) noexcept nogil:
    """Send and write what has waited for its rate limit."""
    cdef ShaperEntry shaped
    while shaper_pop(&worker.shaper, worker.now_ns, &shaped):
        if shaped.direction == DIRECTION_RX:
            tun_write_release(worker, &shaped)
        else:
            worker_count(worker, egress_release(worker, &shaped))
        shaper_slot_free(&worker.shaper, &shaped)
    egress_flush(worker)


cdef inline void loop_doorbell(Worker *worker) noexcept nogil:
    cdef uint64_t rings
    read(worker.doorbell_fd, &rings, sizeof(rings))
    aead_forget(&worker.aead)       # the supervisor rings once a second, and wipes keys
    ingress_misdelivered(worker)
    staged_purge(worker)
    egress_dispatch_staged(worker, NONE)
    egress_flush(worker)


cdef inline bint loop_receive(Worker *worker, uint64_t ready) noexcept nogil:
    """An iteration of each socket that is ready; True if one may hold more."""
    cdef uint32_t i
    cdef bint has_more = False
    if ready & READY_UDP:
        has_more |= udp_to_tun(worker, worker.udp_fd)
    ready >>= READY_LANE_SHIFT
    for i in range(worker.own_lane_fds if ready else 0):
        if ready >> i & 1:
            has_more |= udp_to_tun(worker, worker.lane_fds[worker.number + i * worker.queue_count])
    return has_more


cdef inline int loop_timeout(const Worker *worker) noexcept nogil:
    """How long to wait, ms, if nothing is ready."""
    cdef int timeout = REORDER_POLL_MS if worker.reorder.count else -1
    cdef int release
    if worker.shaper.count:
        release = shaper_timeout_ms(worker)
        if timeout < 0 or release < timeout:
            timeout = release
    return timeout


cdef inline uint64_t loop_wait(Worker *worker, uint64_t *epoch, int timeout,
                               uint64_t pause_ns) noexcept nogil:
    """What is ready (READY_*). The epoch is even exactly while this blocks."""
    cdef epoll_event events[LOOP_EVENTS]
    cdef c_timespec pause
    cdef uint64_t ready = 0
    cdef int count, i
    if timeout:
        epoch[0] += 1
        epoch_leave(worker.shared, epoch[0])
        if pause_ns:
            pause.tv_sec, pause.tv_nsec = 0, <long>pause_ns
            clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL)
        count = epoll_wait(worker.epoll_fd, events, LOOP_EVENTS, timeout)
        worker.shared.counters[WAKEUPS] += 1
        epoch[0] += 1
    else:
        count = epoll_wait(worker.epoll_fd, events, LOOP_EVENTS, 0)
        epoch[0] += 2
    epoch_enter(worker.shared, epoch[0])
    for i in range(count):
        ready |= events[i].data.u64
    return ready
