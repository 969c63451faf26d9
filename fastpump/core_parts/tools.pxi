# Plain functions over the hot code, for tests and tools.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t, uint8_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from fastpump.hot cimport constants
from fastpump.hot.admission cimport XChaCha, xchacha_free, xchacha_init, xchacha_run
from fastpump.hot.aead cimport (
    AEAD_KEY_LEN, AEAD_RAW_KEY_LEN, Aead, aead_free, aead_key_set, aead_open, aead_seal,
)
from fastpump.hot.constants cimport (
    BUFFER_STRIDE, GRO_MAX_TCP_SEGMENTS, READ_HEADROOM, TAG_LEN, VNET_HEADER_LEN,
)
from fastpump.hot.gro cimport (
    Candidate, Gro, gro_is_full, gro_receive, gro_reset, item_finish,
)
from fastpump.hot.ip cimport ip_can_be_partial
from fastpump.hot.linux cimport iovec
from fastpump.hot.packet cimport Packet, packet_parse
from fastpump.hot.replay cimport replay_is_fresh, replay_mark
from fastpump.hot.shm cimport Keypair, Lane, Replay
from fastpump.hot.split cimport Splitter, splitter_init, splitter_next
from fastpump.hot.vnet cimport VnetHeader, vnet_checksum_complete, vnet_load

REPLAY_WINDOW = constants.REPLAY_WINDOW
REPLAY_LEN = sizeof(Replay)


def aead(str backend, str cipher, bytes key, bytes nonce, bytes aad, bytes data, *, bint seal):
    """Seal or open one message: `cipher` is chacha20-poly1305 or aes-256-gcm, `key` 32
    bytes, `nonce` 12. Opening takes ciphertext and tag; None if it is not authentic."""
    cdef Aead context
    cdef int which = CIPHERS[cipher]
    cdef Py_ssize_t length = len(data)
    cdef uint8_t *room
    cdef uint8_t *expanded
    cdef int result
    if len(key) != 32 or len(nonce) != 12 or (not seal and length < TAG_LEN):
        raise ValueError("key 32 bytes, nonce 12, sealed data at least 16")
    backends_start(&context, backend_number(backend), backend_number(backend))
    room = <uint8_t *>calloc(2, AEAD_KEY_LEN)       # aligned to 64
    if room == NULL:
        aead_free(&context)
        raise MemoryError
    expanded = room + (64 - <size_t>room % 64)
    aead_key_set(&context, which, key, expanded)
    try:
        if seal:
            out = bytearray(length + TAG_LEN)
            result = aead_seal(&context, which, expanded, nonce, aad, len(aad), data,
                               <uint8_t *>out, length)
            if result != 0:
                raise OSError("the AEAD library failed")
            return bytes(out)
        length -= TAG_LEN
        out = bytearray(length)
        result = aead_open(&context, which, expanded, nonce, aad, len(aad), data, <uint8_t *>out,
                           length)
        return bytes(out) if result == 0 else None
    finally:
        memset(room, 0, 2 * AEAD_KEY_LEN)
        free(room)
        aead_free(&context)


def xchacha20_poly1305(bytes key, bytes nonce, bytes aad, bytes data, *, bint seal):
    """Seal or open one message (hot/xchacha.h): `key` 32 bytes, `nonce` 24. Opening takes
    ciphertext and tag; None if it is not authentic."""
    cdef XChaCha context
    cdef Py_ssize_t length = len(data) if seal else len(data) - TAG_LEN
    cdef int result
    if len(key) != 32 or len(nonce) != 24 or length < 0:
        raise ValueError("key 32 bytes, nonce 24, sealed data at least 16")
    out = bytearray(length + TAG_LEN)
    if xchacha_init(&context) != 0:
        raise OSError("libcrypto lacks ChaCha20")
    result = xchacha_run(&context, seal, key, nonce, aad, len(aad), data, <uint8_t *>out, length)
    xchacha_free(&context)
    if seal:
        if result != 0:
            raise OSError("the AEAD library failed")
        return bytes(out)
    return bytes(out[:length]) if result == 0 else None


def keys_of_session(AttachedTables tables, uint32_t slot):
    """(send, receive) of the keypair in a slot, also of one that another process has taken."""
    cdef const Keypair *keypair
    if slot >= tables.mapping.tables.header.keypair_capacity:
        raise IndexError(f"no keypair in slot {slot}")
    keypair = &tables.mapping.tables.keypairs[slot]
    return (PyBytes_FromStringAndSize(<char *>keypair.send_key, AEAD_RAW_KEY_LEN),
            PyBytes_FromStringAndSize(<char *>keypair.receive_key, AEAD_RAW_KEY_LEN))


