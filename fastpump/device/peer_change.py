"""A change of a peer, whoever asks for it.

wg's protocol (ipc/uapi.py), the command line and `reload` (tunnel/peer_changes.py), `fastpump
limit` and the resolver all build a PeerChange; Device.configure_peer is the only place that
applies one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from fastpump.conn.endpoint import Endpoint
from fastpump.device.peer import HostAndPort
from fastpump.ip import Prefix
from fastpump.ratelimit import RateLimits


class Presence(enum.Enum):
    """Whether there is to be such a peer."""

    CREATE = "create"       # if it is absent
    UPDATE = "update"       # an absent peer stays absent
    REMOVE = "remove"       # whatever else the change says


class Unchanged(enum.Enum):
    """The type of UNCHANGED."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED
"""A field that the change does not touch; a new peer keeps the default."""


class PrefixChange(NamedTuple):
    """One allowed IP that is added, or removed if the peer has it."""

    prefix: Prefix
    is_added: bool = True


@dataclass(frozen=True, slots=True)
class PeerChange:
    """What is to change about one peer."""

    public_key: bytes
    presence: Presence = Presence.CREATE
    preshared_key: bytes | Unchanged = field(default=UNCHANGED, repr=False)
    """Zeros for none."""
    endpoint: Endpoint | Unchanged = UNCHANGED
    """Where the peer is now."""
    candidates: tuple[Endpoint, ...] | Unchanged = UNCHANGED
    """Where it may be, to be tried in turn while it does not answer. Without these it can only be
    at `endpoint`, if that is given."""
    endpoint_names: tuple[HostAndPort, ...] | Unchanged = UNCHANGED
    """What to resolve again when the peer does not answer; () for nothing."""
    replaces_allowed_ips: bool = False
    """Whether the peer loses the allowed IPs that are not added here."""
    allowed_ips: tuple[PrefixChange, ...] = ()
    """In order. One that is added leaves the peer that has it."""
    keepalive_s: int | Unchanged = UNCHANGED
    """Persistent keepalive; 0 for off."""
    rate_limits: RateLimits | Unchanged = UNCHANGED
    """Token buckets begin full, also if they are as before."""
