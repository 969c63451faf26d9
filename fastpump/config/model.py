"""What the operator asked for, as values, and what is wrong with them only in combination."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastpump import cpus
from fastpump.config.options import OPTIONS
from fastpump.config.values import Choice
from fastpump.config.wording import OptionError
from fastpump.constants import DEFAULT_NAME, MAX_DEFAULT_QUEUES, MAX_MTU, MIN_IPV6_MTU
from fastpump.errors import ConfigError
from fastpump.ip import Interface, Network
from fastpump.ratelimit import NO_LIMITS, RateLimits
from fastpump.tun.offloads import LANE_OFFLOADS
from fastpump.tun.queues import check_name

DEFAULTS: Mapping[str, Any] = {option.name: option.default_value for option in OPTIONS}
"""Of the fields that have a row in the table of options."""


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """One peer; `allowed_ips` None means: not given."""

    public_key: bytes
    endpoints: tuple[tuple[str, int], ...] = ()
    """Tried in turn, the first one first."""
    allowed_ips: tuple[Network, ...] | None = None
    preshared_key: bytes | None = field(default=None, repr=False)
    keepalive_s: int = 0
    rate_limits: RateLimits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class TunnelConfig:
    """Everything a tunnel needs to know; the fields with DEFAULTS are described in the table of
    options. What None means where it is not obvious: `queues`: `queue_count`; `listen_port`: 51820,
    or any free one when that is taken (0: any); `mtu`: what fits. The private key is
    `private_key`, or in `private_key_file`, or, if `keeps_key`, kept under the state directory;
    else there is none yet."""

    name: str = DEFAULT_NAME
    keeps_key: bool = True
    peers: tuple[PeerConfig, ...] = ()

    addresses: tuple[Interface, ...] = DEFAULTS["addresses"]
    routes: bool = DEFAULTS["routes"]
    mtu: int | None = DEFAULTS["mtu"]
    queues: int | None = DEFAULTS["queues"]
    pin: bool = DEFAULTS["pin"]
    busy_poll_us: int = DEFAULTS["busy_poll_us"]
    offloads: Mapping[str, bool] = field(default_factory=lambda: DEFAULTS["offloads"])
    latency: str = DEFAULTS["latency"]
    dscp: int | str = DEFAULTS["dscp"]
    """A number, or "copy"."""
    resolve_every_s: int = DEFAULTS["resolve_every_s"]
    transport: str = DEFAULTS["transport"]
    cipher: str = DEFAULTS["cipher"]
    rate_limits: RateLimits = DEFAULTS["rate_limits"]
    listen_port: int | None = DEFAULTS["listen_port"]
    fwmark: int = DEFAULTS["fwmark"]
    gateway: tuple[str, ...] = DEFAULTS["gateway"]
    kill_switch: bool = DEFAULTS["kill_switch"]
    kill_switch_allow: tuple[Network, ...] = DEFAULTS["kill_switch_allow"]
    endpoint_dns: tuple[str, ...] = DEFAULTS["endpoint_dns"]
    private_key: bytes | None = field(default=DEFAULTS["private_key"], repr=False)
    private_key_file: Path | None = DEFAULTS["private_key_file"]

    mode: str = DEFAULTS["mode"]
    bridge: str | None = DEFAULTS["bridge"]
    attach: tuple[str, ...] = DEFAULTS["attach"]
    attach_mode: str = DEFAULTS["attach_mode"]
    bridge_vlans: tuple[tuple[int, int], ...] = DEFAULTS["bridge_vlans"]
    mac: bytes | None = DEFAULTS["mac"]
    relay: bool = DEFAULTS["relay"]
    mac_ageing_s: int = DEFAULTS["mac_ageing_s"]
    mac_limit: int = DEFAULTS["mac_limit"]
    mac_table: int = DEFAULTS["mac_table"]
    storm_limit: int = DEFAULTS["storm_limit"]

    @property
    def queue_count(self) -> int:
        """How many queues that makes here and now."""
        return self.queues or min(cpus.usable_count(), MAX_DEFAULT_QUEUES)


def check(config: TunnelConfig) -> None:
    """What is wrong in combination, or was not parsed from text; ConfigError."""
    check_name(config.name)
    for option in OPTIONS:
        if isinstance(option.value, Choice):
            option.value.parse(getattr(config, option.name))
    if len(set(config.addresses)) < len(config.addresses):
        raise OptionError("an <addresses> is given twice; leave one out")
    if config.mtu is not None and config.mtu < MIN_IPV6_MTU and any(
            address.version == 6 for address in config.addresses):
        raise OptionError(f"IPv6 needs an MTU of at least {MIN_IPV6_MTU}; raise <mtu>, or leave "
                          "out the IPv6 <addresses>")
    if config.transport == "wireguard":
        _check_without_lanes(config)
    if config.mode == "tap":
        _check_tap(config)
    else:
        _check_tun(config)
    owner: dict[Network, PeerConfig] = {}
    for peer in config.peers:
        for network in peer.allowed_ips or ():
            if owner.setdefault(network, peer) is not peer:
                raise ConfigError(f"the allowed IPs {network} are given to two peers; packets to "
                                  "them can only go to one")


def _check_without_lanes(config: TunnelConfig) -> None:
    if config.mode == "tap":
        raise OptionError("Ethernet frames need lanes, which <transport=wireguard> disables; leave "
                          "it out, or choose lanes")
    if config.cipher != DEFAULTS["cipher"]:
        raise OptionError(f"<cipher={config.cipher}> is for lanes, which <transport=wireguard> "
                          "disables; leave out one of them")
    for name in LANE_OFFLOADS:
        if config.offloads.get(name, False):
            raise OptionError(f"<offloads={name}=on> is for lanes, which <transport=wireguard> "
                              "disables; leave out one of them")


def _check_tap(config: TunnelConfig) -> None:
    if not config.routes:
        raise OptionError("<routes> has no effect with <mode=tap>, which adds no routes; leave it "
                          "out")
    if config.gateway:
        raise OptionError("<gateway> is for IP packets, but <mode=tap> carries Ethernet frames: "
                          "leave it out, and let the hosts of that Ethernet route")
    if config.kill_switch:
        raise OptionError("<kill_switch> is for IP packets, but <mode=tap> carries Ethernet "
                          "frames: leave it out, and run it on a tunnel without <mode=tap>")
    if any(peer.allowed_ips for peer in config.peers):
        raise OptionError("allowed IPs have no effect with <mode=tap>: frames go where their MAC "
                          "address was learned; leave out allowed-ips")
    for name in (config.bridge, *config.attach):
        if name is not None:
            check_name(name)


def _check_tun(config: TunnelConfig) -> None:
    for option in OPTIONS:
        if option.needs_tap and getattr(config, option.name) != DEFAULTS[option.name]:
            raise OptionError(f"<{option.name}> is for Ethernet, but this tunnel carries IP "
                              "packets; add <mode=tap>, or leave it out")
    _check_kill_switch(config)
    names = [part for part in config.gateway if part.startswith("nat:")]
    if names and "nat" in config.gateway:
        raise OptionError(f"<gateway=nat> is for all ways out, <gateway={names[0]}> for one; leave "
                          "out one of them")
    if config.mtu is not None and config.mtu > MAX_MTU:
        raise OptionError(f"an <mtu> over {MAX_MTU} is for Ethernet only; lower it, or add "
                          "<mode=tap>")


def _check_kill_switch(config: TunnelConfig) -> None:
    if not config.kill_switch:
        for name in ("kill_switch_allow", "endpoint_dns"):
            if getattr(config, name):
                raise OptionError(f"<{name}> has no effect without <kill_switch>; add that, or "
                                  f"leave out <{name}>")
        return
    if any(char in config.name for char in '"\\*'):
        raise OptionError("<kill_switch> cannot be for an interface whose name has one of \" \\ "
                          "* in it; give it another name")
    if not config.routes:
        raise OptionError("<kill_switch> needs the routes that <routes> leaves out; leave out one "
                          "of them")
