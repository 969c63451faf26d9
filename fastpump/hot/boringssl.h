/* BoringSSL, loaded at run time; or AWS-LC, which has the same EVP_AEAD interface.
 *
 * Its functions have the names of OpenSSL's, which this module is linked with. So it is loaded with
 * a scope of its own, in which it finds itself first (RTLD_LOCAL, RTLD_DEEPBIND), and is only ever
 * called by pointers. It is no build dependency: the few declarations are those of
 * include/openssl/aead.h of BoringSSL.
 *
 * A context has pointers into the library, which is at another address in each process. So keys in
 * shared memory are the raw ones, and the context is made anew for each message: 20 ns for
 * ChaCha20-Poly1305, 100 for AES-256-GCM.
 *
 * Neither has a stable binary interface: what is loaded is believed only if it gives the bytes that
 * OpenSSL gives, and keeps within BORINGSSL_CONTEXT_LEN.
 */
#ifndef FASTPUMP_BORINGSSL_H
#define FASTPUMP_BORINGSSL_H

#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { BORINGSSL_CONTEXT_LEN = 1024, BORINGSSL_GUARD_LEN = 1024 };

typedef struct {
    _Alignas(64) uint8_t context[BORINGSSL_CONTEXT_LEN + BORINGSSL_GUARD_LEN];
} BoringContext;

/* The library, of which there is one in a process; it is never unloaded. */
static struct {
    void *handle;
    const void *ciphers[2];
    int (*init)(void *context, const void *cipher, const uint8_t *key, size_t key_len,
                size_t tag_len, void *engine);
    int (*seal)(const void *context, uint8_t *dst, size_t *written, size_t room,
                const uint8_t *nonce, size_t nonce_len, const uint8_t *src, size_t len,
                const uint8_t *aad, size_t aad_len);
    int (*open)(const void *context, uint8_t *dst, size_t *written, size_t room,
                const uint8_t *nonce, size_t nonce_len, const uint8_t *src, size_t len,
                const uint8_t *aad, size_t aad_len);
} boringssl;

static inline int boringssl_seal(BoringContext *self, int cipher, const uint8_t *key,
                                 const uint8_t *nonce, const uint8_t *aad, size_t aad_len,
                                 const uint8_t *src, uint8_t *dst, size_t len)
{
    size_t written;
    if (!boringssl.init(self->context, boringssl.ciphers[cipher], key, 32, 16, NULL))
        return -1;
    return boringssl.seal(self->context, dst, &written, len + 16, nonce, 12, src, len, aad,
                          aad_len) ? 0 : -1;
}

static inline int boringssl_open(BoringContext *self, int cipher, const uint8_t *key,
                                 const uint8_t *nonce, const uint8_t *aad, size_t aad_len,
                                 const uint8_t *src, uint8_t *dst, size_t len)
{
    size_t written;
    if (!boringssl.init(self->context, boringssl.ciphers[cipher], key, 32, 16, NULL))
        return -1;
    return boringssl.open(self->context, dst, &written, len, nonce, 12, src, len + 16, aad,
                          aad_len) ? 0 : -1;
}

/* NULL, or why it cannot be loaded. */
static const char *boringssl_load(const char *path)
{
    static const char *const makers[2] = {"EVP_aead_chacha20_poly1305", "EVP_aead_aes_256_gcm"};
    int flags = RTLD_NOW | RTLD_LOCAL;
#ifndef __SANITIZE_ADDRESS__    /* which cannot have it */
    flags |= RTLD_DEEPBIND;
#endif
    if (boringssl.handle != NULL)
        return NULL;
    void *handle = dlopen(path, flags);
    if (handle == NULL)
        return dlerror();
    for (int cipher = 0; cipher < 2; cipher++) {
        const void *(*make)(void);
        *(void **)&make = dlsym(handle, makers[cipher]);
        boringssl.ciphers[cipher] = make == NULL ? NULL : make();
    }
    *(void **)&boringssl.init = dlsym(handle, "EVP_AEAD_CTX_init");
    *(void **)&boringssl.seal = dlsym(handle, "EVP_AEAD_CTX_seal");
    *(void **)&boringssl.open = dlsym(handle, "EVP_AEAD_CTX_open");
    if (boringssl.ciphers[0] == NULL || boringssl.ciphers[1] == NULL || boringssl.init == NULL ||
        boringssl.seal == NULL || boringssl.open == NULL) {
        dlclose(handle);
        return "it is neither BoringSSL nor AWS-LC: it lacks EVP_AEAD functions";
    }
    boringssl.handle = handle;
    return NULL;
}

/* Whether it seals `src` as `expected` says (len and 16 bytes), opens that, refuses what was changed,
 * and keeps within its context. The refusal also makes the library allocate what it notes errors
 * in: a worker may not do that later. */
static int boringssl_is_right(BoringContext *self, int cipher, const uint8_t *key,
                              const uint8_t *nonce, const uint8_t *src, const uint8_t *expected,
                              size_t len)
{
    uint8_t sealed[256], opened[256];
    if (len > sizeof sealed - 16)
        return 0;
    memset(self->context, 0xA5, sizeof self->context);
    if (boringssl_seal(self, cipher, key, nonce, key, 7, src, sealed, len) != 0 ||
        memcmp(sealed, expected, len + 16) != 0 ||
        boringssl_open(self, cipher, key, nonce, key, 7, sealed, opened, len) != 0 ||
        memcmp(opened, src, len) != 0)
        return 0;
    sealed[len] ^= 1;
    if (boringssl_open(self, cipher, key, nonce, key, 7, sealed, opened, len) == 0)
        return 0;
    for (int place = BORINGSSL_CONTEXT_LEN; place < (int)sizeof self->context; place++)
        if (self->context[place] != 0xA5)
            return 0;
    return 1;
}
#endif
