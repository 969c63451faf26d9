"""What tests do on the hosts of a lab: wait, ping, move data, look at processes."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import secrets
import signal
import socket
import sys
import time
from pathlib import Path

from fastpump.host.undo_record import LOCK
from fastpump.lab.networks import ip, stop, wait_for_line
from fastpump.protocol import keys

FASTPUMP = [sys.executable, "-m", "fastpump"]
WG_SOCKETS = Path("/var/run/wireguard")


def until(condition, timeout_s=30):
    """Wait for something that another process does; its value."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError("did not happen in time")


def open_files():
    """How many this process has, but for those that are garbage, of any test before."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def with_tun_device(mode, *command):
    """The command as `Lab.run` takes it, with a /dev/net/tun of its own, which has that mode. (The
    host's has 0600 or 0666, and `ip netns exec` makes a mount namespace.)"""
    return ["sh", "-euc", "mount -t tmpfs -o mode=755 tmpfs /dev/net\n"
            f"mknod -m {mode:o} /dev/net/tun c 10 200\n"
            'exec "$@"', "sh", *command]


def as_user(number, *command):
    """The command as a user who may change nothing, but read this program wherever it is
    installed: often in a home directory that is closed to others."""
    return ["setpriv", "--reuid", str(number), "--regid", str(number), "--clear-groups",
            *(f"--{which}=-all,+dac_read_search"
              for which in ("inh-caps", "ambient-caps", "bounding-set")), *command]


def is_reachable(lab, host, side="a", timeout_s=5):
    return lab.run(side, "ping", "-c", "1", "-W", str(timeout_s), host,
                   check=False).returncode == 0


def transfer(lab, sender, host, size, port="7000", seconds=0, stall_s=20):
    """Send `size` random bytes over TCP, evenly over `seconds`; whether their hash arrived. What is
    sent at once then fits into the default buffer of a peer's socket, also after the CPU was
    somebody else's for a while. `stall_s`: how long nothing may move."""
    receiver = lab.spawn("a" if sender == "b" else "b", sys.executable, "-c", (
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
        "connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), "
        "float(sys.argv[5]))\n"
        "digest = hashlib.sha256()\n"
        "seconds = float(sys.argv[4])\n"
        "piece = 1 << 13 if seconds else 1 << 16\n"
        "pieces = int(sys.argv[3]) // piece\n"
        "for _ in range(pieces):\n"
        "    data = os.urandom(piece)\n"
        "    digest.update(data)\n"
        "    connection.sendall(data)\n"
        "    time.sleep(seconds / pieces)\n"
        "connection.close()\n"
        "print(digest.hexdigest())\n"), host, port, str(size), str(seconds), str(stall_s),
        timeout=seconds + 40 + stall_s).stdout.strip()
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
    """Also one that has no title yet."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
        return b"fastpump.worker" in line or re.fullmatch(rb"fastpump: \S+ worker \d+\0", line)
    except OSError:
        return False


# -- wg and wg-quick

@contextlib.contextmanager
def interface_names(count):
    """Names that no other test has: WG_SOCKETS is one for all namespaces. What killed
    processes leave there is removed."""
    tag = f"{os.getpid():x}{secrets.token_hex(2)}"
    names = [f"fp{tag}{number}" for number in range(count)]
    try:
        yield names
    finally:
        for name in names:
            (WG_SOCKETS / f"{name}.sock").unlink(missing_ok=True)


def wg_ask(name, request=b"get=1\n\n"):
    """What an interface answers on wg's socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(WG_SOCKETS / f"{name}.sock"))
        client.sendall(request)
        answer = b""
        while not answer.endswith(b"\n\n"):
            data = client.recv(1 << 16)
            assert data, "no answer"
            answer += data
    return answer.decode()


def handshakes(name):
    """When each peer's latest handshake was, to the nanosecond: {public key: (s, ns)}."""
    return {keys.encode(bytes.fromhex(key)): (int(s), int(ns)) for key, s, ns in re.findall(
        r"public_key=(\w+)\n(?:(?!public_key).*\n)*?last_handshake_time_sec=(\d+)\n"
        r"last_handshake_time_nsec=(\d+)\n", wg_ask(name))}


def make_program(directory, name, text):
    """An executable in a directory; its path."""
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def fake_resolvconf(directory):
    """A resolvconf(8) that keeps its records in files; the directory of those."""
    records = directory / "resolvconf.records"
    records.mkdir()
    make_program(directory / "bin", "resolvconf", (
        "#!/bin/sh\n"
        f"echo \"$@\" >> {directory}/resolvconf.calls\n"
        'case "$1" in\n'
        f'-a) cat > {records}/"$2" ;;\n'
        f'-d) rm -f {records}/"$2" ;;\n'
        "esac\n"))
    return records


def network_state(lab, side, *records):
    """All that a full tunnel changes in a namespace, and the files of some directories.
    Without link-local addresses, which the kernel takes its time with."""
    state = {" ".join(words): "".join(
        line + "\n" for line in lab.ip(side, *words).splitlines() if "fe80:" not in line)
        for words in (("-4", "rule"), ("-6", "rule"), ("-4", "route", "show", "table", "all"),
                      ("-6", "route", "show", "table", "all"))}
    state["addresses"] = re.sub(r" fe80:\S+", "", lab.ip(side, "-brief", "address"))
    state["nft"] = lab.run(side, "nft", "-s", "list", "ruleset").stdout     # without counters
    for directory in records:
        state |= {str(path): path.read_text() for path in directory.iterdir()}
    return state


def records_of(lab, side, directory):
    """The files of a side's interfaces below a FASTPUMP_RUN, once nobody has that directory locked
    or in 5 s: to repair what others took away is to lock it for a moment."""
    inode = lab.run(side, "stat", "-Lc", "%i", "/proc/self/ns/net").stdout.strip()
    deadline = time.monotonic() + 5
    while True:
        found = sorted(map(str, directory.rglob(f"{inode}/*")))
        if not any(path.endswith(LOCK) for path in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.01)


def pids_in(lab, side):
    """All processes in a namespace, but for the nft by which a tunnel looks at its tables."""
    found = []
    for pid in ip("netns", "pids", lab.names[side], check=False).split():
        with contextlib.suppress(OSError):      # it has ended
            if Path(f"/proc/{pid}/comm").read_text() != "nft\n":
                found.append(int(pid))
    return found


def own_pid(lab, side, name):
    """The process that serves an interface: the one in the namespace that was started with
    its name and is no worker; None when it is gone."""
    for pid in pids_in(lab, side):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if any(name.encode() in word for word in words) and b"-m" in words:
                return pid
    return None


class Pings:
    """A ping every 20 ms, its answers in a file."""

    def __init__(self, lab, side, host, log):
        self._log = log
        self._lab = lab
        self._process = lab.spawn(side, "sh", "-c", 'exec ping -n -i 0.02 "$0" > "$1"', host,
                                  str(log))
        self.go_on()

    def _answered(self):
        return {int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", self._log.read_text())
                } if self._log.exists() else set()

    def _missing(self, last):
        return set(range(1, last + 1)) - self._answered()

    def go_on(self):
        """Wait for a few more answers; the numbers of pings that had none."""
        last = max(self._answered(), default=0) + 5
        until(lambda: max(self._answered(), default=0) >= last)
        with contextlib.suppress(AssertionError):       # some may come late
            until(lambda: not self._missing(last), 5)
        return self._missing(last)

    def end(self):
        """The same, and that is all."""
        missing = self.go_on()
        stop(self._process, signal.SIGINT)
        self._lab.processes.remove(self._process)
        return missing
