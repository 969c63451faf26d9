"""What the operator asked for: parse and check. Every complaint says what is expected."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastpump import ratelimit
from fastpump.conn.endpoint import split_host_port
from fastpump.constants import DEFAULT_NAME, MAX_MTU, MAX_TAP_MTU, MIN_MTU
from fastpump.errors import ConfigError
from fastpump.protocol import keys
from fastpump.ratelimit import NO_LIMITS, RateLimits
from fastpump.tun.offloads import CIPHER_NAMES, OFFLOAD_NAMES
from fastpump.tun.queues import check_name

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

MAX_KEEPALIVE_S = 65535
MIN_IPV6_MTU = 1280
TRANSPORTS = ("auto", "wireguard", "lanes")
MODES = ("tun", "tap")
ATTACH_MODES = ("bridge", "tc")
# Of TAP mode: what is learnt, and what is flooded.
DEFAULT_MAC_AGEING_S, MIN_MAC_AGEING_S, MAX_MAC_AGEING_S = 300, 10, 86400
DEFAULT_MAC_LIMIT, DEFAULT_MAC_TABLE, MAX_MAC_TABLE = 4096, 32768, 1 << 20
DEFAULT_STORM_LIMIT, MAX_STORM_LIMIT = 10_000, 10_000_000

_MAC = re.compile(r"[0-9a-fA-F]{2}([:-])(?:[0-9a-fA-F]{2}\1){4}[0-9a-fA-F]{2}")


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """One peer; `allowed_ips` None means: not said."""

    public_key: bytes
    endpoint: tuple[str, int] | None = None
    allowed_ips: tuple[Network, ...] | None = None
    preshared_key: bytes | None = field(default=None, repr=False)
    keepalive_s: int = 0
    rate_limits: RateLimits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class TunnelConfig:
    """Everything a tunnel needs to know. `listen_port` None: 51820, or any free one when
    that is taken; 0: any. The private key is `private_key`, or in `private_key_file`, or, if
    `keeps_key`, kept under the state directory; else there is none yet. `mtu` None: 1420 for
    packets, for frames (`mode` tap) what fits. From `bridge` to `storm_limit` all is about
    frames: `mac` of the TAP, None: any; `storm_limit` 0: none."""

    name: str = DEFAULT_NAME
    queue_count: int = 1
    addresses: tuple[Interface, ...] = ()
    listen_port: int | None = None
    private_key: bytes | None = field(default=None, repr=False)
    private_key_file: Path | None = None
    keeps_key: bool = True
    peers: tuple[PeerConfig, ...] = ()
    mtu: int | None = None
    fwmark: int = 0
    routes: bool = True
    pin: bool = False
    busy_poll_us: int = 0
    resolve_every_s: int = 0
    transport: str = "auto"
    cipher: str = "auto"
    offloads: dict[str, bool] = field(default_factory=dict)
    rate_limits: RateLimits = NO_LIMITS
    mode: str = "tun"
    bridge: str | None = None
    attach: tuple[str, ...] = ()
    attach_mode: str = "bridge"
    mac: bytes | None = None
    relay: bool = False
    mac_ageing_s: int = DEFAULT_MAC_AGEING_S
    mac_limit: int = DEFAULT_MAC_LIMIT
    mac_table: int = DEFAULT_MAC_TABLE
    storm_limit: int = DEFAULT_STORM_LIMIT


TAP_FIELDS = {
    "bridge": "--bridge (Bridge)", "attach": "--attach (Attach)",
    "attach_mode": "--attach-mode (AttachMode)", "mac": "--mac (MACAddress)",
    "relay": "--relay (Relay)", "mac_ageing_s": "--mac-ageing (MacAgeing)",
    "mac_limit": "--mac-limit (MacLimit)", "mac_table": "--mac-table (MacTable)",
    "storm_limit": "--storm-limit (StormLimit)"}
"""What only TAP mode has: fields of TunnelConfig, and what they are called by operators."""


def parse_number(text: str, what: str, low: int, high: int) -> int:
    """A whole number in a range, decimal or 0x."""
    try:
        value = int(text, 0)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise ConfigError(f"{text!r} is no {what}: a whole number from {low} to {high} is "
                          "expected")
    return value


def parse_number_or_off(text: str, what: str, low: int, high: int) -> int:
    """A whole number in a range, decimal or 0x; 0 for off."""
    if text.lower() == "off":
        return 0
    try:
        return parse_number(text, what, low, high)
    except ConfigError as error:
        raise ConfigError(f"{error}, or off") from None


def parse_mtu(text: str) -> int:
    """An MTU of the tunnel interface; `check` knows that the highest are for frames."""
    return parse_number(text, "MTU", MIN_MTU, MAX_TAP_MTU)


def parse_address(text: str) -> Interface:
    """An address with its prefix length, for the interface."""
    try:
        if "%" in text:
            raise ValueError("no scope id here")
        return ipaddress.ip_interface(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no address: ADDRESS/PREFIXLEN is expected, like "
                          f"10.9.0.1/24 ({error})") from None


def parse_network(text: str) -> Network:
    """A prefix; host bits are cleared, as wg does."""
    try:
        if "%" in text:
            raise ValueError("no scope id here")
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no allowed IP: ADDRESS/PREFIXLEN is expected, like "
                          f"10.9.0.0/24 ({error})") from None


def parse_offload(text: str) -> tuple[str, bool]:
    """NAME=on or NAME=off."""
    name, _, value = text.partition("=")
    if name not in OFFLOAD_NAMES or value not in ("on", "off"):
        raise ConfigError(f"{text!r} is no offload setting: NAME=on or NAME=off is expected, "
                          f"NAME one of {', '.join(OFFLOAD_NAMES)}")
    return name, value == "on"


def parse_transport(text: str) -> str:
    """What data may travel by."""
    if text not in TRANSPORTS:
        raise ConfigError(f"{text!r} is no transport: one of {', '.join(TRANSPORTS)} is "
                          "expected")
    return text


def parse_cipher(text: str) -> str:
    """The cipher of lanes."""
    if text not in ("auto", *CIPHER_NAMES):
        raise ConfigError(f"{text!r} is no cipher of lanes: auto or one of "
                          f"{', '.join(CIPHER_NAMES)} is expected")
    return text


def parse_mode(text: str) -> str:
    """Whether the interface has packets or frames."""
    if text not in MODES:
        raise ConfigError(f"{text!r} is no mode: {' or '.join(MODES)} is expected")
    return text


def parse_attach_mode(text: str) -> str:
    """How interfaces are joined to the TAP."""
    if text not in ATTACH_MODES:
        raise ConfigError(f"{text!r} is no way to attach interfaces: {' or '.join(ATTACH_MODES)} "
                          "is expected")
    return text


def parse_mac(text: str) -> bytes:
    """The MAC address of an interface: six bytes that no group of hosts has."""
    mac = bytes.fromhex(re.sub("[:-]", "", text)) if _MAC.fullmatch(text) else b""
    if not any(mac) or mac[0] & 1:
        raise ConfigError(f"{text!r} is no MAC address of an interface: six bytes like "
                          "02:00:00:00:00:01 are expected, the first an even number")
    return mac


def parse_mac_ageing(text: str) -> int:
    """After how long a MAC address that is not heard is forgotten."""
    return parse_number(text, "number of seconds", MIN_MAC_AGEING_S, MAX_MAC_AGEING_S)


def parse_mac_limit(text: str) -> int:
    """How many MAC addresses are learnt: behind one peer, or of all."""
    return parse_number(text, "number of MAC addresses", 1, MAX_MAC_TABLE)


def parse_storm_limit(text: str) -> int:
    """How many frames are flooded in a second; 0: any number."""
    return parse_number_or_off(text, "number of frames per second", 0, MAX_STORM_LIMIT)


def parse_rate_limit(text: str) -> tuple[bytes | None, RateLimits]:
    """SPEC or PUBKEY:SPEC: whose limits, None for the interface's, and which."""
    key, colon, spec = text.partition(":")
    if not colon or text.lstrip().startswith(("{", "[", "@")):
        return None, ratelimit.parse(text)
    return keys.decode(key, "peer's public key before the colon"), ratelimit.parse(spec)


