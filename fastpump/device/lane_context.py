"""What the lanes of a device are given: the operator's options, callbacks, the shared tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastpump._core import (
    FEATURE_BUNDLE,
    FEATURE_PARTIAL,
    FEATURE_PATH_MTU,
    FEATURE_RECORDS,
    SharedTables,
)
from fastpump.conn.endpoint import Endpoint
from fastpump.device.peer import Peer
from fastpump.protocol.keypairs import Keypair
from fastpump.protocol.lane_messages import Mode

MESSAGE_OVERHEAD = 32
"""Of a message, but of a record: header and tag."""
FRAME_OVERHEAD = 14 + 8 + 16
"""Of a TAP: the Ethernet header, two tags, a relay header."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator wants of lanes."""

    transport: str = "auto"
    """auto, wireguard (never lanes) or lanes (nothing else)."""
    ciphers: tuple[str, ...] = ("aes-256-gcm", "chacha20-poly1305")
    """Names of lane_messages.CIPHER_NUMBERS, the best first."""
    features: int = FEATURE_PARTIAL | FEATURE_BUNDLE | FEATURE_PATH_MTU | FEATURE_RECORDS
    mode: Mode = Mode.TUN
    socket_count: int = 0
    """Of the lane sockets; a multiple of the queues."""


@dataclass(frozen=True, slots=True)
class LanesCallbacks:
    """What lanes need from the device."""

    send_control: Callable[[Peer, Keypair, bytes, int], None]
    """Send a control packet in a session, at a time; b"" for a keepalive."""
    send_lane: Callable[[bytes, Endpoint, bytes, int | None], object]
    """Send a lane message to an endpoint, from a source address, by a lane socket (its number;
    None for our port)."""
    ring: Callable[[], None]
    """Have the workers look at what they have staged."""
    send_probe: Callable[[bytes, Endpoint, bytes, int | None, int], bool] | None
    """Like `send_lane`, but never in fragments; in datagrams of the last argument's length, or in
    one (0). False if our own link does not take it. None: paths are not probed."""
    want_session: Callable[[Peer, int], None]
    """Start a handshake, REKEY_TIMEOUT after the last one at the earliest."""


@dataclass(slots=True)
class LanesContext:
    """What the lanes of all peers share."""

    tables: SharedTables
    options: Options
    callbacks: LanesCallbacks
    family: int
    """Of the sockets (conn/endpoint.py)."""
    public_key: bytes = b""
    """Our own static one."""

    @property
    def is_lanes_only(self) -> bool:
        """Whether data may travel on lanes only."""
        return self.options.transport == "lanes"

    @property
    def needed_payload(self) -> int:
        """The largest payload of a message that the interface needs."""
        return self.tables.mtu + (FRAME_OVERHEAD if self.options.mode is Mode.TAP else 0)
