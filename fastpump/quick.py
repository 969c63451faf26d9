"""`fastpump up`, `down`, `reload` and `check`: a tunnel from a file of wg-quick(8)'s format.

up      PreUp; then, in the background process that runs the tunnel: interface, addresses, MTU,
        DNS, routes, rules, firewall; PostUp when packets can flow.
down    PreDown; SaveConfig; the background process ends and undoes what it did; PostDown.
reload  in the background process: what differs between the file and what was read before.

What does not go away with the interface (DNS, rules, firewall) is undone by the process itself
however it ends, and is written down in /run/fastpump/<network namespace>/<interface>.json
first: if it is killed, the next `up` or `down` of that name undoes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fastpump import conffile, control, endpoint, firewall, netlink, paths, tunnel
from fastpump.conffile import FileConfig
from fastpump.config import Network, PeerConfig, TunnelConfig, check
from fastpump.constants import DEFAULT_MTU, DEFAULT_PORT
from fastpump.daemon import detach
from fastpump.errors import ConfigError, SystemSetupError

log = logging.getLogger("fastpump")

END_TIMEOUT_MS = 10_000
SRC_VALID_MARK = Path("/proc/sys/net/ipv4/conf/all/src_valid_mark")
# What `reload` cannot change: the interface must be made anew.
FIXED = ("table", "queues", "pin", "busy_poll_us", "offloads")


# -- what must be undone

@dataclass(frozen=True, slots=True)
class Record:
    """What was done that does not go away with the interface."""

    table: int = 0
    """Of the rules and the firewall for a default route; 0: there are none."""
    versions: tuple[int, ...] = ()
    """IP versions that there are rules for."""
    has_dns: bool = False

    def undo(self, name: str) -> None:
        """Undo all of it, as far as it is there; complaints go to the log."""
        for version in self.versions:
            _tolerate(netlink.remove_default_rules, version, self.table)
        if self.versions:
            _tolerate(firewall.unprotect, name)
        if self.has_dns:
            _tolerate(firewall.unset_dns, name)


def _tolerate(step: Callable[..., None], *args: object) -> None:
    try:
        step(*args)
    except SystemSetupError as error:
        log.warning("%s", error)


def _record_file(name: str) -> Path:
    return paths.runtime_dir() / f"{name}.json"


def _write_record(name: str, record: Record) -> None:
    path = _record_file(name)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(record)))
    except OSError as error:
        raise SystemSetupError(f"{path} cannot be written: {error.strerror}; name a writable "
                               "directory in FASTPUMP_RUN") from None


def _undo_record(name: str) -> bool:
    """Undo what the record of an interface says; whether there was one."""
    path = _record_file(name)
    try:
        said = json.loads(path.read_text())
        record = Record(said["table"], tuple(said["versions"]), said["has_dns"])
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read (%s); what it says is not undone", path, error)
        record = Record()
    record.undo(name)
    path.unlink(missing_ok=True)
    for directory in (path.parent, path.parent.parent):
        with contextlib.suppress(OSError):      # others live there
            directory.rmdir()
    return True


# -- the tunnel that a file describes

def tunnel_config(name: str, file: FileConfig) -> TunnelConfig:
    """What the file says of the tunnel itself; ConfigError."""
    config = TunnelConfig(
        name=name, queue_count=file.queues or len(os.sched_getaffinity(0)),
        addresses=file.addresses, listen_port=file.listen_port or 0,
        private_key=file.private_key, keeps_key=False, peers=file.peers,
        mtu=file.mtu or DEFAULT_MTU, fwmark=file.fwmark or 0,
        pin=file.pin, busy_poll_us=file.busy_poll_us, resolve_every_s=file.resolve_every_s,
        offloads=dict(file.offloads))
    check(config)
    return config


def _networks(peers: Iterable[PeerConfig]) -> list[Network]:
    """All allowed IPs, the longest prefixes first."""
    found = dict.fromkeys(network for peer in peers for network in peer.allowed_ips or ())
    return sorted(found, key=lambda network: (-network.prefixlen, network.version, network))


@dataclass(slots=True)
class Quick:
    """A tunnel of a file: what the background process knows."""

    path: Path
    name: str
    file: FileConfig
    config: TunnelConfig
    default_table: int = 0
    """Where default routes go; 0 when there are none, or the file names a table."""
    index: int = 0

    # -- up

    def serve(self, on_ready: Callable[[], None]) -> None:
        """Run the tunnel to its end."""
        tunnel.run(self.config, self._configure, lambda _: on_ready(), commands={
            "reload": self._reload, "configuration": self._configuration})

    def _configure(self, name: str, index: int, made: ExitStack) -> None:
        self.index = index
        versions = tuple(sorted({network.version for network, table in self._routes(self.file)
                                 if self.default_table and table == self.default_table}))
        record = Record(self.default_table, versions, bool(self.file.dns or self.file.dns_search))
        _write_record(name, record)
        made.callback(_undo_record, name)
        mtu = self.file.mtu or netlink.fitting_mtu(
            address for peer in self.file.peers if peer.endpoint is not None
            for address in [endpoint.resolve(*peer.endpoint).address])
        netlink.configure(name, index, self.file.addresses, mtu, ())
        if record.has_dns:
            firewall.set_dns(name, self.file.dns, self.file.dns_search)
        netlink.change_routes(index, (), self._routes(self.file))
        for version in versions:
            netlink.add_default_rules(version, self.default_table)
        if versions:
            if 4 in versions:
                SRC_VALID_MARK.write_text("1")
            firewall.protect(name, self.file.addresses, self.default_table)

    def _routes(self, file: FileConfig) -> list[tuple[Network, int]]:
        """(destination, routing table) of all routes through the tunnel."""
        networks = _networks(file.peers)
        if file.table == "off":
            return []
        if file.table != "auto":
            table = netlink.table_number(file.table)
            return [(network, table) for network in networks]
        connected = {address.network for address in file.addresses}
        return [(network, self.default_table if network.prefixlen == 0 else netlink.TABLE_MAIN)
                for network in networks if network not in connected]

    # -- while it runs

    async def _configuration(self, running: tunnel.Tunnel) -> dict[str, Any]:
        """The file as it would be written now (SaveConfig)."""
        device = running.supervisor.device
        by_key = {peer.public_key: peer for peer in self.file.peers}
        peers = []
        for peer in device.peers.values():
            said = by_key.get(peer.public_key, PeerConfig(peer.public_key))
            where = said.endpoint
            if peer.endpoint is not None:
                where = (str(peer.endpoint.address), peer.endpoint.port)
            peers.append(PeerConfig(
                peer.public_key, where, tuple(netlink.network_of(*prefix)
                                              for prefix in sorted(peer.allowed_ips)),
                peer.preshared_key if any(peer.preshared_key) else None,
                peer.persistent_keepalive_s))
        marked = running.supervisor.fwmark if running.supervisor.fwmark != self.default_table else 0
        file = replace(
            self.file, private_key=device.private_key if any(device.private_key) else None,
            addresses=tuple(await asyncio.to_thread(netlink.addresses_of, running.link.index)),
            listen_port=running.supervisor.listen_port or None,
            fwmark=marked or self.file.fwmark, peers=tuple(peers),
            mtu=None if self.file.mtu is None else running.link.mtu)
        return {"text": conffile.emit(file)}

    async def _reload(self, running: tunnel.Tunnel) -> dict[str, Any]:
        """Apply the file as it is now; what changed, and what needs down and up."""
        new = await asyncio.to_thread(conffile.load, self.path)
        tunnel_config(self.name, new)
        fixed = [field for field in FIXED if getattr(new, field) != getattr(self.file, field)]
        if any(network.prefixlen == 0 for network in _networks(new.peers)) \
                and new.table == "auto" and not self.default_table:
            fixed.append("default route")
            new = replace(new, table="off")
        new = replace(new, **{field: getattr(self.file, field) for field in fixed
                              if field in FIXED})
        known = {peer.public_key: peer for peer in self.file.peers}
        moved = [peer for peer in new.peers if peer.endpoint is not None
                 and peer.endpoint != getattr(known.get(peer.public_key), "endpoint", None)]
        found = await asyncio.gather(*(
            asyncio.to_thread(endpoint.resolve, *peer.endpoint) for peer in moved
            if peer.endpoint is not None))
        where = {peer.public_key: place for peer, place in zip(moved, found, strict=True)}
        changed = self._reload_interface(running, new)
        changed += self._reload_peers(running, known, new, where)
        changed += await asyncio.to_thread(self._reload_network, running.link.index, new)
        self.file = new
        return {"changed": changed, "needs_restart": fixed, "warnings": list(new.warnings)}

    def _reload_interface(self, running: tunnel.Tunnel, new: FileConfig) -> list[str]:
        supervisor, changed = running.supervisor, []
        if new.private_key is not None and new.private_key != supervisor.device.private_key:
            supervisor.set_private_key(new.private_key)
            changed.append("the private key")
        if new.listen_port is not None and new.listen_port != self.file.listen_port:
            supervisor.set_listen_port(new.listen_port)
            changed.append("the port")
        mark = new.fwmark or self.default_table
        if new.fwmark != self.file.fwmark and mark != supervisor.fwmark:
            supervisor.set_fwmark(mark)
            changed.append("the firewall mark")
        running.resolver.set_interval(new.resolve_every_s)
        return changed

    def _reload_peers(self, running: tunnel.Tunnel, known: dict[bytes, PeerConfig],
                      new: FileConfig, where: dict[bytes, endpoint.Endpoint]) -> list[str]:
        """Change what the file changes, and nothing that it does not: a peer keeps its
        session and the endpoint that it roamed to."""
        device, changed = running.supervisor.device, []
        wanted = {peer.public_key for peer in new.peers}
        for public_key in list(device.peers):
            if public_key not in wanted:
                changed.append(f"{device.peers[public_key]} removed")
                running.resolver.forget(public_key)
                device.remove_peer(device.peers[public_key])
        for peer in new.peers:
            if peer.public_key == device.public_key:
                continue
            if peer.public_key not in device.peers:
                running.add_peer(peer, where.get(peer.public_key))
                changed.append(f"{device.peers[peer.public_key]} added")
            elif peer != known.get(peer.public_key):
                running.change_peer(peer, where.get(peer.public_key))
                changed.append(f"{device.peers[peer.public_key]} changed")
        # A prefix that moved to a peer was taken from another, which may still say it had it.
        running.supervisor.settle()
        return changed

    def _reload_network(self, index: int, new: FileConfig) -> list[str]:
        old, changed = self.file, []
        gone = [each for each in old.addresses if each not in new.addresses]
        added = [each for each in new.addresses if each not in old.addresses]
        if gone or added:
            netlink.change_addresses(index, gone, added)
            changed.append("the addresses")
        if new.mtu is not None and new.mtu != old.mtu:
            netlink.set_mtu(index, new.mtu)
            changed.append("the MTU")
        routes = self._routes(old), self._routes(new)
        gone_routes = [each for each in routes[0] if each not in routes[1]]
        new_routes = [each for each in routes[1] if each not in routes[0]]
        if gone_routes or new_routes:
            netlink.change_routes(index, gone_routes, new_routes)
            changed.append("the routes")
        if (old.dns, old.dns_search) != (new.dns, new.dns_search):
            if new.dns or new.dns_search:
                firewall.set_dns(self.name, new.dns, new.dns_search)
            else:
                firewall.unset_dns(self.name)
            changed.append("DNS")
        return changed


# -- commands

def _load(word: str) -> tuple[Path, str, FileConfig]:
    path = conffile.find(word).resolve()
    file = conffile.load(path)
    for warning in file.warnings:
        log.warning("%s", warning)
    return path, conffile.interface_name(path), file


def _run_hooks(hooks: Iterable[str], name: str) -> None:
    """Run shell commands as wg-quick does: %i is the interface, the first failure ends it."""
    for hook in hooks:
        command = hook.replace("%i", name)
        print(f"[#] {command}", file=sys.stderr, flush=True)
        status = subprocess.run(["bash", "-c", command], check=False).returncode
        if status != 0:
            raise SystemSetupError(f"the command {command!r} of the configuration failed with "
                                   f"status {status}")


def check_file(word: str) -> str:
    """Read a file and complain; one line about it if all is well."""
    path, name, file = _load(word)
    tunnel_config(name, file)
    if file.table not in ("auto", "off"):
        netlink.table_number(file.table)
    return (f"{path} is good: interface {name}, {len(file.addresses)} addresses, "
            f"{len(file.peers)} peers")


def up(word: str) -> None:
    """Bring a tunnel up in the background; return when packets can flow."""
    path, name, file = _load(word)
    if control.ask(name, "status") is not None:
        raise ConfigError(f"{name} is up already; `fastpump reload {word}` applies a changed file, "
                          f"`fastpump down {word}` ends it")
    if _undo_record(name):
        log.warning("%s was killed when it last ran; what it left behind is undone now", name)
    config = tunnel_config(name, file)
    quick = Quick(path, name, file, config)
    if file.table == "auto" and any(each.prefixlen == 0 for each in _networks(file.peers)):
        # The mark keeps our own datagrams out of the tunnel; the table has the same number.
        quick.default_table = config.fwmark or netlink.unused_table(DEFAULT_PORT)
        quick.config = replace(config, fwmark=quick.default_table)
    _run_hooks(file.pre_up, name)
    detach(quick.serve)
    try:
        _run_hooks(file.post_up, name)
    except BaseException:
        _end(name)
        raise


def reload(word: str) -> dict[str, Any]:
    """Apply a changed file to a running tunnel: {"changed": [...], "needs_restart": [...],
    "warnings": [...]}."""
    name = conffile.interface_name(conffile.find(word))
    answer = control.ask(name, "reload")
    if answer is None:
        raise ConfigError(f"{name} is not up; bring it up with `fastpump up {word}`")
    assert isinstance(answer, dict)
    return answer


def down(word: str) -> None:
    """End a tunnel, and leave nothing of it behind."""
    file = FileConfig()
    try:
        path, name, file = _load(word)
    except ConfigError:
        # A tunnel whose file is gone or broken can be ended all the same.
        name = Path(word).name.removesuffix(conffile.SUFFIX)
        if control.ask(name, "status") is None and not _record_file(name).exists():
            raise
        log.warning("the configuration of %s cannot be read; its PreDown and PostDown are not run",
                    name)
    is_running = control.ask(name, "status") is not None
    if not is_running and not _record_file(name).exists():
        raise ConfigError(f"{name} is not up; `fastpump status` lists the tunnels that are")
    if is_running:
        _run_hooks(file.pre_down, name)
        if file.save_config:
            _save(path, name)
        _end(name)
    _undo_record(name)
    _run_hooks(file.post_down, name)


def _end(name: str) -> None:
    """Have the background process end, and wait until it has."""
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
            raise SystemSetupError(f"{name} does not end; its process is {answer['pid']}")
    finally:
        os.close(pidfd)


def _save(path: Path, name: str) -> None:
    """Write the running configuration to the file, whole or not at all."""
    answer = control.ask(name, "configuration")
    if answer is None:
        return
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.",
                                         delete=False) as file:     # mode 0600
            file.write(answer["text"])
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(path)
    except OSError as error:
        raise SystemSetupError(f"{path} cannot be written: {error.strerror}") from None
