"""The three keypairs of a peer and how they take turns (WireGuard paper, section 6.2;
add_new_keypair() of the kernel's noise.c).

current   what we send with
previous  what the peer may still be sending with
next      a responder's newest: becomes current when the peer proves that it has it
"""

from __future__ import annotations

from dataclasses import dataclass

from fastpump._core import Secret


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Keypair:
    """One session, and where the data plane has its keys: they are nowhere else."""

    slot: int
    local_index: int
    remote_index: int
    is_initiator: bool
    created_ns: int
    exported: Secret
    """What lanes' keys are made of."""


@dataclass(slots=True)
class Keypairs:
    """Each change returns the keypairs that fell out, for the caller to retire."""

    current: Keypair | None = None
    previous: Keypair | None = None
    next: Keypair | None = None

    def add_as_initiator(self, new: Keypair) -> list[Keypair]:
        """We hold the response, so the peer has the keys: use them at once."""
        dropped = [self.previous]
        if self.next is not None:
            # The peer initiated too, and may be sending with that by now.
            dropped.append(self.current)
            self.previous, self.next = self.next, None
        else:
            self.previous = self.current
        self.current = new
        return [keypair for keypair in dropped if keypair is not None]

    def add_as_responder(self, new: Keypair) -> list[Keypair]:
        """Our response may be lost: wait for the peer's first message."""
        dropped = [self.next, self.previous]
        self.next, self.previous = new, None
        return [keypair for keypair in dropped if keypair is not None]

    def confirm(self, slot: int) -> list[Keypair] | None:
        """The first message came on the keypair in `slot`; None if it is not `next`."""
        if self.next is None or self.next.slot != slot:
            return None
        dropped = [self.previous]
        self.previous, self.current, self.next = self.current, self.next, None
        return [keypair for keypair in dropped if keypair is not None]

    def by_index(self, local_index: int) -> Keypair | None:
        """The keypair with a receiver index, if it is still one of the three."""
        return next((keypair for keypair in (self.current, self.next, self.previous)
                     if keypair is not None and keypair.local_index == local_index), None)

    def clear(self) -> list[Keypair]:
        """Forget all keys."""
        dropped = [self.current, self.previous, self.next]
        self.current = self.previous = self.next = None
        return [keypair for keypair in dropped if keypair is not None]
