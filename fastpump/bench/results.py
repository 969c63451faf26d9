"""The results of a run, and the file that keeps them (JSON)."""

from __future__ import annotations

import json
import math
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastpump.bench.figures import Figure
from fastpump.errors import ConfigError

FORMAT = "fastpump bench 1"


@dataclass
class Column:
    """One contender in one topology."""

    kind: str
    program: str
    settings: str
    turns: list[dict[Figure, float]] = field(default_factory=list)
    """One for each round; empty where the contender failed."""

    @property
    def figures(self) -> list[Figure]:
        """Those that there are, in their order."""
        return list(dict.fromkeys(figure for turn in self.turns for figure in turn))

    def values(self, figure: Figure) -> list[float]:
        """Of all rounds that have it."""
        return [turn[figure] for turn in self.turns if figure in turn]

    def pairs(self, figure: Figure, other: Column) -> list[tuple[float, float]]:
        """With another one's of the same rounds."""
        return [(mine[figure], its[figure]) for mine, its in zip(
            self.turns, other.turns, strict=False) if figure in mine and figure in its]


@dataclass
class Results:
    """All of a run."""

    machine: dict[str, str]
    settings: dict[str, str]
    """Of the run: what the command line said."""
    columns: dict[str, dict[str, Column]] = field(default_factory=dict)
    """By topology and contender."""
    doubts: list[str] = field(default_factory=list)
    """What is not plausible, and who failed."""

    def save(self, path: Path) -> None:
        """Write the file, as a whole."""
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(self.as_json(), indent=1) + "\n", encoding="utf-8")
        part.replace(path)

    def as_json(self) -> dict[str, Any]:
        """What the file holds."""
        return {
            "format": FORMAT, "machine": self.machine, "settings": self.settings,
            "doubts": self.doubts,
            "topologies": {topology: {name: {
                "kind": column.kind, "program": column.program, "settings": column.settings,
                "figures": [asdict(figure) for figure in column.figures],
                "turns": [{figure.name: value for figure, value in turn.items()}
                          for turn in column.turns],
            } for name, column in columns.items()} for topology, columns in self.columns.items()},
        }


def load_results(path: Path) -> Results:
    """Read a file; ConfigError if it is not one of `save`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ConfigError(f"{path} is of another version of fastpump: {data['format']!r} "
                              f"instead of {FORMAT!r}")
        return Results(
            {name: str(data["machine"][name]) for name in this_machine()},
            {name: str(value) for name, value in data["settings"].items()},
            {topology: {_name(name): _column(column) for name, column in columns.items()}
             for topology, columns in data["topologies"].items()},
            [str(doubt) for doubt in data["doubts"]])
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no file of `fastpump bench --json`: "
                          f"{type(error).__name__}: {error}") from None


def _column(data: dict[str, Any]) -> Column:
    figures = {each["name"]: Figure(_name(each["name"]), str(each["unit"]),
                                    bool(each["more_is_better"]), min(9, max(0, each["digits"])))
               for each in data["figures"]}
    return Column(str(data["kind"]), str(data["program"]), str(data["settings"]), [
        {figures[name]: _value(value) for name, value in turn.items()} for turn in data["turns"]])


def _name(text: str) -> str:
    if not text.strip():
        raise ValueError("an empty name")
    return text


def _value(number: float) -> float:
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{number} is no figure")
    return float(number)


def this_machine() -> dict[str, str]:
    """What figures depend on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    fields = dict(line.split("\t: ", 1) for line in lines if "\t: " in line)
    flags = fields.get("flags\t", fields.get("flags", "")).split()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")),
                 platform.machine())
    wide = [name for name in ("avx2", "avx512f", "vaes", "sha_ni") if name in flags]
    return {"kernel": f"{platform.system()} {platform.release()}", "processor": model,
            "instructions": " ".join(wide), "cpus": str(len(os.sched_getaffinity(0))),
            "python": platform.python_version()}
