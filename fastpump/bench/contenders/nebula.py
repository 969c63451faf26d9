"""nebula, with a certificate authority of its own; b is the lighthouse."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from fastpump.bench.contender import SIDES, Contender, Place, Processes, ended
from fastpump.lab.networks import INSIDE4, OUTSIDE4

ROUTINES = 2
"""Queues: as many as the smallest machine has CPUs."""


@contextlib.contextmanager
def setup(place: Place) -> Iterator[Processes]:
    """Its configuration is YAML, hence JSON will do."""
    lab, directory = place.lab, place.directory
    certify = ("nebula-cert",)
    lab.run("a", *certify, "ca", "-name", "bench", "-out-crt", str(directory / "ca.crt"),
            "-out-key", str(directory / "ca.key"))
    with ended(lab) as processes:
        for side, other in SIDES:
            certificate, key = directory / f"{side}.crt", directory / f"{side}.key"
            lab.run(side, *certify, "sign", "-name", side, "-ip", f"{INSIDE4[side]}/24", "-ca-crt",
                    str(directory / "ca.crt"), "-ca-key", str(directory / "ca.key"), "-out-crt",
                    str(certificate), "-out-key", str(key))
            everything = [{"port": "any", "proto": "any", "host": "any"}]
            config = directory / f"nebula-{side}.json"
            config.write_text(json.dumps({
                "pki": {"ca": str(directory / "ca.crt"), "cert": str(certificate),
                        "key": str(key)},
                "static_host_map": {INSIDE4[other]: [f"{OUTSIDE4[other]}:4242"]},
                "lighthouse": {"am_lighthouse": side == "b",
                               "hosts": [INSIDE4["b"]] if side == "a" else []},
                "listen": {"host": OUTSIDE4[side], "port": 4242, "batch": 64,
                           "read_buffer": 10_485_760, "write_buffer": 10_485_760},
                "routines": ROUTINES, "cipher": "aes",
                "tun": {"dev": "nebula0", "mtu": 1420, "tx_queue": 500},
                "firewall": {"outbound": everything, "inbound": everything},
            }), encoding="ascii")
            processes[side] = lab.spawn(side, place.program, "-config", str(config))
        yield processes


CONTENDER = Contender("nebula", "IP, Noise: AES-256-GCM", setup, "nebula", needs=("nebula-cert",),
                      settings=f"mtu 1420; routines {ROUTINES}; batch 64; buffers of 10 MiB")
