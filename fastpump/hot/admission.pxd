# Admission control: which handshake messages are worth a Diffie-Hellman, decided at line rate.
#
# It stands between the handshake socket and the device, in the supervisor. In order:
#   1 length and type
#   2 mac1: the sender knows our public key
#   3 an initiation that came before, byte for byte: its timestamp cannot be new
#   4 while there are more than can be served (`overload_until_ns`):
#       a  with a valid mac2 (the sender really is at its address): accepted, SOURCE_RATE
#          from one /32 or /64
#       b  no more than SOURCE_RATE from one /32 or /64; beyond that, the sender may share
#          its address with the attacker: SOURCE_RATE from one port of it
#       c  from the address of a peer's endpoint: accepted, KNOWN_RATE in all
#       d  any other: accepted, CHANCE_RATE in all (NEIGHBOUR_RATE of those beyond 4b), so
#          that an honest stranger is served at once unless the flood comes from very many
#          addresses
#       e  answered with a cookie, COOKIE_RATE in all; the rest is dropped
# Replies are sealed and sent here, a batch at a time: at the rate of a flood, too. A cookie
# reply that comes in (type 3) has no mac1: it must name a handshake or session of ours, and
# SOURCE_RATE and REPLY_RATE hold for it at all times.
#
# Handshake messages that came to a worker's socket, behind data, are judged here as well. And the
# reverse: a transport message behind a handshake message is its worker's, if it is of a session
# that there is; TRANSPORT_RATE. (hot/rings.pxd)
#
# Overload is declared by the handshake queue, and here when more than LOAD_COUNT messages
# are accepted within LOAD_WINDOW_NS. It lasts for LOAD_HOLD_NS.
#
# The tables cannot be filled up: they are arrays indexed by a hash with a secret key, and
# sources that share a bucket share its rate. The key of the sources' table changes
# every REHASH_NS, so nobody shares with the same neighbour for long.
#
# Accepted limits: a flood from many spoofed addresses leaves a stranger without a cookie
# only the chance of (d) and (e), until it has one.

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memcmp, memcpy, memset

from fastpump.hot.bytes cimport load_le32, load_le64, store_le32
from fastpump.hot.constants cimport (
    COOKIE_REPLY_LEN, COOKIE_REPLY_TYPE, INITIATION_LEN, INITIATION_TYPE, RESPONSE_LEN,
    RESPONSE_TYPE, TRANSPORT_MIN_LEN, TRANSPORT_TYPE,
)
from fastpump.hot.linux cimport (
    AF_INET, MSG_DONTWAIT, getrandom, iovec, mmsghdr, sendmmsg, sockaddr_in6,
)
from fastpump.hot.pktinfo cimport PKTINFO_LEN, RECV_CMSG_LEN, pktinfo_write
from fastpump.hot.rate cimport rate_take


cdef extern from "keyed_hash.h" nogil:
    ctypedef struct KeyedHash:
        pass
    int keyed_hash_init(KeyedHash *self)
    void keyed_hash_free(KeyedHash *self)
    int keyed_hash_compute(KeyedHash *self, const uint8_t *key, size_t key_len,
                           const uint8_t *data, size_t length, uint8_t *out)
    int keyed_hash_is_valid(KeyedHash *self, const uint8_t *key, size_t key_len,
                            const uint8_t *data, size_t length, const uint8_t *hash)

cdef extern from "xchacha.h" nogil:
    ctypedef struct XChaCha:
        pass
    int xchacha_init(XChaCha *self)
    void xchacha_free(XChaCha *self)
    int xchacha_run(XChaCha *self, int is_seal, const uint8_t *key, const uint8_t *nonce,
                    const uint8_t *aad, size_t aad_len, const uint8_t *src, uint8_t *dst,
                    size_t length)


cdef enum:
    ADMISSION_MESSAGES = 32         # of one recvmmsg; each may be a GRO train
    ADMISSION_STRIDE = 65536
    MAC_LEN = 16

    SOURCE_BUCKETS = 65536
    KNOWN_HASHES = 1048576          # a counter for each, that holds as many peers as there may be
    INITIATION_SLOTS = 16384

    # Messages per second, and how many at once (hot/rate.pxd).
    SOURCE_RATE = 20                # as the kernel's ratelimiter.c
    SOURCE_BURST = 5
    KNOWN_RATE = 1000
    CHANCE_RATE = 500
    NEIGHBOUR_RATE = 200
    COOKIE_RATE = 25000
    REPLY_RATE = 1000
    TRANSPORT_RATE = 1000
    SHARED_BURST = 50
    COOKIE_BURST = 500

    # What a bucket of `sources` is for; part of its hash.
    FOR_ADDRESS = 1
    FOR_PORT = 2
    FOR_COOKIE = 3
    FOR_REPLY = 4

    LOAD_COUNT = 1000
    LOAD_WINDOW_NS = 100000000
    LOAD_HOLD_NS = 1000000000

