"""`fastpump bench`: tunnels beside each other on this machine, and runs beside each other."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastpump import __version__
from fastpump.bench import choice, page, plots, real, remote, table
from fastpump.bench.contender import Contender
from fastpump.bench.loads import LOADS
from fastpump.bench.results import Results, load_results, this_machine
from fastpump.bench.run import Plan, run
from fastpump.bench.topologies import HOSTS, REAL, TOPOLOGIES, check_programs, shape
from fastpump.cli.arguments import number
from fastpump.errors import ConfigError, SystemSetupError
from fastpump.lab.networks import need
from fastpump.process.signals import exit_on_signals

_HELP = """\
Measure tunnels beside each other, on this machine, between network namespaces that are made for it
and removed afterwards: fastpump, the cable without a tunnel, and whichever of the others are
installed, or named by --program. Each has a turn in each round, in random order; medians are
printed, what holds them for sure, and ratios. Needs root, iperf3 and ping.

  sudo fastpump bench                           all that is there, six rounds: hours
  sudo fastpump bench --only fastpump,wireguard-go --load tcp1,udp64-60k
  sudo fastpump bench --program wireguard-go=/opt/wireguard-go --json today.json
  sudo fastpump bench --topology gateways       between hosts beyond both ends, with NAT
  fastpump bench --server                       on another host, and on this one ...
  fastpump bench --client 10.9.0.2 --name wg --json hosts.json
                                                ... what leads there, beside earlier ones
  fastpump bench --list                         who takes part, and by what loads
  fastpump bench report today.json --html today.html
  fastpump bench compare before.json after.json

