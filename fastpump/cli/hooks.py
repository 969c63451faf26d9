"""The commands of a configuration file: PreUp, PostUp, PreDown, PostDown.

They are run as wg-quick(8) runs them: by bash, with its options errexit, pipefail and extglob, in
the C locale, with %i replaced by the interface's name, which is in $INTERFACE as well. A command of
several lines of work thus fails at its first failure.

After a crash they run for an interface that is gone. What their firewall rules are usually made of,
`wg show %i fwmark`, has an answer all the same: a stand-in has wg's socket meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Iterable
from functools import partial

from fastpump.errors import SystemSetupError
from fastpump.host.down_commands import DownCommands
from fastpump.ipc import uapi
from fastpump.ipc.uapi_server import UapiServer
from fastpump.tunnel.containment import Containment

log = logging.getLogger("fastpump")

_BASH = ("bash", "-e", "-o", "pipefail", "-O", "extglob", "-c")


def run(commands: Iterable[str], name: str, file: str) -> None:
    """Run commands of `file` for an interface; the first failure ends it: SystemSetupError."""
    for command in commands:
        _run_one(command, name, file)


def run_all(commands: Iterable[str], name: str, left: DownCommands) -> None:
    """Run commands of a tunnel that is gone. A failure is logged: the next command may be the one
    that opens the firewall again."""
    commands = list(commands)
    if commands:
        asyncio.run(_run_with_stand_in(commands, name, left))


async def _run_with_stand_in(commands: list[str], name: str, left: DownCommands) -> None:
    wg = UapiServer(name, partial(uapi.answer_for_ended, left.listen_port, left.fwmark),
                    Containment().report)
    try:
        await wg.start()
    except SystemSetupError as error:
        log.warning("%(error)s", {"error": error})
    try:
        for command in commands:
            try:
                await asyncio.to_thread(_run_one, command, name, left.file)
            except SystemSetupError as error:
                log.warning("%(error)s", {"error": error})
    finally:
        await wg.stop()


def _run_one(command: str, name: str, file: str) -> None:
    command = command.replace("%i", name)
    print(f"[#] {command}", file=sys.stderr, flush=True)
    environment = {**os.environ, "LC_ALL": "C", "INTERFACE": name, "CONFIG_FILE": file}
    try:
        status = subprocess.run([*_BASH, command], check=False, env=environment).returncode
    except OSError as error:
        raise SystemSetupError(f"bash cannot be started, which runs the configuration's commands: "
                               f"{error.strerror}") from None
    if status != 0:
        raise SystemSetupError(f"the command {command!r} of the configuration failed with "
                               f"status {status}")
