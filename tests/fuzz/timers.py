"""Random events and times for a peer's timers, and for a device of many."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address

from fastpump._core import SharedTables
from fastpump.conn.endpoint import Endpoint
from fastpump.constants import (
    KEEPALIVE_TIMEOUT,
    MAX_HANDSHAKE_ATTEMPTS,
    REKEY_TIMEOUT,
    REKEY_TIMEOUT_JITTER,
    SECOND,
)
from fastpump.device.events import WorkerEvent
from fastpump.protocol import noise, tai64n, wire
from fastpump.protocol.timers import Action, Activity, Timers
from fuzz.common import PRIVATE_KEYS, START, STATICS, UNIX_START, telling
from support import devices


class PlayedPeers:
    """SharedTables.peers, whose workers are played: when they sent and received is ours."""

    def __init__(self, peers):
        self._peers = peers
        self.first_tx, self.first_rx, self.last_tx, self.last_rx = (
            Counter(), Counter(), Counter(), Counter())
        self.reported, self.looks, self.rearms = set(), 0, 0
        for name in ("add", "remove", "set_endpoint", "endpoint", "forget_source_address",
                     "set_originator_id", "set_policy", "set_lanes", "set_send_keypair",
                     "purge_staged", "traffic", "verdicts", "record_send_outcome", "send_error",
                     "set_payload_mtu", "set_unprobed"):
            setattr(self, name, getattr(peers, name))

    def activity(self, slot):
        self.looks += 1
        return (self.first_tx[slot], self.first_rx[slot], self.last_tx[slot], self.last_rx[slot])

    def record_sent(self, slot, now, wire_bytes):
        self.last_tx[slot], self.first_rx[slot] = now, 0

    def record_received(self, slot, now, wire_bytes):
        self.last_rx[slot], self.first_tx[slot] = now, 0

    def rearm(self, slot, what, handled_ns=0):
        self.rearms += 1
        for name, notes in (("unanswered_tx", self.first_tx), ("unanswered_rx", self.first_rx)):
            if what == name and handled_ns and notes[slot] == handled_ns:
                notes[slot] = 0
        self.reported.discard((slot, what))


class PlayedTables:
    """SharedTables with played workers: what they report is ours."""

    def __init__(self, tables):
        self._tables, self.peers = tables, PlayedPeers(tables.peers)
        self.events = [[], []]

    def __getattr__(self, name):
        return getattr(self._tables, name)

    def take_events(self, number):
        taken, self.events[number] = self.events[number], []
        return taken

    def report(self, peer, name, now, detail=0, error=0):
        """A worker's event, once until it is handled."""
        if (peer.slot, name) not in self.peers.reported:
            self.peers.reported.add((peer.slot, name))
            self.events[peer.worker].append(WorkerEvent(name, peer.slot, detail, error, now))

    def data_sent(self, peer, now):
        self.peers.last_tx[peer.slot], self.peers.first_rx[peer.slot] = now, 0
        self.peers.first_tx[peer.slot] = self.peers.first_tx[peer.slot] or now
        self.report(peer, "unanswered_tx", now)

    def data_received(self, peer, now):
        self.peers.last_rx[peer.slot], self.peers.first_tx[peer.slot] = now, 0
        self.peers.first_rx[peer.slot] = self.peers.first_rx[peer.slot] or now
        self.report(peer, "unanswered_rx", now)


