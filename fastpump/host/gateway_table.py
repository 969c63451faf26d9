"""The nftables table of a gateway, and the chains of others that drop what it forwards.

    clamp     forward: a TCP connection through the tunnel, either way, is told the segment size
              that fits. `rt mtu` is the smaller of the MTUs of the way on and the way back, so one
              rule does for both; SYN and SYN-ACK, so both ends are told.
    leaving   postrouting: what comes from the tunnel and leaves by another interface is masqueraded
              (`iif` in postrouting: Linux 5.7).

It is owned: while nothing translates addresses, the host would answer for the tunnel's networks,
and end their connections (RST).

The tunnel is named by its index: that stays when it is renamed, and no later interface has it. Ways
out are named: an uplink may come back with another index.

An accept of ours ends our table only: packets pass those of others, too, and a drop there is final.
So if a chain there would drop, all that can be done is to say so. It would if that is its policy,
or its last rule drops or rejects everything, unless in its table something from the tunnel's
interface is accepted, and something to it.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
from collections.abc import Collection, Iterable
from typing import Any

from fastpump.config.gateway import Gateway
from fastpump.errors import SystemSetupError
from fastpump.host.nft_table import Chain, NftTable, run_nft

PURPOSE = "a gateway"
_CLAMP = "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu"
OURS = "fastpump"       # what the names of all our tables begin with


def table_of(name: str) -> str:
    """The table of a tunnel. Another underscore than that of protection.py's."""
    return f"{OURS}_gateway-{quoted(name)}"


def quoted(name: str) -> str:
    """An interface's name as part of a table's. Different ones never give the same."""
    return "".join(
        char if char.isascii() and (char.isalnum() or char in ".-")
        else "__" if char == "_" else f"_{ord(char):x}_" for char in name)


def table(name: str) -> NftTable:
    """The table of a tunnel."""
    return NftTable(table_of(name), PURPOSE, is_owned=True)


def chains(index: int, gateway: Gateway) -> dict[str, Chain]:
    """What is in it for the tunnel with that index."""
    ways_out = ", ".join(f'"{each}"' for each in gateway.ways_out)
    only = f" oifname {{ {ways_out} }}" if ways_out else ""
    found = {}
    if gateway.clamps:
        found["clamp"] = Chain("type filter hook forward priority mangle",
                               (f"iif {index} {_CLAMP}", f"oif {index} {_CLAMP}"))
    if gateway.masquerades:
        found["leaving"] = Chain("type nat hook postrouting priority srcnat",
                                 (f"iif {index} oif != {index}{only} masquerade",))
    return found


def parts_in(table: str) -> set[str]:
    """Which parts of a gateway the table has, of `nat` and `mss`; none if there is no such table.
    SystemSetupError if nft cannot tell."""
    try:
        lines = run_nft(f"list table inet {table}\n", PURPOSE).splitlines()
    except SystemSetupError as error:
        if os.strerror(errno.ENOENT) in str(error):
            return set()
        raise
    found = {"nat"} if any(line.endswith(" masquerade") for line in lines) else set()
    # One rule each way.
    clamps = sum(line.endswith(" size set rt mtu") for line in lines)
    return found | ({"mss"} if clamps == 2 else set())


def make_for_guests(table: str, guests: Iterable[int]) -> None:
    """Make the table for guests behind the TAPs with these indices, in place of what it was before.
    From one guest to another, nothing is masqueraded."""
    _replace(table, f"""\
  set guests {{
    type iface_index
    elements = {{ {", ".join(map(str, guests))} }}
  }}
  chain clamp {{
    type filter hook forward priority mangle
    iif @guests {_CLAMP}
    oif @guests {_CLAMP}
  }}
  chain leaving {{
    type nat hook postrouting priority srcnat
    iif @guests oif != @guests masquerade
  }}
""")


def remove_for_guests(table: str) -> None:
    """Remove that table, if it is there."""
    run_nft(_removal(table), PURPOSE)


def _replace(table: str, content: str) -> None:
    run_nft(f"{_removal(table)}table inet {table} {{\n{content}}}\n", PURPOSE)


def _removal(table: str) -> str:
    # `add` first: deleting what is not there would be an error.
    return f"add table inet {table}\ndelete table inet {table}\n"


# -- others

