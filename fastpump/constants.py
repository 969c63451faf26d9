"""Numbers of the protocol (WireGuard paper, sections 5 and 6) and of the kernel's
implementation (drivers/net/wireguard/messages.h). Times are nanoseconds."""

SECOND = 1_000_000_000
MILLISECOND = 1_000_000

KEY_LEN = 32
TAG_LEN = 16
TIMESTAMP_LEN = 12

REKEY_AFTER_TIME = 120 * SECOND
REJECT_AFTER_TIME = 180 * SECOND
REKEY_ATTEMPT_TIME = 90 * SECOND
REKEY_TIMEOUT = 5 * SECOND
REKEY_TIMEOUT_JITTER = SECOND // 3
KEEPALIVE_TIMEOUT = 10 * SECOND
ZERO_KEYS_AFTER_TIME = 3 * REJECT_AFTER_TIME
MAX_HANDSHAKE_ATTEMPTS = REKEY_ATTEMPT_TIME // REKEY_TIMEOUT
# A peer's initiations closer together than this are a flood (50 a second).
MIN_INITIATION_INTERVAL = SECOND // 50
# Between the handshakes with peers that had a session when the interface was set down.
RESTART_INTERVAL = SECOND // 1000
COOKIE_SECRET_MAX_AGE = 120 * SECOND
# A cookie is not used in its last seconds: it may be worth nothing when it arrives.
COOKIE_MAX_AGE = COOKIE_SECRET_MAX_AGE - 5 * SECOND

DEFAULT_MTU = 1420
MIN_MTU = 576
MAX_MTU = 65000
MAX_TAP_MTU = 65521     # with an Ethernet header 65535
ETHERNET_MTU = 1500
DEFAULT_PORT = 51820
DEFAULT_NAME = "fp0"
MAX_NAME_LEN = 15
MAX_QUEUES = 256        # MAX_TAP_QUEUES in drivers/net/tun.c
MAX_KEEPALIVE_S = 65535

# Lanes (docs/PROTOCOL.md).
HELLO_TIMEOUT = SECOND
"""Until the next try of a message of the upgrade."""
UPGRADE_ATTEMPTS = 5
"""Tries, with a peer that is known to do lanes."""
LANES_PROOF_TIME = 3 * SECOND
"""A peer with a new session that has not been heard on its lanes since has lost them."""
LANE_PROBE_INTERVALS = (SECOND // 10, SECOND // 5, SECOND // 2, SECOND, 2 * SECOND, 5 * SECOND)
"""Between probes of a lane that was not heard yet, or is dead; the last one repeats."""
LANE_UNANSWERED_TIME = SECOND
"""Data on a lane without an answer there: ask for one, this often."""
LANE_DEAD_AFTER_PROBES = 3
LANE_ANSWER_INTERVAL = SECOND // 50
"""A lane on which something was sent so recently has been answered."""
