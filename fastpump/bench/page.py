"""The report that a person would want to look at: one HTML file, which needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape

from fastpump.bench import plots, table, verdicts
from fastpump.bench.figures import Figure
from fastpump.bench.medians import Median
from fastpump.bench.results import Column, Results
from fastpump.bench.topologies import TOPOLOGIES

STYLE = """
:root { color-scheme: light; --ink: #1f2933; --soft: #52606d; --line: #d9dfe5; --win: #0b6e4f; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 2rem auto; padding: 0 1rem;
       max-width: 62rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { margin-top: 2.5rem; font-size: 1.25rem }
h3 { margin: 1.6rem 0 .2rem; font-size: 1rem }
p.soft, td.soft { color: var(--soft) } .sure { color: var(--win); font-weight: 600 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line);
         vertical-align: top }
th { font-weight: 600 } td.number { text-align: right } svg { max-width: 100%; height: auto }
pre { overflow-x: auto; background: #f4f6f8; padding: .8rem; font-size: 12.5px }
nav a { margin-right: 1rem } details { margin: 1rem 0 }
"""


def render(results: Results, baseline: str) -> str:
    """The whole file. Ratios of its table are to the contender `baseline`."""
    plots.check()
    return "".join(_page(results, baseline))


def _page(results: Results, baseline: str) -> Iterator[str]:
    machine = results.machine
    yield ("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
           "<meta name=\"viewport\" content=\"width=device-width\">"
           f"<title>fastpump bench: {escape(machine['processor'])}</title>"
           f"<style>{STYLE}</style></head><body>")
    yield ("<h1>Tunnels beside each other</h1><p class=\"soft\">"
           f"{escape(machine['processor'])} ({escape(machine['instructions'])}), "
           f"{escape(machine['cpus'])} CPUs, {escape(machine['kernel'])}. "
           "Both ends of the tunnel and the load shared this machine.</p>")
    yield "<nav>" + "".join(
        f"<a href=\"#{escape(name)}\">{escape(TOPOLOGIES.get(name, name))}</a>"
        for name in results.columns) + "<a href=\"#doubts\">doubts</a>" \
        "<a href=\"#table\">all figures</a></nav>"
    for topology, columns in results.columns.items():
        yield (f"<section id=\"{escape(topology)}\">"
               f"<h2>{escape(TOPOLOGIES.get(topology, topology))}</h2>")
        yield from _verdicts(columns)
        yield from _contenders(columns)
        yield from _plots(columns)
        yield "</section>"
    yield from _doubts(results)
    yield ("<section id=\"table\"><h2>All figures</h2><pre>"
           + escape("\n".join(table.report(results, baseline))) + "</pre></section>")
    yield ("<script type=\"application/json\" id=\"results\">"
           + json.dumps(results.as_json()).replace("<", "\\u003c") + "</script></body></html>\n")


def _verdicts(columns: dict[str, Column]) -> Iterator[str]:
    rows = list(verdicts.wins(columns))
    if not rows:
        yield "<p>Only one kind of tunnel took part: nobody to win against.</p>"
        return
    yield ("<table class=\"verdicts\"><thead><tr><th>at</th><th>wins</th><th></th><th>before</th>"
           "<th>factor</th><th>sure?</th></tr></thead><tbody>")
    for win in rows:
        yield (f"<tr><td>{escape(win.figure.name)}</td><td class=\"{_class(win)}\">"
               f"{escape(win.winner)}</td><td class=\"number\">"
               f"{win.figure.text(win.value.value)} {escape(win.figure.unit)}</td>"
               f"<td>{escape(win.rival)}</td><td>{_factor(win.figure, win.ratio)}</td>"
               f"<td>{'yes' if win.is_sure else 'the rounds cannot tell'}</td></tr>")
    yield "</tbody></table>"


def _class(win: verdicts.Win) -> str:
    return "sure" if win.is_sure else ""


def _factor(figure: Figure, ratio: Median | None) -> str:
    """How many times as good: so 1 or more, mostly."""
    if ratio is None:
        return ""
    values = ratio.value, ratio.low, ratio.high
    if not figure.more_is_better:
        if ratio.low <= 0:
            return ""
        values = 1 / ratio.value, 1 / ratio.high, 1 / ratio.low
    return f"{values[0]:.2f} <span class=\"soft\">({values[1]:.2f} to {values[2]:.2f})</span>"


def _contenders(columns: dict[str, Column]) -> Iterator[str]:
    yield "<details open><summary>Who took part, and how</summary><table><tbody>"
    for name, column in columns.items():
        rounds = sum(bool(turn) for turn in column.turns)
        yield (f"<tr><th>{escape(name)}</th><td>{escape(column.kind)}</td>"
               f"<td class=\"soft\">{escape(column.settings)}<br>{escape(column.program)}</td>"
               f"<td class=\"soft\">{rounds} of {len(column.turns)} rounds</td></tr>")
    yield "</tbody></table></details>"


def _plots(columns: dict[str, Column]) -> Iterator[str]:
    for figure in dict.fromkeys(each for column in columns.values() for each in column.figures):
        shown = {name: column for name, column in columns.items() if any(column.values(figure))}
        if shown:       # not CPU of the bare cable, nor losses where there were none
            yield f"<h3>{escape(figure.name)}</h3>{plots.bars(figure, shown)}"


def _doubts(results: Results) -> Iterator[str]:
    lines = list(table.doubts(results))
    yield "<section id=\"doubts\"><h2>Doubts</h2>"
    if lines:
        yield "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
    else:
        yield "<p>None: no figure was noisy or not plausible, and nobody failed.</p>"
    settings = ", ".join(f"{name}: {value}" for name, value in results.settings.items())
    yield f"<p class=\"soft\">{escape(settings)}</p></section>"
