"""The table of options: what the command line, the file, the environment and the manuals have in
common.

A row is all that there is of an option, except the field of TunnelConfig or FileConfig that holds
its value, and the code that uses it. From the rows come the flags of `fastpump tunnel` with their
help (cli/arguments.py), the environment of `fastpump-wg` (cli/wg.py), reading and writing
[Interface] and [Peer] (config/file.py, file_peers.py, file_emit.py), what `reload` can apply
(tunnel/file.py), which options need TAP mode (config/model.py), and the defaults and bounds that
the manuals must state (tests/unit/test_options.py). The order is that of a file that we write,
after wg-quick(8).

Light to load, for the sake of --help: see values.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastpump.config.values import (
    DECIMAL,
    NOT_OCTAL,
    Choice,
    Commands,
    Items,
    Networks,
    Number,
    OnOff,
    Parsed,
    Repeated,
    Settings,
    Switch,
    Value,
    lazily,
)
from fastpump.constants import (
    DEFAULT_MTU,
    DEFAULT_PORT,
    MAX_DEFAULT_QUEUES,
    MAX_KEEPALIVE_S,
    MAX_QUEUES,
    MAX_TAP_MTU,
    MIN_MTU,
)

MAX_MACS = 1 << 20
MAX_U32 = 2 ** 32 - 1

INTERFACE_NAME = Parsed(lazily("fastpump.tun.queues.check_name"))
PRIVATE_KEY = Parsed(lazily("fastpump.config.parsers.parse_optional_key", "private key"),
                     lazily("fastpump.protocol.keys.encode"))
PRESHARED_KEY = Parsed(lazily("fastpump.config.parsers.parse_optional_key", "preshared key"),
                       lazily("fastpump.protocol.keys.encode"))
PUBLIC_KEY = Parsed(lazily("fastpump.protocol.keys.decode", "public key"),
                    lazily("fastpump.protocol.keys.encode"))
KEEPALIVE = Number("keepalive interval", 0, MAX_KEEPALIVE_S, has_off=True, notation=DECIMAL)
RATE_LIMITS = Parsed(lazily("fastpump.ratelimit.parse", may_read=False),
                     lazily("fastpump.ratelimit.emit"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One row. Empty: it has none of that."""

    name: str
    """The field of TunnelConfig or FileConfig (of PeerConfig in PEER_OPTIONS)."""
    value: Value
    default: str = ""
    """As an operator would write it; empty: not given, and what that means is the field's."""
    flag: str = ""
    """Of `fastpump tunnel`."""
    constant: Any = None
    """What a flag without an argument sets."""
    bare: str = ""
    """What a flag that may have an argument stands for if it has none."""
    key: str = ""
    """In a file."""
    may_be_empty: bool = False
    """Whether `KEY =` in a file stands for the default, as wg-quick has it for some keys."""
    environment: str = ""
    """Of `fastpump-wg`."""
    metavar: str = ""
    needs_restart: bool = False
    """Whether `reload` leaves it to `down` and `up`: the interface must be recreated."""
    needs_tap: bool = False
    is_own: bool = False
    """Whether wg-quick(8) and wg(8) do not know the key."""
    is_wg: bool = False
    """Whether wg(8) reads the key, and so ignores blanks inside key and value."""
    summary: str = ""
    """For --help; {default} and {bounds} are filled in."""

    @property
    def help(self) -> str:
        """The summary with the row's default and bounds."""
        return self.summary.format(default=self.default, bounds=self.value.bounds)

    @property
    def default_value(self) -> Any:
        """The default as the field holds it."""
        return self.value.parse(self.default) if self.default else self.value.nothing

    def read(self, before: Any, text: str) -> Any:
        """The value after one more line of a file, whose value was `before`; ConfigError."""
        if not text and self.may_be_empty:
            return self.default_value
        return self.value.add(before, text)

    @property
    def label(self) -> str:
        """What operators call it: --bridge (Bridge)."""
        return f"{self.flag} ({self.key})" if self.flag and self.key else self.flag or self.key


