"""`fastpump up`, `down`, `reload` and `check`: a tunnel from a file of wg-quick(8)'s format.

up      PreUp; then, in the background process that runs the tunnel (tunnel/file.py): interface,
        addresses, MTU, DNS, routes, rules, firewall; PostUp when packets can flow.
down    PreDown; SaveConfig; the background process stops and undoes what it did; PostDown.
reload  asks the background process to apply what has changed in the file.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from fastpump.config import file as config_file
from fastpump.config.file import FileConfig, tunnel_config
from fastpump.errors import ConfigError, SystemSetupError
from fastpump.host import attach, ethernet
from fastpump.host.network import recover
from fastpump.ipc import control
from fastpump.netlink import routes
from fastpump.process.daemon import detach
from fastpump.tunnel.file import FileTunnel

log = logging.getLogger("fastpump")

END_TIMEOUT_MS = 10_000


def _load(word: str) -> tuple[Path, str, FileConfig]:
    path = config_file.find(word)
    file = config_file.load(path)
    for warning in file.warnings:
        log.warning("%(warning)s", {"warning": warning})
    return path.resolve(), config_file.interface_name(path), file


def _run_hooks(hooks: Iterable[str], name: str) -> None:
    """Run shell commands as wg-quick does: %i is the interface, the first failure ends it."""
    for hook in hooks:
        command = hook.replace("%i", name)
        print(f"[#] {command}", file=sys.stderr, flush=True)
        status = subprocess.run(["bash", "-c", command], check=False).returncode
        if status != 0:
            raise SystemSetupError(f"the command {command!r} of the configuration failed with "
                                   f"status {status}")


def check(word: str) -> None:
    """Read a file and check it; print one line about it if all is well."""
    path, name, file = _load(word)
    attach.check(ethernet.attachment_of(tunnel_config(name, file)))
    if file.table not in ("auto", "off"):
        routes.table_number(file.table)
    print(f"{path} is good: interface {name}, {len(file.tunnel.addresses)} addresses, "
          f"{len(file.tunnel.peers)} peers")


def up(word: str) -> None:
    """Bring a tunnel up in the background; return when packets can flow."""
    path, name, file = _load(word)
    status = control.ask(name, "status")
    if status is not None:
        hint = (f"`fastpump reload {word}` applies a changed file" if status["configuration_file"]
                else "it was not brought up from a file")
        raise ConfigError(f"{name} is already up: {hint}, `fastpump down {word}` stops it")
    if recover(name):
        log.warning("the last tunnel %(name)s was killed; what it left behind is undone now",
                    {"name": name})
    if name in (each for _, each in socket.if_nameindex()):
        raise ConfigError(f"an interface {name} already exists; rename the file, or delete the "
                          f"interface: ip link delete {name}")
    tunnel = FileTunnel.of(path, name, file)
    _run_hooks(file.pre_up, name)
    detach(tunnel.serve)
    try:
        _run_hooks(file.post_up, name)
    except BaseException:
        _end(name)
        raise


def reload(word: str) -> None:
    """Apply a changed file to a running tunnel; print what that did."""
    name = config_file.interface_name(config_file.find(word))
    answer = control.ask(name, "reload")
    if answer is None:
        raise ConfigError(f"{name} is not up; bring it up with `fastpump up {word}`")
    for warning in answer["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print("changed: " + (", ".join(answer["changed"]) or "nothing"))
    if answer["needs_restart"]:
        print("not applied until `fastpump down` and `fastpump up`: "
              + ", ".join(answer["needs_restart"]))


def down(word: str) -> None:
    """Stop a tunnel, and leave nothing of it behind."""
    path, file = Path(), FileConfig()
    try:
        path, name, file = _load(word)
    except ConfigError as error:
        # A tunnel whose file is gone or broken can be stopped all the same.
        name = Path(word).name.removesuffix(config_file.SUFFIX)
        if control.ask(name, "status") is None and not recover(name):
            raise
        log.warning("%(error)s; PreDown and PostDown are not run", {"error": error})
    status = control.ask(name, "status")
    if status is None:
        if not recover(name):
            raise ConfigError(f"{name} is not up; `fastpump status` lists the tunnels that are")
        control.forget(name)
        log.warning("%(name)s was killed; what it left behind is undone now", {"name": name})
    elif status["configuration_file"] is None:
        _end(name)      # of `fastpump tunnel` or fastpump-wg: the file is not about it
        return
    else:
        _run_hooks(file.pre_down, name)
        if file.save_config:
            _save(path, name)
        _end(name)
    _run_hooks(file.post_down, name)


def _end(name: str) -> None:
    """Stop the background process, and wait until it has ended."""
    answer = control.ask(name, "stop")
    if answer is None:
        return
    try:
        pidfd = os.pidfd_open(answer["pid"])
    except ProcessLookupError:
        return
    try:
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        if not ended.poll(END_TIMEOUT_MS):
            raise SystemSetupError(f"{name} does not stop; its process is {answer['pid']}")
    finally:
        os.close(pidfd)


def _save(path: Path, name: str) -> None:
    """Write the running configuration to the file, whole or not at all."""
    answer = control.ask(name, "configuration")
    if answer is None:
        return
    try:
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name}.",
                                         delete=False) as file:     # mode 0600
            file.write(answer["text"].encode("utf-8", "surrogateescape"))
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(path)
    except OSError as error:
        raise SystemSetupError(f"cannot write {path}: {error.strerror}") from None
