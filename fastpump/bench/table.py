"""Results in words: the table of a run, and two runs beside each other."""

from __future__ import annotations

from collections.abc import Iterator

from fastpump.bench.figures import Figure
from fastpump.bench.medians import CONFIDENCE, Median, median_of, ratio_in_turn, ratio_of_runs
from fastpump.bench.results import Column, Results
from fastpump.bench.topologies import TOPOLOGIES

SPREAD_OF_NOISE = 1.5
"""The greatest value over the least, from which on a figure is called noisy."""


def report(results: Results, baseline: str) -> Iterator[str]:
    """The table of a run, line by line. Ratios are to the contender `baseline`."""
    yield from _about(results)
    for topology, columns in results.columns.items():
        yield f"\n{topology}: {TOPOLOGIES.get(topology, 'two real hosts')}"
        base = columns.get(baseline)
        for name, column in columns.items():
            yield f"\n{name}: {column.kind}"
            yield from (f"  {label}: {text}" for label, text in (
                ("program", column.program), ("settings", column.settings)) if text)
            for figure in column.figures:
                ratio = None
                if base is not None and base is not column:
                    ratio = ratio_in_turn(column.pairs(figure, base))
                yield _line(figure, median_of(column.values(figure)), ratio)
    yield ""
    yield from _legend(results, baseline)
    yield from doubts(results)


def _about(results: Results) -> Iterator[str]:
    machine = results.machine
    yield (f"{machine['kernel']}, {machine['processor']} ({machine['instructions']}), "
           f"{machine['cpus']} CPUs, Python {machine['python']}")
    yield ", ".join(f"{name}: {value}" for name, value in results.settings.items())


def _line(figure: Figure, median: Median, ratio: Median | None) -> str:
    line = (f"  {figure.name:32} {figure.text(median.value):>12} {figure.unit:10}"
            f" {figure.text(median.low)} to {figure.text(median.high)}")
    if ratio is not None:
        line = f"{line:84} x {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" \
               f" {judgement(figure, ratio)}"
    return line.rstrip()


def judgement(figure: Figure, ratio: Median) -> str:
    """What a ratio says: better, worse, or nothing for sure."""
    if not ratio.excludes(1):
        return "?"
    return "better" if (ratio.value > 1) == figure.more_is_better else "worse"


def _legend(results: Results, baseline: str) -> Iterator[str]:
    turns = max((len(column.turns) for columns in results.columns.values()
                 for column in columns.values()), default=0)
    confidence = median_of(range(turns)).confidence if turns else 0.0
    yield (f"Medians of {turns} rounds, and the interval that holds that of all rounds with a "
           f"probability of {confidence:.1%}; x: ratio to {baseline}, round by round; ?: the "
           "rounds cannot tell")
    if confidence < CONFIDENCE:
        yield f"With fewer than six rounds no ratio is sure: {CONFIDENCE:.0%} need --rounds 6."


def doubts(results: Results) -> Iterator[str]:
    """What is noisy, not plausible, or has failed."""
    for topology, columns in results.columns.items():
        for name, column in columns.items():
            noisy = [figure.name for figure in column.figures if _is_noisy(figure, column)]
            if noisy:
                yield (f"noisy: {topology}, {name}: {', '.join(noisy)}: the greatest value is more "
                       f"than {SPREAD_OF_NOISE} times the least")
    yield from (f"not plausible: {doubt}" for doubt in results.doubts)


def _is_noisy(figure: Figure, column: Column) -> bool:
    """Pings apart, whose tail is noise by nature; and what is lost."""
    values = column.values(figure)
    return figure.unit not in ("ms", "%") and max(values) > SPREAD_OF_NOISE * min(values)


def comparison(before: Results, after: Results) -> Iterator[str]:
    """What has changed from one run to another: other commits, machines or kernels."""
    for what in ("machine", "settings"):
        old, new = getattr(before, what), getattr(after, what)
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                yield f"{what}: {name}: {old.get(name)} -> {new.get(name)}"
    for topology, columns in after.columns.items():
        for name, column in columns.items():
            other = before.columns.get(topology, {}).get(name)
            if other is None:
                yield f"\n{topology}, {name}: only in the second run"
                continue
            yield f"\n{topology}, {name}"
            yield from _changes(other, column)
    for topology, columns in before.columns.items():
        for name in columns:
            if name not in after.columns.get(topology, {}):
                yield f"\n{topology}, {name}: only in the first run"


def _changes(before: Column, after: Column) -> Iterator[str]:
    for figure in after.figures:
        old, new = before.values(figure), after.values(figure)
        ratio = ratio_of_runs(new, old)
        if old and ratio is not None:
            yield (f"  {figure.name:32} {figure.text(median_of(old).value):>12} -> "
                   f"{figure.text(median_of(new).value):>12} {figure.unit:10} x {ratio.value:.2f}"
                   f" ({ratio.low:.2f} to {ratio.high:.2f}) {judgement(figure, ratio)}")
