"""The two macs at the end of every handshake message (WireGuard paper, section 5.4.4).

mac1 proves that the sender knows the receiver's public key, and costs one hash: it is
checked before anything else. mac2 stays zero until a peer under load asks for it.
"""

from __future__ import annotations

import hmac
from hashlib import blake2s

from fastpump.wire import MAC_LEN, MACS_LEN

_LABEL_MAC1 = b"mac1----"


def _mac(key: bytes, data: bytes) -> bytes:
    return blake2s(data, key=key, digest_size=MAC_LEN).digest()


def mac1_key(public_key: bytes) -> bytes:
    """The key of mac1 for messages to the holder of `public_key`."""
    return blake2s(_LABEL_MAC1 + public_key).digest()


def add_macs(message: bytes, key: bytes) -> bytes:
    """The emitted message with mac1 under `key` (`mac1_key` of the receiver)."""
    body = message[:-MACS_LEN]
    return body + _mac(key, body) + bytes(MAC_LEN)


def mac1_is_valid(message: bytes, key: bytes) -> bool:
    """Whether a received handshake message carries our mac1."""
    body = message[:-MACS_LEN]
    return hmac.compare_digest(_mac(key, body), message[-MACS_LEN:-MAC_LEN])
