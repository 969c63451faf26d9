"""WireGuard's handshake messages: parse and emit (WireGuard paper, section 5.4).

Transport and lane messages are the data plane's: hot/egress.pxd and hot/ingress.pxd; only
the headers of what the supervisor sends itself are made here. The data plane has numbers of its
own for what it looks at (hot/constants.pxd, hot/admission.pxd), since `fastpump genkey` and others
must not load it; tests/unit/test_constants.py compares them. All integers are little-endian.
`parse` returns None for what is not a handshake message of the right length; contents are not
judged.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

INITIATION_TYPE = 1
RESPONSE_TYPE = 2
COOKIE_REPLY_TYPE = 3
TRANSPORT_TYPE = 4
LANE_TYPE = 5
LANE_FLAG_ECHO_REQUEST = 0x08
LANE_FLAG_EXTENSION = 0x40
LANE_FLAG_RECORD = 0x80
EXTENSION_PATH_PROBE = 1
EXTENSION_PATH_ACK = 2
EXTENSION_RECORD_CUT = 3
CONTROL_MARK = 0xF0
"""The first byte of a control packet (protocol/lane_messages.py)."""

_INITIATION = struct.Struct("<II32s48s28s16s16s")
_RESPONSE = struct.Struct("<III32s16s16s16s")
_COOKIE_REPLY = struct.Struct("<II24s32s")

INITIATION_LEN = _INITIATION.size
RESPONSE_LEN = _RESPONSE.size
COOKIE_REPLY_LEN = _COOKIE_REPLY.size
MAC_LEN = 16
MACS_LEN = 2 * MAC_LEN


@dataclass(frozen=True, slots=True)
class Initiation:
    """First message, initiator to responder: 148 bytes."""

    sender_index: int
    ephemeral: bytes
    encrypted_static: bytes
    encrypted_timestamp: bytes

    def emit(self) -> bytes:
        """The message with its macs zero; `cookie.add_macs` fills them."""
        return _INITIATION.pack(INITIATION_TYPE, self.sender_index, self.ephemeral,
                                self.encrypted_static, self.encrypted_timestamp, b"", b"")


@dataclass(frozen=True, slots=True)
class Response:
    """Second message, responder to initiator: 92 bytes."""

    sender_index: int
    receiver_index: int
    ephemeral: bytes
    encrypted_nothing: bytes

    def emit(self) -> bytes:
        """The message with its macs zero; `cookie.add_macs` fills them."""
        return _RESPONSE.pack(RESPONSE_TYPE, self.sender_index, self.receiver_index,
                              self.ephemeral, self.encrypted_nothing, b"", b"")


@dataclass(frozen=True, slots=True)
class CookieReply:
    """What a receiver under load answers with: 64 bytes."""

    receiver_index: int
    nonce: bytes
    encrypted_cookie: bytes

    def emit(self) -> bytes:
        """The message; it has no macs."""
        return _COOKIE_REPLY.pack(COOKIE_REPLY_TYPE, self.receiver_index, self.nonce,
                                  self.encrypted_cookie)


def parse(message: bytes) -> Initiation | Response | CookieReply | None:
    """The handshake message in a datagram, or None."""
    kind = int.from_bytes(message[:4], "little"), len(message)
    if kind == (INITIATION_TYPE, INITIATION_LEN):
        _, sender, ephemeral, static, timestamp, _, _ = _INITIATION.unpack(message)
        return Initiation(sender, ephemeral, static, timestamp)
    if kind == (RESPONSE_TYPE, RESPONSE_LEN):
        _, sender, receiver, ephemeral, nothing, _, _ = _RESPONSE.unpack(message)
        return Response(sender, receiver, ephemeral, nothing)
    if kind == (COOKIE_REPLY_TYPE, COOKIE_REPLY_LEN):
        _, receiver, nonce, cookie = _COOKIE_REPLY.unpack(message)
        return CookieReply(receiver, nonce, cookie)
    return None
