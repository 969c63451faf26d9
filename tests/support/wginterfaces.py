"""Interfaces of `fastpump-wg`, driven by the real wg."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fastpump.lab.networks import INSIDE4, INSIDE6, OUTSIDE4
from fastpump.protocol import keys
from support.hosts import WG_SOCKETS, handshakes, is_reachable, own_pid, until, wg_ask

FASTPUMP_WG = [sys.executable, "-m", "fastpump.cli.wg"]


def other(side):
    return "b" if side == "a" else "a"


def has_its_sockets(lab, side):
    """Those of two queues, for handshakes and path probes, on one port, and two of each lane."""
    ports = Counter(line.split()[3].rpartition(":")[2]
                    for line in lab.run(side, "ss", "-lunH").stdout.splitlines())
    return sorted(ports.values()) == [2] * 32 + [4]


@dataclass
class Interface:
    """An interface of a fastpump-wg, seen through wg."""

    lab: object
    side: str
    name: str
    directory: Path
    private: str = field(default_factory=lambda: keys.encode(keys.generate_private()))

    @property
    def public(self):
        return keys.encode(keys.public_of(keys.decode(self.private, "key")))

    @property
    def socket(self):
        return WG_SOCKETS / f"{self.name}.sock"

    @property
    def pid(self):
        return own_pid(self.lab, self.side, self.name)

    def start(self):
        """In the background."""
        result = self.lab.run(self.side, *FASTPUMP_WG, self.name)
        assert result.stdout == "" and result.stderr == ""

    def wg(self, command, *words, **options):
        return self.lab.run(self.side, "wg", command, self.name, *words, **options)

    def file(self, text, name="file"):
        path = self.directory / f"{self.name}.{name}"
        path.touch(mode=0o600)
        path.write_text(text)
        return str(path)

    def set_key(self):
        self.wg("set", "private-key", self.file(self.private, "key"))

    def dump(self):
        """([private, public, port, mark], {public key: [psk, endpoint, allowed IPs,
        handshake, received, sent, keepalive]})."""
        first, *peers = self.wg("show", "dump").stdout.splitlines()
        return first.split("\t"), {line.split("\t")[0]: line.split("\t")[1:] for line in peers}

    def peer(self, public_key):
        return self.dump()[1][public_key]

    def ask(self, request=b"get=1\n\n"):
        return wg_ask(self.name, request)

    def handshakes(self):
        return handshakes(self.name)

    def set_up(self):
        self.lab.ip(self.side, "address", "add", f"{INSIDE4[self.side]}/24", "dev", self.name)
        self.lab.ip(self.side, "address", "add", f"{INSIDE6[self.side]}/64", "dev", self.name,
                    "nodad")
        self.lab.ip(self.side, "link", "set", self.name, "up")
        # ip does not wait for the UDP sockets.
        until(lambda: has_its_sockets(self.lab, self.side))

    def config(self, *sections, port=51820):
        """A file for setconf."""
        return self.file(f"[Interface]\nPrivateKey = {self.private}\nListenPort = {port}\n"
                         + "".join(sections), "conf")

    def is_gone(self):
        return (f": {self.name}:" not in self.lab.ip(self.side, "link")
                and not self.socket.exists() and self.pid is None)


def section(public_key, allowed_ips, *lines):
    return "\n".join(("[Peer]", f"PublicKey = {public_key}", f"AllowedIPs = {allowed_ips}",
                      *lines, ""))


def section_of(to, *lines):
    """The [Peer] of the other side of a pair."""
    return section(to.public, f"{INSIDE4[to.side]}/32, {INSIDE6[to.side]}/128", *lines)


def connected(lab, names, directory):
    """An interface on each side with a session: {side: Interface}. a knows where b is."""
    made = {side: Interface(lab, side, name, directory)
            for side, name in zip("ab", names, strict=False)}
    for side, interface in made.items():
        interface.start()
        extra = [f"Endpoint = {OUTSIDE4['b']}:51820"] if side == "a" else []
        interface.wg("setconf", interface.config(section_of(made[other(side)], *extra)))
        interface.set_up()
    assert is_reachable(lab, INSIDE4["b"])
    until(lambda: made["b"].handshakes()[made["a"].public] > (0, 0))
    return made
