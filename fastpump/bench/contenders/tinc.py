"""tinc 1.0 in switch mode."""

from __future__ import annotations

import contextlib
import shutil
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
    """With its default ciphers."""
    lab, directory = place.lab, place.directory
    with ended(lab) as processes:
        for side, other in SIDES:
            hosts = directory / f"tinc-{side}" / "hosts"
            hosts.mkdir(parents=True)
            (hosts.parent / "tinc.conf").write_text(
                f"Name = {side}\nMode = switch\nInterface = tinc0\nDeviceType = tap\n"
                f"ConnectTo = {other}\n", encoding="ascii")
            (hosts / side).write_text(f"Address = {OUTSIDE4[side]}\n", encoding="ascii")
            (hosts.parent / "tinc-up").write_text("#!/bin/sh\n", encoding="ascii")
            (hosts.parent / "tinc-up").chmod(0o755)
            lab.run(side, place.program, "--config", str(hosts.parent), "--generate-keys=2048",
                    input="\n\n")
        for side, other in SIDES:
            shutil.copy(directory / f"tinc-{other}" / "hosts" / other,
                        directory / f"tinc-{side}" / "hosts" / other)
        for side, _ in SIDES:
            processes[side] = lab.spawn(
                side, place.program, "--no-detach", "--config", str(directory / f"tinc-{side}"),
                "--pidfile", str(directory / f"tinc-{side}.pid"))
        configure_link(lab, "tinc0")
        yield processes


CONTENDER = Contender("tinc", "Ethernet, its protocol of 1.0: AES-256-CBC, HMAC-SHA-256", setup,
                      "tincd", settings="Mode = switch; its default ciphers",
                      topologies=("hosts", "bridges"), device="tinc0")
