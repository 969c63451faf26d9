"""XChaCha20-Poly1305, macs and cookies by published vectors and by definition."""

import hashlib

import pytest

from fastpump import cookie

PUBLIC = bytes(range(32))


def test_hchacha20_by_the_drafts_vector():
    """draft-irtf-cfrg-xchacha-03, section 2.2.1."""
    nonce = bytes.fromhex("000000090000004a0000000031415927")
    assert cookie.hchacha20(bytes(range(32)), nonce).hex() == (
        "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc")


def test_xchacha20_poly1305_by_the_drafts_vector():
    """Same draft, appendix A.3.1."""
    aead, nonce = cookie.xchacha20_poly1305(
        bytes(range(0x80, 0xA0)), bytes(range(0x40, 0x58)))
    text = (b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for "
            b"the future, sunscreen would be it.")
    sealed = aead.encrypt(nonce, text, bytes.fromhex("50515253c0c1c2c3c4c5c6c7"))
    assert sealed[:16].hex() == "bd6d179d3e83d43b9576579493c0e939"
    assert sealed[-16:].hex() == "c0875924c1c7987947deafd8780acf49"


def test_macs_by_their_definition():
    message, key = bytes(range(148)), cookie.mac1_key(PUBLIC)
    assert key == hashlib.blake2s(b"mac1----" + PUBLIC).digest()
    with_macs = cookie.add_macs(message, key, bytes(range(16)))
    mac1 = hashlib.blake2s(message[:116], key=key, digest_size=16).digest()
    mac2 = hashlib.blake2s(with_macs[:132], key=bytes(range(16)), digest_size=16).digest()
    assert with_macs == message[:116] + mac1 + mac2


def test_a_reply_opens_for_its_message_only():
    key, value, mac1 = cookie.cookie_key(PUBLIC), bytes(range(16)), bytes(range(50, 66))
    reply = cookie.create_reply(key, 5, mac1, value, bytes(24))
    assert len(reply.emit()) == 64 and reply.receiver_index == 5
    assert cookie.open_reply(key, mac1, reply) == value
    assert cookie.open_reply(key, bytes(16), reply) is None
    assert cookie.open_reply(cookie.cookie_key(bytes(32)), mac1, reply) is None


@pytest.mark.parametrize("at", [8, 31, 32, 63])
def test_a_changed_reply_does_not_open(at):
    from fastpump import wire
    key, mac1 = cookie.cookie_key(PUBLIC), bytes(16)
    changed = bytearray(cookie.create_reply(key, 5, mac1, bytes(16), bytes(24)).emit())
    changed[at] ^= 1
    assert cookie.open_reply(key, mac1, wire.parse(bytes(changed))) is None
