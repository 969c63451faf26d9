# Sizes and limits of the hot path. Python takes them from _core where it loads that anyway;
# what it must know without (SHARED_CONSTANTS) is compared by tests/unit/test_constants.py.

cdef enum:
    # Wire (WireGuard paper, section 5.4; RFC 768).
    INITIATION_TYPE = 1
    RESPONSE_TYPE = 2
    COOKIE_REPLY_TYPE = 3
    INITIATION_LEN = 148
    RESPONSE_LEN = 92
    COOKIE_REPLY_LEN = 64
    TRANSPORT_TYPE = 4
    TRANSPORT_HEADER_LEN = 16
    TAG_LEN = 16
    TRANSPORT_OVERHEAD = 32
    TRANSPORT_MIN_LEN = 32
    PADDING_MULTIPLE = 16

    # Lanes (docs/PROTOCOL.md).
    LANE_TYPE = 5
    LANE_FLAG_PARTIAL = 0x01
    LANE_FLAG_BUNDLE = 0x02
    LANE_FLAG_FENCE = 0x04
    LANE_FLAG_ECHO_REQUEST = 0x08   # to be answered on this lane
    LANE_FLAG_FRAME = 0x10          # TAP: the payload is a frame, or a bundle of them
    LANE_FLAG_RELAY = 0x20          # with a relay header before it
    LANE_FLAG_EXTENSION = 0x40      # a typed header comes first; with no other flag
    LANE_FLAG_RECORD = 0x80         # a superpacket, in several datagrams (hot/record.pxd)
    LANE_FLAGS = 0xcf               # of packets
    LANE_FRAME_FLAGS = 0xff
    FEATURE_PARTIAL = 1
    FEATURE_BUNDLE = 2
    FEATURE_PATH_MTU = 4
    FEATURE_RECORDS = 8
    EXTENSION_PATH_PROBE = 1        # its types; see hot/path_probe.pxd
    EXTENSION_PATH_ACK = 2
    EXTENSION_RECORD_CUT = 3
    EXTENSION_TRAIN_END = 4
    EXTENSION_HEADER_LEN = 4
    RECORD_FIELDS_LEN = 4           # behind the header: length of the message, size of a segment
    CONTROL_MAGIC = 0xf0            # the first byte of a control packet
    CONTROL_END_MARKER = 4          # its second: the kind
    END_MARKER_LEN = 10
    CONTROL_HELLO = 1
    CONTROL_OFFER = 2
    CONTROL_PATH_PROBE = 6
    CONTROL_PATH_ACK = 7
    CONTROL_IN_USE_AT = 7           # behind the header and a field's head
    CONTROL_IN_USE_FIELD = 8
    MAX_LANES = 256                 # of a peer
    MAX_LANE_SOCKETS = 256          # of all workers
    LANE_REKEY_AFTER_MESSAGES = 1 << 28
    LANE_REJECT_AFTER_MESSAGES = 1 << 30

    # Bundles: what is small enough to share a datagram, and an entry's header.
    BUNDLE_MAX_PACKET = 512
    BUNDLE_ENTRY_HEADER = 2
    BUNDLE_ENTRY_PARTIAL = 0x8000   # in the header; the rest is the length
    BUNDLE_PACKETS = 64

    # Relay header: 7 bytes of flood id (0: not flooded), 1 byte of hops, 8 of the originator.
    RELAY_HEADER_LEN = 16
    FLOOD_ID_BITS = 56              # of the first word; the hops are above
    RELAY_MAX_HOPS = 8
    RELAY_MAX_FRAMES = 0xfff        # of a superpacket, whose flood ids differ in the low bits

    # The switch's tables (hot/fdb.pxd, hot/duplicates.pxd).
    FDB_WAYS = 8
    DUPLICATES_WAYS = 8
    DUPLICATES_BUCKETS = 8192
    RANDOM_WORDS = 64               # taken from the kernel at once

    # Kernel (include/linux/udp.h, net/ipv4/udp.c, drivers/net/tun.c).
    VNET_HEADER_LEN = 24            # struct virtio_net_hdr_v1_hash_tunnel
    MAX_PACKET_LEN = 65535
    MAX_UDP_PAYLOAD = 65467         # IPv4's 65507 less 40 bytes for options of the outer header
    MAX_GSO_SEGMENTS = 64           # UDP_MAX_SEGMENTS before Linux 6.9
    MAX_QUEUES = 256                # MAX_TAP_QUEUES

    # Buffers. A stride holds the largest datagram and keeps messages page-aligned.
    BUFFER_STRIDE = 69632
    READ_HEADROOM = 64              # the vnet header lies right before the packet
    READ_TAILROOM = 64              # padding is written behind it

    # Batches: what one iteration of the loop may do before it looks at the other direction.
    SEND_MESSAGES = 64
    SEND_FLUSH_BYTES = 524288       # more than an iteration's reads become: one sendmmsg each
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
    STAGED_FLOODED_PER_PEER = 8     # of that, frames that are flooded or relayed

    # Lane messages that wait for their keys, or for what was sent before them.
    REORDER_MESSAGES = 2048
    REORDER_BYTES = 4194304
    REORDER_MIN_CHARGE = 2048       # what a message takes at least: REORDER_BYTES of them all
    REORDER_TIMEOUT_NS = 20000000
    # A session this long without data has nothing under way that a lane could overtake.
    FENCE_AFTER_NS = 1000000000

    # Packets that wait for their rate limit; see hot/shaper.pxd.
    SHAPER_SMALL = 4096
    SHAPER_SMALL_LEN = 2048
    SHAPER_BIG = 128
    SHAPER_BIG_WEIGHT = 32          # a big slot counts for so many small ones
    SHAPER_SHARE = 2048             # of small ones, of one peer and direction
    SHAPER_HORIZON_NS = 250000000

    # TCP that is watched where the path MTU is not known; see hot/resent.pxd.
    RESENT_FLOWS = 64
    RESENT_REPORTS = 16
    SURELY_FITS = 1200              # a packet within 1280 bytes of IPv6, sealed

    EVENT_RING_LEN = 4096
    CONTROL_RING_LEN = 64
    CONTROL_PACKET_LEN = 1504       # a control packet and its padding
    MISDELIVERED_RING_LEN = 64
    MISDELIVERED_LEN = 160          # INITIATION_LEN, rounded up
    BATCH_BUCKETS = 8               # log2 histogram of datagrams per system call

    # RFC 6479 with 64-bit words: 8192 bits, of which one word is being refilled.
    REPLAY_WORDS = 128
    REPLAY_WINDOW = 8128

cdef extern from *:
    """
    #define FASTPUMP_REJECT_AFTER_MESSAGES (UINT64_MAX - (1ULL << 13))
    #define FASTPUMP_REKEY_AFTER_MESSAGES (1ULL << 60)
    #define FASTPUMP_REJECT_AFTER_TIME_NS 180000000000ULL
    #define FASTPUMP_SECOND_NS 1000000000ULL
    #define FASTPUMP_FLOOD_ID_MASK ((1ULL << 56) - 1)
    """
    unsigned long long REJECT_AFTER_MESSAGES "FASTPUMP_REJECT_AFTER_MESSAGES"
    unsigned long long REKEY_AFTER_MESSAGES "FASTPUMP_REKEY_AFTER_MESSAGES"
    unsigned long long REJECT_AFTER_TIME_NS "FASTPUMP_REJECT_AFTER_TIME_NS"
    unsigned long long SECOND_NS "FASTPUMP_SECOND_NS"
    unsigned long long FLOOD_ID_MASK "FASTPUMP_FLOOD_ID_MASK"
