"""The endpoints of a peer as the operator gave them, and what is known of their addresses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fastpump.conn.endpoint import Endpoint
from fastpump.device.peer import HostAndPort


@dataclass(slots=True, eq=False)
class Names:
    """Of one peer. An address is its own name."""

    given: tuple[HostAndPort, ...]
    found: dict[HostAndPort, tuple[Endpoint, ...]] = field(default_factory=dict)
    """The last answers."""
    errors: dict[HostAndPort, str] = field(default_factory=dict)
    """Why there was no answer, the last time."""
    told: set[HostAndPort] = field(default_factory=set)
    """Of which that was logged."""
    asking: asyncio.Future[object] | None = None
    """The first round of questions."""
    is_placed: bool = False
    """Whether the peer was put where one of the answers says."""

    @property
    def missing(self) -> tuple[HostAndPort, ...]:
        """Those that were never answered."""
        return tuple(each for each in self.given if each not in self.found)

    def candidates(self, is_possible: Callable[[Endpoint], bool]) -> tuple[Endpoint, ...]:
        """Where the peer may be, in the order of trying. What our sockets cannot reach is left out,
        unless there is nothing else."""
        known: Iterable[Endpoint] = dict.fromkeys(
            endpoint for each in self.given for endpoint in self.found.get(each, ()))
        possible = tuple(filter(is_possible, known))
        return possible or tuple(known)

    def problem(self) -> str | None:
        """Why the peer waits for a name, or for some of them; None if it does not."""
        return "; ".join(dict.fromkeys(self.errors.get(each, no_answer(each)) for each in self.given
                                       if each in self.errors or each not in self.found)) or None


def no_answer(name: HostAndPort) -> str:
    """What is known of a name before anything is."""
    return f"the endpoint host {name[0]!r} has no address yet: no name server answers"
