"""What load runs between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fastpump.bench.contender import Processes
from fastpump.lab.networks import cpu_seconds, resident_bytes


class Usage(Protocol):
    """What a tunnel uses, at both ends together."""

    def cpu_seconds(self) -> float:
        """So far."""

    def memory_bytes(self) -> int:
        """Now; what processes share counts in parts."""


@dataclass(frozen=True)
class OfProcesses:
    """Of processes that this program started."""

    processes: Processes

    def cpu_seconds(self) -> float:
        """With those that they started."""
        return cpu_seconds([process.pid for process in self.processes.values()])

    def memory_bytes(self) -> int:
        """The same."""
        return resident_bytes([process.pid for process in self.processes.values()])


@dataclass(frozen=True)
class Crowd:
    """Peers of a WireGuard gateway, who are silent until a load speaks for them."""

    privates: tuple[str, ...]
    """Their keys."""
    gateway: str
    """Its public key, ..."""
    endpoint: tuple[str, int]
    """... and where it is, for the client."""


@dataclass(frozen=True)
class Ends:
    """The hosts of a load, and the tunnel between them."""

    client: str
    """The host that sends, ..."""
    server: str
    """... the one that receives, ..."""
    address: str
    """... and the latter's address."""
    usage: Usage | None
    """None: there is no tunnel, or nobody knows its processes."""
    begun_s: float | None = None
    """When the set-up of the tunnel began (time.monotonic); None: before this program."""
    crowd: Crowd | None = None
    """That the server has besides the client."""
    have_one_clock: bool = True
    """Else no delays are measured."""
