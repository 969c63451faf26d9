"""What a tunnel has left behind that did not end by `down`."""

from __future__ import annotations

import logging

from fastpump.cli import hooks
from fastpump.host.network import find_leftover

log = logging.getLogger("fastpump")


def recover(name: str, *, takes_over: bool, masquerades: bool = False) -> bool:
    """Undo what the last tunnel of that name left behind, if it did not end by `down`; whether
    there was anything. `takes_over`: but for what keeps packets from leaving in clear, and what
    belongs to that; the next tunnel of that name, which is about to start, takes it over.
    `masquerades`: as find_leftover has it. SystemSetupError if its process lives."""
    left = find_leftover(name, masquerades=masquerades)
    if left is None:
        return False
    if left.is_empty:
        left.forget()
        return False
    is_kept = takes_over and left.is_closed
    if left.was_killed:
        log.warning("the last tunnel %(name)s was killed; what it left behind is %(fate)s now",
                    {"name": name, "fate": "taken over" if is_kept else "undone"})
    elif left.is_left:
        log.info("the last tunnel %(name)s was stopped by `down --keep-closed`; what it left is "
                 "%(fate)s now", {"name": name, "fate": "taken over" if is_kept else "undone"})
    else:
        log.warning("the last tunnel %(name)s ended by itself, or later than `down` waited for it; "
                    "what was not run yet of PreDown and PostDown is run now", {"name": name})
    hooks.run_all(left.commands.pre_down, name, left.commands)
    if not is_kept:
        left.undo()
    hooks.run_all(left.commands.post_down, name, left.commands)
    if is_kept:
        left.keep()
    else:
        left.forget()
    return True
