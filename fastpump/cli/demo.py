"""`fastpump demo`: a real tunnel between two namespaces, and what it can do.

A plain user gets a user namespace of his own, where the kernel allows that; inside it he
is root of everything the demo makes.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from fastpump.errors import SystemSetupError
from fastpump.lab.networks import (
    INSIDE4,
    OUTSIDE4,
    Lab,
    cpu_seconds,
    fastpump_pair,
    need,
    stop,
)
from fastpump.process.signals import exit_on_signals

_INSIDE = "FASTPUMP_DEMO_INSIDE"
_STREAMS = 4


def run(queue_count: int, seconds: int) -> int:
    """Run the demo; the exit status."""
    need("ip", "iperf3", "ping")
    if os.geteuid() != 0:
        _become_root_of_a_user_namespace()
    exit_on_signals()
    if _INSIDE in os.environ:
        _hide_run()
    with tempfile.TemporaryDirectory(prefix="fastpump-demo-") as directory, Lab() as lab:
        _say("two network namespaces, joined by a virtual cable")
        server = lab.serve_iperf("b")
        _say("measuring the bare cable")
        bare = _measure(lab, OUTSIDE4["b"], seconds, [])
        _say(f"starting `fastpump tunnel --queues {queue_count}` at both ends")
        with fastpump_pair(lab, Path(directory), "--queues", str(queue_count)) as processes:
            tunnel = _measure(lab, INSIDE4["b"], seconds,
                              [process.pid for process in processes.values()])
            status = lab.status("b")
        stop(server)
        lab.processes.remove(server)
    print(_table(bare, tunnel, queue_count))
    peer = status["peers"][0]
    print(f"\nThe tunnel: {len(status['queues'])} queues, ciphers by {status['aead']}, offloads "
          f"{', '.join(status['offloads'])};\n{peer['rx_bytes'] / 1e9:.2f} GB received, "
          f"{status['worker_restarts']} worker restarts. Both ends and the load shared "
          f"{len(os.sched_getaffinity(0))} CPUs.")
    return 0


def _become_root_of_a_user_namespace() -> None:
    """Start once more, as root of new user, mount and network namespaces."""
    if _INSIDE in os.environ or shutil.which("unshare") is None:
        raise SystemSetupError("the demo needs root here: sudo fastpump demo")
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "--net"]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode != 0:
        raise SystemSetupError("this kernel lets users make no namespaces; run the demo as "
                               "root: sudo fastpump demo")
    _say("not root: working in a user namespace")
    words = [*prefix, sys.executable, "-m", "fastpump", *sys.argv[1:]]
    os.execvpe(words[0], words, {**os.environ, _INSIDE: "1"})


def _hide_run() -> None:
    """A private /run, where `ip netns` and the tunnels keep their files."""
    result = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], capture_output=True,
                            text=True, check=False)
    if result.returncode != 0:
        raise SystemSetupError(f"a private /run cannot be mounted: {result.stderr.strip()}; run "
                               "the demo as root: sudo fastpump demo")


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def _measure(lab: Lab, host: str, seconds: int, pids: list[int]) -> dict[str, str]:
    """Figures as text by row; `pids` are the tunnel's processes."""
    def gbit(name: str, *options: str) -> str:
        _say(f"  TCP, {name}")
        return f"{lab.tcp('a', host, seconds, *options).gbit_per_s:.2f} Gbit/s"

    lab.ping("a", host, 2)          # the handshake's round trip is not counted
    _say("  ping")
    times = lab.ping("a", host, 200, 0.005)
    if not times:
        raise SystemSetupError(f"no answer from {host} through the tunnel")
    before = cpu_seconds(pids)
    _say("  TCP, one stream")
    one = lab.tcp("a", host, seconds)
    used = (cpu_seconds(pids) - before) / (one.bytes / 1e9)
    rows = {
        "ping, median": f"{statistics.median(times):.3f} ms",
        "TCP, one stream": f"{one.gbit_per_s:.2f} Gbit/s",
        "  CPU of both tunnel ends": f"{used:.2f} s/GB" if pids else "",
        f"TCP, {_STREAMS} streams": gbit(f"{_STREAMS} streams", "--parallel", str(_STREAMS)),
        "TCP, the other way": gbit("the other way", "--reverse"),
        "TCP, both ways": gbit("both ways", "--bidir"),
    }
    _say("  UDP, 64 bytes")
    rows["UDP, 64 bytes"] = f"{lab.udp('a', host, seconds, 64).packets_per_s:,.0f} packets/s"
    return rows


def _table(bare: dict[str, str], tunnel: dict[str, str], queue_count: int) -> str:
    header = ("", "bare cable", f"fastpump, {queue_count} queue{'s' * (queue_count != 1)}")
    rows = [header, *((name, bare[name], tunnel[name]) for name in bare)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{row[0]:<{widths[0]}}   {row[1]:>{widths[1]}}   {row[2]:>{widths[2]}}"
             for row in rows]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)

