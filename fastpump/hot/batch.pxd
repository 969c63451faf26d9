# Send batch: sealed datagrams on their way to one sendmmsg.
#
# A message is a run of equal-sized datagrams on one path (the last may be shorter),
# sent with UDP_SEGMENT: the segments of a superpacket, and just as well small
# packets that happen to have one size. A datagram joins the latest message of its
# path or opens a new one, so a path's datagrams leave in the order they came.
# They have one TOS, too (hot/ecn.pxd). The endpoint is copied when a message opens. Messages
# of one socket that stand in a row, mostly all, leave by one call.
#
# Control messages: the source address ends at CONTROL_AT, the segment size follows, the TOS
# stands before both, so that any of them are one run of bytes.
#
# Errors of sendmmsg concern its first message:
#   EAGAIN, ENOBUFS, ENOMEM   no room: dropped and counted, never spun on
#   EIO, EMSGSIZE, EINVAL     of a GSO message: sent again one by one, as for a while are all
#                             of that size on this path (hot/gso.pxd)
#   EINVAL, EADDRNOTAVAIL, ENETUNREACH
#                             else, with a source address (hot/pktinfo.pxd), which the host may
#                             have lost: sent again from one that the kernel chooses, and reported
#                             to the supervisor
#   others                    dropped, counted, reported when that changes (hot/send_errors.pxd)
#
# Nothing is sent while the supervisor drops all keys (hot/halt.pxd).

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy

from fastpump.hot.constants cimport (
    BATCH_BUCKETS, BUFFER_STRIDE, MAX_GSO_SEGMENTS, MAX_UDP_PAYLOAD, SEND_FLUSH_BYTES,
    SEND_MESSAGES,
)
from fastpump.hot.endpoint cimport endpoint_forget_source_address, endpoint_read
from fastpump.hot.events cimport event_push, event_push_once, events_have_room
from fastpump.hot.gso cimport gso_accept, gso_is_refused, gso_may_retry, gso_refuse
from fastpump.hot.halt cimport halt_forbids
from fastpump.hot.linux cimport (
    CMSG_DATA, CMSG_LEN, EADDRNOTAVAIL, EAGAIN, EINTR, EINVAL, EIO, EMSGSIZE, ENETUNREACH, ENOBUFS,
    ENOMEM, MSG_DONTWAIT, SOL_UDP, UDP_SEGMENT, cmsghdr, errno, iovec, mmsghdr, sendmmsg,
    sockaddr_in6,
)
from fastpump.hot.pktinfo cimport TOS_LEN, pktinfo_write, tos_write
from fastpump.hot.send_errors cimport send_error_changes, send_error_set
from fastpump.hot.shm cimport (
    EVENT_GSO_REFUSED, EVENT_SEND_ERROR, EVENT_SOURCE_ADDRESS_GONE, OFFLOAD_UDP_GSO,
    REPORTED_GSO_REFUSED, REPORTED_SOURCE_ADDRESS_GONE, SOURCE_ADDRESS_LEN, Endpoint, PeerState,
    Tables, WorkerShared, peer_count,
)
from fastpump.hot.verdict cimport (
    DROP_HALTED, DROP_SEND_BUFFER_FULL, DROP_SEND_ERROR, FAILED_UDP_GSO, UDP_TX_BYTES,
    UDP_TX_CALLS, UDP_TX_DATAGRAMS, UDP_TX_MESSAGES, Verdict,
)

cdef enum:
    SEGMENT_CMSG_LEN = 24           # CMSG_SPACE(sizeof(uint16_t))
    CONTROL_AT = 64                 # TOS_LEN and PKTINFO_LEN
    SEND_CMSG_LEN = 88              # and SEGMENT_CMSG_LEN

cdef struct Path:
    # Where a datagram goes: by a peer's session, or on a lane.
    uint32_t id                     # no two paths have the same
    uint32_t peer
    int fd
    uint32_t tos                    # or traffic class
    Endpoint *endpoint

cdef struct SendMessage:
    uint32_t path_id
    uint32_t peer
    int fd
    Endpoint *endpoint
    uint32_t length
    uint32_t segment_len
    uint32_t segment_count
    uint32_t tos
    uint32_t pktinfo_len            # of the control message; 0: no source address given
    bint is_open
    bint is_gso_retry               # the path has refused such a message

