"""IP addresses, of either version, as the standard library has them."""

from __future__ import annotations

import ipaddress
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
"""An address with the length of its network's prefix."""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Prefix = tuple[bytes, int]
"""A network as the data plane has it: 4 or 16 address bytes, and the length of the prefix."""


def everything(version: int) -> Network:
    """The default route's destination."""
    return ipaddress.ip_network("0.0.0.0/0" if version == 4 else "::/0")


def prefix_of(network: Network) -> Prefix:
    """A network as a prefix."""
    return network.network_address.packed, network.prefixlen


def network_of(prefix: Prefix) -> Network:
    """A prefix as a network; ValueError if bits beyond its length are set."""
    return ipaddress.ip_network(prefix)


def prefix_text(prefix: Prefix) -> str:
    """10.9.0.0/24"""
    address, length = prefix
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    return f"{socket.inet_ntop(family, address)}/{length}"
