"""What the operator asked for: parse and check. Every complaint says what is expected."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastpump import keys
from fastpump.capabilities import CIPHER_NAMES, OFFLOAD_NAMES
from fastpump.constants import DEFAULT_MTU, DEFAULT_NAME, MAX_MTU, MIN_MTU
from fastpump.endpoint import split_host_port
from fastpump.errors import ConfigError
from fastpump.netdev import check_name

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

MAX_KEEPALIVE_S = 65535
MIN_IPV6_MTU = 1280
TRANSPORTS = ("auto", "wireguard", "lanes")


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """One peer; `allowed_ips` None means: not said."""

    public_key: bytes
    endpoint: tuple[str, int] | None = None
    allowed_ips: tuple[Network, ...] | None = None
    preshared_key: bytes | None = field(default=None, repr=False)
    keepalive_s: int = 0


@dataclass(frozen=True, slots=True)
class TunnelConfig:
    """Everything a tunnel needs to know. `listen_port` None: 51820, or any free one when
    that is taken; 0: any. The private key is `private_key`, or in `private_key_file`, or, if
    `keeps_key`, kept under the state directory; else there is none yet."""

    name: str = DEFAULT_NAME
    queue_count: int = 1
    addresses: tuple[Interface, ...] = ()
    listen_port: int | None = None
    private_key: bytes | None = field(default=None, repr=False)
    private_key_file: Path | None = None
    keeps_key: bool = True
    peers: tuple[PeerConfig, ...] = ()
    mtu: int = DEFAULT_MTU
    fwmark: int = 0
    routes: bool = True
    pin: bool = False
    busy_poll_us: int = 0
    resolve_every_s: int = 0
    transport: str = "auto"
    cipher: str = "auto"
    offloads: dict[str, bool] = field(default_factory=dict)


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


def parse_mtu(text: str) -> int:
    """An MTU of the tunnel interface."""
    return parse_number(text, "MTU", MIN_MTU, MAX_MTU)


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


def check(config: TunnelConfig) -> None:
    """What is wrong only in combination; ConfigError."""
    check_name(config.name)
    if len(set(config.addresses)) < len(config.addresses):
        raise ConfigError("an --address is given twice")
    if config.mtu < MIN_IPV6_MTU and any(address.version == 6 for address in config.addresses):
        raise ConfigError(f"IPv6 needs an MTU of at least {MIN_IPV6_MTU}; raise --mtu, or leave "
                          "out the IPv6 --address")
    owner: dict[Network, PeerConfig] = {}
    for peer in config.peers:
        for network in peer.allowed_ips or ():
            if owner.setdefault(network, peer) is not peer:
                raise ConfigError(f"the allowed IPs {network} are given to two peers; packets to "
                                  "them can go to one only")


def with_default_allowed_ips(config: TunnelConfig) -> TunnelConfig:
    """One peer without allowed IPs gets the networks of our addresses; among several
    peers, one without any is a mistake."""
    peers, addresses = config.peers, config.addresses
    if all(peer.allowed_ips is not None for peer in peers):
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
