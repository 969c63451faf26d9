"""What each technique of lanes gains: the same tunnel with one of them off, in turn.

    python bench/lanes.py --rounds 5                    # techniques, ciphers, queues, flows
    python bench/lanes.py --rounds 5 --null-cipher      # beside a build that encrypts nothing

The small packets of the mixed load have 40 to 400 bytes, four flows each way at once. Wire
bytes are UDP payloads of the tunnel's sender. The build without encryption is made in a
temporary directory and is gone afterwards.

Needs root and iperf3.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from doubts import DOUBTS

from fastpump.lab.networks import (
    INSIDE4,
    Lab,
    cpu_seconds,
    fastpump_pair,
    need,
    percentile,
    stop,
    wait_for_line,
)
from fastpump.process.signals import exit_on_signals
from fastpump.tunnel.run import NULL_CIPHER_CONSENT

ROOT = Path(__file__).parent.parent
CONTENDERS = {
    "lanes, 1 queue": ("--queues", "1"),
    "lanes, 2 queues": ("--queues", "2"),
    "lanes, 4 queues": ("--queues", "4"),
    "WireGuard transport": ("--queues", "1", "--transport", "wireguard"),
    "ChaCha20-Poly1305": ("--queues", "1", "--cipher", "chacha20-poly1305"),
    "complete checksums": ("--queues", "1", "--offload", "partial=off"),
    "no bundles": ("--queues", "1", "--offload", "bundle=off"),
    "no gro to the interface": ("--queues", "1", "--offload", "gro=off"),
    "no udp-gso": ("--queues", "1", "--offload", "udp-gso=off"),
    "no udp-gro": ("--queues", "1", "--offload", "udp-gro=off"),
    "no tso, no uso": ("--queues", "1", "--offload", "tso4=off", "--offload", "tso6=off",
                       "--offload", "uso=off"),
    "busy polling 50 us": ("--queues", "1", "--busy-poll", "50"),
}
NULL = "no encryption"

# Sends small packets of mixed sizes as fast as they go, and counts what comes.
MIXED = """
import socket, sys, time
role, local, remote, seconds, port = *sys.argv[1:4], float(sys.argv[4]), int(sys.argv[5])
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
if role == "receive":
    sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)
    sock.bind((local, port))
    sock.settimeout(0.5)
    print("ready", flush=True)
    count, end = 0, time.monotonic() + seconds + 2
    while time.monotonic() < end:
        try:
            while True:
                sock.recv(2048)
                count += 1
        except OSError:
            pass
    print("got", count, flush=True)
else:
    sock.connect((remote, port))
    payloads = [bytes(12 + number * 97 % 360) for number in range(64)]
    end, sent = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for payload in payloads:
            try:
                sock.send(payload)
            except OSError:
                pass
