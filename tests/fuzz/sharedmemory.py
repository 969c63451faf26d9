"""What a worker that was taken over may write into the shared memory, and the supervisor.

A second mapping of the state stands in for the worker. Its words are overwritten while the
supervisor does everything that it does with the tables; no worker runs, for workers trust each
other. Whatever is written, the supervisor must neither end nor believe more than it can hold, and
the configuration must stay as it was made.

    PYTHONPATH=.:tests python -m fuzz.sharedmemory             # every word, with every value
    PYTHONPATH=.:tests python -m fuzz.sharedmemory --short     # pages, and a sample of words
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import random
import socket
import sys
from ipaddress import IPv4Address

from fastpump._core import LOCAL_PORT, Admission, NewKeypair, NewLanes, SharedTables
from fastpump.conn.endpoint import NO_SOURCE_ADDRESS, Endpoint
from fastpump.device.events import ControlPacket, WorkerEvent
from fastpump.device.peer_change import PeerChange, Presence
from fastpump.tunnel import status
from support.lanedevices import World

WORD = 8
PAGE = 4096
PEERS, QUEUES = 4, 2
HALVES = (0, 1, 2, 16, 28, 29, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
WORDS = (0, 1, (1 << 64) - 1, 1 << 63, (1 << 63) - 1, 1 << 60, 0xFFFFFFFF << 32, 0xFFFFFFFF,
         29 << 32 | 2, 0x7FFFFFFF << 32 | 2, 0x80000000 << 32 | 0x80000000,
         0x8002_0000_0001_000B)
"""Lengths and positions beyond all bounds, lone bits, and an address of no port's."""
SHORT_SAMPLE = 700
EVENTS, MESSAGES, CONTROLS = 4096, 64, 32   # what the rings hold
MESSAGE_LEN, CONTROL_LEN = 160, 1504
WHERE = Endpoint(IPv4Address("192.0.2.1"), 51820).sockaddr(socket.AF_INET6)
MAC = bytes.fromhex("020000000001")
NETWORK = bytes([10, 9, 0, 0])
EVENT_NAMES = ("unanswered_tx", "unanswered_rx", "want_session", "roam", "source_address_gone")
LANE_BITS = ("echo_reported", "usable_reported", "unanswered_reported", "rekey_reported",
             "roam_reported")


class Worker:
    """A worker that was taken over: it writes what it likes into the state of some tables."""

    def __init__(self, tables):
        self._memory = mmap.mmap(tables.state_fd, 0)
        self._words = memoryview(self._memory).cast("Q")

    def __len__(self):
        return len(self._words)

    def __getitem__(self, at):
        return self._words[at]

    def close(self):
        self._words.release()
        self._memory.close()

    def used(self):
        """The words that are not zero."""
        return [at for at, word in enumerate(self._words) if word]

    @contextlib.contextmanager
    def writing(self, places, value):
        """Have a value in some words meanwhile."""
        before = [self._words[at] for at in places]
        for at in places:
            self._words[at] = value
        try:
            yield
        finally:
            for at, word in zip(places, before, strict=True):
                self._words[at] = word

    def write(self, at, value):
        self._words[at] = value


# -- the tables alone

def new_keypair(peer, index):
    return NewKeypair(local_index=index, remote_index=1, peer=peer, worker=0, send_key=bytes(32),
                      receive_key=bytes(32), is_initiator=True, rekey_at_ns=1, rekey_rx_at_ns=1,
                      reject_at_ns=1 << 60)


def new_lanes(count):
    return NewLanes(remote_index=1, cipher="aes-256-gcm", features=3,
                    keys=[(bytes(32), bytes(32))] * count,
                    endpoints=[(WHERE, NO_SOURCE_ADDRESS)] * count, sockets=None,
                    rekey_at_ns=1, rekey_rx_at_ns=1, reject_at_ns=1 << 60)


