# Peers as the workers see them.

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from fastpump.hot.atomics cimport (
    RELAXED, RELEASE, SEQ_CST, add64, and32, load32, load64, store32, store64,
)
from fastpump.hot.endpoint cimport endpoint_unset_source_address
from fastpump.hot.fdb cimport fdb_flush
from fastpump.hot.send_errors cimport send_error_changes, send_error_set
from fastpump.hot.shm cimport (
    NONE, POLICY_ANY, POLICY_LANES, POLICY_NOTHING, REPORTED_GSO_REFUSED, REPORTED_LOOP,
    REPORTED_RESENT, REPORTED_RESENT_ACKED, REPORTED_ROAM, REPORTED_SOURCE_ADDRESS_GONE,
    REPORTED_UNANSWERED_RX, REPORTED_UNANSWERED_TX, REPORTED_WANT_SESSION, SOURCE_ADDRESS_LEN,
    UNPROBED, PeerSlot, PeerState,
)
from fastpump.hot.verdict cimport VERDICT_COUNT

POLICIES = {"any": POLICY_ANY, "lanes": POLICY_LANES, "nothing": POLICY_NOTHING}
REPORTED_BITS = {
    "unanswered_tx": REPORTED_UNANSWERED_TX,
    "unanswered_rx": REPORTED_UNANSWERED_RX,
    "want_session": REPORTED_WANT_SESSION,
    "roam": REPORTED_ROAM,
    "source_address_gone": REPORTED_SOURCE_ADDRESS_GONE,
    "gso_refused": REPORTED_GSO_REFUSED,
    "loop": REPORTED_LOOP,
    "resent": REPORTED_RESENT,
    "resent_acked": REPORTED_RESENT_ACKED,
}
NO_SLOT = <uint32_t>NONE         # as it comes in events


