"""UDP load that leaves the machine to the tunnel: sent at a fixed rate, counted where it arrives.

No Python runs per packet. The sender wakes every TICK_NS and sends what is due by then in one
sendmmsg: a network card that moderates its interrupts hands packets over much the same. So at
60,000 packets per second a tunnel gets three at a time, at 20,000 one. If the machine does not let
the sender run for BACKLOG_NS, it leaves out what is older, and its count says so. The receiver is
not woken by packets at all: it looks once a millisecond (generator.py), and takes the time of
arrival from the kernel's stamp.

A datagram is

    u64 when it was sent, ns of CLOCK_REALTIME, as the kernel's stamps are
    u32 its number, from 0
    u32 the run: packets of another one are not counted
    ... PATTERN from its number on, which the receiver compares

all little-endian: both ends are this program. Packet n belongs to flow n modulo flows.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

from fastpump.hot.linux cimport (
    CLOCK_MONOTONIC,
    CMSG_DATA,
    CMSG_FIRSTHDR,
    CMSG_NXTHDR,
    EAGAIN,
    EINTR,
    MSG_DONTWAIT,
    MSG_TRUNC,
    c_timespec,
    clock_gettime,
    clock_nanosleep,
    cmsghdr,
    errno,
    iovec,
    mmsghdr,
    recvmmsg,
    sendmmsg,
)

import os
import random

cdef extern from "<time.h>" nogil:
    enum:
        CLOCK_REALTIME
        TIMER_ABSTIME

cdef extern from "<errno.h>" nogil:
    enum:
        ECONNREFUSED
        ENOBUFS

cdef extern from "<sys/socket.h>" nogil:
    enum:
        SCM_TIMESTAMPNS
        SOL_SOCKET
    long sendto(int fd, const void *data, size_t length, int flags, const void *to,
                uint32_t to_length)

cdef enum:
    TICK_NS = 50_000
    BACKLOG_NS = 10_000_000
    SLICE_NS = 100_000_000      # signals are looked for so often
    BATCH = 64                  # datagrams of one system call
    LARGEST = 65_535
    HEADER_LEN = 16
    PATTERN_LEN = 4096
    MOST_NUMBERS = 1 << 27      # of one run; a bit each
    NAME_LEN = 28               # sockaddr_in6
    CONTROL_LEN = 64
    ACK_LEN = 40
    # Delays are counted in 32 steps for each power of two: within 3%.
    STEP_BITS = 5
    STEPS = 1 << STEP_BITS
    DELAY_COUNT = 64 * STEPS

cdef struct Header:
    uint64_t sent_ns
    uint32_t number
    uint32_t run

cdef uint8_t PATTERN[PATTERN_LEN + LARGEST]
_random = random.Random(2544).randbytes(PATTERN_LEN)
for _place in range(PATTERN_LEN + LARGEST):
    PATTERN[_place] = _random[_place % PATTERN_LEN]

SMALLEST = HEADER_LEN


cdef inline const uint8_t *pattern_of(uint32_t number) noexcept nogil:
    return &PATTERN[number * 61 % PATTERN_LEN]


cdef inline int64_t clock_ns(int clock) noexcept nogil:
    cdef c_timespec now
    clock_gettime(clock, &now)
    return <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


cdef inline void sleep_until(int64_t when_ns) noexcept nogil:
    cdef c_timespec wanted
    wanted.tv_sec = when_ns // 1_000_000_000
    wanted.tv_nsec = when_ns % 1_000_000_000
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wanted, NULL)


cdef inline unsigned int delay_place(uint64_t ns) noexcept nogil:
    """The counter of a delay: log-linear."""
    cdef unsigned int shift = 0
    while ns >> shift >= 2 * STEPS:
        shift += 1
    return shift * STEPS + <unsigned int>(ns >> shift)


def delay_of(unsigned int place):
    """The least delay in ns that is counted there."""
    if place < 2 * STEPS:
        return place
    return (place % STEPS + STEPS) << (place // STEPS - 1)


cdef class Sender:
    """One run of packets, by connected UDP sockets."""

    cdef mmsghdr messages[BATCH]
    cdef iovec places[BATCH]
    cdef uint8_t *data
    cdef int *fds
    cdef uint16_t *sizes
    cdef unsigned int flows, size_count, segments, largest
    cdef uint32_t run
    cdef double per_ns
    cdef int64_t begin_ns
    cdef readonly uint64_t sent
    """Datagrams that were given to the kernel."""

    def __cinit__(self, fds, sizes, double rate, uint32_t run, unsigned int segments=1):
        """`fds`: one for each flow. `sizes`: of payload in bytes, SMALLEST to 65535, which packets
        have in turn. `rate`: packets per second, 0: as fast as they go. `segments`: so many are
        given to the kernel as one; then the sockets have UDP_SEGMENT, and there is one size."""
        if not fds or not sizes or segments < 1 or segments > 64 or rate < 0:
            raise ValueError("no flows, no sizes, no segments, or no rate")
        if not all(SMALLEST <= size <= LARGEST for size in sizes):
            raise ValueError(f"sizes are {SMALLEST} to {LARGEST} bytes")
        if segments > 1 and (len(fds) > 1 or len(sizes) > 1 or sizes[0] * segments > LARGEST):
            raise ValueError("segments are of one flow, of one size, and no more than 65535 bytes "
                             "together")
        self.flows, self.size_count = len(fds), len(sizes)
        self.segments, self.run, self.per_ns = segments, run, rate / 1e9
        self.largest = max(sizes) * segments
        self.data = <uint8_t *>calloc(BATCH, self.largest)
        self.fds = <int *>calloc(self.flows, sizeof(int))
        self.sizes = <uint16_t *>calloc(self.size_count, sizeof(uint16_t))
        if self.data == NULL or self.fds == NULL or self.sizes == NULL:
            raise MemoryError
        for place, fd in enumerate(fds):
            self.fds[place] = fd
        for place, size in enumerate(sizes):
            self.sizes[place] = size
        for place in range(BATCH):
            self.places[place].iov_base = &self.data[place * self.largest]
            self.messages[place].msg_hdr.msg_iov = &self.places[place]
            self.messages[place].msg_hdr.msg_iovlen = 1

    def __dealloc__(self):
        free(self.data)
        free(self.fds)
        free(self.sizes)

    def send(self, double seconds):
        """Send for so long. OSError if the kernel refuses."""
        cdef int64_t end_ns, until_ns
        cdef int result = 0
        self.begin_ns = clock_ns(CLOCK_MONOTONIC)
        end_ns = self.begin_ns + <int64_t>(seconds * 1e9)
        until_ns = self.begin_ns
        while until_ns < end_ns and self.sent < MOST_NUMBERS - BATCH * 64:
            until_ns = min(until_ns + SLICE_NS, end_ns)
            with nogil:
                result = self.send_until(until_ns)
            if result < 0:
                raise OSError(-result, os.strerror(-result))

    cdef int send_until(self, int64_t until_ns) noexcept nogil:
        cdef int64_t now_ns = clock_ns(CLOCK_MONOTONIC)
        cdef int64_t due, most = <int64_t>(BACKLOG_NS * self.per_ns) + BATCH
        cdef int result
        while now_ns < until_ns:
            due = BATCH
            if self.per_ns > 0:
                due = <int64_t>((now_ns - self.begin_ns) * self.per_ns) - <int64_t>self.sent
                if due > most:      # we were not allowed to run
                    self.begin_ns += <int64_t>((due - most) / self.per_ns)
                    due = most
            while due >= self.segments:
                result = self.send_batch(<unsigned int>min(due // self.segments, BATCH))
                if result < 0:
                    return result
                due -= result * self.segments
            if self.per_ns > 0:
                sleep_until(min(now_ns + TICK_NS, until_ns))
            now_ns = clock_ns(CLOCK_MONOTONIC)
        return 0

    cdef int send_batch(self, unsigned int count) noexcept nogil:
        """Up to `count` messages, all of one flow; how many, or -errno."""
        cdef unsigned int place, segment, size
        cdef uint32_t number = <uint32_t>self.sent
        cdef uint64_t stamp = clock_ns(CLOCK_REALTIME)
        cdef int fd = self.fds[number % self.flows]
        cdef int result
        cdef Header *header
        if self.flows > 1:
            count = 1
        for place in range(count):
            size = self.sizes[number % self.size_count]
            for segment in range(self.segments):
                header = <Header *>(<uint8_t *>self.places[place].iov_base + segment * size)
                header.sent_ns, header.number, header.run = stamp, number, self.run
                memcpy(header + 1, pattern_of(number), size - HEADER_LEN)
                number += 1
            self.places[place].iov_len = size * self.segments
        result = sendmmsg(fd, self.messages, count, 0)
        if result < 0:
            # Of an ICMP message for an earlier packet, or of a full queue: this one is lost.
            if errno not in (ECONNREFUSED, EINTR, ENOBUFS, EAGAIN):
                return -errno
            result = 1
        self.sent += result * self.segments
        return result


cdef class Receiver:
    """What arrives of one run at a UDP socket that has SO_TIMESTAMPNS."""

    cdef mmsghdr messages[BATCH]
    cdef iovec places[BATCH]
    cdef uint8_t *data
    cdef uint8_t *seen
    cdef uint32_t *next_numbers
    cdef uint8_t names[BATCH][NAME_LEN]
    cdef uint8_t control[BATCH][CONTROL_LEN]
    cdef uint64_t delays[DELAY_COUNT]
    cdef int fd
    cdef unsigned int flows, ack_every
    cdef uint32_t run
    cdef readonly uint64_t received, octets, reordered, repeated, damaged
    """Packets, each one once; their payload; those that came after a later one of their flow (RFC
    4737, 3); those that came again; those with another payload than was sent."""
    cdef readonly uint64_t first_ns, last_ns
    """When the kernel got the first and the last, ns of CLOCK_REALTIME."""

    def __cinit__(self, int fd, uint32_t run, unsigned int flows=1, unsigned int ack_every=0):
        """`ack_every`: every so many packets one of 40 bytes is sent back, as QUIC does; 0:
        none."""
        if flows < 1:
            raise ValueError("no flows")
        self.fd, self.run, self.flows, self.ack_every = fd, run, flows, ack_every
        self.data = <uint8_t *>calloc(BATCH, LARGEST)
        self.seen = <uint8_t *>calloc(MOST_NUMBERS // 8, 1)
        self.next_numbers = <uint32_t *>calloc(flows, sizeof(uint32_t))
        if self.data == NULL or self.seen == NULL or self.next_numbers == NULL:
            raise MemoryError
        for place in range(BATCH):
            self.places[place].iov_base = &self.data[place * LARGEST]
            self.places[place].iov_len = LARGEST
            self.messages[place].msg_hdr.msg_iov = &self.places[place]
            self.messages[place].msg_hdr.msg_iovlen = 1
            self.messages[place].msg_hdr.msg_name = &self.names[place][0]
            self.messages[place].msg_hdr.msg_control = &self.control[place][0]

    def __dealloc__(self):
        free(self.data)
        free(self.seen)
        free(self.next_numbers)

    def drain(self):
        """Count all that waits in the socket; how many datagrams there were. OSError."""
        cdef int result, place, total = 0
        with nogil:
            while True:
                for place in range(BATCH):
                    self.messages[place].msg_hdr.msg_namelen = NAME_LEN
                    self.messages[place].msg_hdr.msg_controllen = CONTROL_LEN
                result = recvmmsg(self.fd, self.messages, BATCH, MSG_DONTWAIT, NULL)
                if result <= 0:
                    break
                total += result
                for place in range(result):
                    self.count(&self.messages[place])
                if result < BATCH:
                    break
        if result < 0 and errno not in (EAGAIN, EINTR):
            raise OSError(errno, os.strerror(errno))
        return total

    def delays_ns(self):
        """[the least delay in ns that is counted there, how many packets], ascending: from the
        sender's system call to the kernel of the receiver. Nothing but noise if these two have
        different clocks."""
        return [[delay_of(place), self.delays[place]] for place in range(DELAY_COUNT)
                if self.delays[place]]

    cdef void count(self, mmsghdr *message) noexcept nogil:
        cdef Header *header = <Header *>message.msg_hdr.msg_iov.iov_base
        cdef unsigned int size = message.msg_len
        cdef uint64_t stamp = arrival_ns(message)
        cdef uint32_t number, flow
        cdef uint8_t bit
        if size < HEADER_LEN or header.run != self.run or header.number >= MOST_NUMBERS:
            return
        number = header.number
        if message.msg_hdr.msg_flags & MSG_TRUNC or memcmp(
                header + 1, pattern_of(number), size - HEADER_LEN) != 0:
            self.damaged += 1
            return
        bit = <uint8_t>(1 << number % 8)
        if self.seen[number // 8] & bit:
            self.repeated += 1
            return
        self.seen[number // 8] |= bit
        flow = number % self.flows
        if number < self.next_numbers[flow]:
            self.reordered += 1
        else:
            self.next_numbers[flow] = number + 1
        if not self.received:
            self.first_ns = stamp
        self.last_ns = max(self.last_ns, stamp)
        self.received += 1
        self.octets += size
        self.delays[delay_place(stamp - header.sent_ns if stamp > header.sent_ns else 0)] += 1
        if self.ack_every and self.received % self.ack_every == 0:
            sendto(self.fd, header, ACK_LEN, MSG_DONTWAIT, message.msg_hdr.msg_name,
                   message.msg_hdr.msg_namelen)


cdef inline uint64_t arrival_ns(mmsghdr *message) noexcept nogil:
    """When the kernel got it; 0 if it does not say."""
    cdef cmsghdr *control = CMSG_FIRSTHDR(&message.msg_hdr)
    cdef c_timespec when
    while control != NULL:
        if control.cmsg_level == SOL_SOCKET and control.cmsg_type == SCM_TIMESTAMPNS:
            memcpy(&when, CMSG_DATA(control), sizeof(when))
            return <uint64_t>when.tv_sec * 1_000_000_000 + <uint64_t>when.tv_nsec
        control = CMSG_NXTHDR(&message.msg_hdr, control)
    return 0