cdef extern from *:
    """
    #define FASTPUMP_REHASH_NS 8000000000ULL
    """
    unsigned long long REHASH_NS "FASTPUMP_REHASH_NS"

# What becomes of a message. The first two are passed on; the others are counted by these names.
cdef enum:
    ADMIT_HANDSHAKE = 0
    ADMIT_TRANSPORT                 # a worker's
    SENT_COOKIE_REPLY
    DROP_MALFORMED_HANDSHAKE
    DROP_INVALID_MAC1
    DROP_REPLAYED_INITIATION
    DROP_HANDSHAKE_RATE             # too many from one source
    DROP_HANDSHAKE_OVERLOAD         # too many in all
    DROP_UNEXPECTED_COOKIE          # to no message of ours
    DROP_MISDELIVERED               # a transport message of no session, or one too many
    ADMISSION_COUNT

cdef struct Admission:
    KeyedHash keyed_hash
    bint has_identity
    uint8_t mac1_key[32]
    XChaCha xchacha
    uint8_t cookie_key[32]          # seals our replies (WireGuard paper, 5.4.7)
    uint8_t cookie_secret[32]
    uint64_t overload_until_ns
    uint64_t window_start_ns
    uint32_t window_count
    uint64_t rehashed_ns
    uint64_t source_key[2]
    uint64_t known_key[2]
    uint64_t known_at_ns, chance_at_ns, neighbour_at_ns, cookie_at_ns, reply_at_ns
    uint64_t transport_at_ns
    uint64_t verdicts[ADMISSION_COUNT]
    uint64_t sources[SOURCE_BUCKETS]
    uint64_t initiations[INITIATION_SLOTS]
    uint16_t known[KNOWN_HASHES]    # how many peers are there
    mmsghdr messages[ADMISSION_MESSAGES]
    iovec iov[ADMISSION_MESSAGES]
    sockaddr_in6 names[ADMISSION_MESSAGES]
    uint8_t control[ADMISSION_MESSAGES][RECV_CMSG_LEN]
    uint8_t *buffers                # ADMISSION_MESSAGES of ADMISSION_STRIDE
    uint32_t reply_count
    mmsghdr replies[ADMISSION_MESSAGES]
    iovec reply_iov[ADMISSION_MESSAGES]
    sockaddr_in6 reply_names[ADMISSION_MESSAGES]
    uint8_t reply_control[ADMISSION_MESSAGES][PKTINFO_LEN]
    uint8_t reply_buffers[ADMISSION_MESSAGES][COOKIE_REPLY_LEN]


cdef inline int admission_judge(Admission *self, const uint8_t *message, uint32_t length,
                                const uint8_t *sockaddr, uint64_t now) noexcept nogil:
    """What becomes of one datagram: ADMIT_*, SENT_* or DROP_*."""
    cdef uint32_t kind
    cdef int verdict
    cdef const uint8_t *mac1 = message + length - 2 * MAC_LEN
    if length < COOKIE_REPLY_LEN:
        return DROP_MALFORMED_HANDSHAKE if length < TRANSPORT_MIN_LEN \
            or load_le32(message) != TRANSPORT_TYPE else ADMIT_TRANSPORT
    kind = load_le32(message)
    if kind == TRANSPORT_TYPE:
        return ADMIT_TRANSPORT
    if kind == COOKIE_REPLY_TYPE and length == COOKIE_REPLY_LEN:
        if not source_take(self, sockaddr, FOR_REPLY, now):
            return DROP_HANDSHAKE_RATE
        if not rate_take(&self.reply_at_ns, now, REPLY_RATE, SHARED_BURST):
            return DROP_HANDSHAKE_OVERLOAD
        return ADMIT_HANDSHAKE
    if not (kind == INITIATION_TYPE and length == INITIATION_LEN
            or kind == RESPONSE_TYPE and length == RESPONSE_LEN):
        return DROP_MALFORMED_HANDSHAKE
    if not self.has_identity or not keyed_hash_is_valid(
            &self.keyed_hash, self.mac1_key, 32, message, length - 2 * MAC_LEN, mac1):
        return DROP_INVALID_MAC1
    if kind == INITIATION_TYPE and initiation_is_repeated(self, mac1):
        return DROP_REPLAYED_INITIATION
    verdict = ADMIT_HANDSHAKE
    if now < self.overload_until_ns:
        verdict = admission_judge_overloaded(self, message, length, sockaddr, now)
    if verdict == ADMIT_HANDSHAKE:
        if kind == INITIATION_TYPE:
            self.initiations[load_le32(mac1 + 8) & (INITIATION_SLOTS - 1)] = load_le64(mac1)
        if now - self.window_start_ns > LOAD_WINDOW_NS:
            self.window_start_ns = now
            self.window_count = 0
        self.window_count += 1
        if self.window_count > LOAD_COUNT:
            self.overload_until_ns = now + LOAD_HOLD_NS
    return verdict


