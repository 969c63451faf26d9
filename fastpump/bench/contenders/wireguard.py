"""wireguard-go, configured by wg."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fastpump.bench.contender import SIDES, Contender, Place, Processes, ended
from fastpump.lab.networks import INSIDE4, OUTSIDE4, key_files, wait_until


@contextlib.contextmanager
def setup(place: Place) -> Iterator[Processes]:
    """At both ends."""
    lab, key = place.lab, key_files(place.directory)
    with ended(lab) as processes:
        for side, other in SIDES:
            name = f"wg{os.getpid()}{side}"
            allowed = [f"{INSIDE4[other]}/32", *([place.behind[other]] if place.behind else [])]
            processes[side] = lab.spawn(side, place.program, "--foreground", name)
            wait_until(Path(f"/var/run/wireguard/{name}.sock").exists,
                       "wireguard-go has no socket")
            lab.run(side, "wg", "set", name, "private-key", str(key[side][0]), "listen-port",
                    "51820", "peer", key[other][1], "allowed-ips", ",".join(allowed),
                    "endpoint", f"{OUTSIDE4[other]}:51820")
            lab.ip(side, "address", "add", f"{INSIDE4[side]}/24", "dev", name)
            lab.ip(side, "link", "set", name, "mtu", "1420", "up")
            for network in allowed[1:]:
                lab.ip(side, "route", "add", network, "dev", name)
        yield processes


CONTENDER = Contender("wireguard-go", "IP, WireGuard: ChaCha20-Poly1305", setup, "wireguard-go",
                      needs=("wg",), settings="mtu 1420; offloads by itself",
                      topologies=("hosts", "gateways"))
