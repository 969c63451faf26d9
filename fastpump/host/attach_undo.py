"""What joining a TAP to the host's Ethernet has changed (host/attach.py), and how to undo it.

A list of steps: a verb, the index of the interface, and what else undoing it takes. Each is in
the record before it is done, so undoing finds out what really is there, and leaves alone what
somebody changed since. The format of the record stays: the process that undoes it may be of a later
version than the one that wrote it.
"""

from __future__ import annotations

import ipaddress
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastpump import paths
from fastpump.constants import ETHERNET_MTU
from fastpump.host.undo_record import Record, namespace_cookie
from fastpump.netlink import bridges, links, redirects, routes
from fastpump.netlink.links import Link

log = logging.getLogger("fastpump")

SUFFIX = ".attach"
NO_MAC = "00:00:00:00:00:00"


@dataclass(slots=True)
class AttachState:
    """What is done, step by step."""

    steps: list[tuple[Any, ...]] = field(default_factory=list)
    record: Record | None = None

    def note(self, *step: Any) -> None:
        """Write down a step that is about to be done (or, with an index of its own, was)."""
        self.steps.append(step)
        if self.record is not None:
            self.record.write(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """For the record. Indices mean something in one network namespace only."""
        return {"namespace": namespace_cookie(), "steps": self.steps}

    @classmethod
    def from_json(cls, content: dict[str, Any], record: Record | None = None) -> AttachState:
        """What `to_json` gave; nothing if that was in another namespace, which is gone."""
        if content.get("namespace") != namespace_cookie():
            return cls(record=record)
        return cls([tuple(step) for step in content["steps"]], record)

    def undo(self) -> None:
        """Undo all steps, the last one first, as far as they are as we left them; errors go to
        the log."""
        while self.steps:
            verb, index, *more = self.steps.pop()
            try:
                link = links.find(index)
                if link is not None:
                    getattr(self, f"_undo_{verb}")(link, *more)
            except Exception as error:      # whatever it is, the other steps are undone
                log.warning("%(error)s", {"error": error})
        if self.record is not None:
            self.record.remove()
            self.record = None

    def _undo_bridge(self, link: Link) -> None:
        left = [port.name for port in bridges.ports(link)]
        if left:
            log.info("the bridge %(bridge)s stays, since %(ports)s is in it; `ip link delete "
                     "%(bridge)s` removes it", {"bridge": link.name, "ports": " and ".join(left)})
        elif link.is_bridge:
            links.delete(link)

    def _undo_empty(self, link: Link, mac: str, mtu: int) -> None:
        """With its last port a bridge loses address and MTU, unless somebody set them."""
        if bridges.ports(link):
            return
        if link.mac == NO_MAC:
            links.set_mac(link, mac)
        if link.mtu == ETHERNET_MTU != mtu:       # what a bridge without ports has
            links.set_mtu(link, mtu)

    def _undo_port(self, link: Link, bridge: int) -> None:
        if link.master == bridge:
            bridges.remove_port(link)

    def _undo_up(self, link: Link, master: int, addresses: list[str],
                 bridged: list[int]) -> None:
        """Unless somebody uses it for something else meanwhile."""
        if (link.master, addresses_of(link), ports_of(link)) == (master, addresses, bridged):
            links.set_down(link)

    def _undo_address(self, link: Link, text: str) -> None:
        ours = ipaddress.ip_interface(text)
        others = [address for address in routes.addresses_of(link.index) if address != ours]
        routes.change_addresses(link.index, [ours], others)

    def _undo_ingress(self, link: Link) -> None:
        if redirects.has_qdisc(link) and not redirects.remove_unused_qdisc(link):
            log.info("the clsact qdisc of %(name)s stays, since there are filters in it",
                     {"name": link.name})

    def _undo_redirect(self, link: Link, target: int) -> None:
        for redirect in redirects.read(link):
            if redirect.is_dangling or redirect.target == target:
                redirects.remove(link, redirect)


def recover(tap: str | None = None) -> bool:
    """Undo what killed processes left behind in this network namespace, or only the one whose
    interface was called so; whether there was anything."""
    was_any = False
    for path in sorted(paths.runtime_dir().glob(f"*{SUFFIX}")):
        if tap is not None and path.name.rpartition("@")[0] != tap:
            continue
        record = Record.take(path)
        if record is None:
            continue        # its process lives
        try:
            state = AttachState.from_json(record.read(), record)
        except (KeyError, TypeError) as error:
            log.warning("%(path)s cannot be read (%(error)s): what it records is not undone",
                        {"path": path, "error": error})
            state = AttachState(record=record)
        if state.steps:
            log.warning("%(name)s was killed when it last ran; undoing what it left behind",
                        {"name": path.name.rpartition("@")[0]})
            was_any = True
        state.undo()
    return was_any


def record_file(tap: str, tap_index: int) -> Path:
    """Where the record is. Two living interfaces may have had the same name, but not the same
    index."""
    return paths.runtime_dir() / f"{tap}@{tap_index}{SUFFIX}"


def addresses_of(link: Link) -> list[str]:
    """The addresses that somebody gave an interface, in the order of their text."""
    return sorted(map(str, routes.addresses_of(link.index)))


def ports_of(link: Link) -> list[int]:
    """The indices of a bridge's ports; none of another interface."""
    return sorted(port.index for port in bridges.ports(link)) if link.is_bridge else []
