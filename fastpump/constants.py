"""Times and limits: of WireGuard (the paper, sections 5 and 6, and the kernel's
drivers/net/wireguard/messages.h), of lanes and of interfaces. Times are nanoseconds.

Layouts of messages are in protocol/wire.py. What the data plane has to know too is in
hot/constants.pxd as well; a test compares them (tests/unit/test_constants.py)."""

SECOND = 1_000_000_000
MILLISECOND = 1_000_000

KEY_LEN = 32
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
# A cookie is not used in its last seconds: it may have expired when it arrives.
COOKIE_MAX_AGE = COOKIE_SECRET_MAX_AGE - 5 * SECOND

DEFAULT_MTU = 1420
MIN_MTU = 576
MIN_IPV6_MTU = 1280     # RFC 8200, section 5
MAX_MTU = 65000
MAX_TAP_MTU = 65521     # with an Ethernet header 65535
ETHERNET_MTU = 1500
MAX_VLAN = 4094         # IEEE 802.1Q; 0 is a priority tag, 4095 reserved
MAX_VLAN_IN_TAG = 4095  # what frames can have all the same, and so the forwarding database
DEFAULT_PORT = 51820
DEFAULT_NAME = "fp0"
MAX_NAME_LEN = 15
MAX_QUEUES = 256        # MAX_TAP_QUEUES in drivers/net/tun.c
MAX_DEFAULT_QUEUES = 16
"""With as many CPUs or more: each queue costs memory and a process, and few links need more."""
MAX_KEEPALIVE_S = 65535

# Lanes (docs/PROTOCOL.md).
MAX_LANES = 256
"""Of a peer."""
MIN_LANE_SOCKETS = 32
"""Each side opens sockets for at least this many lanes (more if it has more queues), so that two
sides can agree on that many whatever their queues."""
HELLO_TIMEOUT = SECOND
"""Until the next try of a message of the upgrade."""
UPGRADE_ATTEMPTS = 5
"""Tries, with a peer that is known to support lanes."""
LANES_PROOF_TIME = 3 * SECOND
"""A peer that is not received on a lane within this time of a new session has lost its lanes."""
LANE_PROBE_INTERVALS = (SECOND // 10, SECOND // 5, SECOND // 2, SECOND, 2 * SECOND, 5 * SECOND)
"""Between probes of a lane that is not usable yet, or is dead; the last one repeats."""
LANE_OPENING_TIME = 5 * SECOND
"""A lane that the peer opens is dead if it was not received there within this time: the first five
probes of LANE_PROBE_INTERVALS, and what the two sides begin apart."""
LANE_UNANSWERED_TIME = SECOND // 2
"""Data on a lane that is unanswered for so long makes us probe it."""
LANE_PROBE_TIMEOUT = SECOND
"""Until the next probe because of such data, or the lane's death. If one direction is blocked and
data goes both ways, the side that still receives notices when the other has moved its flows: twice
LANE_UNANSWERED_TIME and three of these, 7 s."""
LANE_DEAD_AFTER_PROBES = 3
LANES_TURN_TIME = SECOND
"""Between probes of a set of which no lane works, one lane after the other."""
LANE_ANSWER_INTERVAL = SECOND // 50
"""An echo request is not answered if something was sent on the lane this recently."""
