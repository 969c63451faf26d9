"""Two real hosts: load from this one to one on which `fastpump bench --server` runs (remote.py).

The tunnel is whatever leads there: it has been set up by hand, and has the name that it is given.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from fastpump.bench import remote
from fastpump.bench.ends import Ends
from fastpump.bench.figures import Figure
from fastpump.bench.loads import Turn, run_loads
from fastpump.bench.machine import Quiet
from fastpump.bench.results import Column, Results
from fastpump.bench.run import Progress
from fastpump.bench.topologies import REAL
from fastpump.errors import SystemSetupError
from fastpump.lab.networks import Lab

HERE, THERE = "here", "there"


@dataclass(frozen=True)
class Pair:
    """Which hosts, and what leads from one to the other."""

    address: str
    """Of the other host, by the tunnel."""
    control: str
    """Of the same host, for requests."""
    port: int
    name: str
    """Of the tunnel, in the report."""
    process: str | None
    """The name of its program, on both hosts; None: what it uses is not measured."""


class RealHosts(Lab):
    """Stands for a lab, whose hosts are this one and another."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.pair = pair

    def __enter__(self) -> RealHosts:
        return self

    def command(self, side: str, command: Sequence[str]) -> list[str]:
        """Commands for the other host are those that `remote` takes."""
        if side == HERE:
            return list(command)
        _, _, module, _, words = command
        what = module.rpartition(".")[2]
        return [sys.executable, "-m", remote.__name__, self.pair.control, str(self.pair.port),
                json.dumps([what, json.loads(words)])]

    def serve_iperf(self, side: str) -> None:
        """They serve already."""


@dataclass(frozen=True)
class _OfPrograms:
    """The programs of one name, on both hosts."""

    pair: Pair
    process: str

    def _usage(self) -> tuple[float, int]:
        host, port = self.pair.control, self.pair.port
        with remote.ask(host, port, ["usage", self.process]) as connection:
            text = connection.makefile(encoding="utf-8", errors="replace").readline()
        try:
            seconds, size = json.loads(text)
            there = float(seconds), int(size)
        except (ValueError, TypeError):
            raise SystemSetupError(f"{host} port {port} answers {text.strip()!r}") from None
        here = remote.usage(self.process)
        return here[0] + there[0], here[1] + there[1]

    def cpu_seconds(self) -> float:
        return self._usage()[0]

    def memory_bytes(self) -> int:
        return self._usage()[1]


def run(pair: Pair, loads: Sequence[str], rounds: int, seconds: float, results: Results,
        progress: Progress) -> None:
    """Fill one column of the results, and leave those of other tunnels there. SystemSetupError if
    there is no server."""
    remote.ask(pair.control, pair.port, ["usage", ""]).close()
    column = Column(f"over {pair.address}", pair.process or "", "set up by hand")
    results.columns.setdefault(REAL, {})[pair.name] = column
    usage = None if pair.process is None else _OfPrograms(pair, pair.process)
    ends = Ends(HERE, THERE, pair.address, usage, have_one_clock=False)
    for number in range(rounds):
        title = f"round {number + 1}, {pair.name}"
        progress.begins(number, rounds, title)
        with RealHosts(pair) as hosts:
            turn, quiet = Turn(hosts, ends, seconds), Quiet()
            try:
                values: dict[Figure, float] = dict(run_loads(turn, loads))
                doubts = turn.doubts + quiet.doubts()
            except SystemSetupError as error:
                values, doubts = {}, [f"failed: {error}"]
        column.turns.append(values)
        results.doubts += [f"{title}: {doubt}" for doubt in doubts]
        progress.ended(doubts)
