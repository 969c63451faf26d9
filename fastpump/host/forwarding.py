"""Switch forwarding on for some interfaces, and off again.

IPv4 and IPv6 differ. IPv4: net.ipv4.conf.X.forwarding of the interface that a packet comes from
decides. IPv6: net.ipv6.conf.X.forwarding only says whether the host is a router there; what decides
is net.ipv6.conf.all.forwarding, or since Linux 6.17 net.ipv6.conf.X.force_forwarding. With the
latter nothing else changes. The former makes the host a router on all interfaces, where it takes no
router advertisements unless accept_ra is 2, and the routes that it has learned so far are removed
at once (addrconf_fixup_forwarding()). So wherever it takes some, accept_ra becomes 2 before, and
what it was after.

Several tunnels may need the same setting. Each has it in its record, with the value from before the
first of them (`Step`); the last one to end restores that. A value that somebody else changed stays
as it is; so does what was switched on for all interfaces meanwhile.

Accepted limits: what is switched on for an interface is so for all packets that come from there,
also those that do not go to the tunnel; a firewall may drop them. An interface that comes later,
where all are routers, takes no router advertisements unless somebody sets its accept_ra.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastpump.config.wording import OptionError
from fastpump.host.undo_record import Record, namespace_cookie

log = logging.getLogger("fastpump")

SYSCTLS = Path("/proc/sys")
ALL = 0     # in place of an interface's index
FORWARDING, FORCE_FORWARDING, ACCEPT_RA = "forwarding", "force_forwarding", "accept_ra"
GATEWAY, GUESTS = ".gateway", ".guests"     # records that may have steps
_FOR_CONTAINERS = {4: "net.ipv4.ip_forward=1", 6: "net.ipv6.conf.all.forwarding=1"}


class Setting(NamedTuple):
    """net.ipvVERSION.conf.X.KEY, X being the interface with that index."""

    version: int
    interface: int
    key: str

    @property
    def name(self) -> str | None:
        """As sysctl(8) has it, but for '.' in the interface's name; None if that is gone."""
        try:
            where = socket.if_indextoname(self.interface) if self.interface else "all"
        except OSError:
            return None
        return f"net/ipv{self.version}/conf/{where}/{self.key}"

    def read(self) -> int | None:
        """The value; None if there is none."""
        name = self.name
        try:
            return None if name is None else int((SYSCTLS / name).read_text())
        except (OSError, ValueError):
            return None

    def write(self, value: int) -> None:
        """Change it; OSError."""
        if (name := self.name) is not None:
            (SYSCTLS / name).write_text(str(value))


class Step(NamedTuple):
    """A setting that is changed, for the record: what it was before, what we make it, and what the
    same setting for all interfaces was before."""

    setting: Setting
    before: int
    ours: int
    of_all: int | None

    @classmethod
    def of(cls, setting: Setting, ours: int, others: Mapping[Setting, Step]) -> Step | None:
        """How to make a setting `ours`; None if it is so without any tunnel, or does not exist."""
        if (other := others.get(setting)) is not None:
            return other._replace(ours=ours)
        before = setting.read()
        if before is None or before == ours:
            return None
        return cls(setting, before, ours, setting._replace(interface=ALL).read())

    def to_json(self) -> list[int | str | None]:
        """For a record."""
        return [*self.setting, self.before, self.ours, self.of_all]

    @classmethod
    def from_json(cls, content: list[Any]) -> Step:
        """What `to_json` gave."""
        return cls(Setting(*content[:3]), *content[3:])


def plan(interfaces: Sequence[int], versions: Collection[int],
         others: Mapping[Setting, Step]) -> list[Step]:
    """What it takes to forward packets of these IP versions from these interfaces, by their
    indices, the tunnel's first; `others`: the steps of other tunnels."""
    steps: list[Step | None] = []
    if 4 in versions:
        steps += [Step.of(Setting(4, index, FORWARDING), 1, others) for index in interfaces]
    if 6 in versions:
        steps += _plan_ipv6(interfaces, others)
    return [step for step in steps if step is not None]


