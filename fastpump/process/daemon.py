"""Go to the background: the foreground process returns when the background one is ready.

Until then the background process logs to the terminal; afterwards to syslog, if there is
one. Its standard streams are /dev/null from the start, and what else its caller had open is closed,
so that neither it nor its workers keep a pipe open that the caller reads, a lock that it holds, or
a mount busy.

The two talk by messages on a pair of sockets:

    background -> foreground    TURN          do your part, and answer GO_ON
                                READY         and that is all
                                ERROR + text  it ends
    foreground -> background    GO_ON

Either end is closed when its process ends, which the other one takes for a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from fastpump.errors import FastpumpError, SystemSetupError
from fastpump.process import logs

log = logging.getLogger("fastpump")

_TURN, _READY, _ERROR, _GO_ON = b"T", b"R", b"E", b"G"
_MAX_MESSAGE = 1 << 16


class Foreground:
    """The process that waits in the foreground, as the background process sees it."""

    def __init__(self, way: socket.socket, terminal: TextIO) -> None:
        """`terminal`: what the log goes to until we are ready."""
        self._way = way
        self._terminal = terminal
        self.is_waiting = True

    async def take_turn(self) -> None:
        """Wait until it has done its part; SystemSetupError if that failed."""
        self._way.send(_TURN)
        self._way.setblocking(False)
        if await asyncio.get_running_loop().sock_recv(self._way, 1) != _GO_ON:
            raise SystemSetupError("the command that started this has ended")

    def ready(self) -> None:
        """Let it return."""
        self.is_waiting = False
        logs.to_syslog()
        self._terminal.close()
        self._way.setblocking(True)
        self._way.send(_READY)
        self._way.close()

    def fail(self, error: str) -> None:
        """Let it fail with that error."""
        with contextlib.suppress(OSError):      # it has ended
            self._way.send(_ERROR + error.encode(errors="replace")[:_MAX_MESSAGE - 1])


def detach(work: Callable[[Foreground], None],
           on_turn: Callable[[], None] = lambda: None) -> int:
    """Run `work` in a process and session of its own; its pid, once it has called
    `Foreground.ready`. `on_turn` is called here when it wants that; if it raises, the process
    ends. SystemSetupError with the process's error if it ends before it is ready."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        here.close()
        _run(work, there)
    there.close()
    is_our_turn = False
    try:
        with here:
            while (message := _receive(here)) == _TURN:
                is_our_turn = True
                on_turn()
                with contextlib.suppress(BrokenPipeError):
                    here.send(_GO_ON)
                is_our_turn = False
    except BaseException:
        if not is_our_turn:     # else it waits for us, and ends as a start that failed
            os.kill(pid, signal.SIGTERM)    # it may wait for something that never comes
        os.waitpid(pid, 0)      # what it made is undone
        raise
    if message == _READY:
        return pid
    os.waitpid(pid, 0)
    raise SystemSetupError(message.removeprefix(_ERROR).decode(errors="replace")
                           or "it ended before it was ready")


def _receive(way: socket.socket) -> bytes:
    try:
        return way.recv(_MAX_MESSAGE)
    except ConnectionResetError:
        return b""          # it ended, and has not read what we sent


def _run(work: Callable[[Foreground], None], way: socket.socket) -> None:
    """The background process; does not return."""
    status = 1
    terminal = os.fdopen(os.dup(2), "w")
    foreground = Foreground(way, terminal)
    for handler in log.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(terminal)
    try:
        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        _close_inherited()
        work(foreground)
        status = 0
    except (FastpumpError, OSError) as error:
        if foreground.is_waiting:
            foreground.fail(str(error))
        else:
            log.error("%(error)s", {"error": error})
    except (SystemExit, KeyboardInterrupt):     # by a signal, whose handler raised it (signals.py)
        if foreground.is_waiting:
            foreground.fail("it was ended by a signal before it was ready")
    except BaseException:
        log.exception("this is a bug, please report it")
    finally:
        os._exit(status)


def _close_inherited() -> None:
    """Close what our caller had left open for us: what survived the exec of this program. Python
    opens everything close-on-exec (PEP 446), so nothing of ours is among it."""
    for fd in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        with contextlib.suppress(OSError):      # that of the list itself is closed by now
            if fd > 2 and os.get_inheritable(fd):
                os.close(fd)
