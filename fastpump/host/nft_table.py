"""An nftables table of ours, of the family inet: made whole, and compared with what it was."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from fastpump.errors import SystemSetupError
from fastpump.host import programs
from fastpump.netlink import nft_owner


@dataclass(frozen=True, slots=True)
class Chain:
    """`hook`: what stands in its braces before the rules."""

    hook: str
    rules: tuple[str, ...]


def run_nft(script: str, purpose: str, *options: str) -> str:
    """Run a script of nft, all of it or nothing; what it prints. SystemSetupError."""
    return programs.run(["nft", *options, "-f", "-"], script, "nftables", purpose)


class NftTable:
    """One table. An owned one cannot be changed by others while its owner lives, where the kernel
    has that (netlink/nft_owner.py)."""

    def __init__(self, name: str, purpose: str, *, is_owned: bool = False) -> None:
        """`purpose`: whose need of nft an error tells of."""
        self.name = name
        self._purpose = purpose
        self._is_owned = is_owned
        self._owner: socket.socket | None = None
        self._made = ""
        """As nft lists it."""

    def make(self, chains: Mapping[str, Chain]) -> None:
        """Make it, in place of what it was before: all of it at once, or nothing."""
        self.release()
        if self._is_owned:
            self._owner = nft_owner.claim(self.name)
            self.release()      # it is there now, and everybody may change it
        there = self._listing()
        lines = [f"add table inet {self.name}"] * (there is None)
        lines += [f"add chain inet {self.name} {name} {{ {chain.hook}; }}"
                  for name, chain in chains.items()]
        lines += [f"flush table inet {self.name}"]
        lines += [f"add rule inet {self.name} {name} {rule}"
                  for name, chain in chains.items() for rule in chain.rules]
        run_nft("\n".join((*lines, "")), self._purpose)
        if self._is_owned:
            self._owner = nft_owner.claim(self.name)
        self._made = self._listing() or ""

    def is_as_made(self) -> bool:
        """Whether nobody has changed or removed it."""
        return bool(self._made) and self._listing() == self._made

    def _listing(self) -> str | None:
        """As nft lists it, less the counters; None if it is not there."""
        try:
            return run_nft(f"list table inet {self.name}\n", self._purpose, "-s")
        except SystemSetupError as error:
            if not _is_absence(error):
                raise
            return None

    def release(self) -> None:
        """Let others change it; it stays."""
        if self._owner is not None:
            self._owner.close()
            self._owner = None

    def remove(self) -> None:
        """Remove it, if it is there."""
        self.release()
        self._made = ""
        try:
            run_nft(f"delete table inet {self.name}\n", self._purpose)
        except SystemSetupError as error:
            if not _is_absence(error):
                raise


def _is_absence(error: SystemSetupError) -> bool:
    return "No such file" in str(error)
