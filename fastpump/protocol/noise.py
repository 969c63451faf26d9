"""Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s as WireGuard runs it (paper, section 5.4).

Sans-I/O: keys, indices and the timestamp are arguments, messages are values. Each step
stands under the Noise token that it implements; names are the paper's:

    c  chaining key     h  transcript hash     k  message key

What session keys follow from is wiped when it is not needed any more: the chaining key and the
session keys by themselves (_core.Secret), results of Diffie-Hellman here. The result for both
static keys, which never changes, is the caller's.

Any invalid message ends in HandshakeError, which says which step failed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2s

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fastpump._core import ChainingKey, Secret, wipe
from fastpump.constants import KEY_LEN
from fastpump.protocol.wire import Initiation, Response

_CONSTRUCTION = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
_IDENTIFIER = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
_EXPORT_LABEL = b"fastpump lanes 1"
_ZERO_NONCE = bytes(12)


class HandshakeError(Exception):
    """An invalid handshake message; the text names the step that failed."""


class UnknownPeer(HandshakeError):
    """The initiator is not a configured peer."""

    def __init__(self, public_key: bytes) -> None:
        """The key that it says is its own."""
        super().__init__("the initiator is not a configured peer")
        self.public_key = public_key


def _hash(*parts: bytes) -> bytes:
    digest = blake2s()
    for part in parts:
        digest.update(part)
    return digest.digest()


_INITIAL_CHAIN = _hash(_CONSTRUCTION)
_INITIAL_HASH = _hash(_INITIAL_CHAIN, _IDENTIFIER)


class DhKeyPair:
    """An X25519 private key and its public one: static or ephemeral."""

    def __init__(self, private: X25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> DhKeyPair:
        """A fresh one. By the kernel's random numbers: those of a library would be the same in a
        clone of this machine."""
        private = os.urandom(KEY_LEN)
        pair = cls.from_private(private)
        wipe(private)
        return pair

    @classmethod
    def from_private(cls, private: bytes) -> DhKeyPair:
        """From 32 bytes, clamped or not."""
        if len(private) != KEY_LEN:
            raise ValueError("a private key has 32 bytes")
        return cls(X25519PrivateKey.from_private_bytes(private))

    def exchange(self, public: bytes) -> bytes:
        """The Diffie-Hellman secret; HandshakeError for a point of low order."""
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise HandshakeError("public key of low order") from None


def _mix(c: ChainingKey, secret: bytes) -> None:
    c.mix(secret)
    wipe(secret)


def _mix_key(c: ChainingKey, secret: bytes) -> bytes:
    k = c.mix_key(secret)
    wipe(secret)
    return k


def _seal(key: bytes, data: bytes, h: bytes) -> bytes:
    return ChaCha20Poly1305(key).encrypt(_ZERO_NONCE, data, h)


def _open(key: bytes, data: bytes, h: bytes, what: str) -> bytes:
    try:
        return ChaCha20Poly1305(key).decrypt(_ZERO_NONCE, data, h)
    except InvalidTag:
        raise HandshakeError(f"{what} is not authentic") from None


@dataclass(frozen=True, slots=True, repr=False)
class TransportKeys:
    """What a handshake yields, from our side: two keys, and a secret that lanes are made of
    (docs/PROTOCOL.md), from which the keys do not follow."""

    send: Secret
    receive: Secret
    exported: Secret


@dataclass(frozen=True, slots=True, repr=False)
class InitiatorState:
    """What the initiator keeps until the response comes."""

    local_index: int
    ephemeral: DhKeyPair
    c: ChainingKey
    h: bytes


@dataclass(frozen=True, slots=True, repr=False)
class ConsumedInitiation:
    """What the responder learned from an initiation."""

    peer_public: bytes
    timestamp: bytes
    remote_index: int
    peer_ephemeral: bytes
    c: ChainingKey
    h: bytes


def create_initiation(static: DhKeyPair, peer_public: bytes, local_index: int, timestamp: bytes,
                      static_static: bytes, ephemeral: DhKeyPair | None = None,
                      ) -> tuple[Initiation, InitiatorState]:
    """First message. `timestamp` is TAI64N, 12 bytes, greater than any sent before;
    `static_static` is the Diffie-Hellman result of our static key and the peer's, which never
    changes."""
    c, h = ChainingKey(_INITIAL_CHAIN), _hash(_INITIAL_HASH, peer_public)
    ephemeral = ephemeral or DhKeyPair.generate()
    # e
    c.mix(ephemeral.public)
    h = _hash(h, ephemeral.public)
    # es
    k = _mix_key(c, ephemeral.exchange(peer_public))
    # s
    encrypted_static = _seal(k, static.public, h)
    h = _hash(h, encrypted_static)
    # ss
    k = c.mix_key(static_static)
    # {timestamp}
    encrypted_timestamp = _seal(k, timestamp, h)
    h = _hash(h, encrypted_timestamp)
    message = Initiation(local_index, ephemeral.public, encrypted_static, encrypted_timestamp)
    return message, InitiatorState(local_index, ephemeral, c, h)


def consume_initiation(static: DhKeyPair, message: Initiation,
                       static_static: Callable[[bytes], bytes]) -> ConsumedInitiation:
    """Open a first message. `static_static` gives the Diffie-Hellman result of our static key and a
    peer's, and raises UnknownPeer for an unknown one; the caller checks that the timestamp is
    new."""
    c, h = ChainingKey(_INITIAL_CHAIN), _hash(_INITIAL_HASH, static.public)
    # e
    c.mix(message.ephemeral)
    h = _hash(h, message.ephemeral)
    # es
    k = _mix_key(c, static.exchange(message.ephemeral))
    # s
    peer_public = _open(k, message.encrypted_static, h, "the initiator's static key")
    h = _hash(h, message.encrypted_static)
    # ss
    k = c.mix_key(static_static(peer_public))
    # {timestamp}
    timestamp = _open(k, message.encrypted_timestamp, h, "the timestamp")
    h = _hash(h, message.encrypted_timestamp)
    return ConsumedInitiation(peer_public, timestamp, message.sender_index, message.ephemeral,
                              c, h)


def create_response(initiation: ConsumedInitiation, preshared_key: bytes, local_index: int,
                    ephemeral: DhKeyPair | None = None) -> tuple[Response, TransportKeys]:
    """Second message, and the responder's transport keys."""
    c, h = initiation.c.copy(), initiation.h
    ephemeral = ephemeral or DhKeyPair.generate()
    # e
    c.mix(ephemeral.public)
    h = _hash(h, ephemeral.public)
    # ee
    _mix(c, ephemeral.exchange(initiation.peer_ephemeral))
    # se
    _mix(c, ephemeral.exchange(initiation.peer_public))
    # psk
    tau, k = c.mix_psk(preshared_key)
    h = _hash(h, tau)
    # {}
    encrypted_nothing = _seal(k, b"", h)
    receive, send = c.split()
    message = Response(local_index, initiation.remote_index, ephemeral.public, encrypted_nothing)
    return message, TransportKeys(send, receive, c.export(_EXPORT_LABEL))


def consume_response(static: DhKeyPair, state: InitiatorState, preshared_key: bytes,
                     message: Response) -> TransportKeys:
    """Open a second message; the initiator's transport keys."""
    c, h = state.c.copy(), state.h
    # e
    c.mix(message.ephemeral)
    h = _hash(h, message.ephemeral)
    # ee
    _mix(c, state.ephemeral.exchange(message.ephemeral))
    # se
    _mix(c, static.exchange(message.ephemeral))
    # psk
    tau, k = c.mix_psk(preshared_key)
    h = _hash(h, tau)
    # {}
    _open(k, message.encrypted_nothing, h, "the response")
    send, receive = c.split()
    return TransportKeys(send, receive, c.export(_EXPORT_LABEL))
