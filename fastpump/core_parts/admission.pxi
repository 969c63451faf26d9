# What is admitted of the handshake messages that the supervisor's socket receives, and the workers'
# behind data (hot/admission.pxd).

import os
import socket
import sys

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy

from fastpump.hot cimport admission
from fastpump.hot.admission cimport (
    ADMISSION_MESSAGES, ADMISSION_STRIDE, SHARED_BURST, TRANSPORT_RATE,
    Admission as AdmissionState, admission_judge, cookie_reply_write, keyed_hash_free,
    keyed_hash_init, known_add, replies_send, reply_add, xchacha_free, xchacha_init,
)
from fastpump.hot.atomics cimport RELEASE, store64
from fastpump.hot.bytes cimport load_le32
from fastpump.hot.constants cimport (
    COOKIE_REPLY_LEN, COOKIE_REPLY_TYPE, MISDELIVERED_LEN, MISDELIVERED_RING_LEN,
)
from fastpump.hot.endpoint cimport sockaddr_is_valid
from fastpump.hot.linux cimport (
    EAGAIN, EINTR, MSG_DONTWAIT, MSG_TRUNC, errno, msghdr, munmap, recvmmsg,
    sockaddr_in6,
)
from fastpump.hot.pktinfo cimport RECV_CMSG_LEN, cmsg_read
from fastpump.hot.rate cimport rate_take
from fastpump.hot.recv cimport Sender
from fastpump.hot.rings cimport misdelivered_at, misdelivered_push, ring_end
from fastpump.hot.shm cimport ADDRESS_LEN, SOURCE_ADDRESS_LEN, Misdelivered, MisdeliveredRing

ADMIT_HANDSHAKE = admission.ADMIT_HANDSHAKE
ADMIT_TRANSPORT = admission.ADMIT_TRANSPORT
SENT_COOKIE_REPLY = admission.SENT_COOKIE_REPLY
ADMISSION_BATCH = ADMISSION_MESSAGES

cdef enum:
    ADMISSION_BUFFERS = ADMISSION_MESSAGES * ADMISSION_STRIDE