def _plan_ipv6(interfaces: Sequence[int], others: Mapping[Setting, Step]) -> list[Step | None]:
    if Setting(6, interfaces[0], "disable_ipv6").read() != 0:
        return []       # a host without IPv6, or a tunnel that may have none
    everywhere = Setting(6, ALL, FORWARDING)
    if everywhere.read() == 1 and everywhere not in others:
        return []
    if Setting(6, ALL, FORCE_FORWARDING).read() is not None:
        return [Step.of(Setting(6, index, FORCE_FORWARDING), 1, others) for index in interfaces]
    steps: list[Step | None] = []
    for index, _ in socket.if_nameindex():
        if _takes_advertisements(index) or Setting(6, index, ACCEPT_RA) in others:
            steps.append(Step.of(Setting(6, index, ACCEPT_RA), 2, others))
        # Where the host is a router by itself, it is to be one again: with the setting for all
        # interfaces goes that of each.
        own = Setting(6, index, FORWARDING)
        if own in others:
            steps.append(others[own])
        elif everywhere not in others and own.read() == 1:
            steps.append(Step(own, 1, 0, everywhere.read()))
    return [*steps, Step.of(everywhere, 1, others)]


def _takes_advertisements(index: int) -> bool:
    """While it is a host there, but not as a router; ipv6_accept_ra() in include/net/ipv6.h."""
    return (Setting(6, index, ACCEPT_RA).read() == 1
            and Setting(6, index, FORWARDING).read() == 0)


def names_of_off(interfaces: Sequence[int], versions: Collection[int]) -> list[str]:
    """The settings, as sysctl(8) has them, that keep packets of these IP versions from being
    forwarded from these interfaces, the tunnel's first."""
    needed: list[Setting] = []
    if 4 in versions:
        needed += [Setting(4, index, FORWARDING) for index in interfaces]
    if 6 in versions and Setting(6, interfaces[0], "disable_ipv6").read() == 0 \
            and Setting(6, ALL, FORWARDING).read() != 1:
        is_by_interface = Setting(6, ALL, FORCE_FORWARDING).read() is not None
        needed += [Setting(6, index, FORCE_FORWARDING) for index in interfaces] if is_by_interface \
            else [Setting(6, ALL, FORWARDING)]
    return [setting.name.replace("/", ".") for setting in needed
            if setting.read() == 0 and setting.name is not None]


def undone(steps: Iterable[Step]) -> list[Step]:
    """Those whose settings somebody else has changed back, or otherwise."""
    return [step for step in steps if step.before < step.ours
            and step.setting.read() not in (step.ours, None)]


def switch_on(steps: Iterable[Step], option: str) -> None:
    """Make the settings what the steps say; OptionError for one that cannot be changed, though
    that option needs it."""
    for setting, before, ours, _ in steps:
        if setting.read() == ours or before > ours:
            continue    # the latter is only to be restored
        try:
            setting.write(ours)
        except OSError as error:
            if setting.read() is None:
                continue        # the interface has just gone
            sysctl = (setting.name or "").replace("/", ".")
            raise OptionError(
                f"{option} needs {sysctl} = {ours}, which cannot be set here "
                f"({error.strerror}); set {_FOR_CONTAINERS[setting.version]} where this container "
                f"is started (--sysctl {_FOR_CONTAINERS[setting.version]}), or leave out {option}"
            ) from None


def switch_off(steps: Iterable[Step], others: Collection[Setting]) -> None:
    """Restore what the settings were, the last one first, but for those that others need."""
    for setting, before, ours, of_all in reversed(list(steps)):
        if setting in others or setting.read() != ours:
            continue
        if setting.interface and setting._replace(interface=ALL).read() != of_all:
            continue        # it was set for all interfaces meanwhile
        try:
            setting.write(before)
        except OSError as error:
            if setting.read() is None:
                continue
            log.warning("%(setting)s stays %(value)d: %(error)s",
                        {"setting": setting.name, "value": ours, "error": error.strerror})


def steps_in(said: Mapping[str, Any]) -> list[Step]:
    """The steps in a record."""
    return [Step.from_json(step) for step in said.get("steps", [])]


def steps_of_others(own: Record) -> dict[Setting, Step]:
    """What the other records of this network namespace say that was changed, also those of killed
    processes."""
    found: dict[Setting, Step] = {}
    for path in own.path.parent.iterdir():
        record = (Record.peek(path) if path.suffix in (GATEWAY, GUESTS) and path != own.path
                  else None)
        if record is not None:
            said = record.read()
            record.release()
            if said.get("namespace") == namespace_cookie():
                found |= {step.setting: step for step in steps_in(said)}
    return found
