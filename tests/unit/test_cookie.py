"""XChaCha20-Poly1305, macs and cookies by published vectors and by definition."""

import hashlib

import pytest

from fastpump._core import xchacha20_poly1305
from fastpump.protocol import cookie, wire

PUBLIC = bytes(range(32))


def test_xchacha20_poly1305_by_the_drafts_vector():
    """draft-irtf-cfrg-xchacha-03, appendix A.3.1."""
    text = (b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for "
            b"the future, sunscreen would be it.")
    key, nonce = bytes(range(0x80, 0xA0)), bytes(range(0x40, 0x58))
    aad = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    sealed = xchacha20_poly1305(key, nonce, aad, text, seal=True)
    assert sealed[:16].hex() == "bd6d179d3e83d43b9576579493c0e939"
    assert sealed[-16:].hex() == "c0875924c1c7987947deafd8780acf49"
    assert xchacha20_poly1305(key, nonce, aad, sealed, seal=False) == text
    assert xchacha20_poly1305(key, nonce, b"", sealed, seal=False) is None
    with pytest.raises(ValueError, match="24"):
        xchacha20_poly1305(key, bytes(12), aad, text, seal=True)


def test_macs_by_their_definition():
    message, key = bytes(range(148)), cookie.mac1_key(PUBLIC)
    assert key == hashlib.blake2s(b"mac1----" + PUBLIC).digest()
    with_macs = cookie.add_macs(message, key, bytes(range(16)))
    mac1 = hashlib.blake2s(message[:116], key=key, digest_size=16).digest()
    mac2 = hashlib.blake2s(with_macs[:132], key=bytes(range(16)), digest_size=16).digest()
    assert with_macs == message[:116] + mac1 + mac2


def reply_to(message, key):
    return wire.CookieReply(5, bytes(24), xchacha20_poly1305(
        key, bytes(24), cookie.mac1_of(message), bytes(range(16)), seal=True))


def test_a_reply_opens_for_its_message_only():
    key, message = cookie.cookie_key(PUBLIC), bytes(range(148))
    mac1 = cookie.mac1_of(message)
    reply = reply_to(message, key)
    assert len(reply.emit()) == 64 and wire.parse(reply.emit()) == reply
    assert cookie.open_reply(key, mac1, reply) == bytes(range(16))
    assert cookie.open_reply(key, bytes(16), reply) is None
    assert cookie.open_reply(cookie.cookie_key(bytes(32)), mac1, reply) is None


@pytest.mark.parametrize("at", [8, 31, 32, 63])
def test_a_changed_reply_does_not_open(at):
    key, message = cookie.cookie_key(PUBLIC), bytes(148)
    changed = bytearray(reply_to(message, key).emit())
    changed[at] ^= 1
    assert cookie.open_reply(key, cookie.mac1_of(message), wire.parse(bytes(changed))) is None
