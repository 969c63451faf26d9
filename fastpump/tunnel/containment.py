"""An error of one message costs that message.

What the supervisor handles one by one (a worker's event, a control packet, a handshake message, a
timer of a peer) it handles inside of a Containment. Whoever finds a bug in it by a message that he
can send must not end the tunnel for everybody else: the error is logged and counted, and the next
message is handled. What a message would have changed is put right where it is changed: the device
looks at the peer again, slots that were taken are given back.
"""

from __future__ import annotations

import logging
from types import TracebackType

log = logging.getLogger("fastpump.supervisor")


class Containment:
    """A context manager, to be entered as often as needed; `count` is how many errors it held.
    What ends a program or a task (KeyboardInterrupt, CancelledError) passes."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None,
                 _traceback: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        self.report(error)
        return True

    def report(self, error: BaseException) -> None:
        """Log and count an error that was caught elsewhere."""
        self.count += 1
        log.error("internal error: %(error)r; this is a bug, please report it", {"error": error},
                  exc_info=error)
