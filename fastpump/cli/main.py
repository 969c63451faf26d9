"""The command line: its commands, and what their errors are to the shell. Each command's --help
explains it; docs/fastpump.1.md is the manual."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from fastpump import __version__
from fastpump.cli.parser import Parser
from fastpump.errors import FastpumpError
from fastpump.process.streams import open_standard_streams

COMMANDS = (
    ("tunnel", "run a tunnel (the main job)", "fastpump.cli.tunnel.fill"),
    ("status", "show running tunnels", "fastpump.cli.status.fill"),
    ("up", "bring a tunnel up from a file, in the background",
     "fastpump.cli.quick_commands.fill_up"),
    ("down", "stop a tunnel, and undo everything it changed",
     "fastpump.cli.quick_commands.fill_down"),
    ("reload", "apply a changed file to a running tunnel",
     "fastpump.cli.quick_commands.fill_reload"),
    ("check", "check a file", "fastpump.cli.quick_commands.fill_check"),
    ("fdb", "MAC addresses of a running TAP", "fastpump.cli.fdb_limit.fill_fdb"),
    ("limit", "rate limits of a running tunnel", "fastpump.cli.fdb_limit.fill_limit"),
    ("interfaces", "show all interfaces, and how they are connected",
     "fastpump.cli.tap_interfaces.fill_interfaces"),
    ("tap", "create and delete TAPs for virtual machines", "fastpump.cli.tap_interfaces.fill_tap"),
    ("demo", "show what a tunnel does on this machine", "fastpump.cli.demo.fill"),
    ("bench", "measure tunnels beside each other", "fastpump.cli.bench.fill"),
    ("genkey", "generate a private key and print it", "fastpump.cli.key_commands.fill_genkey"),
    ("pubkey", "read a private key from stdin, print its public key",
     "fastpump.cli.key_commands.fill_pubkey"),
    ("genpsk", "generate a preshared key and print it", "fastpump.cli.key_commands.fill_genpsk"),
)
"""Name, line of `fastpump --help`, and the full name of the function that fills the command's
parser: it adds the arguments, and sets `run`, which takes them and returns the exit status."""


class _CommandParser(Parser):
    """The parser of one command. It is filled when the command is used, and what the command needs
    is loaded only then, so that `fastpump genkey` starts quickly."""

    def __init__(self, *, fill: str, **keywords: Any) -> None:
        super().__init__(**keywords)
        self._fill = fill

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Fill the parser, and parse. Called once, by the parser of all commands."""
        module, _, name = self._fill.rpartition(".")
        getattr(import_module(module), name)(self)
        return super().parse_known_args(args, namespace)


def _build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="fastpump", description="A packet pump for Linux: connects multi-queue TUN "
        "and TAP interfaces over encrypted UDP, compatible with WireGuard.",
        epilog="`fastpump COMMAND --help` explains a command. Start with: fastpump demo")
    parser.add_argument("--version", action="version", version=f"fastpump {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True,
                                     parser_class=_CommandParser)
    for name, help_line, fill in COMMANDS:
        commands.add_parser(name, help=help_line, fill=fill,
                            description=f"{help_line[0].upper()}{help_line[1:]}.")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0, 1 for an error that is explained, 2 for usage."""
    open_standard_streams()
    args = _build_parser().parse_args(argv)
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
