# Endpoints of peers and lanes (hot/endpoint.pxd), as bytes.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint8_t
from libc.string cimport memset

from fastpump.hot.endpoint cimport endpoint_read, endpoint_set
from fastpump.hot.shm cimport ADDRESS_LEN, SOURCE_ADDRESS_LEN, Endpoint


cdef int endpoint_store(Endpoint *endpoint, bytes sockaddr, bytes local) except -1:
    """`sockaddr`: a struct sockaddr_in or sockaddr_in6; b"" for unknown. `local`: the own address
    to send from, 16 bytes; zeros: the kernel's choice."""
    cdef uint32_t length = <uint32_t>len(sockaddr)
    if length > ADDRESS_LEN or len(local) != SOURCE_ADDRESS_LEN:
        raise ValueError(f"a sockaddr of {length} bytes, an own address of {len(local)}")
    endpoint_set(endpoint, PyBytes_AS_STRING(sockaddr), length,
                 <const uint8_t *>PyBytes_AS_STRING(local))
    return 0


cdef tuple endpoint_load(Endpoint *endpoint):
    """(sockaddr, own address); (b"", zeros) for unknown."""
    cdef uint8_t address[ADDRESS_LEN]
    cdef uint8_t local[SOURCE_ADDRESS_LEN]
    cdef uint32_t length
    memset(local, 0, SOURCE_ADDRESS_LEN)
    length = endpoint_read(endpoint, address, local)
    return (PyBytes_FromStringAndSize(<char *>address, length),
            PyBytes_FromStringAndSize(<char *>local, SOURCE_ADDRESS_LEN))
