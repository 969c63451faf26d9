# System calls and structures of Linux that the module uses, declared in one place.
#
# The comment behind a call names its system call where a worker makes it while
# packets flow; the filter in hot/sandbox.h admits exactly those.

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t, uint8_t
from posix.types cimport off_t


cdef extern from "<errno.h>" nogil:
    int errno
    enum:
        EAGAIN
        EADDRNOTAVAIL
        EBADFD
        EINTR
        EINVAL
        EIO
        EMSGSIZE
        ENETUNREACH
        ENOBUFS
        ENOMEM


cdef extern from "<sched.h>" nogil:
    int sched_yield()               # the supervisor only


cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len


cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    long read(int fd, void *buf, size_t count)                      # read
    long write(int fd, const void *buf, size_t count)               # write


cdef extern from "<sys/uio.h>" nogil:
    long writev(int fd, const iovec *iov, int count)                # writev


cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        void *msg_name
        uint32_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    enum:
        MSG_DONTWAIT
        MSG_TRUNC
    int sendmmsg(int fd, mmsghdr *msgs, unsigned int count, int flags)   # sendmmsg
    int recvmmsg(int fd, mmsghdr *msgs, unsigned int count, int flags,
                 void *timeout)                                     # recvmmsg
    cmsghdr *CMSG_FIRSTHDR(msghdr *message)
    cmsghdr *CMSG_NXTHDR(msghdr *message, cmsghdr *current)
    uint8_t *CMSG_DATA(cmsghdr *message)
    size_t CMSG_LEN(size_t length)


cdef extern from "<netinet/in.h>" nogil:
    enum:
        AF_INET
        AF_INET6
        SOL_UDP "IPPROTO_UDP"
        IPPROTO_IP
        IP_PKTINFO
        IP_RECVFRAGSIZE
        IP_TOS
        IPPROTO_IPV6
        IPV6_PKTINFO
        IPV6_RECVFRAGSIZE
        IPV6_TCLASS
    struct in_addr:
        uint32_t s_addr
    struct in_pktinfo:
        int ipi_ifindex
        in_addr ipi_spec_dst        # the address it came to; or to send from
        in_addr ipi_addr
    struct in6_addr:
        uint8_t s6_addr[16]
    struct in6_pktinfo:
        in6_addr ipi6_addr
        unsigned int ipi6_ifindex
    struct sockaddr_in6:
        uint16_t sin6_family        # where sin_family is, too
        uint32_t sin6_flowinfo      # all that is not compared byte by byte


cdef extern from "<linux/udp.h>" nogil:
    enum:
        UDP_SEGMENT
        UDP_GRO


cdef extern from "<linux/virtio_net.h>" nogil:
    enum:
        VIRTIO_NET_HDR_F_NEEDS_CSUM
        VIRTIO_NET_HDR_GSO_NONE
        VIRTIO_NET_HDR_GSO_TCPV4
        VIRTIO_NET_HDR_GSO_TCPV6
        VIRTIO_NET_HDR_GSO_ECN


cdef extern from "<sys/epoll.h>" nogil:
    union epoll_data:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data data
    enum:
        EPOLLIN
        EPOLL_CTL_ADD
        EPOLL_CLOEXEC
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int count, int timeout)  # epoll_wait


cdef extern from "<sys/random.h>" nogil:
    long getrandom(void *buf, size_t length, unsigned int flags)   # getrandom


cdef extern from "<sys/mman.h>" nogil:
    enum:
        PROT_READ
        PROT_WRITE
        MAP_SHARED
        MAP_PRIVATE
        MAP_ANONYMOUS
        MADV_DONTDUMP
        MADV_HUGEPAGE
        MADV_NOHUGEPAGE
    void *MAP_FAILED
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
    int munmap(void *addr, size_t length)
    int madvise(void *addr, size_t length, int advice)


cdef extern from "<time.h>" nogil:
    struct c_timespec "timespec":
        int64_t tv_sec
        long tv_nsec
    enum:
        CLOCK_BOOTTIME
        CLOCK_MONOTONIC
    int clock_nanosleep(int clock, int flags, const c_timespec *wanted,
                        c_timespec *left)                               # clock_nanosleep
    int clock_gettime(int clock, c_timespec *now)     # in the vDSO: no system call


cdef inline uint64_t now_ns() noexcept nogil:
    """Nanoseconds of CLOCK_BOOTTIME: goes on while the machine is suspended, so that
    keys expire (the kernel's WireGuard uses the same clock)."""
    cdef c_timespec now
    clock_gettime(CLOCK_BOOTTIME, &now)
    return <uint64_t>now.tv_sec * 1000000000u + <uint64_t>now.tv_nsec
