/* AEAD by three libraries behind one pair of calls. No cipher is implemented here.
 *
 *   ipsec-mb   intel-ipsec-mb: the job interface for ChaCha20-Poly1305 (one
 *              submit call runs the whole message; the init/update/finalize
 *              calls are 150 ns slower each), the direct calls for AES-256-GCM.
 *   openssl    libcrypto's EVP, one context per direction and cipher, keyed per
 *              message (cheap for ChaCha20, an expansion for AES).
 * *   boringssl  BoringSSL or AWS-LC (boringssl.h), keyed per message.
 *
 * Each cipher has a library of its own: on processors without AVX-512 one is best at the one, and
 * another at the other. `aead_time_ns` measures that.
 *
 * A key is what `aead_key_set` makes of 32 bytes: ipsec-mb's AES-256-GCM wants it
 * expanded, which takes longer than sealing a packet. For everything else it is the
 * 32 bytes themselves. Expanded keys can be shared between processes of one machine.
 *
 * intel-ipsec-mb is loaded when it is first wanted, for a build that has it must also run
 * where the library is not installed. All but four of its functions are pointers in its
 * manager; the four are looked up.
 *
 * FASTPUMP_NULL_CIPHER (setup.py) makes a build that seals nothing, to measure what the
 * ciphers cost. A tunnel warns, and refuses to run it unless allowed to (tunnel/run.py).
 *
 * Tags: intel-ipsec-mb only computes them, so opening compares in constant time
 * here. The plaintext of a message whose tag fails has been written all the same:
 * the caller drops it. Source and destination may be the same, or not overlap.
 */
#ifndef FASTPUMP_AEAD_H
#define FASTPUMP_AEAD_H

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "boringssl.h"
#ifdef FASTPUMP_IPSEC_MB
#include <intel-ipsec-mb.h>
#include <stdio.h>
#endif

enum { AEAD_OPENSSL = 0, AEAD_IPSEC_MB = 1, AEAD_BORINGSSL = 2 };
enum { AEAD_CHACHA20_POLY1305 = 0, AEAD_AES_256_GCM = 1 };
/* An expanded key has 1008 bytes in version 1 of intel-ipsec-mb, and 1280 in version 2. */
enum { AEAD_RAW_KEY_LEN = 32, AEAD_KEY_LEN = 1280 };

typedef struct {
    int backends[2]; /* by cipher */
#ifdef FASTPUMP_IPSEC_MB
    IMB_MGR *manager;
#endif
    EVP_CIPHER_CTX *seal[2]; /* by cipher */
    EVP_CIPHER_CTX *open[2];
    BoringContext *boring;
} Aead;

static inline int aead_has_ipsec_mb(void)
{
#ifdef FASTPUMP_IPSEC_MB
    return 1;
#else
    return 0;
#endif
}

static inline int aead_is_null(void)
{
#ifdef FASTPUMP_NULL_CIPHER
    return 1;
#else
    return 0;
#endif
}

#ifdef FASTPUMP_IPSEC_MB
/* The library, of which there is one in a process; it is never unloaded. */
static struct {
    void *handle;
    IMB_MGR *(*alloc)(uint64_t flags);
    void (*free)(IMB_MGR *manager);
    void (*init)(IMB_MGR *manager, IMB_ARCH *arch);
    int (*get_errno)(IMB_MGR *manager);
} ipsec_mb;

/* NULL, or why it cannot be loaded. Its version is that of the header: the first number of a
 * version is that of the binary interface. */
static const char *ipsec_mb_load(void)
{
    char name[32];
    if (ipsec_mb.handle != NULL)
        return NULL;
    snprintf(name, sizeof name, "libIPSec_MB.so.%d", IMB_VERSION_NUM >> 16);
    void *handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL)
        return dlerror();
    *(void **)&ipsec_mb.alloc = dlsym(handle, "alloc_mb_mgr");
    *(void **)&ipsec_mb.free = dlsym(handle, "free_mb_mgr");
    *(void **)&ipsec_mb.init = dlsym(handle, "init_mb_mgr_auto");
    *(void **)&ipsec_mb.get_errno = dlsym(handle, "imb_get_errno");
    if (ipsec_mb.alloc == NULL || ipsec_mb.free == NULL || ipsec_mb.init == NULL ||
        ipsec_mb.get_errno == NULL) {
        dlclose(handle);
        return "libIPSec_MB lacks functions that its header has";
    }
    ipsec_mb.handle = handle;
    return NULL;
}

