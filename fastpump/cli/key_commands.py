"""The commands that make keys: `genkey`, `pubkey`, `genpsk`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from fastpump.protocol import keys


def fill_genkey(parser: argparse.ArgumentParser) -> None:
    """Add what `genkey` takes."""
    _fill(parser, lambda: keys.encode(keys.generate_private()))


def fill_pubkey(parser: argparse.ArgumentParser) -> None:
    """Add what `pubkey` takes."""
    _fill(parser, _public_key)


def fill_genpsk(parser: argparse.ArgumentParser) -> None:
    """Add what `genpsk` takes."""
    _fill(parser, lambda: keys.encode(keys.generate_preshared()))


def _fill(parser: argparse.ArgumentParser, key: Callable[[], str]) -> None:
    """A command without arguments that prints a key."""
    parser.description = f"{parser.description} The format is that of wg(8): base64, one line."

    def run(_args: argparse.Namespace) -> int:
        print(key())
        return 0
    parser.set_defaults(run=run)


def _public_key() -> str:
    """Of the private key on stdin."""
    text = sys.stdin.buffer.read(4096).decode("ascii", "replace")
    return keys.encode(keys.public_of(keys.decode(text, "private key on stdin")))