Both ends of the tunnel and the load share the machine. So throughput says how much of it a tunnel
leaves to the load; the CPU time of the tunnel's processes is the steadiest figure. Small packets
are sent at fixed rates: at an unlimited one who carries most leaves least to the receiver.
"""


def fill(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.description = _HELP
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("action", nargs="?", choices=("run", "report", "compare"), default="run",
                        help="run (the default), report a file of --json once more, or compare two")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE",
                        help="for report and compare")
    parser.add_argument("--list", action="store_true", help="say who would take part, and end")
    parser.add_argument("--only", type=_words, metavar="NAME,...",
                        help="these contenders; `fastpump` without a number of queues means all of "
                             "them")
    parser.add_argument("--topology", type=_words, default=[HOSTS], metavar="NAME,...",
                        help=f"of {', '.join(TOPOLOGIES)} (default: {HOSTS})")
    parser.add_argument("--load", type=_words, default=list(LOADS), metavar="NAME,...",
                        help=f"of {', '.join(LOADS)} (default: all)")
    parser.add_argument("--rounds", type=number("number of rounds", 1, 1000), default=6,
                        metavar="N", help="turns of each contender (default: %(default)s)")
    parser.add_argument("--seconds", type=number("number of seconds", 1, 3600), default=2,
                        metavar="S", help="length of each load (default: %(default)s)")
    parser.add_argument("--queues", type=_counts, default=[1, 4], metavar="N,...",
                        help="fastpump with so many (default: 1,4)")
    parser.add_argument("--tunnel", default="", metavar="WORDS",
                        help="more options of `fastpump tunnel`, in one word: --tunnel=--pin")
    parser.add_argument("--program", type=_program, action="append", default=[],
                        metavar="NAME=PATH", help="where a contender's program is, if not in PATH; "
                        "may be repeated")
    parser.add_argument("--baseline", metavar="NAME",
                        help="the contender that ratios are to (default: wireguard-go if it takes "
                             "part, else the first tunnel)")
    parser.add_argument("--seed", type=number("seed", 0, 2**32 - 1), metavar="N",
                        help="of the order of turns (default: a new one)")
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="keep all figures there; written after each turn")
    parser.add_argument("--html", type=Path, metavar="FILE",
                        help="write a report with plots there, in one file; needs matplotlib")
    hosts = parser.add_argument_group("two real hosts")
    hosts.add_argument("--server", nargs="?", const="", metavar="ADDRESS",
                       help="receive load from another host, at all addresses or this one, until a "
                       "signal ends it; whoever can connect can send load")
    hosts.add_argument("--client", metavar="ADDRESS",
                       help="send load there, where `fastpump bench --server` runs: the tunnel is "
                       "what leads to this address")
    hosts.add_argument("--name", default="tunnel", metavar="NAME",
                       help="what the report calls that tunnel (default: %(default)s)")
    hosts.add_argument("--process", metavar="NAME",
                       help="its program on both hosts, whose CPU time and memory are counted")
    hosts.add_argument("--control", metavar="HOST",
                       help="where the server is asked, if not by the tunnel")
    parser.set_defaults(run=_run)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _counts(text: str) -> list[int]:
    parse = number("number of queues", 1, 256)
    return [parse(word) for word in _words(text)]


def _program(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, path


def _run(args: argparse.Namespace) -> int:
    if args.server is not None:
        exit_on_signals()
        remote.serve(args.server, lambda line: print(line, flush=True))
        return 0
    if args.action == "compare":
        return _compare(args.files)
    if args.html:
        plots.check()
    if args.action == "report":
        return _report_again(args)
    if args.files:
        raise ConfigError(f"{args.files[0]}: files are for `fastpump bench report` and `compare`")
    choice.check_names("topology", args.topology, TOPOLOGIES)
    choice.check_names("load", args.load, LOADS)
    if args.client:
        return _run_real(args)
    everybody = choice.everybody(args.queues, args.tunnel.split())
    chosen = choice.choose(everybody, args.only, dict(args.program))
    if args.list:
        _list(everybody, chosen)
        return 0
    if os.geteuid() != 0:
        raise SystemSetupError("bench makes network namespaces: run it as root, sudo fastpump "
                               "bench")
    need("ip", "iperf3", "ping")
    check_programs(args.topology)
    plan = Plan(args.topology, [(each, path) for each, path in chosen if set(
        each.topologies) & set(map(shape, args.topology))], args.load, args.rounds, args.seconds,
        secrets.randbits(32) if args.seed is None else args.seed)
    if not plan.contenders:
        raise ConfigError(f"none of them takes part in {', '.join(args.topology)}; `fastpump "
                          "bench --list` says who does")
    baseline = choice.baseline(args.baseline, [each.name for each, _ in plan.contenders])
    exit_on_signals()
    results = Results(this_machine(), {
        "fastpump": __version__, "rounds": str(plan.rounds), "seconds": f"{plan.seconds:g}",
        "seed": str(plan.seed), "tunnel": args.tunnel})
    with Progress(results, args.json) as progress:
        run(plan, results, progress)
    _report(results, baseline, args.html)
    return 0


def _run_real(args: argparse.Namespace) -> int:
    """Measure what leads to another host, beside what the file has of other tunnels."""
    need("iperf3", "ping")
    exit_on_signals()
    settings = {"fastpump": __version__, "rounds": str(args.rounds),
                "seconds": f"{args.seconds:g}"}
    results = Results(this_machine(), settings)
    if args.json and args.json.exists():
        results = load_results(args.json)
        if results.settings != settings or results.machine != this_machine():
            raise ConfigError(f"{args.json} is of another machine, version, number of rounds or "
                              "length: give another file to --json")
    pair = real.Pair(args.client, args.control or args.client, remote.PORT, args.name, args.process)
    with Progress(results, args.json) as progress:
        real.run(pair, args.load, args.rounds, args.seconds, results, progress)
    names = list(results.columns[REAL])
    _report(results, choice.baseline(args.baseline, names), args.html)
    return 0


class Progress:
    """On stderr: a bar, if that is a terminal and tqdm is installed; else a line for each turn. The
    file is written after each turn."""

    def __init__(self, results: Results, path: Path | None) -> None:
        self._results, self._path = results, path
        self._bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def begins(self, done: int, total: int, title: str) -> None:
        if done == 0 and sys.stderr.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                self._bar = tqdm(total=total, unit="turn", dynamic_ncols=True, smoothing=0.1)
        if self._bar is None:
            self._say(f"[{done + 1}/{total}] {title}")
        else:
            self._bar.set_description_str(title)

    def ended(self, doubts: Sequence[str]) -> None:
        if self._path:
            self._results.save(self._path)
        for doubt in doubts:
            self._say(f"  {doubt}")
        if self._bar is not None:
            self._bar.update()

    def _say(self, line: str) -> None:
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.write(line, file=sys.stderr)


def _report(results: Results, baseline: str, path: Path | None) -> None:
    for line in table.report(results, baseline):
        print(line)
    if path is not None:
        try:
            path.write_text(page.render(results, baseline), encoding="utf-8")
        except OSError as error:
            raise SystemSetupError(f"{path}: {error.strerror}") from None


def _report_again(args: argparse.Namespace) -> int:
    if len(args.files) != 1:
        raise ConfigError("report takes one file of `fastpump bench --json`")
    results = load_results(args.files[0])
    names = list(dict.fromkeys(name for columns in results.columns.values() for name in columns))
    if not names:
        raise ConfigError(f"{args.files[0]} has no results")
    _report(results, choice.baseline(args.baseline, names), args.html)
    return 0


def _list(everybody: list[Contender], chosen: list[tuple[Contender, str]]) -> None:
    there = {each.name for each, _ in chosen}
    for each in everybody:
        state = "" if each.name in there else " (not chosen, or not installed)"
        print(f"{each.name}: {each.kind}; {', '.join(each.topologies)}{state}")
    print(f"\nloads: {', '.join(LOADS)}")
    print("topologies: " + "; ".join(f"{name}: {what}" for name, what in TOPOLOGIES.items()))


def _compare(files: list[Path]) -> int:
    if len(files) != 2:
        raise ConfigError("compare takes two files of `fastpump bench --json`: the one before, and "
                          "the one after")
    for line in table.comparison(*map(load_results, files)):
        print(line)
    return 0
