"""n2n 1.3, as Debian has it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fastpump.bench.contender import Contender, Place, Processes, ended
from fastpump.lab.networks import INSIDE4, OUTSIDE4


@contextlib.contextmanager
def setup(place: Place) -> Iterator[Processes]:
    """b has the supernode, too."""
    lab = place.lab
    with ended(lab) as processes:
        processes["supernode"] = lab.spawn("b", "supernode", "-l", "7654")
        for side in "ab":
            processes[side] = lab.spawn(
                side, place.program, "-d", "n2n0", "-a", INSIDE4[side], "-s", "255.255.255.0", "-c",
                "bench", "-l", f"{OUTSIDE4['b']}:7654", env={"N2N_KEY": "bench"})
        yield processes


CONTENDER = Contender("n2n", "Ethernet, Twofish", setup, "edge", needs=("supernode",),
                      settings="mtu 1400")
