"""UDP at a fixed rate between two hosts of a lab: what arrived, in what order, how late.

    python -m fastpump.bench.packets receive JSON
    python -m fastpump.bench.packets send JSON

Both ends are processes of their own, inside the hosts; the receiver is ended by SIGTERM, and prints
what it counted. What happens per packet is in _packets.pyx.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastpump.bench._packets import Receiver, Sender
from fastpump.errors import SystemSetupError
from fastpump.kernel import SO_RCVBUFFORCE, SO_TIMESTAMPNS, UDP_SEGMENT
from fastpump.lab.networks import Lab, stop, wait_for_line

BUFFER_BYTES = 8 << 20
"""Of the receiver, who looks once a millisecond."""
LOOK_S = 0.001
QUIET_S = 0.1
"""Nothing has come for so long: the run is over."""


@dataclass(frozen=True)
class Stream:
    """What is sent."""

    sizes: tuple[int, ...]
    """Of payload, in bytes: packets have them in turn."""
    rate: int
    """Packets per second, of all flows together; 0: as many as the sender can."""
    flows: int = 1
    """So many UDP ports of the sender, in turn."""
    segments: int = 1
    """So many are given to the kernel as one (UDP_SEGMENT)."""
    ack_every: int = 0
    """So many are answered by one small packet; 0: none."""


@dataclass(frozen=True)
class Arrived:
    """What came of a stream."""

    sent: int
    seconds: float
    """For so long it was sent."""
    received: int
    """Each packet once."""
    octets: int
    reordered: int
    repeated: int
    damaged: int
    delays_ns: Sequence[tuple[int, int]]
    """(At least so many ns from the sender's system call to the receiver's kernel, of so many
    packets), ascending."""

    @property
    def lost(self) -> float:
        """The share of those that were sent."""
        return max(0, self.sent - self.received) / self.sent if self.sent else 0.0

    @property
    def packets_per_s(self) -> float:
        """That arrived."""
        return self.received / self.seconds

    def delay_us(self, percent: float) -> float:
        """The delay that so many percent of the packets do not exceed; nan if there are none."""
        wanted, found = self.received * percent / 100, 0
        for delay, count in self.delays_ns:
            found += count
            if found >= wanted:
                return delay / 1e3
        return float("nan")


def run_stream(lab: Lab, client: str, server: str, host: str, stream: Stream,
               seconds: float) -> Arrived:
    """Send from `client` to `host`, an address of `server`. SystemSetupError if either end
    fails."""
    words = {"host": host, "seconds": seconds, "run": secrets.randbits(32), **asdict(stream)}
    command = sys.executable, "-m", __spec__.name
    receiver = lab.spawn(server, *command, "receive", json.dumps(words))
    try:
        words["port"] = int(wait_for_line(receiver, "listening").rpartition(" ")[2])
        # A sender that may not run is late, never endless.
        sent = json.loads(lab.run(client, *command, "send", json.dumps(words),
                                  timeout=3 * seconds + 30).stdout)
        said = stop(receiver)
    except subprocess.TimeoutExpired:
        raise SystemSetupError(f"{client} was still sending after {3 * seconds + 30:g} s") from None
    finally:
        stop(receiver)
        lab.processes.remove(receiver)
    try:
        counted = json.loads(said)
    except ValueError:
        raise SystemSetupError(f"the receiver in {server} failed: {said.strip()}") from None
    return Arrived(sent, seconds, **counted)


def send(words: dict[str, Any]) -> int:
    """Send a stream; how many packets."""
    family, _, _, _, address = socket.getaddrinfo(
        words["host"], words["port"], type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)[0]
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                   for _ in range(words["flows"])]
        for sock in sockets:
            sock.connect(address)
            if words["segments"] > 1:
                sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, words["sizes"][0])
        sender = Sender([sock.fileno() for sock in sockets], words["sizes"], words["rate"],
                        words["run"], words["segments"])
        sender.send(words["seconds"])
    return sender.sent


def receive(words: dict[str, Any]) -> dict[str, Any]:
    """Receive a stream until SIGTERM, and what is under way then: fields of `Arrived`."""
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    family = socket.AF_INET6 if ":" in words["host"] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.bind(("", 0))
        print(f"listening on port {sock.getsockname()[1]}", flush=True)
        receiver = Receiver(sock.fileno(), words["run"], words["flows"], words["ack_every"])
        heard = time.monotonic()
        while not ended or time.monotonic() < heard + QUIET_S:
            if receiver.drain():
                heard = time.monotonic()
            time.sleep(LOOK_S)
    return {"received": receiver.received, "octets": receiver.octets,
            "reordered": receiver.reordered, "repeated": receiver.repeated,
            "damaged": receiver.damaged, "delays_ns": receiver.delays_ns()}


if __name__ == "__main__":
    try:
        print(json.dumps({"send": send, "receive": receive}[sys.argv[1]](
            json.loads(sys.argv[2]))))
    except OSError as error:
        sys.exit(str(error))