class Drill:
    """Tables with a resident peer, and all that a supervisor does with them."""

    def __init__(self):
        self.tables = SharedTables.create(QUEUES, PEERS, 64, is_tap=True, mac_limit=8)
        self.tables.configure_switch(is_relay=True, ageing_s=300, limit_per_peer=8,
                                     storm_limit=1000)
        self.tables.offloads = ["udp-gso"]
        self.tables.mtu = 1420
        self.peer = self.tables.peers.add()
        self.tables.peers.set_endpoint(self.peer, WHERE)
        self.tables.allowed_ips.insert(NETWORK, 16, self.peer)
        self.keypair, self.index = self.tables.keypairs.reserve(0)
        self.tables.keypairs.install(self.keypair, new_keypair(self.peer, self.index))
        self.tables.peers.set_send_keypair(self.peer, self.keypair)
        self.lanes, _ = self.tables.lanes.reserve(self.peer, 2)
        self.tables.lanes.install(self.lanes, new_lanes(2))
        self.tables.peers.set_lanes(self.peer, self.lanes, None)
        self.tables.fdb.add(MAC, 0, self.peer, 1)
        self.admission = Admission(self.tables)
        self.socket = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self.socket.bind(("::1", 0))
        self.now = 1 << 40

    def close(self):
        self.socket.close()
        self.tables.close()

    def run(self):
        """Everything once. What is wrong is an AssertionError, or another exception."""
        self.now += 1000
        self.use_workers()
        self.use_peer(self.peer)
        self.use_keypair(self.keypair, self.index)
        for slot in (self.lanes, self.lanes + 1):
            self.use_lane(slot)
        self.use_switch()
        self.use_interface()
        self.come_and_go()
        self.tables.retired.reclaim()
        self.check_configuration()

    def use_workers(self):
        workers = self.tables.workers
        for number in range(QUEUES):
            events = workers.events(number)
            assert len(events) <= EVENTS and not workers.events(number)
            messages = self.take_misdelivered(number)
            assert len(messages) <= MESSAGES and not self.take_misdelivered(number)
            for data, sockaddr, _ in messages:
                assert len(data) <= MESSAGE_LEN
                Endpoint.from_sockaddr(sockaddr)
            controls = workers.controls(number)
            assert len(controls) <= CONTROLS and not workers.controls(number)
            assert all(len(data) <= CONTROL_LEN for _, _, data in controls)
            workers.counters(number)
            assert set(workers.exited(number)) <= set(range(PEERS))
        self.pass_on()
        self.tables.peers.set_endpoint(self.peer, WHERE)

    def take_misdelivered(self, number):
        return self.admission.receive_misdelivered(number, self.socket.fileno(), self.now)

    def pass_on(self):
        """A transport message that came to the handshake socket goes to its worker."""
        message = b"\4\0\0\0" + self.index.to_bytes(4, "little") + bytes(24)
        self.socket.sendto(message, self.socket.getsockname())
        count, admitted, woken = self.admission.receive(self.socket.fileno(), self.now)
        assert (count, admitted) == (1, []) and set(woken) <= {0}

    def use_peer(self, peer):
        peers = self.tables.peers
        sockaddr, source_address = peers.endpoint(peer)
        assert len(sockaddr) in (0, 16, 28) and len(source_address) == 16
        if sockaddr:
            Endpoint.from_sockaddr(sockaddr)
        peers.set_endpoint(peer, WHERE)
        peers.set_originator_id(peer, 1)
        peers.set_policy(peer, "any")
        peers.purge_staged(peer)
        activity = peers.activity(peer)
        for name in EVENT_NAMES:
            peers.rearm(peer, name, activity[name == "unanswered_rx"])
        peers.record_sent(peer, self.now, 1)
        peers.record_received(peer, self.now, 1)
        peers.traffic(peer)

    def use_keypair(self, slot, index):
        keypairs = self.tables.keypairs
        keypairs.confirm(slot)
        keypairs.rearm_rekey(slot)
        assert 0 <= keypairs.take_counter(slot, index) < 1 << 64

    def use_lane(self, slot):
        lanes = self.tables.lanes
        found = lanes.status(slot)
        assert found["worker"] < QUEUES and len(found["endpoint"]) in (0, 16, 28)
        lanes.endpoint(slot)
        lanes.set_endpoint(slot, WHERE)
        for bit in LANE_BITS:
            lanes.rearm(slot, bit)
        lanes.set_dead(slot)
        lanes.take_counter(slot, self.now)

    def use_switch(self):
        fdb, other = self.tables.fdb, bytes.fromhex("020000000002")
        assert fdb.owner(MAC, 0, self.now) in (None, LOCAL_PORT, *range(PEERS))
        for mac, vlan, _, _, age_s in fdb.entries(self.now):
            assert len(mac) == 6 and vlan < 4096 and age_s >= 0
        with contextlib.suppress(MemoryError):
            fdb.add(other, 1, self.peer, self.now)
        fdb.remove(other, 1)
        fdb.sweep(self.now)
        assert len(fdb.counts()) == 3
        fdb.flush(self.peer)
        fdb.flush(with_static=False)
        with contextlib.suppress(MemoryError):
            fdb.add(MAC, 0, self.peer, self.now)

    def use_interface(self):
        tables = self.tables
        assert set(tables.offloads) <= {"udp-gso", "tun-tcp4", "tun-tcp6", "tun-udp4", "tun-udp6"}
        tables.offloads = ["udp-gso"]
        for peer in (None, self.peer):
            tables.limiters.set(peer, "tx", (1000, 1000000, 0), None, self.now)
            tables.limiters.set(peer, "tx", None, None, self.now)

    def come_and_go(self):
        """A peer with a session, lanes and a prefix."""
        tables = self.tables
        peer = tables.peers.add()
        tables.allowed_ips.insert(bytes([10, 9, 7, 0]), 24, peer)
        assert tables.allowed_ips.lookup(bytes([10, 9, 7, 1])) == peer
        slot, index = tables.keypairs.reserve(1)
        tables.keypairs.install(slot, new_keypair(peer, index))
        tables.peers.set_send_keypair(peer, slot)
        first, _ = tables.lanes.reserve(peer, 3)
        tables.lanes.install(first, new_lanes(3))
        tables.peers.set_lanes(peer, first, None)
        self.use_peer(peer)
        self.use_keypair(slot, index)
        self.use_lane(first + 2)
        tables.lanes.retire(first)
        tables.keypairs.retire(slot)
        tables.allowed_ips.remove(bytes([10, 9, 7, 0]), 24)
        assert tables.allowed_ips.lookup(bytes([10, 9, 7, 1])) == self.peer
        tables.peers.remove(peer)

    def check_configuration(self):
        assert self.tables.queue_count == QUEUES and self.tables.mtu == 1420
        assert self.tables.allowed_ips.lookup(NETWORK) == self.peer
        assert self.tables.switch_configuration == {
            "relay": True, "mac_ageing_s": 300, "mac_limit": 8, "mac_table": 8,
            "storm_limit": 1000}


