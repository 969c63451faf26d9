/* XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03), out of the primitives that libcrypto has.
 *
 * HChaCha20 is ChaCha20's block function without the addition of its input at the end. So the
 * subkey is a block of the library's key stream, less that input: words 0..3 (constants) and
 * 12..15 (the nonce). Subkey and the last 8 bytes of the nonce then are an ordinary
 * ChaCha20-Poly1305.
 */
#ifndef FASTPUMP_XCHACHA_H
#define FASTPUMP_XCHACHA_H

#include "aead.h"
#include "unaligned.h"

typedef struct {
    Aead aead;
    EVP_CIPHER_CTX *block;
} XChaCha;

static void xchacha_free(XChaCha *self)
{
    EVP_CIPHER_CTX_free(self->block);
    self->block = NULL;
    aead_free(&self->aead);
}

/* 0, or -1 when the library refuses. */
static int xchacha_init(XChaCha *self)
{
    self->block = EVP_CIPHER_CTX_new();
    if (aead_init(&self->aead, AEAD_OPENSSL, AEAD_OPENSSL, NULL) == NULL && self->block != NULL)
        return 0;
    xchacha_free(self);
    return -1;
}

/* The subkey (32 bytes) of a key (32) and a nonce (the first 16 count); 0 or -1. */
static inline int xchacha_subkey(XChaCha *self, const uint8_t *key, const uint8_t *nonce,
                                 uint8_t *subkey)
{
    static const uint8_t zeros[64], constants[] = "expand 32-byte k";
    uint8_t block[64];
    int written;
    if (EVP_EncryptInit_ex(self->block, EVP_chacha20(), NULL, key, nonce) != 1 ||
        EVP_EncryptUpdate(self->block, block, &written, zeros, 64) != 1)
        return -1;
    for (int at = 0; at < 16; at += 4) {
        store_le32(subkey + at, load_le32(block + at) - load_le32(constants + at));
        store_le32(subkey + 16 + at, load_le32(block + 48 + at) - load_le32(nonce + at));
    }
    OPENSSL_cleanse(block, sizeof block);
    return 0;
}

/* As aead_seal() and aead_open(), with a nonce of 24 bytes; 0 or -1. */
static inline int xchacha_run(XChaCha *self, int is_seal, const uint8_t *key,
                              const uint8_t *nonce, const uint8_t *aad, size_t aad_len,
                              const uint8_t *src, uint8_t *dst, size_t len)
{
    uint8_t subkey[32], short_nonce[12] = {0};
    int result = -1;
    memcpy(short_nonce + 4, nonce + 16, 8);
    if (xchacha_subkey(self, key, nonce, subkey) == 0)
        result = is_seal ? aead_seal(&self->aead, AEAD_CHACHA20_POLY1305, subkey, short_nonce,
                                     aad, aad_len, src, dst, len)
                         : aead_open(&self->aead, AEAD_CHACHA20_POLY1305, subkey, short_nonce,
                                     aad, aad_len, src, dst, len);
    OPENSSL_cleanse(subkey, sizeof subkey);
    return result;
}
#endif
