"""A WireGuard device without sockets or clocks: the peers of one interface.

The supervisor passes in events and the time: changes of peers (configure_peer), workers'
events and control packets, handshake messages, deadlines. It answers through callbacks and by
changing the shared tables. It is up or down, as its interface is: while it is down it has no
sessions and sends nothing.

    who may be a peer, and how it is configured    this file; allowed_ips.py, endpoints.py
    handshakes and the sessions that they give     handshake.py, sessions.py
    lanes instead of a session                     lanes.py
    what workers report                            events.py
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable

from fastpump._core import SharedTables
from fastpump.conn.endpoint import Endpoint
from fastpump.constants import (
    KEY_LEN,
    REKEY_TIMEOUT_JITTER,
    RESTART_INTERVAL,
    SECOND,
    TIMESTAMP_LEN,
)
from fastpump.device import rate_limits, reported
from fastpump.device.allowed_ips import AllowedIps
from fastpump.device.callbacks import DeviceCallbacks
from fastpump.device.deadlines import Deadlines
from fastpump.device.endpoints import Endpoints
from fastpump.device.events import ControlPacket, PeerEvents, WorkerEvent, log_offload_off
from fastpump.device.handshake import Handshakes
from fastpump.device.lane_context import LanesCallbacks, Options
from fastpump.device.lanes import Lanes
from fastpump.device.peer import Peer
from fastpump.device.peer_change import UNCHANGED, PeerChange, Presence
from fastpump.device.send_errors import SendErrors
from fastpump.device.sessions import Sessions
from fastpump.errors import ConfigError
from fastpump.protocol import cookie, keys, noise
from fastpump.protocol.keypairs import Keypair
from fastpump.protocol.timers import Action, Activity, earliest
from fastpump.verdicts import Verdict

TICK_LEN = 32       # peers per call of `tick`: some milliseconds
TIMER_RETRY = SECOND        # after an error in a peer's timer, which stays due


class Device:
    """All peers of one interface."""

    def __init__(self, tables: SharedTables, callbacks: DeviceCallbacks, family: int, *,
                 cpu_count: int = 1, lanes: Options | None = None,
                 is_steered: bool = False) -> None:
        """`family`: of the sockets (conn/endpoint.py). `lanes`: None for WireGuard only.
        `is_steered`: a program gives flows to queues, wherever they are written."""
        self._tables = tables
        self._tables.takes_control_packets = lanes is not None and lanes.transport != "wireguard"
        self._callbacks = callbacks
        self._cpu_count = cpu_count
        self._is_steered = is_steered
        self._private_key = bytes(KEY_LEN)
        self._by_slot: dict[int, Peer] = {}
        self._peers_of_worker = [0] * tables.queue_count
        self.is_up = False
        self.peers: dict[bytes, Peer] = {}
        """By public key. To be read; configure_peer changes them."""
        self.verdicts: Counter[str] = Counter()
        """Handshake messages and control packets that were dropped; names as in
        docs/PROTOCOL.md."""
        self.allowed_ips = AllowedIps(tables)
        self.deadlines = Deadlines()
        self.sessions = Sessions(tables)
        self.lanes = Lanes(tables, lanes or Options("wireguard"), LanesCallbacks(
            send_control=self._send_control, send_lane=callbacks.transmit_lane,
            send_probe=callbacks.transmit_probe, ring=callbacks.ring,
            want_session=self._want_session), family)
        self.send_errors = SendErrors(tables)
        self.endpoints = Endpoints(tables, self.lanes, self.send_errors, callbacks, family)
        self._handshakes = Handshakes(tables, self.peers, self.sessions, self.endpoints,
                                      self.lanes, self.send_errors, callbacks)
        self.handshake_problems = self._handshakes.problems
        self.close = self._handshakes.timestamps.close
        self.redirect = self._handshakes.redirect
        self._events = PeerEvents(tables, self._handshakes, self.endpoints, self.lanes,
                                  self.send_errors, callbacks)

    # -- our key

    @property
    def private_key(self) -> bytes:
        """Our static private key; zeros for none."""
        return self._private_key

    @property
    def public_key(self) -> bytes | None:
        """Our own static public key; None without a private key."""
        static = self._handshakes.static
        return None if static is None else static.public

    def set_private_key(self, private_key: bytes) -> None:
        """Set the static private key (zeros: none); it is clamped. Another one drops all sessions,
        and removes a peer with our own public key, as `wg` expects."""
        if any(private_key):
            private_key = keys.clamp(private_key)
        if private_key == self._private_key:
            return
        for peer in self.peers.values():
            self._forget_sessions(peer)
            peer.static_static = None
            peer.timestamp_sent = bytes(TIMESTAMP_LEN)
        self._private_key = private_key
        self._handshakes.static = noise.DhKeyPair.from_private(private_key) \
            if any(private_key) else None
        self._handshakes.timestamps.set_key(self.public_key)
        self.lanes.set_public_key(self.public_key or b"")
        self._tables.set_originator_id(_originator_id(self.public_key or b""))
        own = self.peers.get(self.public_key or b"")
        if own is not None:
            self._remove_peer(own)
        self._report_retired()

    # -- peers

    def peer_in_slot(self, slot: int) -> Peer | None:
        """The peer that the shared tables have in a slot."""
        return self._by_slot.get(slot)

    def transferred(self, peer: Peer) -> tuple[int, int]:
        """Bytes of messages received from the peer and sent to it."""
        return self._tables.peers.traffic(peer.slot)

    def configure_peer(self, change: PeerChange, now: int) -> Peer | None:
        """Apply a change; the peer, None if there is none (any more).

        ConfigError for an endpoint that our sockets cannot reach, or a new peer with our own public
        key; MemoryError when the table of peers is full: then nothing has changed. MemoryError
        when the table of allowed IPs is full: all has changed but the allowed IPs from the one on
        that found no room.
        """
        peer = self.peers.get(change.public_key)
        if change.presence is Presence.REMOVE:
            if peer is not None:
                self._remove_peer(peer)
            return None
        if change.presence is Presence.UPDATE and peer is None:
            return None
        if change.endpoint is not UNCHANGED:
            self.endpoints.check(change.endpoint)
        if peer is None:
            peer = self._create_peer(change.public_key)
        self._configure(peer, change, now)
        try:
            self.allowed_ips.change(peer, change.allowed_ips,
                                    replaces=change.replaces_allowed_ips)
        finally:
            self._watch(peer)
        return peer

    def _configure(self, peer: Peer, change: PeerChange, now: int) -> None:
        """All of a change that cannot fail."""
        if change.preshared_key is not UNCHANGED:
            peer.preshared_key = change.preshared_key
        if change.endpoint_names is not UNCHANGED:
            peer.endpoint_names = change.endpoint_names
        if change.endpoint is not UNCHANGED:
            self._place(peer, change.endpoint, now)
            self.endpoints.set_candidates(peer, (change.endpoint,))
        if change.candidates is not UNCHANGED:
            self.endpoints.set_candidates(peer, change.candidates)
        if change.keepalive_s is not UNCHANGED:
            self._set_keepalive(peer, change.keepalive_s * SECOND, now)
        if change.rate_limits is not UNCHANGED:
            rate_limits.apply(self._tables, peer.slot, change.rate_limits, now)
            peer.rate_limits = change.rate_limits

    def _place(self, peer: Peer, endpoint: Endpoint, now: int) -> None:
        """The operator says where a peer is. If that was not known, somebody may have waited."""
        was_unknown = peer.endpoint is None
        is_news = self.endpoints.configure(peer, endpoint)
        if not is_news or not self.is_up:
            return
        self._handshakes.redirect(peer, now)
        self.lanes.of(peer).announce(now)
        if was_unknown and (peer.timers.persistent_interval_ns
                            or "DROP_NO_ENDPOINT" in self._tables.peers.verdicts(peer.slot)):
            self._handshakes.want_session(peer, now)

    def _set_keepalive(self, peer: Peer, interval_ns: int, now: int) -> None:
        if interval_ns == peer.timers.persistent_interval_ns:
            return              # do not restart the timer
        due_at = now if peer.timers.persistent_interval_ns == 0 else now + interval_ns
        peer.timers.set_persistent(interval_ns, due_at if self.is_up else None)
        self.lanes.of(peer).keep_alive(now)

    def _create_peer(self, public_key: bytes) -> Peer:
        if public_key == self.public_key:
            raise ConfigError("a peer has this tunnel's own public key; give it the key that the "
                              "other side prints")
        worker = self._peers_of_worker.index(min(self._peers_of_worker))
        peer = Peer(public_key, self._tables.peers.add(), worker, cookie.mac1_key(public_key))
        self._peers_of_worker[worker] += 1
        self.peers[public_key] = peer
        self._by_slot[peer.slot] = peer
        self._tables.peers.set_originator_id(peer.slot, _originator_id(public_key))
        self.lanes.add_peer(peer)
        self._spread()
        return peer

    def _remove_peer(self, peer: Peer) -> None:
        """Forget a peer, its sessions and its allowed IPs."""
        self.allowed_ips.clear(peer)
        self._forget_sessions(peer)
        peer.timers.stop()
        self.deadlines.forget(peer)
        self.endpoints.forget(peer)
        self.lanes.remove_peer(peer)
        self.send_errors.forget(peer)
        self._tables.peers.remove(peer.slot)
        del self.peers[peer.public_key], self._by_slot[peer.slot]
        self._peers_of_worker[peer.worker] -= 1
        self._spread()
        self._callbacks.ring()
        self._report_retired()

    def _spread(self) -> None:
        """Where no program steers flows to queues: with few peers, spread each peer's flows
        over as many workers as there are CPUs. With many, the peers spread themselves, and a
        peer's state is best kept on one core (hot/ingress.pxd). More workers than CPUs only
        take turns: 8 TCP streams over 4 queues were 14% slower on 2 CPUs when spread over
        all 4."""
        few = len(self.peers) < self._tables.queue_count and not self._is_steered
        self._tables.spread_queues = min(self._tables.queue_count, self._cpu_count) if few else 1

    # -- up and down

    def start(self, now: int) -> None:
        """The interface is up. A peer that had a session with us before still has it, and would
        use it in vain until its timers expire: start a new one with each, one after the other. A
        handshake that was under way, or about to be, had its reason, too."""
        self.is_up = True
        delay = 0
        for peer in self.peers.values():
            peer.timers.set_persistent(peer.timers.persistent_interval_ns, now)
            if peer.lost_session:
                peer.lost_session = False
                peer.timers.retransmit_at = now + delay
                delay += RESTART_INTERVAL
            self._watch(peer)

    def stop(self) -> None:
        """The interface is down. Drops all sessions."""
        self.is_up = False
        for peer in self.peers.values():
            peer.lost_session = (peer.keypairs.current is not None
                                 or peer.timers.retransmit_at is not None)
            self._forget_sessions(peer)
            peer.timers.stop()
        self._report_retired()

    def sockets_changed(self, now: int) -> None:
        """We send from other ports now."""
        for peer in self.peers.values():
            self.lanes.of(peer).announce(now)

    def _forget_sessions(self, peer: Peer) -> None:
        self._handshakes.clear(peer)
        self.handshake_problems.forget(peer)
        peer.timers.forget_session()
        peer.last_initiation_sent_at = None
        self._tables.peers.purge_staged(peer.slot)
        for event in ("want_session", "unanswered_tx", "unanswered_rx"):
            self._tables.peers.rearm(peer.slot, event)

    # -- what happened

    def receive(self, message: bytes, sender: Endpoint, source_address: bytes, now: int) -> None:
        """An admitted handshake message; `source_address` is the address of ours that it came to.
        Earlier events of workers were handed over before (handshake.py)."""
        if self._handshakes.static is None or not self.is_up:
            self.verdicts[Verdict.DROP_INTERFACE_DOWN] += 1
            return
        if not self.endpoints.is_possible(sender):
            self.verdicts[Verdict.DROP_MALFORMED_HANDSHAKE] += 1
            return
        outcome = self._handshakes.receive(message, sender, source_address, now)
        if isinstance(outcome, Peer):
            self._watch(outcome)
        else:
            self.verdicts[outcome] += 1
            self._report_retired()

    def on_event(self, event: WorkerEvent, now: int) -> None:
        """A worker reports something."""
        if event.name == "offload_off":
            log_offload_off(event)
            return
        peer = self._by_slot.get(event.peer_slot)
        if peer is None or not self.is_up:
            return
        try:
            self._events.handle(peer, event._replace(at_ns=min(event.at_ns, now)), now)
        finally:
            self._watch(peer)

    def on_control(self, packet: ControlPacket, now: int) -> None:
        """A worker received a control packet in a session. The worker's events were handed over
        before: it may have confirmed the session."""
        peer = self._by_slot.get(packet.peer_slot)
        keypair = None if peer is None else peer.keypairs.by_index(packet.local_index)
        if peer is None or keypair is None or not self.is_up:
            return                      # of a session that is gone
        try:
            verdict = self.lanes.of(peer).receive(keypair, packet.data, now)
        finally:
            self._watch(peer)
        if verdict is not None:
            self.verdicts[peer.drop(verdict)] += 1

    def on_workers_exit(self, workers: Iterable[int], now: int) -> None:
        """Workers' processes have ended; their events were handed over. They may have died while
        they wrote an endpoint, or before they reported that a peer moved, or that nothing can be
        sent. All peers are looked at, once."""
        for worker in workers:
            for slot in self._tables.workers.exited(worker):
                peer = self._by_slot.get(slot)
                if peer is not None:
                    self.endpoints.rewrite(peer)
        for peer in self.peers.values():
            self.endpoints.follow(peer)
            self.endpoints.rewrite_lanes(peer)
            self.send_errors.look(peer, now)
        self._report_retired()

    # -- time

    def next_deadline(self) -> int | None:
        """When `tick` wants to be called, CLOCK_BOOTTIME ns."""
        return self.deadlines.next()

    def tick(self, now: int) -> None:
        """Run timers that are due, of TICK_LEN peers at most, so that nothing else waits long. If
        more are due, `next_deadline` says so."""
        for _ in range(TICK_LEN):
            peer = self.deadlines.take_due(now)
            if peer is None:
                return
            try:
                self._run_timers(peer, now)
            except BaseException:
                self._watch(peer, not_before=now + TIMER_RETRY)
                raise
            self._watch(peer)

    def _run_timers(self, peer: Peer, now: int) -> None:
        activity = reported.activity(self._tables, peer.slot, now)
        for action in peer.timers.expire(now, activity):
            self._act(peer, action, now, activity)
        self.lanes.of(peer).tick(now)

    def _act(self, peer: Peer, action: Action, now: int, activity: Activity) -> None:
        match action:
            case Action.INITIATE:
                self.endpoints.forget_source(peer)     # it may be why there was no answer
                self._callbacks.on_unanswered(peer)
                self.lanes.of(peer).paths.on_unanswered(activity, now)
                self._handshakes.initiate_anew(peer, now)
            case Action.KEEPALIVE:
                self._handshakes.keepalive(peer, now)
            case Action.REARM_TX:
                self._rearm(peer, "unanswered_tx", activity.first_unanswered_tx_ns, now)
            case Action.REARM_RX:
                self._rearm(peer, "unanswered_rx", activity.first_unanswered_rx_ns, now)
            case Action.GIVE_UP:
                self._handshakes.give_up(peer, now)
            case Action.ZERO_KEYS:
                self._handshakes.clear(peer)

    def _rearm(self, peer: Peer, event: str, handled_ns: int, now: int) -> None:
        """Let workers report the next unanswered packet. One may have passed just before."""
        self._tables.peers.rearm(peer.slot, event, handled_ns)
        activity = reported.activity(self._tables, peer.slot, now)
        if activity.first_unanswered_tx_ns:
            peer.timers.unanswered_tx(activity.first_unanswered_tx_ns,
                                      self._callbacks.jitter(REKEY_TIMEOUT_JITTER))
        if activity.first_unanswered_rx_ns:
            peer.timers.unanswered_rx(activity.first_unanswered_rx_ns)

    def _watch(self, peer: Peer, not_before: int = 0) -> None:
        """The last step of whatever may have changed a peer's timers or lanes, or retired
        something of it."""
        deadline = earliest(peer.timers.deadline(), self.lanes.of(peer).deadline())
        if deadline is not None and self.deadlines.watch(peer, max(deadline, not_before)):
            self._callbacks.on_deadline()
        self._report_retired()

    def _report_retired(self) -> None:
        if self._tables.retired:
            self._callbacks.on_retired()

    def _want_session(self, peer: Peer, now: int) -> None:
        self._handshakes.want_session(peer, now)

    def _send_control(self, peer: Peer, keypair: Keypair, data: bytes, now: int) -> None:
        """Send a control packet in a session; b"" for a keepalive."""
        self.endpoints.send(peer, self.sessions.seal(keypair, data), now)


def _originator_id(public_key: bytes) -> int:
    """The originator id, in relay headers, of the side with that key (docs/PROTOCOL.md)."""
    digest = hashlib.sha256(b"fastpump origin" + public_key).digest()
    return int.from_bytes(digest[:8], "little")
