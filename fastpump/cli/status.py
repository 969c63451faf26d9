"""`fastpump status`."""

from __future__ import annotations

import argparse
import json

from fastpump.errors import ConfigError


def fill(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.description = (
        "Show the running tunnels of this network namespace: queues and their workers, peers, and "
        "why packets were dropped.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="only this interface")
    parser.add_argument("--json", action="store_true", help="print JSON (keys: see the manual)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
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
