# The supervisor's handshake socket: what is admitted of what it receives (hot/admission.pxd).

import os
import socket
import sys

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy

from fastpump.hot cimport admission
from fastpump.hot.admission cimport (
    ADMISSION_MESSAGES, ADMISSION_STRIDE, COOKIE_REPLY_LEN, Admission as AdmissionState,
    admission_judge, cookie_reply_write, keyed_hash_free, keyed_hash_init, known_add, replies_send,
    reply_add, xchacha_free, xchacha_init,
)
from fastpump.hot.linux cimport (
    EAGAIN, EINTR, MSG_DONTWAIT, MSG_TRUNC, errno, msghdr, munmap, recvmmsg, sockaddr_in6,
)
from fastpump.hot.pktinfo cimport RECV_CMSG_LEN, cmsg_read
from fastpump.hot.shm cimport ADDRESS_LEN, SOURCE_ADDRESS_LEN

ADMIT_HANDSHAKE = admission.ADMIT_HANDSHAKE
ADMIT_TRANSPORT = admission.ADMIT_TRANSPORT
SENT_COOKIE_REPLY = admission.SENT_COOKIE_REPLY
ADMISSION_BATCH = ADMISSION_MESSAGES

cdef enum:
    ADMISSION_BUFFERS = ADMISSION_MESSAGES * ADMISSION_STRIDE


cdef class Admission:
    """Admission control of the datagrams at the handshake socket (hot/admission.pxd).

    Times are CLOCK_BOOTTIME, ns. `verdicts` counts what was dropped, by name.
    """

    cdef AdmissionState *state

    def __init__(self):
        cdef AdmissionState *state
        cdef int i
        if self.state != NULL:
            raise ValueError("already set up")
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
        """The address of a peer's endpoint: under overload it has a share of its own."""
        self.check_sockaddr(sockaddr)
        known_add(self.state, <const uint8_t *>PyBytes_AS_STRING(sockaddr))

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
        """Receive once from a socket, judge, and send cookies: (how many messages came,
        [(verdict, data, sockaddr, source_address)] of what is admitted). OSError reports an
        ICMP error of an earlier send."""
        cdef AdmissionState *state = self.state
        cdef msghdr *message
        cdef uint8_t *data
        cdef uint8_t source_address[SOURCE_ADDRESS_LEN]
        cdef uint32_t left, length, segment_len
        cdef int i, received, verdict
        for i in range(ADMISSION_MESSAGES):
            message = &state.messages[i].msg_hdr
            message.msg_namelen = sizeof(sockaddr_in6)
            message.msg_controllen = RECV_CMSG_LEN
            state.iov[i].iov_len = ADMISSION_STRIDE
        with nogil:
            received = recvmmsg(fd, state.messages, ADMISSION_MESSAGES, MSG_DONTWAIT, NULL)
        if received < 0:
            if errno in (EAGAIN, EINTR):
                return 0, []
            raise OSError(errno, os.strerror(errno))
        admitted = []
        for i in range(received):
            message = &state.messages[i].msg_hdr
            left = 0 if message.msg_flags & MSG_TRUNC else state.messages[i].msg_len
            data = <uint8_t *>state.iov[i].iov_base
            segment_len = cmsg_read(message, left, source_address)
            while left:
                length = left if left < segment_len else segment_len
                verdict = admission_judge(state, data, length, <uint8_t *>&state.names[i], now)
                state.verdicts[verdict] += 1
                if verdict == admission.SENT_COOKIE_REPLY:
                    reply_add(state, fd, data, length, &state.names[i], message.msg_namelen,
                              source_address)
                elif verdict <= admission.ADMIT_TRANSPORT:
                    admitted.append((
                        verdict, PyBytes_FromStringAndSize(<char *>data, length),
                        PyBytes_FromStringAndSize(<char *>&state.names[i],
                                                  message.msg_namelen),
                        PyBytes_FromStringAndSize(<char *>source_address, SOURCE_ADDRESS_LEN)))
                data += length
                left -= length
        replies_send(state, fd)
        return received, admitted
