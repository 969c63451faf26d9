"""What is compared: tunnels of all kinds, each in one file of contenders/.

A contender is set up in a laboratory of two hosts (lab/networks.py), as its own authors recommend,
and with the same MTU inside and outside as the others where it lets one choose. What it was told is
part of the report.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fastpump.lab.networks import INSIDE4, OUTSIDE4, Lab, Process, stop, wait_until

Processes = dict[str, Process]
"""Those of the tunnel, whose CPU time and memory are counted, by host."""

SIDES = (("a", "b"), ("b", "a"))
"""Each host, and the other."""


@dataclass(frozen=True)
class Place:
    """Where a contender is set up."""

    lab: Lab
    directory: Path
    """For its files; removed afterwards."""
    program: str
    """The contender's program, where it was found."""
    behind: Mapping[str, str] | None = None
    """The IPv4 network behind each host, to which the tunnel must carry, too."""
    others: Sequence[tuple[str, str]] = ()
    """Peers that b knows besides a: their WireGuard public keys, and what is allowed for each."""


Setup = Callable[[Place], contextlib.AbstractContextManager[Processes]]


@dataclass(frozen=True)
class Contender:
    """One line of a report."""

    name: str
    kind: str
    """What it is: the layer, and who encrypts how."""
    setup: Setup
    program: str = ""
    """What has to be installed, or to be named by --program; "": nothing."""
    needs: tuple[str, ...] = ()
    """Other programs."""
    modules: tuple[str, ...] = ()
    """Of the kernel: it needs one of them."""
    settings: str = ""
    """What was chosen, in the words of its own configuration."""
    topologies: tuple[str, ...] = ("hosts",)
    """Of topologies.py, in which it takes part."""
    device: str = ""
    """Its interface, for the topology `bridges`."""
    target: str = INSIDE4["b"]
    """The address of the other host, for the topology `hosts`."""

    def find(self, named: Mapping[str, str]) -> str | None:
        """The program's path; None if it is not there. `named`: paths that the user gave."""
        if any(shutil.which(each) is None for each in self.needs) or (
                self.modules and not any(map(_has_module, self.modules))):
            return None
        return shutil.which(named.get(self.program, self.program)) if self.program else ""

    @property
    def wants(self) -> str:
        """What has to be there, in words."""
        module = f"the kernel's module {' or '.join(self.modules)}" if self.modules else ""
        return " and ".join(each for each in (self.program, *self.needs, module) if each)


def _has_module(name: str) -> bool:
    """Whether the kernel has it, or can load it."""
    modprobe = shutil.which("modprobe", path=f"{os.environ.get('PATH', '')}:/sbin:/usr/sbin")
    return Path(f"/sys/module/{name}").exists() or (modprobe is not None and subprocess.run(
        [modprobe, "--dry-run", "--quiet", name], check=False).returncode == 0)


@contextlib.contextmanager
def bare(_: Place) -> Iterator[Processes]:
    """No tunnel: the cable itself."""
    yield {}


BARE = Contender("bare", "no tunnel: the cable itself", bare, target=OUTSIDE4["b"], device="wire",
                 topologies=("hosts", "gateways", "bridges"))


@contextlib.contextmanager
def ended(lab: Lab) -> Iterator[Processes]:
    """A dict of processes that are stopped in the end."""
    processes: Processes = {}
    try:
        yield processes
    finally:
        for process in processes.values():
            stop(process)
            lab.processes.remove(process)


def configure_link(lab: Lab, name: str, mtu: int | None = None) -> None:
    """Addresses for an interface that a daemon makes on both hosts, and an MTU that it does not
    choose itself."""
    for side in "ab":
        wait_until(partial(lab.ip, side, "link", "show", name, check=False),
                   f"there is no {name}")
        lab.ip(side, "address", "replace", f"{INSIDE4[side]}/24", "dev", name)
        lab.ip(side, "link", "set", name, *([] if mtu is None else ["mtu", str(mtu)]), "up")
