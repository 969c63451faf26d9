"""Measure tunnels beside each other, in turn, on one machine.

    python bench/compare.py --rounds 5 --wireguard-go /path/to/wireguard-go
    python bench/compare.py --rounds 5 --forwarding --wireguard-go /path/to/wireguard-go

Contenders: the bare cable, fastpump (for each number of queues, as TUN and as TAP), and whatever
of wireguard-go, openvpn, fastd and tinc is installed, or named. They take turns, each round
beginning with another one (A B C, B C A, ...), so that a machine whose speed drifts is fair to
all. Medians and spreads over the rounds are printed, and ratios to wireguard-go. Both ends of a
tunnel and the load share the machine, so CPU seconds of the tunnel processes per GB (10^9 bytes)
carried is the steadiest figure.

With --forwarding, load is between two hosts beyond the ends of the tunnel, which are gateways; one
masquerades (bench/forwarding.py). The bare cable then is between the gateways. Contenders are that,
fastpump as TUN, and wireguard-go.

Needs root, iperf3 and ping; wireguard-tools for wireguard-go; nft for --forwarding.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import forwarding
from doubts import DOUBTS

from fastpump.lab.networks import (
    INSIDE4,
    OUTSIDE4,
    Lab,
    Process,
    cpu_seconds,
    fastpump_pair,
    key_files,
    need,
    percentile,
    resident_bytes,
    stop,
    wait_until,
)
from fastpump.process.signals import exit_on_signals

Processes = dict[str, Process]
Setup = Callable[[Lab, Path], contextlib.AbstractContextManager[Processes]]
BASELINE = "wireguard-go"
SIDES = (("a", "b"), ("b", "a"))


@contextlib.contextmanager
def bare(_lab: Lab, _directory: Path) -> Iterator[Processes]:
    """No tunnel: the cable itself."""
    yield {}


def fastpump(*options: str, behind: Mapping[str, str] | None = None) -> Setup:
    """fastpump at both ends. `behind`: the network behind each."""
    return lambda lab, directory: fastpump_pair(lab, directory, *options, behind=behind)


@contextlib.contextmanager
def ended(lab: Lab) -> Iterator[Processes]:
    """A dict of processes that are stopped in the end."""
    processes: Processes = {}
    try:
        yield processes
    finally:
        for process in processes.values():
            stop(process)
            lab.processes.remove(process)


def wireguard_go(program: str, behind: Mapping[str, str] | None = None) -> Setup:
    """wireguard-go at both ends, configured by wg. `behind`: the network behind each."""
    @contextlib.contextmanager
    def setup(lab: Lab, directory: Path) -> Iterator[Processes]:
        need("wg")
        key = key_files(directory)
        with ended(lab) as processes:
            for side, other in SIDES:
                name = f"wg{os.getpid()}{side}"
                allowed = [f"{INSIDE4[other]}/32", *([behind[other]] if behind else [])]
                processes[side] = lab.spawn(side, program, "--foreground", name)
                wait_until(Path(f"/var/run/wireguard/{name}.sock").exists,
                           "wireguard-go has no socket")
                lab.run(side, "wg", "set", name, "private-key", str(key[side][0]), "listen-port",
                        "51820", "peer", key[other][1], "allowed-ips", ",".join(allowed),
                        "endpoint", f"{OUTSIDE4[other]}:51820")
                lab.ip(side, "address", "add", f"{INSIDE4[side]}/24", "dev", name)
                lab.ip(side, "link", "set", name, "mtu", "1420", "up")
                for network in allowed[1:]:
                    lab.ip(side, "route", "add", network, "dev", name)
            yield processes
    return setup


@contextlib.contextmanager
def openvpn(lab: Lab, directory: Path) -> Iterator[Processes]:
    """OpenVPN point to point, AES-256-GCM, with throw-away self-signed certificates."""
    with ended(lab) as processes:
        prints = {}
        for side in "ab":
            lab.run(side, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", f"/CN={side}",
                    "-keyout", str(directory / f"{side}.pem"), "-out",
                    str(directory / f"{side}.crt"))
            prints[side] = lab.run(side, "openssl", "x509", "-noout", "-fingerprint", "-sha256",
                                   "-in", str(directory / f"{side}.crt")).stdout.split("=")[1]
        for side, other in SIDES:
            role = ["--tls-server", "--dh", "none"] if side == "b" else ["--tls-client"]
            processes[side] = lab.spawn(
                side, "openvpn", "--dev", "ovpn0", "--dev-type", "tun", "--proto", "udp",
                "--remote", OUTSIDE4[other], "--ifconfig", INSIDE4[side], INSIDE4[other],
                "--data-ciphers", "AES-256-GCM", "--cipher", "AES-256-GCM", "--cert",
                str(directory / f"{side}.crt"), "--key", str(directory / f"{side}.pem"),
                "--peer-fingerprint", prints[other].strip(), *role)
        wait_until(lambda: lab.ping("a", INSIDE4["b"], 1), "openvpn answers no ping")
        yield processes


@contextlib.contextmanager
def fastd(lab: Lab, directory: Path) -> Iterator[Processes]:
    """fastd with its null cipher, TAP."""
    with ended(lab) as processes:
        key = {side: dict(line.split(": ") for line in lab.run(
            side, "fastd", "--generate-key").stdout.splitlines() if ": " in line)
            for side in "ab"}
        for side, other in SIDES:
            config = directory / f"fastd-{side}.conf"
            config.touch(mode=0o600)
            config.write_text(
                f'interface "fastd0"; mode tap; method "null"; mtu 1406; bind any:51820;\n'
                f'secret "{key[side]["Secret"]}";\n'
                f'peer "other" {{ key "{key[other]["Public"]}"; '
                f'remote {OUTSIDE4[other]} port 51820; }}\n')
            processes[side] = lab.spawn(side, "fastd", "--config", str(config))
        configure_link(lab, "fastd0")
        wait_until(lambda: lab.ping("a", INSIDE4["b"], 1), "fastd answers no ping")
        yield processes


@contextlib.contextmanager
def tinc(lab: Lab, directory: Path) -> Iterator[Processes]:
    """tinc 1.0 in switch mode, its default ciphers."""
    with ended(lab) as processes:
        for side, other in SIDES:
            hosts = directory / f"tinc-{side}" / "hosts"
            hosts.mkdir(parents=True)
            (hosts.parent / "tinc.conf").write_text(
                f"Name = {side}\nMode = switch\nInterface = tinc0\nDeviceType = tap\n"
                f"ConnectTo = {other}\n")
            (hosts / side).write_text(f"Address = {OUTSIDE4[side]}\n")
            (hosts.parent / "tinc-up").write_text("#!/bin/sh\n")
            (hosts.parent / "tinc-up").chmod(0o755)
            lab.run(side, "tincd", "--config", str(hosts.parent), "--generate-keys=2048",
                    input="\n\n")
        for side, other in SIDES:
            shutil.copy(directory / f"tinc-{other}" / "hosts" / other,
                        directory / f"tinc-{side}" / "hosts" / other)
        for side, _ in SIDES:
            processes[side] = lab.spawn(
                side, "tincd", "--no-detach", "--config", str(directory / f"tinc-{side}"),
                "--pidfile", str(directory / f"tinc-{side}.pid"))
        configure_link(lab, "tinc0")
        wait_until(lambda: lab.ping("a", INSIDE4["b"], 1), "tinc answers no ping")
        yield processes


def configure_link(lab: Lab, name: str) -> None:
    """Addresses for an interface that a daemon makes on both sides."""
    for side in "ab":
        wait_until(partial(lab.ip, side, "link", "show", name, check=False),
                   f"there is no {name}")
        lab.ip(side, "address", "add", f"{INSIDE4[side]}/24", "dev", name)
        lab.ip(side, "link", "set", name, "up")


def measure(lab: Lab, client: str, host: str, pids: list[int],
            seconds: float) -> dict[str, float]:
    """All figures of one contender, once: load from `client` to the address `host`."""
    figures: dict[str, float] = {}

    def tcp(name: str, *options: str) -> None:
        before = cpu_seconds(pids)
        load = DOUBTS.about(f"tcp {name}", lab.tcp(client, host, seconds, *options))
        figures[f"tcp {name}, Gbit/s"] = load.gbit_per_s
        figures[f"tcp {name}, CPU s/GB"] = (cpu_seconds(pids) - before) / (load.bytes / 1e9)

    def udp(size: int) -> None:
        before = cpu_seconds(pids)
        load = DOUBTS.about(f"udp {size} B", lab.udp(client, host, seconds, size))
        figures[f"udp {size} B, packets/s"] = load.packets_per_s
        figures[f"udp {size} B, CPU us/packet"] = (
            (cpu_seconds(pids) - before) * 1e6 / max(1, load.bytes / size))

    lab.ping(client, host, 3)                               # the handshake
    idle = lab.ping(client, host, 200, 0.005)
    figures["ping idle, median ms"] = percentile(idle, 50)
    figures["ping idle, p99 ms"] = percentile(idle, 99)
    tcp("1 stream")
    tcp("4 streams", "--parallel", "4")
    tcp("reverse", "--reverse")
    udp(64)
    udp(1300)
    pings: list[float] = []
    thread = threading.Thread(target=lambda: pings.extend(
        lab.ping(client, host, int(seconds / 0.01), 0.01)))
    stream = lab.spawn(client, "iperf3", "--client", host, "--time", str(seconds + 2))
    time.sleep(1)
    thread.start()
    thread.join()
    stop(stream)
    lab.processes.remove(stream)
    time.sleep(0.5)                                         # iperf3's server sees the end
    figures["ping in tcp, median ms"] = percentile(sorted(pings), 50)
    figures["ping in tcp, p99 ms"] = percentile(sorted(pings), 99)
    figures["resident memory, MB"] = resident_bytes(pids) / 1e6
    return figures


def one_turn(setup: Setup, host: str, seconds: float) -> dict[str, float]:
    """A fresh lab, a tunnel in it, and its figures."""
    with tempfile.TemporaryDirectory() as directory, Lab() as lab, \
            setup(lab, Path(directory)) as processes:
        lab.serve_iperf("b")
        return measure(lab, "a", host, [process.pid for process in processes.values()], seconds)


def one_forwarding_turn(setup: Setup, host: str, seconds: float) -> dict[str, float]:
    """The same between hosts beyond both ends."""
    with tempfile.TemporaryDirectory() as directory, Lab() as lab:
        forwarding.build(lab)
        with setup(lab, Path(directory)) as processes:
            lab.serve_iperf(forwarding.SERVER)
            return measure(lab, forwarding.CLIENT, host,
                           [process.pid for process in processes.values()], seconds)


def contenders(args: argparse.Namespace) -> dict[str, tuple[Setup, str]]:
    """Name: how to set it up, and the address that load goes to."""
    found: dict[str, tuple[Setup, str]] = {}
    wireguard = args.wireguard_go or shutil.which("wireguard-go")
    behind = forwarding.BEHIND if args.forwarding else None
    available: dict[str, Setup | None] = {
        "bare": forwarding.bare if args.forwarding else bare,
        **{f"fastpump, {queues} queue{'s' * (queues != '1')}": fastpump(
            "--queues", queues, *args.options.split(), behind=behind)
           for queues in args.queues.split(",")},
        BASELINE: wireguard_go(wireguard, behind) if wireguard else None,
    }
    if not args.forwarding:
        available |= others(args)
    for name, setup in available.items():
        if setup is not None and (not args.only or name.split(",")[0] in args.only.split(",")):
            found[name] = setup, (forwarding.SERVER_ADDRESS if args.forwarding else
                                  (OUTSIDE4 if name == "bare" else INSIDE4)["b"])
    return found


def others(args: argparse.Namespace) -> dict[str, Setup | None]:
    """Contenders that are measured from one end to the other only."""
    return {
        **{f"fastpump tap, {queues} queue{'s' * (queues != '1')}": fastpump(
            "--tap", "--queues", queues, *args.options.split())
           for queues in args.queues.split(",")},
        "openvpn": openvpn if shutil.which("openvpn") else None,
        "fastd": fastd if shutil.which("fastd") else None,
        "tinc": tinc if shutil.which("tincd") else None,
    }


def report(figures: dict[str, list[dict[str, float]]], baseline: str) -> Iterator[str]:
    """The table, line by line."""
    for name, rounds in figures.items():
        yield f"\n{name}"
        for figure in rounds[0] if rounds else ():
            values = [turn[figure] for turn in rounds]
            median = statistics.median(values)
            line = f"  {figure:28} {median:12.3f}   {min(values):.3f} to {max(values):.3f}"
            if figures.get(baseline) and name != baseline:
                rival = statistics.median(turn[figure] for turn in figures[baseline])
                line += f"   x {median / rival:.2f}" if rival else ""
            yield line


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (5)")
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement (3)")
    parser.add_argument("--queues", default="1,4", help="fastpump with these (1,4)")
    parser.add_argument("--wireguard-go", metavar="PROGRAM", help="the one to compare with")
    parser.add_argument("--forwarding", action="store_true", help="between hosts beyond both ends")
    parser.add_argument("--only", default="", help="of bare,fastpump,wireguard-go,openvpn,...")
    parser.add_argument("--baseline", default=BASELINE, metavar="NAME",
                        help="whom ratios are to, as the table calls it (%(default)s)")
    parser.add_argument("--options", default="", help="more options for fastpump tunnel")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all figures there")
    args = parser.parse_args()
    need("ip", "iperf3", "ping", *["nft"] * args.forwarding)
    exit_on_signals()
    turns = contenders(args)
    turn = one_forwarding_turn if args.forwarding else one_turn
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in turns}
    for number in range(args.rounds):
        first = number % len(turns)
        for name, (setup, host) in [*turns.items()][first:] + [*turns.items()][:first]:
            DOUBTS.begin(f"round {number + 1}: {name}")
            figures[name].append(turn(setup, host, args.seconds))
            if args.json:
                args.json.write_text(json.dumps(figures, indent=1))
    print(f"Linux {os.uname().release}, {os.cpu_count()} CPUs: median of {args.rounds} rounds of "
          f"{args.seconds:g} s, least to most, ratio to {args.baseline}")
    for line in (*report(figures, args.baseline), *DOUBTS.lines):
        print(line)


if __name__ == "__main__":
    main()