cdef class Admission:
    """Admission control of handshake messages (hot/admission.pxd).

    Times are CLOCK_BOOTTIME, ns. `verdicts` counts what was dropped, by name.
    """

    cdef AdmissionState *state
    cdef SharedTables tables
    cdef set woken                  # workers that a transport message was passed on to

    def __init__(self, SharedTables tables=None):
        """`tables`: whose sessions and workers transport messages may belong to."""
        cdef AdmissionState *state
        cdef int i
        if self.state != NULL:
            raise ValueError("already set up")
        self.tables = tables
        self.woken = set()
        state = self.state = <AdmissionState *>map_memory(sizeof(AdmissionState), -1)
        state.buffers = <uint8_t *>map_memory(ADMISSION_BUFFERS, -1)
        if keyed_hash_init(&state.keyed_hash) != 0 or xchacha_init(&state.xchacha) != 0:
            raise OSError("libcrypto lacks BLAKE2s or ChaCha20")
        keys = os.urandom(32)
        memcpy(state.source_key, PyBytes_AS_STRING(keys), 16)
        memcpy(state.known_key, PyBytes_AS_STRING(keys) + 16, 16)
        state.source_key[0] |= 1
        state.known_key[0] |= 1
        self.renew_cookie_secret()
        for i in range(ADMISSION_MESSAGES):
            state.messages[i].msg_hdr.msg_name = &state.names[i]
            state.messages[i].msg_hdr.msg_iov = &state.iov[i]
            state.messages[i].msg_hdr.msg_iovlen = 1
            state.messages[i].msg_hdr.msg_control = state.control[i]
            state.iov[i].iov_base = state.buffers + <size_t>i * ADMISSION_STRIDE

    def __dealloc__(self):
        if self.state != NULL:
            keyed_hash_free(&self.state.keyed_hash)
            xchacha_free(&self.state.xchacha)
            if self.state.buffers != NULL:
                munmap(self.state.buffers, ADMISSION_BUFFERS)
            munmap(self.state, sizeof(AdmissionState))

    def set_keys(self, mac1_key, cookie_key):
        """The keys of mac1 for messages to us and of our cookie replies (32 bytes each);
        None: nothing is admitted."""
        self.state.has_identity = mac1_key is not None
        if mac1_key is not None:
            if len(mac1_key) != 32 or len(cookie_key) != 32:
                raise ValueError("a key has 32 bytes")
            memcpy(self.state.mac1_key, PyBytes_AS_STRING(mac1_key), 32)
            memcpy(self.state.cookie_key, PyBytes_AS_STRING(cookie_key), 32)

    def renew_cookie_secret(self):
        """Cookies made so far are invalid from now on."""
        secret = os.urandom(32)
        memcpy(self.state.cookie_secret, PyBytes_AS_STRING(secret), 32)

    def add_known(self, bytes sockaddr):
        """The address of a peer's endpoint: under overload it has a share of its own, until each
        peer that was added there has been removed."""
        self.check_sockaddr(sockaddr)
        known_add(self.state, <const uint8_t *>PyBytes_AS_STRING(sockaddr), 1)

    def remove_known(self, bytes sockaddr):
        """A peer that was added has left the address."""
        self.check_sockaddr(sockaddr)
        known_add(self.state, <const uint8_t *>PyBytes_AS_STRING(sockaddr), -1)

    def declare_overload(self, uint64_t until):
        """More handshakes wait than can be served."""
        self.state.overload_until_ns = max(self.state.overload_until_ns, until)

    def is_overloaded(self, uint64_t now):
        """Whether senders must prove their address now."""
        return now < self.state.overload_until_ns

    def cookie_reply(self, bytes message, bytes sockaddr):
        """What a message of that source is answered with under overload."""
        cdef uint8_t reply[COOKIE_REPLY_LEN]
        self.check_sockaddr(sockaddr)
        if len(message) < COOKIE_REPLY_LEN or not cookie_reply_write(
                self.state, reply, <const uint8_t *>PyBytes_AS_STRING(message),
                <uint32_t>len(message), <const uint8_t *>PyBytes_AS_STRING(sockaddr)):
            raise ValueError("no handshake message")
        return PyBytes_FromStringAndSize(<char *>reply, COOKIE_REPLY_LEN)

    @property
    def verdicts(self):
        """{name: count} of what was dropped or answered with a cookie."""
        return {name: self.state.verdicts[<int>i] for i, name in ADMISSION_NAMES.items()}

    cdef int check_sockaddr(self, bytes sockaddr) except -1:
        family = int.from_bytes(sockaddr[:2], sys.byteorder)
        if len(sockaddr) != ADDRESS_LEN and (len(sockaddr) != 16 or family != socket.AF_INET):
            raise ValueError(f"a sockaddr of {len(sockaddr)} bytes")
        return 0

    def judge(self, bytes message, bytes sockaddr, uint64_t now):
        """ADMIT_HANDSHAKE, ADMIT_TRANSPORT, SENT_COOKIE_REPLY (which only `receive` does);
        None if it was dropped."""
        self.check_sockaddr(sockaddr)
        cdef int verdict = admission_judge(
            self.state, <const uint8_t *>PyBytes_AS_STRING(message), <uint32_t>len(message),
            <const uint8_t *>PyBytes_AS_STRING(sockaddr), now)
        self.state.verdicts[verdict] += 1
        return verdict if verdict <= admission.SENT_COOKIE_REPLY else None

    def receive(self, int fd, uint64_t now):
        """Receive once from a socket, judge, send cookies, and pass transport messages on: (how
        many messages came, [(data, sockaddr, source_address)] of what is admitted, the workers
        whose doorbells must be rung). OSError reports an ICMP error of an earlier send."""
        cdef AdmissionState *state = self.state
        cdef msghdr *message
        cdef int i, received
        cdef list admitted = []
        for i in range(ADMISSION_MESSAGES):
            message = &state.messages[i].msg_hdr
            message.msg_namelen = sizeof(sockaddr_in6)
            message.msg_controllen = RECV_CMSG_LEN
            state.iov[i].iov_len = ADMISSION_STRIDE
        with nogil:
            received = recvmmsg(fd, state.messages, ADMISSION_MESSAGES, MSG_DONTWAIT, NULL)
        if received < 0:
            if errno in (EAGAIN, EINTR):
                return 0, [], ()
            raise OSError(errno, os.strerror(errno))
        for i in range(received):
            self.take_train(fd, i, now, admitted)
        replies_send(state, fd)
        woken, self.woken = self.woken, set()
        return received, admitted, woken

    def receive_misdelivered(self, uint32_t number, int fd, uint64_t now):
        """Judge the handshake messages that a worker's socket has received until now:
        [(data, sockaddr, source_address)] of what is admitted. Cookies leave by the socket."""
        cdef MisdeliveredRing *ring = &self.tables.mapping.worker(number).up
        cdef uint64_t *head = &self.tables.workers.positions[number].up
        cdef uint64_t end = ring_end(head, &ring.tail, MISDELIVERED_RING_LEN)
        cdef Misdelivered datagram
        cdef Sender sender
        cdef list admitted = []
        while head[0] != end:
            # A copy: the worker can write to what was checked.
            datagram = misdelivered_at(ring, head[0])[0]
            head[0] += 1
            sender.address = <sockaddr_in6 *>datagram.address
            sender.address_len = datagram.address_len
            sender.source_address = datagram.source_address
            if datagram.length > MISDELIVERED_LEN \
                    or not sockaddr_is_valid(datagram.address, datagram.address_len) \
                    or self.take(fd, datagram.data, datagram.length, &sender, now,
                                 admitted) == admission.ADMIT_TRANSPORT:
                self.state.verdicts[admission.DROP_MALFORMED_HANDSHAKE] += 1
        store64(&ring.head, end, RELEASE)
        replies_send(self.state, fd)
        return admitted

    cdef int take_train(self, int fd, int which, uint64_t now, list admitted) except -1:
        """Judge the datagrams of a message from the handshake socket."""
        cdef AdmissionState *state = self.state
        cdef msghdr *message = &state.messages[which].msg_hdr
        cdef uint8_t *data = <uint8_t *>state.iov[which].iov_base
        cdef uint8_t source_address[SOURCE_ADDRESS_LEN]
        cdef uint8_t tos
        cdef bint is_reassembled
        cdef Sender sender
        cdef uint32_t length, left = 0 if message.msg_flags & MSG_TRUNC else \
            state.messages[which].msg_len
        cdef uint32_t segment_len = cmsg_read(message, left, source_address, &tos,
                                              &is_reassembled)
        sender.address = &state.names[which]
        sender.address_len = message.msg_namelen
        sender.source_address = source_address
        while left:
            length = left if left < segment_len else segment_len
            if self.take(fd, data, length, &sender, now, admitted) == admission.ADMIT_TRANSPORT \
                    and not self.pass_on(data, length, &sender, now):
                state.verdicts[admission.DROP_MISDELIVERED] += 1
            data += length
            left -= length
        return 0

    cdef int take(self, int fd, const uint8_t *data, uint32_t length, const Sender *sender,
                  uint64_t now, list admitted) except -1:
        """Judge a datagram, count it, and do what its verdict says, unless it is a transport
        message; the verdict."""
        cdef int verdict
        if self.is_unexpected_reply(data, length):
            verdict = admission.DROP_UNEXPECTED_COOKIE
        else:
            verdict = admission_judge(self.state, data, length, <uint8_t *>sender.address, now)
        if verdict == admission.ADMIT_TRANSPORT:
            return verdict
        self.state.verdicts[verdict] += 1
        if verdict == admission.SENT_COOKIE_REPLY:
            reply_add(self.state, fd, data, length, sender.address, sender.address_len,
                      sender.source_address)
        elif verdict == admission.ADMIT_HANDSHAKE:
            admitted.append((
                PyBytes_FromStringAndSize(<char *>data, length),
                PyBytes_FromStringAndSize(<char *>sender.address, sender.address_len),
                PyBytes_FromStringAndSize(<char *>sender.source_address, SOURCE_ADDRESS_LEN)))
        return verdict

    cdef bint is_unexpected_reply(self, const uint8_t *data, uint32_t length) noexcept:
        """Whether it is a cookie reply to no message of ours."""
        return length == COOKIE_REPLY_LEN and load_le32(data) == COOKIE_REPLY_TYPE \
            and self.tables is not None \
            and not self.tables.keypairs.has_index(load_le32(data + 4), True)

    cdef bint pass_on(self, const uint8_t *data, uint32_t length, const Sender *sender,
                      uint64_t now) except -1:
        """Give a transport message to the worker of its session; False if there is none, or no
        room."""
        cdef uint32_t index = load_le32(data + 4), number
        cdef uint64_t *tail
        if self.tables is None or not self.tables.keypairs.has_index(index) or not rate_take(
                &self.state.transport_at_ns, now, TRANSPORT_RATE, SHARED_BURST):
            return False
        number = index & ((1u << self.tables.mapping.tables.header.worker_bits) - 1)
        tail = &self.tables.workers.positions[number].down
        if not misdelivered_push(&self.tables.mapping.worker(number).down, tail[0], data, length,
                                 sender.address, sender.address_len, sender.source_address):
            return False
        tail[0] += 1
        self.woken.add(number)
        return True
