/* A keyed hash of whole frames: the polynomial whose coefficients are the words of the data, at a
 * secret point of the field of 2^61 - 1 elements (Carter and Wegman; Bernstein, "Polynomial
 * evaluation and message authentication"). Of two texts of n words that were chosen without
 * knowledge of the key, the chance of equal hashes is n / 2^61. It is no MAC: hashes stay secret. */
#ifndef FASTPUMP_POLY_HASH_H
#define FASTPUMP_POLY_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define POLY_PRIME ((UINT64_C(1) << 61) - 1)
#define POLY_WORD_LEN 7             /* bytes: every word is below the prime */

/* Append a word below the prime to a hash below it; so is the key. */
static inline uint64_t poly_hash_word(uint64_t hash, uint64_t key, uint64_t word)
{
    unsigned __int128 product = (unsigned __int128)hash * key + word;
    uint64_t folded = ((uint64_t)product & POLY_PRIME) + (uint64_t)(product >> 61);

    return folded >= POLY_PRIME ? folded - POLY_PRIME : folded;
}

/* Append bytes; their number is the caller's to append, if it may differ. */
static inline uint64_t poly_hash_bytes(uint64_t hash, uint64_t key, const uint8_t *data,
                                       size_t length)
{
    while (length) {
        size_t taken = length < POLY_WORD_LEN ? length : POLY_WORD_LEN;
        uint64_t word = 0;

        memcpy(&word, data, taken);
        hash = poly_hash_word(hash, key, word);
        data += taken;
        length -= taken;
    }
    return hash;
}

#endif
