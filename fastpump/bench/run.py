"""A run: rounds, in which each contender has a turn, in random order.

Each turn has a laboratory of its own, so that nothing is left of the one before.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fastpump.bench.contender import Contender
from fastpump.bench.figures import Figure
from fastpump.bench.loads import Turn, run_loads
from fastpump.bench.machine import Quiet
from fastpump.bench.results import Column, Results
from fastpump.bench.topologies import built, shape
from fastpump.errors import SystemSetupError
from fastpump.lab.networks import Lab


@dataclass(frozen=True)
class Plan:
    """What is run."""

    topologies: Sequence[str]
    contenders: Sequence[tuple[Contender, str]]
    """With their programs."""
    loads: Sequence[str]
    rounds: int
    seconds: float
    """Of each load."""
    seed: int
    """Of the order."""


class Progress(Protocol):
    """Who hears how far it is."""

    def begins(self, done: int, total: int, title: str) -> None:
        """The next turn, after so many of all."""

    def ended(self, doubts: Sequence[str]) -> None:
        """That turn: its figures are in the results, and this is odd about them."""


def run(plan: Plan, results: Results, progress: Progress) -> None:
    """Fill the results."""
    order = random.Random(plan.seed)
    turns = []
    for topology in plan.topologies:
        columns = results.columns.setdefault(topology, {})
        for contender, program in plan.contenders:
            if shape(topology) in contender.topologies:
                columns[contender.name] = Column(contender.kind, program, contender.settings)
                turns.append((topology, contender, program))
    total = plan.rounds * len(turns)
    for number in range(plan.rounds):
        order.shuffle(turns)
        for place, (topology, contender, program) in enumerate(turns):
            title = f"round {number + 1}, {topology}: {contender.name}"
            progress.begins(number * len(turns) + place, total, title)
            column = results.columns[topology][contender.name]
            values, doubts = _take_turn(plan, topology, contender, program)
            column.turns.append(values)
            results.doubts += [f"{title}: {doubt}" for doubt in doubts]
            progress.ended(doubts)


def _take_turn(plan: Plan, topology: str, contender: Contender,
               program: str) -> tuple[dict[Figure, float], list[str]]:
    """One contender, once: its figures, and what is not plausible about them, or why there are
    none: who fails is left out of that round only."""
    try:
        with tempfile.TemporaryDirectory(prefix="fastpump-bench-") as directory, Lab() as lab, \
                built(topology, contender, program, lab, Path(directory)) as ends:
            turn, quiet = Turn(lab, ends, plan.seconds), Quiet()
            values = dict(run_loads(turn, plan.loads))
            return values, turn.doubts + quiet.doubts()
    except SystemSetupError as error:
        return {}, [f"failed: {error}"]
