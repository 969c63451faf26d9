"""Guests behind routed TAPs that reach other networks by the host's addresses: `tap create --nat`.

A TAP stays when no process has it, so what its guest needs stays as well, until `tap delete`. All
guests of a network namespace share one nftables table, `fastpump_guests`, in which a set has the
indices of their TAPs, and one record, `taps.guests`: the same indices, and what was changed to
forward (host/forwarding.py). Both are made anew when TAPs come and go, under the lock of the
records' directory; with the last guest they go. A TAP that went otherwise counts no more then; its
index is no other interface's.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from fastpump import paths
from fastpump.errors import SystemSetupError
from fastpump.host import forwarding, gateway_table
from fastpump.host.forwarding import Step
from fastpump.host.undo_record import Record, locked, namespace_cookie
from fastpump.netlink import links

log = logging.getLogger("fastpump")

TABLE = "fastpump_guests"
RECORD = f"taps{forwarding.GUESTS}"


def add(guests: Sequence[int], versions: Collection[int]) -> None:
    """Forward and masquerade what comes from these TAPs, by their indices; OptionError or
    SystemSetupError. What was done until then is undone by `remove`."""
    there = links.read_all()
    bridges = {link.index for link in there if link.is_bridge}
    with locked(paths.runtime_dir()):
        record = _take()
        try:
            said = _read(record)
            known = _living(said["guests"])
            ways_out = [link.index for link in there if not link.is_loopback
                        and link.master not in bridges and link.index not in (*known, *guests)]
            old = forwarding.steps_in(said)
            steps = forwarding.plan([*guests, *ways_out], versions, {
                **forwarding.steps_of_others(record), **{step.setting: step for step in old}})
            # What is set for a TAP itself goes with it.
            noted = dict.fromkeys([*old, *(step for step in steps
                                           if step.setting.interface not in guests)])
            _write(record, [*known, *guests], noted)
            gateway_table.make_for_guests(TABLE, [*known, *guests])
            forwarding.switch_on(steps, "--nat")
        finally:
            record.release()
    name = socket.if_indextoname(guests[0])
    hindrance = gateway_table.hindrance(name, guests[0], versions)
    if hindrance is not None:
        log.warning("%(warning)s%(more)s", {"warning": hindrance, "more": (
            "; and so for each TAP" if len(guests) > 1 else "")})


def remove(guests: Collection[int]) -> None:
    """What the guests of these TAPs had is theirs no more; if no other has it, it is undone."""
    if not (paths.runtime_dir() / RECORD).exists():
        return
    with locked(paths.runtime_dir()):
        record = _take()
        said = _read(record)
        left = [index for index in _living(said["guests"]) if index not in guests]
        steps = forwarding.steps_in(said)
        if left:
            try:
                gateway_table.make_for_guests(TABLE, left)
                _write(record, left, steps)
            finally:
                record.release()
            return
        try:
            forwarding.switch_off(steps, forwarding.steps_of_others(record))
            if said["guests"]:
                gateway_table.remove_for_guests(TABLE)
        finally:
            record.remove()     # a table that cannot be removed has no guests


def _take() -> Record:
    """Whoever has the lock of the directory has the record, too."""
    record = Record.take(paths.runtime_dir() / RECORD)
    if record is None:
        raise SystemSetupError(f"{paths.runtime_dir() / RECORD} is locked by another program; end "
                               "that first")
    return record


def _read(record: Record) -> dict[str, Any]:
    said = record.read()
    return said if said.get("namespace") == namespace_cookie() and "guests" in said else {
        "guests": [], "steps": []}


def _write(record: Record, guests: Iterable[int], steps: Iterable[Step]) -> None:
    record.write({"namespace": namespace_cookie(), "guests": list(guests),
                  "steps": [step.to_json() for step in steps]})


def _living(guests: Iterable[int]) -> list[int]:
    there = {index for index, _ in socket.if_nameindex()}
    return [index for index in guests if index in there]
