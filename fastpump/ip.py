"""IP addresses, of either version, as the standard library has them."""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
"""An address with the length of its network's prefix."""
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
