"""The commands that inspect a running tunnel and change it: `fdb` and `limit`."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from fastpump.cli.arguments import number
from fastpump.constants import MAX_VLAN_IN_TAG
from fastpump.errors import ConfigError

_FDB_HELP = """\
Show and change the forwarding database of a running `fastpump tunnel --tap`: which MAC addresses
it has learned on this side, and which behind each peer.

  fastpump fdb show fp0                       all of them
  fastpump fdb add fp0 02:00:00:00:00:01 --peer KEY
                                              pin it to that peer; frames from it elsewhere
                                              are dropped
  fastpump fdb add fp0 02:00:00:00:00:02 --local --vlan 7
  fastpump fdb del fp0 02:00:00:00:00:01
  fastpump fdb flush fp0 [--peer KEY]         forget what was learned (--static: what was
                                              added, too)
"""

_LIMIT_HELP = """\
Show or change the rate limits of a running tunnel. Changes are lost when it stops; use
--rate-limit or RateLimit to make them permanent.

  fastpump limit fp0                          show those of the interface
  fastpump limit fp0 tx=100mbit,burst=1mb     limit what is sent into the tunnel
  fastpump limit fp0 PUBKEY rx=1gbit,rx-ops=50k
                                              limit what is received from that peer
  fastpump limit fp0 PUBKEY off               remove the limits of that peer

Limits are written as for `fastpump tunnel --rate-limit`: see fastpump(1).
"""


def fill_fdb(parser: argparse.ArgumentParser) -> None:
    """Add what `fdb` takes."""
    parser.description = _FDB_HELP
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("action", choices=("show", "add", "del", "flush"))
    parser.add_argument("name", metavar="NAME", help="the interface")
    parser.add_argument("mac", nargs="?", metavar="MAC", help="for add and del")
    parser.add_argument("--vlan", type=number("VLAN", 0, MAX_VLAN_IN_TAG), metavar="N",
                        help="for add and del: VLAN (0: untagged frames; default: 0)")
    side = parser.add_mutually_exclusive_group()
    side.add_argument("--peer", metavar="PUBKEY", help="behind that peer")
    side.add_argument("--local", action="store_true", help="on this side")
    parser.add_argument("--static", action="store_true", help="for flush: what was added, too")
    parser.add_argument("--json", action="store_true", help="for show: print JSON")
    parser.set_defaults(run=_fdb)


def fill_limit(parser: argparse.ArgumentParser) -> None:
    """Add what `limit` takes."""
    parser.description = _LIMIT_HELP
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", metavar="NAME", help="the interface")
    parser.add_argument("words", nargs="*", metavar="[PUBKEY] [SPEC|off]",
                        help="of a peer instead of the interface; what to set")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_limit)


def _ask(name: str, command: str, **arguments: object) -> dict[str, Any]:
    from fastpump.ipc import control

    answer = control.ask(name, command, **arguments)
    if answer is None:
        raise ConfigError(f"no tunnel is running on {name} in this network namespace; `fastpump "
                          "status` lists the running ones")
    assert isinstance(answer, dict)
    return answer


def _refuse_what_is_not_used(args: argparse.Namespace) -> None:
    """Options that have no effect on the action."""
    side = "--peer" if args.peer is not None else "--local" if args.local else None
    for option, is_given, actions in (
            ("--vlan", args.vlan is not None, ("add", "del")), (side, side, ("add", "flush")),
            ("--static", args.static, ("flush",)), ("--json", args.json, ("show",))):
        if is_given and args.action not in actions:
            raise ConfigError(f"fastpump fdb {args.action} does not take {option}: leave it out "
                              f"(it is for {' and '.join(actions)})")


def _fdb(args: argparse.Namespace) -> int:
    from fastpump.ipc import fdb

    _refuse_what_is_not_used(args)
    is_one = args.action in ("add", "del")
    if is_one and args.mac is None:
        raise ConfigError(f"no MAC address given: must be fastpump fdb {args.action} "
                          f"{args.name} MAC, like 02:00:00:00:00:01")
    if not is_one and args.mac is not None:
        raise ConfigError(f"fastpump fdb {args.action} takes no MAC address: leave out {args.mac}")
    if args.action == "add" and args.peer is None and not args.local:
        raise ConfigError("no side given: must be --peer PUBKEY or --local")
    request: dict[str, object] = {"action": args.action}
    if is_one:
        request |= {"mac": args.mac, "vlan": args.vlan or 0}
    if args.peer is not None or args.local:
        request["peer"] = args.peer
    if args.action == "flush":
        request["static"] = args.static
    answer = _ask(args.name, "fdb", **request)
    if args.action == "show":
        print(json.dumps(answer, indent=2) if args.json else fdb.show(answer))
    elif args.action == "flush":
        print(f"{answer['flushed']} forgotten")
    return 0


def _limit(args: argparse.Namespace) -> int:
    from fastpump import ratelimit
    from fastpump.config.command_line import parse_limit
    from fastpump.protocol import keys

    peer, limits = parse_limit(args.words)
    answer = _ask(args.name, "limit", peer=None if peer is None else keys.encode(peer),
                  limits=None if limits is None else limits.to_json())
    if args.json:
        print(json.dumps(answer["limits"], indent=2))
    elif limits is None:
        print(ratelimit.show(ratelimit.RateLimits.from_json(answer["limits"])))
    sys.stdout.flush()
    return 0
