"""Any datagram at the handshake socket, against the rules of admission control, written anew."""

from __future__ import annotations

import socket
import sys
from collections import Counter
from hashlib import blake2s

from fastpump._core import ADMIT_HANDSHAKE, ADMIT_TRANSPORT, SENT_COOKIE_REPLY, Admission
from fastpump.constants import (
    SECOND,
)
from fastpump.protocol import cookie
from fuzz.common import START, cookie_for, mutated, telling
from fuzz.handshakes import LENGTHS, PLACE

DROPS = ("DROP_MALFORMED_HANDSHAKE", "DROP_INVALID_MAC1", "DROP_REPLAYED_INITIATION",
         "DROP_HANDSHAKE_RATE", "DROP_HANDSHAKE_OVERLOAD", "SENT_COOKIE_REPLY")


def random_sockaddr(rng):
    """struct sockaddr_in or _in6, also with families that there are not."""
    if rng.random() < 0.3:
        return (int(socket.AF_INET).to_bytes(2, sys.byteorder)
                + rng.choice((bytes, rng.randbytes))(14))
    family = rng.choice((socket.AF_INET6, socket.AF_INET, 0, 65535, rng.getrandbits(16)))
    return int(family).to_bytes(2, sys.byteorder) + rng.choice((
        bytes(26), rng.randbytes(26), PLACE["a"].sockaddr(socket.AF_INET6)[2:]))


def check_admission(rng):
    """Any bytes from any address get the verdict that their length, type and mac1 earn, and
    each is counted once; overload only ever lets less in."""
    admission, inputs = Admission(), []
    key, cookie_key = rng.randbytes(32), rng.randbytes(32)
    admission.set_keys(key, cookie_key)
    has_key = rng.random() < 0.95
    if not has_key:
        admission.set_keys(None, None)
    now, seen, messages = rng.choice((0, START, 2 ** 62)), {}, []
    with telling(inputs):
        for _ in range(rng.randint(1, 24)):
            what = rng.randrange(10)
            if what == 0:
                admission.declare_overload(now + rng.choice((0, 1, SECOND, 2 ** 40)))
            elif what == 1:
                now = max(0, now + rng.choice((1, SECOND, 9 * SECOND, -SECOND, 2 ** 40)))
            elif what == 2 and rng.random() < 0.3:
                admission.renew_cookie_secret()
            elif what == 3:
                admission.add_known(random_sockaddr(rng))
            sockaddr = random_sockaddr(rng)
            message = random_datagram(rng, messages, key,
                                      cookie_for(admission, cookie_key, sockaddr))
            messages.append(message)
            inputs.append((message.hex(), sockaddr.hex(), now))
            before = admission.verdicts
            is_overloaded = admission.is_overloaded(now)
            verdict = admission.judge(message, sockaddr, now)
            counted = Counter(admission.verdicts)
            counted.subtract(before)
            drops = {name: count for name, count in counted.items() if count}
            assert set(drops) <= set(DROPS)
            assert sum(drops.values()) == (verdict in (None, SENT_COOKIE_REPLY))
            check_verdict(verdict, drops, message, key if has_key else None, seen, is_overloaded)


def random_datagram(rng, messages, key, value):
    what = rng.randrange(8)
    if what == 0:
        return rng.randbytes(rng.choice((0, 1, 3, 4, 31, 32, 63, 64, 65, 91, 92, 93, 148, 1500)))
    if what == 1 and messages:
        return rng.choice(messages)
    if what == 2 and messages:
        return mutated(rng, rng.choice(messages))
    kind = rng.choice((1, 1, 1, 2, 3, 4))
    message = bytes([kind, 0, 0, 0]) + rng.randbytes(LENGTHS.get(kind, rng.randrange(200)) - 4
                                                     if kind != 4 else rng.randrange(200))
    if kind in (1, 2) and rng.random() < 0.9:
        return cookie.add_macs(message, key, rng.choice((None, value, bytes(16))))
    return message


def check_verdict(verdict, drops, message, key, seen, is_overloaded):
    """By the rules of hot/admission.pxd, written down once more; rates are not followed. `seen`:
    the initiations that were admitted, each in its place of 16384, until another comes there."""
    kind, length, mac1 = int.from_bytes(message[:4], "little"), len(message), message[-32:-16]
    place = int.from_bytes(mac1[8:12], "little") % 16384
    if length >= 32 and kind == 4:
        assert verdict == ADMIT_TRANSPORT
    elif (kind, length) == (3, 64):
        assert verdict == ADMIT_HANDSHAKE or drops.keys() <= {
            "DROP_HANDSHAKE_RATE", "DROP_HANDSHAKE_OVERLOAD"}
    elif (kind, length) not in ((1, 148), (2, 92)):
        assert drops == {"DROP_MALFORMED_HANDSHAKE": 1}
    elif key is None or blake2s(message[:-32], key=key, digest_size=16).digest() != mac1:
        assert drops == {"DROP_INVALID_MAC1": 1}
    elif kind == 1 and seen.get(place) == mac1[:8]:
        assert drops == {"DROP_REPLAYED_INITIATION": 1}
    elif is_overloaded:
        assert verdict in (ADMIT_HANDSHAKE, SENT_COOKIE_REPLY) or drops.keys() <= {
            "DROP_HANDSHAKE_RATE", "DROP_HANDSHAKE_OVERLOAD"}
    else:
        assert verdict == ADMIT_HANDSHAKE
    if verdict == ADMIT_HANDSHAKE and kind == 1:
        seen[place] = mac1[:8]
