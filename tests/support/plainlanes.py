"""Lanes in plain Python, written from docs/PROTOCOL.md alone: nothing of fastpump is used.

Slow, clear, and the judge of the real one.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

AEAD = {1: AESGCM, 2: ChaCha20Poly1305}
CIPHER_NAMES = {1: "aes-256-gcm", 2: "chacha20-poly1305"}
HELLO, OFFER, ACCEPT, END, REFUSE = range(1, 6)
PATH_PROBE, PATH_ACK, PART = WITHOUT_FIELDS = range(6, 9)
PARTIAL, BUNDLE, FENCE, ASK, FRAME, RELAY, EXTENSION, RECORD = (1 << bit for bit in range(8))


# -- control packets

def control(kind: int, fields: dict[int, bytes]) -> bytes:
    """A control packet without padding."""
    body = b"".join(bytes([number]) + struct.pack("<H", len(value)) + value
                    for number, value in fields.items())
    return bytes([0xF0, kind]) + struct.pack("<H", len(body)) + body


def end(index: int, lane: int) -> bytes:
    """An END."""
    return bytes([0xF0, END, 6, 0]) + struct.pack("<IH", index, lane)


def parse_control(data: bytes) -> tuple[int, dict[int, bytes], bytes]:
    """Kind, fields and the packet without padding."""
    assert data[0] == 0xF0
    (length,) = struct.unpack("<H", data[2:4])
    whole = data[:4 + length]
    assert len(whole) == 4 + length
    if data[1] in WITHOUT_FIELDS:
        return data[1], {}, whole
    fields, at = {}, 4
    while at < len(whole):
        (size,) = struct.unpack("<H", whole[at + 1:at + 3])
        fields[whole[at]] = whole[at + 3:at + 3 + size]
        at += 3 + size
    return data[1], fields, whole


# -- keys

def blake2s_hmac(key: bytes, data: bytes) -> bytes:
    """HMAC-BLAKE2s."""
    return hmac.new(key, data, hashlib.blake2s).digest()


def exported(chaining_key: bytes) -> bytes:
    """KDF_1 of the WireGuard paper."""
    return blake2s_hmac(blake2s_hmac(chaining_key, b"fastpump lanes 1"), b"\1")


def lane_key(secrets: tuple[bytes, bytes], statics: tuple[bytes, bytes],
             messages: tuple[bytes, bytes, bytes], direction: int, lane: int,
             cipher: int) -> bytes:
    """key(d, n). `secrets`: exported, kem; `statics`: initiator's, responder's."""
    parts = (b"fastpump lanes 1", *statics, *messages)
    transcript = hashlib.sha256(b"".join(
        struct.pack("<H", len(part)) + part for part in parts)).digest()
    prk = hmac.new(transcript, b"".join(secrets), hashlib.sha256).digest()
    info = b"fastpump lane key" + struct.pack("<BHB", direction, lane, cipher)
    return hmac.new(prk, info + b"\1", hashlib.sha256).digest()


# -- lane messages

@dataclass
class PlainLane:
    """One end of one lane."""

    number: int
    remote_index: int
    send_key: bytes
    receive_key: bytes
    cipher: int = 1
    counter: int = 0
    seen: set[int] = field(default_factory=set)

    def seal(self, payload: bytes = b"", flags: int = 0, *, counter: int | None = None,
             segment_size: int = 0, length: int | None = None) -> bytes:
        """A lane message. Of a record: the size of its segments, and a wrong length."""
        if counter is None:
            counter, self.counter = self.counter, self.counter + 1
        header = struct.pack("<BBHIQ", 5, flags, self.number, self.remote_index, counter)
        if flags & RECORD:
            header += struct.pack("<HH", len(payload) + 36 if length is None else length,
                                  segment_size)
        nonce = bytes(4) + struct.pack("<Q", counter)
        return header + AEAD[self.cipher](self.send_key).encrypt(nonce, payload, header)

    def open(self, message: bytes) -> tuple[int, bytes] | None:
        """(flags, payload) of a message for this end; None if it must be dropped."""
        kind, flags, lane, _index, counter = struct.unpack("<BBHIQ", message[:16])
        if kind != 5 or lane != self.number or counter in self.seen:
            return None
        header_len = 20 if flags & RECORD else 16
        if flags & RECORD and struct.unpack("<H", message[16:18])[0] != len(message):
            return None
        try:
            payload = AEAD[self.cipher](self.receive_key).decrypt(
                bytes(4) + struct.pack("<Q", counter), message[header_len:], message[:header_len])
        except InvalidTag:
            return None
        self.seen.add(counter)
        return flags, payload


def bundle(packets: list[tuple[bytes, bool]]) -> bytes:
    """The payload for packets, each with whether its checksum is partial."""
    return b"".join(struct.pack("<H", len(packet) | is_partial << 15) + packet
                    for packet, is_partial in packets)


def unbundle(payload: bytes) -> list[tuple[bytes, bool]]:
    """The reverse."""
    packets = []
    while payload:
        (head,) = struct.unpack("<H", payload[:2])
        length = head & 0x7FFF
        assert 0 < length <= len(payload) - 2
        packets.append((payload[2:2 + length], bool(head >> 15)))
        payload = payload[2 + length:]
    return packets


def origin(public_key: bytes) -> bytes:
    """Who brought a frame in."""
    return hashlib.sha256(b"fastpump origin" + public_key).digest()[:8]


def relay_header(name: int, hops: int = 0, origin: bytes = bytes(8)) -> bytes:
    """What stands before a flooded or relayed frame."""
    return name.to_bytes(7, "little") + bytes([hops]) + origin


def parse_relay(payload: bytes) -> tuple[int, int, bytes, bytes]:
    """(name, hops, origin, frame)."""
    return int.from_bytes(payload[:7], "little"), payload[7], payload[8:16], payload[16:]


def packets_of(flags: int, payload: bytes) -> list[tuple[bytes, bool]]:
    """What a lane message carries."""
    if not payload:
        return []
    return unbundle(payload) if flags & BUNDLE else [(payload, bool(flags & PARTIAL))]
