"""What a gateway (host/gateway.py) was made to do, beside what the kernel does by now: other
programs flush nftables, and set what sysctl.conf says. It is only looked at; `gateway.py` restores
it, a moment later.

nft(8) is asked for the table, so this takes a while, and is for a thread.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fastpump import paths
from fastpump.config.gateway import Gateway
from fastpump.errors import SystemSetupError
from fastpump.host import forwarding, gateway, gateway_table
from fastpump.host.forwarding import GATEWAY
from fastpump.netlink import links


def compare(wanted: Gateway, index: int | None, versions: Collection[int]) -> dict[str, Any]:
    """For `status`: the gateway of the interface with that index, which carries these IP versions.
    None: it is in another network namespace."""
    link = None if index is None else links.find(index)
    has_table = wanted.masquerades or wanted.clamps
    table = _table(link.index) if link is not None and has_table else None
    return {
        "forward": wanted.forwards,
        "nat": wanted.masquerades,
        "mss": wanted.clamps,
        "interfaces": list(wanted.ways_out),
        "interfaces_missing": None if link is None else [
            name for name in wanted.ways_out if links.find(name) is None],
        "table": table,
        "table_lacks": None if table is None else _lacking(wanted, table),
        "forwarding_off": None if link is None else forwarding.names_of_off(
            gateway.interfaces_of(wanted, link), versions),
    }


def _table(index: int) -> str | None:
    """What it was called when it was made: after the interface, which may have another name by now.
    The record has that."""
    record = next(paths.runtime_dir().glob(f"*@{index}{GATEWAY}"), None)
    return None if record is None else gateway_table.table_of(record.name.rpartition("@")[0])


def _lacking(wanted: Gateway, table: str) -> list[str] | None:
    """The parts that are not in the table any more; None if nft cannot tell."""
    needed = [part for part, is_needed in (("nat", wanted.masquerades), ("mss", wanted.clamps))
              if is_needed]
    try:
        there = gateway_table.parts_in(table)
    except SystemSetupError:
        return None
    return [part for part in needed if part not in there]
