"""`fastpump up`, `down`, `reload` and `check`: a tunnel from a file of wg-quick(8)'s format.

up      in the background process that runs the tunnel (tunnel/file.py): interface; PreUp, here;
        there: keys, peers, addresses, MTU, DNS, rules, firewall, routes; PostUp, here, when packets
        can flow.
down    PreDown; SaveConfig; the background process stops and undoes what it did; PostDown. If it
        was killed, or ended otherwise: PreDown, the undoing and PostDown are all done here. What is
        to be run is in the record of the interface (host/network.py) until it has been.
reload  asks the background process to apply what has changed in the file.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from fastpump.cli import hooks
from fastpump.cli.leftovers import recover
from fastpump.config import file as config_file
from fastpump.config.file import FileConfig
from fastpump.config.gateway import Gateway
from fastpump.config.model import TunnelConfig
from fastpump.conn import endpoint
from fastpump.errors import ConfigError, SystemSetupError
from fastpump.host import taps
from fastpump.host.down_commands import DownCommands
from fastpump.host.network import commands_of_running, find_closed, find_leftover
from fastpump.ipc import control
from fastpump.netlink import links
from fastpump.process import memory
from fastpump.process.daemon import detach
from fastpump.process.ends import wait_for_end
from fastpump.protocol import keys
from fastpump.tunnel.file import FileTunnel, checked

log = logging.getLogger("fastpump")

END_TIMEOUT_S = 10.0


def _load(word: str) -> tuple[Path, str, FileConfig]:
    """The path, the interface's name, and what the file says, which may be keys."""
    memory.hide()
    path = config_file.find(word)
    file = config_file.load(path)
    for warning in file.warnings:
        log.warning("%(warning)s", {"warning": warning})
    return config_file.absolute(path), config_file.interface_name(path), file


def check(word: str) -> None:
    """Read a file and check it; print one line about it if all is well."""
    path, name, file = _load(word)
    config = checked(name, file)
    doubts = tuple(_doubts(file, config))
    for warning in doubts:
        log.warning("%(warning)s", {"warning": warning})
    count = len(file.warnings) + len(doubts)
    verdict = "is good" if not count else f"can be used, with {_count(count, 'warning')}"
    print(f"{path} {verdict}: interface {name}, {_count(len(config.addresses), 'address')}, "
          f"{_count(len(file.tunnel.peers), 'peer')}")


def _doubts(file: FileConfig, config: TunnelConfig) -> Iterator[str]:
    """What is hardly meant so, though it can be read: whole sentences."""
    if not file.lines and not config.peers:
        yield f"{file.path} says nothing: a tunnel needs a PrivateKey, and a [Peer]"
        return
    commands = (*file.pre_up, *file.post_up)
    if config.private_key is None and not any("private-key" in each for each in commands):
        yield (f"{file.path} has no PrivateKey: there will be no handshake until `wg set` gives "
               "the interface one")
    if not config.peers:
        yield f"{file.path} has no [Peer]: there is nobody to send to"
    for peer in config.peers:
        if config.mode == "tun" and not peer.allowed_ips:
            yield (f"the peer {keys.encode(peer.public_key)} has no AllowedIPs: no packet goes to "
                   "it, and none from it is accepted")
        for each in peer.endpoints:
            try:
                endpoint.resolve(*each)
            except ConfigError as error:
                yield str(file.located(error))


def _count(number: int, what: str) -> str:
    """1 peer, 2 addresses"""
    return f"{number} {what}" + ("" if number == 1 else "es" if what.endswith("s") else "s")


def up(word: str) -> None:
    """Bring a tunnel up in the background; return when packets can flow."""
    path, name, file = _load(word)
    status = control.ask(name, "status")
    if status is not None:
        hint = (f"`fastpump reload {word}` applies a changed file" if status["configuration_file"]
                else "it was not brought up from a file")
        raise ConfigError(f"{name} is already up: {hint}, `fastpump down {word}` stops it")
    recover(name, takes_over=True, masquerades=Gateway.of(file.tunnel.gateway).masquerades)
    if name in (each for _, each in socket.if_nameindex()):
        raise ConfigError(f"an interface {name} already exists; rename the file"
                          + taps.how_to_delete(links.find(name)))
    was_closed = bool(find_closed(name))
    detach(FileTunnel.of(path, name, file).serve,
           on_turn=partial(hooks.run, file.pre_up, name, str(path)))
    try:
        hooks.run(file.post_up, name, str(path))
    except BaseException:
        _end(name, leaves_all=was_closed)
        raise
    status = control.ask(name, "status")
    if status is not None:
        key = status["public_key"] or "none yet: `wg set` gives it a private key"
        print(f"{name} is up: UDP port {status['listen_port']}, "
              f"{_count(len(status['peers']), 'peer')}, public key {key}")


