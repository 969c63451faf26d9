"""Both AEAD libraries give the published bytes, and each other's."""

import json
import os
import platform
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpump import _core
from support.libraries import ipsec_mb, without_ipsec_mb

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


# Intel's library has no switch for what it takes of the processor, so this one stands in its place.
CHOOSE = """
#include <dlfcn.h>
#include <intel-ipsec-mb.h>
#include <unistd.h>

static void *real(const char *name)
{
    return dlsym(dlopen("%(library)s", RTLD_NOW), name);
}

IMB_MGR *alloc_mb_mgr(uint64_t flags)
{
    return ((IMB_MGR *(*)(uint64_t))real("alloc_mb_mgr"))(flags);
}

void free_mb_mgr(IMB_MGR *manager)
{
    ((void (*)(IMB_MGR *))real("free_mb_mgr"))(manager);
}

int imb_get_errno(IMB_MGR *manager)
{
    return ((int (*)(IMB_MGR *))real("imb_get_errno"))(manager);
}

void init_mb_mgr_auto(IMB_MGR *manager, IMB_ARCH *arch)
{
    (void)arch;
    ((void (*)(IMB_MGR *))real("init_mb_mgr_%(instructions)s"))(manager);
    if (write(1, "%(instructions)s\\n", sizeof "%(instructions)s") < 0)
        return;
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
    library, name = ipsec_mb()
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / name, "-x", "c", "-"],
                   input=CHOOSE % {"library": library, "instructions": instructions}, text=True,
                   check=True)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-n", "0", __file__,
         "-k", "published or changed_bit or agree"], text=True, capture_output=True, check=False,
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "OPENSSL_ia32cap": openssl_mask})
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{instructions}\n" in result.stdout


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


@pytest.mark.skipif("ipsec-mb" not in _core.BACKENDS, reason="only one library in this build")
def test_openssl_takes_over_where_the_other_library_cannot_be_loaded(tmp_path):
    """An empty file of its name stands in for a machine without it."""
    hidden = without_ipsec_mb(tmp_path)

    def python(program, **environment):
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                              check=False, env={**os.environ, **environment, **hidden})

    result = python("from fastpump import _core; print(_core.BACKENDS, _core.default_backend(), "
                    "_core.SharedTables.create(1).aead_backend, _core.backend_problem('ipsec-mb'))")
    assert result.stdout.startswith("('openssl', 'ipsec-mb') openssl openssl "
                                    f"{tmp_path}/libIPSec_MB.so"), result.stderr
    result = python("from fastpump import _core\ntry: _core.default_backend()\n"
                    "except OSError as error: print(error)", FASTPUMP_AEAD="ipsec-mb")
    assert result.stdout.startswith(f"{tmp_path}/libIPSec_MB.so"), result.stderr


def test_workers_use_the_backend_of_the_tables(monkeypatch):
    """Keys in the tables are expanded for one library: a worker that starts later, where another
    would be chosen, must not choose it."""
    tables = _core.SharedTables.create(1, 16, 1024, backend="openssl")
    assert tables.aead_backend == "openssl"
    monkeypatch.setenv("FASTPUMP_AEAD", "rot13")
    attached = _core.AttachedTables.attach(tables.readonly_fd, tables.state_fd)
    assert attached.aead_backend == "openssl"
    ends = [*socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]
    doorbell, event = os.eventfd(0), os.eventfd(0)
    try:
        _core.Pump(tables, 0, [ends[0].fileno()], ends[2].fileno(), doorbell, event)
    finally:
        for each in ends:
            each.close()
        os.close(doorbell)
        os.close(event)
        tables.close()
