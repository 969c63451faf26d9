/* Unaligned loads and stores; memcpy of a constant size compiles to one move. */
#ifndef FASTPUMP_UNALIGNED_H
#define FASTPUMP_UNALIGNED_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define FASTPUMP_LOAD(name, type, convert)                       \
    static inline type name(const uint8_t *p)                    \
    {                                                            \
        type value;                                              \
        memcpy(&value, p, sizeof value);                         \
        return convert(value);                                   \
    }
#define FASTPUMP_STORE(name, type, convert)                      \
    static inline void name(uint8_t *p, type value)              \
    {                                                            \
        value = convert(value);                                  \
        memcpy(p, &value, sizeof value);                         \
    }

FASTPUMP_LOAD(load_be16, uint16_t, be16toh)
FASTPUMP_LOAD(load_be32, uint32_t, be32toh)
FASTPUMP_LOAD(load_be64, uint64_t, be64toh)
FASTPUMP_LOAD(load_le16, uint16_t, le16toh)
FASTPUMP_LOAD(load_le32, uint32_t, le32toh)
FASTPUMP_LOAD(load_le64, uint64_t, le64toh)
FASTPUMP_STORE(store_be16, uint16_t, htobe16)
FASTPUMP_STORE(store_be32, uint32_t, htobe32)
FASTPUMP_STORE(store_le16, uint16_t, htole16)
FASTPUMP_STORE(store_le32, uint32_t, htole32)
FASTPUMP_STORE(store_le64, uint64_t, htole64)

#undef FASTPUMP_LOAD
#undef FASTPUMP_STORE
#endif
