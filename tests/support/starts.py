"""A table of starts: how long until the first byte comes back, whatever is not there yet.

    PYTHONPATH=.:tests python -m support.starts [--rounds 3]

The time is from when there was a way: from the start of the command, or from when what was missing
came. Needs root, and some minutes.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from fastpump.constants import SECOND
from fastpump.lab.networks import INSIDE4, OUTSIDE4, Lab, stop, tunnel_words, wait_until
from support.hosts import is_reachable, until
from support.pretence import Hosts
from support.road import Road

YEAR_NS = 365 * 86400 * SECOND
DEAD4, DEAD6 = "192.0.2.66", "2001:db8::66"
THERE = f"{OUTSIDE4['b']}:51820"
UNKNOWN_S = 20


class Start:
    """One try."""

    def __init__(self, lab, directory):
        self.lab, self.hosts = lab, Hosts(directory)
        self.road = Road(lab, directory)

    def first_byte(self, begun):
        """Seconds until then."""
        wait_until(lambda: is_reachable(self.lab, INSIDE4["b"], timeout_s=0.1), "nothing came", 90)
        return time.monotonic() - begun

    def of(self, *endpoints, options=(), **pretence):
        """`fastpump tunnel` with these endpoints."""
        begun = time.monotonic()
        self.process = self.road.start(self.hosts, *endpoints, options=options, **pretence)
        return self.first_byte(begun)

    # -- what there is

    def usual(self):
        return self.of(THERE)

    def unknown(self, *options):
        """The name has an address after a while."""
        self.road.start(self.hosts, "vpn.example:51820", options=options)
        time.sleep(UNKNOWN_S)
        self.hosts.say(vpn=[OUTSIDE4["b"]])
        return self.first_byte(time.monotonic())

    def unknown_with_kill_switch(self):
        return self.unknown("--kill-switch")

    def dead_aaaa(self):
        self.hosts.say(vpn=[DEAD6, OUTSIDE4["b"]])
        return self.of("vpn.example:51820")

    def no_ipv6(self):
        self.lab.sysctl("a", {f"net.ipv6.conf.{name}.disable_ipv6": 1 for name in (
            "all", "default", "wire")})
        self.hosts.say(vpn=[f"{DEAD6[:-2]}2", OUTSIDE4["b"]])
        return self.of("vpn.example:51820")

    def three(self):
        """The third is another tunnel with b's key."""
        self.lab.fastpump("b", "fp1", *tunnel_words(
            "b", self.road.key["b"], self.road.key["a"][1], "--queues", "1", "--no-routes",
            "--listen-port", "51821", endpoint=False))
        return self.of(f"{DEAD4}:51820", THERE, f"{OUTSIDE4['b']}:51821")

    def three_again(self):
        self.three()
        until(lambda: self.lab.status("a")["peers"][0]["lanes"])
        stop(self.road.process_b)
        self.lab.spawn("a", "ping", "-q", "-i", "0.1", INSIDE4["b"])
        return self.first_byte(time.monotonic())

    def clock(self, how):
        self.of(THERE)
        stop(self.process, how)
        until(lambda: "fp0" not in self.lab.ip("a", "link"))
        return self.of(THERE, clock_ahead_ns=-YEAR_NS)

    CASES = {
        "nothing is missing": usual,
        f"its name has no address for {UNKNOWN_S} s": unknown,
        "the same, with a kill switch": unknown_with_kill_switch,
        "its name's AAAA is dead, its A alive": dead_aaaa,
        "a host without IPv6, the name has AAAA and A": no_ipv6,
        "the first of three endpoints is dead": three,
        "the second dies, too, beside a ping": three_again,
        "after SIGTERM, and a clock set back by a year": lambda self: self.clock(signal.SIGTERM),
        "after SIGKILL, and a clock set back by a year": lambda self: self.clock(signal.SIGKILL),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print("| | first byte after, median (least to most) |\n|---|---|", flush=True)
    for name, case in Start.CASES.items():
        seconds = []
        for _ in range(args.rounds):
            with Lab() as lab, tempfile.TemporaryDirectory() as directory:
                seconds.append(case(Start(lab, Path(directory))))
        print(f"| {name} | {statistics.median(seconds):.1f} s ({min(seconds):.1f} to "
              f"{max(seconds):.1f}) |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
