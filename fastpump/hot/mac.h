/* Keyed BLAKE2s with 16 bytes of output (RFC 7693), the macs of WireGuard's handshake
 * messages, by OpenSSL's libcrypto.
 */
#ifndef FASTPUMP_MAC_H
#define FASTPUMP_MAC_H

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    EVP_MAC *algorithm;
    EVP_MAC_CTX *context;
} Mac;

static void mac_free(Mac *self)
{
    EVP_MAC_CTX_free(self->context);
    EVP_MAC_free(self->algorithm);
    memset(self, 0, sizeof *self);
}

/* 0, or -1 when the library has no BLAKE2s. */
static int mac_init(Mac *self)
{
    self->algorithm = EVP_MAC_fetch(NULL, "BLAKE2SMAC", NULL);
    self->context = self->algorithm != NULL ? EVP_MAC_CTX_new(self->algorithm) : NULL;
    if (self->context != NULL)
        return 0;
    mac_free(self);
    return -1;
}

/* The mac of `data` under a key of up to 32 bytes; 0, or -1 when the library fails. */
static inline int mac_compute(Mac *self, const uint8_t *key, size_t key_len, const uint8_t *data,
                              size_t len, uint8_t *out)
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

/* Whether `mac` is that of `data`; in constant time. */
static inline int mac_is_valid(Mac *self, const uint8_t *key, size_t key_len, const uint8_t *data,
                               size_t len, const uint8_t *mac)
{
    uint8_t expected[16];
    return mac_compute(self, key, key_len, data, len, expected) == 0 &&
           CRYPTO_memcmp(expected, mac, 16) == 0;
}
#endif
