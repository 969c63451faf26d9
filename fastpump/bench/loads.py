"""The loads of a report, in their order. Each is run once a turn, and gives figures.

A fixed rate of small packets is what compares tunnels best: at an unlimited rate the one that
carries most leaves the receiver the least CPU time, and looks worst.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from fastpump.bench import figures
from fastpump.bench.contender import Processes
from fastpump.bench.figures import Figure
from fastpump.errors import SystemSetupError
from fastpump.lab.iperf import Load
from fastpump.lab.networks import Lab, cpu_seconds, percentile, resident_bytes, stop

Values = dict[Figure, float]

RATES = ((64, 20_000), (64, 60_000), (1300, 20_000), (1300, 40_000))
"""Sizes of UDP payload, and packets per second."""
STREAMS = 1, 4, 16


@dataclass
class Turn:
    """One contender's turn: what loads run on, and what is not plausible about them."""

    lab: Lab
    client: str
    host: str
    """The server's address."""
    processes: Processes
    seconds: float
    doubts: list[str] = field(default_factory=list)

    @property
    def pids(self) -> list[int]:
        """Of the tunnel."""
        return [process.pid for process in self.processes.values()]

    def measured(self, name: str, run: Callable[[], Load]) -> tuple[Load, float]:
        """A load, and the CPU seconds that the tunnel took."""
        before = cpu_seconds(self.pids)
        load = run()
        self.doubts += [f"{name}: {doubt}" for doubt in load.doubts]
        return load, cpu_seconds(self.pids) - before


def ping_idle(turn: Turn) -> Values:
    """200 pings, 5 ms apart, while nothing else happens."""
    return _ping_figures("ping, idle", turn.lab.ping(turn.client, turn.host, 200, 0.005))


def ping_beside_tcp(turn: Turn) -> Values:
    """Pings, 10 ms apart, while one TCP stream takes all it gets."""
    lab = turn.lab
    stream = lab.spawn(turn.client, "iperf3", "--client", turn.host, "--time",
                       str(turn.seconds + 2))
    time.sleep(1)       # until it has its rate
    with ThreadPoolExecutor(1) as pool:
        times = pool.submit(lab.ping, turn.client, turn.host,
                            max(1, int(turn.seconds / 0.01)), 0.01).result()
    stop(stream)
    lab.processes.remove(stream)
    time.sleep(0.5)     # iperf3's server sees the end
    return _ping_figures("ping, beside TCP", times)


def _ping_figures(name: str, times: list[float]) -> Values:
    return {figures.ping_median(name): percentile(times, 50),
            figures.ping_tail(name): percentile(times, 99)}


def tcp(name: str, *options: str) -> Callable[[Turn], Values]:
    """TCP streams that take what they get."""
    def run(turn: Turn) -> Values:
        load, used = turn.measured(name, lambda: turn.lab.tcp(
            turn.client, turn.host, turn.seconds, *options))
        return {figures.throughput(name): load.gbit_per_s,
                figures.cpu_per_gb(name): used / (load.bytes / 1e9)}
    return run


def udp(size: int, rate: int = 0) -> Callable[[Turn], Values]:
    """UDP of one flow, `size` bytes of payload; `rate`: packets per second, 0: unlimited."""
    name = f"UDP {size} B, " + (f"{rate:,}/s" if rate else "unlimited")

    def run(turn: Turn) -> Values:
        load, used = turn.measured(name, lambda: turn.lab.udp(
            turn.client, turn.host, turn.seconds, size, rate))
        values = {figures.packets(name): load.packets_per_s,
                  figures.cpu_per_packet(name): used * 1e6 / max(1, load.bytes / size)}
        if rate:
            values[figures.lost(name)] = 100 * max(0, 1 - load.packets_per_s / rate)
        return values
    return run


LOADS: dict[str, Callable[[Turn], Values]] = {
    "ping": ping_idle,
    **{f"tcp{count}": tcp(f"TCP, {count} stream{'s' * (count != 1)}",
                          *(() if count == 1 else ("--parallel", str(count))))
       for count in STREAMS},
    "tcp-reverse": tcp("TCP, reverse", "--reverse"),
    **{f"udp{size}-{rate // 1000}k": udp(size, rate) for size, rate in RATES},
    "udp64": udp(64),
    "udp1300": udp(1300),
    "ping-tcp": ping_beside_tcp,
}
"""By the names that --load takes."""


def run_loads(turn: Turn, names: Sequence[str]) -> Iterator[tuple[Figure, float]]:
    """Run them; the figures as they come. SystemSetupError if nothing arrives."""
    if not turn.lab.ping(turn.client, turn.host, 3):
        raise SystemSetupError(f"{turn.host} does not answer")
    for name in names:
        yield from LOADS[name](turn).items()
    if turn.processes:
        yield figures.MEMORY, resident_bytes(turn.pids) / 1e6
