"""Measure a WireGuard gateway beside wireguard-go: many peers, floods.

    python bench/gateway.py --rounds 3 --wireguard-go /path/to/wireguard-go
    python bench/gateway.py --only flood --kinds none,forged --rounds 1 --wireguard-go ...

The gateway runs on one side of a lab (two network namespaces), the load on the other.
Contenders are programs with wireguard-go's command line, PROGRAM -f NAME, configured by
wg: fastpump (`python -m fastpump.cli.wg`) and wireguard-go. They take turns within each round
(A B, A B), so that a machine whose speed drifts is fair to all. The tunnel's other end, the
client, is the same program in all turns. Medians and spreads over the rounds are printed,
ratios to wireguard-go, and ratios to the first row (one peer; no flood).

peers       With N peers, of which one ever speaks, each with an IPv4 and an IPv6 address
            allowed: the time of `wg setconf` and of `wg show dump`, the gateway's memory
            a second after the interface is up, its CPU while nothing happens, then one TCP
            stream to it and its CPU seconds per GB (10^9 bytes). Besides, with N = 1:
            the time of `wg addconf` of one more peer with 65,000 allowed addresses.
flood       One TCP stream goes through the tunnel while an attacker sends 148-byte
            datagrams to the gateway's port (see --kinds); 50,000 a second by default, the
            rate reached is printed. The stream is what the gateway's interface counts,
            with TCP/IP headers. Meanwhile fresh peers make a handshake each: half of
            them from the attacker's address (another port), half from another address.
            Like real peers they ask again after 5 s, with the cookie if they got one.
            Those without a response after 10 s count as 10,000 ms; see "answered". Then they
            ask for lanes, which fastpump offers; WireGuards do not. What
            the gateway's sockets dropped because they were full is "datagrams dropped".
            "elsewhere" shows what making and delivering the flood costs, as all of it
            shares the machine: it goes to a port where nobody listens.

Needs root, iperf3, ping and wg. Everything ends by itself: a round of all takes about
5 minutes for two contenders.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import ipaddress
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from attack import KINDS, Flood, Honest, orders_file
from doubts import DOUBTS

from fastpump.errors import SystemSetupError
from fastpump.lab.networks import (
    INSIDE4,
    OUTSIDE4,
    Lab,
    Process,
    cpu_seconds,
    need,
    resident_bytes,
    stop,
)
from fastpump.process.signals import exit_on_signals
from fastpump.protocol import keys

Figures = dict[str, float]
Turn = Callable[[list[str]], Figures]
"""Measures the gateway with this command line (less -f NAME)."""
BASELINE = "wireguard-go"
MEASUREMENTS = ("peers", "flood")
SOCKETS = Path("/var/run/wireguard")
TARGET = (OUTSIDE4["b"], 51820)
DISCARD = (OUTSIDE4["b"], 9)
SECOND_ADDRESS = "192.0.2.77"
SPOOFED = "198.18.0.0/15"
PATIENCE_S = 10.0
MANY_ADDRESSES = 65_000
COUNTS = ("datagrams/s", "answered %", "offered %", "cookies")
"""Ends of figures whose ratio says nothing."""


# -- peers, interfaces


@dataclass(frozen=True)
class Peer:
    """Somebody whom the gateway knows."""

    private: str
    public: str
    allowed: tuple[str, ...]


@cache
def peer(number: int) -> Peer:
    """Peer 0 is the client; the others have addresses behind 10.64.0.0 and fd00:a::."""
    private = keys.generate_private()
    inside4 = ipaddress.IPv4Address("10.64.0.0") + number if number else INSIDE4["a"]
    return Peer(keys.encode(private), keys.encode(keys.public_of(private)),
                (f"{inside4}/32", f"{ipaddress.IPv6Address('fd00:a::') + number}/128"))


@cache
def gateway_peer() -> Peer:
    """The gateway as its client sees it."""
    private = keys.generate_private()
    return Peer(keys.encode(private), keys.encode(keys.public_of(private)),
                (f"{INSIDE4['b']}/32",))


def section(peer: Peer, *more: str) -> str:
    """A peer in a file of `wg setconf`."""
    return "\n".join(("[Peer]", f"PublicKey = {peer.public}",
                      f"AllowedIPs = {', '.join(peer.allowed)}", *more, ""))


def write(directory: Path, name: str, text: str) -> str:
    """A file that nobody else reads."""
    path = directory / name
    path.touch(mode=0o600)
    path.write_text(text)
    return str(path)


@dataclass(frozen=True)
class Interface:
    """One that runs, configured and up."""

    name: str
    process: Process
    setconf_s: float

    @property
    def pids(self) -> list[int]:
        """Of the program."""
        return [self.process.pid]

    def check(self) -> None:
        """SystemSetupError when it has ended meanwhile."""
        if self.process.poll() is not None:
            raise SystemSetupError(f"{self.name} has ended: {stop(self.process)}")


@contextlib.contextmanager
def interface(lab: Lab, directory: Path, side: str, command: list[str], own: Peer,
              peers: Sequence[str]) -> Iterator[Interface]:
    """Start the program, configure it, give it its address and set it up."""
    name = f"g{os.getpid()}{side}"
    socket = SOCKETS / f"{name}.sock"
    config = write(directory, f"{name}.conf", "\n".join((
        "[Interface]", f"PrivateKey = {own.private}", f"ListenPort = {TARGET[1]}", "", *peers)))
    # Nobody reads its output before it ends.
    process = lab.spawn(side, *command, "-f", name, env={
        "LOG_LEVEL": "silent", "FASTPUMP_STATE": str(directory)})
    try:
        for _ in range(200):
            if socket.exists() or process.poll() is not None:
                break
            time.sleep(0.05)
        if process.poll() is not None or not socket.exists():
            raise SystemSetupError(f"{shlex.join(command)} -f {name} makes no {socket}: "
                                   f"{stop(process)}")
        setconf_s = timed(lab, side, "wg", "setconf", name, config)
        lab.ip(side, "address", "add", f"{INSIDE4[side]}/24", "dev", name)
        lab.ip(side, "link", "set", name, "mtu", "1420", "up")
        yield Interface(name, process, setconf_s)
    finally:
        stop(process)
        lab.processes.remove(process)
        socket.unlink(missing_ok=True)


def timed(lab: Lab, side: str, *command: str) -> float:
    """Seconds that a command takes (with a few ms for `ip netns exec`)."""
    begin = time.monotonic()
    lab.run(side, *command, timeout=120)
    return time.monotonic() - begin


@contextlib.contextmanager
def tunnel(gateway: list[str], client: list[str], peers: Sequence[Peer],
           ) -> Iterator[tuple[Lab, Path, Interface]]:
    """A fresh lab, the gateway with its peers in it, and a client (peer 0) that has not
    spoken yet."""
    with tempfile.TemporaryDirectory() as name, Lab() as lab, contextlib.ExitStack() as stack:
        directory = Path(name)
        running = stack.enter_context(interface(
            lab, directory, "b", gateway, gateway_peer(), [section(peer) for peer in peers]))
        if client:
            stack.enter_context(interface(
                lab, directory, "a", client, peer(0),
                [section(gateway_peer(), f"Endpoint = {TARGET[0]}:{TARGET[1]}")]))
            lab.serve_iperf("b")
        yield lab, directory, running
        running.check()


def shake_hands(lab: Lab) -> None:
    """The client's first packets."""
    if not lab.ping("a", INSIDE4["b"], 3, 0.2):
        raise SystemSetupError("no answer through the tunnel")


