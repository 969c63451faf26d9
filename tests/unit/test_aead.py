"""Both AEAD libraries give the published bytes, and each other's."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpump import _core

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "aead.json").read_text())
CIPHERS = ("chacha20-poly1305", "aes-256-gcm")


@pytest.mark.parametrize("backend", _core.BACKENDS)
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["source"])
def test_published_vectors(backend, vector):
    text = {name: bytes.fromhex(vector[name])
            for name in ("key", "nonce", "aad", "plaintext", "ciphertext", "tag")}
    sealed = _core.aead(backend, vector["cipher"], text["key"], text["nonce"], text["aad"],
                        text["plaintext"], seal=True)
    assert sealed == text["ciphertext"] + text["tag"]
    opened = _core.aead(backend, vector["cipher"], text["key"], text["nonce"], text["aad"],
                        sealed, seal=False)
    assert opened == text["plaintext"]


@pytest.mark.parametrize("backend", _core.BACKENDS)
@pytest.mark.parametrize("cipher", CIPHERS)
@given(data=st.data())
def test_one_changed_bit_is_refused(backend, cipher, data):
    plaintext = data.draw(st.binary(max_size=300))
    sealed = bytearray(_core.aead(backend, cipher, bytes(32), bytes(12), b"", plaintext, seal=True))
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    assert _core.aead(backend, cipher, bytes(32), bytes(12), b"", bytes(sealed), seal=False) is None


@pytest.mark.parametrize("cipher", CIPHERS)
@given(key=st.binary(min_size=32, max_size=32), nonce=st.binary(min_size=12, max_size=12),
       aad=st.binary(max_size=32), plaintext=st.binary(max_size=3000))
def test_backends_agree(cipher, key, nonce, aad, plaintext):
    sealed = {_core.aead(backend, cipher, key, nonce, aad, plaintext, seal=True)
              for backend in _core.BACKENDS}
    assert len(sealed) == 1


# Intel's library has no switch for what it takes of the processor, so this one stands before it.
CHOOSE = """
#include <intel-ipsec-mb.h>
void init_mb_mgr_auto(IMB_MGR *state, IMB_ARCH *arch)
{
    (void)arch;
    init_mb_mgr_%s(state);
}
"""


@pytest.mark.skipif("ipsec-mb" not in _core.BACKENDS, reason="only one library in this build")
@pytest.mark.parametrize(("instructions", "flag", "openssl_mask"), [
    ("avx2", "avx2", ":~0x600d0230000"),                        # without AVX-512 and VAES
    ("sse", "sse4_2", "~0x1000000000000000:~0x600d0230020"),    # and without AVX
])
def test_processors_that_can_do_less_give_the_same(tmp_path, instructions, flag, openssl_mask):
    """OPENSSL_ia32cap(3)."""
    if not re.search(rf"^flags.* {flag} ", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
        pytest.skip(f"this processor has no {flag}")
    library = tmp_path / "choose.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, "-x", "c", "-", "-lIPSec_MB"],
                   input=CHOOSE % instructions, text=True, check=True)
    preload = f"{os.environ.get('LD_PRELOAD', '')} {library}"       # a sanitizer comes first
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", __file__,
         "-k", "published or changed_bit or agree"], text=True, capture_output=True, check=False,
        env={**os.environ, "LD_PRELOAD": preload, "OPENSSL_ia32cap": openssl_mask})
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_build_has_the_backends_it_should():
    """Both on x86-64, where the header is a package away (make installs it)."""
    default = "openssl,ipsec-mb" if platform.machine() == "x86_64" else "openssl"
    expected = os.environ.get("FASTPUMP_EXPECT_BACKENDS", default)
    assert ",".join(_core.BACKENDS) == expected


def test_environment_chooses_the_backend(monkeypatch):
    monkeypatch.delenv("FASTPUMP_AEAD", raising=False)
    assert _core.default_backend() == _core.BACKENDS[-1]
    monkeypatch.setenv("FASTPUMP_AEAD", "openssl")
    assert _core.default_backend() == "openssl"
    monkeypatch.setenv("FASTPUMP_AEAD", "rot13")
    with pytest.raises(ValueError, match=r"rot13.*openssl"):
        _core.default_backend()
