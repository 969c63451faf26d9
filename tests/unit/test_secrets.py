"""What session keys follow from: wiped when it is not needed any more, and right until then."""

import hashlib
import hmac
import os

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fastpump import _core
from fastpump._core import ChainingKey, NewLanes, Secret, SharedTables

KEY, DATA = bytes(range(32)), bytes(range(100, 140))


def kdf(count, key, data):
    """KDF_n of the WireGuard paper, as it is written there."""
    secret = hmac.new(key, data, hashlib.blake2s).digest()
    outputs = [hmac.new(secret, b"\1", hashlib.blake2s).digest()]
    while len(outputs) < count:
        outputs.append(hmac.new(secret, outputs[-1] + bytes([len(outputs) + 1]),
                                hashlib.blake2s).digest())
    return outputs


def test_a_chaining_key_goes_on_as_the_paper_says():
    chain = ChainingKey(KEY)
    (c,) = kdf(1, KEY, DATA)
    chain.mix(DATA)
    c, k = kdf(2, c, b"\7" * 32)
    assert chain.mix_key(b"\7" * 32) == k
    before = chain.copy()
    c, tau, k = kdf(3, c, DATA[:32])
    assert chain.mix_psk(DATA[:32]) == (tau, k)
    assert [bytes(key) for key in chain.split()] == kdf(2, c, b"")
    assert [chain.export(b"label")] == kdf(1, c, b"label")
    assert before.mix_psk(DATA[:32]) == (tau, k)        # it stayed where it was


def test_hkdf_of_lane_keys():
    extracted = _core.hkdf_extract(DATA, Secret(KEY), DATA[:32])
    for info in (b"", b"fastpump lane key\0\0\1"):
        assert _core.hkdf_expand(extracted, info) == HKDF(
            hashes.SHA256(), 32, DATA, info).derive(KEY + DATA[:32])


def test_a_secret_is_equal_to_its_bytes_only():
    secret = Secret(KEY)
    assert secret == KEY and secret == Secret(KEY) and bytes(secret) == KEY
    for other in (bytes(32), Secret(bytes(32)), b"", KEY + b"\0", None, 7):
        assert secret != other
    assert KEY.hex() not in repr(secret) and str(KEY) not in repr(secret)
    with pytest.raises(ValueError):
        Secret(bytes(31))
    with pytest.raises(TypeError):
        hash(secret)


def test_wiping():
    secret = os.urandom(40)
    _core.wipe(secret)
    assert secret == bytes(40)


@pytest.mark.parametrize("backend", _core.BACKENDS)
@pytest.mark.parametrize(("cipher", "aead"), [
    ("aes-256-gcm", AESGCM), ("chacha20-poly1305", ChaCha20Poly1305)])
def test_an_empty_lane_message_of_the_supervisor(backend, cipher, aead):
    tables = SharedTables.create(1, 4, 16, backend=backend)
    first, _ = tables.lanes.reserve(tables.peers.add(), 1)
    tables.lanes.install(first, NewLanes(
        remote_index=0x01020304, cipher=cipher, features=0, keys=[(Secret(KEY), Secret(KEY))],
        endpoints=[(b"", bytes(16))], sockets=None, rekey_at_ns=1, rekey_rx_at_ns=1,
        reject_at_ns=1))
    assert _core.keys_of_lane(tables, first) == (KEY, KEY)
    tables.lanes.take_counter(first, 5)
    message = tables.lanes.seal(first, 8, 7)
    assert message[:16] == bytes.fromhex("05080000040302010100000000000000")
    assert aead(KEY).decrypt(bytes(4) + message[8:16], message[16:], message[:16]) == b""
    assert tables.lanes.status(first)["last_tx_ns"] == 7
    tables.close()