def parse_limit(words: Sequence[str]) -> tuple[bytes | None, RateLimits | None]:
    """What follows NAME in `fastpump limit NAME [PUBKEY] [SPEC|off]`: whose limits, and to
    what they are set; None: shown."""
    match words:
        case []:
            return None, None
        case [word]:
            try:
                return keys.decode(word), None
            except ConfigError:
                return None, ratelimit.parse(word)
        case [key, spec]:
            if "=" in key.rstrip("="):      # a key ends in one
                raise ConfigError(f"{key!r} is no peer's public key; items of one limit are "
                                  f"joined by a comma: {key},{spec}")
            return keys.decode(key, "peer's public key"), ratelimit.parse(spec)
    raise ConfigError("too many words: fastpump limit NAME [PUBKEY] [SPEC|off] is expected")


def parse_peer(spec: str) -> PeerConfig:
    """PUBKEY[@HOST:PORT][,allowed-ips=CIDR+CIDR...][,psk=FILE][,keepalive=SECONDS]"""
    head, *options = spec.split(",")
    key, at, where = head.partition("@")
    values: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if name not in ("allowed-ips", "psk", "keepalive") or not equals:
            raise ConfigError(f"{option!r} is no peer option: allowed-ips=CIDR+CIDR, psk=FILE "
                              "or keepalive=SECONDS is expected")
        if name in values:
            raise ConfigError(f"the peer option {name} is given twice in {spec!r}")
        values[name] = value
    allowed = values.get("allowed-ips")
    keepalive = values.get("keepalive", "off")
    return PeerConfig(
        public_key=keys.decode(key, "peer's public key"),
        endpoint=split_host_port(where) if at else None,
        allowed_ips=None if allowed is None else tuple(dict.fromkeys(
            parse_network(cidr) for cidr in allowed.split("+") if cidr)),
        preshared_key=(keys.read_file(Path(values["psk"]), "preshared key")
                       if "psk" in values else None),
        keepalive_s=(0 if keepalive == "off" else
                     parse_number(keepalive, "keepalive interval", 0, MAX_KEEPALIVE_S)),
    )


