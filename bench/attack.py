"""Senders of bare handshake messages, hostile and honest, for gateway.py.

    python bench/attack.py flood|honest ORDERS

Runs inside a namespace of the lab, as a process of its own; ORDERS is a JSON file:
the fields of Flood or Honest. One line of JSON on stdout is the result. Every
process ends by itself: a flood after its seconds, the others when their patience is over.

    flood    datagrams at a rate, made beforehand and sent over and over, in bursts paced
             by the clock; what falls more than 50 ms behind is dropped, not made up for
    honest   single handshakes, each from a socket of its own; like a WireGuard peer it
             asks again after 5 s, with a new timestamp, and with mac2 if it got a cookie.
             Then it asks for lanes, as fastpump does, and waits for the offer

They run at high priority where that is allowed, as if they had a machine of their own.
Times to start at are those of the monotonic clock, which all processes share.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fastpump.kernel import UDP_SEGMENT
from fastpump.protocol import cookie, keys, lane_messages, noise, tai64n, wire
from fastpump.protocol.lane_messages import Abilities, Hello, Mode, Offer

KINDS = {
    "none": "no flood: the baseline",
    "elsewhere": "to a port where nobody listens: what making the flood costs this machine",
    "random": "type 1, the rest random: mac1 is wrong",
    "replayed": "one valid initiation, again and again",
    "forged": "mac1 is right, the rest random, every message another",
    "spoofed": "as forged, from random addresses of 198.18.0.0/15 and random ports",
    "unknown": "messages of no session, in trains: the baseline of the next two",
    "hidden": "forged initiations behind a message of no session",
    "reverse": "messages of no session behind a forged initiation",
    "strays": "lane messages of no set, in trains: the baseline of the next",
    "reserved": "a peer's, of a set whose keys it never agrees on: they would be held",
    "keepalives": "a peer's: the baseline of the next two",
    "controls": "a peer's control packets, which mean nothing",
    "moving": "a peer's keepalives, from two ports in turn",
}
TRAINS = ("unknown", "hidden", "reverse", "strays", "reserved")
OF_LANES = ("strays", "reserved")
PEERS = ("keepalives", "controls", "moving")
MESSAGES = 100_000        # more than any receiver remembers
TRAIN_LEN = 60
OFFER_PATIENCE_S = 3.0
RETRY_S = 5.0                               # REKEY_TIMEOUT
HELLO_RETRY_S = 1.0                         # HELLO_TIMEOUT
ABILITIES = Abilities(Mode.TUN, (lane_messages.CHACHA20_POLY1305,), 1, 0, 1420)
LATE_S = 0.05
IP_HDRINCL = 3                              # linux/in.h


@dataclass(frozen=True)
class Flood:
    """Orders of a flood."""

    kind: str
    target: tuple[str, int]
    public: str
    """The gateway's."""
    captured: str
    """Private key of a peer: one whose initiation is replayed, or who is the attacker."""
    rate: float
    start: float
    seconds: float


@dataclass(frozen=True)
class Honest:
    """Orders of honest handshakes: (private key, source address, time to start) of each."""

    target: tuple[str, int]
    public: str
    tries: list[tuple[str, str, float]]
    patience_s: float


# -- flood


def forged(count: int, public: bytes) -> list[bytes]:
    """Initiations that nobody made, with a right mac1."""
    key = cookie.mac1_key(public)
    return [cookie.add_macs(random_initiation(), key) for _ in range(count)]


def random_initiation() -> bytes:
    """148 bytes that call themselves an initiation."""
    return b"\x01\0\0\0" + random.randbytes(wire.INITIATION_LEN - 4)


def with_headers(message: bytes, target: tuple[str, int]) -> bytes:
    """The message as an IPv4 packet from some address; the kernel fills in the rest of the
    header, and UDP does without a checksum."""
    length = 8 + len(message)
    source = bytes([198, random.choice((18, 19)), *random.randbytes(2)])
    return struct.pack("!BBHHHBBH4s4sHHHH", 0x45, 0, 20 + length, 0, 0, 64, socket.IPPROTO_UDP,
                       0, source, socket.inet_aton(target[0]), random.randrange(1024, 65536),
                       target[1], length, 0) + message