"""


def mixed(lab: Lab, seconds: float) -> int:
    """Small packets of mixed sizes; how many arrived."""
    receivers, senders = [], []
    for number in range(2):
        words = (INSIDE4["b"], INSIDE4["b"], str(seconds), str(7000 + number))
        receivers.append(lab.spawn("b", sys.executable, "-c", MIXED, "receive", *words))
        wait_for_line(receivers[-1], "ready")
    for number in range(2):
        words = (INSIDE4["a"], INSIDE4["b"], str(seconds), str(7000 + number))
        senders.append(lab.spawn("a", sys.executable, "-c", MIXED, "send", *words))
    got = sum(int(wait_for_line(each, "got", seconds + 20).split()[1]) for each in receivers)
    for process in (*receivers, *senders):
        stop(process)
        lab.processes.remove(process)
    return got


def sent(lab: Lab) -> tuple[int, int]:
    """(bytes, packets) that side "a" has sent: UDP payloads, and what it read."""
    queues = lab.status("a")["queues"]
    return (sum(queue["udp_tx_bytes"] for queue in queues),
            sum(queue["tun_rx_packets"] for queue in queues))


def measure(lab: Lab, pids: list[int], seconds: float) -> dict[str, float]:
    """All figures of one contender, once."""
    figures: dict[str, float] = {}
    host = INSIDE4["b"]
    lab.ping("a", host, 3)
    time.sleep(0.5)
    figures["ping idle, median ms"] = percentile(lab.ping("a", host, 100, 0.005), 50)
    for name, options in (("1 stream", ()), ("8 streams", ("--parallel", "8"))):
        before = cpu_seconds(pids)
        load = DOUBTS.about(f"tcp {name}", lab.tcp("a", host, seconds, *options))
        figures[f"tcp {name}, Gbit/s"] = load.gbit_per_s
        figures[f"tcp {name}, CPU s/GB"] = (cpu_seconds(pids) - before) / (load.bytes / 1e9)
    before = cpu_seconds(pids)
    load = DOUBTS.about("udp 64 B", lab.udp("a", host, seconds, 64))
    figures["udp 64 B, packets/s"] = load.packets_per_s
    figures["udp 64 B, CPU us/packet"] = (
        (cpu_seconds(pids) - before) * 1e6 / max(1, load.bytes / 64))
    before, wire = cpu_seconds(pids), sent(lab)
    got = mixed(lab, seconds)
    after = sent(lab)
    figures["mixed small, packets/s"] = got / seconds
    figures["mixed small, CPU us/packet"] = (cpu_seconds(pids) - before) * 1e6 / max(1, got)
    figures["mixed small, wire bytes/packet"] = (after[0] - wire[0]) / max(1, after[1] - wire[1])
    return figures


@contextlib.contextmanager
def build_without_encryption() -> Iterator[dict[str, str]]:
    """A copy of the package that encrypts nothing; the environment to run it with."""
    with tempfile.TemporaryDirectory() as directory:
        for name in ("fastpump", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(directory, name))
        for built in Path(directory, "fastpump").glob("*.so"):
            built.unlink()
        subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
                       cwd=directory, check=True, stdout=subprocess.DEVNULL,
                       env={**os.environ, "FASTPUMP_BUILD_NULL_CIPHER": "1"})
        yield {"PYTHONPATH": directory, "PYTHONSAFEPATH": "1",
               "FASTPUMP_NULL_CIPHER": NULL_CIPHER_CONSENT}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (5)")
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement (2)")
    parser.add_argument("--only", default="", metavar="NAME;NAME", help="some contenders")
    parser.add_argument("--null-cipher", action="store_true",
                        help="only lanes, and a build that encrypts nothing")
    args = parser.parse_args()
    need("ip", "iperf3", "ping")
    exit_on_signals()
    with contextlib.ExitStack() as stack:
        names = args.only.split(";") if args.only else list(CONTENDERS)
        environments: dict[str, dict[str, str]] = {}
        if args.null_cipher:
            names = [names[0], NULL]
            environments[NULL] = stack.enter_context(build_without_encryption())
        figures: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for number in range(args.rounds):
            for name in names:
                DOUBTS.begin(f"round {number + 1}: {name}")
                options = CONTENDERS.get(name, CONTENDERS[names[0]])
                env = environments.get(name)
                with tempfile.TemporaryDirectory() as directory, Lab() as lab, fastpump_pair(
                        lab, Path(directory), *options, env=env) as processes:
                    lab.serve_iperf("b")
                    figures[name].append(measure(
                        lab, [process.pid for process in processes.values()], args.seconds))
    first = names[0]
    for name, rounds in figures.items():
        print(f"\n{name}")
        for figure in rounds[0]:
            median = statistics.median(turn[figure] for turn in rounds)
            base = statistics.median(turn[figure] for turn in figures[first])
            ratio = f"   x {median / base:.2f}" if name != first and base else ""
            print(f"  {figure:32} {median:12.3f}{ratio}")
    for line in DOUBTS.lines:
        print(line)


if __name__ == "__main__":
    main()
