/* The Internet checksum's inner loop (RFC 1071).
 *
 * 32-bit words are added into 64-bit lanes, which cannot overflow below 2^32
 * words, and folded at the end: one's-complement addition does not care about
 * the order or, up to a byte swap of the result, about endianness. Written so
 * that the compiler makes vectors of it; on x86-64 the dynamic linker picks the
 * widest clone that the processor has.
 */
#ifndef FASTPUMP_CHECKSUM_H
#define FASTPUMP_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(FASTPUMP_DEBUG)
#define FASTPUMP_CLONES __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define FASTPUMP_CLONES
#endif

/* Sum of `len` bytes as native-endian 16-bit words, not folded. */
FASTPUMP_CLONES static uint64_t checksum_sum(const uint8_t *p, size_t len)
{
    uint64_t sum = 0;
    size_t words = len / 4;
    for (size_t i = 0; i < words; i++) {
        uint32_t word;
        memcpy(&word, p + 4 * i, 4);
        sum += word;
    }
    p += 4 * words;
    if (len & 2) {
        uint16_t half;
        memcpy(&half, p, 2);
        sum += half;
        p += 2;
    }
    if (len & 1) {
        uint16_t last = 0;
        memcpy(&last, p, 1); /* the odd byte is the first of its word: RFC 1071, 4.1 */
        sum += last;
    }
    return sum;
}
#endif
