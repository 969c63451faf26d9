"""WireGuard handshakes of many peers with one gateway: how many a second.

    python -m fastpump.bench.handshakes < ORDERS

Runs inside a host of a lab, as a process of its own; ORDERS is the JSON of an Orders, without its
name in the argument list, as it has keys. All messages are made beforehand, and the answers are
checked afterwards: meanwhile they are only sent and received, by one socket, a window at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass

from fastpump.bench.ends import Crowd
from fastpump.errors import SystemSetupError
from fastpump.lab.networks import Lab
from fastpump.protocol import cookie, keys, noise, tai64n, wire

LONGEST_S = 30


@dataclass(frozen=True)
class Orders:
    """What is to be done."""

    crowd: Crowd
    passes: int = 3
    """Handshakes of each peer, one after all others' one before."""
    window: int = 32
    """So many have no answer yet, at most."""
    silence_s: float = 1
    """After this long without an answer, those outstanding are lost."""


@dataclass(frozen=True)
class Done:
    """What came of it."""

    sent: int
    responses: int
    """That are right."""
    invalid: int
    cookies: int
    lost: int
    seconds: float
    """From the first message to the last answer."""

    @property
    def per_s(self) -> float:
        """Answered handshakes a second."""
        return self.responses / self.seconds


def run_handshakes(lab: Lab, client: str, crowd: Crowd, passes: int = Orders.passes,
                   window: int = Orders.window) -> Done:
    """Shake hands as the crowd, from a host of the lab. SystemSetupError if nobody answers."""
    ran = lab.run(client, sys.executable, "-m", __spec__.name,
                  input=json.dumps(asdict(Orders(crowd, passes, window))), timeout=2 * LONGEST_S)
    done = Done(**json.loads(ran.stdout))
    if not done.responses:
        raise SystemSetupError(f"no handshake was answered by {crowd.endpoint[0]}")
    return done


def shake(orders: Orders) -> Done:
    """Do it."""
    crowd = orders.crowd
    public = keys.decode(crowd.gateway)
    mac1_key = cookie.mac1_key(public)
    statics = [noise.DhKeyPair.from_private(keys.decode(private)) for private in crowd.privates]
    messages: list[bytes] = []
    states: list[noise.InitiatorState] = []
    timestamp = bytes(12)
    for static in statics * orders.passes:
        timestamp = tai64n.emit_after(timestamp, time.time_ns())
        initiation, state = noise.create_initiation(static, public, len(states), timestamp,
                                                    static.exchange(public))
        messages.append(cookie.add_macs(initiation.emit(), mac1_key))
        states.append(state)
    answers: list[bytes] = []
    outstanding: set[int] = set()
    sent = cookies = lost = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.connect(crowd.endpoint)
        sock.settimeout(orders.silence_s)
        begin = last = time.monotonic()
        while (sent < len(messages) or outstanding) and time.monotonic() < begin + LONGEST_S:
            while sent < len(messages) and len(outstanding) < orders.window:
                sock.send(messages[sent])
                outstanding.add(sent)
                sent += 1
            try:
                answer = sock.recv(2048)
            except TimeoutError:
                lost += len(outstanding)
                outstanding.clear()
                continue
            if answer[0] == wire.RESPONSE_TYPE:
                answers.append(answer)
                index = int.from_bytes(answer[8:12], "little")
            elif answer[0] == wire.COOKIE_REPLY_TYPE:
                cookies += 1
                index = int.from_bytes(answer[4:8], "little")
            else:                               # a keepalive perhaps
                continue
            outstanding.discard(index)
            last = time.monotonic()
    valid = 0
    for answer in answers:
        message = wire.parse(answer)
        with contextlib.suppress(noise.HandshakeError, IndexError):
            if isinstance(message, wire.Response):
                index = message.receiver_index
                noise.consume_response(statics[index % len(statics)], states[index], bytes(32),
                                       message)
                valid += 1
    return Done(sent, valid, len(answers) - valid, cookies, lost + len(outstanding),
                max(last - begin, 1e-9))


def main() -> None:
    """At high priority where that is allowed, as if it had a machine of its own."""
    with contextlib.suppress(PermissionError):
        os.nice(-10)
    words = json.load(sys.stdin)
    crowd = words.pop("crowd")
    crowd["endpoint"] = tuple(crowd["endpoint"])
    print(json.dumps(asdict(shake(Orders(Crowd(**crowd), **words)))))


if __name__ == "__main__":
    main()