cdef struct SendBatch:
    Tables *tables
    WorkerShared *shared
    uint64_t now_ns
    uint32_t halt_number            # of the iteration
    uint32_t tos_fixed              # of the iteration; the sockets have it
    bint has_send_errors            # of the iteration: some peer's messages were refused
    bint has_events                 # something went into the event ring
    uint32_t count
    uint32_t bytes
    uint8_t *buffers                # SEND_MESSAGES of BUFFER_STRIDE
    SendMessage info[SEND_MESSAGES]
    mmsghdr messages[SEND_MESSAGES]
    iovec iov[SEND_MESSAGES]
    sockaddr_in6 names[SEND_MESSAGES]
    uint8_t control[SEND_MESSAGES][SEND_CMSG_LEN]


cdef inline void send_init(SendBatch *self) noexcept nogil:
    cdef int i
    for i in range(SEND_MESSAGES):
        self.messages[i].msg_hdr.msg_iov = &self.iov[i]
        self.messages[i].msg_hdr.msg_iovlen = 1
        self.messages[i].msg_hdr.msg_name = &self.names[i]
        self.iov[i].iov_base = self.buffers + <size_t>i * BUFFER_STRIDE
    self.count = 0
    self.bytes = 0


cdef inline uint8_t *send_reserve(SendBatch *self, const Path *path,
                                  uint32_t length) noexcept nogil:
    """Room for one datagram of `length` bytes on a path; NULL if its endpoint is
    unknown. The caller fills all of it before the next call."""
    cdef SendMessage *info = send_latest(self, path.id)
    cdef uint8_t *room
    if info != NULL and send_message_fits(info, path.tos, length):
        room = <uint8_t *>self.iov[info - self.info].iov_base + info.length
        info.length += length
        info.segment_count += 1
        info.is_open = length == info.segment_len and info.segment_count < MAX_GSO_SEGMENTS
        self.bytes += length
        return room
    room = send_open(self, path, length, length)
    if room != NULL:
        info = &self.info[self.count - 1]
        info.is_open = (self.tables.interface.offloads & OFFLOAD_UDP_GSO) != 0
        if gso_is_refused(path.endpoint, length) and info.is_open:
            info.is_open = info.is_gso_retry = gso_may_retry(path.endpoint, send_now_s(self))
    return room


cdef inline uint8_t *send_reserve_train(SendBatch *self, const Path *path, uint32_t length,
                                        uint32_t datagram_len) noexcept nogil:
    """Room for a run of `length` bytes that leaves as datagrams of that length, the last of which
    is shorter; else as `send_reserve`. UDP GSO has to be on, and not refused."""
    cdef SendMessage *info = send_latest(self, path.id)
    if info != NULL:
        info.is_open = False
    return send_open(self, path, length, datagram_len)


cdef inline uint8_t *send_open(SendBatch *self, const Path *path, uint32_t length,
                               uint32_t datagram_len) noexcept nogil:
    """A new message, which nothing joins; NULL if the path's endpoint is unknown."""
    cdef SendMessage *info
    cdef cmsghdr *control
    cdef uint32_t i, name_len
    cdef uint8_t source_address[SOURCE_ADDRESS_LEN]
    if self.count == SEND_MESSAGES or self.bytes >= SEND_FLUSH_BYTES:
        send_flush(self)
    i = self.count
    name_len = endpoint_read(path.endpoint, <uint8_t *>&self.names[i], source_address)
    if name_len == 0:
        return NULL
    self.count += 1
    self.bytes += length
    info = &self.info[i]
    info.path_id = path.id
    info.peer = path.peer
    info.fd = path.fd
    info.endpoint = path.endpoint
    info.tos = path.tos
    info.length = length
    info.segment_len = datagram_len
    info.segment_count = (length + datagram_len - 1) / datagram_len
    info.is_open = info.is_gso_retry = False
    self.messages[i].msg_hdr.msg_namelen = name_len
    info.pktinfo_len = pktinfo_write(self.control[i] + TOS_LEN, source_address,
                                     self.names[i].sin6_family)
    control = <cmsghdr *>(self.control[i] + CONTROL_AT)
    control.cmsg_level = SOL_UDP
    control.cmsg_type = UDP_SEGMENT
    control.cmsg_len = CMSG_LEN(sizeof(uint16_t))
    return <uint8_t *>self.iov[i].iov_base


cdef inline SendMessage *send_latest(SendBatch *self, uint32_t path_id) noexcept nogil:
    """The latest message of a path; NULL if there is none."""
    cdef uint32_t i = self.count
    while i:
        i -= 1
        if self.info[i].path_id == path_id:
            return &self.info[i]
    return NULL


