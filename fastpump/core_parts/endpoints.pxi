# Endpoints of peers and lanes (hot/endpoint.pxd), as bytes.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint8_t, uintptr_t
from libc.string cimport memset

from fastpump.hot.endpoint cimport endpoint_get, endpoint_moves, endpoint_set
from fastpump.hot.shm cimport ADDRESS_LEN, SOURCE_ADDRESS_LEN, Endpoint


cdef class EndpointWriter:
    """Writes endpoints. One that a worker is just writing, and has stopped in between, is written
    when that has ended (`write_late`): the worker is not overruled, nor is one that finds the peer
    elsewhere after it. Its length: how many wait."""

    cdef dict waiting               # by the endpoint's place: (its moves before, what to write)

    def __cinit__(self):
        self.waiting = {}

    def __len__(self):
        return len(self.waiting)

    cdef int write(self, Endpoint *endpoint, bytes sockaddr, bytes source_address) except -1:
        """`sockaddr`: a struct sockaddr_in or sockaddr_in6; b"" for unknown. `source_address`: of
        what we send there, 16 bytes; zeros: the kernel's choice."""
        cdef uint32_t length = <uint32_t>len(sockaddr)
        if length > ADDRESS_LEN or len(source_address) != SOURCE_ADDRESS_LEN:
            raise ValueError(
                f"a sockaddr of {length} bytes, a source address of {len(source_address)}")
        self.forget(endpoint)
        if not endpoint_set(endpoint, PyBytes_AS_STRING(sockaddr), length,
                            <const uint8_t *>PyBytes_AS_STRING(source_address)):
            self.waiting[<uintptr_t>endpoint] = (
                endpoint_moves(endpoint), sockaddr, source_address)
        return 0

    cdef int forget(self, Endpoint *endpoint) except -1:
        """It is written anew, or taken out of use."""
        self.waiting.pop(<uintptr_t>endpoint, None)
        return 0

    cdef int write_late(self) except -1:
        """Write what waited for a worker that has gone on, or died."""
        cdef Endpoint *endpoint
        for place, (moves, sockaddr, source_address) in list(self.waiting.items()):
            endpoint = <Endpoint *><uintptr_t>place
            if endpoint_moves(endpoint) == moves:
                self.write(endpoint, sockaddr, source_address)
            else:
                self.forget(endpoint)       # moved since, by who knew better
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
