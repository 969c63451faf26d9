# AEAD: see aead.h, which is the only place that knows the libraries.

from libc.stdint cimport int64_t, uint64_t, uint8_t
from libc.string cimport memset

from fastpump.hot.bytes cimport store_le64


cdef extern from "aead.h" nogil:
    enum:
        AEAD_OPENSSL
        AEAD_IPSEC_MB
        AEAD_BORINGSSL
        AEAD_CHACHA20_POLY1305
        AEAD_AES_256_GCM
        AEAD_RAW_KEY_LEN
        AEAD_KEY_LEN
    ctypedef struct Aead:
        int backends[2]
    int aead_has_ipsec_mb()
    int aead_is_null()
    const char *aead_init(Aead *self, int chacha_backend, int gcm_backend,
                          const char *boringssl_path)
    void aead_free(Aead *self)
    void aead_key_set(Aead *self, int cipher, const uint8_t *raw, uint8_t *key)
    int aead_seal(Aead *self, int cipher, const uint8_t *key, const uint8_t *nonce,
                  const uint8_t *aad, size_t aad_len, const uint8_t *src, uint8_t *dst,
                  size_t length)
    int aead_forget(Aead *self)
    int aead_open(Aead *self, int cipher, const uint8_t *key, const uint8_t *nonce,
                  const uint8_t *aad, size_t aad_len, const uint8_t *src, uint8_t *dst,
                  size_t length)
    int64_t aead_time_ns(Aead *self, int cipher, size_t length)


cdef inline void nonce_set(uint8_t *nonce, uint64_t counter) noexcept nogil:
    """Four zero bytes, then the counter in little-endian (WireGuard paper, 5.4.6)."""
    memset(nonce, 0, 4)
    store_le64(nonce + 4, counter)
