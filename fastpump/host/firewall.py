"""nftables on behalf of tunnels and gateways, by nft(8).

With the default route in the tunnel, packets to the tunnel's addresses must not come in by
another interface (CVE-2019-14899), and replies to our own datagrams must be marked as those
are, so that the reverse path filter finds them (as wg-quick(8) does). All other packets keep the
marks that other programs gave them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from fastpump.host import programs
from fastpump.ip import Interface


def run_nft(script: str, purpose: str, *options: str) -> str:
    """Run a script of nft, all of it or nothing; what it prints. SystemSetupError."""
    return programs.run(["nft", *options, "-f", "-"], script, "nftables", purpose)


def _table(name: str) -> str:
    """The nftables table of an interface; names there have fewer characters."""
    return "fastpump-" + re.sub(r"[^a-zA-Z0-9_.-]", lambda char: f"_{ord(char[0]):x}", name)


def protect(name: str, addresses: Iterable[Interface], mark: int) -> None:
    """Make the table for an interface that the default route leads into, in place of what
    it was before."""
    drops = "".join(
        f'    iifname != "{name}" {"ip" if address.version == 4 else "ip6"} daddr {address.ip} '
        "fib saddr type != local drop\n" for address in addresses)
    # `add` first: deleting what is not there would be an error.
    run_nft(f"""\
add table inet {_table(name)}
delete table inet {_table(name)}
table inet {_table(name)} {{
  chain raw {{
    type filter hook prerouting priority raw
{drops}  }}
  chain arriving {{
    type filter hook prerouting priority mangle
    meta l4proto udp ct mark {mark} meta mark set {mark}
  }}
  chain leaving {{
    type filter hook postrouting priority mangle
    meta l4proto udp meta mark {mark} ct mark set meta mark
  }}
}}
""", "a default route through the tunnel")


def unprotect(name: str) -> None:
    """Remove that table."""
    run_nft(f"add table inet {_table(name)}\ndelete table inet {_table(name)}\n",
            "a default route through the tunnel")
