"""MAC addresses that are derived from a name: the same at every start, and another one for the
same name on another host, or in another network namespace with a name.

What distinguishes hosts is /etc/machine-id (machine-id(5)); clones of a machine need one each. All
these addresses are locally administered.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

from fastpump import paths

LOWEST, HIGHEST = 0x02, 0xFE
"""First bytes: a bridge takes the lowest address of its ports, unless it was given one."""

_MACHINE_ID = Path("/etc/machine-id")
_NO_MACHINE_ID = (b"", b"uninitialized")


def this_host() -> bytes:
    """What makes the addresses of this host, and of this network namespace, its own."""
    return _machine_id() + b"\0" + os.fsencode(paths.namespace_name() or "")


def derive(first: int, purpose: str, name: str, host: bytes) -> int:
    """The address for a name: `first` is its first byte, and no two purposes share one."""
    seed = b"fastpump " + purpose.encode() + b"\0" + host + b"\0" + os.fsencode(name)
    digest = hashlib.blake2s(seed, digest_size=5).digest()
    return first << 40 | int.from_bytes(digest, "big")


def of_interface(first: int, purpose: str, name: str) -> str:
    """The address of an interface of this host. Without a machine id it is random: hosts that
    cannot be told apart must not have the same on one Ethernet."""
    host = this_host() if _machine_id() else secrets.token_bytes(16)
    return text(derive(first, purpose, name, host))


def text(mac: int) -> str:
    """02:00:00:00:00:01"""
    return mac.to_bytes(6, "big").hex(":")


def _machine_id() -> bytes:
    with contextlib.suppress(OSError):
        found = _MACHINE_ID.read_bytes().strip()
        if found not in _NO_MACHINE_ID:
            return found
    return b""
