"""Syntax that only the command line has: --peer, --rate-limit, and the arguments of
`fastpump limit`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from fastpump import ratelimit
from fastpump.config.model import PeerConfig, TunnelConfig
from fastpump.config.options import KEEPALIVE
from fastpump.config.parsers import parse_endpoint, parse_network
from fastpump.errors import ConfigError, invalid
from fastpump.protocol import keys
from fastpump.ratelimit import RateLimits


def parse_peer(spec: str) -> PeerConfig:
    """PUBKEY[@HOST:PORT][,endpoint=HOST:PORT]...[,allowed-ips=CIDR+CIDR...][,psk=FILE]
    [,keepalive=SECONDS]"""
    head, *options = spec.split(",")
    key, at, where = head.partition("@")
    values: dict[str, str] = {}
    endpoints = [where] if at else []
    for option in options:
        name, equals, value = option.partition("=")
        if name not in ("endpoint", "allowed-ips", "psk", "keepalive") or not equals:
            raise invalid("peer option", option, "endpoint=HOST:PORT, allowed-ips=CIDR+CIDR, "
                                                 "psk=FILE or keepalive=SECONDS")
        if name == "endpoint":
            endpoints.append(value)
            continue
        if name in values:
            raise ConfigError(f"the peer option {name} is given twice; leave one out")
        values[name] = value
    allowed = values.get("allowed-ips")
    return PeerConfig(
        public_key=keys.decode(key, "public key of a peer"),
        endpoints=tuple(map(parse_endpoint, endpoints)),
        allowed_ips=None if allowed is None else tuple(dict.fromkeys(
            parse_network(cidr) for cidr in allowed.split("+") if cidr)),
        preshared_key=(keys.read_file(Path(values["psk"]), "preshared key")
                       if "psk" in values else None),
        keepalive_s=KEEPALIVE.parse(values.get("keepalive", "off")))


def with_default_allowed_ips(config: TunnelConfig) -> TunnelConfig:
    """One peer without allowed IPs gets the networks of our addresses; among several
    peers, one without any is a mistake. In TAP mode there are none."""
    peers, addresses = config.peers, config.addresses
    if config.mode == "tap" or all(peer.allowed_ips is not None for peer in peers):
        return config
    if len(peers) > 1:
        raise ConfigError("with several peers each one needs its own allowed-ips=CIDR+CIDR..., "
                          "which say which packets go to it")
    networks = tuple(dict.fromkeys(address.network for address in addresses
                                   if address.network.num_addresses > 1))
    if not networks:
        raise ConfigError("the peer has no allowed IPs: give --address with the prefix length of "
                          "its network, like 10.9.0.1/24, or allowed-ips=CIDR in --peer")
    return replace(config, peers=(replace(peers[0], allowed_ips=networks),))


def parse_rate_limit(text: str) -> tuple[bytes | None, RateLimits]:
    """[PUBKEY:]SPEC: whose limits, None for the interface's, and which."""
    key, colon, spec = text.partition(":")
    if not colon or text.lstrip().startswith(("{", "[", "@")):
        return None, ratelimit.parse(text)
    return keys.decode(key, "public key before the colon"), ratelimit.parse(spec)


def with_rate_limits(config: TunnelConfig,
                     said: Iterable[tuple[bytes | None, RateLimits]]) -> TunnelConfig:
    """The tunnel with the limits that `parse_rate_limit` made of --rate-limit, each given once and
    for a configured peer."""
    limits: dict[bytes | None, RateLimits] = {}
    for owner, each in said:
        if owner in limits:
            whose = "the interface" if owner is None else f"the peer {keys.encode(owner)}"
            raise ConfigError(f"--rate-limit is given twice for {whose}; put both directions into "
                              "one: tx=1gbit,rx=1gbit")
        limits[owner] = each
    for owner in limits.keys() - {None, *(peer.public_key for peer in config.peers)}:
        assert owner is not None
        raise ConfigError(f"--rate-limit is for the peer {keys.encode(owner)}, but no --peer has "
                          "that key; add it, or leave out the key to limit the interface")
    return replace(config, rate_limits=limits.get(None, config.rate_limits), peers=tuple(
        replace(peer, rate_limits=limits.get(peer.public_key, peer.rate_limits))
        for peer in config.peers))


def parse_limit(words: Sequence[str]) -> tuple[bytes | None, RateLimits | None]:
    """What follows NAME in `fastpump limit NAME [PUBKEY] [SPEC|off]`: whose limits, and what to
    set them to; None: show them."""
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
                raise ConfigError(f"{key!r} is not a public key; join the items of a limit with a "
                                  f"comma: {key},{spec}")
            return keys.decode(key, "public key of a peer"), ratelimit.parse(spec)
    raise ConfigError("too many arguments: must be fastpump limit NAME [PUBKEY] [SPEC|off]")
