"""The tunnel as a gateway: what it takes on the host to forward packets between the tunnel and the
other interfaces.

First the nftables table (host/gateway_table.py), then forwarding (host/forwarding.py): nothing
leaves before it is masqueraded. All of it is in a record, `<interface>@<index>.gateway`, before it
is done, and undone in the reverse order however the process ends. If it was killed, `recover` does
that: at the next start of a tunnel of that name or of another gateway, and at `down`. But the table
of a killed one that masquerades stays until its successor's takes its place, in one step: in
between, this host would answer for the tunnel's networks, and end their connections. So it is when
a tunnel is restarted (`down --keep-closed`).

Records are the only place where tunnels learn of each other's settings. Whoever reads those of
others, and changes a setting or its record by what they say, holds the lock of their directory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import partial
from typing import Any

from fastpump import paths
from fastpump.config.gateway import Gateway
from fastpump.config.wording import OptionError
from fastpump.errors import SystemSetupError
from fastpump.host import forwarding, gateway_table
from fastpump.host.forwarding import GATEWAY
from fastpump.host.nft_table import NftTable
from fastpump.host.undo_record import Record, locked, namespace_cookie
from fastpump.netlink import links
from fastpump.netlink.links import Link

log = logging.getLogger("fastpump")


def set_up(gateway: Gateway, index: int, versions: Collection[int],
           cleanup: ExitStack, leaves_all: Callable[[], bool]) -> Callable[[], list[str]]:
    """Make the host a gateway for the tunnel of that interface, which carries these IP versions;
    how to undo it goes on the stack, unless all is to be left then for a successor. Gives what
    restores it when others have removed some of it: that says what that was, in words. OptionError
    or SystemSetupError."""
    tun = links.get(index)
    for name in gateway.ways_out:
        if links.find(name) is None:
            raise OptionError(f"<gateway=nat:{name}>: there is no interface {name}; `ip link` "
                              "lists those that there are")
    interfaces = interfaces_of(gateway, tun)
    recover(tun.name, keeps_table=gateway.masquerades)
    recover()
    path = paths.runtime_dir() / f"{tun.name}@{tun.index}{GATEWAY}"
    record = Record.take(path)
    if record is None:
        raise SystemSetupError(f"{path} is locked by another process; end that first")
    table = gateway_table.table(tun.name)

    def end() -> None:
        if leaves_all():
            table.release()
            record.write({**record.read(), "has_ended": True})
            record.release()
        else:
            _undo(record, table)

    cleanup.callback(end)
    has_table = gateway.masquerades or gateway.clamps
    content: dict[str, Any] = {"namespace": namespace_cookie(), "has_table": has_table}
    record.write(content)
    if has_table:
        table.make(gateway_table.chains(tun.index, gateway))
    if gateway.forwards:
        with locked(path.parent):
            steps = forwarding.plan(interfaces, versions, forwarding.steps_of_others(record))
            record.write(content | {"steps": [step.to_json() for step in steps]})
            forwarding.switch_on(steps, "<gateway=forward>")
    hindrance = gateway_table.hindrance(tun.name, tun.index, versions)
    if hindrance is not None:
        log.warning("%(warning)s", {"warning": hindrance})
    return partial(_restore, gateway, tun, versions, record, table)


def _restore(gateway: Gateway, tun: Link, versions: Collection[int], record: Record,
             table: NftTable) -> list[str]:
    """Put back what others have removed, and forward from interfaces that are new, too."""
    restored = []
    needed = {"nat"} if gateway.masquerades else set()
    needed |= {"mss"} if gateway.clamps else set()
    if not needed <= gateway_table.parts_in(table.name):
        table.make(gateway_table.chains(tun.index, gateway))
        restored.append("the gateway's table")
    if gateway.forwards:
        _switch_on_new(gateway, tun, versions, record)
    off = forwarding.undone(forwarding.steps_in(record.read()))
    if off:
        forwarding.switch_on(off, "<gateway=forward>")
        restored.append("forwarding")
    return restored


def _switch_on_new(gateway: Gateway, tun: Link, versions: Collection[int], record: Record) -> None:
    with locked(record.path.parent):
        content = record.read()
        steps = forwarding.steps_in(content)
        known = {step.setting for step in steps}
        new = [step for step in forwarding.plan(interfaces_of(gateway, tun), versions,
                                                forwarding.steps_of_others(record))
               if step.setting not in known]
        if new:
            record.write(content | {"steps": [step.to_json() for step in (*steps, *new)]})
            forwarding.switch_on(new, "<gateway=forward>")


def interfaces_of(gateway: Gateway, tun: Link) -> list[int]:
    """The interfaces that packets of a gateway come from: the tunnel's, and the ways out that there
    are. What is in a bridge is no way out, the bridge is."""
    there = links.read_all()
    bridges = {link.index for link in there if link.is_bridge}
    return [tun.index, *(link.index for link in there if link.index != tun.index and (
        link.name in gateway.ways_out if gateway.ways_out
        else not link.is_loopback and link.master not in bridges))]


def recover(name: str | None = None, *, keeps_table: bool = False) -> bool:
    """Undo what killed processes left behind in this network namespace, or whatever the one left
    whose interface was called so, also for its successor; whether there was anything.
    `keeps_table`: but for its table, which is replaced at once."""
    was_any = False
    for path in sorted(paths.runtime_dir().glob(f"*{GATEWAY}")):
        owner = path.name.rpartition("@")[0]
        if name is not None and owner != name:
            continue
        record = Record.take(path)
        if record is None:
            continue        # its process lives
        said = record.read()
        if name is None and said.get("has_ended", False):
            record.release()        # left for its successor, which may be about to start
            continue
        was_any |= bool(said)
        if said and not said.get("has_ended", False):
            log.warning("%(name)s was killed when it last ran; undoing what it left behind",
                        {"name": owner})
        _undo(record, None if keeps_table else gateway_table.table(owner))
    return was_any


def _undo(record: Record, table: NftTable | None) -> None:
    """Undo what a record says, and remove it; errors go to the log."""
    said = record.read()
    with locked(record.path.parent):
        if said.get("namespace") == namespace_cookie():     # else all of it is gone
            _tolerate(lambda: forwarding.switch_off(forwarding.steps_in(said),
                                                    forwarding.steps_of_others(record)))
            if table is not None and said.get("has_table", False):
                _tolerate(table.remove)
        record.remove()


def _tolerate(step: Callable[[], None]) -> None:
    try:
        step()
    except Exception as error:      # whatever it is, the other steps are undone
        log.warning("%(error)s", {"error": error})
