"""A table of path MTUs: how long the tunnel takes to find one, and whether TCP passes meanwhile.

    PYTHONPATH=.:tests python -m support.pathtable [--mtu 1300,1400] [--kind tap] [--megabytes 20]

For each MTU, with ICMP and fragments let through, without ICMP, and without both; over TUN and TAP,
by lanes and by plain WireGuard, IPv6 outside, too. `found` is the time from the first packet until
both sides know the path MTU. Then so much TCP goes each way, over IPv4 and IPv6. Last, the path
gets narrower while TCP flows (`change`: until the log says so). Needs root, and half an hour.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastpump.errors import SystemSetupError
from fastpump.lab.networks import INSIDE4, INSIDE6, Lab, fastpump_pair, wait_for_line, wait_until
from support.hosts import is_reachable, transfer
from support.paths import NarrowPath

MTUS = 1280, 1300, 1400, 1492, 1500, 9000
KINDS = {
    "tun": ((), False), "tun over IPv6": ((), True), "tap": (("--tap",), False),
    "wireguard": (("--transport", "wireguard"), False),
    "wireguard over IPv6": (("--transport", "wireguard"), True),
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mtu", default=",".join(map(str, MTUS)))
    parser.add_argument("--kind", default=",".join(KINDS))
    parser.add_argument("--routers", default=";".join(ROUTERS))
    parser.add_argument("--megabytes", type=int, default=20)
    args = parser.parse_args()
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
