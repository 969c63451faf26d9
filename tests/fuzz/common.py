"""What the checks share."""

from __future__ import annotations

import contextlib
from hashlib import blake2s

from fastpump.protocol import cookie, noise, wire
from support.devices import START, UNIX_START

__all__ = ["PRIVATE_KEYS", "START", "STATICS", "UNIX_START", "cookie_for", "mutated", "telling"]

PRIVATE_KEYS = [blake2s(bytes([number])).digest() for number in range(3)]
STATICS = [noise.DhKeyPair.from_private(private) for private in PRIVATE_KEYS]


@contextlib.contextmanager
def telling(inputs):
    """Have a failure say what was fed in so far."""
    try:
        yield
    except BaseException as error:
        error.add_note("input:\n" + "\n".join(f"  {item!r}" for item in inputs))
        raise


def mutated(rng, data, *, most=4):
    """Some bytes flipped, put in, taken out, doubled, or moved."""
    data = bytearray(data)
    for _ in range(rng.randint(1, most)):
        at, length = rng.randint(0, len(data)), rng.randint(1, 12)
        what = rng.randrange(6)
        if what == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            data[at:at] = rng.randbytes(length)
        elif what == 2:
            del data[at:at + length]
        elif what == 3:
            data[at:at] = data[at:at + 8 * length]
        elif what == 4:
            data[at:at + length] = bytes([rng.randrange(256)]) * length
        else:
            del data[at:]
    return bytes(data)


def cookie_for(admission, cookie_key, sockaddr):
    """The cookie that the holder of an address gets."""
    message = bytes(148)
    reply = wire.parse(admission.cookie_reply(message, sockaddr))
    return cookie.open_reply(cookie_key, cookie.mac1_of(message), reply)
