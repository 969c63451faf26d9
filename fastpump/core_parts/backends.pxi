# The AEAD libraries (hot/aead.h), by name, and which of them serves which cipher.

import os

from libc.stdint cimport INT64_MAX, int64_t

from fastpump.hot.aead cimport (
    AEAD_AES_256_GCM, AEAD_BORINGSSL, AEAD_CHACHA20_POLY1305, AEAD_IPSEC_MB, AEAD_OPENSSL, Aead,
    aead_free, aead_has_ipsec_mb, aead_init, aead_is_null, aead_time_ns,
)

CIPHERS = {"chacha20-poly1305": AEAD_CHACHA20_POLY1305, "aes-256-gcm": AEAD_AES_256_GCM}
cdef dict _backends = {"openssl": AEAD_OPENSSL, "boringssl": AEAD_BORINGSSL}
if aead_has_ipsec_mb():
    _backends["ipsec-mb"] = AEAD_IPSEC_MB
# Those of this build. Of two that are about equally fast, the later one is taken.
BACKENDS = tuple(_backends)
HAS_NULL_CIPHER = bool(aead_is_null())

cdef enum:
    BACKEND_COUNT = 3
    TRIALS = 20
    SHORT_LEN = 64                  # packets are mostly acknowledgements ...
    LONG_LEN = 1420                 # ... and full ones
    GAIN_PERCENT = 5                # more, and an earlier one of BACKENDS is taken


def backend_problem(str name):
    """Why an AEAD backend of this build cannot be used on this machine; None if it can."""
    cdef Aead context
    try:
        backends_start(&context, backend_number(name), backend_number(name))
    except OSError as error:
        return str(error)
    aead_free(&context)
    return None


def choose_backends():
    """{cipher: name of its AEAD backend}: FASTPUMP_AEAD for all, if set; else the fastest one on
    this processor, as measured. ValueError if it is not in the build, OSError if it cannot be
    used."""
    name = os.environ.get("FASTPUMP_AEAD")
    if name:
        problem = backend_problem(name)
        if problem is not None:
            raise OSError(problem)
        return dict.fromkeys(CIPHERS, name)
    return dict(measured_backends())


cdef dict _measured = {}


cdef dict measured_backends():
    """The choice; measured once in a process."""
    if not _measured:
        for cipher, times in cipher_times().items():
            best, *others = times
            for name in others:
                if sum(times[name]) * 100 < sum(times[best]) * (100 - GAIN_PERCENT):
                    best = name
            _measured[cipher] = best
    return _measured


def cipher_times():
    """{cipher: {AEAD backend: (ns to seal 64 bytes, ns for 1420)}}, of all that can be used here,
    the last of BACKENDS first; the least of some trials."""
    usable = [name for name in reversed(BACKENDS) if backend_problem(name) is None]
    return {cipher: backend_times(usable, which) for cipher, which in CIPHERS.items()}


cdef dict backend_times(list names, int cipher):
    """{name: times}. They take turns: a processor changes its speed by the millisecond."""
    cdef Aead contexts[BACKEND_COUNT]
    cdef int64_t least[BACKEND_COUNT][2]
    cdef int place, started = 0
    try:
        for name in names:
            backends_start(&contexts[started], _backends[name], _backends[name])
            least[started][0] = least[started][1] = INT64_MAX
            started += 1
        for _ in range(TRIALS):
            for place in range(started):
                least[place][0] = min(least[place][0],
                                      aead_time_ns(&contexts[place], cipher, SHORT_LEN))
                least[place][1] = min(least[place][1],
                                      aead_time_ns(&contexts[place], cipher, LONG_LEN))
    finally:
        for place in range(started):
            aead_free(&contexts[place])
    return {name: (least[place][0], least[place][1]) for place, name in enumerate(names)}


cdef int backend_number(str name) except -1:
    if name not in _backends:
        raise ValueError(f"AEAD backend {name!r} is not in this build; it has: "
                         + ", ".join(BACKENDS))
    return _backends[name]


cdef str backend_name(int number):
    return next(name for name, each in _backends.items() if each == number)


cdef bytes boringssl_path():
    """Where BoringSSL or AWS-LC is; None if nobody says where, and Debian's is not installed."""
    said = os.environ.get("FASTPUMP_BORINGSSL")
    if said:
        return os.fsencode(said)
    path = f"/usr/lib/{os.uname().machine}-linux-gnu/android/libcrypto.so.0"
    return os.fsencode(path) if os.path.exists(path) else None


cdef int backends_start(Aead *context, int chacha_backend, int gcm_backend) except -1:
    """Set up the backends of both ciphers. The caller frees it. OSError."""
    cdef bytes path = boringssl_path()
    cdef const char *where = NULL
    cdef const char *problem
    if path is not None:
        where = path
    problem = aead_init(context, chacha_backend, gcm_backend, where)
    if problem != NULL:
        raise OSError((<bytes>problem).decode(errors="replace"))
    return 0
