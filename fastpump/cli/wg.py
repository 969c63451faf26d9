"""fastpump-wg: what wg-quick and others expect of a userspace WireGuard.

It makes the interface, with MTU 1420, down and without keys, and serves wg's socket; wg and ip
do the rest. The UDP sockets are made when the interface is set up, and belong to the
network namespace that this program was started in, wherever the interface moves.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack

from fastpump import __version__
from fastpump.config.model import (
    TunnelConfig,
    parse_cipher,
    parse_number,
    parse_offload,
    parse_transport,
)
from fastpump.constants import DEFAULT_MTU
from fastpump.errors import ConfigError, FastpumpError
from fastpump.ip import Address
from fastpump.process import logs
from fastpump.process.daemon import detach
from fastpump.process.streams import open_standard_streams

_EPILOG = """\
environment:
  FASTPUMP_QUEUES=N         queues, each with a worker process (default: one per CPU)
  FASTPUMP_PIN=1            pin each worker to a CPU
  FASTPUMP_BUSY_POLL=USEC   let a worker spin this long before it sleeps
  FASTPUMP_OFFLOAD=LIST     offloads to switch off or on: tso4=off,gro=off
  FASTPUMP_TRANSPORT=NAME   auto, wireguard or lanes: what data travels by
  FASTPUMP_CIPHER=NAME      of lanes: auto, aes-256-gcm or chacha20-poly1305
  FASTPUMP_LOG_LEVEL=LEVEL  debug, info, warning or error (info)
  FASTPUMP_AEAD=LIBRARY     ipsec-mb or openssl
  WG_PROCESS_FOREGROUND=1   the same as -f

examples:
  WG_QUICK_USERSPACE_IMPLEMENTATION=fastpump-wg wg-quick up wg0

  fastpump-wg wg0
  wg setconf wg0 wg0.conf
  ip address add 10.9.0.1/24 dev wg0
  ip link set wg0 up

It ends when the interface is deleted (ip link delete wg0), when its socket
/var/run/wireguard/wg0.sock is removed, and on SIGTERM, SIGINT
or SIGHUP. In the background it logs to
syslog, if there is one."""


def _environment(name: str) -> str | None:
    return os.environ.get(f"FASTPUMP_{name}") or None


def _number(name: str, low: int, high: int) -> int | None:
    text = _environment(name)
    return None if text is None else parse_number(text, f"value of FASTPUMP_{name}", low, high)


def config_of_environment(name: str) -> TunnelConfig:
    """The configuration of an interface that wg will configure further; ConfigError."""
    return TunnelConfig(
        name=name, queue_count=_number("QUEUES", 1, 256) or len(os.sched_getaffinity(0)),
        listen_port=0, keeps_key=False, pin=bool(_number("PIN", 0, 1)),
        busy_poll_us=_number("BUSY_POLL", 0, 1_000_000) or 0,
        transport=parse_transport(_environment("TRANSPORT") or "auto"),
        cipher=parse_cipher(_environment("CIPHER") or "auto"),
        offloads=dict(parse_offload(each.strip())
                      for each in (_environment("OFFLOAD") or "").split(",") if each.strip()))


def _log_level() -> str:
    level = (_environment("LOG_LEVEL") or "info").lower()
    if level not in logs.LEVELS:
        raise ConfigError(f"FASTPUMP_LOG_LEVEL={level} is no log level; it is one of "
                          + ", ".join(logs.LEVELS))
    return level


def serve(config: TunnelConfig, on_ready: Callable[[], None]) -> None:
    """Run the interface until it is deleted."""
    from fastpump.netlink import links
    from fastpump.tunnel.run import Program, run

    def configure(_name: str, index: int, _made: ExitStack,
                  _endpoints: Collection[Address]) -> None:
        links.set_mtu(links.get(index), DEFAULT_MTU)

    run(config, Program(configure=configure, on_ready=lambda _: on_ready(), must_serve_wg=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit status: 0, 1 for an error that is explained, 2 for usage."""
    open_standard_streams()
    parser = argparse.ArgumentParser(
        prog="fastpump-wg", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Make a WireGuard interface that wg and wg-quick configure, and serve it in "
        "the background.", epilog=_EPILOG)
    parser.add_argument("name", metavar="NAME", help="interface to create")
    parser.add_argument("-f", "--foreground", action="store_true", help="stay in front")
    parser.add_argument("--version", action="version", version=f"fastpump {__version__}")
    args = parser.parse_args(argv)
    try:
        logs.set_up(_log_level())
        config = config_of_environment(args.name)
        if args.foreground or os.environ.get("WG_PROCESS_FOREGROUND") == "1":
            serve(config, lambda: print(f"{config.name} is ready", flush=True))
        else:
            detach(lambda on_ready: serve(config, on_ready))
        return 0
    except FastpumpError as error:
        print(f"fastpump-wg: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"fastpump-wg: the system refuses something: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
