"""A laboratory: two network namespaces joined by a virtual cable, and load on them.

Used by `fastpump demo`, by the benchmarks and by the tests. Needs root (of the host, or
of a user namespace), iproute2, and for load iperf3 and ping. Everything that a Lab makes
has a name of its own and is gone when it closes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from fastpump.errors import SystemSetupError
from fastpump.lab.iperf import Load, Report, tcp_load, udp_load

Process = subprocess.Popen[str]

OUTSIDE4 = {"a": "192.0.2.1", "b": "192.0.2.2"}
OUTSIDE6 = {"a": "2001:db8::1", "b": "2001:db8::2"}
INSIDE4 = {"a": "10.9.0.1", "b": "10.9.0.2"}
INSIDE6 = {"a": "fd00:9::1", "b": "fd00:9::2"}
IPERF_PORTS = "5201", "5202"

# A new network namespace has some settings of its host, and others by the kernel's build. In a
# lab they are the kernel's defaults: Documentation/networking/ip-sysctl.rst.
SETTINGS = {
    "net.ipv4.ip_forward": 0, "net.ipv6.conf.all.forwarding": 0,
    "net.ipv6.conf.all.accept_dad": 0, "net.ipv6.conf.default.accept_dad": 1,
    **{f"net.ipv{version}.conf.{which}.{name}": 0
       for version, names in ((4, ("rp_filter", "src_valid_mark", "accept_local", "arp_ignore",
                                   "arp_announce", "arp_filter", "promote_secondaries")),
                              (6, ("disable_ipv6", "addr_gen_mode")))
       for name in names for which in ("all", "default", "lo")},
}
# Takes pairs of words, FILE VALUE.
_SYSCTL = """
status=0
cd /proc/sys
while [ $# -gt 0 ]; do
    { read -r value < "$1" && [ "$value" = "$2" ]; } || echo "$2" > "$1" || status=1
    shift 2
done
exit $status
"""


def need(*tools: str) -> None:
    """SystemSetupError naming the Debian package of a tool that is missing."""
    packages = {"ip": "iproute2", "ping": "iputils-ping", "iperf3": "iperf3", "wg":
                "wireguard-tools", "tcpdump": "tcpdump", "strace": "strace",
                "nft": "nftables", "qemu-system-x86_64": "qemu-system-x86"}
    for tool in tools:
        if shutil.which(tool) is None:
            raise SystemSetupError(f"{tool} is missing; install it (Debian: apt install "
                                   f"{packages.get(tool, tool)})")


def ip(*words: str, check: bool = True) -> str:
    """Run iproute2's ip; its output."""
    result = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if check and result.returncode != 0:
        raise SystemSetupError(f"ip {' '.join(words)}: {result.stderr.strip()}")
    return result.stdout


def cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time used so far by processes and their living descendants."""
    fields = _process_fields()
    parents = {pid: int(field[1]) for pid, field in fields.items()}
    ticks = {pid: int(field[11]) + int(field[12]) for pid, field in fields.items()}
    total = sum(used for pid, used in ticks.items() if _descends(pid, pids, parents))
    return total / os.sysconf("SC_CLK_TCK")


def resident_bytes(pids: Sequence[int]) -> int:
    """Memory of processes and their living descendants; shared pages count in parts."""
    parents = {pid: int(field[1]) for pid, field in _process_fields().items()}
    total = 0
    for pid in parents:
        if _descends(pid, pids, parents):
            with contextlib.suppress(OSError):
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += sum(int(line.split()[1]) for line in rollup.splitlines()
                             if line.startswith("Pss:"))
    return total * 1024


def _process_fields() -> dict[int, list[str]]:
    """The fields of /proc/PID/stat behind the name, of all processes: proc(5)."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                found[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()
    return found


def _descends(pid: int, ancestors: Sequence[int], parents: dict[int, int]) -> bool:
    while pid > 1 and pid not in ancestors:
        pid = parents.get(pid, 0)
    return pid in ancestors


@dataclass
class Lab:
    """Two hosts, "a" and "b", on one network: 192.0.2.0/24 and 2001:db8::/64."""

    queues: int = 1
    """Queues of the cable."""
    processes: list[Process] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    tag: str = field(default_factory=lambda: f"fp{os.getpid()}-{secrets.token_hex(2)}")
    """What its namespaces' names begin with."""

    def __enter__(self) -> Lab:
        need("ip")
        try:
            for side in "ab":
                self.add_host(side)
            queues = ["numtxqueues", str(self.queues), "numrxqueues", str(self.queues)]
            ip("link", "add", "wire", "netns", self.names["a"], *queues, "type", "veth", "peer",
               "name", "wire", "netns", self.names["b"], *queues)
            for side in "ab":
                self.ip(side, "address", "add", f"{OUTSIDE4[side]}/24", "dev", "wire")
                self.ip(side, "address", "add", f"{OUTSIDE6[side]}/64", "dev", "wire", "nodad")
                self.ip(side, "link", "set", "wire", "up")
            wait_until(lambda: all(self._has_carrier(side) for side in "ab"),
                       "the cable has no carrier")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _has_carrier(self, side: str) -> bool:
        return " state UP " in self.ip(side, "link", "show", "wire")

    def add_host(self, side: str) -> None:
        """A namespace of that name, in which nothing but the loopback interface is up."""
        name = f"{self.tag}-{side}"
        self.names[side] = name         # before: a signal may come while ip runs
        ip("netns", "add", name)
        self.sysctl(side, SETTINGS, check=False)    # what may not be written stays as it is
        self.ip(side, "link", "set", "lo", "up")

    def join(self, side: str, other: str, interface: str, addresses: Sequence[str],
             other_addresses: Sequence[str]) -> None:
        """A cable between two hosts; the second's end is called `wire`, and leads to no other."""
        ip("link", "add", interface, "netns", self.names[side], "type", "veth", "peer", "name",
           "wire", "netns", self.names[other])
        for where, link, own in ((side, interface, addresses), (other, "wire", other_addresses)):
            for address in own:
                nodad = ["nodad"] * (":" in address)
                self.ip(where, "address", "add", address, "dev", link, *nodad)
            self.ip(where, "link", "set", link, "up")

    def sysctl(self, side: str, settings: Mapping[str, int], check: bool = True) -> None:
        """Change settings of the kernel in one namespace."""
        words = [word for name, value in settings.items()
                 for word in (name.replace(".", "/"), str(value))]
        self.run(side, "sh", "-c", _SYSCTL, "sh", *words, check=check)

    def close(self) -> None:
        """End all processes, remove both namespaces."""
        for process in reversed(self.processes):
            stop(process)
        self.processes.clear()
        # Those in the background have files outside that they remove.
        self._end_all(signal.SIGTERM)
        with contextlib.suppress(SystemSetupError):
            wait_until(lambda: not self._pids(), "processes go on", 5)
        self._end_all(signal.SIGKILL)
        for name in self.names.values():
            ip("netns", "delete", name, check=False)
        self.names.clear()

    def _pids(self) -> list[int]:
        """All processes in the namespaces."""
        return [int(pid) for name in self.names.values()
                for pid in ip("netns", "pids", name, check=False).split()]

    def _end_all(self, number: int) -> None:
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def ip(self, side: str, *words: str, check: bool = True) -> str:
        """Run ip inside one namespace."""
        return ip("-netns", self.names[side], *words, check=check)

    def command(self, side: str, command: Sequence[str]) -> list[str]:
        """The command line that runs a command inside."""
        return ["ip", "netns", "exec", self.names[side], *command]

    def run(self, side: str, *command: str, check: bool = True, input: str | None = None,
            timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end."""
        result = subprocess.run(self.command(side, command), capture_output=True, text=True,
                                input=input, timeout=timeout, check=False)
        if check and result.returncode != 0:
            raise SystemSetupError(f"{' '.join(command)} in {side}: exit status "
                                   f"{result.returncode}: {result.stdout}{result.stderr}")
        return result

    def spawn(self, side: str, *command: str, env: dict[str, str] | None = None,
              stderr: int = subprocess.STDOUT) -> Process:
        """Start a command inside; its stdout is a pipe, which stderr joins by default."""
        process = subprocess.Popen(
            self.command(side, command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=stderr, text=True, process_group=0, env={**os.environ, **(env or {})})
        self.processes.append(process)
        return process

    # -- fastpump

    def fastpump(self, side: str, *words: str, env: dict[str, str] | None = None) -> Process:
        """Start `fastpump tunnel` inside and wait until it is ready."""
        process = self.spawn(side, sys.executable, "-m", "fastpump", "tunnel", *words, env=env)
        wait_for_line(process, " is ready: ")
        return process

    def status(self, side: str) -> dict[str, Any]:
        """`fastpump status --json` of the only tunnel inside."""
        output = self.run(side, sys.executable, "-m", "fastpump", "status", "--json").stdout
        (interface,) = json.loads(output)["interfaces"]
        assert isinstance(interface, dict)
        return interface

    # -- load

    def serve_iperf(self, side: str) -> None:
        """iperf3 servers inside, one for each of two clients at a time."""
        need("iperf3")
        for port in IPERF_PORTS:
            # Clients are sent the reports; nobody reads this end's.
            self.spawn(side, "sh", "-c", 'exec "$@" > /dev/null', "sh",
                       "iperf3", "--server", "--port", port, "--json")

        def is_listening() -> bool:
            lines = self.run(side, "ss", "-ltnH").stdout.splitlines()
            return {line.split()[3].rpartition(":")[2] for line in lines}.issuperset(IPERF_PORTS)

        wait_until(is_listening, "iperf3's servers do not listen")

    def iperf(self, side: str, host: str, seconds: float, *options: str) -> Report:
        """Run an iperf3 client inside; its JSON report."""
        return self._report(self._start_iperf(side, host, seconds, *options), host, seconds)

    def _start_iperf(self, side: str, host: str, seconds: float, *options: str) -> Process:
        return self.spawn(side, "iperf3", "--client", host, "--time", str(seconds), "--json",
                          "--get-server-output", *options, stderr=subprocess.PIPE)

    def _report(self, client: Process, host: str, seconds: float) -> Report:
        try:
            output, errors = client.communicate(timeout=seconds + 30)
        except subprocess.TimeoutExpired:
            raise SystemSetupError(f"iperf3 to {host} does not end: {stop(client)}") from None
        finally:
            self.processes.remove(client)
        try:
            report = json.loads(output)
        except ValueError:
            report = {"error": output + errors}
        if "error" in report:
            raise SystemSetupError(f"iperf3 to {host}: {report['error']}")
        assert isinstance(report, dict)
        return report

    def tcp(self, side: str, host: str, seconds: float, *options: str) -> Load:
        """TCP for some seconds: what was received."""
        return tcp_load(self.iperf(side, host, seconds, *options))

    def tcp_both_ways(self, side: str, host: str, seconds: float) -> Load:
        """TCP for some seconds in both directions at once: what was received, in sum. By two
        clients: `iperf3 --bidir` takes the one connection for the other if they are accepted in
        another order than they were made in."""
        clients = [self._start_iperf(side, host, seconds, "--port", port, *direction)
                   for port, direction in zip(IPERF_PORTS, ((), ("--reverse",)), strict=True)]
        there, back = (tcp_load(self._report(client, host, seconds)) for client in clients)
        return there + back

    def udp(self, side: str, host: str, seconds: float, size: int, rate: int = 0) -> Load:
        """UDP datagrams of `size` bytes, `rate` a second (0: as fast as they go): what was
        received."""
        return udp_load(self.iperf(side, host, seconds, "--udp", "--length", str(size),
                                   "--bitrate", str(8 * size * rate)), size)

    def ping(self, side: str, host: str, count: int, interval_s: float = 0.01) -> list[float]:
        """Round-trip times in ms, sorted; lost ones are missing."""
        need("ping")
        output = self.run(side, "ping", "-n", "-c", str(count), "-i", str(interval_s), "-W", "2",
                          host, check=False, timeout=count * interval_s + 30).stdout
        return sorted(float(time) for time in re.findall(r"time=([0-9.]+)", output))


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of a sorted sequence; nan when it is empty."""
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def wait_until(condition: Callable[[], object], failure: str, timeout_s: float = 20) -> None:
    """Wait until `condition` holds; SystemSetupError if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise SystemSetupError(f"{failure} after {timeout_s:g} s")
        time.sleep(0.01)


def wait_for_line(process: Process, text: str, timeout_s: float = 20) -> str:
    """Read a process's output up to the line that has `text` in it, and no further."""
    assert process.stdout is not None
    deadline = time.monotonic() + timeout_s
    seen = b""
    fd = process.stdout.fileno()
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            raise SystemSetupError(f"no {text!r} within {timeout_s} s: {seen.decode()}")
        data = os.read(fd, 1)
        if not data:
            raise SystemSetupError(f"ended before {text!r}: {seen.decode()}")
        seen += data
        if data == b"\n":
            line = seen.splitlines()[-1].decode(errors="replace")
            if text in line:
                return line


def stop(process: Process, number: int = signal.SIGTERM, timeout_s: float = 10) -> str:
    """Ask a process to end, then make it; the rest of its output."""
    if process.poll() is None:
        process.send_signal(number)
    try:
        return process.communicate(timeout=timeout_s)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0]


def key_files(directory: Path) -> dict[str, tuple[Path, str]]:
    """Fresh keys for both sides: {side: (private key file, public key)}."""
    from fastpump.protocol import keys

    found = {}
    for side in "ab":
        private = keys.generate_private()
        path = directory / f"{side}.key"
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(keys.encode(private) + "\n", encoding="ascii")
        found[side] = (path, keys.encode(keys.public_of(private)))
    return found


def tunnel_words(side: str, key: tuple[Path, str], peer_public: str, *extra: str,
                 v6_outside: bool = False, endpoint: bool = True,
                 behind: Mapping[str, str] | None = None) -> list[str]:
    """Arguments of `fastpump tunnel` for one side of a pair. `behind`: IPv4 networks that are
    behind sides, if only they and the inner addresses are allowed."""
    other = "b" if side == "a" else "a"
    where = f"[{OUTSIDE6[other]}]" if v6_outside else OUTSIDE4[other]
    peer = peer_public + (f"@{where}:51820" if endpoint else "")
    if behind is not None:
        networks = [behind[other]] if other in behind else []
        peer += ",allowed-ips=" + "+".join(
            (f"{INSIDE4[other]}/32", f"{INSIDE6[other]}/128", *networks))
    return ["--address", f"{INSIDE4[side]}/24", "--address", f"{INSIDE6[side]}/64",
            "--private-key", str(key[0]), "--peer", peer, *extra]


@contextlib.contextmanager
def fastpump_pair(lab: Lab, directory: Path, *extra: str, v6_outside: bool = False,
                  env: dict[str, str] | None = None,
                  behind: Mapping[str, str] | None = None,
                  more: Mapping[str, Sequence[str]] | None = None) -> Iterator[dict[str, Process]]:
    """A running fastpump tunnel between both sides. It leaves nothing outside of the directory.
    `more`: words for one side only."""
    key = key_files(directory)
    processes = {}
    env = {"FASTPUMP_STATE": os.environ.get("FASTPUMP_STATE") or str(directory), **(env or {})}
    try:
        for side, other in (("a", "b"), ("b", "a")):
            processes[side] = lab.fastpump(side, *tunnel_words(
                side, key[side], key[other][1], *extra, *(more or {}).get(side, ()),
                v6_outside=v6_outside, behind=behind), env=env)
        yield processes
    finally:
        for process in processes.values():
            stop(process)
            lab.processes.remove(process)