def keys_of_lane(AttachedTables tables, uint32_t slot):
    """(send, receive) of a lane. An expanded key begins with the key (FIPS 197, 5.2)."""
    cdef const Lane *lane
    if slot >= tables.mapping.tables.header.lane_capacity:
        raise IndexError(f"no lane in slot {slot}")
    lane = &tables.mapping.tables.lanes[slot]
    return (PyBytes_FromStringAndSize(<char *>lane.send_key, AEAD_RAW_KEY_LEN),
            PyBytes_FromStringAndSize(<char *>lane.receive_key, AEAD_RAW_KEY_LEN))


cdef class ReplayWindow:
    """The replay window of hot/replay.pxd. `place`: the address of REPLAY_LEN bytes that processes
    share, and that live longer than this; 0 for memory of its own."""

    cdef Replay own
    cdef Replay *replay

    def __cinit__(self, uintptr_t place=0):
        self.replay = <Replay *>place if place else &self.own

    def is_fresh(self, uint64_t counter):
        return bool(replay_is_fresh(self.replay, counter))

    def mark(self, uint64_t counter):
        """Accept the counter; False if it was seen before or is too old."""
        return bool(replay_mark(self.replay, counter))


def split(bytes vnet_and_packet, *, bint may_leave_partial=False, bint is_frame=False):
    """What leaves for a packet (or frame) read from the interface: [packet, ...], with complete
    checksums unless they may stay partial; None if the vnet header is inconsistent. Input: vnet
    header (24 bytes), packet."""
    cdef VnetHeader vnet
    cdef Packet packet
    cdef Splitter splitter
    cdef uint8_t *segment
    cdef uint32_t length
    if len(vnet_and_packet) < VNET_HEADER_LEN:
        return None
    work = bytearray(vnet_and_packet)
    cdef uint8_t *start = <uint8_t *>work
    vnet_load(&vnet, start)
    if not packet_parse(&packet, is_frame, start + VNET_HEADER_LEN,
                        <uint32_t>len(work) - VNET_HEADER_LEN):
        return None
    if vnet.gso_type == 0:
        if not vnet_checksum_complete(&vnet, &packet):
            return None
        return [PyBytes_FromStringAndSize(<char *>packet.start, packet.length)]
    if not splitter_init(&splitter, &vnet, &packet, may_leave_partial):
        return None
    segments = []
    length = splitter_next(&splitter, &segment)
    while length:
        segments.append(PyBytes_FromStringAndSize(<char *>segment, length))
        length = splitter_next(&splitter, &segment)
    return segments


def coalesce(list packets, offloads=("tun-tcp4", "tun-tcp6", "tun-udp4", "tun-udp6"), *,
             bint is_partial=False, bint is_frame=False):
    """What is written to the interface for packets (or frames) received in one batch: [vnet
    header (24 bytes) + packet or superpacket, ...]. ValueError for none."""
    cdef Gro *gro = <Gro *>calloc(1, sizeof(Gro))
    cdef uint8_t *buffers = <uint8_t *>calloc(len(packets) + 1, BUFFER_STRIDE)
    cdef iovec iov[GRO_MAX_TCP_SEGMENTS + 1]
    cdef Candidate candidate
    cdef uint8_t *at
    cdef uint32_t bits = 0
    cdef int count, k
    cdef bytes data
    if gro == NULL or buffers == NULL:
        free(gro)
        free(buffers)
        raise MemoryError
    try:
        for name in offloads:
            bits |= <uint32_t>OFFLOAD_BITS[name]
        gro_reset(gro, bits)
        for i, data in enumerate(packets):
            at = buffers + <size_t>i * BUFFER_STRIDE + READ_HEADROOM
            memcpy(at, PyBytes_AS_STRING(data), min(len(data), 65535))
            if not packet_parse(&candidate.packet, is_frame, at, min(len(data), 65535)):
                raise ValueError("neither an IP packet nor a frame")
            candidate.is_partial = is_partial and ip_can_be_partial(&candidate.packet.ip)
            candidate.peer = 0
            if gro_is_full(gro):
                raise ValueError("too many packets for one batch")
            gro_receive(gro, &candidate)
        written = []
        for i in range(gro.item_count):
            count = item_finish(gro, &gro.items[<uint32_t>i], iov)
            written.append(b"".join(
                PyBytes_FromStringAndSize(<char *>iov[k].iov_base, iov[k].iov_len)
                for k in range(count)))
        return written
    finally:
        free(gro)
        free(buffers)
