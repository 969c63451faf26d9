"""What tests do on the hosts of a lab: wait, ping, move data, look at processes."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from fastpump.lab import stop, wait_for_line

FASTPUMP = [sys.executable, "-m", "fastpump"]


def until(condition, timeout_s=10):
    """Wait for something that another process does; its value."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError("did not happen in time")


def is_reachable(lab, host, side="a"):
    return lab.run(side, "ping", "-c", "1", "-W", "5", host, check=False).returncode == 0


def transfer(lab, sender, host, size, port="7000", seconds=0):
    """Send `size` random bytes over TCP, evenly over `seconds`; whether their hash arrived."""
    receiver = lab.spawn("b" if sender == "a" else "a", sys.executable, "-c", (
        "import hashlib, socket, sys\n"
        "family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET\n"
        "server = socket.create_server((sys.argv[1], int(sys.argv[2])), family=family)\n"
        "print('listening', flush=True)\n"
        "connection, _ = server.accept()\n"
        "digest = hashlib.sha256()\n"
        "while data := connection.recv(1 << 20):\n"
        "    digest.update(data)\n"
        "print('hash', digest.hexdigest(), flush=True)\n"), host, port)
    wait_for_line(receiver, "listening")
    sent = lab.run(sender, sys.executable, "-c", (
        "import hashlib, os, socket, sys, time\n"
        "connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)\n"
        "digest = hashlib.sha256()\n"
        "pieces = int(sys.argv[3]) >> 16\n"
        "for _ in range(pieces):\n"
        "    data = os.urandom(1 << 16)\n"
        "    digest.update(data)\n"
        "    connection.sendall(data)\n"
        "    time.sleep(float(sys.argv[4]) / pieces)\n"
        "connection.close()\n"
        "print(digest.hexdigest())\n"), host, port, str(size), str(seconds),
        timeout=seconds + 60).stdout.strip()
    received = wait_for_line(receiver, "hash").split()[1]
    stop(receiver)
    lab.processes.remove(receiver)
    return sent == received


def children(pid):
    """Live descendants of a process."""
    found = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *children(int(child))]
    except FileNotFoundError:
        pass        # it ended meanwhile
    return found


def is_worker(pid):
    try:
        return b"fastpump.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