class Player(devices.Side):
    """A device with a few peers that seldom answer, whose time and workers are played."""

    def __init__(self, rng):
        self.rng, self.stops, self.answers = rng, 0, 0
        self.log = []       # (time, type, where) of what was sent
        self.told = set()   # (time, where) of endpoints that were set
        self.initiations = {}       # the last one, by where it went
        self.played = PlayedTables(SharedTables.create(2, 4, 8))
        super().__init__(devices.Clock(), tables=self.played, private_key=PRIVATE_KEYS[0],
                         jitter=rng.randrange)
        self.peers, self.statics, self.places = [], {}, {}
        for number, static in enumerate(STATICS[1:]):
            where = Endpoint(IPv4Address(number + 1), 9)
            fields = {"endpoint": where} if rng.random() < 0.9 else {}
            peer = self.configure(static.public, **fields)
            self.peers.append(peer)
            self.statics[peer], self.places[peer] = static, where

    @property
    def now(self):
        return self.clock.now

    def transmit(self, message, where, _source):
        assert self.device.is_up, "something is sent while the interface is down"
        self.log.append((self.now, message[0], where))
        if message[0] == 1:
            self.initiations[where] = message

    def give_session(self, peer):
        """The peer answers our initiation; if there is none, it sends one."""
        self.answers += 1
        initiation = self.initiations.get(peer.endpoint)
        if peer.handshake is not None and initiation is not None:
            self.answer(peer, wire.parse(initiation))
        else:
            self.initiate(peer)

    def answer(self, peer, initiation):
        static = self.statics[peer]
        found = noise.consume_initiation(static, initiation, static.exchange)
        response, _ = noise.create_response(found, bytes(32), self.answers)
        self.receive(response.emit(), peer.endpoint)

    def initiate(self, peer):
        static, ours = self.statics[peer], self.public_key
        initiation, _ = noise.create_initiation(
            static, ours, self.answers, tai64n.emit(UNIX_START + self.answers * SECOND),
            static.exchange(ours))
        self.receive(initiation.emit(), peer.endpoint or self.places[peer])
        if peer.keypairs.next is not None:
            self.event("confirmed", peer.keypairs.next.slot, peer=peer)

    def hand_over(self, worker):
        for event in self.played.take_events(worker):
            self.device.on_event(event, self.now)

    def happen(self):
        rng, peer, what = self.rng, self.rng.choice(self.peers), self.rng.randrange(14)
        if what <= 2 and peer.keypairs.current is not None:
            self.played.data_sent(peer, self.now)
        elif what <= 2:
            self.played.report(peer, "want_session", self.now)
        elif what <= 4 and peer.keypairs.current is not None:
            self.played.data_received(peer, self.now)
        elif what == 5:
            self.played.report(peer, rng.choice((
                "rekey", "roam", "source_address_gone", "resent", "resent_acked")), self.now)
        elif what == 6:     # what may still come of a peer or keypair that is gone
            self.played.events[rng.randrange(2)].append(WorkerEvent(
                rng.choice(("want_session", "unanswered_tx", "unanswered_rx", "confirmed",
                            "rekey", "send_error", "resent", "resent_acked")),
                rng.choice((peer.slot, 3, 2 ** 32 - 1)), rng.randrange(16), 101, self.now))
        elif what == 7:
            self.configure(peer.public_key, keepalive_s=rng.choice((0, 1, 25, 65535)))
        elif what == 8 and self.device.is_up and self.device.public_key is not None:
            self.give_session(peer)
        elif what == 9 and rng.random() < 0.3:
            self.stops += 1
            if self.device.is_up:
                self.device.stop()
            else:
                self.device.start(self.now)
        elif what == 10 and peer.endpoint is not None:
            where = replace(peer.endpoint, port=rng.randint(1, 9))
            self.told.add((self.now, where))
            self.configure(peer.public_key, endpoint=where)
        elif what == 11:
            for worker in (0, 1):
                self.hand_over(worker)
        elif what == 12 and rng.random() < 0.1:
            self.stops += 1
            self.device.set_private_key(rng.choice((PRIVATE_KEYS[0], bytes(32))))

    def go_on(self):
        """To some moment, and what is due by then; late, as when the machine slept."""
        rng, deadline = self.rng, self.device.next_deadline()
        if deadline is not None and deadline > self.now and rng.random() < 0.6:
            self.clock.now = deadline
        else:
            self.clock.now += rng.choice((0, 1, SECOND // 100, SECOND, 5 * SECOND, 15 * SECOND,
                                          200 * SECOND, 10_000 * SECOND))
        for worker in (0, 1):
            if rng.random() < 0.8:
                self.hand_over(worker)
        looks = self.played.peers.looks
        self.tick()
        # Late, a timer that starts again as it fires may be due at once: a few rounds.
        assert self.played.peers.looks - looks <= 8 * len(self.peers), "tick goes round and round"
        deadline = self.device.next_deadline()
        assert deadline is None or deadline > self.now, "a deadline that tick left behind"
        assert len(self.device.deadlines) <= 32 * len(self.peers)
        for peer in self.peers:
            due = peer.timers.deadline()
            assert due is None or (peer.watched_at is not None and peer.watched_at <= due)
        self.check_callbacks()

    def calm(self):
        """A minute without events: what is sent comes of the timers alone."""
        begin, before, ticks = self.now, len(self.log), 0
        while (due := self.device.next_deadline()) is not None and due <= begin + 60 * SECOND:
            self.clock.now, ticks = due, ticks + 1
            self.tick()
        # At most a keepalive each second, a try each five, and a few timers that were running.
        assert len(self.log) - before <= (60 + 12 + 4) * len(self.peers), "a storm"
        assert ticks <= 2 * (60 + 12 + 8) * len(self.peers)


