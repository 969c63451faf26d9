"""The far end of `fastpump bench --client`: receives load, and says what its tunnel's programs use.

    fastpump bench --server
    python -m fastpump.bench.remote HOST PORT REQUEST

A client connects (TCP) and sends one line of JSON, a list:

    ["usage", NAME]           what the programs of that name have used:
                              [CPU seconds, bytes of memory]
    ["packets", {...}]        receive packets (packets.py); ...
    ["connections", {...}]    ... or connections (connections.py)

The last two run until the client closes its half of the connection. What they print is sent back;
for what cannot be done, one line {"error": TEXT}. iperf3 serves TCP on ports of its own. Nothing
else can be asked for, and no rights are needed; yet whoever can connect can keep this host busy:
let it run for as long as it takes to measure.

The second command is what a client runs for one request: its output is the program's, and SIGTERM
ends that.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastpump.errors import ConfigError, SystemSetupError
from fastpump.lab.networks import IPERF_PORTS, cpu_seconds, need, resident_bytes

PORT = 5199
"""Of requests; iperf3 has IPERF_PORTS."""
MOST_REQUESTS = 8
"""At once."""
LONGEST_REQUEST = 4096
PATIENCE_S = 10
"""For a request, and for a program that is to end."""
_VERBS = {"packets": "receive", "connections": "serve"}
# What they take: {name: (least, most)}, besides the host.
_BOUNDS = {"run": (0, 2**32 - 1), "flows": (1, 4096), "ack_every": (0, 1_000_000)}


def pids_of(name: str) -> list[int]:
    """The processes whose program, or script, has that name; without this one and those that it
    was started by, who may be called fastpump, too, and have the load among their descendants."""
    found, own = [], _own_line()
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) not in own:
            with contextlib.suppress(OSError):
                words = (path / "cmdline").read_bytes().split(b"\0")
                if name in {Path(word.decode(errors="replace")).name for word in words[:2]}:
                    found.append(int(path.name))
    return found


def _own_line() -> set[int]:
    pid, found = os.getpid(), set()
    while pid > 1:
        found.add(pid)
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        pid = int(stat.rpartition(")")[2].split()[1])
    return found


def usage(name: str) -> tuple[float, int]:
    """CPU seconds and bytes of memory of the programs of a name, and what they started."""
    pids = pids_of(name)
    return cpu_seconds(pids), resident_bytes(pids)


def _program(request: Any) -> list[str]:
    """The command line of a request; ConfigError if it is none."""
    try:
        what, words = request
        verb = _VERBS[what]
        checked: dict[str, Any] = {"host": "::" if ":" in words["host"] else "0.0.0.0"}
        for name, (least, most) in _BOUNDS.items():
            value = words.get(name, least)
            if type(value) is not int or not least <= value <= most:
                raise ConfigError(f"{name} is {least} to {most}")
            checked[name] = value
    except (TypeError, ValueError, KeyError, AttributeError):
        raise ConfigError("no such request") from None
    return [sys.executable, "-m", f"fastpump.bench.{what}", verb, json.dumps(checked)]


class _Handler(socketserver.StreamRequestHandler):
    timeout = PATIENCE_S

    def handle(self) -> None:
        assert isinstance(self.server, Server)
        with contextlib.suppress(OSError):
            line = self.rfile.readline(LONGEST_REQUEST)
            if not self.server.room.acquire(blocking=False):
                self._answer({"error": f"{MOST_REQUESTS} requests are under way already"})
                return
            try:
                self._handle(line)
            except ConfigError as error:
                self._answer({"error": str(error)})
            finally:
                self.server.room.release()

    def _answer(self, answer: Any) -> None:
        self.wfile.write(json.dumps(answer).encode() + b"\n")

    def _handle(self, line: bytes) -> None:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            raise ConfigError("no such request") from None
        match request:
            case ["usage", str(name)]:
                self._answer(usage(name))
            case _:
                self._run(_program(request))

    def _run(self, command: list[str]) -> None:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, process_group=0) as process:
            assert process.stdout is not None
            relay = threading.Thread(target=self._relay, args=(process.stdout.fileno(),))
            relay.start()
            try:
                self.connection.settimeout(None)
                while self.rfile.read(1):       # until the client has closed its half
                    pass
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE_S)
                process.kill()
                relay.join()

    def _relay(self, output: int) -> None:
        with open(output, "rb", buffering=0, closefd=False) as file, contextlib.suppress(OSError):
            while data := file.read(65536):
                self.connection.sendall(data)


class Server(socketserver.ThreadingTCPServer):
    """Answers requests until it is shut down."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: str, port: int = PORT) -> None:
        """`address`: "" for all. SystemSetupError."""
        is_dual = not address and socket.has_dualstack_ipv6()
        self.address_family = (socket.AF_INET6 if is_dual or ":" in address else socket.AF_INET)
        self.room = threading.Semaphore(MOST_REQUESTS)
        try:
            super().__init__((address, port), _Handler)
        except OSError as error:
            raise SystemSetupError(f"{address} port {port}: {error.strerror}") from None


def serve(address: str, say: Callable[[str], None]) -> None:
    """Serve on an address ("": on all) until a signal ends it. SystemSetupError."""
    need("iperf3")
    with Server(address) as server, contextlib.ExitStack() as stack:
        for port in IPERF_PORTS:
            bind = ["--bind", address] if address else []
            iperf = stack.enter_context(subprocess.Popen(
                ["iperf3", "--server", *bind, "--port", port, "--json"],
                stdout=subprocess.DEVNULL, process_group=0))
            stack.callback(iperf.terminate)
        say(f"serving on {address or 'all addresses'}: TCP ports {PORT}, {', '.join(IPERF_PORTS)}, "
            "and others, TCP and UDP, for the time of a load")
        server.serve_forever()


def ask(host: str, port: int, request: Any) -> socket.socket:
    """A connection on which a request has been sent. SystemSetupError."""
    try:
        connection = socket.create_connection((host, port), PATIENCE_S)
        connection.settimeout(None)
        connection.sendall(json.dumps(request).encode() + b"\n")
    except OSError as error:
        raise SystemSetupError(f"{host} port {port}: {error.strerror or error}; `fastpump bench "
                               "--server` has to run there") from None
    return connection


def main(words: list[str]) -> int:
    """Make one request, and print what it gives."""
    host, port, request = words
    with ask(host, int(port), json.loads(request)) as connection:
        signal.signal(signal.SIGTERM, lambda *_: connection.shutdown(socket.SHUT_WR))
        while data := connection.recv(65536):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except SystemSetupError as error:
        sys.exit(str(error))