cdef inline bint send_message_fits(const SendMessage *self, uint32_t tos,
                                   uint32_t length) noexcept nogil:
    """Whether a datagram can join the message."""
    return self.is_open and length <= self.segment_len and tos == self.tos \
        and self.length + length <= MAX_UDP_PAYLOAD


cdef inline void send_flush(SendBatch *self) noexcept nogil:
    """Send everything that was reserved, and empty the batch."""
    cdef uint32_t sent = 0, end = 0, i, datagrams
    cdef int result
    if halt_forbids(self.tables.header, self.halt_number):
        send_discard(self)
    for i in range(self.count):
        self.iov[i].iov_len = self.info[i].length
        memcpy(CMSG_DATA(<cmsghdr *>(self.control[i] + CONTROL_AT)),
               &self.info[i].segment_len, 2)
        send_control_set(self, i, self.info[i].segment_count > 1)
    while sent < self.count:
        if end <= sent:
            end = sent + 1
            while end < self.count and self.info[end].fd == self.info[sent].fd:
                end += 1
        result = sendmmsg(self.info[sent].fd, &self.messages[sent], end - sent, MSG_DONTWAIT)
        self.shared.counters[UDP_TX_CALLS] += 1
        if result > 0:
            datagrams = 0
            for i in range(sent, sent + <uint32_t>result):
                datagrams += self.info[i].segment_count
                self.shared.counters[UDP_TX_BYTES] += self.info[i].length
                if self.info[i].is_gso_retry and self.info[i].segment_count > 1:
                    gso_accept(self.info[i].endpoint)
            self.shared.counters[UDP_TX_MESSAGES] += <uint32_t>result
            self.shared.counters[UDP_TX_DATAGRAMS] += datagrams
            self.shared.send_batches[batch_bucket(datagrams)] += 1
            if self.has_send_errors:
                send_report_success(self, sent, <uint32_t>result)
            sent += <uint32_t>result
        elif errno == EAGAIN:
            for i in range(sent, end):
                send_count(self, &self.info[i], DROP_SEND_BUFFER_FULL, self.info[i].segment_count)
            sent = end
        elif errno != EINTR:
            if send_handle_error(self, sent, errno):
                sent += 1
            else:
                send_control_set(self, sent, self.info[sent].segment_count > 1)
    self.count = 0
    self.bytes = 0


cdef inline void send_discard(SendBatch *self) noexcept nogil:
    """Empty the batch without sending it."""
    cdef uint32_t i
    for i in range(self.count):
        send_count(self, &self.info[i], DROP_HALTED, self.info[i].segment_count)
    self.count = 0


cdef inline void send_control_set(SendBatch *self, uint32_t which, bint is_gso) noexcept nogil:
    cdef SendMessage *info = &self.info[which]
    cdef uint32_t before = info.pktinfo_len
    if info.tos != self.tos_fixed:
        before += TOS_LEN
        tos_write(self.control[which] + CONTROL_AT - before, &self.names[which], info.tos)
    self.messages[which].msg_hdr.msg_control = (
        self.control[which] + CONTROL_AT - before if before or is_gso else NULL)
    self.messages[which].msg_hdr.msg_controllen = before + (SEGMENT_CMSG_LEN if is_gso else 0)


cdef inline bint send_handle_error(SendBatch *self, uint32_t which, int error) noexcept nogil:
    """Deal with one message that sendmmsg refused; False if it is to be tried again."""
    cdef SendMessage *info = &self.info[which]
    cdef uint32_t pktinfo_len = info.pktinfo_len
    if error in (ENOBUFS, ENOMEM):
        send_count(self, info, DROP_SEND_BUFFER_FULL, info.segment_count)
    elif info.segment_count > 1 and error in (EIO, EMSGSIZE, EINVAL):
        send_one_by_one(self, which)
        if info.pktinfo_len == pktinfo_len:         # else it was not GSO
            send_gso_refused(self, info, error)
    elif send_source_is_gone(self, info, error):
        return False
    else:
        send_count(self, info, DROP_SEND_ERROR, info.segment_count)
        send_report(self, info.peer, <uint32_t>error)
    return True


