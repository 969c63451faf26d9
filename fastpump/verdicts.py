"""What becomes of what the control plane receives, by the names that `fastpump status` shows.

The data plane's verdicts are in hot/verdict.pxd, those on handshake messages before they come
here in hot/admission.pxd. A name that stands there too is one count for the operator.
"""

from enum import StrEnum, auto


class Verdict(StrEnum):
    """Its value is its name."""

    @staticmethod
    def _generate_next_value_(name: str, _start: int, _count: int, _last: list[str]) -> str:
        return name

    # Handshake messages
    DROP_INTERFACE_DOWN = auto()        # or there is no private key
    DROP_HANDSHAKE_OVERLOAD = auto()    # the queue is full
    DROP_MALFORMED_HANDSHAKE = auto()
    DROP_UNKNOWN_PEER = auto()          # an initiation of a public key that is not configured
    DROP_INVALID_HANDSHAKE = auto()     # not authentic, or for another session
    DROP_REPLAYED_INITIATION = auto()   # its timestamp is not newer than the last
    DROP_INITIATION_FLOOD = auto()      # sooner after the last than any peer sends them
    DROP_UNEXPECTED_RESPONSE = auto()   # to no initiation of ours
    DROP_UNEXPECTED_COOKIE = auto()     # to no initiation of ours
    DROP_INVALID_COOKIE = auto()        # the reply is not authentic
    DROP_TABLE_FULL = auto()            # no slot for a session, or for lanes

    # Datagrams
    DROP_LOOP = auto()                  # the kernel kept ours out of the interface

    # Any message or timer
    FAILED_INTERNALLY = auto()          # a bug; the log has it

    # Control packets (docs/PROTOCOL.md)
    DROP_CONTROL_UNWANTED = auto()      # the transport is plain WireGuard
    DROP_CONTROL_RATE = auto()          # more of one peer at once than are handled
    DROP_MALFORMED_CONTROL = auto()
    DROP_UNEXPECTED_CONTROL = auto()    # not the next step of any negotiation
