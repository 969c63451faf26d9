"""The upgrade of a WireGuard session to lanes: its messages and keys (docs/PROTOCOL.md).

Sans-I/O. Control packets travel inside the session, where a packet would be, and begin with a
byte that no IP packet begins with: a peer that is not fastpump drops them.

    HELLO   session's initiator -> responder    what it can do
    OFFER   responder -> initiator              that, and an ML-KEM-768 key
    ACCEPT  initiator -> responder              ML-KEM's ciphertext; the keys are known
    REFUSE  responder -> initiator              why not
    END     either                              in the data plane only (hot/fence.pxd)
    PART    either                              of one of these, where it would be too large
    PATH_*  either                              of the path MTU (hot/path_probe.pxd)

Layout: mark 0xF0, kind, length of the rest (2 bytes), then fields: type (1), length (2), value.
Integers are little-endian. Unknown kinds and fields are skipped.
"""

from __future__ import annotations

import enum
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey

from fastpump._core import Secret, hkdf_expand, hkdf_extract, wipe
from fastpump.constants import MAX_LANES, MIN_LANE_SOCKETS
from fastpump.protocol.wire import CONTROL_MARK

VERSION = 1
KEM_KEY_LEN = 1184
KEM_CIPHERTEXT_LEN = 1088
KEM_SEED_LEN = 64

_HEADER = struct.Struct("<BBH")
_FIELD = struct.Struct("<BH")

AES_256_GCM, CHACHA20_POLY1305 = 1, 2
CIPHER_NAMES = {AES_256_GCM: "aes-256-gcm", CHACHA20_POLY1305: "chacha20-poly1305"}
CIPHER_NUMBERS = {name: number for number, name in CIPHER_NAMES.items()}


class Kind(enum.IntEnum):
    """Of a control packet."""

    HELLO = 1
    OFFER = 2
    ACCEPT = 3
    END = 4
    REFUSE = 5
    PATH_PROBE = 6
    PATH_ACK = 7
    PART = 8


class Mode(enum.IntEnum):
    """What an interface carries."""

    TUN = 1
    TAP = 2


class Refusal(enum.IntEnum):
    """Why there will be no lanes."""

    VERSION = 1
    CIPHER = 2
    MODE = 3


REFUSAL_TEXTS = {
    Refusal.VERSION: "it speaks another version of the protocol",
    Refusal.CIPHER: "there is no cipher that both sides allow",
    Refusal.MODE: "one side is a TUN, the other a TAP",
}


class Field(enum.IntEnum):
    """Of a message of the upgrade."""

    VERSIONS = 1
    MODE = 2
    CIPHERS = 3
    LANES = 4
    FEATURES = 5
    MTU = 6
    INDEX = 7
    IN_USE = 8
    OPENER = 9
    KEM = 10
    REASON = 11


@dataclass(frozen=True, slots=True)
class Abilities:
    """What one side can do, in HELLO and OFFER."""

    mode: Mode
    ciphers: tuple[int, ...]
    """In order of preference."""
    lanes: int
    """Its number of queues."""
    features: int
    """What it takes from the other: _core.FEATURE_*."""
    mtu: int
    versions: tuple[int, ...] = (VERSION,)
    in_use: int = 0
    """The receiver index of the set of lanes that it sends on now; 0 for none."""

    def fields(self) -> dict[int, bytes]:
        """As fields of a control packet."""
        return {
            Field.IN_USE: struct.pack("<I", self.in_use),      # first: workers look at it
            Field.VERSIONS: bytes(self.versions),
            Field.MODE: bytes([self.mode]),
            Field.CIPHERS: bytes(self.ciphers),
            Field.LANES: struct.pack("<H", self.lanes),
            Field.FEATURES: struct.pack("<I", self.features),
            Field.MTU: struct.pack("<H", self.mtu),
        }


@dataclass(frozen=True, slots=True)
class Hello:
    """First message."""

    abilities: Abilities

    def emit(self) -> bytes:
        """The control packet."""
        return _emit(Kind.HELLO, self.abilities.fields())


@dataclass(frozen=True, slots=True)
class Offer:
    """Second message. `index`: the receiver index of lane messages to its sender.
    `responder_opens`: the responder has the sockets of its own, not the initiator."""

    abilities: Abilities
    index: int
    responder_opens: bool
    kem_key: bytes

    def emit(self) -> bytes:
        """The control packet."""
        return _emit(Kind.OFFER, {
            **self.abilities.fields(),
            Field.INDEX: struct.pack("<I", self.index),
            Field.OPENER: bytes([self.responder_opens]),
            Field.KEM: self.kem_key,
        })


