"""The two macs at the end of every handshake message, and cookies (WireGuard paper,
sections 5.3, 5.4.4 and 5.4.7).

mac1 proves that the sender knows the receiver's public key, and costs one hash: it is
checked before anything else (hot/intake.pxd). A receiver under load answers with a cookie,
which only a sender that is really at its address gets; mac2 proves that it was got.
"""

from __future__ import annotations

import struct
from hashlib import blake2s

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from fastpump.wire import MAC_LEN, MACS_LEN, CookieReply

NONCE_LEN = 24

_LABEL_MAC1 = b"mac1----"
_LABEL_COOKIE = b"cookie--"
_CHACHA_CONSTANTS = b"expand 32-byte k"
_WORDS = struct.Struct("<4I")


def _mac(key: bytes, data: bytes) -> bytes:
    return blake2s(data, key=key, digest_size=MAC_LEN).digest()


def mac1_key(public_key: bytes) -> bytes:
    """The key of mac1 for messages to the holder of `public_key`."""
    return blake2s(_LABEL_MAC1 + public_key).digest()


def cookie_key(public_key: bytes) -> bytes:
    """The key that seals the cookies of the holder of `public_key`."""
    return blake2s(_LABEL_COOKIE + public_key).digest()


def add_macs(message: bytes, key: bytes, cookie: bytes | None = None) -> bytes:
    """The emitted message with mac1 under `key` (`mac1_key` of the receiver), and mac2
    under the cookie that the receiver gave us, if it did."""
    body = message[:-MACS_LEN]
    body += _mac(key, body)
    return body + (bytes(MAC_LEN) if cookie is None else _mac(cookie, body))


def mac1_of(message: bytes) -> bytes:
    """The mac1 in a handshake message."""
    return message[-MACS_LEN:-MAC_LEN]


def hchacha20(key: bytes, nonce: bytes) -> bytes:
    """A subkey from 32 bytes of key and 16 of nonce (draft-irtf-cfrg-xchacha-03, section
    2.2). It is ChaCha20's block without the addition of the input at the end; so the
    input is subtracted again from a block of the library's."""
    block = Cipher(ChaCha20(key, nonce), mode=None).encryptor().update(bytes(64))
    subkey = b""
    for part, added in ((block[:16], _CHACHA_CONSTANTS), (block[48:], nonce)):
        words = zip(_WORDS.unpack(part), _WORDS.unpack(added), strict=True)
        subkey += _WORDS.pack(*((word - less) & 0xFFFFFFFF for word, less in words))
    return subkey


def xchacha20_poly1305(key: bytes, nonce: bytes) -> tuple[ChaCha20Poly1305, bytes]:
    """XChaCha20-Poly1305 for one nonce of 24 bytes: the AEAD under the subkey, and the
    nonce for that (same draft, section 2.3)."""
    return ChaCha20Poly1305(hchacha20(key, nonce[:16])), bytes(4) + nonce[16:]


def create_reply(key: bytes, receiver_index: int, mac1: bytes, cookie: bytes,
                 nonce: bytes) -> CookieReply:
    """Answer a message that carried `mac1` and the sender index `receiver_index`. `key` is
    our own `cookie_key`, `nonce` 24 random bytes."""
    aead, short_nonce = xchacha20_poly1305(key, nonce)
    return CookieReply(receiver_index, nonce, aead.encrypt(short_nonce, cookie, mac1))


def open_reply(key: bytes, mac1: bytes, reply: CookieReply) -> bytes | None:
    """The cookie in an answer to our message that carried `mac1`; None if it is not from
    the holder of `key` (the peer's `cookie_key`)."""
    aead, short_nonce = xchacha20_poly1305(key, reply.nonce)
    try:
        return aead.decrypt(short_nonce, reply.encrypted_cookie, mac1)
    except InvalidTag:
        return None
