"""The commands that look at the host's interfaces and make TAPs: `interfaces`, `tap`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from fastpump.cli.arguments import lazily, number
from fastpump.cli.parser import Parser
from fastpump.constants import ETHERNET_MTU, MAX_QUEUES, MAX_TAP_MTU
from fastpump.errors import ConfigError

_INTERFACES_HELP = """\
Show every network interface of this network namespace as a tree: a bridge with its ports below
it, a vlan below its parent; addresses, queues, the other end of each veth, the MACs that a bridge
has learned, and which process has each TUN or TAP open. Changes nothing. Root sees all processes,
other users only their own.

Example: a bridge that connects a guest to a network card

  br0  bridge, up, MTU 1500, MAC 02:93:0c:55:d1:07
  |    10.0.0.1/24
  |    knows 02:5e:1b:77:90:3a behind vm0, seen 2 s ago
  |- vm0  tap, up, MTU 1500, MAC 36:0d:5b:aa:94:18
  |       single queue, vnet header, persistent
  |       in use by firecracker (pid 4711)
  `- eth1  physical, up, MTU 1500, MAC 52:54:00:12:34:56
"""

_TAP_HELP = """\
Create and delete persistent TAPs for virtual machines. A TAP is a network card whose cable is a
program: Firecracker or QEMU opens it by name, and passes every Ethernet frame to or from the
guest.

  fastpump tap create vm0 --bridge br0 --user alice     alice may start a guest on it
  fastpump tap create --count 1000 --prefix vm          vm0 to vm999, within seconds
  fastpump tap list                                     all of them, and what has each open
  fastpump tap delete --prefix vm                       all of them
"""

_CREATE_HELP = """\
Create persistent TAPs: all that are named, or none. They are up, have one queue, and stay until
`fastpump tap delete` or a reboot.

For Firecracker, which only takes single-queue TAPs; prints "network-interfaces" for its
configuration file:
  fastpump tap create vm0 --bridge br0 --firecracker

For QEMU, with four queues; prints arguments for its command line:
  fastpump tap create vm0 --bridge br0 --multi-queue --queues 4 --qemu

A thousand, in a bridge, usable by the group kvm:
  fastpump tap create --count 1000 --prefix vm --bridge br0 --group kvm

Routed, without a bridge: the guest is 172.16.0.2, and the internet sees the host's address:
  fastpump tap create vm0 --address 172.16.0.1/30 --nat
"""

_DELETE_HELP = """\
Delete TAPs: all that are named, or none. An interface that is not a TAP is refused, and so is a
TAP that a process has open: --force deletes it anyway, and the process is cut off.

  fastpump tap delete vm0 vm1
  fastpump tap delete --prefix vm       vm and a number: vm0, vm1, ... but not vmware0
"""


def fill_interfaces(parser: argparse.ArgumentParser) -> None:
    """Add what `interfaces` takes."""
    parser.description = _INTERFACES_HELP
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true", help="print JSON (keys: see the manual)")
    parser.set_defaults(run=_interfaces)


def fill_tap(parser: argparse.ArgumentParser) -> None:
    """Add the commands of `tap`."""
    parser.description = _TAP_HELP
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True,
                                  parser_class=Parser)
    _add_create(verbs)
    delete = _add_verb(verbs, "delete", "delete TAPs", _DELETE_HELP, _delete)
    delete.add_argument("names", nargs="*", metavar="NAME", help="a TAP")
    delete.add_argument("--prefix", metavar="PREFIX", help="all whose name is PREFIX and a number")
    delete.add_argument("--force", action="store_true", help="also those that a process has open")
    listed = _add_verb(verbs, "list", "show the persistent TAPs",
                       "Show the persistent TAPs of this network namespace, and which process has "
                       "each open.", _list)
    listed.add_argument("--json", action="store_true", help="print JSON (keys: see the manual)")
    for verb in (delete, listed):
        _add_netns(verb)


def _add_netns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--netns", metavar="NETNS", help="in this network namespace: its name, or "
                        "the path where it is mounted")


def _enter(args: argparse.Namespace) -> None:
    if args.netns is not None:
        from fastpump.netlink import namespaces

        namespaces.enter(args.netns)


def _add_verb(verbs: Any, name: str, help_text: str, description: str,
              run: Any) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=help_text, description=description,
                              formatter_class=argparse.RawDescriptionHelpFormatter)
    assert isinstance(parser, argparse.ArgumentParser)
    parser.set_defaults(run=run)
    return parser


def _add_create(verbs: Any) -> None:
    parser = _add_verb(verbs, "create", "create persistent TAPs", _CREATE_HELP, _create)
    _add_netns(parser)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="a name for each TAP")
    add("--count", type=number("number of TAPs", 1, 10_000), metavar="N",
        help="instead of names: N TAPs, PREFIX0 to PREFIX(N-1)")
    add("--prefix", metavar="PREFIX", help="with --count: what the names begin with")
    add("--user", type=lazily("fastpump.host.taps.parse_user"), metavar="USER",
        help="user who may open it without CAP_NET_ADMIN, by name or number")
    add("--group", type=lazily("fastpump.host.taps.parse_group"), metavar="GROUP",
        help="group that may; with both, only that user, if in that group")
    add("--bridge", metavar="BR", help="make it a port of this bridge, which must exist")
    add("--address", type=lazily("fastpump.config.parsers.parse_address"), action="append",
        default=[], metavar="CIDR",
        help="address of the host's end, such as 172.16.0.1/30, for a guest without a bridge; with "
        "several TAPs, that of the first, the others' in the networks that follow; may be repeated")
    add("--nat", action="store_true",
        help="with --address: forward what the guest sends, masqueraded by the host's addresses")
    add("--mac", type=lazily("fastpump.host.taps.parse_mac"), metavar="MAC",
        help="the TAP's own MAC (default: chosen by the kernel); with several TAPs, that of the "
        "first, counting up")
    add("--guest-mac", type=lazily("fastpump.host.taps.parse_mac"), metavar="MAC",
        help="the guest's MAC, for --firecracker and --qemu (default: derived from the TAP's name, "
        "always the same); with several TAPs, counting up")
    add("--mtu", type=number("MTU", 68, MAX_TAP_MTU), metavar="N",
        help=f"MTU (default: {ETHERNET_MTU})")
    add("--multi-queue", action="store_true",
        help="let it be opened several times, once per queue: QEMU can, Firecracker cannot")
    add("--queues", type=number("number of queues", 2, MAX_QUEUES), metavar="N",
        help="with --multi-queue: number of queues that --qemu prints (default: one per CPU, at "
        "least 2)")
    add("--vnet-hdr", action=argparse.BooleanOptionalAction, default=True,
        help="offloads between host and guest; Firecracker and QEMU expect them (default: on)")
    add("--down", action="store_true", help="leave it down")
    add("--firecracker", action="store_true",
        help="print \"network-interfaces\" for Firecracker's configuration file")
    add("--rate-limit", metavar="SPEC",
        help="with --firecracker: print these limits as rate limiters")
    add("--qemu", action="store_true", help="print arguments for QEMU, a line for each TAP")


def _print(text: str) -> None:
    """Names need not be what the terminal can show."""
    encoding = sys.stdout.encoding
    print(text.encode(encoding, "replace").decode(encoding))


def _interfaces(args: argparse.Namespace) -> int:
    from fastpump.host import interfaces

    found = interfaces.gather()
    _print(json.dumps({"interfaces": found}, indent=2) if args.json else
           interfaces.show(found, sys.stdout.encoding))
    return 0


def _create(args: argparse.Namespace) -> int:
    from fastpump import cpus
    from fastpump.host import monitors, taps
    from fastpump.process.signals import exit_on_signals

    _check_create(args)
    limiters = monitors.rate_limiters(args.rate_limit)
    _enter(args)
    exit_on_signals()       # what was made is removed then, too
    made = taps.create(taps.TapConfig(
        names=taps.numbered(args.prefix, args.count) if args.count else tuple(args.names),
        owner=args.user, group=args.group, bridge=args.bridge, mac=args.mac,
        guest_mac=args.guest_mac, mtu=args.mtu, is_multi_queue=args.multi_queue,
        has_vnet_header=args.vnet_hdr, is_up=not args.down, addresses=tuple(args.address),
        has_nat=args.nat))
    if args.firecracker:
        print(monitors.firecracker_json(made, limiters))
    elif args.qemu:
        queue_count = 1
        if args.multi_queue:
            queue_count = args.queues or min(MAX_QUEUES, max(2, cpus.usable_count()))
        for tap in made:
            print(monitors.qemu_arguments(tap, queue_count))
    else:
        print(f"created {_names([tap.name for tap in made])}")
    return 0


def _check_create(args: argparse.Namespace) -> None:
    if bool(args.names) == bool(args.count):
        raise ConfigError("give either the TAPs' names, or --count N and --prefix PREFIX")
    if (args.count is None) != (args.prefix is None):
        raise ConfigError("--count and --prefix go together: --count 10 --prefix vm makes vm0 to "
                          "vm9")
    if args.firecracker and args.qemu:
        raise ConfigError("--firecracker and --qemu cannot be combined; give one of them")
    if args.firecracker and args.multi_queue:
        raise ConfigError("Firecracker cannot open a multi-queue TAP; leave out --multi-queue")
    if args.address and args.bridge is not None:
        raise ConfigError("a port of a bridge needs no --address: give it to the bridge, or leave "
                          "out --bridge")
    if args.nat and not args.address:
        raise ConfigError("--nat is for a guest that is routed: give --address too, like "
                          "172.16.0.1/30, or leave it out")
    if args.queues and not (args.multi_queue and args.qemu):
        raise ConfigError("--queues is for what --qemu prints of a multi-queue TAP: give "
                          "--multi-queue and --qemu too, or leave it out")
    if args.rate_limit is not None and not args.firecracker:
        raise ConfigError("--rate-limit is for Firecracker's rate limiters: give --firecracker "
                          "too, or leave it out")
    if args.guest_mac is not None and not (args.firecracker or args.qemu):
        raise ConfigError("--guest-mac is for what --firecracker or --qemu prints: give one of "
                          "them too, or leave it out")


def _delete(args: argparse.Namespace) -> int:
    from fastpump.host import taps
    from fastpump.process.signals import exit_on_signals

    if bool(args.names) == bool(args.prefix):
        raise ConfigError("give either the TAPs' names, or --prefix PREFIX")
    _enter(args)
    exit_on_signals()
    print(f"deleted {_names(taps.delete(args.names, args.prefix, args.force))}")
    return 0


def _names(names: list[str]) -> str:
    """A few names as they are, many by the first and the last."""
    if len(names) <= 8:
        return ", ".join(names)
    return f"{len(names)} TAPs: {names[0]} to {names[-1]}"


def _list(args: argparse.Namespace) -> int:
    from fastpump.host import taps

    _enter(args)
    found = taps.gather()
    _print(json.dumps({"taps": found}, indent=2) if args.json else taps.show(found))
    return 0