def trains(kind: str, public: bytes, index: int) -> list[bytes]:
    """Messages of one length, TRAIN_LEN of them behind each other; those of lanes for the set
    with this receiver index."""
    if kind in OF_LANES:
        counters = range(0, 500 * TRAIN_LEN, TRAIN_LEN)
        return [b"".join(lane_message(index, first + more) for more in range(TRAIN_LEN))
                for first in counters]
    unknown = [b"\x04\0\0\0" + random.randbytes(wire.INITIATION_LEN - 4)
               for _ in range(10 * TRAIN_LEN)]
    others = forged(MESSAGES // 10, public)
    first, rest = {"unknown": (unknown, unknown), "hidden": (unknown, others),
                   "reverse": (others, unknown)}[kind]
    return [b"".join([random.choice(first), *random.choices(rest, k=TRAIN_LEN - 1)])
            for _ in range(500)]


def lane_message(index: int, counter: int) -> bytes:
    """One that nobody sealed, on the set's first lane."""
    return struct.pack("<BBHIQ", wire.LANE_TYPE, 0, 0, index, counter) + random.randbytes(
        wire.INITIATION_LEN - 16)


class Session:
    """A peer's session with the gateway."""

    def __init__(self, remote_index: int, transport: noise.TransportKeys) -> None:
        self._remote_index = remote_index
        self._send = ChaCha20Poly1305(bytes(transport.send))
        self._receive = ChaCha20Poly1305(bytes(transport.receive))
        self._counter = itertools.count()

    def seal(self, inner: bytes) -> bytes:
        """The next transport message."""
        counter = next(self._counter)
        nonce = bytes(4) + counter.to_bytes(8, "little")
        header = struct.pack("<IIQ", wire.TRANSPORT_TYPE, self._remote_index, counter)
        return header + self._send.encrypt(nonce, inner + bytes(-len(inner) % 16), None)

    def open(self, message: bytes) -> bytes:
        """What is in one; b"" if it is none of ours."""
        try:
            return self._receive.decrypt(bytes(4) + message[8:16], message[16:], None)
        except InvalidTag:
            return b""


def handshake(orders: Flood, public: bytes, sock: socket.socket) -> Session:
    """The attacker's own session."""
    static = noise.DhKeyPair.from_private(keys.decode(orders.captured))
    initiation, state = noise.create_initiation(static, public, 1, tai64n.emit(time.time_ns()),
                                                static.exchange(public))
    sock.settimeout(5)
    sock.send(cookie.add_macs(initiation.emit(), cookie.mac1_key(public)))
    answer = wire.parse(sock.recv(2048))
    assert isinstance(answer, wire.Response)
    return Session(answer.sender_index, noise.consume_response(static, state, bytes(32), answer))


def offered(session: Session, sock: socket.socket) -> int:
    """Ask for lanes; the receiver index of those that the gateway offers."""
    sock.send(session.seal(Hello(ABILITIES).emit()))
    while True:
        found = lane_messages.parse(session.open(sock.recv(4096)))
        if found is not None and isinstance(found[0], Offer):
            return found[0].index


def sender_of(orders: Flood) -> Callable[[], int]:
    """What sends the next of the flood; how many datagrams."""
    public = keys.decode(orders.public)
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if orders.kind in TRAINS:
        sock.connect(orders.target)
        index = random.getrandbits(32)
        if orders.kind == "reserved":
            index = offered(handshake(orders, public, sock), sock)
        sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, wire.INITIATION_LEN)
        sock.setblocking(False)
        train = itertools.cycle(trains(orders.kind, public, index)).__next__

        def send_train() -> int:
            sock.send(train())
            return TRAIN_LEN
        return send_train
    if orders.kind in PEERS:
        sock.connect(orders.target)
        session = handshake(orders, public, sock)
        other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        other.connect(orders.target)
        turns = itertools.cycle((sock, other) if orders.kind == "moving" else (sock,))
        inner = Hello(ABILITIES).emit()[:9] if orders.kind == "controls" else b""
        for each in (sock, other):
            each.setblocking(False)

        def send_sealed() -> int:
            next(turns).send(session.seal(inner))
            return 1
        return send_sealed
    return stranger(orders, public, sock)


def stranger(orders: Flood, public: bytes, sock: socket.socket) -> Callable[[], int]:
    """What sends single messages that need no session."""
    if orders.kind == "spoofed":
        sock.close()
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        sock.setsockopt(socket.IPPROTO_IP, IP_HDRINCL, 1)
        messages = [with_headers(message, orders.target) for message in forged(MESSAGES, public)]
    elif orders.kind == "replayed":
        static = noise.DhKeyPair.from_private(keys.decode(orders.captured))
        initiation, _ = noise.create_initiation(
            static, public, 1, tai64n.emit(time.time_ns()), static.exchange(public))
        messages = [cookie.add_macs(initiation.emit(), cookie.mac1_key(public))]
    elif orders.kind == "forged":
        messages = forged(MESSAGES, public)
    else:
        messages = [random_initiation() for _ in range(MESSAGES)]
    sock.connect(orders.target)
    sock.setblocking(False)
    message = itertools.cycle(messages).__next__

    def send() -> int:
        sock.send(message())
        return 1
    return send


def flood(orders: Flood) -> dict[str, float]:
    """Send until the time is over: how many, in how many seconds."""
    send = sender_of(orders)
    late = int(orders.rate * LATE_S)
    sent = dropped = refused = 0
    time.sleep(max(0.0, orders.start - time.monotonic()))
    begin = now = time.monotonic()
    while now < begin + orders.seconds:
        due = int((now - begin) * orders.rate) - sent - dropped
        if due > late:
            dropped, due = dropped + due - late, late
        goal = sent + due
        while sent < goal:
            try:
                sent += send()
            except OSError:                 # an ICMP error that came in for one sent before
                sent, refused = sent + 1, refused + 1
        time.sleep(0.0005)
        now = time.monotonic()
    return {"sent": sent - refused, "seconds": now - begin}


