# udp_to_tun: from the peers to the interface.
#
#   receive     recvmmsg; a message is a GRO train of equal-sized datagrams
#   open        each datagram in place, after the checks below
#   coalesce    hot/gro.pxd
#   write       one writev for each packet or superpacket
#
# The order of the checks on a datagram, cheapest first and nothing believed before
# the tag has proved it (each failure is a verdict):
#   1 length and type          5 mark the counter; timers, confirmation
#   2 receiver index           6 inner version and length
#   3 keypair's age            7 inner source in the peer's allowed IPs
#   4 replay (quick), AEAD     8 only then: endpoint (roaming), deliver
# A keepalive (empty inside) ends behind 5, and moves the endpoint as well. A handshake
# message that came with a train goes to the supervisor (hot/messages.pxd).
#
# Queues: the kernel sends a flow to the queue on which its other direction was last
# written (tun_flow_update()). One WireGuard session is received by one worker; if that
# wrote to its own queue only, it would also have to send for all flows of the peer.
# With many peers that is best (a peer's state stays on one core), and the peers spread
# over the workers. With few, flows are written to several queues by their hash, so that
# several workers send (Header.spread_queues; the supervisor decides).
#
# Who owns what: the keypair's replay window belongs to this worker (keypair_find
# checks it), whatever the steering did.

from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.string cimport memcmp, memcpy, memset

from fastpump.hot.aead cimport AEAD_CHACHA20_POLY1305, aead_open, nonce_set
from fastpump.hot.atomics cimport RELAXED, RELEASE, add64, and32, load32, store32
from fastpump.hot.batch cimport batch_bucket
from fastpump.hot.bytes cimport load_le32, load_le64
from fastpump.hot.events cimport event_push, event_push_once, events_have_room
from fastpump.hot.gro cimport (
    Candidate, Item, gro_is_full, gro_receive, gro_reset, item_finish,
)
from fastpump.hot.ip cimport ip_parse, ip_source
from fastpump.hot.limits cimport (
    BUFFER_STRIDE, MESSAGE_LEN, RECV_MESSAGES, TAG_LEN, TRANSPORT_HEADER_LEN, TRANSPORT_MIN_LEN,
    TRANSPORT_TYPE, VNET_HEADER_LEN,
)
from fastpump.hot.linux cimport (
    EAGAIN, EINTR, EINVAL, EIO, ENOBUFS, ENOMEM, MSG_DONTWAIT, MSG_TRUNC, errno, msghdr,
    recvmmsg, sockaddr_in6, write, writev,
)
from fastpump.hot.local cimport control_read
from fastpump.hot.lookup cimport lookup_peer
from fastpump.hot.messages cimport message_first, message_pop, message_push
from fastpump.hot.replay cimport replay_is_fresh, replay_mark
from fastpump.hot.shm cimport (
    ARMED_ROAM, ARMED_UNANSWERED_RX, EVENT_CONFIRMED, EVENT_OFFLOAD_OFF, EVENT_REKEY,
    EVENT_ROAM, EVENT_UNANSWERED_RX, KEYPAIR_CONFIRM_TOLD, KEYPAIR_INITIATOR,
    KEYPAIR_REKEY_TOLD, KEYPAIR_UNCONFIRMED, LOCAL_LEN, NONE, Keypair, Message, PeerSlot,
    keypair_find, peer_endpoint_write,
)
from fastpump.hot.verdict cimport (
    DROP_EXPIRED_KEYPAIR, DROP_INTERFACE_DOWN, DROP_INTERFACE_ERROR, DROP_INTERFACE_FULL,
    DROP_MALFORMED_INNER, DROP_MALFORMED_MESSAGE, DROP_REPLAYED, DROP_SOURCE_NOT_ALLOWED,
    DROP_TRUNCATED, DROP_UNAUTHENTIC, DROP_UNKNOWN_INDEX, FAILED_EVENT_RING_FULL,
    FAILED_TUN_GSO, KEEPALIVES_RECEIVED, PASS, TUN_TX_BYTES, TUN_TX_PACKETS,
    TUN_TX_SUPERPACKETS, TUN_TX_WRITES, UDP_RX_BYTES, UDP_RX_CALLS, UDP_RX_DATAGRAMS,
    UDP_RX_MESSAGES, Verdict,
)
from fastpump.hot.worker cimport RecvBatch, Worker

cdef struct Origin:
    # Where a datagram came from, and to which of our addresses.
    const sockaddr_in6 *remote
    uint32_t remote_len
    const uint8_t *local            # LOCAL_LEN


