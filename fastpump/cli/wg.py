"""fastpump-wg: what wg-quick and others expect of a userspace WireGuard.

It makes the interface, with the default MTU, down and without keys, and serves wg's socket; wg
and ip do the rest. The UDP sockets are made when the interface is set up, and belong to the
network namespace that this program was started in, wherever the interface moves.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack

from fastpump import __version__
from fastpump.cli.arguments import describe, listed
from fastpump.cli.parser import Parser
from fastpump.config.model import TunnelConfig, check
from fastpump.config.options import OPTIONS
from fastpump.config.values import Switch, one_of
from fastpump.config.wording import OptionError
from fastpump.constants import DEFAULT_MTU
from fastpump.errors import ConfigError, FastpumpError, invalid
from fastpump.ip import Address
from fastpump.process import logs
from fastpump.process.daemon import detach
from fastpump.process.streams import open_standard_streams

_EPILOG = """\
environment:
{environment}

examples:
  WG_QUICK_USERSPACE_IMPLEMENTATION=fastpump-wg wg-quick up wg0

  fastpump-wg wg0
  wg setconf wg0 wg0.conf
  ip address add 10.9.0.1/24 dev wg0
  ip link set wg0 up

It stops when the interface is deleted (ip link delete wg0), when its socket
/var/run/wireguard/wg0.sock is removed, and on SIGTERM, SIGINT or SIGHUP. In the background it
logs to syslog, if there is one."""


def _epilog() -> str:
    options = [option for option in OPTIONS if option.environment]
    return _EPILOG.format(environment=describe({
        **{f"{option.environment}="
           f"{'1' if isinstance(option.value, Switch) else listed(option)}": option.help
           for option in options},
        "FASTPUMP_LOG_LEVEL=LEVEL": f"{one_of(logs.LEVELS)} (default: info)",
        "FASTPUMP_AEAD=LIBRARY": "ipsec-mb, boringssl or openssl (default: the fastest of each "
                                 "cipher)",
        "FASTPUMP_BORINGSSL=FILE": "the library of BoringSSL or AWS-LC",
        "WG_PROCESS_FOREGROUND=1": "the same as -f"}, 28))


def config_of_environment(name: str) -> TunnelConfig:
    """The configuration of an interface that wg will configure further; ConfigError."""
    values = {}
    for option in OPTIONS:
        text = os.environ.get(option.environment) if option.environment else None
        if not text:
            continue
        try:
            values[option.name] = option.value.parse_environment(text)
        except ConfigError as error:
            raise ConfigError(f"{option.environment}: {error}") from None
    config = TunnelConfig(name=name, listen_port=0, keeps_key=False, **values)
    try:
        check(config)
    except OptionError as error:
        raise ConfigError(error.for_environment) from None
    return config


def _log_level() -> str:
    level = (os.environ.get("FASTPUMP_LOG_LEVEL") or "info").lower()
    if level not in logs.LEVELS:
        raise invalid("FASTPUMP_LOG_LEVEL", level, one_of(logs.LEVELS))
    return level


def serve(config: TunnelConfig, on_ready: Callable[[], None]) -> None:
    """Run the interface until it is deleted."""
    from fastpump.cli.leftovers import recover
    from fastpump.netlink import links
    from fastpump.tunnel.moved_routes import MovedRoutes
    from fastpump.tunnel.run import Program, run
    from fastpump.tunnel.tunnel import Tunnel

    def configure(tunnel: Tunnel, cleanup: ExitStack, _endpoints: Collection[Address]) -> None:
        links.set_mtu(links.get(tunnel.link.index), DEFAULT_MTU)
        MovedRoutes(tunnel, cleanup)

    if config.name not in (name for _, name in socket.if_nameindex()):
        recover(config.name, takes_over=False)
    run(config, Program(configure=configure, on_ready=lambda _: on_ready(), must_serve_wg=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status: 0, 1 for an error that is explained, 2 for usage."""
    open_standard_streams()
    parser = Parser(
        prog="fastpump-wg", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Create a WireGuard interface for wg and wg-quick to configure, and run it in "
        "the background.", epilog=_epilog())
    parser.add_argument("name", metavar="NAME", help="interface to create")
    parser.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground")
    parser.add_argument("--version", action="version", version=f"fastpump {__version__}")
    args = parser.parse_args(argv)
    try:
        logs.set_up(_log_level())
        config = config_of_environment(args.name)
        if args.foreground or os.environ.get("WG_PROCESS_FOREGROUND") == "1":
            serve(config, lambda: print(f"{config.name} is ready", flush=True))
        else:
            detach(lambda foreground: serve(config, foreground.ready))
        return 0
    except FastpumpError as error:
        print(f"fastpump-wg: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"fastpump-wg: system error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
