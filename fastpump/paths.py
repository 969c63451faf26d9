"""Where fastpump keeps things: private keys, timestamps, and the control sockets.

Keys and sockets are told apart by network namespace, since interface names are: `fp0` of one
namespace and `fp0` of another are two interfaces.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

NAMED_NAMESPACES = Path("/run/netns")
_OWN = Path("/proc/self/ns/net")


def state_dir() -> Path:
    """FASTPUMP_STATE, or /var/lib/fastpump."""
    return Path(os.environ.get("FASTPUMP_STATE") or "/var/lib/fastpump")


def namespace_inode() -> int:
    """What identifies this process's network namespace, while it lives."""
    return _OWN.stat().st_ino


def namespace_name() -> str | None:
    """The name `ip netns` knows this network namespace by, if it has one."""
    own = namespace_inode()
    try:
        entries = sorted(NAMED_NAMESPACES.iterdir())
    except OSError:
        return None
    for entry in entries:
        try:
            if entry.stat().st_ino == own:
                return entry.name
        except OSError:
            continue
    return None


def private_key_file(interface: str) -> Path:
    """Where the private key of an interface of this namespace is kept."""
    return state_dir() / f"{_of_namespace(interface)}.key"


def endpoints_file(interface: str) -> Path:
    """Where it is kept at which addresses the peers of an interface of this namespace were."""
    return state_dir() / f"{_of_namespace(interface)}.endpoints"


def _of_namespace(interface: str) -> str:
    namespace = namespace_name()
    return interface if namespace is None else f"{interface}@{namespace}"


def timestamp_file(public_key: bytes) -> Path:
    """Where it is kept which timestamps were sent with a key."""
    return state_dir() / "timestamps" / hashlib.sha256(public_key).hexdigest()[:32]


def runtime_dir(namespace: int | None = None) -> Path:
    """The directory of a namespace's control sockets: FASTPUMP_RUN or /run/fastpump, then
    the namespace's inode; that of this process by default."""
    return Path(os.environ.get("FASTPUMP_RUN") or "/run/fastpump") / str(
        namespace_inode() if namespace is None else namespace)
