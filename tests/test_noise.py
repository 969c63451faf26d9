"""The handshake: both roles agree, everything a stranger changes is refused."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpump import cookie, keys, noise, tai64n, wire
from fastpump.constants import SECOND

A, B = (noise.StaticKey(keys.generate_private()) for _ in range(2))
PSK = bytes(range(32))
STAMP = tai64n.emit(1_700_000_000 * SECOND)


def handshake(psk_a=PSK, psk_b=PSK):
    message, state = noise.create_initiation(A, B.public, 7, STAMP)
    consumed = noise.consume_initiation(B, wire.parse(message.emit()))
    response, keys_b = noise.create_response(consumed, psk_b, 9)
    return consumed, keys_b, noise.consume_response(A, state, psk_a, wire.parse(response.emit()))


def test_both_sides_get_the_same_keys():
    consumed, keys_b, keys_a = handshake()
    assert (keys_a.send, keys_a.receive) == (keys_b.receive, keys_b.send)
    assert keys_a.send != keys_a.receive
    assert (consumed.peer_public, consumed.timestamp, consumed.remote_index) == (
        A.public, STAMP, 7)


def test_a_wrong_preshared_key_is_noticed_by_the_initiator():
    with pytest.raises(noise.HandshakeError, match="response"):
        handshake(psk_b=bytes(32))


@pytest.mark.parametrize("name", ["ephemeral", "encrypted_static", "encrypted_timestamp"])
@given(bit=st.integers(0, 223))
def test_a_changed_initiation_is_refused(name, bit):
    message, _ = noise.create_initiation(A, B.public, 7, STAMP)
    value = bytearray(getattr(message, name))
    bit %= 8 * len(value)
    if name == "ephemeral" and bit == 255:
        bit = 0     # the top bit of a point is ignored (RFC 7748)
    value[bit // 8] ^= 1 << bit % 8
    with pytest.raises(noise.HandshakeError):
        noise.consume_initiation(B, dataclasses.replace(message, **{name: bytes(value)}))


def test_an_initiation_for_somebody_else_is_refused():
    message, _ = noise.create_initiation(A, A.public, 7, STAMP)
    with pytest.raises(noise.HandshakeError, match="static key"):
        noise.consume_initiation(B, message)


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)])
def test_points_of_low_order_are_refused(point):
    message, _ = noise.create_initiation(A, B.public, 7, STAMP)
    with pytest.raises(noise.HandshakeError, match="low order"):
        noise.consume_initiation(B, dataclasses.replace(message, ephemeral=point))


@given(st.binary(max_size=200))
def test_parse_takes_only_whole_messages(data):
    parsed = wire.parse(data)
    if parsed is not None:
        assert (data[0], len(data)) in ((1, 148), (2, 92))
        assert data[:-32] == parsed.emit()[:-32]


def test_mac1_proves_knowledge_of_the_public_key():
    message, _ = noise.create_initiation(A, B.public, 7, STAMP)
    signed = cookie.add_macs(message.emit(), cookie.mac1_key(B.public))
    assert len(signed) == 148 and signed[-16:] == bytes(16)
    assert cookie.mac1_is_valid(signed, cookie.mac1_key(B.public))
    assert not cookie.mac1_is_valid(signed, cookie.mac1_key(A.public))
    assert not cookie.mac1_is_valid(bytes([signed[0] ^ 1]) + signed[1:],
                                    cookie.mac1_key(B.public))


def test_timestamps_only_go_forward():
    first = tai64n.emit(1_700_000_000 * SECOND)
    assert first == (0x400000000000000A + 1_700_000_000).to_bytes(8, "big") + bytes(4)
    assert tai64n.emit_after(first, 1_700_000_001 * SECOND) == tai64n.emit(1_700_000_001 * SECOND)
    for unix_ns in (1_700_000_000 * SECOND, 5):
        assert tai64n.emit_after(first, unix_ns) > first
