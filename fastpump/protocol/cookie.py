"""The two macs at the end of every handshake message, and cookies (WireGuard paper,
sections 5.3, 5.4.4 and 5.4.7).

mac1 proves that the sender knows the receiver's public key, and costs one hash: it is
checked before anything else (hot/admission.pxd). A receiver under load answers with a cookie,
which only a sender that is really at its address receives; mac2 proves that it did.
"""

from __future__ import annotations

from hashlib import blake2s

from fastpump._core import xchacha20_poly1305
from fastpump.protocol.wire import MAC_LEN, MACS_LEN, CookieReply

_LABEL_MAC1 = b"mac1----"
_LABEL_COOKIE = b"cookie--"


def _mac(key: bytes, data: bytes) -> bytes:
    return blake2s(data, key=key, digest_size=MAC_LEN).digest()


def mac1_key(public_key: bytes) -> bytes:
    """The key of mac1 for messages to the owner of `public_key`."""
    return blake2s(_LABEL_MAC1 + public_key).digest()


def cookie_key(public_key: bytes) -> bytes:
    """The key that seals the cookies of the owner of `public_key`."""
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


def open_reply(key: bytes, mac1: bytes, reply: CookieReply) -> bytes | None:
    """The cookie in an answer to our message that carried `mac1`; None if it is not from the owner
    of `key` (the peer's `cookie_key`). XChaCha20-Poly1305."""
    return xchacha20_poly1305(key, reply.nonce, mac1, reply.encrypted_cookie, seal=False)
