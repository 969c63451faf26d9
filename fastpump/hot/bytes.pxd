# Unaligned loads and stores in network and little-endian byte order.

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uint8_t


cdef extern from "unaligned.h" nogil:
    uint16_t load_be16(const uint8_t *p)
    uint32_t load_be32(const uint8_t *p)
    uint64_t load_be64(const uint8_t *p)
    uint16_t load_le16(const uint8_t *p)
    uint32_t load_le32(const uint8_t *p)
    uint64_t load_le64(const uint8_t *p)
    void store_be16(uint8_t *p, uint16_t value)
    void store_be32(uint8_t *p, uint32_t value)
    void store_le16(uint8_t *p, uint16_t value)
    void store_le32(uint8_t *p, uint32_t value)
    void store_le64(uint8_t *p, uint64_t value)
