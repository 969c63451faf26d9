"""The kernel's refusal of a netlink request."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from pyroute2.netlink.exceptions import NetlinkError

from fastpump.errors import SystemSetupError


class Refusal(SystemSetupError):
    """A request that failed: "FAILURE: REASON". `errno` is the reason as a number."""

    def __init__(self, failure: str, errno: int, reason: str) -> None:
        super().__init__(f"{failure}: {reason}")
        self.failure = failure
        self.errno = errno
        self.reason = reason


@contextlib.contextmanager
def explaining(failure: str) -> Iterator[None]:
    """Raise what goes wrong in the block as a Refusal that begins with `failure`."""
    try:
        yield
    except NetlinkError as error:
        raise Refusal(failure, error.code, str(error.args[1])) from None
    except OSError as error:
        number = error.errno or 0
        raise Refusal(failure, number, os.strerror(number) if number else str(error)) from None
