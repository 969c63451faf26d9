"""What `wg setconf` makes of a file, and what our parser makes of it.

A process in a mount and a network namespace of its own stands in for the interface: it serves wg's
socket under a /run that only it and its wg see, and records what wg sets. Its resolver knows the
names in HOSTS and asks nobody. Both sides are reduced to the values that a WireGuard device has
then; endpoints are resolved, since wg resolves them while it reads the file.

    with Judge() as judge:
        verdict = judge(b"[Interface]\\nListenPort = 1\\n")
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastpump.config import file as config_file
from fastpump.config.parsers import parse_endpoint
from fastpump.config.values import squeeze
from fastpump.conn.endpoint import resolve
from fastpump.errors import ConfigError

HOSTS = ("127.0.0.1 localhost\n192.0.2.55 vpn.example.com gw.example.net\n"
         "2001:db8::55 six.example.com\n")
NAME = "recorded0"

_ROOT = Path(__file__).parents[2]
_RUN = Path("/var/run").resolve()
_LATIN = "latin-1"      # any bytes in JSON


@dataclass(frozen=True, slots=True)
class Verdict:
    """What each of the two understood; None: refused."""

    wg: Any
    ours: Any
    complaint: str
    """Ours, FILE:LINE first."""

    @property
    def complaint_line(self) -> int:
        """Where we refused; 0: nowhere, or at an endpoint that does not resolve."""
        place = re.match(r"file:([0-9]+): ", self.complaint)
        return int(place[1]) if place else 0


class Judge:
    """The process; it ends with `close`, or with its caller."""

    def __init__(self) -> None:
        user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
        path = os.pathsep.join((str(_ROOT), str(_ROOT / "tests")))
        self._process = subprocess.Popen(
            ["unshare", *user, "--mount", "--net", sys.executable, "-m", "support.setconf"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": path})

    def __call__(self, data: bytes) -> Verdict:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(data.decode(_LATIN)) + "\n")
        self._process.stdin.flush()
        return Verdict(**json.loads(self._process.stdout.readline()))

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, and with it the namespaces."""
        self._process.communicate()


# -- in the process

class Device:
    """What wg's requests leave on a new interface."""

    def __init__(self) -> None:
        self.request: bytes | None = None
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(_RUN / f"wireguard/{NAME}.sock"))
        listener.listen()
        threading.Thread(target=self._serve, args=(listener,), daemon=True).start()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            client, _ = listener.accept()
            with client, client.makefile("rb") as lines:
                request: list[bytes] = []
                for line in lines:
                    request.append(line)
                    if line == b"\n":
                        if request[0] == b"set=1\n":
                            self.request = b"".join(request)
                        client.sendall(b"errno=0\n\n")
                        request = []

    def setconf(self, data: bytes) -> Any:
        """The values; None if wg refuses the file."""
        self.request = None
        path = _RUN / "file.conf"
        path.write_bytes(data)
        status = subprocess.run(["wg", "setconf", NAME, path], check=False, timeout=20,
                                stderr=subprocess.DEVNULL, env={
                                    **os.environ, "WG_ENDPOINT_RESOLUTION_RETRIES": "0"})
        if status.returncode:
            return None
        assert self.request is not None
        return values_of_request(self.request.decode())


def values_of_request(request: str) -> dict[str, Any]:
    """The device after a set=1, as the kernel would apply it."""
    device: dict[str, Any] = {"private_key": None, "listen_port": 0, "fwmark": 0, "peers": {}}
    peers: dict[str, dict[str, Any]] = device["peers"]
    peer: dict[str, Any] = {}
    for line in request.splitlines()[1:]:
        key, _, value = line.partition("=")
        match key:
            case "private_key":
                device[key] = _key(value)
            case "listen_port" | "fwmark":
                device[key] = int(value)
            case "public_key":
                peer = peers.setdefault(value, {"preshared_key": None, "endpoint": None,
                                                "keepalive": 0, "allowed_ips": []})
            case "preshared_key":
                peer[key] = _key(value)
            case "persistent_keepalive_interval":
                peer["keepalive"] = int(value)
            case "endpoint":
                peer[key] = _endpoint(value)
            case "replace_allowed_ips":
                peer["allowed_ips"] = []
            case "allowed_ip":
                _change(peers, peer, value)
            case "" | "replace_peers" | "protocol_version":
                pass
            case _:
                raise AssertionError(f"wg sets {line!r}")
    for peer in peers.values():
        peer["allowed_ips"].sort()
    return device


