"""A table of path MTUs: how long the tunnel takes to find one, and whether TCP passes meanwhile.

    PYTHONPATH=.:tests python -m support.pathtable [--mtu 1300,1400] [--kind tap] [--megabytes 20]
    PYTHONPATH=.:tests python -m support.pathtable --rates

For each MTU, with ICMP and fragments let through, without ICMP, and without both; over TUN and TAP,
by lanes and by plain WireGuard, IPv6 outside, too. `found` is the time from the first packet until
both sides know the path MTU. Then so much TCP goes each way, over IPv4 and IPv6. Last, the path
gets narrower while TCP flows (`change`: until the log says so). With wireguard-go at one end
nothing can be found; only TCP is seen. Needs root, and half an hour.

With --rates: TCP through a tunnel that found the path MTU, and through one whose MTU was set by
hand to what fits, in turn, five rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastpump.errors import SystemSetupError
from fastpump.lab.networks import (
    INSIDE4,
    INSIDE6,
    Lab,
    fastpump_pair,
    key_files,
    tunnel_words,
    wait_for_line,
    wait_until,
)
from support.hosts import is_reachable, transfer
from support.paths import NarrowPath
from support.wireguard_go import start_wireguard_go

MTUS = 1280, 1300, 1400, 1492, 1500, 9000
KINDS = {
    "tun": ((), False), "tun over IPv6": ((), True), "tap": (("--tap",), False),
    "wireguard": (("--transport", "wireguard"), False),
    "wireguard over IPv6": (("--transport", "wireguard"), True),
    "with wireguard-go": ((), False), "with wireguard-go over IPv6": ((), True),
}
ROUTERS = {"all passes": (True, True), "no ICMP": (False, True), "no ICMP, fragments": (False,
                                                                                       False)}
NARROWER = {1280: None, 1300: 1280, 1400: 1300, 1492: 1400, 1500: 1300, 9000: 1500}


def found(lab):
    return [lab.status(side)["peers"][0]["path_mtu"] for side in "ab"]


def moves(lab, size):
    """Whether so many bytes go each way, over both versions of IP."""
    return all(transfer(lab, sender, inside[receiver], size)
               for sender, receiver in ("ab", "ba") for inside in (INSIDE4, INSIDE6))


def change(path, processes, mtu, size):
    """Seconds until the log says that the path is narrower; "" if it does not get so."""
    if mtu is None:
        return ""
    before = path.lab.status("b")["peers"][0]["rx_bytes"]
    with ThreadPoolExecutor() as pool:
        moved = pool.submit(transfer, path.lab, "a", INSIDE4["b"], size, seconds=6)
        wait_until(lambda: path.lab.status("b")["peers"][0]["rx_bytes"] > before + (size >> 3),
                   "nothing flows")
        path.set_mtu(mtu)
        begun = time.monotonic()
        wait_for_line(processes["a"], f"its path takes {mtu} bytes")
        seconds = time.monotonic() - begun
        try:
            is_complete = moved.result()
        except SystemSetupError:
            is_complete = False
        return f"{seconds:.1f} s, {'complete' if is_complete else 'not complete'}"


def row(mtu, kind, routers, size):
    options, v6_outside = KINDS[kind]
    icmp, fragments = ROUTERS[routers]
    if kind == "tap" and mtu > 1500:        # by itself it has Ethernet's
        options = (*options, "--mtu", str(mtu - 118))
    with Lab() as lab, tempfile.TemporaryDirectory() as directory:
        path = NarrowPath(lab, mtu=mtu, outside=9000 if mtu > 1500 else 1500, icmp=icmp,
                          fragments=fragments)
        if "wireguard-go" in kind:
            return "", foreign(lab, Path(directory), v6_outside, size), ""
        with fastpump_pair(lab, Path(directory), "--queues", "2", *options,
                           v6_outside=v6_outside) as processes:
            begun = time.monotonic()
            is_reachable(lab, INSIDE4["b"])
            wait_until(lambda: found(lab) == [mtu, mtu], "the path MTU is not found")
            seconds = time.monotonic() - begun
            wait_until(lambda: is_reachable(lab, INSIDE6["b"], "a", 1)      # of a TAP, after DAD
                       and is_reachable(lab, INSIDE6["a"], "b", 1), "no IPv6")
            tcp = "complete" if moves(lab, size) else "not complete"
            return f"{seconds:.1f} s", tcp, change(path, processes, NARROWER[mtu], size)


def foreign(lab, directory, v6_outside, size):
    """What comes of TCP with a wireguard-go on b."""
    key = key_files(directory)
    start_wireguard_go(lab, "b", key["b"], key["a"][1], endpoint=False)
    lab.fastpump("a", *tunnel_words("a", key["a"], key["b"][1], "--queues", "2",
                                    v6_outside=v6_outside))
    wait_until(lambda: is_reachable(lab, INSIDE4["b"], "a", 1), "no session")
    passed = {}
    for way, sender, receiver in (("to it", "a", "b"), ("from it", "b", "a")):
        try:
            passed[way] = all(transfer(lab, sender, inside[receiver], size, stall_s=90)
                              for inside in (INSIDE4, INSIDE6))
        except (SystemSetupError, TimeoutError):
            passed[way] = False
    return ", ".join(f"{way} {'complete' if is_complete else 'not complete'}"
                     for way, is_complete in passed.items())


def rates(mtu, kind):
    """Gbit/s, medians: with the path MTU that was found, and with the MTU that fits."""
    options, v6_outside = KINDS[kind]
    by_hand = "--mtu", str(mtu - (118 if kind == "tap" else 80))
    measured = [], []
    for _ in range(5):
        for each, words in zip(measured, ((), by_hand), strict=True):
            with Lab() as lab, tempfile.TemporaryDirectory() as directory:
                NarrowPath(lab, mtu=mtu, outside=9000 if mtu > 1500 else 1500)
                with fastpump_pair(lab, Path(directory), "--queues", "2", *options, *words,
                                   v6_outside=v6_outside):
                    is_reachable(lab, INSIDE4["b"])
                    wait_until(lambda: found(lab) == [mtu, mtu], "the path MTU is not found")
                    lab.serve_iperf("b")
                    each.append(lab.tcp("a", INSIDE4["b"], 2).gbit_per_s)
    return tuple(map(statistics.median, measured))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mtu", default=",".join(map(str, MTUS)))
    parser.add_argument("--kind", default=",".join(KINDS))
    parser.add_argument("--routers", default=";".join(ROUTERS))
    parser.add_argument("--megabytes", type=int, default=20)
    parser.add_argument("--rates", action="store_true")
    args = parser.parse_args()
    if args.rates:
        print("| path MTU | tunnel | found | by hand | ratio |\n|---|---|---|---|---|")
        for mtu in map(int, args.mtu.split(",")):
            for kind in ("tun", "tap", "wireguard"):
                gbit = rates(mtu, kind)
                print(f"| {mtu} | {kind} | {gbit[0]:.2f} Gbit/s | {gbit[1]:.2f} Gbit/s | "
                      f"{gbit[0] / gbit[1]:.2f} |", flush=True)
        return 0
    print("| path MTU | tunnel | routers | found | TCP | change |\n|---|---|---|---|---|---|")
    failures = 0
    for mtu in map(int, args.mtu.split(",")):
        for kind in args.kind.split(","):
            for routers in args.routers.split(";"):
                try:
                    cells = row(mtu, kind, routers, args.megabytes << 20)
                except SystemSetupError as error:
                    cells = str(error).splitlines()[-1], "", ""
                    failures += 1
                print(f"| {mtu} | {kind} | {routers} | {' | '.join(cells)} |", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