cdef inline bint initiation_is_repeated(Admission *admission, const uint8_t *mac1) noexcept nogil:
    return admission.initiations[load_le32(mac1 + 8) & (INITIATION_SLOTS - 1)] == load_le64(mac1)


cdef inline int admission_judge_overloaded(Admission *self, const uint8_t *message, uint32_t length,
                                           const uint8_t *sockaddr, uint64_t now) noexcept nogil:
    """Step 4, under overload."""
    cdef bint is_beyond
    if mac2_is_valid(self, message, length, sockaddr):
        return ADMIT_HANDSHAKE if source_take(self, sockaddr, FOR_COOKIE, now) \
            else DROP_HANDSHAKE_RATE
    is_beyond = not source_take(self, sockaddr, FOR_ADDRESS, now)
    if is_beyond and not source_take(self, sockaddr, FOR_PORT, now):
        return DROP_HANDSHAKE_RATE
    if not is_beyond and self.known[known_hash(self, sockaddr)] and rate_take(
            &self.known_at_ns, now, KNOWN_RATE, SHARED_BURST):
        return ADMIT_HANDSHAKE
    if is_beyond:
        if rate_take(&self.neighbour_at_ns, now, NEIGHBOUR_RATE, SHARED_BURST):
            return ADMIT_HANDSHAKE
    elif rate_take(&self.chance_at_ns, now, CHANCE_RATE, SHARED_BURST):
        return ADMIT_HANDSHAKE
    if rate_take(&self.cookie_at_ns, now, COOKIE_RATE, COOKIE_BURST):
        return SENT_COOKIE_REPLY
    return DROP_HANDSHAKE_OVERLOAD


cdef inline bint mac2_is_valid(Admission *admission, const uint8_t *message, uint32_t length,
                               const uint8_t *sockaddr) noexcept nogil:
    cdef uint8_t cookie[MAC_LEN]
    cdef uint8_t zeros[MAC_LEN]
    memset(zeros, 0, MAC_LEN)
    if memcmp(message + length - MAC_LEN, zeros, MAC_LEN) == 0 \
            or cookie_of(admission, sockaddr, cookie) != 0:
        return False
    return keyed_hash_is_valid(&admission.keyed_hash, cookie, MAC_LEN, message, length - MAC_LEN,
                               message + length - MAC_LEN) != 0


cdef inline int cookie_of(Admission *admission, const uint8_t *sockaddr,
                          uint8_t *out) noexcept nogil:
    """The cookie of a source address and port (WireGuard paper, 5.4.7); 0 or -1."""
    cdef uint64_t words[2]
    cdef uint8_t data[18]
    address_words(words, sockaddr, True)
    memcpy(data, words, 16)
    memcpy(data + 16, sockaddr + 2, 2)
    return keyed_hash_compute(&admission.keyed_hash, admission.cookie_secret, 32, data, 18, out)


cdef inline bint source_take(Admission *admission, const uint8_t *sockaddr, uint64_t purpose,
                             uint64_t now) noexcept nogil:
    """One token of a source's bucket for a purpose (FOR_*)."""
    cdef uint64_t words[2]
    if now - admission.rehashed_ns > REHASH_NS:
        admission.rehashed_ns = now
        admission.source_key[1] = hash_words(admission.source_key, admission.known_key) ^ now
        memset(admission.sources, 0, sizeof(admission.sources))
    address_words(words, sockaddr, False)
    if purpose == FOR_PORT:
        purpose |= <uint64_t>(load_le32(sockaddr) >> 16) << 8
    words[1] ^= purpose             # those bits are the same for all sources of a family
    return rate_take(&admission.sources[hash_words(words, admission.source_key) >> 48], now,
                     SOURCE_RATE, SOURCE_BURST)


