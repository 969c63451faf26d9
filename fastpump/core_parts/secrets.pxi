# Secrets of handshakes, which do not stay behind in Python's heap: what keys are made of, and the
# keys until they are in the tables.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

cdef extern from "hmac.h" nogil:
    enum:
        HMAC_LEN
    int hmac_compute(const char *digest, const uint8_t *key, size_t key_len, const uint8_t *data,
                     size_t length, const uint8_t *more, size_t more_len, uint8_t *out)
    void OPENSSL_cleanse(void *memory, size_t length)
    int CRYPTO_memcmp(const void *a, const void *b, size_t length)


def wipe(bytes secret):
    """Overwrite the bytes of a secret that a library made, and that nothing else refers to."""
    OPENSSL_cleanse(PyBytes_AS_STRING(secret), len(secret))


cdef class Secret:
    """32 secret bytes: wiped when nothing refers to them any more. (`bytes` makes a copy that is
    not: for tests.)"""

    cdef uint8_t data[HMAC_LEN]

    def __init__(self, bytes value):
        if len(value) != HMAC_LEN:
            raise ValueError(f"a secret has {HMAC_LEN} bytes, not {len(value)}")
        memcpy(self.data, PyBytes_AS_STRING(value), HMAC_LEN)

    def __dealloc__(self):
        OPENSSL_cleanse(self.data, HMAC_LEN)

    def __bytes__(self):
        return PyBytes_FromStringAndSize(<char *>self.data, HMAC_LEN)

    def __eq__(self, other):
        try:
            return CRYPTO_memcmp(self.data, secret_bytes(other), HMAC_LEN) == 0
        except ValueError:
            return False

    __hash__ = None


cdef const uint8_t *secret_bytes(object key) except NULL:
    """The 32 bytes of a Secret or of bytes, while that lives."""
    if isinstance(key, Secret):
        return (<Secret>key).data
    if not isinstance(key, bytes) or len(key) != HMAC_LEN:
        raise ValueError("a key has 32 bytes")
    return <const uint8_t *>PyBytes_AS_STRING(key)


cdef Secret secret_hmac(const char *digest, const uint8_t *key, size_t key_len,
                        const uint8_t *data, size_t length, const uint8_t *more=NULL,
                        size_t more_len=0):
    cdef Secret result = Secret.__new__(Secret)
    if hmac_compute(digest, key, key_len, data, length, more, more_len, result.data) != 0:
        raise OSError("libcrypto lacks HMAC with BLAKE2s or SHA-256")
    return result


def hkdf_extract(bytes salt, secret, more):
    """HKDF-Extract of RFC 5869 with SHA-256; the key material is two secrets of 32 bytes."""
    return secret_hmac("SHA256", <const uint8_t *>PyBytes_AS_STRING(salt), len(salt),
                       secret_bytes(secret), HMAC_LEN, secret_bytes(more), HMAC_LEN)


def hkdf_expand(Secret extracted, bytes info):
    """The first 32 bytes of HKDF-Expand with SHA-256."""
    return secret_hmac("SHA256", extracted.data, HMAC_LEN,
                       <const uint8_t *>PyBytes_AS_STRING(info), len(info), b"\1", 1)


cdef class ChainingKey:
    """The chaining key of a Noise handshake (WireGuard paper, 5.4: C), with the paper's KDF: HKDF
    with HMAC-BLAKE2s."""

    cdef Secret key

    def __init__(self, bytes initial):
        self.key = Secret(initial)

    def copy(self):
        """A handshake that goes on from here may fail, and be tried again."""
        cdef ChainingKey other = ChainingKey.__new__(ChainingKey)
        other.key = self.key
        return other

    cdef list kdf(self, int count, const uint8_t *data, size_t length):
        """`count` outputs."""
        cdef Secret secret = secret_hmac("BLAKE2S-256", self.key.data, HMAC_LEN, data, length)
        cdef Secret output = None
        cdef uint8_t number
        outputs = []
        for number in range(1, count + 1):
            output = secret_hmac("BLAKE2S-256", secret.data, HMAC_LEN,
                                 NULL if output is None else output.data,
                                 0 if output is None else HMAC_LEN, &number, 1)
            outputs.append(output)
        return outputs

    def mix(self, bytes data):
        """C = KDF1(C, data)"""
        (self.key,) = self.kdf(1, <const uint8_t *>PyBytes_AS_STRING(data), len(data))

    def mix_key(self, bytes data):
        """C, k = KDF2(C, data); k."""
        self.key, key = self.kdf(2, <const uint8_t *>PyBytes_AS_STRING(data), len(data))
        return bytes(key)

    def mix_psk(self, bytes preshared_key):
        """C, t, k = KDF3(C, preshared key); t and k."""
        self.key, tau, key = self.kdf(
            3, <const uint8_t *>PyBytes_AS_STRING(preshared_key), len(preshared_key))
        return bytes(tau), bytes(key)

    def split(self):
        """The transport keys: KDF2(C, "")."""
        return tuple(self.kdf(2, NULL, 0))

    def export(self, bytes label):
        """A secret from which the transport keys do not follow: KDF1(C, label)."""
        (exported,) = self.kdf(1, <const uint8_t *>PyBytes_AS_STRING(label), len(label))
        return exported
