"""The handshake: both roles agree, everything a stranger changes is refused."""

import dataclasses
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from noise.connection import Keypair, NoiseConnection

from fastpump.constants import SECOND
from fastpump.protocol import cookie, keys, noise, tai64n, wire

PRIVATE_A, PRIVATE_B = keys.generate_private(), keys.generate_private()
A, B = noise.DhKeyPair.from_private(PRIVATE_A), noise.DhKeyPair.from_private(PRIVATE_B)
PSK = bytes(range(32))
STAMP = tai64n.emit(1_700_000_000 * SECOND)


def handshake(psk_a=PSK, psk_b=PSK):
    message, state = noise.create_initiation(A, B.public, 7, STAMP, A.exchange(B.public))
    consumed = noise.consume_initiation(B, wire.parse(message.emit()), B.exchange)
    response, keys_b = noise.create_response(consumed, psk_b, 9)
    return consumed, keys_b, noise.consume_response(A, state, psk_a, wire.parse(response.emit()))


def test_both_sides_get_the_same_keys():
    consumed, keys_b, keys_a = handshake()
    assert (keys_a.send, keys_a.receive) == (keys_b.receive, keys_b.send)
    assert keys_a.send != keys_a.receive
    assert (consumed.peer_public, consumed.timestamp, consumed.remote_index) == (
        A.public, STAMP, 7)


def test_an_independent_implementation_agrees():
    """The noiseprotocol package, as either role: messages, payloads and transport keys."""
    def other(key, **more):
        side = NoiseConnection.from_name(b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s")
        side.set_prologue(b"WireGuard v1 zx2c4 Jason@zx2c4.com")
        side.set_psks(PSK)
        side.set_keypair_from_private_bytes(Keypair.STATIC, key)
        for kind, value in more.items():
            side.set_keypair_from_public_bytes(getattr(Keypair, kind), value)
        return side

    theirs = other(PRIVATE_B)
    theirs.set_as_responder()
    theirs.start_handshake()
    message, state = noise.create_initiation(A, B.public, 7, STAMP, A.exchange(B.public))
    assert theirs.read_message(message.emit()[8:116]) == STAMP
    body = bytes(theirs.write_message())
    ours = noise.consume_response(A, state, PSK, wire.Response(9, 7, body[:32], body[32:]))
    assert theirs.noise_protocol.cipher_state_decrypt.k == ours.send
    assert theirs.noise_protocol.cipher_state_encrypt.k == ours.receive

    theirs = other(PRIVATE_A, REMOTE_STATIC=B.public)
    theirs.set_as_initiator()
    theirs.start_handshake()
    body = bytes(theirs.write_message(STAMP))
    consumed = noise.consume_initiation(
        B, wire.Initiation(3, body[:32], body[32:80], body[80:]), B.exchange)
    assert (consumed.peer_public, consumed.timestamp) == (A.public, STAMP)
    response, ours = noise.create_response(consumed, PSK, 9)
    assert theirs.read_message(response.emit()[12:60]) == b""
    assert theirs.noise_protocol.cipher_state_encrypt.k == ours.receive
    assert theirs.noise_protocol.cipher_state_decrypt.k == ours.send


def test_mac1_by_its_definition():
    """MAC(HASH("mac1----" || public), message before the macs): the paper's 5.4.4."""
    message = bytes(range(148))
    key = hashlib.blake2s(b"mac1----" + B.public).digest()
    expected = hashlib.blake2s(message[:116], key=key, digest_size=16).digest()
    assert cookie.add_macs(message, cookie.mac1_key(B.public))[116:132] == expected


def test_a_wrong_preshared_key_is_noticed_by_the_initiator():
    with pytest.raises(noise.HandshakeError, match="response"):
        handshake(psk_b=bytes(32))


@pytest.mark.parametrize("name", ["ephemeral", "encrypted_static", "encrypted_timestamp"])
@given(bit=st.integers(0, 223))
def test_a_changed_initiation_is_refused(name, bit):
    message, _ = noise.create_initiation(A, B.public, 7, STAMP, A.exchange(B.public))
    value = bytearray(getattr(message, name))
    bit %= 8 * len(value)
    if name == "ephemeral" and bit == 255:
        bit = 0     # the top bit of a point is ignored (RFC 7748)
    value[bit // 8] ^= 1 << bit % 8
    with pytest.raises(noise.HandshakeError):
        noise.consume_initiation(B, dataclasses.replace(message, **{name: bytes(value)}),
                                 B.exchange)


def test_an_initiation_for_somebody_else_is_refused():
    message, _ = noise.create_initiation(A, A.public, 7, STAMP, A.exchange(A.public))
    with pytest.raises(noise.HandshakeError, match="static key"):
        noise.consume_initiation(B, message, B.exchange)


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)])
def test_points_of_low_order_are_refused(point):
    message, _ = noise.create_initiation(A, B.public, 7, STAMP, A.exchange(B.public))
    with pytest.raises(noise.HandshakeError, match="low order"):
        noise.consume_initiation(B, dataclasses.replace(message, ephemeral=point), B.exchange)


@given(st.binary(max_size=200))
def test_parse_takes_only_whole_messages(data):
    parsed = wire.parse(data)
    if parsed is not None:
        assert (data[0], len(data)) in ((1, 148), (2, 92), (3, 64))
        assert data[:-32] == parsed.emit()[:-32]


def test_timestamps_only_go_forward():
    first = tai64n.emit(1_700_000_000 * SECOND)
    assert first == (0x400000000000000A + 1_700_000_000).to_bytes(8, "big") + bytes(4)
    assert tai64n.emit_after(first, 1_700_000_001 * SECOND) == tai64n.emit(1_700_000_001 * SECOND)
    for unix_ns in (1_700_000_000 * SECOND, 5):
        assert tai64n.emit_after(first, unix_ns) > first
