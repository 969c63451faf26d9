"""`fastpump status`."""

from __future__ import annotations

import argparse
import json
import sys

from fastpump.errors import ConfigError, SystemSetupError


def fill(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.description = (
        "Show the running tunnels of this network namespace: queues and their workers, peers, and "
        "why packets were dropped.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="only this interface")
    parser.add_argument("--json", action="store_true", help="print JSON (keys: see the manual)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from fastpump.cli import status_text
    from fastpump.ipc import control

    errors: list[SystemSetupError] = []
    if args.name is None:
        found, errors = control.ask_all("status")
    else:
        found = [control.ask(args.name, "status")]
    if found == [None]:
        raise ConfigError(f"no tunnel is running on {args.name} in this network namespace; "
                          "`fastpump status` lists the running ones")
    if args.json:
        print(json.dumps({"interfaces": found}, indent=2))
    elif found:
        print("\n\n".join(status_text.show(status) for status in found))
    elif not errors:
        print("no tunnel is running in this network namespace")
    sys.stdout.flush()
    for error in errors:
        print(f"fastpump: {error}", file=sys.stderr)
    return 1 if errors else 0
