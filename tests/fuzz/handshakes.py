"""Handshake messages of an attacker who reads and writes the network, and may be a peer."""

from __future__ import annotations

import socket
from collections import deque

from fastpump._core import ADMIT_HANDSHAKE, ADMIT_TRANSPORT, Admission, SharedTables
from fastpump.conn.endpoint import NO_SOURCE_ADDRESS
from fastpump.constants import (
    REKEY_TIMEOUT,
    REKEY_TIMEOUT_JITTER,
    SECOND,
)
from fastpump.device.handshake_queue import HandshakeQueue, QueueCallbacks
from fastpump.protocol import cookie, noise, tai64n
from fuzz.common import PRIVATE_KEYS, STATICS, cookie_for, telling
from support import devices
from support.devices import PLACE

# Of order 1, 2, 4 and 8, and the same not reduced (cr.yp.to/ecdh.html, "how do I validate").
LOW_ORDER = [bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f",
             b"\xed" + b"\xff" * 30 + b"\x7f", b"\xee" + b"\xff" * 30 + b"\x7f",
             bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
             bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157")]
# Where the fields of a message are, and where they end: type, indices, and so on.
FIELDS = {1: (0, 4, 8, 40, 88, 116, 132, 148), 2: (0, 4, 8, 12, 44, 60, 76, 92),
          3: (0, 4, 8, 32, 64), 4: (0, 4, 8, 16, 32)}
LENGTHS = {1: 148, 2: 92, 3: 64}
MAX_TIMESTAMP = b"\xff" * 12


def core(message):
    """What of a message is proof of who made it: its sender's index and the macs are not
    (anybody who knows the receiver's public key can make them), nor is a cookie's index."""
    if message[:4] == b"\1\0\0\0" and len(message) == 148:
        return b"1" + message[8:116]
    if message[:4] == b"\2\0\0\0" and len(message) == 92:
        return b"2" + message[8:60]
    if message[:4] == b"\3\0\0\0" and len(message) == 64:
        return b"3" + message[8:]
    return message


class Side(devices.Side):
    """One end: a device behind its admission control; its peers' slots are as few as can be."""

    def __init__(self, world, name, private, peer_count):
        self.world, self.admission = world, Admission()
        self.passed_on, self.used = 0, set()
        super().__init__(world, name, tables=SharedTables.create(2, peer_count, 8),
                         private_key=private, jitter=world.rng.randrange)
        self.queue = HandshakeQueue(self.device, self.admission, QueueCallbacks(
            on_slice=lambda: None, on_passed_on=lambda _: None))
        self.public = self.device.public_key
        self.mac1_key = cookie.mac1_key(self.public)
        self.cookie_key = cookie.cookie_key(self.public)
        self.admission.set_keys(self.mac1_key, self.cookie_key)

    @property
    def peer(self):
        """The other honest side."""
        other = self.world.b if self is self.world.a else self.world.a
        return self.device.peers[other.public]

    def on_endpoint(self, before, after):
        if before is not None:
            self.admission.remove_known(before.sockaddr(socket.AF_INET6))
        if after is not None:
            self.admission.add_known(after.sockaddr(socket.AF_INET6))

    def transmit(self, message, where, _local):
        self.world.authors[core(message)] = self.public
        self.world.history.append(message)
        self.world.flying.append((self.name, message, where))

    def pass_on(self, message):
        """What a worker does with a transport message, as far as we can tell here."""
        self.passed_on += 1
        if self.world.authors.get(message) not in self.device.peers:
            return
        peer = self.device.peers[self.world.authors[message]]
        newest = peer.keypairs.next
        if newest is not None and newest.local_index.to_bytes(4, "little") == message[4:8]:
            self.event("confirmed", newest.slot, peer=peer)

    def keypairs(self, peer):
        return {keypair for keypair in (peer.keypairs.current, peer.keypairs.previous,
                                        peer.keypairs.next) if keypair is not None}

    def counted(self):
        return (self.device.verdicts.total() + self.queue.verdicts.total()
                + sum(self.admission.verdicts.values()) + self.passed_on)

    def take(self, message, where):
        """One datagram, and what must hold of it."""
        now, author = self.world.now, self.world.authors.get(core(message))
        before = {peer: (self.keypairs(peer), peer.endpoint, peer.cookie)
                  for peer in self.device.peers.values()}
        counted = self.counted()
        sockaddr = where.sockaddr(socket.AF_INET6)
        verdict = self.admission.judge(message, sockaddr, now)
        if verdict == ADMIT_HANDSHAKE:
            self.queue.add((message, sockaddr, NO_SOURCE_ADDRESS), now)
        elif verdict == ADMIT_TRANSPORT:
            self.pass_on(message)
        assert not self.queue.serve(lambda: now)
        for peer, (keypairs, endpoint, known_cookie) in before.items():
            if author != peer.public_key:
                assert self.keypairs(peer) <= keypairs, "a session by somebody else's message"
                assert peer.endpoint == endpoint and peer.cookie == known_cookie
            elif self.keypairs(peer) <= keypairs:
                assert peer.endpoint == endpoint, "a message that made nothing moved the peer"
            else:
                assert core(message) not in self.used, "two sessions by one message"
                self.used.add(core(message))
        assert author is not None or self.counted() == counted + 1, "it was not counted once"
        self.check()

    def check(self):
        """No index is kept but of sessions and handshakes; slots are never short."""
        expected = set()
        for peer in self.device.peers.values():
            expected |= {keypair.local_index for keypair in self.keypairs(peer)}
            if peer.handshake is not None:
                expected.add(peer.handshake.local_index)
        assert set(self.device.sessions._by_index) == expected
        assert self.device.verdicts["DROP_TABLE_FULL"] == 0
        assert len(self.device.deadlines) < 64
        self.check_callbacks()

    def tick(self):
        super().tick()
        deadline = self.device.next_deadline()
        assert deadline is None or deadline > self.world.now
        self.check()


class World(devices.Clock):
    """Two honest sides, the network between them, and mallory who reads and writes it. On
    b mallory may be a peer too."""

    def __init__(self, rng, inputs):
        super().__init__()
        self.rng, self.inputs = rng, inputs
        self.flying, self.history, self.authors = deque(), [], {}
        self.mallory = STATICS[2]
        self.is_insider = rng.random() < 0.3
        self.a = Side(self, "a", PRIVATE_KEYS[0], 1)
        self.b = Side(self, "b", PRIVATE_KEYS[1], 1 + self.is_insider)
        if self.is_insider:
            self.b.configure(self.mallory.public)
        preshared = rng.choice((bytes(32), b"\x05" * 32))
        for one, other in ((self.a, self.b), (self.b, self.a)):
            one.configure(other.public, preshared_key=preshared, endpoint=PLACE[other.name],
                          keepalive_s=rng.choice((0, 0, 1, 25)))

    def advance(self, ns):
        self.pass_time(ns)
        self.a.tick()
        self.b.tick()

    def deliver(self, message, where, to):
        self.inputs.append((self.now, where.address.packed[3], to.name, message.hex()))
        to.take(message, where)

    def pass_on(self):
        """The oldest message that is under way, if it goes to where somebody honest is."""
        name, message, where = self.flying.popleft()
        to = {PLACE["a"]: self.a, PLACE["b"]: self.b}.get(where)
        if to is not None:
            self.deliver(message, PLACE[name], to)

    def forge(self, to):
        """A message that mallory makes of what she has seen."""
        rng = self.rng
        if not self.history or rng.random() < 0.1:
            return self.made_up(to)
        message = bytearray(rng.choice(self.history[-12:]))
        kind = message[0]
        for _ in range(rng.randint(1, 3)):
            bounds = FIELDS[kind]
            place = rng.randrange(len(bounds) - 1)
            start, end = bounds[place], bounds[place + 1]
            what = rng.randrange(9)
            if what <= 2:
                bit = rng.randrange(len(message) * 8) if message else 0
                message[bit // 8:bit // 8 + 1] = bytes([message[bit // 8] ^ 1 << bit % 8])
            elif what == 3:     # a field of another message
                others = [other for other in self.history[-30:] if other[0] == kind]
                message[start:end] = rng.choice(others)[start:end]
            elif what == 4 and kind in (1, 2):
                start = 8 if kind == 1 else 12
                message[start:start + 32] = rng.choice(LOW_ORDER)
            elif what == 5:
                message[start:end] = rng.choice((bytes, rng.randbytes))(end - start)
            elif what == 6:
                message[4:8] = rng.choice(self.history)[4:8]
            elif what == 7 and kind in (2, 3):
                message[4 * (kind == 2) + 4:][:4] = bytes(4)
            elif what == 8 and rng.random() < 0.3:
                del message[rng.randrange(len(message)):]
                message += rng.randbytes(rng.choice((0, 1, 60, 148)))
                break
            if not message:
                break
        return bytes(message)

    def made_up(self, to):
        """One that owes nothing to others'."""
        rng, what = self.rng, self.rng.randrange(5)
        if what == 0:
            return rng.randbytes(rng.randrange(200))
        if what == 1:
            kind = rng.choice((1, 2, 3))
            return bytes([kind, 0, 0, 0]) + rng.randbytes(LENGTHS[kind] - 4)
        if what == 2:       # whoever she says that she is, she cannot make the timestamp's key
            claimed = rng.choice((self.a.public, self.b.public, *LOW_ORDER))
            fake = noise.DhKeyPair.generate()
            fake.public = claimed
            message, _ = noise.create_initiation(fake, to.public, rng.getrandbits(32),
                                                 MAX_TIMESTAMP, bytes(32))
            return message.emit()
        message, _ = noise.create_initiation(
            self.mallory, to.public, rng.getrandbits(32),
            rng.choice((bytes(12), MAX_TIMESTAMP, tai64n.emit(self.unix_ns))),
            self.mallory.exchange(to.public))
        emitted = message.emit()
        self.authors[core(emitted)] = self.mallory.public
        return emitted

    def attack(self):
        rng = self.rng
        to = rng.choice((self.a, self.b))
        where = rng.choice((PLACE["mallory"], PLACE["a" if to is self.b else "b"]))
        message = self.forge(to) if rng.random() < 0.8 or not self.history else (
            rng.choice(self.history))
        if len(message) in (92, 148) and rng.random() < 0.75:
            value = cookie_for(to.admission, to.cookie_key, where.sockaddr(socket.AF_INET6))
            message = cookie.add_macs(message, to.mac1_key, rng.choice((None, value, bytes(16))))
        if message and message[0] in FIELDS:
            self.history.append(message)
        self.deliver(message, where, to)

    def step(self):
        rng, what = self.rng, self.rng.randrange(100)
        side = rng.choice((self.a, self.b))
        if what < 18:
            side.want_session()
        elif what < 40:
            if self.flying:
                self.pass_on()
        elif what < 70:
            self.attack()
        elif what < 78:
            self.advance(rng.choice((1, SECOND // 50, SECOND, 5 * SECOND, 6 * SECOND)))
        elif what < 82:
            self.advance(rng.choice((10, 25, 90, 120, 165, 180, 540, 100_000)) * SECOND)
        elif what < 86:
            rng.shuffle(self.flying)
        elif what < 90:
            if self.flying:
                self.flying.append(self.flying[0])
                if rng.random() < 0.5:
                    self.flying.popleft()
        elif what < 92:
            side.admission.declare_overload(self.now + rng.randrange(3 * SECOND))
            for _ in range(rng.randrange(16)):
                self.deliver(cookie.add_macs(b"\1\0\0\0" + rng.randbytes(144), side.mac1_key),
                             PLACE["a" if side is self.b else "b"], side)
        elif what < 93:
            if self.history and len(self.history[-1]) in LENGTHS.values():
                there = PLACE["b" if side is self.a else "a"]
                side.transmit(side.admission.cookie_reply(
                    self.history[-1], there.sockaddr(socket.AF_INET6)), there, NO_SOURCE_ADDRESS)
        elif what < 95:
            self.unix_ns = max(0, self.unix_ns + rng.choice((-1, 1)) * rng.randrange(10 ** 15))
        elif what < 97:
            if side.device.is_up:
                side.device.stop()
            else:
                side.device.start(self.now)
        else:
            side.tick()
        side.check()

    def honest(self):
        """A session of both is made whatever was before, and confirmed."""
        for side in (self.a, self.b):
            if not side.device.is_up:
                side.device.start(self.now)
            side.configure(side.peer.public_key, endpoint=PLACE["b" if side is self.a else "a"])
        begin = self.now
        # Two tries at most are lost: to a flood of our own (20 ms), to a cookie.
        while self.now <= begin + 3 * (REKEY_TIMEOUT + REKEY_TIMEOUT_JITTER):
            self.a.want_session()
            while self.flying:
                self.pass_on()
            ours, theirs = self.a.peer.keypairs.current, self.b.peer.keypairs.current
            if ours is not None and theirs is not None and ours.created_ns >= begin and (
                    ours.local_index, ours.remote_index) == (
                    theirs.remote_index, theirs.local_index):
                return
            self.advance(SECOND // 2)
        raise AssertionError("an honest handshake does not complete")


def check_handshakes(rng):
    """Whatever is said by whom: only who has the keys makes sessions, nothing is kept of the
    rest, and honest handshakes still complete."""
    inputs = []
    with telling(inputs):
        world = World(rng, inputs)
        for _ in range(rng.choice((2, 6, 12, 25))):
            world.step()
        world.honest()
