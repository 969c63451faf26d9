"""How exact rate limits are on real traffic.

    python bench/limits.py --seconds 10

A tunnel between two network namespaces, a limit set while it runs (`fastpump limit`), and what
arrives meanwhile: TCP by iperf3 in bytes of packets (its payload, and 52 bytes of headers for each
full segment), UDP of 64 bytes in packets. Needs root and iperf3.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from doubts import DOUBTS

from fastpump.lab.networks import INSIDE4, Lab, fastpump_pair, need, stop
from fastpump.process.signals import exit_on_signals

FASTPUMP = [sys.executable, "-m", "fastpump"]
HEADERS4 = 52       # IPv4, TCP with timestamps
ETHERNET = 14


def limit(lab: Lab, side: str, spec: str) -> None:
    """Set the interface's limits."""
    lab.run(side, *FASTPUMP, "limit", "fp0", spec)


def carried(lab: Lab, is_tap: bool, seconds: float) -> float:
    """Mbit/s of packets that a TCP stream filled."""
    load = DOUBTS.about("tcp", lab.tcp("a", INSIDE4["b"], seconds, "--omit", "1"))
    mss = int(lab.status("a")["mtu"]) - HEADERS4
    overhead = 1 + (HEADERS4 + (ETHERNET if is_tap else 0)) / mss
    return load.bytes_per_s * 8e-6 * overhead


def packets(lab: Lab, seconds: float) -> float:
    """Packets per second that arrived of a flood of small ones, by the tunnel's own counters."""
    def arrived() -> tuple[float, int]:
        return time.monotonic(), sum(queue["tun_tx_packets"] for queue in lab.status("b")["queues"])

    load = lab.spawn("a", "iperf3", "--client", INSIDE4["b"], "--udp", "--length", "64",
                     "--bitrate", "10M", "--time", str(seconds + 30))
    time.sleep(1)
    begin, before = arrived()
    time.sleep(seconds)
    end, after = arrived()
    stop(load)
    lab.processes.remove(load)
    time.sleep(0.5)
    return (after - before) / (end - begin)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement (10)")
    parser.add_argument("--rounds", type=int, default=1, help="medians of so many (1)")
    parser.add_argument("--mbit", default="10,100,1000", help="these rates (%(default)s)")
    args = parser.parse_args()
    need("ip", "iperf3")
    exit_on_signals()
    for mode in ("tun", "tap"):
        with tempfile.TemporaryDirectory() as directory, Lab() as lab, fastpump_pair(
                lab, Path(directory), "--queues", "2", *["--tap"] * (mode == "tap")):
            lab.serve_iperf("b")
            for way, side in (("tx", "a"), ("rx", "b")):
                for mbit in map(int, args.mbit.split(",") if args.mbit else ()):
                    DOUBTS.begin(f"{mode} {way} {mbit} Mbit/s")
                    limit(lab, side, f"{way}={mbit}mbit")
                    got = statistics.median(carried(lab, mode == "tap", args.seconds)
                                            for _ in range(args.rounds))
                    print(f"{mode} {way} {mbit:5} Mbit/s: {got:9.2f}  ({got / mbit:.3f})",
                          flush=True)
                limit(lab, side, f"{way}-ops=1000")
                got = statistics.median(packets(lab, args.seconds) for _ in range(args.rounds))
                print(f"{mode} {way}  1000 packets/s: {got:7.1f}  ({got / 1000:.3f})", flush=True)
                limit(lab, side, "off")
    for line in DOUBTS.lines:
        print(line)


if __name__ == "__main__":
    main()
