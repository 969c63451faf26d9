# The AEAD libraries of this build (hot/aead.h), by name.

import os

from fastpump.hot.aead cimport (
    AEAD_AES_256_GCM, AEAD_CHACHA20_POLY1305, AEAD_IPSEC_MB, AEAD_OPENSSL, Aead,
    aead_has_ipsec_mb, aead_init, aead_is_null,
)

CIPHERS = {"chacha20-poly1305": AEAD_CHACHA20_POLY1305, "aes-256-gcm": AEAD_AES_256_GCM}
BACKENDS = ("openssl", "ipsec-mb") if aead_has_ipsec_mb() else ("openssl",)
HAS_NULL_CIPHER = bool(aead_is_null())


def default_backend():
    """The AEAD backend's name: FASTPUMP_AEAD if set, else the fastest in this build."""
    name = os.environ.get("FASTPUMP_AEAD") or BACKENDS[len(BACKENDS) - 1]
    backend_number(name)
    return name


cdef int backend_number(str name) except -1:
    if name not in BACKENDS:
        raise ValueError(f"AEAD backend {name!r} is not in this build; it has: "
                         + ", ".join(BACKENDS))
    return AEAD_IPSEC_MB if name == "ipsec-mb" else AEAD_OPENSSL


cdef int backend_start(Aead *context, str name) except -1:
    """Set up a backend; None for the default one. The caller frees it."""
    if aead_init(context, backend_number(name or default_backend())) != 0:
        raise OSError("the AEAD library does not start")
    return 0
