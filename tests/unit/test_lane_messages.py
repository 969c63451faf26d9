"""The upgrade's messages, terms and keys, beside the plain implementation and its vectors."""

import dataclasses
import json
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fastpump import _core
from fastpump.protocol import lane_messages
from fastpump.protocol.lane_messages import (
    AES_256_GCM,
    CHACHA20_POLY1305,
    Abilities,
    Accept,
    Hello,
    Mode,
    Offer,
    Refusal,
    Refuse,
    Terms,
)
from support import plainlanes

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "lanes.json").read_text())
BOTH = (AES_256_GCM, CHACHA20_POLY1305)
OURS = Abilities(Mode.TUN, BOTH, 4, 3, 1420)


def vector(name):
    return bytes.fromhex(VECTORS[name])


MESSAGES = [Hello(OURS), Offer(OURS, 7, True, bytes(range(74)) * 16), Accept(9, bytes(1088)),
            Refuse(Refusal.CIPHER)]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_come_back_as_they_were(message):
    emitted = message.emit()
    assert lane_messages.parse(emitted) == (message, emitted)
    assert lane_messages.parse(emitted + bytes(13)) == (message, emitted)     # padding
    for length in range(len(emitted)):
        assert lane_messages.parse(emitted[:length]) is None


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_unknown_fields_are_skipped(message):
    kind, fields, _ = plainlanes.parse_control(message.emit())
    more = plainlanes.control(kind, {200: b"later", **fields, 201: b""})
    assert lane_messages.parse(more) == (message, more)


def changed(message, number, value):
    kind, fields, _ = plainlanes.parse_control(message.emit())
    if value is None:
        del fields[number]
    else:
        fields[number] = value
    return plainlanes.control(kind, fields)


@pytest.mark.parametrize("data", [
    b"", b"\xf0", bytes(40), b"\x45" + Hello(OURS).emit()[1:], plainlanes.control(77, {}),
    plainlanes.end(1, 2), plainlanes.control(1, {}),
    Hello(OURS).emit()[:4] + b"\1\xff\xff" + Hello(OURS).emit()[7:],
    plainlanes.control(5, {11: b"\x63"}),
    *(changed(MESSAGES[0], number, None) for number in (1, 2, 3, 4, 5, 6, 8)),
    changed(MESSAGES[0], 4, b"\0\0"), changed(MESSAGES[0], 4, b"\1\1"),
    changed(MESSAGES[0], 4, b"\1"), changed(MESSAGES[0], 2, b"\3"),
    changed(MESSAGES[1], 10, bytes(1183)), changed(MESSAGES[2], 10, bytes(1089)),
    changed(MESSAGES[2], 7, bytes(5)),
    Accept(9, bytes(1088)).emit()[:2] + struct.pack("<H", 14) + 2 * b"\7\4\0abcd",
])
def test_malformed_messages_are_none(data):
    assert lane_messages.parse(data) is None


@given(st.binary(max_size=1500))
def test_no_bytes_break_the_parser(data):
    for kind in range(1, 6):
        lane_messages.parse(bytes([0xF0, kind]) + struct.pack("<H", len(data)) + data)
    lane_messages.parse(data)


@pytest.mark.parametrize(("ours", "theirs", "terms"), [
    ({}, {}, Terms(AES_256_GCM, 4)),
    ({"lanes": 2}, {"lanes": 9}, Terms(AES_256_GCM, 9)),
    ({"lanes": 4}, {"lanes": 100}, Terms(AES_256_GCM, 32)),
    ({"lanes": 200}, {"lanes": 100}, Terms(AES_256_GCM, 100)),
    ({"ciphers": (CHACHA20_POLY1305,)}, {}, Terms(CHACHA20_POLY1305, 4)),
    ({"ciphers": BOTH[::-1]}, {"ciphers": BOTH[::-1]}, Terms(AES_256_GCM, 4)),
    ({"ciphers": (3, *BOTH)}, {"ciphers": (3, CHACHA20_POLY1305)}, Terms(CHACHA20_POLY1305, 4)),
    ({"ciphers": (AES_256_GCM,)}, {"ciphers": (CHACHA20_POLY1305,)}, Refusal.CIPHER),
    ({"ciphers": ()}, {}, Refusal.CIPHER),
    ({"mode": Mode.TAP}, {}, Refusal.MODE),
    ({"versions": (2,)}, {}, Refusal.VERSION),
    ({"versions": (1, 2)}, {}, Terms(AES_256_GCM, 4)),
])
def test_terms(ours, theirs, terms):
    assert lane_messages.agree(dataclasses.replace(OURS, **ours),
                         dataclasses.replace(OURS, **theirs)) == terms