def with_rate_limits(config: TunnelConfig,
                     said: Iterable[tuple[bytes | None, RateLimits]]) -> TunnelConfig:
    """The tunnel with the limits of `parse_rate_limit`, each given once and to somebody."""
    limits: dict[bytes | None, RateLimits] = {}
    for owner, each in said:
        if owner in limits:
            whose = "the interface" if owner is None else f"the peer {keys.encode(owner)}"
            raise ConfigError(f"--rate-limit is given twice for {whose}; put both directions into "
                              "one: tx=1gbit,rx=1gbit")
        limits[owner] = each
    for owner in limits.keys() - {None, *(peer.public_key for peer in config.peers)}:
        assert owner is not None
        raise ConfigError(f"--rate-limit names the peer {keys.encode(owner)}, which no --peer is; "
                          "add it, or leave out the key to limit the interface")
    return replace(config, rate_limits=limits.get(None, config.rate_limits), peers=tuple(
        replace(peer, rate_limits=limits.get(peer.public_key, peer.rate_limits))
        for peer in config.peers))


def check(config: TunnelConfig) -> None:
    """What is wrong only in combination; ConfigError."""
    check_name(config.name)
    if len(set(config.addresses)) < len(config.addresses):
        raise ConfigError("an --address is given twice")
    if config.mtu is not None and config.mtu < MIN_IPV6_MTU and any(
            address.version == 6 for address in config.addresses):
        raise ConfigError(f"IPv6 needs an MTU of at least {MIN_IPV6_MTU}; raise --mtu, or leave "
                          "out the IPv6 --address")
    if config.mode == "tap":
        _check_tap(config)
    else:
        _check_tun(config)
    owner: dict[Network, PeerConfig] = {}
    for peer in config.peers:
        for network in peer.allowed_ips or ():
            if owner.setdefault(network, peer) is not peer:
                raise ConfigError(f"the allowed IPs {network} are given to two peers; packets to "
                                  "them can go to one only")


def _check_tap(config: TunnelConfig) -> None:
    if config.transport == "wireguard":
        raise ConfigError("frames travel on lanes only, which the transport wireguard has not; "
                          "leave it out, or choose lanes")
    if any(peer.allowed_ips for peer in config.peers):
        raise ConfigError("allowed IPs mean nothing with --tap: frames go where their MAC address "
                          "was learnt; leave out allowed-ips")
    for name in (config.bridge, *config.attach):
        if name is not None:
            check_name(name)


def _check_tun(config: TunnelConfig) -> None:
    fresh = TunnelConfig()
    for name, said in TAP_FIELDS.items():
        if getattr(config, name) != getattr(fresh, name):
            raise ConfigError(f"{said} is about Ethernet, and this tunnel has IP packets; add "
                              "--tap (Mode = tap), or leave it out")
    if config.mtu is not None and config.mtu > MAX_MTU:
        raise ConfigError(f"an MTU over {MAX_MTU} is for Ethernet only; lower it, or add --tap "
                          "(Mode = tap)")


def with_default_allowed_ips(config: TunnelConfig) -> TunnelConfig:
    """One peer without allowed IPs gets the networks of our addresses; among several
    peers, one without any is a mistake. With frames there are none."""
    peers, addresses = config.peers, config.addresses
    if config.mode == "tap" or all(peer.allowed_ips is not None for peer in peers):
        return config
    if len(peers) > 1:
        raise ConfigError("with several peers each needs its allowed-ips=CIDR+CIDR..., or it is "
                          "not clear which packets are whose")
    networks = tuple(dict.fromkeys(address.network for address in addresses
                                   if address.network.num_addresses > 1))
    if not networks:
        raise ConfigError("the peer has no allowed IPs: give --address a network it is in, like "
                          "10.9.0.1/24, or give allowed-ips=CIDR in --peer")
    return replace(config, peers=(replace(peers[0], allowed_ips=networks),))
