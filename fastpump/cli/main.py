"""The command line. Each command's --help teaches it; docs/fastpump.1.md is the manual."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastpump import __version__
from fastpump.cli import fdb_limit, tap_interfaces
from fastpump.cli.arguments import lazily as _lazily
from fastpump.cli.arguments import number as _number
from fastpump.errors import ConfigError, FastpumpError
from fastpump.process import logs
from fastpump.process.streams import open_standard_streams

_TUNNEL_HELP = """\
Join this host to others by an encrypted tunnel. Runs in the foreground; stop it with
Ctrl-C. Needs root (or CAP_NET_ADMIN). Any WireGuard peer can be at the other end.

A peer is PUBKEY[@HOST:PORT][,allowed-ips=CIDR+CIDR...][,psk=FILE][,keepalive=SECONDS]:

  PUBKEY        the peer's public key, as `fastpump pubkey` or `wg pubkey` prints it
  @HOST:PORT    where it is; without it, the peer must come to us. IPv6: @[ADDRESS]:PORT
  allowed-ips   what is behind it: packets to these networks go to it, packets from it
                must come from them. With one peer the default is the networks of --address
  psk           a file with a preshared key (`fastpump genpsk`)
  keepalive     send something at least this often, to keep a NAT open

Two hosts:
  host A   fastpump tunnel --address 10.9.0.1/24
           (prints A's public key and what to type on host B)
  host B   fastpump tunnel --address 10.9.0.2/24 --peer A_KEY@a.example.net:51820
           (prints B's public key)
  host A   fastpump tunnel --address 10.9.0.1/24 --peer B_KEY

Link two networks: add the far network to the peer's allowed-ips
  fastpump tunnel --address 10.9.0.1/24 --peer B_KEY@b.example.net:51820,\\
allowed-ips=10.9.0.0/24+192.168.7.0/24

Join VMs: --tap makes one Ethernet of all hosts, for whatever is in its bridge
  host A   fastpump tunnel vms --tap --bridge br0
  host B   fastpump tunnel vms --tap --bridge br0 --peer A_KEY@a.example.net:51820
  host A   fastpump tunnel vms --tap --bridge br0 --peer B_KEY
  Frames go where their MAC address was learnt; there are no allowed-ips.

Limit what passes, in all or of one peer (the manual has more forms):
  --rate-limit tx=1gbit,rx=1gbit --rate-limit B_KEY:both=200mbit,burst=1mb,both-ops=50k
"""

_OFFLOAD_HELP = """\
switch an offload on or off; all that work are on. NAME: csum, tso4, tso6,
uso, gro (superpackets to the interface), udp-gso, udp-gro; on lanes: partial (checksums),
bundle (small packets share datagrams)"""

_TRANSPORT_HELP = """\
what data travels by: auto (lanes with other fastpumps, plain WireGuard with all others),
wireguard (only that), lanes (only that: nothing is sent to peers that do not do lanes)"""


def _add_ethernet(tunnel: Any) -> None:
    add = tunnel.add_argument_group("Ethernet", "What else there is with --tap.").add_argument
    add("--tap", action="store_true", help="join by Ethernet frames, not by IP packets; the peers "
        "are fastpumps with --tap, too")
    add("--bridge", type=_lazily("check_name"), metavar="NAME",
        help="put the interface into this bridge")
    add("--attach", type=_lazily("check_name"), action="append", default=[], metavar="IFACE",
        help="join this interface (of a VM) to the tunnel; may be repeated")
    add("--attach-mode", type=_lazily("parse_attach_mode"), default="bridge",
        metavar="bridge|tc", help="how: by a bridge, or directly by tc (bridge)")
    add("--mac", type=_lazily("parse_mac"), metavar="MAC",
        help="MAC address of the interface (default: any)")
    add("--relay", action="store_true", help="pass frames from peer to peer")
    add("--mac-ageing", type=_lazily("parse_mac_ageing"), default=300, metavar="SECONDS",
        help="forget a MAC address that was not heard for so long (300)")
    add("--mac-limit", type=_lazily("parse_mac_limit"), default=4096, metavar="N",
        help="learn no more MAC addresses behind one peer (4096)")
    add("--mac-table", type=_lazily("parse_mac_limit"), default=32768, metavar="N",
        help="learn no more MAC addresses in all (32768)")
    add("--storm-limit", type=_lazily("parse_storm_limit"), default=10_000, metavar="N",
        help="flood no more frames per second (10000; 0: any number)")


def _add_rate_limits(tunnel: Any) -> None:
    add = tunnel.add_argument_group("Rate limits").add_argument
    add("--rate-limit", type=_lazily("parse_rate_limit"), action="append", default=[],
        metavar="[PUBKEY:]SPEC", help="limit the interface, or a peer; may be repeated. SPEC is "
        "tx=RATE[,burst=SIZE], tx-ops=N[,burst=N], the same of rx or both, separated by commas; "
        "or the JSON of a Firecracker network interface, or @FILE with that. RATE in kbit, mbit, "
        "gbit, kb/s, mb/s, gb/s")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="fastpump", description="A packet pump for Linux: multi-queue TUN and TAP "
        "interfaces joined over encrypted UDP, WireGuard on the wire.",
        epilog="`fastpump COMMAND --help` explains a command. Start with: fastpump demo")
    parser.add_argument("--version", action="version", version=f"fastpump {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_tunnel(commands)
    status = commands.add_parser(
        "status", help="show running tunnels",
        description="Show the running tunnels of this network namespace: queues and their "
        "workers, peers, and what became of packets that were not delivered.")
    status.add_argument("name", nargs="?", metavar="NAME", help="only this interface")
    status.add_argument("--json", action="store_true", help="print JSON (keys: see the manual)")
    status.set_defaults(run=_status)
    _add_quick(commands)
    fdb_limit.add_commands(commands)
    tap_interfaces.add_commands(commands)
    _add_demo(commands)
    for name, help_text, action in (
            ("genkey", "make a private key and print it", _genkey),
            ("pubkey", "read a private key from stdin, print its public key", _pubkey),
            ("genpsk", "make a preshared key and print it", _genpsk)):
        command = commands.add_parser(
            name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}. Same "
            "format as `wg`: base64, one line.")
        command.set_defaults(run=action)
    return parser


def _add_tunnel(commands: Any) -> None:
    tunnel = commands.add_parser(
        "tunnel", help="run a tunnel (the main job)", description=_TUNNEL_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = tunnel.add_argument
    add("name", nargs="?", default="fp0", metavar="NAME", help="interface to create (fp0)")
    add("--queues", type=_number("number of queues", 1, 256), metavar="N",
        help="queues, each with a worker process (default: one per CPU)")
    add("--address", type=_lazily("parse_address"), action="append", default=[], metavar="CIDR",
        help="address of the interface, with prefix length; may be repeated")
    add("--listen-port", type=_number("UDP port", 0, 65535), metavar="PORT",
        help="UDP port (default: 51820, or any free one if that is taken; 0: any)")
    add("--private-key", type=Path, metavar="FILE",
        help="file with the private key (default: made once and kept in /var/lib/fastpump)")
    add("--peer", type=_lazily("parse_peer"), action="append", default=[], metavar="SPEC",
        help="a peer, see above; may be repeated")
    add("--mtu", type=_lazily("parse_mtu"), metavar="N",
        help="MTU of the interface (1420; with --tap what fits)")
    add("--fwmark", type=_number("firewall mark", 0, 0xFFFFFFFF), default=0, metavar="N",
        help="firewall mark of the tunnel's own packets, for policy routing")
    add("--transport", type=_lazily("parse_transport"), default="auto",
        metavar="auto|wireguard|lanes", help=_TRANSPORT_HELP)
    add("--cipher", type=_lazily("parse_cipher"), default="auto", metavar="NAME",
        help="cipher of lanes: aes-256-gcm or chacha20-poly1305 (auto: the first where both "
        "sides' processors have AES, else the second)")
    add("--no-routes", action="store_true", help="add no routes to the allowed IPs")
    add("--pin", action="store_true",
        help="pin each worker to a CPU, when there are as many CPUs as queues")
    add("--busy-poll", type=_number("number of microseconds", 0, 1_000_000), default=0,
        metavar="USEC", help="spin this long before sleeping: lower latency, more CPU (0)")
    add("--offload", type=_lazily("parse_offload"), action="append", default=[],
        metavar="NAME=on|off", help=_OFFLOAD_HELP)
    add("--log-level", choices=logs.LEVELS, default="info",
        help="what to log to stderr (info)")
    add("--log-json", action="store_true", help="log, and say ready, as JSON lines")
    _add_ethernet(tunnel)
    _add_rate_limits(tunnel)
    tunnel.set_defaults(run=_tunnel)


_FILE_HELP = """\
CONF is a file NAME.conf; NAME means /etc/fastpump/NAME.conf, or /etc/wireguard/NAME.conf."""

_UP_HELP = """\
Bring a tunnel up from a configuration file, in the background. The file has the format of
wg-quick(8), with all of its keys, and these of fastpump's own in [Interface]:

  Queues = N            queues, each with a worker process (default: one per CPU)
  Pin = true            pin each worker to a CPU
  BusyPoll = USEC       let a worker spin this long before it sleeps
  Offload = NAME=off    switch an offload off
  Transport = auto      or wireguard, or lanes: what data travels by
  Cipher = auto         or aes-256-gcm, or chacha20-poly1305: of lanes
  RateLimit = SPEC      limit the interface; in [Peer] that peer: tx=1gbit,burst=10mb
  Mode = tap            Ethernet frames, not IP packets; fastpump.conf(5) has the keys of it
  ResolveEvery = N      ask for the endpoints' names again, at most every N seconds,
                        when a handshake fails (default: off)

Example, /etc/fastpump/wg0.conf, mode 0600:

  [Interface]
  PrivateKey = ...      (fastpump genkey)
  Address = 10.9.0.2/24
  DNS = 10.9.0.1

  [Peer]
  PublicKey = ...       (the other side: fastpump pubkey)
  Endpoint = vpn.example.net:51820
  AllowedIPs = 0.0.0.0/0, ::/0
"""


def _add_quick(commands: Any) -> None:
    for name, help_text, description, action in (
            ("up", "bring a tunnel up from a file, in the background", _UP_HELP, _up),
            ("down", "end a tunnel, and undo all that it did",
             "End a tunnel that `fastpump up` started, and undo all that it did.", _down),
            ("reload", "apply a changed file to a running tunnel",
             "Apply a changed file to a running tunnel. Peers that are still in it keep their "
             "sessions. Table, Queues, Pin, BusyPoll, Offload, Transport, Cipher, Mode and what "
             "is about Ethernet need `down` and `up`.", _reload),
            ("check", "check a file", "Check a configuration file, and change nothing.", _check)):
        command = commands.add_parser(
            name, help=help_text, description=f"{description}\n{_FILE_HELP}",
            formatter_class=argparse.RawDescriptionHelpFormatter)
        command.add_argument("conf", metavar="CONF", help="a file, or an interface's name")
        command.set_defaults(run=action)


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo", help="show what a tunnel does on this machine",
        description="Make two network namespaces joined by a virtual cable, run a real "
        "`fastpump tunnel` in each, measure ping and throughput through the tunnel and beside "
        "it, print a table, and clean up. Needs root, or a kernel that lets users make "
        "namespaces; and iperf3.")
    demo.add_argument("--queues", type=_number("number of queues", 1, 256), metavar="N",
                      help="queues of each tunnel (default: one per CPU)")
    demo.add_argument("--seconds", type=_number("number of seconds", 1, 3600), default=3,
                      metavar="S", help="length of each measurement (3)")
    demo.set_defaults(run=_demo)


def _tunnel(args: argparse.Namespace) -> int:
    from fastpump.cli.foreground import run_in_foreground
    from fastpump.config.model import TunnelConfig, with_rate_limits

    logs.set_up(args.log_level, as_json=args.log_json)
    config = TunnelConfig(
        name=args.name, queue_count=args.queues or len(os.sched_getaffinity(0)),
        addresses=tuple(args.address), listen_port=args.listen_port,
        private_key_file=args.private_key, peers=tuple(args.peer), mtu=args.mtu,
        fwmark=args.fwmark, routes=not args.no_routes, pin=args.pin,
        busy_poll_us=args.busy_poll, transport=args.transport, cipher=args.cipher,
        offloads=dict(args.offload), mode="tap" if args.tap else "tun", bridge=args.bridge,
        attach=tuple(args.attach), attach_mode=args.attach_mode, mac=args.mac, relay=args.relay,
        mac_ageing_s=args.mac_ageing, mac_limit=args.mac_limit, mac_table=args.mac_table,
        storm_limit=args.storm_limit)
    run_in_foreground(with_rate_limits(config, args.rate_limit), as_json=args.log_json)
    return 0


def _up(args: argparse.Namespace) -> int:
    from fastpump.cli import quick

    logs.set_up("info")
    quick.up(args.conf)
    return 0


def _down(args: argparse.Namespace) -> int:
    from fastpump.cli import quick

    logs.set_up("info")
    quick.down(args.conf)
    return 0


def _reload(args: argparse.Namespace) -> int:
    from fastpump.cli import quick

    logs.set_up("info")
    answer = quick.reload(args.conf)
    for warning in answer["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print("changed: " + (", ".join(answer["changed"]) or "nothing"))
    if answer["needs_restart"]:
        print("not applied before `fastpump down` and `fastpump up`: "
              + ", ".join(answer["needs_restart"]))
    return 0


def _check(args: argparse.Namespace) -> int:
    from fastpump.cli import quick

    logs.set_up("info")
    print(quick.check_file(args.conf))
    return 0


def _status(args: argparse.Namespace) -> int:
    from fastpump.ipc import control
    from fastpump.tunnel import status as tunnel_status

    names = control.running() if args.name is None else [args.name]
    found = [status for status in (control.ask(name, "status") for name in names)
             if status is not None]
    if args.name is not None and not found:
        raise ConfigError(f"no tunnel runs on {args.name} in this network namespace; `fastpump "
                          "status` lists those that do")
    if args.json:
        print(json.dumps({"interfaces": found}, indent=2))
    elif found:
        print("\n\n".join(tunnel_status.show(status) for status in found))
    else:
        print("no tunnel runs in this network namespace")
    return 0


def _demo(args: argparse.Namespace) -> int:
    from fastpump.cli.demo import run

    return run(args.queues or len(os.sched_getaffinity(0)), args.seconds)


def _genkey(_args: argparse.Namespace) -> int:
    from fastpump.protocol import keys

    print(keys.encode(keys.generate_private()))
    return 0


def _pubkey(_args: argparse.Namespace) -> int:
    from fastpump.protocol import keys

    text = sys.stdin.buffer.read(4096).decode("ascii", "replace")
    print(keys.encode(keys.public_of(keys.decode(text, "private key on stdin"))))
    return 0


def _genpsk(_args: argparse.Namespace) -> int:
    from fastpump.protocol import keys

    print(keys.encode(keys.generate_preshared()))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0, 1 for an error that is explained, 2 for usage."""
    open_standard_streams()
    args = build_parser().parse_args(argv)
    try:
        status = int(args.run(args))
        sys.stdout.flush()
        return status
    except FastpumpError as error:
        print(f"fastpump: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"fastpump: the system refuses something: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
