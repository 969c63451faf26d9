"""WireGuard of others, configured by wg: programs with wireguard-go's command line, and the
kernel's own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fastpump.bench.contender import SIDES, Contender, Place, Processes, ended
from fastpump.lab.networks import INSIDE4, OUTSIDE4, Lab, key_files, wait_until


@contextlib.contextmanager
def _program(place: Place, *options: str) -> Iterator[Processes]:
    """Started by PROGRAM OPTIONS NAME."""
    with ended(place.lab) as processes:
        for side in "ab":
            name = _interface(side)
            processes[side] = place.lab.spawn(side, place.program, *options, name)
            wait_until(Path(f"/var/run/wireguard/{name}.sock").exists,
                       f"{place.program} has no socket")
        _configure(place)
        yield processes


@contextlib.contextmanager
def _kernel(place: Place) -> Iterator[Processes]:
    """No process is the tunnel's."""
    for side in "ab":
        place.lab.ip(side, "link", "add", _interface(side), "type", "wireguard")
    _configure(place)
    yield {}


def _interface(side: str) -> str:
    """All namespaces share the directory of wg's sockets."""
    return f"wg{os.getpid()}{side}"


def _configure(place: Place) -> None:
    """Both ends."""
    lab, key = place.lab, key_files(place.directory)
    for side, other in SIDES:
        name = _interface(side)
        allowed = [f"{INSIDE4[other]}/32", *([place.behind[other]] if place.behind else [])]
        lab.run(side, "wg", "set", name, "private-key", str(key[side][0]), "listen-port",
                "51820", "peer", key[other][1], "allowed-ips", ",".join(allowed),
                "endpoint", f"{OUTSIDE4[other]}:51820")
        if side == "b" and place.others:
            _add_peers(lab, name, place)
        lab.ip(side, "address", "add", f"{INSIDE4[side]}/24", "dev", name)
        lab.ip(side, "link", "set", name, "mtu", "1420", "up")
        for network in allowed[1:]:
            lab.ip(side, "route", "add", network, "dev", name)


def _add_peers(lab: Lab, name: str, place: Place) -> None:
    path = place.directory / "others.conf"
    path.write_text("".join(f"[Peer]\nPublicKey = {public}\nAllowedIPs = {allowed}\n"
                            for public, allowed in place.others), encoding="ascii")
    lab.run("b", "wg", "addconf", name, str(path))


KIND = "IP, WireGuard: ChaCha20-Poly1305"
TOPOLOGIES = "hosts", "gateways", "peers"
_MTU = "mtu 1420"


def _contender(name: str, program: str, *options: str) -> Contender:
    return Contender(name, KIND, lambda place: _program(place, "--foreground", *options), program,
                     needs=("wg",), settings="; ".join((_MTU, *options)), topologies=TOPOLOGIES)


CONTENDERS = (
    _contender("wireguard-go", "wireguard-go"),
    *(_contender(name, program, "--disable-drop-privileges")
      for name, program in (("boringtun", "boringtun-cli"), ("gotatun", "gotatun"))),
    Contender("kernel", f"{KIND}, in the kernel", _kernel, needs=("wg",), modules=("wireguard",),
              settings=f"{_MTU}; its CPU time is no process's, and not known",
              topologies=TOPOLOGIES),
)
