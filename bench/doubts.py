"""Figures that are not plausible: said when they come, and again below the tables."""

from __future__ import annotations

import sys

from fastpump.lab.iperf import Load


class Doubts:
    """What is not plausible in a run."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._turn = ""

    def begin(self, turn: str) -> None:
        """The next turn: its round and its contender."""
        self._turn = turn
        print(turn, file=sys.stderr, flush=True)

    def about(self, figure: str, load: Load) -> Load:
        """The load, after what is not plausible about it is said."""
        for doubt in load.doubts:
            self.lines.append(f"not plausible: {self._turn}: {figure}: {doubt}")
            print(self.lines[-1], file=sys.stderr, flush=True)
        return load


DOUBTS = Doubts()