def derived(**changes):
    secrets = {"exported": vector("exported"), "kem_secret": vector("kem_secret")}
    bound = {"initiator": vector("initiator_static"), "responder": vector("responder_static"),
             "hello": vector("hello"), "offer": vector("offer"), "accept": vector("accept")}
    terms = changes.pop("terms", Terms(AES_256_GCM, 4))
    for parts in (secrets, bound):
        parts.update({name: changes.pop(name) for name in list(changes) if name in parts})
    assert not changes
    return lane_messages.derive(**secrets, transcript=lane_messages.Transcript(**bound),
                                terms=terms)


def test_keys_are_those_of_the_vectors():
    assert plainlanes.exported(vector("chaining_key")) == vector("exported")
    exported = _core.ChainingKey(vector("chaining_key")).export(b"fastpump lanes 1")
    assert exported == vector("exported")
    for each in VECTORS["keys"]:
        keys = derived(terms=Terms(each["cipher"], 4))
        table = (keys.to_responder, keys.to_initiator)[each["direction"]]
        assert bytes(table[each["lane"]]).hex() == each["key"]
        assert plainlanes.lane_key(
            (vector("exported"), vector("kem_secret")),
            (vector("initiator_static"), vector("responder_static")),
            (vector("hello"), vector("offer"), vector("accept")),
            each["direction"], each["lane"], each["cipher"]).hex() == each["key"]


def test_the_vectors_messages_parse():
    hello, offer, accept = (
        lane_messages.parse(vector(name)) for name in ("hello", "offer", "accept"))
    assert hello[1] == vector("hello") and offer[1] == vector("offer")
    assert accept[0].index == 0x55667788 and offer[0].index == 0x11223344
    terms = lane_messages.agree(hello[0].abilities, offer[0].abilities)
    assert dataclasses.asdict(terms) == VECTORS["terms"]
    end = VECTORS["end"]
    assert plainlanes.end(end["index"], end["lane"]).hex() == end["packet"]


@pytest.mark.parametrize("each", VECTORS["messages"], ids=lambda each: each["name"])
@pytest.mark.parametrize("backend", _core.BACKENDS)
def test_lane_messages_are_those_of_the_vectors(each, backend):
    header = struct.pack("<BBHIQ", 5, each["flags"], each["lane"], each["index"], each["counter"])
    sealed = _core.aead(backend, lane_messages.CIPHER_NAMES[each["cipher"]],
                        bytes.fromhex(each["key"]),
                        bytes(4) + each["counter"].to_bytes(8, "little"), header,
                        bytes.fromhex(each["payload"]), seal=True)
    assert (header + sealed).hex() == each["message"]
    key = bytes.fromhex(each["key"])
    lane = plainlanes.PlainLane(each["lane"], each["index"], key, key, each["cipher"])
    assert lane.open(bytes.fromhex(each["message"])) == (
        each["flags"], bytes.fromhex(each["payload"]))


@pytest.mark.parametrize("name", ["hello", "offer", "accept"])
def test_any_byte_changed_in_any_message_makes_other_keys(name):
    """A downgrade, or any other change, by somebody who got round the session's AEAD."""
    right = derived().to_responder[0]
    original = vector(name)
    for at in range(len(original)):
        assert derived(**{name: original[:at] + bytes([original[at] ^ 1])
                          + original[at + 1:]}).to_responder[0] != right
    assert derived(**{name: b""}).to_responder[0] != right


@pytest.mark.parametrize("name", ["exported", "kem_secret", "initiator", "responder"])
def test_keys_depend_on_every_secret_and_identity(name):
    keys, right = derived(**{name: bytes(32)}), derived()
    changed, unchanged = ({bytes(key) for key in each.to_responder + each.to_initiator}
                          for each in (keys, right))
    assert not changed & unchanged
    assert len(unchanged) == 8


def test_ml_kem():
    private = MLKEM768PrivateKey.generate()
    secret, ciphertext = lane_messages.encapsulate(private.public_key().public_bytes_raw())
    assert private.decapsulate(ciphertext) == secret
    assert len(ciphertext) == lane_messages.KEM_CIPHERTEXT_LEN
    with pytest.raises(ValueError):
        # coefficients out of range
        lane_messages.encapsulate(b"\xff" * lane_messages.KEM_KEY_LEN)
    assert lane_messages.kem_is_supported()
