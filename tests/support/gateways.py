"""A gateway between its clients and other networks: a, with b as the client, and c beyond it, who
knows no way back. Beside the wire to b, a has the interface `way` to c, and `side` to d."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from fastpump.lab.networks import INSIDE4, INSIDE6, OUTSIDE4, stop, wait_for_line
from support.hosts import FASTPUMP, network_state, own_pid, records_of

# {host: (interface of a, its addresses, the host's addresses)}
BEYOND = {"c": ("way", ("198.51.100.1/24", "2001:db8:51::1/64"),
                ("198.51.100.2", "2001:db8:51::2")),
          "d": ("side", ("203.0.113.1/24", "2001:db8:52::1/64"),
                ("203.0.113.2", "2001:db8:52::2"))}
EVERYTHING = "0.0.0.0/0+::/0"

_RECEIVE = """
import hashlib, json, socket, sys
host, port = sys.argv[1], int(sys.argv[2])
server = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else 2)
print("listening", flush=True)
connection, peer = server.accept()
mss = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
connection.sendall(bytes(1 << 20))
digest = hashlib.sha256()
while data := connection.recv(1 << 20):
    digest.update(data)
print("result", json.dumps([digest.hexdigest(), peer[0], mss]), flush=True)
"""
_SEND = """
import hashlib, json, os, socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
mss = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
left = 1 << 20
while left:
    data = connection.recv(left)
    assert data, "ended early"
    left -= len(data)
data = os.urandom(1 << 20)
connection.sendall(data)
connection.close()
print(json.dumps([hashlib.sha256(data).hexdigest(), mss]))
"""


def stream(lab, sender, receiver, host, port="7000"):
    """A megabyte of TCP each way: (the address that the receiver saw, the segment size that the
    sender uses, and the receiver's), without TCP's timestamps."""
    server = lab.spawn(receiver, sys.executable, "-c", _RECEIVE, host, port)
    try:
        wait_for_line(server, "listening")
        sent, to_receiver = json.loads(lab.run(sender, sys.executable, "-c", _SEND, host, port,
                                               timeout=20).stdout)
        received, peer, to_sender = json.loads(
            wait_for_line(server, "result").removeprefix("result"))
    finally:
        stop(server)
        lab.processes.remove(server)
    assert sent == received
    return peer, to_receiver + 12, to_sender + 12


def read_until_ready(process):
    """What `fastpump tunnel` logs before that."""
    said = ""
    for line in process.stdout:
        if " is ready: " in line:
            return said.rstrip()
        said += line
    raise AssertionError(said)


def answers(lab, side, host, timeout_s=1):
    """Whether a host answers one ping."""
    return lab.run(side, "ping", "-n", "-c", "1", "-W", str(timeout_s), host,
                   check=False).returncode == 0


@dataclass
class Site:
    """The hosts, and how the gateway and its client are started."""

    lab: object
    names: list[str]
    directory: Path
    key: dict
    prefix: list[str] = field(default_factory=list)
    """What the gateway's command is run by."""

    def build(self):
        for host, (interface, near, far) in BEYOND.items():
            self.lab.add_host(host)
            self.lab.join("a", host, interface, near,
                          [f"{address}/{'64' if ':' in address else '24'}" for address in far])

    @property
    def path(self):
        return self.directory / f"{self.names[0]}.conf"

    def words(self, *more, name=None, allowed=f"{INSIDE4['b']}/32+{INSIDE6['b']}/128", mtu=1420):
        """The command line of the gateway, as `fastpump tunnel`."""
        return ["tunnel", name or self.names[0], "--queues", "1", "--mtu", str(mtu), "--address",
                f"{INSIDE4['a']}/24", "--address", f"{INSIDE6['a']}/64", "--private-key",
                str(self.key["a"][0]), "--peer", f"{self.key['b'][1]},allowed-ips={allowed}",
                *more]

    def write(self, gateway, allowed=f"{INSIDE4['b']}/32+{INSIDE6['b']}/128"):
        """The same as a file."""
        self.path.touch(mode=0o600)
        self.path.write_text("\n".join((
            "[Interface]", f"PrivateKey = {self.key['a'][0].read_text().strip()}", "Queues = 1",
            "MTU = 1420", "ListenPort = 51820", f"Address = {INSIDE4['a']}/24, {INSIDE6['a']}/64",
            f"Gateway = {gateway}", "[Peer]", f"PublicKey = {self.key['b'][1]}",
            f"AllowedIPs = {allowed.replace('+', ', ')}", "")))

    def start(self, program, gateway="forward, nat, mss", *more, **options):
        """The gateway, by `tunnel` or a file: what it logged."""
        if program == "file":
            self.write(gateway, **options)
            return self.fastpump("up", str(self.path)).stderr
        process = self.lab.spawn("a", *self.prefix, *FASTPUMP, *self.words(
            "--gateway", gateway.replace(" ", ""), *more, **options))
        return read_until_ready(process)

    def end(self, program):
        """`down`, or SIGTERM."""
        if program == "file":
            self.fastpump("down", str(self.path))
            return
        (process,) = [each for each in self.lab.processes if self.names[0] in each.args]
        self.lab.processes.remove(process)
        stop(process)
        assert process.returncode == 0

    def fails(self, *words):
        """The one line that the gateway's command complains with."""
        result = self.fastpump(*words, check=False)
        lines = [line for line in result.stderr.splitlines() if line.startswith("fastpump: ")]
        assert result.returncode == 1 and len(lines) == 1 and "Traceback" not in result.stderr, (
            result)
        return lines[0]

    def fastpump(self, *words, check=True):
        return self.lab.run("a", *self.prefix, *FASTPUMP, *words, check=check)

    def connect(self, allowed=EVERYTHING, *more):
        """The client, who sends these networks by the gateway."""
        self.lab.fastpump("b", self.names[1], "--queues", "1", "--address", f"{INSIDE4['b']}/24",
                          "--address", f"{INSIDE6['b']}/64", "--private-key",
                          str(self.key["b"][0]), "--peer",
                          f"{self.key['a'][1]}@{OUTSIDE4['a']}:51820,allowed-ips={allowed}", *more)

    def pid(self, name=None):
        return own_pid(self.lab, "a", name or self.names[0])

    def sysctls(self):
        """All settings of interfaces: {path: value}."""
        output = self.lab.run("a", "sh", "-c", (
            "cd /proc/sys/net; grep -rs '' ipv4/ip_forward ipv4/conf ipv6/conf || true")).stdout
        return dict(line.split(":", 1) for line in output.splitlines())

    def state(self):
        """All that a gateway may leave behind."""
        return network_state(self.lab, "a") | self.sysctls() | {
            "run": records_of(self.lab, "a", self.directory / "run")}