@dataclass(frozen=True, slots=True)
class Accept:
    """Third message. `index`: the receiver index of lane messages to its sender."""

    index: int
    kem_ciphertext: bytes

    def emit(self) -> bytes:
        """The control packet."""
        return _emit(Kind.ACCEPT, {Field.INDEX: struct.pack("<I", self.index),
                                   Field.KEM: self.kem_ciphertext})


@dataclass(frozen=True, slots=True)
class Refuse:
    """Instead of the second message."""

    reason: Refusal

    def emit(self) -> bytes:
        """The control packet."""
        return _emit(Kind.REFUSE, {Field.REASON: bytes([self.reason])})


Message = Hello | Offer | Accept | Refuse


def _emit(kind: Kind, fields: dict[int, bytes]) -> bytes:
    body = b"".join(_FIELD.pack(number, len(value)) + value for number, value in fields.items())
    return _HEADER.pack(CONTROL_MARK, kind, len(body)) + body


def parse(data: bytes) -> tuple[Message, bytes] | None:
    """The message in a control packet, and its bytes without what pads it; None for an
    unknown kind, or if it is malformed."""
    if len(data) < _HEADER.size:
        return None
    mark, kind, length = _HEADER.unpack_from(data)
    whole = data[:_HEADER.size + length]
    if mark != CONTROL_MARK or len(whole) != _HEADER.size + length:
        return None
    try:
        fields = _parse_fields(whole[_HEADER.size:])
        message = _PARSERS[kind](fields)
    except (KeyError, ValueError, IndexError, struct.error):
        return None
    return message, whole


def _parse_fields(body: bytes) -> dict[int, bytes]:
    fields: dict[int, bytes] = {}
    at = 0
    while at < len(body):
        number, length = _FIELD.unpack_from(body, at)
        at += _FIELD.size
        if at + length > len(body) or number in fields:
            raise ValueError("a field that is too long, or there twice")
        fields[number] = body[at:at + length]
        at += length
    return fields


def _uint(fields: dict[int, bytes], field: Field, layout: str) -> int:
    (value,) = struct.unpack(layout, fields[field])
    return int(value)


def _parse_abilities(fields: dict[int, bytes]) -> Abilities:
    lanes = _uint(fields, Field.LANES, "<H")
    if not 1 <= lanes <= MAX_LANES:
        raise ValueError("a number of lanes that cannot be")
    return Abilities(
        Mode(_uint(fields, Field.MODE, "<B")), tuple(fields[Field.CIPHERS]), lanes,
        _uint(fields, Field.FEATURES, "<I"), _uint(fields, Field.MTU, "<H"),
        tuple(fields[Field.VERSIONS]), _uint(fields, Field.IN_USE, "<I"))


def _parse_offer(fields: dict[int, bytes]) -> Offer:
    return Offer(_parse_abilities(fields), _uint(fields, Field.INDEX, "<I"),
                 bool(_uint(fields, Field.OPENER, "<B")), _kem(fields, KEM_KEY_LEN))


def _parse_accept(fields: dict[int, bytes]) -> Accept:
    return Accept(_uint(fields, Field.INDEX, "<I"), _kem(fields, KEM_CIPHERTEXT_LEN))


def _kem(fields: dict[int, bytes], length: int) -> bytes:
    if len(fields[Field.KEM]) != length:
        raise ValueError("not of ML-KEM-768")
    return fields[Field.KEM]


_PARSERS: dict[int, Callable[[dict[int, bytes]], Message]] = {
    Kind.HELLO: lambda fields: Hello(_parse_abilities(fields)),
    Kind.OFFER: _parse_offer,
    Kind.ACCEPT: _parse_accept,
    Kind.REFUSE: lambda fields: Refuse(Refusal(_uint(fields, Field.REASON, "<B"))),
}


# -- parts

PART_LEN = 1024
"""Fits any path that IPv6 has, in a datagram that is not fragmented."""
MAX_WHOLE_LEN = 4096
_PART = struct.Struct("<BBHHH")


def parts_of(message: bytes) -> list[bytes]:
    """The control packets in which a large one is sent: each says where its bytes belong, and how
    many there are."""
    return [_PART.pack(CONTROL_MARK, Kind.PART, 4 + len(piece), at, len(message)) + piece
            for at in range(0, len(message), PART_LEN)
            for piece in [message[at:at + PART_LEN]]]