def sweep(seed, *, is_short):
    """Every word of the state, with every value: alone, and with all of its page. In short: every
    page, and a sample of words, the used ones first. How often the supervisor was tried."""
    rng = random.Random(seed)
    drill = Drill()
    worker = Worker(drill.tables)
    drill.run()
    words = range(len(worker))
    places = [range(at, min(at + PAGE // WORD, len(worker)))
              for at in range(0, len(worker), PAGE // WORD)]
    singles = list(words)
    if is_short:
        used = worker.used()
        singles = rng.sample(used, min(SHORT_SAMPLE, len(used))) + rng.sample(words, SHORT_SAMPLE)
    count = 0
    for place in (*places, *((at,) for at in singles)):
        values = [*WORDS, rng.getrandbits(64)]
        if is_short and len(place) == 1:
            values = rng.sample(values, 3)
        for value in values:
            try:
                with worker.writing(place, value):
                    drill.run()
                drill.run()
            except BaseException as error:
                error.add_note(f"word {place[0]} of {len(words)}, and {len(place) - 1} behind it: "
                               f"{value:#x}; again: python -m fuzz.sharedmemory --seed {seed}")
                raise
            count += 1
    worker.close()
    drill.close()
    return count


# -- a device, whose timers and tables of states go by what workers report

def check_sharedmemory(rng):
    """A device with a session and lanes lives on whatever its workers write."""
    with contextlib.closing(World(a=rng.choice(({}, {"transport": "lanes"})))) as world:
        world.connect()
        worker = Worker(world.a.tables)
        try:
            used = worker.used()
            for _ in range(rng.randint(1, 30)):
                for _ in range(rng.choice((1, 1, 3, 100))):
                    at = rng.choice(used) if rng.random() < 0.8 else rng.randrange(len(worker))
                    worker.write(at, hostile_word(rng, world.now))
                supervise(rng, world)
        finally:
            worker.close()


def hostile_word(rng, now):
    return rng.choice((
        rng.choice(WORDS), rng.choice(HALVES) << 32 | rng.choice(HALVES), rng.getrandbits(64),
        rng.randrange(64), now + rng.randrange(-1 << 40, 1 << 40), now)) % (1 << 64)


def supervise(rng, world):
    """What a supervisor does within some time, but for its workers' part."""
    side, device = world.a, world.a.device
    for number in range(side.tables.queue_count):
        for event in side.tables.workers.events(number):
            device.on_event(WorkerEvent(*event), world.now)
        for packet in side.tables.workers.controls(number):
            device.on_control(ControlPacket(*packet), world.now)
    what = rng.randrange(5)
    if what == 0:
        device.on_workers_exit([rng.randrange(side.tables.queue_count)], world.now)
    elif what == 1:
        device.start(world.now)
    elif what == 2:
        device.sockets_changed(world.now)
    elif what == 3:
        device.configure_peer(PeerChange(world.b.device.public_key, endpoint=rng.choice(
            (world.b.place.endpoint, Endpoint(IPv4Address("192.0.2.9"), 9)))), world.now)
    elif rng.random() < 0.1:
        device.configure_peer(PeerChange(world.b.device.public_key, presence=Presence.REMOVE),
                              world.now)
        side.add_peer(world.b)
    for peer in device.peers.values():
        status._transport(side.tables, device.lanes.of(peer))
        device.transferred(peer)
    world.pass_time(rng.choice((1, 10 ** 8, 10 ** 9, 2 * 10 ** 10)))
    device.tick(world.now)
    side.sent.clear()
    side.lane_sent.clear()
    side.tables.retired.reclaim()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    print(f"{sweep(options.seed, is_short=options.short)} times, seed {options.seed}: no failure")


if __name__ == "__main__":
    sys.exit(main())
