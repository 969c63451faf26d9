"""What --gateway (Gateway) says: which parts of being a gateway are the tunnel's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fastpump.errors import invalid
from fastpump.tun.queues import check_name

_WORDS = ("forward", "nat", "mss")
_SPECIAL = '"\\*,#'     # means something in nftables, or in a file


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts. `ways_out`: the interfaces that are forwarded to and from, and masqueraded on;
    none named: all."""

    forwards: bool = False
    masquerades: bool = False
    clamps: bool = False
    ways_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, parts: Iterable[str]) -> Gateway:
        """From the option's value."""
        parts = tuple(dict.fromkeys(parts))
        names = tuple(part.partition(":")[2] for part in parts if part.startswith("nat:"))
        return cls("forward" in parts, bool(names) or "nat" in parts, "mss" in parts, names)

    def __bool__(self) -> bool:
        return self.forwards or self.masquerades or self.clamps


def parse_part(text: str) -> str:
    """forward, nat, nat:IFACE or mss."""
    word, colon, interface = text.partition(":")
    if word not in _WORDS or (colon and (word != "nat" or not interface)):
        raise invalid("part of a gateway", text, "forward, nat, nat:IFACE or mss")
    if colon:
        check_name(interface)
        if any(char in _SPECIAL for char in interface):
            raise invalid("interface name for nat", interface,
                          f"one without {' '.join(_SPECIAL)}; rename the interface")
    return text