# -- honest handshakes


class Try:
    """One peer who wants one handshake."""

    def __init__(self, orders: Honest, number: int) -> None:
        private, source, self.next = orders.tries[number]
        self.orders, self.number = orders, number
        self.public = keys.decode(orders.public)
        self.static = noise.DhKeyPair.from_private(keys.decode(private))
        self.timestamp = bytes(12)
        self.begin = self.hello_at = 0.0
        self.cookie: bytes | None = None
        self.session: Session | None = None
        self.result: dict[str, float | None] = {"ms": None, "attempts": 0, "cookies": 0,
                                                "offer_ms": None}
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((source, 0))
        self.sock.connect(orders.target)

    def send(self, now: float) -> None:
        """Another initiation; or, if there is a session, another HELLO."""
        if self.session is not None:
            self.next = now + HELLO_RETRY_S
            with contextlib.suppress(OSError):
                self.sock.send(self.session.seal(Hello(ABILITIES).emit()))
            return
        attempts = int(self.result["attempts"] or 0)
        self.timestamp = tai64n.emit_after(self.timestamp, time.time_ns())
        initiation, self.state = noise.create_initiation(
            self.static, self.public, self.number << 8 | attempts, self.timestamp,
            self.static.exchange(self.public))
        message = cookie.add_macs(initiation.emit(), cookie.mac1_key(self.public), self.cookie)
        self.mac1 = cookie.mac1_of(message)
        self.result["attempts"] = attempts + 1
        self.begin = self.begin or time.monotonic()
        self.next = now + RETRY_S
        with contextlib.suppress(OSError):
            self.sock.send(message)

    def receive(self) -> bool:
        """Read an answer; whether it is the last one."""
        try:
            answer = self.sock.recv(2048)
        except OSError:
            return False
        now = time.monotonic()
        if self.session is not None:
            found = lane_messages.parse(self.session.open(answer))
            if found is None or not isinstance(found[0], Offer):
                return False
            self.result["offer_ms"] = (now - self.hello_at) * 1e3
            return True
        if len(answer) == wire.COOKIE_REPLY_LEN and answer[0] == wire.COOKIE_REPLY_TYPE:
            self.result["cookies"] = (self.result["cookies"] or 0) + 1
        message = wire.parse(answer)
        if isinstance(message, wire.CookieReply):
            self.cookie = cookie.open_reply(cookie.cookie_key(self.public), self.mac1,
                                            message) or self.cookie
        if not isinstance(message, wire.Response) \
                or message.receiver_index != self.state.local_index:
            return False
        try:
            self.session = Session(message.sender_index, noise.consume_response(
                self.static, self.state, bytes(32), message))
        except noise.HandshakeError:
            return False
        self.result["ms"] = (now - self.begin) * 1e3
        self.hello_at = time.monotonic()
        self.send(self.hello_at)
        return False

    def is_over(self, now: float) -> bool:
        """Whether its patience is."""
        if self.session is not None:
            return now > self.hello_at + OFFER_PATIENCE_S
        return self.begin > 0 and now > self.begin + self.orders.patience_s


def honest(orders: Honest) -> list[dict[str, float | None]]:
    """Of each handshake, in order: milliseconds (None: no response), attempts and cookies; and
    milliseconds until lanes were offered (None: they were not)."""
    tries = [Try(orders, number) for number in range(len(orders.tries))]
    waiting = set(tries)
    while waiting:
        now = time.monotonic()
        for one in list(waiting):
            if one.is_over(now):
                waiting.remove(one)
            elif now >= one.next:
                one.send(now)
        by_socket = {one.sock: one for one in waiting if one.begin}
        wait = min([0.1, *(one.next - now for one in waiting)])
        for sock in select.select(list(by_socket), [], [], max(0.0, wait))[0]:
            if by_socket[sock].receive():
                waiting.remove(by_socket[sock])
    return [one.result for one in tries]


# -- the command


def main() -> None:
    """Command line."""
    with contextlib.suppress(PermissionError):
        os.nice(-10)
    words = json.loads(Path(sys.argv[2]).read_text())
    words["target"] = tuple(words["target"])
    result: object
    match sys.argv[1]:
        case "flood":
            result = flood(Flood(**words))
        case "honest":
            result = honest(Honest(**words))
        case other:
            raise SystemExit(f"{other}: flood or honest is expected")
    print(json.dumps(result))


def orders_file(directory: Path, orders: Flood | Honest) -> list[str]:
    """Words of the command line that carries out the orders."""
    name = type(orders).__name__.lower()
    path = directory / f"{name}.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(asdict(orders)))
    return [sys.executable, str(Path(__file__).resolve()), name, str(path)]


if __name__ == "__main__":
    main()
