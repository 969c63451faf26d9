"""The forwarding database of a running TAP, for the operator: show, add, delete, flush.

The workers learn and look up in the table itself (hot/fdb.pxd). Requests come by the control socket
as JSON; an owner is a peer's key, or null for this host's side of the interface:

    {"action": "show"}                          ->  {"macs": [...]}
    {"action": "add", "mac": M, "vlan": V, "peer": KEY or null}
    {"action": "del", "mac": M, "vlan": V}
    {"action": "flush", "peer": KEY, null or absent, "static": bool}    ->  {"flushed": N}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastpump._core import LOCAL_PORT, SharedTables
from fastpump.config.parsers import parse_mac
from fastpump.constants import MAX_VLAN_IN_TAG
from fastpump.device.device import Device
from fastpump.device.peer import Peer
from fastpump.errors import ConfigError
from fastpump.protocol import keys


class Fdb:
    """Answers requests about a device's table."""

    def __init__(self, tables: SharedTables, device: Device, now_ns: Callable[[], int]) -> None:
        self._tables = tables
        self._device = device
        self._now_ns = now_ns

    def serve(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a request; ConfigError says what is wrong with it."""
        if not self._tables.is_tap:
            raise ConfigError("it is a TUN, which carries packets, and has no MAC addresses; "
                              "start it with --tap to join Ethernets")
        actions = {"show": self._show, "add": self._add, "del": self._remove,
                   "flush": self._flush}
        action = actions.get(str(request.get("action")))
        if action is None:
            raise ConfigError(f"unknown action: must be one of {', '.join(actions)}")
        return action(request)

    def _show(self, _request: dict[str, Any]) -> dict[str, Any]:
        macs = []
        for mac, vlan, owner, is_static, age_s in sorted(self._tables.fdb.entries(self._now_ns())):
            peer = self._device.peer_in_slot(owner)
            if peer is None and owner != LOCAL_PORT:
                continue        # a peer that was just removed
            macs.append({"mac": mac.hex(":"), "vlan": vlan, **_describe_owner(peer),
                         "static": is_static, "age_s": age_s})
        return {"macs": macs}

    def _add(self, request: dict[str, Any]) -> dict[str, Any]:
        mac, vlan = _address(request)
        try:
            self._tables.fdb.add(mac, vlan, self._owner(request), self._now_ns())
        except MemoryError:
            raise ConfigError("there is no room for that MAC address: flush the table, or start "
                              "the tunnel with a larger --mac-table") from None
        return {}

    def _remove(self, request: dict[str, Any]) -> dict[str, Any]:
        mac, vlan = _address(request)
        if not self._tables.fdb.remove(mac, vlan):
            raise ConfigError(f"{mac.hex(':')} is not known in VLAN {vlan}; `fastpump fdb show` "
                              "lists those that are")
        return {}

    def _flush(self, request: dict[str, Any]) -> dict[str, Any]:
        owner = self._owner(request) if "peer" in request else None
        return {"flushed": self._tables.fdb.flush(
            owner, with_static=request.get("static") is True)}

    def _owner(self, request: dict[str, Any]) -> int:
        key = request.get("peer")
        if key is None:
            return LOCAL_PORT
        peer = self._device.peers.get(keys.decode(str(key), "peer's public key"))
        if peer is None:
            raise ConfigError(f"there is no peer {key}; `fastpump status` lists the peers")
        return peer.slot


def _address(request: dict[str, Any]) -> tuple[bytes, int]:
    """(MAC address, VLAN) of a request."""
    vlan = request.get("vlan", 0)
    if not isinstance(vlan, int) or isinstance(vlan, bool) or not 0 <= vlan <= MAX_VLAN_IN_TAG:
        raise ConfigError(f"invalid VLAN {vlan!r}: must be 1 to {MAX_VLAN_IN_TAG}, or 0 for "
                          "untagged frames")
    return parse_mac(str(request.get("mac"))), vlan


def _describe_owner(peer: Peer | None) -> dict[str, str | None]:
    """A peer's slot, or the local port (None)."""
    if peer is None:
        return {"peer": None, "endpoint": None}
    return {"peer": keys.encode(peer.public_key),
            "endpoint": None if peer.endpoint is None else str(peer.endpoint)}


def show(answer: dict[str, Any]) -> str:
    """The table for a terminal."""
    lines = [f"{'MAC address':<17}  {'VLAN':>4}  {'age':>6}  side"]
    for entry in answer["macs"]:
        side = "this side" if entry["peer"] is None else entry["peer"] + (
            f" ({entry['endpoint']})" if entry["endpoint"] else "")
        age = "static" if entry["static"] else f"{entry['age_s']} s"
        lines.append(f"{entry['mac']}  {entry['vlan'] or '-':>4}  {age:>6}  {side}")
    return "\n".join(lines) if len(lines) > 1 else "no MAC address is known yet"
