/* HMAC (RFC 2104) by OpenSSL's libcrypto: with BLAKE2s for the Noise handshake, with SHA-256 for
 * the keys of lanes. Key and data are secrets: libcrypto wipes its contexts when they are freed,
 * which is before this returns.
 */
#ifndef FASTPUMP_HMAC_H
#define FASTPUMP_HMAC_H

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <stdint.h>

enum { HMAC_LEN = 32 };

/* HMAC_LEN bytes for `data` and, behind it, `more`; 0, or -1 when the library fails. */
static int hmac_compute(const char *digest, const uint8_t *key, size_t key_len,
                        const uint8_t *data, size_t len, const uint8_t *more, size_t more_len,
                        uint8_t *out)
{
    OSSL_PARAM params[2] = {
        OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char *)digest, 0),
        OSSL_PARAM_construct_end()};
    static EVP_MAC *algorithm; /* found once, by one thread: the supervisor's */
    if (algorithm == NULL)
        algorithm = EVP_MAC_fetch(NULL, "HMAC", NULL);
    EVP_MAC_CTX *context = algorithm != NULL ? EVP_MAC_CTX_new(algorithm) : NULL;
    size_t written = 0;
    int is_done = context != NULL && EVP_MAC_init(context, key, key_len, params) == 1 &&
                  (len == 0 || EVP_MAC_update(context, data, len) == 1) &&
                  (more_len == 0 || EVP_MAC_update(context, more, more_len) == 1) &&
                  EVP_MAC_final(context, out, &written, HMAC_LEN) == 1 && written == HMAC_LEN;
    EVP_MAC_CTX_free(context);
    return is_done ? 0 : -1;
}
#endif
