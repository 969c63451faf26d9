# Endpoints of peers and lanes (hot/endpoint.pxd), as bytes.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint8_t
from libc.string cimport memset

from fastpump.hot.endpoint cimport endpoint_get, endpoint_set
from fastpump.hot.shm cimport ADDRESS_LEN, SOURCE_ADDRESS_LEN, Endpoint


cdef int endpoint_store(Endpoint *endpoint, bytes sockaddr, bytes source_address) except -1:
    """`sockaddr`: a struct sockaddr_in or sockaddr_in6; b"" for unknown. `source_address`: of what
    we send there, 16 bytes; zeros: the kernel's choice."""
    cdef uint32_t length = <uint32_t>len(sockaddr)
    if length > ADDRESS_LEN or len(source_address) != SOURCE_ADDRESS_LEN:
        raise ValueError(f"a sockaddr of {length} bytes, a source address of {len(source_address)}")
    endpoint_set(endpoint, PyBytes_AS_STRING(sockaddr), length,
                 <const uint8_t *>PyBytes_AS_STRING(source_address))
    return 0


cdef tuple endpoint_load(Endpoint *endpoint):
    """(sockaddr, source address); (b"", zeros) for unknown, or if it is no sockaddr."""
    cdef uint8_t address[ADDRESS_LEN]
    cdef uint8_t source_address[SOURCE_ADDRESS_LEN]
    cdef uint32_t length
    memset(source_address, 0, SOURCE_ADDRESS_LEN)
    length = endpoint_get(endpoint, address, source_address)
    return (PyBytes_FromStringAndSize(<char *>address, length),
            PyBytes_FromStringAndSize(<char *>source_address, SOURCE_ADDRESS_LEN))
