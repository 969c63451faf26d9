"""All AEAD libraries give the published bytes, and each other's."""

import ctypes.util
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
from support.libraries import boringssl, ipsec_mb, without_ipsec_mb

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


@pytest.mark.skipif("ipsec-mb" not in _core.BACKENDS, reason="it is not in this build")
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
    """Intel's on x86-64, where the header is a package away (make installs it)."""
    default = "openssl,boringssl" + ",ipsec-mb" * (platform.machine() == "x86_64")
    expected = os.environ.get("FASTPUMP_EXPECT_BACKENDS", default)
    assert ",".join(_core.BACKENDS) == expected


def test_environment_chooses_the_backend(monkeypatch):
    for name in _core.BACKENDS:
        monkeypatch.setenv("FASTPUMP_AEAD", name)
        assert _core.choose_backends() == dict.fromkeys(CIPHERS, name)
    monkeypatch.setenv("FASTPUMP_AEAD", "rot13")
    with pytest.raises(ValueError, match=r"rot13.*openssl"):
        _core.choose_backends()


def python(program, **environment):
    """What a process of its own prints: libraries are loaded once."""
    result = subprocess.run([sys.executable, "-c", f"from fastpump import _core\n{program}"],
                            capture_output=True, text=True, check=False,
                            env={**os.environ, "FASTPUMP_AEAD": "", **environment})
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_all_libraries_are_measured():
    times = _core.cipher_times()
    assert list(times) == list(CIPHERS)
    for each in times.values():
        assert list(each) == list(reversed(_core.BACKENDS))
        assert all(0 < short < 10**9 > long > 0 for short, long in each.values())


def test_the_choice_is_measured_once():
    choices = python("print(_core.choose_backends() is not _core.choose_backends())\n"
                     "print(*_core.choose_backends().items(), sep='\\n')\n"
                     "print(_core.SharedTables.create(1).aead_backends == _core.choose_backends())")
    same, *chosen, taken = choices.splitlines()
    assert same == taken == "True" and len(chosen) == len(CIPHERS)
    for cipher, line in zip(CIPHERS, chosen, strict=True):
        assert line in {f"({cipher!r}, {name!r})" for name in _core.BACKENDS}


@pytest.mark.skipif("ipsec-mb" not in _core.BACKENDS, reason="it is not in this build")
def test_others_take_over_where_a_library_cannot_be_loaded(tmp_path):
    """An empty file of its name stands in for a machine without it."""
    hidden = without_ipsec_mb(tmp_path)
    problem, chosen = python("print(_core.backend_problem('ipsec-mb'))\n"
                             "print(_core.choose_backends())", **hidden).splitlines()
    assert problem.startswith(f"{tmp_path}/libIPSec_MB.so") and "ipsec-mb" not in chosen
    nothing = hidden | {"FASTPUMP_BORINGSSL": str(tmp_path / "none")}
    assert python("print(set(_core.choose_backends().values()))", **nothing) == "{'openssl'}\n"
    refused = python("try: _core.choose_backends()\nexcept OSError as error: print(error)",
                     **hidden | {"FASTPUMP_AEAD": "ipsec-mb"})
    assert refused.startswith(f"{tmp_path}/libIPSec_MB.so")


# Gives what the library gives, but for ...
NEARLY = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef int (*Run)(const void *, uint8_t *, size_t *, size_t, const uint8_t *, size_t,
                   const uint8_t *, size_t, const uint8_t *, size_t);

static void *real(const char *name)
{
    return dlsym(dlopen("%(library)s", RTLD_NOW | RTLD_LOCAL), name);
}

const void *EVP_aead_chacha20_poly1305(void)
{
    return ((const void *(*)(void))real("EVP_aead_chacha20_poly1305"))();
}

const void *EVP_aead_aes_256_gcm(void)
{
    return ((const void *(*)(void))real("EVP_aead_aes_256_gcm"))();
}

int EVP_AEAD_CTX_init(uint8_t *context, const void *aead, const uint8_t *key, size_t key_len,
                      size_t tag_len, void *engine)
{
    %(init)s
    return ((int (*)(void *, const void *, const uint8_t *, size_t, size_t, void *))real(
        "EVP_AEAD_CTX_init"))(context, aead, key, key_len, tag_len, engine);
}

int EVP_AEAD_CTX_seal(const void *context, uint8_t *out, size_t *written, size_t room,
                      const uint8_t *nonce, size_t nonce_len, const uint8_t *in, size_t len,
                      const uint8_t *aad, size_t aad_len)
{
    int result = ((Run)real("EVP_AEAD_CTX_seal"))(context, out, written, room, nonce, nonce_len,
                                                  in, len, aad, aad_len);
    %(sealed)s
    return result;
}

int EVP_AEAD_CTX_open(const void *context, uint8_t *out, size_t *written, size_t room,
                      const uint8_t *nonce, size_t nonce_len, const uint8_t *in, size_t len,
                      const uint8_t *aad, size_t aad_len)
{
    int result = ((Run)real("EVP_AEAD_CTX_open"))(context, out, written, room, nonce, nonce_len,
                                                  in, len, aad, aad_len);
    %(opened)s
    return result;
}
"""
RIGHT = {"init": "", "sealed": "", "opened": ""}


@pytest.mark.parametrize(("wrong", "said"), [
    ({}, "None"),
    ({"sealed": "out[3] ^= 1;"}, "it gives other bytes than OpenSSL"),
    ({"opened": "if (result) out[len - 17] ^= 1;"}, "it gives other bytes than OpenSSL"),
    ({"opened": "result = 1;"}, "it gives other bytes than OpenSSL"),
    ({"init": "memset(context + 1000, 0, 50);"}, "or its contexts are too large"),
    ({"init": "return 0;"}, "it gives other bytes than OpenSSL")])
def test_a_library_is_believed_that_does_what_openssl_does(tmp_path, wrong, said):
    """BoringSSL has no stable interface."""
    library = tmp_path / "libcrypto.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, "-x", "c", "-"], check=True, text=True,
                   input=NEARLY % {"library": boringssl(), **RIGHT, **wrong})
    assert said in python("print(_core.backend_problem('boringssl'))",
                          FASTPUMP_BORINGSSL=str(library))


def test_openssl_is_not_boringssl(tmp_path):
    """The names that it has are the same."""
    library = ctypes.util.find_library("crypto")
    assert "it is neither BoringSSL nor AWS-LC" in python(
        "print(_core.backend_problem('boringssl'))", FASTPUMP_BORINGSSL=library)
    assert "No such file" in python("print(_core.backend_problem('boringssl'))",
                                    FASTPUMP_BORINGSSL=str(tmp_path / "none"))


def test_workers_use_the_backend_of_the_tables(monkeypatch):
    """Keys in the tables are expanded for one library: a worker that starts later, where another
    would be chosen, must not choose it."""
    tables = _core.SharedTables.create(1, 16, 1024, backend="openssl")
    assert set(tables.aead_backends.values()) == {"openssl"}
    monkeypatch.setenv("FASTPUMP_AEAD", "rot13")
    attached = _core.AttachedTables.attach(tables.readonly_fd, tables.state_fd)
    assert attached.aead_backends == tables.aead_backends
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