ETHERNET_OPTIONS = (
    Option(name="mode", value=Choice("mode", ("tun", "tap")), default="tun", flag="--tap",
           constant="tap", key="Mode", metavar="tap", needs_restart=True, is_own=True,
           summary="carry Ethernet frames instead of IP packets; all peers must be fastpump "
                   "tunnels in TAP mode, too"),
    Option(name="bridge", value=INTERFACE_NAME, flag="--bridge", key="Bridge", metavar="NAME",
           may_be_empty=True, needs_restart=True, needs_tap=True, is_own=True,
           summary="make the interface a port of this bridge, which is created if it does not "
                   "exist"),
    Option(name="attach", value=Items(INTERFACE_NAME), flag="--attach", key="Attach",
           metavar="IFACE", needs_restart=True, needs_tap=True, is_own=True,
           summary="connect this interface (of a VM, for instance) to the tunnel"),
    Option(name="attach_mode", value=Choice("attach mode", ("bridge", "tc")), default="bridge",
           flag="--attach-mode", key="AttachMode", metavar="bridge|tc", needs_restart=True,
           needs_tap=True, is_own=True,
           summary="how to connect it: as a bridge port, or directly by tc (default: {default})"),
    Option(name="bridge_vlans", value=Items(Parsed(
               lazily("fastpump.config.parsers.parse_vlans"),
               lazily("fastpump.config.parsers.emit_vlans"))),
           flag="--bridge-vlans", key="BridgeVlans", metavar="ID|FIRST-LAST", needs_restart=True,
           needs_tap=True, is_own=True,
           summary="in a bridge that filters VLANs, carry these, tagged, such as 2-4094 (default: "
                   "what the bridge gives every port, VLAN 1 untagged)"),
    Option(name="mac", value=Parsed(lazily("fastpump.config.parsers.parse_mac"),
                                    lazily("fastpump.config.parsers.emit_mac")),
           flag="--mac", key="MACAddress", metavar="MAC", may_be_empty=True, needs_restart=True,
           needs_tap=True, is_own=True, summary="MAC address of the interface (default: any)"),
    Option(name="relay", value=Switch(), default="false", flag="--relay", constant=True,
           key="Relay", metavar="true", needs_restart=True, needs_tap=True, is_own=True,
           summary="forward frames from one peer to another"),
    Option(name="mac_ageing_s", value=Number("MAC ageing time", 10, 86400), default="300",
           flag="--mac-ageing", key="MacAgeing", metavar="SECONDS", needs_restart=True,
           needs_tap=True, is_own=True,
           summary="forget a MAC address that has not been seen for this long ({bounds}; default: "
                   "{default})"),
    Option(name="mac_limit", value=Number("number of MAC addresses", 1, MAX_MACS),
           default="4096", flag="--mac-limit", key="MacLimit", metavar="N", needs_restart=True,
           needs_tap=True, is_own=True,
           summary="maximum number of MAC addresses to learn behind one peer ({bounds}; default: "
                   "{default})"),
    Option(name="mac_table", value=Number("number of MAC addresses", 1, MAX_MACS),
           default="32768", flag="--mac-table", key="MacTable", metavar="N", needs_restart=True,
           needs_tap=True, is_own=True,
           summary="maximum number of MAC addresses to learn in total ({bounds}; default: "
                   "{default})"),
    Option(name="storm_limit", value=Number("number of frames per second", 0, 10_000_000,
                                            has_off=True),
           default="10000", flag="--storm-limit", key="StormLimit", metavar="N",
           needs_restart=True, needs_tap=True, is_own=True,
           summary="maximum number of frames to flood per second ({bounds}; 0 or off: no limit; "
                   "default: {default})"),
)

