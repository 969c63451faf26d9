"""The commands that `down` runs, in the record of a tunnel that is up (network.py): whoever undoes
what a killed process left behind runs them, though the file may be another by then."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class DownCommands:
    """What the file said when it was last read. Firewall rules of these commands are often made of
    what wg(8) says of the interface: hence `fwmark` and `listen_port`, 0 for none."""

    file: str = ""
    """Its path."""
    pre_down: tuple[str, ...] = ()
    post_down: tuple[str, ...] = ()
    fwmark: int = 0
    listen_port: int = 0

    def __bool__(self) -> bool:
        return bool(self.pre_down or self.post_down)

    def to_json(self) -> dict[str, Any]:
        """For the record."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> DownCommands:
        """What `to_json` gave; ValueError if it is anything else."""
        try:
            pre_down, post_down = (tuple(map(str, content[each])) for each in (
                "pre_down", "post_down"))
            return cls(str(content["file"]), pre_down, post_down, int(content["fwmark"]),
                       int(content["listen_port"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"these are no commands: {error!r}") from None
