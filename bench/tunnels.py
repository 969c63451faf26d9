"""Measure tunnels beside each other, in turn, on one machine.

    python bench/tunnels.py --rounds 5 --wireguard-go /path/to/wireguard-go

Contenders take turns within each round (A B C, A B C, ...), so that a machine whose speed
drifts is fair to all; medians over the rounds are printed, and ratios to the first
wireguard-go. Both ends of a tunnel and the load share the machine, so CPU seconds of the
tunnel processes per GB (10^9 bytes) carried is the steadiest figure.

Needs root, iperf3, ping; wireguard-go and wireguard-tools for the comparison.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fastpump.lab import (
    INSIDE4,
    OUTSIDE4,
    Lab,
    Process,
    cpu_seconds,
    fastpump_pair,
    key_files,
    need,
    percentile,
    stop,
)

Setup = Callable[[Lab, Path], contextlib.AbstractContextManager[dict[str, Process]]]


@contextlib.contextmanager
def bare(_lab: Lab, _directory: Path) -> Iterator[dict[str, Process]]:
    """No tunnel: the cable itself."""
    yield {}


def fastpump(*options: str) -> Setup:
    """fastpump at both ends."""
    return lambda lab, directory: fastpump_pair(lab, directory, *options)


def wireguard_go(program: str) -> Setup:
    """wireguard-go at both ends, configured by wg."""
    @contextlib.contextmanager
    def setup(lab: Lab, directory: Path) -> Iterator[dict[str, Process]]:
        need("wg")
        key = key_files(directory)
        processes: dict[str, Process] = {}
        try:
            for side, other in (("a", "b"), ("b", "a")):
                name = f"wg{os.getpid()}{side}"
                processes[side] = lab.spawn(side, program, "--foreground", name)
                wait_for_uapi(name)
                lab.run(side, "wg", "set", name, "private-key", str(key[side][0]), "listen-port",
                        "51820", "peer", key[other][1], "allowed-ips", f"{INSIDE4[other]}/32",
                        "endpoint", f"{OUTSIDE4[other]}:51820")
                lab.ip(side, "address", "add", f"{INSIDE4[side]}/24", "dev", name)
                lab.ip(side, "link", "set", name, "mtu", "1420", "up")
            yield processes
        finally:
            for process in processes.values():
                stop(process)
                lab.processes.remove(process)
    return setup


def wait_for_uapi(name: str) -> None:
    """Until wireguard-go's control socket is there."""
    path = Path(f"/var/run/wireguard/{name}.sock")
    for _ in range(200):
        if path.exists():
            return
        time.sleep(0.05)
    raise TimeoutError(path)


def measure(lab: Lab, host: str, pids: list[int], seconds: float) -> dict[str, float]:
    """All figures of one contender, once."""
    figures: dict[str, float] = {}
    lab.ping("a", host, 3)                                  # the handshake
    idle = lab.ping("a", host, 200, 0.005)
    figures["ping idle, median ms"] = statistics.median(idle)
    before = cpu_seconds(pids)
    load = lab.tcp("a", host, seconds)
    figures["tcp 1 stream, Gbit/s"] = load.gbit_per_s
    figures["tcp 1 stream, CPU s/GB"] = (cpu_seconds(pids) - before) / (load.bytes / 1e9)
    before = cpu_seconds(pids)
    load = lab.tcp("a", host, seconds, "--parallel", "8")
    figures["tcp 8 streams, Gbit/s"] = load.gbit_per_s
    figures["tcp 8 streams, CPU s/GB"] = (cpu_seconds(pids) - before) / (load.bytes / 1e9)
    before = cpu_seconds(pids)
    load = lab.tcp("a", host, seconds, "--bidir")
    figures["tcp both ways, Gbit/s"] = load.gbit_per_s
    before = cpu_seconds(pids)
    load = lab.udp_small("a", host, seconds)
    figures["udp 64 B, packets/s"] = load.packets_per_s
    figures["udp 64 B, CPU us/packet"] = (
        (cpu_seconds(pids) - before) * 1e6 / (load.bytes / 64))
    pings: list[float] = []
    thread = threading.Thread(target=lambda: pings.extend(
        lab.ping("a", host, int(seconds / 0.01), 0.01)))
    stream = lab.spawn("a", "iperf3", "--client", host, "--time", str(seconds + 2))
    time.sleep(1)
    thread.start()
    thread.join()
    stop(stream)
    lab.processes.remove(stream)
    time.sleep(0.5)
    figures["ping in tcp, median ms"] = percentile(sorted(pings), 50)
    figures["ping in tcp, p99 ms"] = percentile(sorted(pings), 99)
    return figures


def one_turn(setup: Setup, host: str, seconds: float) -> dict[str, float]:
    """A fresh lab, a tunnel in it, and its figures."""
    with tempfile.TemporaryDirectory() as directory, Lab() as lab, \
            setup(lab, Path(directory)) as processes:
        lab.serve_iperf("b")
        return measure(lab, host, [process.pid for process in processes.values()], seconds)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--queues", default="1,4", help="fastpump with these numbers of queues")
    parser.add_argument("--wireguard-go", metavar="PROGRAM", help="the one to compare with")
    parser.add_argument("--options", default="", help="more options for fastpump tunnel")
    parser.add_argument("--no-bare", action="store_true")
    parser.add_argument("--json", type=Path, help="keep all figures here")
    args = parser.parse_args()
    need("ip", "iperf3", "ping")
    contenders: dict[str, tuple[Setup, str]] = {}
    if not args.no_bare:
        contenders["bare cable"] = bare, OUTSIDE4["b"]
    for queues in args.queues.split(","):
        contenders[f"fastpump, {queues} queue(s)"] = (
            fastpump("--queues", queues, *args.options.split()), INSIDE4["b"])
    if args.wireguard_go:
        contenders["wireguard-go"] = wireguard_go(args.wireguard_go), INSIDE4["b"]
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for number in range(args.rounds):
        for name, (setup, host) in contenders.items():
            print(f"round {number + 1}: {name}", file=sys.stderr, flush=True)
            figures[name].append(one_turn(setup, host, args.seconds))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))
    kernel = subprocess.run(["uname", "-r"], capture_output=True, text=True, check=True)
    print(f"Linux {kernel.stdout.strip()}, {os.cpu_count()} CPUs, median of {args.rounds} rounds "
          f"(min to max), {args.seconds:g} s each")
    for name, rounds in figures.items():
        print(f"\n{name}")
        for figure in rounds[0]:
            values = [turn[figure] for turn in rounds]
            median = statistics.median(values)
            line = f"  {figure:26} {median:11.3f}  ({min(values):.3f} to {max(values):.3f})"
            if "wireguard-go" in figures and name != "wireguard-go":
                rival = statistics.median(turn[figure] for turn in figures["wireguard-go"])
                if rival:
                    line += f"   x {median / rival:.2f} of wireguard-go"
            print(line)


if __name__ == "__main__":
    main()
