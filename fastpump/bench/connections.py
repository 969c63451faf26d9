"""Short TCP connections between two hosts of a lab: how many a second, and how long each takes.

    python -m fastpump.bench.connections serve JSON
    python -m fastpump.bench.connections connect JSON

In each the client sends one byte, and the server answers with one and closes, so that it is the one
who keeps the connection in TIME-WAIT. A number of them is under way at any time.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any

from fastpump.errors import SystemSetupError
from fastpump.lab.networks import Lab, stop, wait_for_line

PATIENCE_S = 10
"""No connection has ended for so long: the load has failed."""


@dataclass(frozen=True)
class Connections:
    """Those that ended within the time."""

    seconds: float
    times_ms: list[float]
    """From the first segment to the answer, ascending."""

    @property
    def per_s(self) -> float:
        """How many a second."""
        return len(self.times_ms) / self.seconds


def run_connections(lab: Lab, client: str, server: str, host: str, at_once: int,
                    seconds: float) -> Connections:
    """Connect from `client` to `host`, an address of `server`. SystemSetupError if it fails."""
    words: dict[str, Any] = {"host": host, "at_once": at_once, "seconds": seconds}
    command = sys.executable, "-m", __spec__.name
    listener = lab.spawn(server, *command, "serve", json.dumps(words))
    try:
        words["port"] = int(wait_for_line(listener, "listening").rpartition(" ")[2])
        times = json.loads(lab.run(client, *command, "connect", json.dumps(words),
                                   timeout=seconds + PATIENCE_S + 30).stdout)
    finally:
        stop(listener)
        lab.processes.remove(listener)
    if not times:
        raise SystemSetupError(f"no connection to {host} ended within {PATIENCE_S} s")
    return Connections(seconds, sorted(times))


def serve(words: dict[str, Any]) -> None:
    """Answer until SIGTERM."""
    family = socket.AF_INET6 if ":" in words["host"] else socket.AF_INET
    with socket.create_server(("", 0), family=family, backlog=1024) as listener:
        print(f"listening on port {listener.getsockname()[1]}", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(connection.recv(1))


def connect(words: dict[str, Any]) -> list[float]:
    """The times in ms of all that ended."""
    client = _Client(words)
    with client.poll:
        try:
            return client.run(words["at_once"], words["seconds"])
        finally:
            for sock, _ in client.under_way.values():
                sock.close()


class _Client:
    def __init__(self, words: dict[str, Any]) -> None:
        self.family = socket.AF_INET6 if ":" in words["host"] else socket.AF_INET
        self.where = (words["host"], words["port"])
        self.poll = select.epoll()
        self.under_way: dict[int, tuple[socket.socket, float]] = {}
        """By descriptors: since when."""

    def begin(self) -> None:
        sock = socket.socket(self.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.under_way[sock.fileno()] = sock, time.monotonic()
        sock.connect_ex(self.where)
        self.poll.register(sock, select.EPOLLOUT)

    def run(self, at_once: int, seconds: float) -> list[float]:
        times: list[float] = []
        for _ in range(at_once):
            self.begin()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            events = self.poll.poll(max(0, end - time.monotonic()) if times else PATIENCE_S)
            if not events and not times:
                break
            for number, event in events:
                sock, began = self.under_way[number]
                if event & select.EPOLLERR:
                    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    raise OSError(error, os.strerror(error))
                if event & select.EPOLLOUT:
                    sock.send(b"x")
                    self.poll.modify(sock, select.EPOLLIN)
                elif not sock.recv(1):
                    raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
                else:
                    times.append(1e3 * (time.monotonic() - began))
                    del self.under_way[number]
                    sock.close()
                    self.begin()
        return times


if __name__ == "__main__":
    try:
        print(json.dumps({"serve": serve, "connect": connect}[sys.argv[1]](
            json.loads(sys.argv[2]))))
    except OSError as error:
        sys.exit(str(error))
