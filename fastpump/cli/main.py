"""The command line. Each command's --help explains it; docs/fastpump.1.md is the manual."""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from fastpump import __version__
from fastpump.cli import fdb_limit, tap_interfaces
from fastpump.cli.arguments import add_option, describe, lazily, listed, number, option_values
from fastpump.config.options import ETHERNET_OPTIONS, OPTIONS, named
from fastpump.constants import DEFAULT_NAME
from fastpump.errors import ConfigError, FastpumpError
from fastpump.process import logs
from fastpump.process.streams import open_standard_streams

_TUNNEL_HELP = """\
Connect this host to others by an encrypted tunnel. Runs in the foreground; stop it with
Ctrl-C. Needs root (or CAP_NET_ADMIN). The other end can be any WireGuard peer.

A peer is PUBKEY[@HOST:PORT][,allowed-ips=CIDR+CIDR...][,psk=FILE][,keepalive=SECONDS]:

  PUBKEY        the peer's public key, as `fastpump pubkey` or `wg pubkey` prints it
  @HOST:PORT    its address; without it, the peer must contact this host. IPv6: @[ADDRESS]:PORT
  allowed-ips   the networks behind it: packets to them go to this peer, and packets from it
                must come from them. With one peer the default is the networks of --address
  psk           file with a preshared key (`fastpump genpsk`)
  keepalive     send a packet at least this often, to keep a NAT mapping open

Two hosts:
  host A   fastpump tunnel --address 10.9.0.1/24
           (prints A's public key and the command for host B)
  host B   fastpump tunnel --address 10.9.0.2/24 --peer A_KEY@a.example.net:51820
           (prints B's public key)
  host A   fastpump tunnel --address 10.9.0.1/24 --peer B_KEY

Link two networks: add the far network to the peer's allowed-ips
  fastpump tunnel --address 10.9.0.1/24 --peer B_KEY@b.example.net:51820,\\
allowed-ips=10.9.0.0/24+192.168.7.0/24

Connect VMs: --tap joins the bridges of all hosts into one Ethernet network
  host A   fastpump tunnel vms --tap --bridge br0
  host B   fastpump tunnel vms --tap --bridge br0 --peer A_KEY@a.example.net:51820
  host A   fastpump tunnel vms --tap --bridge br0 --peer B_KEY
  Frames go where their MAC address was learned; there are no allowed-ips.

Limit the rate, of everything or of one peer (the manual has more forms):
  --rate-limit tx=1gbit,rx=1gbit --rate-limit B_KEY:both=200mbit,burst=1mb,both-ops=50k
"""

_RATE_LIMIT_HELP = """\
limit the interface, or a peer; may be repeated. SPEC is tx=RATE[,burst=SIZE], tx-ops=N[,burst=N],
the same with rx or both, separated by commas; or the JSON of a Firecracker network interface, or
@FILE with that. RATE in kbit, mbit, gbit, kb/s, mb/s, gb/s"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="fastpump", description="A packet pump for Linux: connects multi-queue TUN "
        "and TAP interfaces over encrypted UDP, compatible with WireGuard.",
        epilog="`fastpump COMMAND --help` explains a command. Start with: fastpump demo")
    parser.add_argument("--version", action="version", version=f"fastpump {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_tunnel(commands)
    status = commands.add_parser(
        "status", help="show running tunnels",
        description="Show the running tunnels of this network namespace: queues and their "
        "workers, peers, and why packets were dropped.")
    status.add_argument("name", nargs="?", metavar="NAME", help="only this interface")
    status.add_argument("--json", action="store_true", help="print JSON (keys: see the manual)")
    status.set_defaults(run=_status)
    _add_quick(commands)
    fdb_limit.add_commands(commands)
    tap_interfaces.add_commands(commands)
    _add_demo(commands)
    for name, help_text, action in (
            ("genkey", "generate a private key and print it", _genkey),
            ("pubkey", "read a private key from stdin, print its public key", _pubkey),
            ("genpsk", "generate a preshared key and print it", _genpsk)):
        command = commands.add_parser(
            name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}. The "
            "format is that of wg(8): base64, one line.")
        command.set_defaults(run=action)
    return parser


def _add_tunnel(commands: Any) -> None:
    tunnel = commands.add_parser(
        "tunnel", help="run a tunnel (the main job)", description=_TUNNEL_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    tunnel.add_argument("name", nargs="?", default=DEFAULT_NAME, metavar="NAME",
                        help=f"interface to create (default: {DEFAULT_NAME})")
    tunnel.add_argument("--peer", type=lazily("fastpump.config.command_line.parse_peer"),
                        action="append", default=[], metavar="SPEC",
                        help="a peer, see above; may be repeated")
    ethernet = tunnel.add_argument_group("Ethernet", "With --tap, and of no effect without it.")
    for option in OPTIONS:
        if option.flag:
            add_option(ethernet if option in ETHERNET_OPTIONS else tunnel, option)
    tunnel.add_argument_group("Rate limits").add_argument(
        "--rate-limit", type=lazily("fastpump.config.command_line.parse_rate_limit"),
        action="append", default=[], metavar="[PUBKEY:]SPEC", help=_RATE_LIMIT_HELP)
    tunnel.add_argument("--log-level", choices=logs.LEVELS, default="info",
                        help="lowest level to log to stderr (default: info)")
    tunnel.add_argument("--log-json", action="store_true",
                        help="print log lines and the ready line as JSON objects")
    tunnel.set_defaults(run=_tunnel)


_FILE_HELP = """\
CONF is a file NAME.conf; NAME stands for /etc/fastpump/NAME.conf or /etc/wireguard/NAME.conf."""

_UP_HELP = """\
Bring a tunnel up from a configuration file, in the background. The file has the format of
wg-quick(8), with all of its keys, and these keys of fastpump in [Interface]; fastpump.conf(5)
describes them, and those of Mode = tap:

{own_keys}

Example, /etc/fastpump/wg0.conf, mode 0600:

  [Interface]
  PrivateKey = ...      (fastpump genkey)
  Address = 10.9.0.2/24
  DNS = 10.9.0.1

  [Peer]
  PublicKey = ...       (of the other side: fastpump pubkey)
  Endpoint = vpn.example.net:51820
  AllowedIPs = 0.0.0.0/0, ::/0
"""

def _up_help() -> str:
    own = {f"{option.key} = {listed(option)}": option.help for option in OPTIONS
           if option.is_own and not option.needs_tap}
    return _UP_HELP.format(own_keys=describe(own, 24))


def _reload_help() -> str:
    fixed = [option.key for option in OPTIONS if option.needs_restart and not option.needs_tap]
    return textwrap.fill(
        "Apply a changed file to a running tunnel. Peers that are still in it keep their sessions. "
        f"{', '.join(fixed)}, and all that is for Mode = tap only, take effect at the next `down` "
        "and `up`.", 96)


def _add_quick(commands: Any) -> None:
    for name, help_text, description, action in (
            ("up", "bring a tunnel up from a file, in the background", _up_help(), _up),
            ("down", "stop a tunnel, and undo everything it changed",
             "Stop a tunnel that `fastpump up` started, and undo everything it changed.", _down),
            ("reload", "apply a changed file to a running tunnel", _reload_help(), _reload),
            ("check", "check a file", "Check a configuration file; changes nothing.", _check)):
        command = commands.add_parser(
            name, help=help_text, description=f"{description}\n{_FILE_HELP}",
            formatter_class=argparse.RawDescriptionHelpFormatter)
        command.add_argument("conf", metavar="CONF", help="a file, or the name of an interface")
        command.set_defaults(run=action)


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo", help="show what a tunnel does on this machine",
        description="Create two network namespaces connected by a virtual cable, run a real "
        "`fastpump tunnel` in each, measure ping and throughput with and without the tunnel, "
        "print a table, and clean up. Needs root, or a kernel that lets users create namespaces; "
        "and iperf3.")
    add_option(demo, named("queues"))
    demo.add_argument("--seconds", type=number("number of seconds", 1, 3600), default=3,
                      metavar="S", help="length of each measurement (default: %(default)s)")
    demo.set_defaults(run=_demo)


def _tunnel(args: argparse.Namespace) -> int:
    from fastpump.cli.foreground import run_in_foreground
    from fastpump.config.command_line import with_rate_limits
    from fastpump.config.model import TunnelConfig

    logs.set_up(args.log_level, as_json=args.log_json)
    config = TunnelConfig(name=args.name, peers=tuple(args.peer), **option_values(OPTIONS, args))
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
        print("not applied until `fastpump down` and `fastpump up`: "
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
        raise ConfigError(f"no tunnel is running on {args.name} in this network namespace; "
                          "`fastpump status` lists the running ones")
    if args.json:
        print(json.dumps({"interfaces": found}, indent=2))
    elif found:
        print("\n\n".join(tunnel_status.show(status) for status in found))
    else:
        print("no tunnel is running in this network namespace")
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
        print(f"fastpump: system error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
