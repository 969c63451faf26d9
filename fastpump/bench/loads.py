"""The loads of a report, in their order. Each is run once a turn, and gives figures.

A fixed rate of small packets is what compares tunnels best: at an unlimited rate the one that
carries most leaves the receiver the least CPU time, and looks worst.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from fastpump.bench import figures
from fastpump.bench.connections import run_connections
from fastpump.bench.ends import Ends
from fastpump.bench.figures import Figure
from fastpump.bench.handshakes import run_handshakes
from fastpump.bench.machine import Energy
from fastpump.bench.packets import Arrived, Stream, run_stream
from fastpump.errors import SystemSetupError
from fastpump.lab.iperf import Load
from fastpump.lab.networks import Lab, percentile, stop, wait_until

Values = dict[Figure, float]
T = TypeVar("T")

RATES = ((64, 20_000), (64, 60_000), (64, 150_000), (512, 60_000), (1300, 20_000), (1300, 40_000))
"""Sizes of UDP payload, and packets per second."""
SIZES = 64, 512, 1300
STREAMS = 1, 4, 16, 128
IMIX = (18, 18, 548, 18, 18, 548, 18, 1392, 548, 18, 18, 548)
"""Of payload: IP packets of 46 bytes (the least of Ethernet), 576 and 1420 (the MTU of most
tunnels), seven to four to one, as makers of test equipment mix them."""
QUIC_SIZE = 1200
"""The least that QUIC sends before it knows the path (RFC 9000, 14)."""
AT_ONCE = 16
"""Connections."""
LOSS_ALLOWED = 0.001
FIRST_RATE, LEAST_RATE = 20_000, 1000


@dataclass
class Turn:
    """One contender's turn: what loads run on, and what is not plausible about them."""

    lab: Lab
    ends: Ends
    seconds: float
    """Of each load."""
    doubts: list[str] = field(default_factory=list)

    @property
    def between(self) -> tuple[Lab, str, str, str]:
        """The lab, the host that sends, the one that receives, and its address."""
        return self.lab, self.ends.client, self.ends.server, self.ends.address

    def ping(self, count: int, interval_s: float) -> list[float]:
        """Round-trip times in ms, ascending."""
        return self.lab.ping(self.ends.client, self.ends.address, count, interval_s)

    def used_by(self, run: Callable[[], T]) -> tuple[T, float | None]:
        """What a load gives, and the CPU seconds that the tunnel took, if they are known."""
        usage = self.ends.usage
        if usage is None:
            return run(), None
        before = usage.cpu_seconds()
        value, used = run(), usage.cpu_seconds() - before
        if used < 0:
            self.doubts.append("a process of the tunnel ended meanwhile: its CPU time is not known")
            return value, None
        return value, used

    def stream(self, name: str, stream: Stream, seconds: float) -> Arrived:
        """A stream of packets. SystemSetupError if nothing arrives."""
        arrived = run_stream(*self.between, stream, seconds)
        if not arrived.received:
            raise SystemSetupError(f"{name}: nothing arrived")
        wanted = stream.rate * seconds
        self.doubts += [f"{name}: {doubt}" for doubt, is_true in (
            (f"only {arrived.sent:,.0f} of {wanted:,.0f} packets could be sent",
             arrived.sent < 0.99 * wanted),
            (f"{arrived.repeated:,} packets came twice", arrived.repeated),
            (f"{arrived.damaged:,} packets came with another payload", arrived.damaged),
        ) if is_true]
        return arrived


def _known(figure: Figure, value: float | None) -> Values:
    return {} if value is None else {figure: value}


def ping_idle(turn: Turn) -> Values:
    """200 pings, 5 ms apart, while nothing else happens."""
    return _time_figures("ping, idle", turn.ping(200, 0.005))


def ping_beside_tcp(turn: Turn) -> Values:
    """Pings, 10 ms apart, while one TCP stream takes all it gets."""
    lab, ends = turn.lab, turn.ends
    stream = lab.spawn(ends.client, "iperf3", "--client", ends.address, "--time",
                       str(turn.seconds + 2))
    time.sleep(1)       # until it has its rate
    times = turn.ping(max(1, int(turn.seconds / 0.01)), 0.01)
    stop(stream)
    lab.processes.remove(stream)
    time.sleep(0.5)     # iperf3's server sees the end
    return _time_figures("ping, beside TCP", times)


def _time_figures(name: str, times_ms: list[float]) -> Values:
    return {figures.time_median(name): percentile(times_ms, 50),
            figures.time_tail(name): percentile(times_ms, 99)}


def tcp(name: str, make: Callable[[Lab, str, str, float], Load]) -> Callable[[Turn], Values]:
    """TCP streams that take what they get. `make`: by host, address and seconds."""
    def run(turn: Turn) -> Values:
        energy = Energy()
        load, used = turn.used_by(lambda: make(
            turn.lab, turn.ends.client, turn.ends.address, turn.seconds))
        turn.doubts += [f"{name}: {doubt}" for doubt in load.doubts]
        gb, joules = load.bytes / 1e9, energy.joules()
        return {figures.throughput(name): load.gbit_per_s,
                **_known(figures.cpu_per_gb(name), used and used / gb),
                **_known(figures.energy_per_gb(name), joules and joules / gb)}
    return run