def _change(peers: dict[str, dict[str, Any]], peer: dict[str, Any], text: str) -> None:
    """An allowed IP has one owner; a removal concerns this peer only."""
    network = str(ipaddress.ip_network(text.lstrip("+-"), strict=False))
    for each in (peer,) if text.startswith("-") else peers.values():
        if network in each["allowed_ips"]:
            each["allowed_ips"].remove(network)
    if not text.startswith("-"):
        peer["allowed_ips"].append(network)


def _key(value: str) -> str | None:
    return value if value.strip("0") else None


def _endpoint(text: str) -> list[Any]:
    """[address, port, scope id]"""
    host, _, port = text.rpartition(":")
    address, _, scope = host.strip("[]").partition("%")
    parsed: Any = ipaddress.ip_address(address)
    if parsed.version == 6 and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    scope_id = int(scope) if scope.isdigit() else socket.if_nametoindex(scope) if scope else 0
    return [str(parsed), int(port), scope_id]


def parse(data: bytes) -> tuple[Any, str]:
    """Our values, or None and the complaint."""
    text = data.decode("utf-8-sig", "surrogateescape")
    try:
        tunnel = config_file.parse(text, "file").tunnel
        _resolve_all(text)
        return {
            "private_key": tunnel.private_key.hex() if tunnel.private_key else None,
            "listen_port": tunnel.listen_port or 0, "fwmark": tunnel.fwmark,
            "peers": {peer.public_key.hex(): {
                "preshared_key": peer.preshared_key.hex() if peer.preshared_key else None,
                "endpoint": _resolved(peer.endpoints), "keepalive": peer.keepalive_s,
                "allowed_ips": sorted(map(str, peer.allowed_ips or ()))}
                for peer in tunnel.peers}}, ""
    except ConfigError as error:
        return None, str(error)


def _resolve_all(text: str) -> None:
    """Also the endpoints that a later line replaces, as wg does: ConfigError."""
    for line in text.split("\n"):
        key, _, value = squeeze(line.partition("#")[0]).partition("=")
        if key.lower() == "endpoint":
            resolve(*parse_endpoint(value))


def _resolved(endpoints: Sequence[tuple[str, int]]) -> list[Any] | None:
    """Of several endpoints wg takes the last; we try all, the first one first (docs/wireguard.md).
    Of several addresses wg takes the first."""
    if not endpoints:
        return None
    found = resolve(*endpoints[-1])[0]
    return [str(found.address), found.port, found.scope_id]


def _isolate() -> None:
    """A /run of our own, and a resolver that asks nobody."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", _RUN], check=True)
    (_RUN / "wireguard").mkdir()
    for path, text in (("/etc/hosts", HOSTS), ("/etc/nsswitch.conf", "hosts: files\n")):
        if Path(path).exists():
            ours = _RUN / Path(path).name
            ours.write_text(text)
            subprocess.run(["mount", "--bind", ours, path], check=True)


def main() -> None:
    """Judge the files that come in, one a line."""
    _isolate()
    device = Device()
    for line in sys.stdin:
        data = json.loads(line).encode(_LATIN)
        ours, complaint = parse(data)
        print(json.dumps({"wg": device.setconf(data), "ours": ours, "complaint": complaint}),
              flush=True)


if __name__ == "__main__":
    main()
