# Sizes and limits of the hot path. Python's copies, where it needs one, are
# exported by _core.pyx from here, so that there is one definition of each.

cdef enum:
    # Wire (WireGuard paper, section 5.4; RFC 768).
    TRANSPORT_TYPE = 4
    TRANSPORT_HEADER_LEN = 16
    TAG_LEN = 16
    TRANSPORT_OVERHEAD = 32
    TRANSPORT_MIN_LEN = 32
    PADDING_MULTIPLE = 16

    # Kernel (include/linux/udp.h, net/ipv4/udp.c, drivers/net/tun.c).
    VNET_HEADER_LEN = 10
    MAX_PACKET_LEN = 65535
    MAX_UDP_PAYLOAD = 65467         # IPv4's 65507 less 40 bytes for options of the outer header
    MAX_GSO_SEGMENTS = 64           # UDP_MAX_SEGMENTS before Linux 6.9
    MAX_QUEUES = 256                # MAX_TAP_QUEUES

    # Buffers. A stride holds the largest datagram and keeps messages page-aligned.
    BUFFER_STRIDE = 69632
    READ_HEADROOM = 64              # the vnet header lies right before the packet
    READ_TAILROOM = 64              # padding is written behind it

    # Batches: what one turn of the loop may do before it looks at the other side.
    SEND_MESSAGES = 64
    SEND_FLUSH_BYTES = 524288       # more than a turn's reads become: one sendmmsg a turn
    TUN_READ_BUDGET = 64
    TUN_READ_BYTES = 262144
    RECV_MESSAGES = 8

    # Coalescing: segments of one receive batch at most; see hot/gro.pxd.
    GRO_MAX_PIECES = 2048
    GRO_FLOW_BUCKETS = 64
    GRO_MAX_TCP_SEGMENTS = 512
    GRO_MAX_UDP_SEGMENTS = 64

    # Packets that wait for a session (the kernel's MAX_STAGED_PACKETS).
    STAGED_PER_PEER = 128
    STAGED_SLOTS = 512

    EVENT_RING_LEN = 4096
    MESSAGE_RING_LEN = 64
    MESSAGE_LEN = 160               # an initiation has 148 bytes
    BATCH_BUCKETS = 8               # log2 histogram of datagrams per system call

    # RFC 6479 with 64-bit words: 8192 bits, of which one word is being refilled.
    REPLAY_WORDS = 128
    REPLAY_WINDOW = 8128

cdef extern from *:
    """
    #define FASTPUMP_REJECT_AFTER_MESSAGES (UINT64_MAX - (1ULL << 13))
    #define FASTPUMP_REKEY_AFTER_MESSAGES (1ULL << 60)
    """
    unsigned long long REJECT_AFTER_MESSAGES "FASTPUMP_REJECT_AFTER_MESSAGES"
    unsigned long long REKEY_AFTER_MESSAGES "FASTPUMP_REKEY_AFTER_MESSAGES"
