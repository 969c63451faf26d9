# The AEAD libraries of this build (hot/aead.h), by name.

import os

from fastpump.hot.aead cimport (
    AEAD_AES_256_GCM, AEAD_CHACHA20_POLY1305, AEAD_IPSEC_MB, AEAD_OPENSSL, Aead,
    aead_free, aead_has_ipsec_mb, aead_init, aead_is_null,
)

CIPHERS = {"chacha20-poly1305": AEAD_CHACHA20_POLY1305, "aes-256-gcm": AEAD_AES_256_GCM}
# Those of this build, the fastest last.
BACKENDS = ("openssl", "ipsec-mb") if aead_has_ipsec_mb() else ("openssl",)
HAS_NULL_CIPHER = bool(aead_is_null())


def default_backend():
    """The AEAD backend's name: FASTPUMP_AEAD if set, else the fastest one of this build that can be
    used here. ValueError if it is not in the build, OSError if it cannot be used."""
    name = os.environ.get("FASTPUMP_AEAD")
    if not name:
        return next(name for name in reversed(BACKENDS) if backend_problem(name) is None)
    problem = backend_problem(name)
    if problem is not None:
        raise OSError(problem)
    return name


def backend_problem(str name):
    """Why an AEAD backend of this build cannot be used on this machine; None if it can."""
    cdef Aead context
    cdef const char *problem = aead_init(&context, backend_number(name))
    if problem != NULL:
        return (<bytes>problem).decode(errors="replace")
    aead_free(&context)
    return None


cdef int backend_number(str name) except -1:
    if name not in BACKENDS:
        raise ValueError(f"AEAD backend {name!r} is not in this build; it has: "
                         + ", ".join(BACKENDS))
    return AEAD_IPSEC_MB if name == "ipsec-mb" else AEAD_OPENSSL


cdef str backend_name(int number):
    return "ipsec-mb" if number == AEAD_IPSEC_MB else "openssl"


cdef int backend_start(Aead *context, int number) except -1:
    """Set up a backend. The caller frees it."""
    cdef const char *problem = aead_init(context, number)
    if problem != NULL:
        raise OSError((<bytes>problem).decode(errors="replace"))
    return 0