cdef inline void recv_prepare(RecvBatch *self, uint32_t which) noexcept nogil:
    """Make a message ready to receive into; the kernel shortens what it uses."""
    cdef msghdr *message = &self.messages[which].msg_hdr
    message.msg_name = &self.names[which]
    message.msg_namelen = sizeof(sockaddr_in6)
    message.msg_iov = &self.iov[which]
    message.msg_iovlen = 1
    message.msg_control = self.control[which]
    message.msg_controllen = sizeof(self.control[which])
    message.msg_flags = 0
    self.iov[which].iov_base = self.buffers + <size_t>which * BUFFER_STRIDE
    self.iov[which].iov_len = BUFFER_STRIDE


cdef inline void recv_init(RecvBatch *self) noexcept nogil:
    cdef int i
    for i in range(RECV_MESSAGES):
        recv_prepare(self, i)


cdef inline bint address_is_equal(const uint8_t *a, const uint8_t *b,
                                  uint32_t length) noexcept nogil:
    """Compare sockaddrs without sin6_flowinfo, which says nothing about who it is."""
    if length < sizeof(sockaddr_in6):
        return memcmp(a, b, 8) == 0         # sockaddr_in: family, port, address
    return memcmp(a, b, 4) == 0 and memcmp(a + 8, b + 8, 20) == 0


cdef inline void peer_note_received(Worker *self, Keypair *keypair, PeerSlot *peer,
                                    bint is_data) noexcept nogil:
    """Timers and confirmation: the message is authentic, whatever is inside."""
    cdef uint32_t index = keypair.peer
    cdef uint32_t slot = <uint32_t>(keypair - self.tables.keypairs)
    if peer.last_rx_ns != self.now_ns:
        peer.last_rx_ns = self.now_ns
    if peer.first_unanswered_tx_ns:
        peer.first_unanswered_tx_ns = 0
    if is_data:
        if not peer.first_unanswered_rx_ns:
            peer.first_unanswered_rx_ns = self.now_ns
        self.send.has_events |= event_push_once(
            self.shared, &peer.armed, ARMED_UNANSWERED_RX, EVENT_UNANSWERED_RX, index, 0,
            self.now_ns)
    if keypair.flags & KEYPAIR_UNCONFIRMED and event_push_once(
            self.shared, &keypair.flags, KEYPAIR_CONFIRM_TOLD, EVENT_CONFIRMED, index, slot,
            self.now_ns):
        # Answer with it at once: a peer that was restarted knows no older one, and the
        # reply to this very packet may leave before the supervisor has woken up.
        store32(&peer.send_keypair, slot, RELEASE)
        self.send.has_events = True
    if keypair.flags & KEYPAIR_INITIATOR and self.now_ns >= keypair.rekey_rx_at_ns:
        self.send.has_events |= event_push_once(
            self.shared, &keypair.flags, KEYPAIR_REKEY_TOLD, EVENT_REKEY, index, slot,
            self.now_ns)


cdef inline void peer_note_origin(Worker *self, Keypair *keypair, PeerSlot *peer,
                                  const Origin *origin) noexcept nogil:
    """Roaming, of the peer or of ours, after everything has been checked."""
    cdef uint32_t slot = <uint32_t>(keypair - self.tables.keypairs)
    # Read without the sequence lock: a torn read costs one write too many.
    if peer.endpoint_len != origin.remote_len or not address_is_equal(
            peer.endpoint, <const uint8_t *>origin.remote, origin.remote_len) \
            or memcmp(peer.local, origin.local, LOCAL_LEN) != 0:
        # At once: the answer to this very packet may leave before the supervisor wakes up.
        # Not when that could not be told: no later packet would differ from what is written.
        if not events_have_room(self.shared) or not peer_endpoint_write(
                peer, origin.remote, origin.remote_len, origin.local):
            return
        self.send.has_events |= event_push_once(
            self.shared, &peer.armed, ARMED_ROAM, EVENT_ROAM, keypair.peer, slot, self.now_ns)


cdef inline void run_finish(Worker *self) noexcept nogil:
    if self.run.bytes:
        add64(&self.tables.peers[self.run.peer].rx_bytes, self.run.bytes, RELAXED)
    self.run.bytes = 0


