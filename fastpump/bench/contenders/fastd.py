"""fastd with its null cipher: what it costs to carry Ethernet through one process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fastpump.bench.contender import (
    SIDES,
    Contender,
    Place,
    Processes,
    configure_link,
    ended,
)
from fastpump.lab.networks import OUTSIDE4


@contextlib.contextmanager
def setup(place: Place) -> Iterator[Processes]:
    """As TAP."""
    lab, directory = place.lab, place.directory
    with ended(lab) as processes:
        key = {side: dict(line.split(": ") for line in lab.run(
            side, place.program, "--generate-key").stdout.splitlines() if ": " in line)
            for side in "ab"}
        for side, other in SIDES:
            config = directory / f"fastd-{side}.conf"
            config.touch(mode=0o600)
            config.write_text(
                f'interface "fastd0"; mode tap; method "null"; mtu 1406; bind any:51820;\n'
                f'secret "{key[side]["Secret"]}";\n'
                f'peer "other" {{ key "{key[other]["Public"]}"; '
                f'remote {OUTSIDE4[other]} port 51820; }}\n', encoding="ascii")
            processes[side] = lab.spawn(side, place.program, "--config", str(config))
        configure_link(lab, "fastd0")
        yield processes


CONTENDER = Contender("fastd", "Ethernet, not encrypted", setup, "fastd",
                      settings='mode tap; method "null"; mtu 1406',
                      topologies=("hosts", "bridges"), device="fastd0")
