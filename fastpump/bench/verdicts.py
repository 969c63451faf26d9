"""Who wins at what, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastpump.bench.contender import BARE
from fastpump.bench.figures import Figure
from fastpump.bench.medians import Median, median_of, ratio_in_turn
from fastpump.bench.results import Column


@dataclass(frozen=True)
class Win:
    """The best contender at one figure, beside the next best of another kind."""

    figure: Figure
    winner: str
    value: Median
    rival: str
    ratio: Median | None
    """The winner's to the rival's, round by round; None: there is none, or it is 0."""

    @property
    def is_sure(self) -> bool:
        """Whether the rounds can tell the two apart."""
        return self.ratio is not None and self.ratio.excludes(1)


def wins(columns: dict[str, Column]) -> Iterator[Win]:
    """Of the tunnels of one topology, by figure."""
    tunnels = {name: column for name, column in columns.items() if name != BARE.name}
    for figure in dict.fromkeys(each for column in tunnels.values() for each in column.figures):
        ranked = sorted(
            ((median_of(column.values(figure)), name) for name, column in tunnels.items()
             if column.values(figure)),
            key=lambda pair: pair[0].value, reverse=figure.more_is_better)
        value, winner = ranked[0]
        rivals = [name for _, name in ranked[1:] if family(name) != family(winner)]
        if rivals:
            yield Win(figure, winner, value, rivals[0], ratio_in_turn(
                columns[winner].pairs(figure, columns[rivals[0]])))


def family(name: str) -> str:
    """Whose program it is: fastpump, with whatever transport and queues, is one."""
    return name.split(maxsplit=1)[0].rstrip(",")
