# What became of a packet, counted by name, per worker, and per peer where one is known.
#
# The operator sees these names (`fastpump status`), which the build takes from here (setup.py):
# a new one is a new line, before the count. DROP_* means that the packet is gone. FAILED_* counts
# an event that the pump recovered from.

ctypedef int Verdict

cdef enum:
    PASS = 0
    # tun_to_udp
    DROP_MALFORMED_PACKET           # not an IP packet, or an inconsistent vnet header
    DROP_NO_PEER                    # no allowed IPs cover the destination
    DROP_LINK_LOCAL                 # the same of link-local ones, either direction
    DROP_LOOP                       # a datagram of ours, on its way into the tunnel again
    DROP_NO_ENDPOINT                # the peer's address is not known yet
    DROP_STAGED_FULL                # the oldest packet that waited for a session was dropped
    DROP_STAGED_TIMEOUT             # the handshake failed; what waited for it is gone
    DROP_COUNTER_LIMIT              # REJECT_AFTER_MESSAGES
    DROP_NO_LANES                   # lanes are required, and the peer does not support them
    DROP_TOO_BIG                    # larger than any UDP datagram can carry
    DROP_PATH_MTU                   # larger than the path to the peer takes; its sender was told
    DROP_LOCAL_FRAME                # TAP: the destination is at the port that it came from
    DROP_STORM                      # more flooded frames than the storm limit, either direction
    DROP_RATE_LIMIT                 # too much waits for its rate limit already, either direction
    DROP_HALTED                     # sealed with keys that another machine may have, too
    DROP_SEND_BUFFER_FULL           # EAGAIN, ENOBUFS, ENOMEM of sendmmsg
    DROP_SEND_ERROR                 # any other error of sendmmsg (unreachable, filtered, ...)
    # udp_to_tun
    DROP_MALFORMED_MESSAGE          # wrong type or length
    DROP_TRUNCATED                  # larger than the receive buffer
    DROP_UNKNOWN_INDEX              # no session of this worker has that receiver index
    DROP_EXPIRED_KEYPAIR            # REJECT_AFTER_TIME
    DROP_REPLAYED                   # counter accepted before, or behind the window
    DROP_UNAUTHENTIC                # the tag does not match
    DROP_MALFORMED_INNER            # authentic, but no IP packet inside
    DROP_MISDELIVERED               # more handshake messages behind data than are passed on
    DROP_CONTROL_UNWANTED           # the transport is plain WireGuard
    DROP_CONTROL_RATE               # more control packets than a peer may send
    DROP_CONTROL_FULL               # more control packets than the supervisor reads
    DROP_FRAGMENTED_PROBE           # a probe of the path MTU that came in fragments
    DROP_MALFORMED_PARTIAL          # not a packet whose checksum can be partial
    DROP_MALFORMED_BUNDLE           # an entry that is empty, or longer than what is left
    DROP_MALFORMED_RECORD           # not a superpacket that we might have made
    DROP_RECORD_CUT                 # a datagram of a record was lost, or came on its own
    DROP_NOT_IN_LANES               # lanes are required, and this came by the session
    DROP_HOLD_FULL                  # a lane message came too early, and there was no room
    DROP_ECN                        # a router marked a datagram whose packet knows no ECN
    DROP_SOURCE_NOT_ALLOWED         # inner source address not in the peer's allowed IPs
    DROP_MAC_LOCKED  # a frame whose source is locked to another port, either direction
    DROP_DUPLICATE_FRAME            # a flooded frame that came by another route before
    DROP_HOP_LIMIT                  # relayed too often
    DROP_INTERFACE_DOWN             # EIO of write: the interface is down
    DROP_INTERFACE_FULL             # EAGAIN, ENOBUFS, ENOMEM of write
    DROP_INTERFACE_ERROR            # any other error of write
    # recovered
    FAILED_UDP_GSO                  # a GSO send failed; sent again segment by segment
    FAILED_TUN_GSO                  # a GSO write failed; written again segment by segment
    FAILED_INTERFACE_READ           # a read failed, but the interface lives
    FAILED_MAC_LIMIT  # a source was not learned: its port's share, or the table, is full
    FAILED_EVENT_RING_FULL          # the supervisor is behind; reported again later
    VERDICT_COUNT

# What a worker counts; shown in lower case.
cdef enum:
    TUN_RX_PACKETS                  # reads of the interface (a superpacket is one)
    TUN_RX_BYTES
    TUN_RX_SUPERPACKETS
    UDP_TX_DATAGRAMS                # on the wire, after segmentation
    UDP_TX_BYTES
    UDP_TX_MESSAGES                 # entries of sendmmsg (a GSO send is one)
    UDP_TX_CALLS
    UDP_TX_BUNDLES                  # lane messages with more than one packet
    UDP_TX_RECORDS                  # superpackets that left whole (hot/record.pxd)
    UDP_RX_DATAGRAMS
    UDP_RX_BYTES
    UDP_RX_MESSAGES
    UDP_RX_CALLS
    UDP_RX_RECORDS
    TUN_TX_PACKETS                  # inner packets delivered
    TUN_TX_BYTES
    TUN_TX_WRITES
    TUN_TX_SUPERPACKETS
    KEEPALIVES_RECEIVED
    FRAMES_FLOODED                  # from the interface, to all peers
    FRAMES_RELAYED                  # from a peer, to others
    MACS_LEARNED
    MACS_MOVED
    SHAPED_PACKETS                  # waited for a rate limit
    ICMP_ERRORS                     # written to the interface, for packets without a way
    WAKEUPS                         # returns of the wait
    PAUSES                          # before a wait, for more to come (hot/moderation.pxd)
    COUNTER_COUNT