cdef inline Verdict ingress_datagram(Worker *self, uint8_t *datagram, uint32_t length,
                                     const Origin *origin) noexcept nogil:
    cdef uint8_t *inner = datagram + TRANSPORT_HEADER_LEN
    cdef Keypair *keypair
    cdef PeerSlot *peer
    cdef Candidate packet
    cdef uint8_t nonce[12]
    cdef uint64_t counter
    cdef uint32_t inner_len, kind
    if length < TRANSPORT_MIN_LEN:
        return DROP_MALFORMED_MESSAGE
    kind = load_le32(datagram)
    if kind != TRANSPORT_TYPE:
        if kind == 0 or kind > TRANSPORT_TYPE:
            return DROP_MALFORMED_MESSAGE
        if not message_push(&self.shared.up, datagram, length, origin.remote,
                            origin.remote_len, origin.local):
            return DROP_MALFORMED_MESSAGE if length > MESSAGE_LEN else FAILED_EVENT_RING_FULL
        self.send.has_events = True
        return PASS
    keypair = keypair_find(&self.tables, load_le32(datagram + 4), self.number)
    if keypair == NULL:
        return DROP_UNKNOWN_INDEX
    if self.now_ns >= keypair.reject_at_ns:
        return DROP_EXPIRED_KEYPAIR
    counter = load_le64(datagram + 8)
    if not replay_is_fresh(&keypair.replay, counter):
        return DROP_REPLAYED
    inner_len = length - TRANSPORT_HEADER_LEN - TAG_LEN
    nonce_set(nonce, counter)
    if aead_open(&self.aead, AEAD_CHACHA20_POLY1305, keypair.receive_key, nonce, NULL, 0,
                 inner, inner, inner_len) != 0:
        return DROP_UNAUTHENTIC
    replay_mark(&keypair.replay, counter)
    peer = &self.tables.peers[keypair.peer]
    if self.run.peer != keypair.peer:
        run_finish(self)
        self.run.peer = keypair.peer
    self.run.bytes += length
    peer_note_received(self, keypair, peer, inner_len != 0)
    if inner_len == 0:
        self.shared.counters[KEEPALIVES_RECEIVED] += 1
        peer_note_origin(self, keypair, peer, origin)
        return PASS
    if not ip_parse(&packet.ip, inner, inner_len):
        return DROP_MALFORMED_INNER
    if lookup_peer(&self.tables, ip_source(&packet.ip), packet.ip.is_v6) != keypair.peer:
        return DROP_SOURCE_NOT_ALLOWED
    peer_note_origin(self, keypair, peer, origin)
    if gro_is_full(&self.gro):
        ingress_write(self)
    gro_receive(&self.gro, &packet)
    return PASS


cdef inline void write_failed(Worker *self, int error, uint32_t packets) noexcept nogil:
    if error == EIO:
        self.shared.verdicts[DROP_INTERFACE_DOWN] += packets
    elif error in (EAGAIN, ENOBUFS, ENOMEM):
        self.shared.verdicts[DROP_INTERFACE_FULL] += packets
    else:
        self.shared.verdicts[DROP_INTERFACE_ERROR] += packets


cdef inline int write_queue(Worker *self, const Item *item) noexcept nogil:
    """The queue that a flow is written to; see "Queues" at the head of the file."""
    if self.spread_queues > 1 and item.flow_hash:
        return self.tun_fds[(self.number + item.flow_hash % self.spread_queues)
                            % self.queue_count]
    return self.tun_fd


cdef inline void write_plain(Worker *self, int fd, uint8_t *packet,
                             uint32_t packet_len) noexcept nogil:
    """Write one packet that needs nothing of the kernel."""
    memset(packet - VNET_HEADER_LEN, 0, VNET_HEADER_LEN)
    if write(fd, packet - VNET_HEADER_LEN, packet_len + VNET_HEADER_LEN) < 0:
        write_failed(self, errno, 1)
        return
    self.shared.counters[TUN_TX_WRITES] += 1
    self.shared.counters[TUN_TX_PACKETS] += 1
    self.shared.counters[TUN_TX_BYTES] += packet_len


cdef inline void write_one_by_one(Worker *self, Item *item) noexcept nogil:
    """Write a superpacket's packets singly: the kernel refused the whole. Those behind
    the first still have their own headers in front of their payloads."""
    cdef uint32_t piece = item.first_piece
    cdef int fd = write_queue(self, item)
    memcpy(item.packet, item.saved_header, item.header_len)
    write_plain(self, fd, item.packet, item.packet_len)
    while piece:
        write_plain(self, fd, self.gro.pieces[piece - 1].start - item.header_len,
                    self.gro.pieces[piece - 1].length + item.header_len)
        piece = self.gro.pieces[piece - 1].next