static const char *ipsec_mb_init(IMB_MGR **manager)
{
    const char *problem = ipsec_mb_load();
    if (problem != NULL)
        return problem;
    *manager = ipsec_mb.alloc(0);
    if (*manager == NULL)
        return "libIPSec_MB: no memory";
    ipsec_mb.init(*manager, NULL);
    if (ipsec_mb.get_errno(*manager) != 0) {
        ipsec_mb.free(*manager);
        *manager = NULL;
        return "libIPSec_MB does not run on this processor";
    }
    return NULL;
}
#endif

static void aead_free(Aead *self)
{
    for (int cipher = 0; cipher < 2; cipher++) {
        EVP_CIPHER_CTX_free(self->seal[cipher]);
        EVP_CIPHER_CTX_free(self->open[cipher]);
    }
#ifdef FASTPUMP_IPSEC_MB
    if (self->manager != NULL)
        ipsec_mb.free(self->manager);
#endif
    if (self->boring != NULL) {
        OPENSSL_cleanse(self->boring, sizeof *self->boring);
        free(self->boring);
    }
    memset(self, 0, sizeof *self);
}

static const char *aead_init_openssl(Aead *self)
{
    const EVP_CIPHER *ciphers[2] = {EVP_chacha20_poly1305(), EVP_aes_256_gcm()};
    for (int cipher = 0; cipher < 2; cipher++) {
        self->seal[cipher] = EVP_CIPHER_CTX_new();
        self->open[cipher] = EVP_CIPHER_CTX_new();
        if (self->seal[cipher] == NULL || self->open[cipher] == NULL ||
            EVP_EncryptInit_ex(self->seal[cipher], ciphers[cipher], NULL, NULL, NULL) != 1 ||
            EVP_DecryptInit_ex(self->open[cipher], ciphers[cipher], NULL, NULL, NULL) != 1)
            return "OpenSSL does not start: it lacks a cipher, or there is no memory";
    }
    return NULL;
}

static inline int aead_openssl_seal(EVP_CIPHER_CTX *context, const uint8_t *key,
                                    const uint8_t *nonce, const uint8_t *aad, size_t aad_len,
                                    const uint8_t *src, uint8_t *dst, size_t len);

/* Needs OpenSSL's contexts, to compare. `path`: of the library. */
static const char *aead_init_boringssl(Aead *self, const char *path)
{
    static const uint8_t text[100] = "BoringSSL has no stable binary interface";
    uint8_t expected[sizeof text + 16];
    const char *problem = path == NULL ? "it is not installed" : boringssl_load(path);
    if (problem != NULL)
        return problem;
    self->boring = aligned_alloc(64, sizeof *self->boring);
    if (self->boring == NULL)
        return "no memory";
    for (int cipher = 0; cipher < 2; cipher++)
        if (aead_openssl_seal(self->seal[cipher], text, text + 40, text, 7, text, expected,
                              sizeof text) != 0 ||
            !boringssl_is_right(self->boring, cipher, text, text + 40, text, expected,
                                sizeof text))
            return "it gives other bytes than OpenSSL, or its contexts are too large";
    return NULL;
}

/* NULL, or why a library cannot be used here. `boringssl_path`: NULL if there is none. */
static const char *aead_init(Aead *self, int chacha_backend, int gcm_backend,
                             const char *boringssl_path)
{
    const char *problem = NULL;
    memset(self, 0, sizeof *self);
    self->backends[AEAD_CHACHA20_POLY1305] = chacha_backend;
    self->backends[AEAD_AES_256_GCM] = gcm_backend;
    if (chacha_backend != AEAD_IPSEC_MB || gcm_backend != AEAD_IPSEC_MB)
        problem = aead_init_openssl(self);
    if (problem == NULL && (chacha_backend == AEAD_BORINGSSL || gcm_backend == AEAD_BORINGSSL))
        problem = aead_init_boringssl(self, boringssl_path);
    if (problem == NULL && (chacha_backend == AEAD_IPSEC_MB || gcm_backend == AEAD_IPSEC_MB))
#ifdef FASTPUMP_IPSEC_MB
        problem = ipsec_mb_init(&self->manager);
#else
        problem = "intel-ipsec-mb is not in this build";
#endif
    if (problem != NULL)
        aead_free(self);
    return problem;
}