class Parts:
    """The parts that were received of one control packet, in any order."""

    __slots__ = ("_length", "_pieces")

    def __init__(self) -> None:
        self._length = 0
        self._pieces: dict[int, bytes] = {}

    def add(self, data: bytes) -> bytes | None:
        """A control packet of kind PART; the whole one, if this was the last part of it. b"" if it
        is malformed."""
        if len(data) < _PART.size:
            return b""
        _, _, length, at, whole_length = _PART.unpack_from(data)
        piece = data[_PART.size:_HEADER.size + length]
        if not piece or len(piece) != length - 4 or at % PART_LEN \
                or not at + len(piece) <= whole_length <= MAX_WHOLE_LEN:
            return b""
        if whole_length != self._length:
            self._length = whole_length
            self._pieces.clear()
        self._pieces[at] = piece
        whole = b"".join(self._pieces[each] for each in sorted(self._pieces))
        if len(whole) != whole_length:
            return None
        self._pieces.clear()
        return whole


def is_part(data: bytes) -> bool:
    """Whether a control packet is one part of another."""
    return data[:2] == bytes((CONTROL_MARK, Kind.PART))


# -- what both sides derive

@dataclass(frozen=True, slots=True)
class Terms:
    """What two sides agree on; both work it out from HELLO and OFFER."""

    cipher: int
    lanes: int


def agree(hello: Abilities, offer: Abilities) -> Terms | Refusal:
    """The terms, or why there are none. AES-256-GCM if both list it, else the first of the
    responder's ciphers that the initiator lists too; a lane for each queue of whoever has
    more, but not more than the other side surely has sockets for."""
    if VERSION not in hello.versions or VERSION not in offer.versions:
        return Refusal.VERSION
    if hello.mode != offer.mode:
        return Refusal.MODE
    common = [cipher for cipher in offer.ciphers
              if cipher in hello.ciphers and cipher in CIPHER_NAMES]
    if not common:
        return Refusal.CIPHER
    cipher = AES_256_GCM if AES_256_GCM in common else common[0]
    fewer, more = sorted((hello.lanes, offer.lanes))
    return Terms(cipher, min(more, max(fewer, MIN_LANE_SOCKETS)))


@dataclass(frozen=True, slots=True, repr=False)
class LaneKeys:
    """Of one set. Two keys a lane, by its number."""

    to_responder: list[Secret]
    to_initiator: list[Secret]


@dataclass(frozen=True, slots=True)
class Transcript:
    """What the keys of a set are bound to: both static keys, and every byte of the three
    messages, as they were sent."""

    initiator: bytes
    responder: bytes
    hello: bytes
    offer: bytes
    accept: bytes

    def digest(self) -> bytes:
        """SHA-256 of all of it."""
        digest = hashes.Hash(hashes.SHA256())
        for part in (b"fastpump lanes 1", self.initiator, self.responder, self.hello, self.offer,
                     self.accept):
            digest.update(struct.pack("<H", len(part)) + part)
        return digest.finalize()


def derive(exported: Secret | bytes, kem_secret: bytes, transcript: Transcript,
           terms: Terms) -> LaneKeys:
    """The keys of a set: HKDF-SHA256 (RFC 5869) over the handshake's exported secret and
    ML-KEM's, bound to the transcript."""
    extracted = hkdf_extract(transcript.digest(), exported, kem_secret)

    def key(direction: int, lane: int) -> Secret:
        return hkdf_expand(extracted, b"fastpump lane key" + struct.pack(
            "<BHB", direction, lane, terms.cipher))

    return LaneKeys(*([key(direction, lane) for lane in range(terms.lanes)]
                      for direction in (0, 1)))


def kem_is_supported() -> bool:
    """Whether the `cryptography` library has ML-KEM (its OpenSSL may not)."""
    try:
        generate_kem_key()
    except UnsupportedAlgorithm:
        return False
    return True


def generate_kem_key() -> MLKEM768PrivateKey:
    """By the kernel's random numbers, as an ephemeral key (protocol/noise.py)."""
    seed = os.urandom(KEM_SEED_LEN)
    key = MLKEM768PrivateKey.from_seed_bytes(seed)
    wipe(seed)
    return key


def encapsulate(kem_key: bytes) -> tuple[bytes, bytes]:
    """(secret, ciphertext) for a public key; ValueError for an invalid one (FIPS 203)."""
    return MLKEM768PublicKey.from_public_bytes(kem_key).encapsulate()
