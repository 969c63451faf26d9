"""The nftables table of a tunnel that rules lead to.

With the default route in the tunnel, packets to the tunnel's addresses must not come in by
another interface (CVE-2019-14899), and replies to our own datagrams and questions must be marked as
those are, so that the reverse path filter finds them (as wg-quick(8) does). All other packets keep
the marks that other programs gave them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from fastpump.host.nft_table import Chain, NftTable
from fastpump.ip import Interface


def table(name: str) -> NftTable:
    """That of the tunnel with that interface. Names of tables have fewer characters."""
    return NftTable("fastpump-" + re.sub(r"[^a-zA-Z0-9_.-]", lambda char: f"_{ord(char[0]):x}",
                                         name), "a default route through the tunnel")


def chains(name: str, addresses: Iterable[Interface], mark: int) -> dict[str, Chain]:
    """What is in it."""
    return {
        "raw": Chain("type filter hook prerouting priority raw", tuple(
            f'iifname != "{name}" {"ip" if address.version == 4 else "ip6"} daddr {address.ip} '
            "fib saddr type != local drop" for address in addresses)),
        "arriving": Chain("type filter hook prerouting priority mangle", (
            f"meta l4proto {{ tcp, udp }} ct mark {mark} meta mark set {mark}",)),
        "leaving": Chain("type filter hook postrouting priority mangle", (
            f"meta l4proto {{ tcp, udp }} meta mark {mark} ct mark set meta mark",))}
