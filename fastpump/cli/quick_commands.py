"""`fastpump up`, `down`, `reload` and `check`: their help and argument. quick.py does them."""

from __future__ import annotations

import argparse
import textwrap

from fastpump.cli.arguments import describe, listed
from fastpump.config.options import OPTIONS
from fastpump.config.values import lazily
from fastpump.process import logs

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


def fill_up(parser: argparse.ArgumentParser) -> None:
    """Add what `up` takes."""
    own = {f"{option.key} = {listed(option)}": option.help for option in OPTIONS
           if option.is_own and not option.needs_tap}
    _fill(parser, _UP_HELP.format(own_keys=describe(own, 24)), "fastpump.cli.quick.up")


def fill_down(parser: argparse.ArgumentParser) -> None:
    """Add what `down` takes."""
    parser.add_argument("--keep-closed", action="store_true",
                        help="for a restart: a full tunnel, or one with a kill switch, goes on "
                             "letting nothing leave in clear, and a gateway on masquerading, until "
                             "the next `up` takes that over, or another `down`")
    _fill(parser, "Stop a tunnel that `fastpump up` started, and undo everything it changed.",
          "fastpump.cli.quick.down", keeps_closed="keep_closed")


def fill_reload(parser: argparse.ArgumentParser) -> None:
    """Add what `reload` takes."""
    fixed = [option.key for option in OPTIONS if option.needs_restart and not option.needs_tap]
    _fill(parser, textwrap.fill(
        "Apply a changed file to a running tunnel. Peers that are still in it keep their sessions. "
        f"{', '.join(fixed)}, and all that is for Mode = tap only, take effect at the next `down` "
        "and `up`.", 96), "fastpump.cli.quick.reload")


def fill_check(parser: argparse.ArgumentParser) -> None:
    """Add what `check` takes."""
    _fill(parser, "Check a configuration file; changes nothing.",
          "fastpump.cli.quick.check")


def _fill(parser: argparse.ArgumentParser, description: str, command: str,
          **options: str) -> None:
    """A command that takes CONF, and these options: by the names of the function's arguments, those
    of the parser's. `command`: the function's full name."""
    parser.description = f"{description}\n{_FILE_HELP}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("conf", metavar="CONF", help="a file, or the name of an interface")

    def run(args: argparse.Namespace) -> int:
        logs.set_up("info")
        chosen = {name: getattr(args, given) for name, given in options.items()}
        lazily(command, **chosen)(args.conf)
        return 0
    parser.set_defaults(run=run)