# -- peers


def measure_peers(args: argparse.Namespace, count: int, gateway: list[str]) -> Figures:
    """A gateway with this many peers."""
    others = [peer(number) for number in range(1, count)]
    everybody = [*others[:count // 2], peer(0), *others[count // 2:]]
    with tunnel(gateway, args.client, everybody) as (lab, directory, running):
        time.sleep(1)
        figures = {"wg setconf, s": running.setconf_s,
                   "resident memory, MB": resident_bytes(running.pids) / 1e6}
        before = cpu_seconds(running.pids)
        time.sleep(args.idle_seconds)
        figures["CPU when idle, %"] = (cpu_seconds(running.pids) - before) * (
            100 / args.idle_seconds)
        figures["wg show dump, s"] = timed(lab, "b", "wg", "show", running.name, "dump")
        expect(lab, running, "peers", count)
        shake_hands(lab)
        before = cpu_seconds(running.pids)
        load = DOUBTS.about("tcp", lab.tcp("a", INSIDE4["b"], args.seconds))
        figures["tcp, Gbit/s"] = load.gbit_per_s
        figures["tcp, CPU s/GB"] = (cpu_seconds(running.pids) - before) / (load.bytes / 1e9)
        figures["resident memory after tcp, MB"] = resident_bytes(running.pids) / 1e6
        if count == 1:
            figures |= add_addresses(lab, directory, running)
    return figures


def add_addresses(lab: Lab, directory: Path, running: Interface) -> Figures:
    """One more peer with very many allowed addresses."""
    first = ipaddress.IPv4Address("10.128.0.0")
    big = dataclasses.replace(peer(1), allowed=tuple(
        f"{first + number}/32" for number in range(MANY_ADDRESSES)))
    config = write(directory, "addresses.conf", section(big))
    seconds = timed(lab, "b", "wg", "addconf", running.name, config)
    expect(lab, running, "allowed-ips", MANY_ADDRESSES + len(peer(0).allowed))
    return {f"wg addconf of {MANY_ADDRESSES} addresses, s": seconds}


def expect(lab: Lab, running: Interface, what: str, count: int) -> None:
    """SystemSetupError if `wg show` does not list this many peers or allowed addresses."""
    lines = lab.run("b", "wg", "show", running.name, what).stdout.splitlines()
    found = len(lines) if what == "peers" else sum(len(line.split()) - 1 for line in lines)
    if found != count:
        raise SystemSetupError(f"wg show {running.name} {what} lists {found} instead of {count}")


# -- flood


def until(moment: float) -> None:
    """Sleep until the monotonic clock says so."""
    time.sleep(max(0.0, moment - time.monotonic()))


def stream_bytes(lab: Lab, running: Interface) -> int:
    """What the gateway has handed to its kernel."""
    (link,) = json.loads(lab.ip("b", "-json", "-statistics", "link", "show", running.name))
    received = link["stats64"]["rx"]["bytes"]
    assert isinstance(received, int)
    return received


def full_buffer_drops(lab: Lab) -> int:
    """Datagrams that found a receive buffer of the gateway full: Udp RcvbufErrors."""
    names, values = (line.split() for line in lab.run(
        "b", "cat", "/proc/net/snmp").stdout.splitlines() if line.startswith("Udp:"))
    return int(values[names.index("RcvbufErrors")])


def result_of(process: Process, seconds: float) -> object:
    """The JSON that a sender prints in the end."""
    try:
        output = process.communicate(timeout=seconds)[0]
        return json.loads(output.splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        raise SystemSetupError(f"a sender failed: {error}: {stop(process)}") from None


def measure_flood(args: argparse.Namespace, kind: str, gateway: list[str]) -> Figures:
    """A gateway under this kind of flood."""
    seconds, tries = args.flood_seconds, args.tries
    captured = peer(1)
    fresh = [peer(2 + number) for number in range(2 * tries)]
    with tunnel(gateway, args.client, [peer(0), captured, *fresh]) as (lab, directory, running):
        lab.ip("a", "address", "add", f"{SECOND_ADDRESS}/24", "dev", "wire")
        lab.ip("b", "route", "add", SPOOFED, "via", OUTSIDE4["a"])
        shake_hands(lab)
        # iperf3 is connected a second before the flood; figures start a second after it.
        start = time.monotonic() + 3
        end = start + 1 + seconds
        spacing = (seconds - PATIENCE_S) / (2 * tries)
        public = gateway_peer().public
        attacker = None if kind == "none" else lab.spawn("a", *orders_file(directory, Flood(
            kind, DISCARD if kind == "elsewhere" else TARGET, public, captured.private,
            args.rate, start, end - start + 1)))
        clients = lab.spawn("a", *orders_file(directory, Honest(
            TARGET, public, [
                (fresh[number].private, (OUTSIDE4["a"], SECOND_ADDRESS)[number % 2],
                 start + 1 + number * spacing) for number in range(2 * tries)], PATIENCE_S)))
        until(start - 1)
        lab.spawn("a", "iperf3", "--client", INSIDE4["b"], "--time", str(int(seconds) + 5))
        until(start + 1)
        before = cpu_seconds(running.pids), stream_bytes(lab, running), full_buffer_drops(lab)
        begin = time.monotonic()
        until(end)
        after = cpu_seconds(running.pids), stream_bytes(lab, running), full_buffer_drops(lab)
        taken = time.monotonic() - begin
        figures = {
            "flood, datagrams/s": 0.0,
            "stream, Gbit/s": (after[1] - before[1]) * 8e-9 / taken,
            "gateway CPU, cores": (after[0] - before[0]) / taken,
            "datagrams dropped/s": (after[2] - before[2]) / taken,
            "resident memory, MB": resident_bytes(running.pids) / 1e6,
        }
        if attacker:
            sent = result_of(attacker, 20)
            assert isinstance(sent, dict)
            figures["flood, datagrams/s"] = sent["sent"] / sent["seconds"]
        results = result_of(clients, 20)
        assert isinstance(results, list)
        for first, where in enumerate(("attacker's address", "other address")):
            mine = results[first::2]
            times = [PATIENCE_S * 1e3 if one["ms"] is None else one["ms"] for one in mine]
            figures[f"handshake, {where}, median ms"] = statistics.median(times)
            figures[f"handshake, {where}, worst ms"] = max(times)
            figures[f"handshake, {where}, answered %"] = 100 * statistics.mean(
                one["ms"] is not None for one in mine)
            figures[f"handshake, {where}, cookies"] = sum(one["cookies"] for one in mine)
            offers = [one["offer_ms"] for one in mine if one["offer_ms"] is not None]
            figures[f"lanes, {where}, offered %"] = 100 * len(offers) / len(mine)
            if offers:
                figures[f"lanes, {where}, median ms"] = statistics.median(offers)
    return figures


# -- turns and tables


def rows(args: argparse.Namespace) -> Iterator[tuple[str, list[tuple[str, Turn]]]]:
    """Each measurement and its rows."""
    for name in args.only.split(","):
        match name:
            case "peers":
                yield name, [(f"{count} peer{'s' * (count != 1)}", partial(
                    measure_peers, args, count)) for count in args.peers]
            case "flood":
                yield name, [(kind, partial(measure_flood, args, kind))
                             for kind in args.kinds.split(",")]


Table = dict[str, dict[str, list[Figures]]]
"""Row: {contender: figures of each round}."""


def median(turns: list[Figures], figure: str) -> float | None:
    """Over the rounds, if there are any."""
    values = [turn[figure] for turn in turns if figure in turn]
    return statistics.median(values) if values else None


def report(table: Table) -> Iterator[str]:
    """The table of one measurement, line by line."""
    base = next(iter(table))
    for row, contenders in table.items():
        for name, turns in contenders.items():
            yield f"\n{row}: {name}" + (": failed" if not turns else "")
            for figure in turns[0] if turns else ():
                values = [turn[figure] for turn in turns]
                middle = statistics.median(values)
                line = f"  {figure:42} {middle:12.3f}   {min(values):.3f} to {max(values):.3f}"
                if figure.endswith(COUNTS):
                    yield line
                    continue
                for other, rival in ((base, median(table[base].get(name, []), figure)),
                                     (BASELINE, median(contenders.get(BASELINE, []), figure))):
                    if rival and other not in (row, name):
                        line += f"   x {middle / rival:.2f} of {other}"
                yield line


def contenders(args: argparse.Namespace) -> dict[str, list[str]]:
    """Name: command line."""
    found: dict[str, list[str]] = {}
    if args.gateway:
        found["gateway"] = shlex.split(args.gateway)
    elif importlib.util.find_spec("fastpump.cli.wg"):
        found["fastpump"] = [sys.executable, "-m", "fastpump.cli.wg"]
    else:
        print("fastpump.cli.wg is not there: it is left out", file=sys.stderr)
    rival = args.wireguard_go or shutil.which("wireguard-go")
    if rival:
        found[BASELINE] = [rival]
    return found


def numbers(text: str) -> list[int]:
    """1,100,10000"""
    return [int(word) for word in text.split(",")]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="kinds of flood:\n" + "\n".join(
            f"  {kind:10} {meaning}" for kind, meaning in KINDS.items()))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (3)")
    parser.add_argument("--only", default=",".join(MEASUREMENTS), help="of peers,flood")
    parser.add_argument("--wireguard-go", metavar="PROGRAM", help="the one to compare with")
    parser.add_argument("--gateway", metavar="COMMAND", help="measure this one, started as "
                        "COMMAND -f NAME, instead of fastpump")
    parser.add_argument("--client", metavar="COMMAND", type=shlex.split, help="the other end of "
                        "the tunnel (wireguard-go, or else what is measured)")
    parser.add_argument("--peers", type=numbers, default=[1, 100, 10000], metavar="N,N,...",
                        help="peers: so many (1,100,10000)")
    parser.add_argument("--seconds", type=float, default=3, help="peers: of TCP (3)")
    parser.add_argument("--idle-seconds", type=float, default=5, help="peers: of nothing (5)")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"flood: {','.join(KINDS)}")
    parser.add_argument("--rate", type=float, default=50_000, help="flood: datagrams/s (50000)")
    parser.add_argument("--flood-seconds", type=float, default=15,
                        help="flood: of each kind, 12 at least (15)")
    parser.add_argument("--tries", type=int, default=5, help="flood: handshakes from each of "
                        "both addresses (5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all figures there")
    args = parser.parse_args()
    if not set(args.only.split(",")) <= set(MEASUREMENTS):
        parser.error(f"--only is of {','.join(MEASUREMENTS)}")
    if not set(args.kinds.split(",")) <= set(KINDS):
        parser.error(f"--kinds are of {','.join(KINDS)}")
    if args.flood_seconds < PATIENCE_S + 2:
        parser.error("--flood-seconds are 12 at least: a handshake is waited for 10 s")
    need("ip", "iperf3", "ping", "wg")
    exit_on_signals()
    commands = contenders(args)
    if not commands:
        parser.error("there is nothing to measure: name --wireguard-go or --gateway")
    args.client = args.client or commands.get(BASELINE) or next(iter(commands.values()))
    measurements = list(rows(args))
    tables: dict[str, Table] = {name: {row: {contender: [] for contender in commands}
                                       for row, _ in turns} for name, turns in measurements}
    for number in range(args.rounds):
        for name, turns in measurements:
            for row, turn in turns:
                for contender, command in commands.items():
                    DOUBTS.begin(f"round {number + 1}: {name}: {row}: {contender}")
                    try:
                        tables[name][row][contender].append(turn(command))
                    except (SystemSetupError, subprocess.TimeoutExpired) as error:
                        print(f"failed: {error}", file=sys.stderr, flush=True)
                    if args.json:
                        args.json.write_text(json.dumps(tables, indent=1))
    print(f"Linux {os.uname().release}, {os.cpu_count()} CPUs: median of {args.rounds} rounds, "
          f"least to most, ratios; client: {Path(args.client[0]).name}")
    for name, table in tables.items():
        print(f"\n== {name}")
        for line in report(table):
            print(line)
    for line in DOUBTS.lines:
        print(line)


if __name__ == "__main__":
    main()
