# Receive batch: what one recvmmsg takes from a UDP socket (the twin of hot/batch.pxd).
#
# A message is a datagram, or a GRO train: datagrams of one size (the last may be shorter) of one
# 4-tuple, put together by the kernel. Each has a buffer of its own, in which its datagrams are
# opened and, until they are written to the interface, left; so a buffer is made ready again
# (`recv_prepare`) only after that.

from libc.stdint cimport uint32_t, uint8_t

from fastpump.hot.constants cimport BUFFER_STRIDE, RECV_MESSAGES
from fastpump.hot.linux cimport (
    MSG_DONTWAIT, MSG_TRUNC, iovec, mmsghdr, msghdr, recvmmsg, sockaddr_in6,
)
from fastpump.hot.pktinfo cimport RECV_CMSG_LEN, cmsg_read
from fastpump.hot.shm cimport SOURCE_ADDRESS_LEN

cdef struct RecvBatch:
    uint8_t *buffers                # RECV_MESSAGES of BUFFER_STRIDE
    mmsghdr messages[RECV_MESSAGES]
    iovec iov[RECV_MESSAGES]
    sockaddr_in6 names[RECV_MESSAGES]
    uint8_t control[RECV_MESSAGES][RECV_CMSG_LEN]

cdef struct Sender:
    # Who sent a datagram, and the address of ours that it came to: the answer's source.
    const sockaddr_in6 *address
    uint32_t address_len
    const uint8_t *source_address   # SOURCE_ADDRESS_LEN

cdef struct Train:
    # One message.
    uint8_t *datagram               # the first one
    uint32_t length                 # of all
    uint32_t segment_len            # of each but the last
    bint is_truncated               # larger than the buffer: nothing of it is any use
    Sender sender
    uint8_t source_address[SOURCE_ADDRESS_LEN]
    uint8_t tos
    bint is_reassembled             # it came in fragments


cdef inline void recv_init(RecvBatch *self) noexcept nogil:
    cdef int i
    for i in range(RECV_MESSAGES):
        recv_prepare(self, i)


cdef inline void recv_prepare(RecvBatch *self, uint32_t which) noexcept nogil:
    """Make a message ready to receive into; the kernel shortens what it uses."""
    cdef msghdr *message = &self.messages[which].msg_hdr
    message.msg_name = &self.names[which]
    message.msg_namelen = sizeof(sockaddr_in6)
    message.msg_iov = &self.iov[which]
    message.msg_iovlen = 1
    message.msg_control = self.control[which]
    message.msg_controllen = sizeof(self.control[which])
    message.msg_flags = 0
    self.iov[which].iov_base = self.buffers + <size_t>which * BUFFER_STRIDE
    self.iov[which].iov_len = BUFFER_STRIDE


cdef inline int recv_batch(RecvBatch *self, int fd) noexcept nogil:
    """Receive what there is, up to RECV_MESSAGES; how many, or -1 with errno."""
    return recvmmsg(fd, self.messages, RECV_MESSAGES, MSG_DONTWAIT, NULL)


cdef inline void recv_train(RecvBatch *self, uint32_t which, Train *train) noexcept nogil:
    """Describe a received message."""
    cdef msghdr *message = &self.messages[which].msg_hdr
    train.datagram = <uint8_t *>self.iov[which].iov_base
    train.length = self.messages[which].msg_len
    train.segment_len = cmsg_read(message, train.length, train.source_address, &train.tos,
                                  &train.is_reassembled)
    train.is_truncated = message.msg_flags & MSG_TRUNC != 0
    train.sender.address = &self.names[which]
    train.sender.address_len = message.msg_namelen
    train.sender.source_address = train.source_address
