"""`fastpump tunnel`: its help, its arguments, and the configuration that they make."""

from __future__ import annotations

import argparse

from fastpump.cli.arguments import add_option, lazily, option_values
from fastpump.config.options import ETHERNET_OPTIONS, OPTIONS
from fastpump.constants import DEFAULT_NAME
from fastpump.process import logs

_TUNNEL_HELP = """\
Connect this host to others by an encrypted tunnel. Runs in the foreground; stop it with
Ctrl-C. Needs root (or CAP_NET_ADMIN). The other end can be any WireGuard peer.

A peer is PUBKEY[@HOST:PORT][,endpoint=HOST:PORT...][,allowed-ips=CIDR+CIDR...][,psk=FILE]
[,keepalive=SECONDS]:

  PUBKEY        the peer's public key, as `fastpump pubkey` or `wg pubkey` prints it
  @HOST:PORT    its address; without it, the peer must contact this host. IPv6: @[ADDRESS]:PORT
  endpoint      another address; all of them are tried in turn until one answers
  allowed-ips   the networks behind it: packets to them go to this peer, and packets from it
                must come from them. With one peer the default is the networks of --address.
                0.0.0.0/0+::/0 is everything, a full tunnel
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

Reach a network whose hosts know no way back, or the internet: by a gateway, which has its own
address stand for those of its clients
  gateway  fastpump tunnel --gateway --address 10.9.0.1/24 --peer CLIENT_KEY
  client   fastpump tunnel --address 10.9.0.2/24 --peer GATEWAY_KEY@vpn.example.net:51820,\\
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


def fill(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.description = _TUNNEL_HELP
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", nargs="?", default=DEFAULT_NAME, metavar="NAME",
                        help=f"interface to create (default: {DEFAULT_NAME})")
    parser.add_argument("--peer", type=lazily("fastpump.config.command_line.parse_peer"),
                        action="append", default=[], metavar="SPEC",
                        help="a peer, see above; may be repeated")
    ethernet = parser.add_argument_group("Ethernet", "With --tap, and of no effect without it.")
    for option in OPTIONS:
        if option.flag:
            add_option(ethernet if option in ETHERNET_OPTIONS else parser, option)
    parser.add_argument_group("Rate limits").add_argument(
        "--rate-limit", type=lazily("fastpump.config.command_line.parse_rate_limit"),
        action="append", default=[], metavar="[PUBKEY:]SPEC", help=_RATE_LIMIT_HELP)
    parser.add_argument("--log-level", choices=logs.LEVELS, default="info",
                        help="lowest level to log to stderr (default: info)")
    parser.add_argument("--log-json", action="store_true",
                        help="print log lines and the ready line as JSON objects")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from fastpump.cli.foreground import run_in_foreground
    from fastpump.config.command_line import with_rate_limits
    from fastpump.config.model import TunnelConfig

    logs.set_up(args.log_level, as_json=args.log_json)
    config = TunnelConfig(name=args.name, peers=tuple(args.peer), **option_values(OPTIONS, args))
    run_in_foreground(with_rate_limits(config, args.rate_limit), as_json=args.log_json)
    return 0
