"""The [Peer] sections of a configuration file: gathered, then merged as the kernel would take them
one by one.

A second [Peer] of the same peer replaces the allowed IPs that the first gave it, or changes them if
they have signs, and its other values win; an allowed IP moves to the peer that named it last. With
Mode = tap there are none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastpump.config.model import PeerConfig
from fastpump.config.options import Option
from fastpump.config.values import Networks
from fastpump.errors import ConfigError
from fastpump.ip import Network
from fastpump.protocol import keys


@dataclass(slots=True, eq=False)
class PeerSection:
    """One [Peer], which begins on `line`."""

    line: int
    values: dict[str, Any] = field(default_factory=dict)
    """What it says, by the names of the options."""
    networks: dict[Network, int] = field(default_factory=dict)
    """Its allowed IPs, and the lines they are on."""
    removed: set[Network] = field(default_factory=set)
    """Those with a minus."""
    is_incremental: bool = False
    """Whether it leaves the peer the allowed IPs of an earlier section: so if the last AllowedIPs
    line has a sign."""
    endpoint_lines: dict[tuple[str, int], int] = field(default_factory=dict)
    bare_endpoints: list[tuple[str, int]] = field(default_factory=list)
    """Those that are IPv6 addresses without brackets."""

    def set(self, option: Option, text: str, line: int) -> None:
        """Take one line of it; ConfigError."""
        if isinstance(option.value, Networks):
            self._change_networks(option.value.changes(text), line)
            return
        before = self.values.get(option.name, option.value.nothing)
        value = self.values[option.name] = option.read(before, text)
        if option.name == "endpoints":
            self.endpoint_lines[value[-1]] = line
            if ":" in value[-1][0] and not text.startswith("["):
                self.bare_endpoints.append(value[-1])

    def _change_networks(self, changes: Iterable[tuple[str, Network]], line: int) -> None:
        self.is_incremental = False
        for sign, network in changes:
            self.is_incremental |= bool(sign)
            if sign == "-":
                self.networks.pop(network, None)
                self.removed.add(network)
            else:
                self.networks[network] = line
                self.removed.discard(network)

    def follow(self, earlier: PeerSection, owners: dict[Network, PeerSection]) -> None:
        """Take over what an earlier section of the same peer said and this one does not."""
        for network in earlier.networks:
            del owners[network]
        if self.is_incremental:
            kept = {network: line for network, line in earlier.networks.items()
                    if network not in self.removed}
            owners.update(dict.fromkeys(kept, self))
            self.networks = kept | self.networks
        self.values = earlier.values | self.values

    @property
    def public_key(self) -> bytes | None:
        """Whose it is."""
        key: bytes | None = self.values.get("public_key")
        return key

    def config(self) -> PeerConfig:
        """What it says, once it is merged with the others."""
        return PeerConfig(**self.values, allowed_ips=tuple(self.networks))


def drop_allowed_ips(sections: Sequence[PeerSection], name: str) -> list[str]:
    """For Mode = tap, where wg's tools write AllowedIPs all the same; warns once."""
    lines = [line for section in sections for line in section.networks.values()]
    for section in sections:
        section.networks.clear()
    return [f"{name}:{min(lines)}: AllowedIPs have no effect with Mode = tap: frames go where "
            "their MAC address was learned"] if lines else []


def merge(sections: Sequence[PeerSection],
          name: str) -> tuple[tuple[PeerConfig, ...], list[str]]:
    """The peers in the order of their first sections, and warnings; `name` is the file's."""
    merged: dict[bytes, PeerSection] = {}
    owners: dict[Network, PeerSection] = {}
    warnings: list[str] = []
    for section in sections:
        if section.public_key is None:
            raise ConfigError(f"{name}:{section.line}: this [Peer] has no key: must contain "
                              "PublicKey = KEY")
        earlier = merged.get(section.public_key)
        if earlier is not None:
            verb = "change" if section.is_incremental else "replace"
            warnings.append(
                f"{name}:{section.line}: the peer {keys.encode(section.public_key)} already has a "
                f"[Peer] on line {earlier.line}; the values of this one win, and its allowed IPs "
                f"{verb} the earlier ones")
            section.follow(earlier, owners)
        for host, port in section.bare_endpoints:
            warnings.append(f"{name}:{section.endpoint_lines[host, port]}: this endpoint is read "
                            f"as [{host}]:{port}; write IPv6 addresses in brackets")
        warnings += _claim(section, owners, name)
        merged[section.public_key] = section
    return tuple(section.config() for section in merged.values()), warnings


def _claim(section: PeerSection, owners: dict[Network, PeerSection], name: str) -> list[str]:
    """Take the section's allowed IPs from the peers that had them; a warning for each that
    moved."""
    warnings = []
    for network, line in section.networks.items():
        loser = owners.get(network)
        if loser is not None and loser is not section:
            warnings.append(
                f"{name}:{line}: the allowed IPs {network} are already given to another peer on "
                f"line {loser.networks.pop(network)}; packets to them go to this one")
        owners[network] = section
    return warnings
