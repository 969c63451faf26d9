"""Go to the background: the foreground process returns when the background one is ready.

Until then the background process logs to the terminal; afterwards to syslog, if there is
one. Its standard streams are /dev/null from the start, so that neither it nor its workers
keep a pipe open that the caller reads.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
from collections.abc import Callable
from pathlib import Path

from fastpump.errors import FastpumpError, SystemSetupError
from fastpump.process import logs

log = logging.getLogger("fastpump")

SYSLOG = Path("/dev/log")
_READY = b"\0"


def detach(work: Callable[[Callable[[], None]], None]) -> int:
    """Run `work(on_ready)` in a process and session of its own; its pid, once it has called
    `on_ready`. SystemSetupError with its error if it ends before."""
    ready_in, ready_out = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(ready_in)
        _run(work, ready_out)
    os.close(ready_out)
    with os.fdopen(ready_in, "rb") as pipe:
        message = pipe.read()
    if message == _READY:
        return pid
    os.waitpid(pid, 0)
    raise SystemSetupError(message.decode(errors="replace") or "it ended before it was ready")


def _run(work: Callable[[Callable[[], None]], None], ready_out: int) -> None:
    """The background process; does not return."""
    status, is_ready = 1, False
    terminal = os.fdopen(os.dup(2), "w")
    for handler in log.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(terminal)

    def on_ready() -> None:
        nonlocal is_ready
        is_ready = True
        _log_to_syslog()
        terminal.close()
        os.write(ready_out, _READY)
        os.close(ready_out)

    try:
        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        work(on_ready)
        status = 0
    except (FastpumpError, OSError) as error:
        if is_ready:
            log.error("%(error)s", {"error": error})
        else:
            os.write(ready_out, str(error).encode())
    except BaseException:
        log.exception("this is a bug, please report it")
    finally:
        os._exit(status)


def _log_to_syslog() -> None:
    log.handlers = [logging.NullHandler()]
    if SYSLOG.exists():
        handler = logging.handlers.SysLogHandler(str(SYSLOG))
        handler.ident = f"fastpump[{os.getpid()}]: "
        handler.setFormatter(logs.syslog_formatter())
        log.handlers.append(handler)
