"""Plots of results, as SVG. They need matplotlib (fastpump[bench])."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from fastpump.bench.figures import Figure
from fastpump.bench.medians import median_of
from fastpump.bench.results import Column
from fastpump.bench.verdicts import family
from fastpump.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

COLORS = {"fastpump": "#0b6e4f", "bare": "#9aa5b1"}
OTHER = "#c77d0a"
ROW_INCHES = 0.32


def check() -> None:
    """ConfigError if there is no matplotlib."""
    try:
        import matplotlib  # noqa: F401 (only reports need it)
    except ImportError:
        raise ConfigError("the plots of a report need matplotlib: pip install 'fastpump[bench]' "
                          "(Debian: apt install python3-matplotlib)") from None


def bars(figure: Figure, columns: dict[str, Column]) -> str:
    """One bar for each contender that has the figure: its median, the interval that holds it, and
    a dot for each round. An <svg> element."""
    from matplotlib.figure import Figure as Canvas

    rows = [(name, column.values(figure)) for name, column in columns.items()
            if column.values(figure)]
    canvas = Canvas(figsize=(8.2, 0.75 + ROW_INCHES * len(rows)), layout="constrained")
    axes = canvas.add_subplot()
    for place, (name, values) in enumerate(rows):
        median = median_of(values)
        axes.barh(place, median.value, height=0.62, alpha=0.85,
                  color=COLORS.get(family(name), OTHER))
        axes.plot([median.low, median.high], [place, place], color="#1f2933", linewidth=1.6)
        axes.plot(values, [place] * len(values), ".", color="#1f2933", markersize=4, alpha=0.55)
        axes.annotate(f" {figure.text(median.value)}", (max(median.high, *values), place),
                      va="center", fontsize=8, parse_math=False)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8.5,
                    parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.margins(x=0.12)
    axes.set_xlabel(f"{figure.unit} ({'more' if figure.more_is_better else 'less'} is better)",
                    fontsize=8.5, parse_math=False)
    axes.tick_params(axis="x", labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return _svg(canvas)


def _svg(canvas: Canvas) -> str:
    """Without what makes two runs differ: dates and random names."""
    import matplotlib

    written = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "fastpump", "svg.fonttype": "none",
                                "font.family": ["DejaVu Sans", "sans-serif"]}):
        canvas.savefig(written, format="svg", metadata={"Date": None})
    text = written.getvalue()
    return text[text.index("<svg"):]