def reload(word: str) -> None:
    """Apply a changed file to a running tunnel; print what that did."""
    path = config_file.find(word)
    name = config_file.interface_name(path)
    answer = control.ask(name, "reload", file=str(config_file.absolute(path)))
    if answer is None:
        raise ConfigError(f"{name} is not up; bring it up with `fastpump up {word}`")
    for warning in answer["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print("changed: " + (", ".join(answer["changed"]) or "nothing"))
    if answer["needs_restart"]:
        print("not applied until `fastpump down` and `fastpump up`: "
              + ", ".join(answer["needs_restart"]))


def down(word: str, *, keeps_closed: bool = False) -> None:
    """Stop a tunnel, and leave nothing of it behind. `keeps_closed`: but what keeps packets from
    leaving in clear, for the next one."""
    try:
        name = config_file.interface_name(config_file.find(word))
    except ConfigError:     # a tunnel whose file is gone can be stopped all the same
        name = Path(word).name.removesuffix(config_file.SUFFIX)
    status = control.ask(name, "status")
    if status is None:
        if not recover(name, takes_over=keeps_closed):
            _load(word)
            raise ConfigError(f"{name} is not up; `fastpump status` lists the tunnels that are")
        control.forget(name)
    elif status["configuration_file"] is None:
        if keeps_closed:
            raise ConfigError(f"{name} was not brought up from a file: --keep-closed cannot be had "
                              "for it; kill its process, and the next one of that name takes over "
                              "what it leaves closed")
        _end(name)      # of `fastpump tunnel` or fastpump-wg: the file is not about it
    else:
        path = Path(status["configuration_file"])
        if not config_file.is_name(word) and not _is_same(path, config_file.absolute(Path(word))):
            raise ConfigError(f"{name} runs from {path}, not from {word}: `fastpump down {name}` "
                              "stops it")
        _down(name, path, keeps_closed=keeps_closed)


def _is_same(path: Path, other: Path) -> bool:
    """Whether two paths lead to one file."""
    try:
        return path == other or path.samefile(other)
    except OSError:
        return False


def _down(name: str, path: Path, *, keeps_closed: bool) -> None:
    """Stop the tunnel that runs from that file."""
    file = FileConfig()
    try:
        path, _, file = _load(str(path))
        commands = DownCommands(str(path), file.pre_down, file.post_down)
    except ConfigError as error:
        log.warning("%(problem)s; PreDown and PostDown are run as they were when it was last read",
                    {"problem": error})
        commands = commands_of_running(name)
    hooks.run(commands.pre_down, name, commands.file)
    if file.save_config:
        try:
            _save(path, name)
        except SystemSetupError as error:
            log.warning("the running configuration is not saved: %(error)s", {"error": error})
    _end(name, commands.post_down, leaves_all=keeps_closed)
    left, failure = find_leftover(name, masquerades=keeps_closed), None
    is_kept = left is not None and keeps_closed and left.is_closed
    if left is not None and not is_kept:
        left.undo()     # it may have been killed just now
    try:
        hooks.run(commands.post_down, name, commands.file)
    except SystemSetupError as error:
        failure = error
    if left is not None:
        if is_kept:
            left.keep()
        else:
            left.forget()
    if failure is not None:
        raise failure


def _end(name: str, post_down: Sequence[str] = (), *, leaves_all: bool = False) -> None:
    """Stop the background process, and wait until it has ended. What is to be run then is in the
    record until somebody has run it. `leaves_all`: it changes nothing on the host any more."""
    answer = control.ask(name, "stop", post_down=post_down, leaves_all=leaves_all)
    if answer is not None and not wait_for_end(answer["pid"], END_TIMEOUT_S):
        raise SystemSetupError(
            f"{name} has not ended within {END_TIMEOUT_S:g} s; its process is {answer['pid']}"
            + f"; once it has ended, `fastpump down {name}` runs PostDown" * bool(post_down))


def _save(path: Path, name: str) -> None:
    """Write the running configuration to the file, whole or not at all; if the path is a link, to
    where it leads now."""
    answer = control.ask(name, "configuration")
    if answer is None:
        return
    path = path.resolve()
    try:
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name}.",
                                         delete=False) as file:     # mode 0600
            try:
                file.write(answer["text"].encode("utf-8", "surrogateescape"))
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)     # it has keys
                raise
    except OSError as error:
        raise SystemSetupError(f"cannot write {path}: {error.strerror}") from None