cdef class Peers(SlotTable):
    """The table of peers. Times are CLOCK_BOOTTIME, ns. IndexError for a slot with no peer."""

    cdef Limiters limiters

    def __cinit__(self, Mapping mapping, Retired retired):
        self.title = "the peer table"
        self.capacity = mapping.tables.header.peer_capacity

    def add(self):
        """A slot for a new peer; MemoryError when the table is full."""
        cdef uint32_t slot = <uint32_t>self.take()
        cdef PeerSlot *peer = &self.mapping.configuration.peers[slot]
        cdef PeerState *state = &self.mapping.tables.peer_states[slot]
        memset(state, 0, sizeof(PeerState))
        memset(&self.mapping.tables.peer_verdicts[<size_t>slot * VERDICT_COUNT], 0,
               VERDICT_COUNT * sizeof(uint64_t))
        bucket_configure(&state.storm, storm_bucket(self.mapping.tables.header.storm_limit), 0)
        state.send_keypair = state.lanes[0] = state.lanes[1] = NONE
        peer.policy, peer.originator_id, peer.payload_mtu = POLICY_ANY, 0, UNPROBED
        peer.purge_count += 1       # what a worker still staged is not its
        self.mapping.peers_end = self.end
        store32(&self.mapping.configuration.header.peers_end, self.end, RELEASE)
        store32(&peer.live, 1, RELEASE)
        return slot

    def remove(self, uint32_t slot):
        """Give the slot back. The caller has taken its prefixes and keypairs away."""
        cdef PeerState *state = self.mapping.peer_state(slot)
        cdef PeerSlot *peer = &self.mapping.configuration.peers[slot]
        fdb_flush(&self.mapping.tables, slot, True)
        self.limiters.clear(slot)
        self.retired.endpoints.forget(&state.endpoint)
        store32(&state.lanes[0], NONE, RELEASE)
        store32(&state.send_keypair, NONE, RELEASE)
        store32(&peer.purge_count, peer.purge_count + 1, RELEASE)
        store32(&peer.live, 0, RELEASE)
        self.retired.add(self, slot)

    cdef int recycle(self, uint32_t slot) except -1:
        fdb_flush(&self.mapping.tables, slot, True)     # what a worker learned in the meantime
        return SlotTable.recycle(self, slot)

    def set_endpoint(self, uint32_t slot, bytes sockaddr,
                     bytes source_address=bytes(SOURCE_ADDRESS_LEN)):
        """`sockaddr`: a struct sockaddr_in or sockaddr_in6 as bytes; b"" for unknown.
        `source_address`: of what we send there, 16 bytes; zeros: the kernel's choice."""
        self.retired.endpoints.write(&self.mapping.peer_state(slot).endpoint, sockaddr,
                                     source_address)

    def endpoint(self, uint32_t slot):
        """(sockaddr, source address) as the workers have them; (b"", zeros) for unknown."""
        return endpoint_load(&self.mapping.peer_state(slot).endpoint)

    def forget_source_address(self, uint32_t slot):
        """Let the kernel choose what we send from, until the peer sends again."""
        endpoint_unset_source_address(&self.mapping.peer_state(slot).endpoint)

    def set_originator_id(self, uint32_t slot, uint64_t id):
        """The originator, in relay headers, of frames that came in at the peer
        (docs/PROTOCOL.md)."""
        self.mapping.check_peer(slot)
        store64(&self.mapping.configuration.peers[slot].originator_id, id, SEQ_CST)

    def set_policy(self, uint32_t slot, str policy):
        """What the peer's data may travel by: "any" route, "lanes" only, or "nothing"."""
        self.mapping.check_peer(slot)
        store32(&self.mapping.configuration.peers[slot].policy, POLICIES[policy], RELAXED)

    def set_payload_mtu(self, uint32_t slot, mtu):
        """What fits into one message to the peer (hot/path_mtu.pxd); None: all that the interface
        sends."""
        cdef uint32_t value = <uint32_t>NONE
        self.mapping.check_peer(slot)
        if mtu is not None:
            value = mtu
        store32(&self.mapping.configuration.peers[slot].payload_mtu, value, RELAXED)

    def set_unprobed(self, uint32_t slot):
        """Nothing is known of the path to the peer: workers watch TCP there (hot/resent.pxd)."""
        self.mapping.check_peer(slot)
        store32(&self.mapping.configuration.peers[slot].payload_mtu, UNPROBED, RELAXED)

    def payload_mtu(self, uint32_t slot):
        """As it was set; None, too, where nothing is known."""
        cdef uint32_t value
        self.mapping.check_peer(slot)
        value = self.mapping.configuration.peers[slot].payload_mtu
        return None if value >= <uint32_t>UNPROBED else value

    def set_lanes(self, uint32_t slot, newest, older):
        """The sets of lanes that workers send on, by the slots of their first lanes; None for
        none."""
        cdef PeerState *peer = self.mapping.peer_state(slot)
        store32(&peer.lanes[1], NONE if older is None else older, SEQ_CST)
        store32(&peer.lanes[0], NONE if newest is None else newest, SEQ_CST)

    def set_send_keypair(self, uint32_t slot, keypair):
        """What workers seal with from now on; None for no session."""
        cdef uint32_t value = NONE if keypair is None else keypair
        store32(&self.mapping.peer_state(slot).send_keypair, value, SEQ_CST)

    def purge_staged(self, uint32_t slot):
        """Drop what waits for a session; ring the workers' doorbells afterwards."""
        cdef PeerSlot *peer = &self.mapping.configuration.peers[slot]
        self.mapping.check_peer(slot)
        store32(&peer.purge_count, peer.purge_count + 1, RELEASE)

    def rearm(self, uint32_t slot, str what, uint64_t handled_ns=0):
        """Let workers send the event of that name (REPORTED_BITS) for the peer again. `handled_ns`:
        the first unanswered packet that was dealt with; a later one is not forgotten."""
        cdef PeerState *peer = self.mapping.peer_state(slot)
        cdef uint32_t bit = REPORTED_BITS[what]
        if handled_ns and bit == REPORTED_UNANSWERED_TX and (
                peer.first_unanswered_tx_ns == handled_ns):
            peer.first_unanswered_tx_ns = 0
        if handled_ns and bit == REPORTED_UNANSWERED_RX and (
                peer.first_unanswered_rx_ns == handled_ns):
            peer.first_unanswered_rx_ns = 0
        and32(&peer.reported, ~bit, SEQ_CST)

    def record_sent(self, uint32_t slot, uint64_t now, uint64_t wire_bytes):
        """The supervisor sent something authenticated to the peer (a keepalive)."""
        cdef PeerState *peer = self.mapping.peer_state(slot)
        peer.last_tx_ns = now
        peer.first_unanswered_rx_ns = 0
        add64(&peer.tx_bytes, wire_bytes, RELAXED)

    def record_send_outcome(self, uint32_t slot, uint32_t error, uint64_t now):
        """The supervisor sent something to the peer, or the kernel refused it by an errno
        (hot/send_errors.pxd)."""
        cdef PeerState *peer = self.mapping.peer_state(slot)
        if error:
            peer.send_failed_ns = now
        if send_error_changes(peer, error, now):
            send_error_set(peer, error, now)

    def send_error(self, uint32_t slot):
        """The errno by which sending to the peer fails, as it was reported; 0: it works."""
        return load32(&self.mapping.peer_state(slot).send_error, RELAXED)

    def record_received(self, uint32_t slot, uint64_t now, uint64_t wire_bytes):
        """The supervisor received something authenticated (a handshake message)."""
        cdef PeerState *peer = self.mapping.peer_state(slot)
        peer.last_rx_ns = now
        peer.first_unanswered_tx_ns = 0
        add64(&peer.rx_bytes, wire_bytes, RELAXED)

    def activity(self, uint32_t slot):
        """(first_unanswered_tx_ns, first_unanswered_rx_ns, last_tx_ns, last_rx_ns); 0 for never
        or nothing unanswered."""
        cdef PeerState *peer = self.mapping.peer_state(slot)
        return (peer.first_unanswered_tx_ns, peer.first_unanswered_rx_ns, peer.last_tx_ns,
                peer.last_rx_ns)

    def traffic(self, uint32_t slot):
        """(rx_bytes, tx_bytes) of transport messages, without UDP and IP headers."""
        cdef PeerState *peer = self.mapping.peer_state(slot)
        return load64(&peer.rx_bytes, RELAXED), load64(&peer.tx_bytes, RELAXED)

    def verdicts(self, uint32_t slot):
        """{name: n} of the workers' verdicts on the peer's packets and messages, without zeros."""
        cdef const uint64_t *counts
        self.mapping.check_peer(slot)
        counts = &self.mapping.tables.peer_verdicts[<size_t>slot * VERDICT_COUNT]
        return {name: counts[<int>i] for i, name in VERDICT_NAMES.items() if counts[<int>i]}
