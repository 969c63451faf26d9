"""A peer of a WireGuard device: what is configured of it, and what is known of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from fastpump.conn.endpoint import NO_SOURCE_ADDRESS, Endpoint
from fastpump.constants import COOKIE_MAX_AGE, KEY_LEN, SECOND, TIMESTAMP_LEN
from fastpump.ip import Address, Prefix
from fastpump.protocol import keys, noise
from fastpump.protocol.keypairs import Keypairs
from fastpump.protocol.timers import Timers
from fastpump.ratelimit import NO_LIMITS, RateLimits

HostAndPort = tuple[str, int]


@dataclass(slots=True, eq=False, weakref_slot=True)
class Peer:
    """One peer: configuration, handshake and sessions. Times are CLOCK_BOOTTIME ns."""

    public_key: bytes
    slot: int
    worker: int
    mac1_key: bytes
    preshared_key: bytes = bytes(KEY_LEN)
    endpoint: Endpoint | None = None
    configured_endpoint: Endpoint | None = None
    """What the operator said last; None: nothing."""
    candidates: tuple[Endpoint, ...] = ()
    """Where it may be, as the operator said, in the order of trying."""
    trying: Endpoint | None = None
    """Where our initiations go, after some to `endpoint` had no answer; None: there."""
    looped_at: tuple[Address, int] | None = None
    """Where it was when the way there led into the tunnel, and when that was told."""
    endpoint_names: tuple[HostAndPort, ...] = ()
    """The endpoints as they were configured, if there are several, or one is a host name."""
    source_address: bytes = NO_SOURCE_ADDRESS
    """Our address that it sends to: the source address of our datagrams to it."""
    gso_refused_at: Endpoint | None = None
    """Where it was when the way there was found to take no UDP GSO."""
    allowed_ips: set[Prefix] = field(default_factory=set)
    rate_limits: RateLimits = NO_LIMITS
    timers: Timers = field(default_factory=Timers)
    keypairs: Keypairs = field(default_factory=Keypairs)
    static_static: bytes | None = None
    """The Diffie-Hellman result of both static keys; computed when first needed."""
    handshake: noise.InitiatorState | None = None
    handshake_slot: int | None = None
    last_initiation_sent_at: int | None = None
    last_initiation_seen_at: int | None = None
    timestamp_sent: bytes = bytes(TIMESTAMP_LEN)
    timestamp_seen: bytes = bytes(TIMESTAMP_LEN)
    handshake_tries: int = 0
    """Initiations since the last handshake that succeeded."""
    handshake_problem: str = ""
    """Why the last of them had no success, as far as it is known."""
    sessions_unused: int = 0
    """Initiations of the peer that were answered since then."""
    is_old_told: bool = False
    """That its timestamps are old was logged."""
    last_mac1_sent: bytes | None = None
    """Of our last handshake message: a cookie reply is bound to it."""
    cookie: bytes | None = None
    cookie_at: int = 0
    lost_session: bool = False
    """It had a session, or a handshake was due or under way, when the interface was set down."""
    watched_at: int | None = None
    """When the device looks at the timers next."""
    latest_handshake_unix_ns: int = 0
    """Wall clock of the last handshake that succeeded; 0 for never."""
    verdicts: Counter[str] = field(default_factory=Counter)
    """Of the control plane, on its handshake messages and control packets."""

    def __str__(self) -> str:
        """For the log: enough of the key to know it by, and where it is."""
        name = keys.encode(self.public_key)
        where = f" ({self.endpoint})" if self.endpoint else ""
        return f"peer {name[:4]}…{name[-5:-1]}{where}"

    def drop(self, verdict: str) -> str:
        """The verdict, counted for this peer; for all of them the caller counts it."""
        self.verdicts[verdict] += 1
        return verdict

    @property
    def json_value(self) -> str:
        """For the log as JSON: the whole key."""
        return keys.encode(self.public_key)

    @property
    def persistent_keepalive_s(self) -> int:
        """Send something at least this often; 0 for off."""
        return self.timers.persistent_interval_ns // SECOND

    def usable_cookie(self, now: int) -> bytes | None:
        """The cookie that the peer gave us, while it is valid."""
        return self.cookie if now < self.cookie_at + COOKIE_MAX_AGE else None