def hindrance(name: str, index: int, versions: Collection[int]) -> str | None:
    """A sentence if chains of others would drop what is forwarded from an interface of ours, or to
    it, in these IP versions; with the command that lets it pass. None also where nft cannot tell
    (it may be built without JSON)."""
    families = {"inet", *("ip" if version == 4 else "ip6" for version in versions)}
    try:
        chains = [chain for chain in _listed("chain", "chains", None)
                  if chain["family"] in families
                  and not chain["table"].startswith(OURS)]
        dropping = [chain for chain in chains if chain.get("hook") == "forward"
                    and _would_drop(chain, {name, str(index)})]
    except (SystemSetupError, ValueError, KeyError):
        return None
    if not dropping:
        return None
    where = " and ".join(" ".join((chain["family"], chain["table"], chain["name"]))
                         for chain in dropping)
    return (f"forwarded packets of {name} are dropped by another firewall here (nftables chain "
            f"{where}); let them pass: {_allowing(dropping, chains, name)}")


def _listed(kind: str, what: str, which: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The objects of a kind that `nft list WHAT WHICH` shows."""
    command = json.dumps({"nftables": [{"list": {what: which}}]})
    shown = json.loads(run_nft(command, PURPOSE, "-j"))
    return [item[kind] for item in shown["nftables"] if kind in item]


def _would_drop(chain: dict[str, Any], tunnel: set[str]) -> bool:
    place = {"family": chain["family"], "table": chain["table"]}
    if chain.get("policy") != "drop":
        own = _listed("rule", "chain", place | {"name": chain["name"]})
        if not own or not _drops_all(own[-1]["expr"]):
            return False
    rules = _listed("rule", "table", {"family": chain["family"], "name": chain["table"]})
    accepted = [rule["expr"] for rule in rules if {"accept": None} in rule["expr"]]
    return not all(any(_is_about(expressions, keys, tunnel) for expressions in accepted)
                   for keys in (("iifname", "iif"), ("oifname", "oif")))


def _drops_all(expressions: list[dict[str, Any]]) -> bool:
    """Whether a rule drops whatever comes to it."""
    kinds = {kind for each in expressions for kind in each}
    return bool(kinds & {"drop", "reject"}) and kinds <= {
        "drop", "reject", "counter", "log", "comment", "xt"}


def _is_about(expressions: list[dict[str, Any]], keys: Iterable[str], tunnel: set[str]) -> bool:
    """Whether a rule is for packets of the tunnel's interface alone, among others."""
    for each in expressions:
        match = each.get("match", {})
        left, right = match.get("left"), match.get("right")
        if match.get("op") == "==" and isinstance(left, dict) \
                and left.get("meta", {}).get("key") in keys:
            names = right.get("set", []) if isinstance(right, dict) else [right]
            if any(_fits(str(name), tunnel) for name in names):
                return True
    return False


def _fits(pattern: str, tunnel: set[str]) -> bool:
    """Whether a name in a rule, which may end in a wildcard, is the tunnel's."""
    return pattern in tunnel or (pattern.endswith("*") and any(
        name.startswith(pattern[:-1]) for name in tunnel))


def _allowing(dropping: list[dict[str, Any]], chains: list[dict[str, Any]], name: str) -> str:
    """The command that lets through what these chains drop. Where a program makes the rules, its
    own command, or the next start of that program would undo it."""
    commands: dict[str, None] = {}      # each once, in order
    inserts: list[str] = []
    word = shlex.quote(name)
    for chain in dropping:
        place = family, table = chain["family"], chain["table"]
        beside = {each["name"] for each in chains if (each["family"], each["table"]) == place}
        if table == "firewalld":
            commands[f"firewall-cmd --zone=trusted --add-interface={word}"] = None
        elif any(each.startswith("ufw") for each in beside):
            commands[f"ufw route allow in on {word} && ufw route allow out on {word}"] = None
        else:
            # Docker leaves this one to others; in its own, rules come and go.
            target = "DOCKER-USER" if "DOCKER-USER" in beside else chain["name"]
            inserts += [f'insert rule {family} {table} {target} {key} "{name}" accept'
                        for key in ("iifname", "oifname")]
    if inserts:
        commands[f"nft {shlex.quote('; '.join(inserts))}"] = None
    return " && ".join(commands)