cdef inline void write_item(Worker *self, Item *item) noexcept nogil:
    cdef int count
    cdef long result
    if item.segment_count == 1:
        write_plain(self, write_queue(self, item), item.packet, item.packet_len)
        return
    count = item_finish(&self.gro, item, self.write_iov)
    result = writev(write_queue(self, item), self.write_iov, count)
    if result >= 0:
        self.shared.counters[TUN_TX_WRITES] += 1
        self.shared.counters[TUN_TX_SUPERPACKETS] += 1
        self.shared.counters[TUN_TX_PACKETS] += item.segment_count
        self.shared.counters[TUN_TX_BYTES] += item.total_len
    elif errno == EINVAL:
        # The kernel takes vnet headers but not this kind of superpacket.
        self.shared.verdicts[FAILED_TUN_GSO] += 1
        if and32(&self.tables.header.offloads, ~item.offload, RELAXED) & item.offload:
            self.send.has_events |= event_push(self.shared, EVENT_OFFLOAD_OFF, NONE,
                                               item.offload, EINVAL, self.now_ns)
        write_one_by_one(self, item)
    else:
        write_failed(self, errno, item.segment_count)


cdef inline void ingress_write(Worker *self) noexcept nogil:
    """Write everything that was coalesced, in order, and start anew."""
    cdef uint32_t i
    for i in range(self.gro.item_count):
        write_item(self, &self.gro.items[i])
    gro_reset(&self.gro, load32(&self.tables.header.offloads, RELAXED))


cdef inline void take_strays(Worker *self) noexcept nogil:
    """Transport messages that the supervisor's socket received (hot/messages.pxd)."""
    cdef Message *message = message_first(&self.shared.down)
    cdef Origin origin
    cdef Verdict verdict
    while message != NULL:
        origin.remote = <sockaddr_in6 *>message.address
        origin.remote_len = message.address_len
        origin.local = message.local
        verdict = ingress_datagram(self, message.data, message.length, &origin)
        if verdict != PASS:
            self.shared.verdicts[verdict] += 1
        # Written before the slot is handed back: what was opened lies in it.
        ingress_write(self)
        message_pop(&self.shared.down)
        message = message_first(&self.shared.down)
    run_finish(self)


cdef inline bint udp_to_tun(Worker *self) noexcept nogil:
    """One turn; True if the socket may hold more."""
    cdef RecvBatch *recv = &self.recv
    cdef msghdr *message
    cdef uint8_t *datagram
    cdef uint8_t local[LOCAL_LEN]
    cdef Origin origin
    cdef uint32_t i, left, length, segment_len, datagrams
    cdef Verdict verdict
    cdef int received
    received = recvmmsg(self.udp_fd, recv.messages, RECV_MESSAGES, MSG_DONTWAIT, NULL)
    if received <= 0:
        # Errors of earlier sends (ICMP) are reported here too; they pass.
        return received < 0 and errno not in (EAGAIN, EINTR)
    self.shared.counters[UDP_RX_CALLS] += 1
    self.shared.counters[UDP_RX_MESSAGES] += <uint32_t>received
    datagrams = 0
    gro_reset(&self.gro, load32(&self.tables.header.offloads, RELAXED))
    for i in range(<uint32_t>received):
        message = &recv.messages[i].msg_hdr
        left = recv.messages[i].msg_len
        datagram = <uint8_t *>recv.iov[i].iov_base
        segment_len = control_read(message, left, local)
        origin.remote = &recv.names[i]
        origin.remote_len = message.msg_namelen
        origin.local = local
        if message.msg_flags & MSG_TRUNC:
            self.shared.verdicts[DROP_TRUNCATED] += 1
            left = 0
        self.shared.counters[UDP_RX_BYTES] += left
        while left:
            length = left if left < segment_len else segment_len
            verdict = ingress_datagram(self, datagram, length, &origin)
            if verdict != PASS:
                self.shared.verdicts[verdict] += 1
            datagram += length
            left -= length
            datagrams += 1
    self.shared.counters[UDP_RX_DATAGRAMS] += datagrams
    self.shared.recv_batches[batch_bucket(datagrams)] += 1
    run_finish(self)
    ingress_write(self)
    for i in range(<uint32_t>received):
        recv_prepare(recv, i)
    return <uint32_t>received == RECV_MESSAGES