cdef inline void known_add(Admission *admission, const uint8_t *sockaddr,
                           int change) noexcept nogil:
    """A peer's endpoint is at an address now (1), or no longer (-1)."""
    cdef uint16_t *count = &admission.known[known_hash(admission, sockaddr)]
    count[0] = <uint16_t>(count[0] + change)


cdef inline uint32_t known_hash(Admission *admission, const uint8_t *sockaddr) noexcept nogil:
    cdef uint64_t words[2]
    address_words(words, sockaddr, True)
    return <uint32_t>(hash_words(words, admission.known_key) >> 44)


cdef inline void address_words(uint64_t *words, const uint8_t *sockaddr,
                               bint whole) noexcept nogil:
    """A sockaddr's address as two words; of IPv6 only the /64, unless `whole`."""
    cdef uint16_t family
    memcpy(&family, sockaddr, 2)
    words[0] = 0
    words[1] = 0
    if family == AF_INET:
        words[1] = <uint64_t>load_le32(sockaddr + 4) << 32 | 0xffff0000u
        return
    words[0] = load_le64(sockaddr + 8)
    words[1] = load_le64(sockaddr + 16)
    if not whole and (words[0] != 0 or <uint32_t>words[1] != 0xffff0000u):
        words[1] = 0


cdef inline uint64_t hash_words(const uint64_t *words, const uint64_t *key) noexcept nogil:
    """Multiply-xorshift with a secret odd key; the top bits are the hash."""
    cdef uint64_t mixed = (words[0] ^ key[1]) * key[0]
    mixed = (mixed ^ (mixed >> 29) ^ words[1]) * key[0]
    return (mixed ^ (mixed >> 32)) * (key[1] | 1)


cdef inline void reply_add(Admission *admission, int fd, const uint8_t *message, uint32_t length,
                           const sockaddr_in6 *name, uint32_t name_len,
                           const uint8_t *source_address) noexcept nogil:
    """Answer a message with a cookie; the replies leave when there are many, or by
    `replies_send`."""
    cdef uint32_t i = admission.reply_count
    cdef mmsghdr *reply = &admission.replies[i]
    cdef uint32_t control_len
    if not cookie_reply_write(admission, admission.reply_buffers[i], message, length,
                              <uint8_t *>name):
        return
    admission.reply_names[i] = name[0]
    control_len = pktinfo_write(admission.reply_control[i], source_address, name.sin6_family)
    admission.reply_iov[i].iov_base = admission.reply_buffers[i]
    admission.reply_iov[i].iov_len = COOKIE_REPLY_LEN
    memset(reply, 0, sizeof(mmsghdr))
    reply.msg_hdr.msg_name = &admission.reply_names[i]
    reply.msg_hdr.msg_namelen = name_len
    reply.msg_hdr.msg_iov = &admission.reply_iov[i]
    reply.msg_hdr.msg_iovlen = 1
    if control_len:
        reply.msg_hdr.msg_control = admission.reply_control[i] + PKTINFO_LEN - control_len
        reply.msg_hdr.msg_controllen = control_len
    admission.reply_count += 1
    if admission.reply_count == ADMISSION_MESSAGES:
        replies_send(admission, fd)


cdef inline void replies_send(Admission *admission, int fd) noexcept nogil:
    """What cannot be sent at once is not sent."""
    cdef uint32_t at = 0
    cdef int sent
    while at < admission.reply_count:
        sent = sendmmsg(fd, &admission.replies[at], admission.reply_count - at, MSG_DONTWAIT)
        at += <uint32_t>sent if sent > 0 else 1
    admission.reply_count = 0


cdef inline bint cookie_reply_write(Admission *admission, uint8_t *reply, const uint8_t *message,
                                    uint32_t length, const uint8_t *sockaddr) noexcept nogil:
    """Fill a reply (COOKIE_REPLY_LEN bytes) to a message; False if a library fails."""
    cdef uint8_t cookie[MAC_LEN]
    store_le32(reply, COOKIE_REPLY_TYPE)
    memcpy(reply + 4, message + 4, 4)           # the sender's index
    return (getrandom(reply + 8, 24, 0) == 24 and cookie_of(admission, sockaddr, cookie) == 0
            and xchacha_run(&admission.xchacha, 1, admission.cookie_key, reply + 8,
                            message + length - 2 * MAC_LEN, MAC_LEN, cookie, reply + 32,
                            MAC_LEN) == 0)