def check_timers(rng):
    """Random events: a tick ends, leaves nothing due behind, and whatever happens the device
    says little: initiations to a peer are REKEY_TIMEOUT apart, but for one that begins anew where
    the peer is said to be."""
    if rng.random() < 0.5:
        check_timers_alone(rng)
        return
    player, inputs = Player(rng), []
    with telling(inputs):
        for _ in range(rng.choice((4, 15, 40))):
            before = len(player.log)
            player.happen()
            player.go_on()
            inputs.append((player.now, player.log[before:]))
            assert len(player.log) - before <= 4 * len(player.peers), "a storm"
        player.calm()
        last = {}
        for at, kind, where in player.log:
            if kind != 1:
                continue
            before = last.get(where.address)
            # Down and up, or another identity, begins anew.
            assert before is None or at - before >= REKEY_TIMEOUT or player.stops \
                or (at, where) in player.told
            last[where.address] = at


def check_timers_alone(rng):
    """The same of one peer's timers, with a caller that does what it is told."""
    timers, now, inputs = Timers(), START, []
    first_tx = first_rx = last_tx = last_rx = 0
    log = []
    with telling(inputs):
        for _ in range(rng.choice((10, 60))):
            what = rng.randrange(8)
            inputs.append((what, now))
            if what == 0:
                timers.initiation_sent(now, rng.randrange(REKEY_TIMEOUT_JITTER))
            elif what == 1:
                timers.session_derived(now)
                if rng.random() < 0.5:
                    timers.handshake_complete()
            elif what == 2:
                first_tx, last_tx, first_rx = first_tx or now, now, 0
                timers.unanswered_tx(now - rng.choice((0, 0, SECOND, 60 * SECOND)),
                                     rng.randrange(REKEY_TIMEOUT_JITTER))
            elif what == 3:
                first_rx, last_rx, first_tx = first_rx or now, now, 0
                timers.unanswered_rx(now - rng.choice((0, 0, SECOND, 60 * SECOND)))
            elif what == 4:
                interval = rng.choice((0, 1, 25, 65535)) * SECOND
                timers.set_persistent(interval, rng.choice((None, now, now + interval)))
            elif what == 5 and rng.random() < 0.2:
                rng.choice((timers.stop, timers.forget_session))()
            due = timers.deadline()
            now = due if due is not None and due > now and rng.random() < 0.7 else (
                now + rng.choice((0, 1, SECOND, 100 * SECOND)))
            actions = timers.expire(now, Activity(first_tx, first_rx, last_tx, last_rx))
            inputs.append((now, actions))
            assert len(actions) <= 7 and not set(actions) - set(Action)
            due = timers.deadline()
            assert due is None or due > now, "due again at once"
            assert timers.expire(now, Activity(first_tx, first_rx, last_tx, last_rx)) == []
            log += [now] * len(actions)
            for action in actions:
                if action is Action.INITIATE:
                    timers.initiation_sent(now, 0)
                elif action is Action.KEEPALIVE:
                    last_tx, first_rx = now, 0
                elif action is Action.REARM_TX:
                    first_tx = 0
                elif action is Action.REARM_RX:
                    first_rx = 0
            assert timers.attempts < MAX_HANDSHAKE_ATTEMPTS
        check_quiet(timers, now, Activity(first_tx, first_rx, last_tx, last_rx))


def check_quiet(timers, now, activity):
    """Left alone, without keepalives and answers, timers end soon, and bounded."""
    timers.set_persistent(0, None)
    begin, count = now, 0
    while (due := timers.deadline()) is not None:
        now = due
        actions = timers.expire(now, activity)
        count += len(actions)
        assert count <= 2 * MAX_HANDSHAKE_ATTEMPTS + 12, "timers that never end"
        if Action.INITIATE in actions:
            timers.initiation_sent(now, REKEY_TIMEOUT_JITTER)
        if Action.REARM_TX in actions:
            activity = activity._replace(first_unanswered_tx_ns=0)
        if Action.REARM_RX in actions:
            activity = activity._replace(first_unanswered_rx_ns=0)
    assert now - begin <= 1000 * SECOND + KEEPALIVE_TIMEOUT