cdef inline bint send_source_is_gone(SendBatch *self, SendMessage *info, int error) noexcept nogil:
    """Whether the error may concern the source address: then the message has none any more."""
    cdef PeerState *peer = &self.tables.peer_states[info.peer]
    if not info.pktinfo_len or error not in (EINVAL, EADDRNOTAVAIL, ENETUNREACH):
        return False
    info.pktinfo_len = 0
    if info.endpoint == &peer.endpoint:
        self.has_events |= event_push_once(
            self.shared, &peer.reported, REPORTED_SOURCE_ADDRESS_GONE, EVENT_SOURCE_ADDRESS_GONE,
            info.peer, 0, self.now_ns)
    else:
        endpoint_forget_source_address(info.endpoint,
                                       <uint32_t>(self.shared - self.tables.workers))
    return True


cdef inline void send_gso_refused(SendBatch *self, const SendMessage *info,
                                  int error) noexcept nogil:
    cdef PeerState *peer = &self.tables.peer_states[info.peer]
    send_count(self, info, FAILED_UDP_GSO, 1)
    if gso_refuse(info.endpoint, info.segment_len, error, info.is_gso_retry, send_now_s(self)) \
            and error == EIO:
        self.has_events |= event_push_once(
            self.shared, &peer.reported, REPORTED_GSO_REFUSED, EVENT_GSO_REFUSED, info.peer, 0,
            self.now_ns)


cdef inline void send_one_by_one(SendBatch *self, uint32_t which) noexcept nogil:
    """Send the segments of a message that failed as a whole."""
    cdef SendMessage *info = &self.info[which]
    cdef mmsghdr message
    cdef iovec iov
    cdef uint32_t at = 0, length
    send_control_set(self, which, False)
    message = self.messages[which]
    message.msg_hdr.msg_iov = &iov
    while at < info.length:
        length = info.length - at
        if length > info.segment_len:
            length = info.segment_len
        iov.iov_base = <uint8_t *>self.iov[which].iov_base + at
        iov.iov_len = length
        self.shared.counters[UDP_TX_CALLS] += 1
        if sendmmsg(info.fd, &message, 1, MSG_DONTWAIT) == 1:
            self.shared.counters[UDP_TX_DATAGRAMS] += 1
            self.shared.counters[UDP_TX_MESSAGES] += 1
            self.shared.counters[UDP_TX_BYTES] += length
        elif send_source_is_gone(self, info, errno):
            send_control_set(self, which, False)
            message.msg_hdr.msg_control = self.messages[which].msg_hdr.msg_control
            message.msg_hdr.msg_controllen = self.messages[which].msg_hdr.msg_controllen
            continue
        elif errno in (EAGAIN, ENOBUFS, ENOMEM):
            send_count(self, info, DROP_SEND_BUFFER_FULL, 1)
        else:
            send_count(self, info, DROP_SEND_ERROR, 1)
            send_report(self, info.peer, <uint32_t>errno)
        at += length


cdef inline void send_count(SendBatch *self, const SendMessage *info, Verdict verdict,
                            uint32_t count) noexcept nogil:
    self.shared.verdicts[verdict] += count
    peer_count(self.tables, info.peer, verdict, count)


cdef inline void send_report_success(SendBatch *self, uint32_t first,
                                     uint32_t count) noexcept nogil:
    """So many messages were sent."""
    cdef uint32_t i
    for i in range(first, first + count):
        if self.tables.peer_states[self.info[i].peer].send_error:
            send_report(self, self.info[i].peer, 0)


cdef inline void send_report(SendBatch *self, uint32_t index, uint32_t error) noexcept nogil:
    """What became of a message to a peer, if that is to be reported: an errno, or 0."""
    cdef PeerState *peer = &self.tables.peer_states[index]
    if error:
        peer.send_failed_ns = self.now_ns
    if send_error_changes(peer, error, self.now_ns) and events_have_room(self.shared) \
            and send_error_set(peer, error, self.now_ns):
        self.has_events |= event_push(self.shared, EVENT_SEND_ERROR, index, 0, error, self.now_ns)


cdef inline uint32_t send_now_s(const SendBatch *self) noexcept nogil:
    return <uint32_t>(self.now_ns / 1000000000)


cdef inline uint32_t batch_bucket(uint32_t count) noexcept nogil:
    """Bucket of the log2 histogram: 1, 2-3, 4-7, ... datagrams."""
    cdef uint32_t bucket = 0
    while count > 1 and bucket < BATCH_BUCKETS - 1:
        count >>= 1
        bucket += 1
    return bucket
