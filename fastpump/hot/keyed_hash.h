/* Keyed BLAKE2s with 16 bytes of output (RFC 7693): mac1, mac2 and cookies of WireGuard's
 * handshake, by OpenSSL's libcrypto. ("MAC" alone is an Ethernet address in these sources.)
 */
#ifndef FASTPUMP_KEYED_HASH_H
#define FASTPUMP_KEYED_HASH_H

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    EVP_MAC *algorithm;
    EVP_MAC_CTX *context;
} KeyedHash;

static void keyed_hash_free(KeyedHash *self)
{
    EVP_MAC_CTX_free(self->context);
    EVP_MAC_free(self->algorithm);
    memset(self, 0, sizeof *self);
}

/* 0, or -1 when the library has no BLAKE2s. */
static int keyed_hash_init(KeyedHash *self)
{
    self->algorithm = EVP_MAC_fetch(NULL, "BLAKE2SMAC", NULL);
    self->context = self->algorithm != NULL ? EVP_MAC_CTX_new(self->algorithm) : NULL;
    if (self->context != NULL)
        return 0;
    keyed_hash_free(self);
    return -1;
}

/* The hash of `data` under a key of up to 32 bytes; 0, or -1 when the library fails. */
static inline int keyed_hash_compute(KeyedHash *self, const uint8_t *key, size_t key_len,
                                     const uint8_t *data, size_t len, uint8_t *out)
{
    size_t size = 16, written;
    OSSL_PARAM params[2] = {OSSL_PARAM_construct_size_t(OSSL_MAC_PARAM_SIZE, &size),
                            OSSL_PARAM_construct_end()};
    if (EVP_MAC_init(self->context, key, key_len, params) != 1 ||
        EVP_MAC_update(self->context, data, len) != 1 ||
        EVP_MAC_final(self->context, out, &written, 16) != 1)
        return -1;
    return 0;
}

/* Whether `hash` is that of `data`; in constant time. */
static inline int keyed_hash_is_valid(KeyedHash *self, const uint8_t *key, size_t key_len,
                                      const uint8_t *data, size_t len, const uint8_t *hash)
{
    uint8_t expected[16];
    return keyed_hash_compute(self, key, key_len, data, len, expected) == 0 &&
           CRYPTO_memcmp(expected, hash, 16) == 0;
}
#endif