#ifdef FASTPUMP_IPSEC_MB
/* Run one message; the tag that belongs to the ciphertext goes to `tag`. */
static inline int aead_ipsec_mb(Aead *self, int cipher, int is_seal, const uint8_t *key,
                                const uint8_t *nonce, const uint8_t *aad, size_t aad_len,
                                const uint8_t *src, uint8_t *dst, size_t len, uint8_t *tag)
{
    IMB_MGR *manager = self->manager;
    if (cipher == AEAD_AES_256_GCM) {
        const struct gcm_key_data *expanded = (const struct gcm_key_data *)key;
        struct gcm_context_data context;
        if (is_seal)
            IMB_AES256_GCM_ENC(manager, expanded, &context, dst, src, len, nonce, aad, aad_len,
                               tag, 16);
        else
            IMB_AES256_GCM_DEC(manager, expanded, &context, dst, src, len, nonce, aad, aad_len,
                               tag, 16);
        return 0;
    }
    IMB_JOB *job = IMB_GET_NEXT_JOB(manager);
    job->cipher_mode = IMB_CIPHER_CHACHA20_POLY1305;
    job->hash_alg = IMB_AUTH_CHACHA20_POLY1305;
    job->cipher_direction = is_seal ? IMB_DIR_ENCRYPT : IMB_DIR_DECRYPT;
    job->chain_order = is_seal ? IMB_ORDER_CIPHER_HASH : IMB_ORDER_HASH_CIPHER;
    job->enc_keys = key;
    job->dec_keys = key;
    job->key_len_in_bytes = 32;
    job->iv = nonce;
    job->iv_len_in_bytes = 12;
    job->u.CHACHA20_POLY1305.aad = aad;
    job->u.CHACHA20_POLY1305.aad_len_in_bytes = aad_len;
    job->src = src;
    job->dst = dst;
    job->cipher_start_src_offset_in_bytes = 0;
    job->msg_len_to_cipher_in_bytes = len;
    job->hash_start_src_offset_in_bytes = 0;
    job->msg_len_to_hash_in_bytes = len;
    job->auth_tag_output = tag;
    job->auth_tag_output_len_in_bytes = 16;
    job = IMB_SUBMIT_JOB_NOCHECK(manager);
    return job != NULL && job->status == IMB_STATUS_COMPLETED ? 0 : -1;
}
#endif

static inline int aead_openssl_seal(EVP_CIPHER_CTX *context, const uint8_t *key,
                                    const uint8_t *nonce, const uint8_t *aad, size_t aad_len,
                                    const uint8_t *src, uint8_t *dst, size_t len)
{
    int written;
    if (EVP_EncryptInit_ex(context, NULL, NULL, key, nonce) != 1)
        return -1;
    if (aad_len && EVP_EncryptUpdate(context, NULL, &written, aad, (int)aad_len) != 1)
        return -1;
    if (len && EVP_EncryptUpdate(context, dst, &written, src, (int)len) != 1)
        return -1;
    if (EVP_EncryptFinal_ex(context, dst + len, &written) != 1)
        return -1;
    return EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, 16, dst + len) == 1 ? 0 : -1;
}

static inline int aead_openssl_open(EVP_CIPHER_CTX *context, const uint8_t *key,
                                    const uint8_t *nonce, const uint8_t *aad, size_t aad_len,
                                    const uint8_t *src, uint8_t *dst, size_t len)
{
    int written;
    uint8_t tag[16], unused[16];
    memcpy(tag, src + len, 16);
    if (EVP_DecryptInit_ex(context, NULL, NULL, key, nonce) != 1)
        return -1;
    if (EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, 16, tag) != 1)
        return -1;
    if (aad_len && EVP_DecryptUpdate(context, NULL, &written, aad, (int)aad_len) != 1)
        return -1;
    if (len && EVP_DecryptUpdate(context, dst, &written, src, (int)len) != 1)
        return -1;
    return EVP_DecryptFinal_ex(context, unused, &written) == 1 ? 0 : -1;
}

/* Make `key` (AEAD_KEY_LEN bytes, aligned to 64) of the 32 bytes of `raw`. */
static inline void aead_key_set(Aead *self, int cipher, const uint8_t *raw, uint8_t *key)
{
#ifdef FASTPUMP_IPSEC_MB
    _Static_assert(sizeof(struct gcm_key_data) <= AEAD_KEY_LEN, "the expanded key does not fit");
    if (cipher == AEAD_AES_256_GCM && self->backends[cipher] == AEAD_IPSEC_MB) {
        IMB_AES256_GCM_PRE(self->manager, raw, (struct gcm_key_data *)key);
        return;
    }
#endif
    memcpy(key, raw, AEAD_RAW_KEY_LEN);
}