OPTIONS = (
    Option(name="addresses", value=Items(Parsed(lazily("fastpump.config.parsers.parse_address")),
                                         is_one_line=False),
           flag="--address", key="Address", metavar="CIDR",
           summary="address of the interface, with prefix length"),
    Option(name="routes", value=Switch(), default="true", flag="--no-routes", constant=False,
           summary="add no routes to the allowed IPs"),
    Option(name="dns", value=Items(Parsed(lazily("fastpump.config.parsers.parse_dns"))),
           key="DNS"),
    Option(name="mtu", value=Number("MTU", MIN_MTU, MAX_TAP_MTU, notation=NOT_OCTAL),
           flag="--mtu", key="MTU", metavar="N", may_be_empty=True,
           summary="MTU of the interface (default: what fits the paths to the peers; "
                   f"{DEFAULT_MTU} if none is known)"),
    Option(name="table", value=Parsed(lazily("fastpump.config.parsers.parse_table")),
           default="auto", key="Table", may_be_empty=True, needs_restart=True),
    Option(name="queues", value=Number("number of queues", 1, MAX_QUEUES), flag="--queues",
           key="Queues", environment="FASTPUMP_QUEUES", metavar="N", needs_restart=True,
           is_own=True, summary="number of queues, {bounds}, each with a worker process (default: "
                                f"one per CPU that it may use, at most {MAX_DEFAULT_QUEUES})"),
    Option(name="pin", value=Switch(), default="false", flag="--pin", constant=True, key="Pin",
           environment="FASTPUMP_PIN", metavar="true", needs_restart=True, is_own=True,
           summary="pin each worker to a CPU of its own, if there are as many CPUs as queues"),
    Option(name="busy_poll_us", value=Number("busy poll time", 0, 1_000_000), default="0",
           flag="--busy-poll", key="BusyPoll", environment="FASTPUMP_BUSY_POLL", metavar="USEC",
           needs_restart=True, is_own=True,
           summary="spin this long before sleeping: lower latency for more CPU time ({bounds}; "
                   "default: {default})"),
    Option(name="latency", value=Choice("latency", ("low", "balanced", "throughput")),
           default="balanced", flag="--latency", key="Latency", environment="FASTPUMP_LATENCY",
           metavar="low|balanced|throughput", needs_restart=True, is_own=True,
           summary="where many packets come: let a worker handle each at once (low), or collect "
                   "them for up to 100 or 200 us, to save CPU time (default: {default})"),
    Option(name="offloads", value=Settings(Parsed(
               lazily("fastpump.config.parsers.parse_offload"),
               lazily("fastpump.config.parsers.emit_offload"))),
           flag="--offload", key="Offload", environment="FASTPUMP_OFFLOAD", metavar="NAME=on|off",
           needs_restart=True, is_own=True,
           summary="switch an offload on or off (default: on, if it works). NAME: "
                   "csum, tso4, tso6, uso, tunnel (VXLAN and Geneve inside), gro (superpackets "
                   "to the interface), udp-gso, udp-gro; on lanes: partial (checksums), "
                   "bundle (small packets share datagrams), records (superpackets stay whole)"),
    Option(name="dscp", value=Parsed(lazily("fastpump.config.parsers.parse_dscp")), default="0",
           flag="--dscp", key="DSCP", environment="FASTPUMP_DSCP", metavar="N|copy",
           needs_restart=True, is_own=True,
           summary="traffic class (DSCP) of the datagrams that carry data: 0 to 63, or copy: that "
                   "of the packet inside, which the network can see then (default: {default})"),
    Option(name="resolve_every_s", value=Number("number of seconds", 5, 86400, has_off=True),
           default="off", key="ResolveEvery", metavar="SECONDS", is_own=True,
           summary="when a handshake fails, resolve the endpoint's name again, at most this often "
                   "({bounds}; default: {default})"),
    Option(name="transport", value=Choice("transport", ("auto", "wireguard", "lanes")),
           default="auto", flag="--transport", key="Transport", environment="FASTPUMP_TRANSPORT",
           metavar="auto|wireguard|lanes", needs_restart=True, is_own=True,
           summary="how data travels: auto (lanes with other fastpumps, plain WireGuard with all "
                   "others), wireguard (only that) or lanes (only lanes: nothing is sent to peers "
                   "without them) (default: {default})"),
    Option(name="cipher", value=Choice("cipher", ("auto", "aes-256-gcm", "chacha20-poly1305")),
           default="auto", flag="--cipher", key="Cipher", environment="FASTPUMP_CIPHER",
           metavar="NAME", needs_restart=True, is_own=True,
           summary="cipher of lanes: aes-256-gcm, chacha20-poly1305, or auto (the first if both "
                   "processors have AES instructions, else the second) (default: {default})"),
    Option(name="rate_limits", value=RATE_LIMITS, default="off", key="RateLimit", metavar="SPEC",
           may_be_empty=True, is_own=True,
           summary="limit the interface, or in [Peer] that peer: tx=1gbit,burst=10mb (default: "
                   "{default})"),
    Option(name="gateway", value=Items(Parsed(lazily("fastpump.config.gateway.parse_part"))),
           flag="--gateway", bare="forward, nat, mss", key="Gateway",
           metavar="forward,nat[:IFACE],mss", needs_restart=True, is_own=True,
           summary="be a gateway for what comes out of the tunnel: forward it, masquerade it (nat; "
                   "nat:IFACE: only there), and clamp the segment size of TCP (mss); by itself: "
                   "all three"),
    Option(name="kill_switch", value=OnOff(), default="off", flag="--kill-switch", constant=True,
           key="KillSwitch", metavar="on", needs_restart=True, is_own=True,
           summary="let nothing leave this host in clear, whatever becomes of the tunnel, until it "
                   "is stopped"),
    Option(name="kill_switch_allow", value=Items(Parsed(
               lazily("fastpump.config.parsers.parse_allowed"))),
           flag="--kill-switch-allow", key="KillSwitchAllow", metavar="CIDR", is_own=True,
           summary="but for what goes to this network, such as that of a printer"),
    Option(name="endpoint_dns", value=Items(Parsed(
               lazily("fastpump.config.parsers.parse_name_server"))),
           flag="--endpoint-dns", key="EndpointDNS", metavar="ADDRESS", needs_restart=True,
           is_own=True,
           summary="with --kill-switch, ask this name server for the endpoints of peers, outside "
                   "of the tunnel (default: those of the host)"),
    *ETHERNET_OPTIONS,
    Option(name="save_config", value=Switch(), default="false", key="SaveConfig"),
    Option(name="pre_up", value=Commands(), key="PreUp"),
    Option(name="post_up", value=Commands(), key="PostUp"),
    Option(name="pre_down", value=Commands(), key="PreDown"),
    Option(name="post_down", value=Commands(), key="PostDown"),
    Option(name="listen_port", value=Number("UDP port", 0, 65535, notation=DECIMAL),
           flag="--listen-port", key="ListenPort", metavar="PORT", is_wg=True,
           summary=f"UDP port (default: {DEFAULT_PORT}, or any free one if that is taken; 0: any)"),
    Option(name="fwmark", value=Number("firewall mark", 0, MAX_U32, has_off=True, is_hex=True),
           default="off", flag="--fwmark", key="FwMark", metavar="N", is_wg=True,
           summary="firewall mark of the tunnel's own packets, for policy routing (default: "
                   "{default})"),
    Option(name="private_key", value=PRIVATE_KEY, key="PrivateKey", is_wg=True),
    Option(name="private_key_file", value=Parsed(Path), flag="--private-key", metavar="FILE",
           summary="file with the private key (default: generated once and kept in "
                   "/var/lib/fastpump)"),
)

PEER_OPTIONS = (
    Option(name="public_key", value=PUBLIC_KEY, key="PublicKey", is_wg=True),
    Option(name="preshared_key", value=PRESHARED_KEY, key="PresharedKey", is_wg=True),
    Option(name="allowed_ips", value=Networks(Parsed(
               lazily("fastpump.config.parsers.parse_network"))),
           key="AllowedIPs", is_wg=True),
    Option(name="endpoints", value=Repeated(Parsed(
               lazily("fastpump.config.parsers.parse_endpoint"),
               lazily("fastpump.config.parsers.emit_endpoint"))),
           key="Endpoint", is_wg=True),
    Option(name="keepalive_s", value=KEEPALIVE, default="off", key="PersistentKeepalive",
           is_wg=True),
    Option(name="rate_limits", value=RATE_LIMITS, default="off", key="RateLimit",
           may_be_empty=True, is_own=True),
)


def named(name: str) -> Option:
    """The row of a field."""
    (found,) = (option for option in OPTIONS if option.name == name)
    return found
