"""quicktun, as Debian's package sets it up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fastpump.bench.contender import SIDES, Contender, Place, Processes, configure_link, ended
from fastpump.lab.networks import OUTSIDE4


@contextlib.contextmanager
def setup(place: Place) -> Iterator[Processes]:
    """By what ifupdown would put into its environment."""
    lab = place.lab
    with ended(lab) as processes:
        key = {side: dict(line.split(": ") for line in lab.run(
            side, "keypair").stdout.splitlines() if ": " in line) for side in "ab"}
        for side, other in SIDES:
            settings = {
                "TUN_MODE": "1", "PROTOCOL": "nacltai", "TIME_WINDOW": "5",
                "LOCAL_ADDRESS": OUTSIDE4[side], "LOCAL_PORT": "2998",
                "REMOTE_ADDRESS": OUTSIDE4[other], "REMOTE_PORT": "2998",
                "PRIVATE_KEY": key[side]["SECRET"], "PUBLIC_KEY": key[other]["PUBLIC"]}
            processes[side] = lab.spawn(side, place.program, env={
                "IFACE": "qt0", **{f"IF_QT_{name}": text for name, text in settings.items()}})
        configure_link(lab, "qt0", mtu=1420)
        yield processes


CONTENDER = Contender("quicktun", "IP, its nacltai protocol: XSalsa20-Poly1305", setup, "quicktun",
                      needs=("keypair",), settings="protocol nacltai; mtu 1420")