/* Seal `len` bytes of `src` into `dst`: `len` bytes of ciphertext, 16 of tag.
 * `key` is made by aead_key_set, `nonce` has 12 bytes. 0, or -1 when the library fails. */
static inline int aead_seal(Aead *self, int cipher, const uint8_t *key, const uint8_t *nonce,
                            const uint8_t *aad, size_t aad_len, const uint8_t *src, uint8_t *dst,
                            size_t len)
{
    if (aead_is_null()) {
        memcpy(dst, src, len);
        memset(dst + len, 0, 16);
        return 0;
    }
#ifdef FASTPUMP_IPSEC_MB
    if (self->backends[cipher] == AEAD_IPSEC_MB)
        return aead_ipsec_mb(self, cipher, 1, key, nonce, aad, aad_len, src, dst, len, dst + len);
#endif
    if (self->backends[cipher] == AEAD_BORINGSSL)
        return boringssl_seal(self->boring, cipher, key, nonce, aad, aad_len, src, dst, len);
    return aead_openssl_seal(self->seal[cipher], key, nonce, aad, aad_len, src, dst, len);
}

/* Overwrite what functions that have returned left on the stack. */
static __attribute__((noinline)) void aead_wipe_stack(void)
{
    uint8_t left[16384];
    OPENSSL_cleanse(left, sizeof left);
}

/* Forget the keys of earlier messages: libraries that are keyed per message have the last ones in
 * their contexts, and leave them on the stack. 0, or -1 when the library fails. */
static int aead_forget(Aead *self)
{
    static const uint8_t nothing[AEAD_RAW_KEY_LEN];
    aead_wipe_stack();
    if (self->boring != NULL)
        OPENSSL_cleanse(self->boring, sizeof *self->boring);
    for (int cipher = 0; cipher < 2; cipher++)
        if (self->backends[cipher] == AEAD_OPENSSL &&
            (EVP_EncryptInit_ex(self->seal[cipher], NULL, NULL, nothing, nothing) != 1 ||
             EVP_DecryptInit_ex(self->open[cipher], NULL, NULL, nothing, nothing) != 1))
            return -1;
    return 0;
}

/* Open `len` bytes of ciphertext and the 16 of tag behind them. 0, or -1 when it
 * is not authentic. */
static inline int aead_open(Aead *self, int cipher, const uint8_t *key, const uint8_t *nonce,
                            const uint8_t *aad, size_t aad_len, const uint8_t *src, uint8_t *dst,
                            size_t len)
{
    if (aead_is_null()) {
        memmove(dst, src, len);
        return 0;
    }
#ifdef FASTPUMP_IPSEC_MB
    if (self->backends[cipher] == AEAD_IPSEC_MB) {
        uint8_t tag[16];
        if (aead_ipsec_mb(self, cipher, 0, key, nonce, aad, aad_len, src, dst, len, tag) != 0)
            return -1;
        return CRYPTO_memcmp(tag, src + len, 16) == 0 ? 0 : -1;
    }
#endif
    if (self->backends[cipher] == AEAD_BORINGSSL)
        return boringssl_open(self->boring, cipher, key, nonce, aad, aad_len, src, dst, len);
    return aead_openssl_open(self->open[cipher], key, nonce, aad, aad_len, src, dst, len);
}

/* How long one message of `len` bytes (up to 1500) takes to seal, in ns, or as long as a second if
 * the library fails. The least of several trials is what it can do. */
static int64_t aead_time_ns(Aead *self, int cipher, size_t len)
{
    enum { MESSAGES = 8 };
    _Alignas(64) uint8_t key[AEAD_KEY_LEN];
    uint8_t message[1500 + 16] = {0}, nonce[12] = {0};
    struct timespec begin, end;
    aead_key_set(self, cipher, message, key);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (int count = 0; count < MESSAGES; count++)
        if (aead_seal(self, cipher, key, nonce, NULL, 0, message, message, len) != 0)
            return 1000000000;
    clock_gettime(CLOCK_MONOTONIC, &end);
    return ((end.tv_sec - begin.tv_sec) * 1000000000 + end.tv_nsec - begin.tv_nsec) / MESSAGES;
}
#endif