def _with(*options: str) -> Callable[[Lab, str, str, float], Load]:
    """TCP by an iperf3 with these options."""
    return lambda lab, client, address, seconds: lab.tcp(client, address, seconds, *options)


def connect(turn: Turn) -> Values:
    """Short TCP connections, AT_ONCE of them at any time."""
    name = f"{AT_ONCE} connections at once"
    done, used = turn.used_by(lambda: run_connections(*turn.between, AT_ONCE, turn.seconds))
    return {figures.connections(name): done.per_s,
            **_known(figures.cpu_per_connection(name), used and used * 1e6 / len(done.times_ms)),
            **_time_figures(name, done.times_ms)}


def handshakes(turn: Turn) -> Values:
    """Of all the server's other peers, a few at any time; where it has any."""
    crowd = turn.ends.crowd
    if crowd is None:
        return {}
    name = "handshakes"
    done, used = turn.used_by(lambda: run_handshakes(turn.lab, turn.ends.client, crowd))
    if done.lost or done.cookies:
        turn.doubts.append(f"{name}: of {done.sent:,} {done.lost:,} had no answer, "
                           f"{done.cookies:,} a cookie")
    return {figures.connections(name): done.per_s,
            **_known(figures.cpu_per_handshake(name), used and used * 1e6 / done.responses)}


def udp(name: str, stream: Stream) -> Callable[[Turn], Values]:
    """UDP at a fixed rate."""
    def run(turn: Turn) -> Values:
        arrived, used = turn.used_by(lambda: turn.stream(name, stream, turn.seconds))
        values = {figures.packets(name): arrived.packets_per_s,
                  **_known(figures.cpu_per_packet(name), used and used * 1e6 / arrived.received),
                  figures.lost(name): 100 * arrived.lost,
                  figures.reordered(name): 100 * arrived.reordered / arrived.received}
        if turn.ends.have_one_clock:
            values |= {figures.delay(name, percent): arrived.delay_us(percent)
                       for percent in (50, 99, 99.9)}
        return values
    return run


def udp_highest(size: int) -> Callable[[Turn], Values]:
    """The highest rate without loss, found as RFC 2544, 26.1, does: by halves, up to 5%. It asks
    for no loss at all; we allow LOSS_ALLOWED and a second try, since the machine has other things
    to do than the tunnel."""
    name = f"UDP {size} B"

    def run(turn: Turn) -> Values:
        def passes(rate: int) -> bool:
            for _ in range(2):
                arrived = run_stream(*turn.between, Stream((size,), rate), turn.seconds / 2)
                wanted = rate * arrived.seconds
                if arrived.sent > 0.99 * wanted and arrived.lost <= LOSS_ALLOWED:
                    return True
            return False

        low, high, rate = 0, 0, FIRST_RATE
        while not high or (high - low > high / 20 and high > LEAST_RATE):
            if passes(rate):
                low = rate
            else:
                high = rate
            rate = (low + high) // 2 if high else 2 * low
        return {figures.highest_rate(name): low}
    return run


LOADS: dict[str, Callable[[Turn], Values]] = {
    "ping": ping_idle,
    **{f"tcp{count}": tcp(f"TCP, {count} stream{'s' * (count != 1)}", _with(
        *(() if count == 1 else ("--parallel", str(count))))) for count in STREAMS},
    "tcp-reverse": tcp("TCP, reverse", _with("--reverse")),
    "tcp-both": tcp("TCP, both ways", Lab.tcp_both_ways),
    "connect": connect,
    "handshakes": handshakes,
    **{f"udp{size}-{rate // 1000}k": udp(f"UDP {size} B, {rate:,}/s", Stream((size,), rate))
       for size, rate in RATES},
    "udp64-60k-flows": udp("UDP 64 B, 60,000/s, 64 flows", Stream((64,), 60_000, flows=64)),
    "imix": udp("IMIX, 40,000/s", Stream(IMIX, 40_000)),
    "quic": udp("like QUIC, 40,000/s", Stream((QUIC_SIZE,), 40_000, segments=10, ack_every=2)),
    **{f"udp{size}-highest": udp_highest(size) for size in SIZES},
    "ping-tcp": ping_beside_tcp,
}
"""By the names that --load takes."""


def run_loads(turn: Turn, names: Sequence[str]) -> Iterator[tuple[Figure, float]]:
    """Run them; the figures as they come. SystemSetupError if nothing arrives."""
    lab, ends = turn.lab, turn.ends
    wait_until(lambda: lab.run(ends.client, "ping", "-n", "-c", "1", "-W", "0.1", ends.address,
                               check=False).returncode == 0, f"{ends.address} does not answer")
    if ends.begun_s is not None:
        yield figures.START, 1e3 * (time.monotonic() - ends.begun_s)
    lab.serve_iperf(ends.server)
    for name in names:
        yield from LOADS[name](turn).items()
    if ends.usage is not None:
        yield figures.MEMORY, ends.usage.memory_bytes() / 1e6
