"""`fastpump demo`: a real tunnel between two namespaces, and what it can do.

A plain user gets a user namespace of his own, where the kernel allows that; inside it he
is root of everything the demo makes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastpump.cli.arguments import add_option, number
from fastpump.cli.status_text import libraries
from fastpump.config.model import TunnelConfig
from fastpump.config.options import named
from fastpump.errors import SystemSetupError
from fastpump.lab.iperf import Load
from fastpump.lab.networks import (
    INSIDE4,
    OUTSIDE4,
    Lab,
    cpu_seconds,
    fastpump_pair,
    need,
)
from fastpump.process.signals import exit_on_signals

_INSIDE = "FASTPUMP_DEMO_INSIDE"
_STREAMS = 4


@dataclass(frozen=True)
class Figure:
    """One cell of the table, and why not to believe it."""

    text: str
    doubts: tuple[str, ...] = ()


Figures = dict[str, Figure]
"""By row."""


def fill(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.description = (
        "Create two network namespaces connected by a virtual cable, run a real `fastpump tunnel` "
        "in each, measure ping and throughput with and without the tunnel, print a table, and "
        "clean up. Needs root, or a kernel that lets users create namespaces; and iperf3.")
    add_option(parser, named("queues"))
    parser.add_argument("--seconds", type=number("number of seconds", 1, 3600), default=3,
                        metavar="S", help="length of each measurement (default: %(default)s)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    queue_count = args.queues or TunnelConfig().queue_count
    need("ip", "iperf3", "ping")
    if os.geteuid() != 0:
        _become_root_of_a_user_namespace()
    exit_on_signals()
    if _INSIDE in os.environ:
        _hide_run()
    with tempfile.TemporaryDirectory(prefix="fastpump-demo-") as directory, Lab() as lab:
        _say("two network namespaces, joined by a virtual cable")
        lab.serve_iperf("b")
        _say("measuring the bare cable")
        bare = _measure(lab, OUTSIDE4["b"], args.seconds, [])
        _say(f"starting `fastpump tunnel --queues {queue_count}` at both ends")
        with fastpump_pair(lab, Path(directory), "--queues", str(queue_count)) as processes:
            tunnel = _measure(lab, INSIDE4["b"], args.seconds,
                              [process.pid for process in processes.values()])
            status = lab.status("b")
    print(_table(bare, tunnel, queue_count))
    peer = status["peers"][0]
    print(f"\nThe tunnel: {len(status['queues'])} queues, ciphers by {libraries(status['aead'])}, "
          f"offloads {', '.join(status['offloads'])};\n{peer['rx_bytes'] / 1e9:.2f} GB received, "
          f"{status['worker_restarts']} worker restarts. Both ends and the load shared "
          f"{len(os.sched_getaffinity(0))} CPUs.")
    return 0


def _become_root_of_a_user_namespace() -> None:
    """Start once more, as root of new user, mount and network namespaces."""
    if _INSIDE in os.environ or shutil.which("unshare") is None:
        raise SystemSetupError("the demo needs root here: sudo fastpump demo")
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "--net"]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode != 0:
        raise SystemSetupError("this kernel lets users make no namespaces; run the demo as "
                               "root: sudo fastpump demo")
    _say("not root: working in a user namespace")
    words = [*prefix, sys.executable, "-m", "fastpump", *sys.argv[1:]]
    os.execvpe(words[0], words, {**os.environ, _INSIDE: "1"})


def _hide_run() -> None:
    """A private /run, where `ip netns` and the tunnels keep their files."""
    result = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], capture_output=True,
                            text=True, check=False)
    if result.returncode != 0:
        raise SystemSetupError(f"a private /run cannot be mounted: {result.stderr.strip()}; run "
                               "the demo as root: sudo fastpump demo")


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def _measure(lab: Lab, host: str, seconds: int, pids: list[int]) -> Figures:
    """All rows of one column; `pids` are the tunnel's processes."""
    figures: Figures = {}

    def load(name: str, measure: Callable[..., Load], *options: str) -> Load:
        _say(f"  {name}")
        result = measure("a", host, seconds, *options)
        figures[name] = Figure(f"{result.gbit_per_s:.2f} Gbit/s", result.doubts)
        return result

    lab.ping("a", host, 2)          # the handshake's round trip is not counted
    _say("  ping")
    times = lab.ping("a", host, 200, 0.005)
    if not times:
        raise SystemSetupError(f"no answer from {host} through the tunnel")
    figures["ping, median"] = Figure(f"{statistics.median(times):.3f} ms")
    before = cpu_seconds(pids)
    one = load("TCP, one stream", lab.tcp)
    used = (cpu_seconds(pids) - before) / (one.bytes / 1e9) if one.bytes else float("nan")
    figures["  CPU of both tunnel ends"] = Figure(f"{used:.2f} s/GB" if pids else "")
    load(f"TCP, {_STREAMS} streams", lab.tcp, "--parallel", str(_STREAMS))
    load("TCP, the other way", lab.tcp, "--reverse")
    load("TCP, both ways", lab.tcp_both_ways)
    _say("  UDP, 64 bytes")
    small = lab.udp("a", host, seconds, 64)
    figures["UDP, 64 bytes"] = Figure(f"{small.packets_per_s:,.0f} packets/s", small.doubts)
    return figures


def _table(bare: Figures, tunnel: Figures, queue_count: int) -> str:
    """The columns beside each other; below a row, what is not plausible about it."""
    columns = {"bare cable": bare,
               f"fastpump, {queue_count} queue{'s' * (queue_count != 1)}": tunnel}
    widths = [max(map(len, bare)), *(max(len(title), *(len(figure.text) for figure in
                                                       figures.values()))
                                     for title, figures in columns.items())]

    def line(name: str, *cells: str) -> str:
        return "   ".join((f"{name:<{widths[0]}}", *(
            f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))))

    lines = [line("", *columns), "-" * (sum(widths) + 2 * len("   "))]
    for name in bare:
        lines.append(line(name, *(figures[name].text for figures in columns.values())))
        lines += [f"  not plausible, {title}: {doubt}" for title, figures in columns.items()
                  for doubt in figures[name].doubts]
    return "\n".join(lines)
