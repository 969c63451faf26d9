"""A host with a configuration file, and what `fastpump up` and its like do there."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

from fastpump.lab.networks import INSIDE4, INSIDE6, OUTSIDE4, key_files, need, tunnel_words
from fastpump.protocol import keys
from support.hosts import (
    FASTPUMP,
    fake_resolvconf,
    interface_names,
    network_state,
    own_pid,
    pids_in,
    records_of,
)

FAR = ("203.0.113.7", "2001:db8:77::7")     # behind b
ADDRESSES = f"Address = {INSIDE4['a']}/24, {INSIDE6['a']}/64"
EVERYWHERE = "0.0.0.0/0", "::/0"
FULL = f"AllowedIPs = {', '.join(EVERYWHERE)}"
NEAR = "AllowedIPs = 10.9.0.0/24, fd00:9::/64"


def a_public_key(number):
    return keys.encode(keys.public_of(bytes([number]) * 32))


@dataclass
class Quick:
    """A file of host a, and the commands on it."""

    lab: object
    name: str
    directory: Path
    private: str
    public_b: str
    records: Path
    prefix: list[str] = field(default_factory=list)
    """What the commands are run by."""

    @property
    def path(self):
        return self.directory / f"{self.name}.conf"

    @property
    def pid(self):
        return own_pid(self.lab, "a", self.name)

    def write(self, *interface, peer=(NEAR,), more=(), endpoint=OUTSIDE4["b"]):
        """[Interface] lines, those of the peer b, and whole sections of others."""
        where = f"[{endpoint}]" if ":" in endpoint else endpoint
        self.path.touch(mode=0o600)
        self.path.write_text("\n".join((
            "[Interface]", f"PrivateKey = {self.private}", "Queues = 2", *interface, "[Peer]",
            f"PublicKey = {self.public_b}", f"Endpoint = {where}:51820", *peer, *more,
            "")))

    def __call__(self, verb, check=True):
        return self.lab.run("a", *self.words(verb), str(self.path), check=check)

    def words(self, verb):
        """A command line, less the file."""
        return [*self.prefix, *FASTPUMP, verb]

    def fails(self, verb):
        """The one line that a command complains with; there may be news before it."""
        result = self(verb, check=False)
        *hooks, line = result.stderr.splitlines()
        assert result.returncode == 1 and line.startswith("fastpump: "), result
        assert all(hook.startswith(("[#] ", "INFO ")) for hook in hooks), hooks
        return line

    def state(self):
        """All that there is to leave behind on a."""
        return network_state(self.lab, "a", self.records) | {
            "run": records_of(self.lab, "a", self.directory / "run"),
            "processes": len(pids_in(self.lab, "a"))}

    def hooks(self):
        return (self.directory / "hooks").read_text().splitlines()

    def peers(self):
        return {line.split("\t")[0]: line.split("\t")[1:] for line in self.lab.run(
            "a", "wg", "show", self.name, "dump").stdout.splitlines()[1:]}

    def routes(self, table="main"):
        return {line.split()[0] for version in ("-4", "-6") for line in self.lab.ip(
            "a", version, "route", "show", "table", table, "dev", self.name,
            check=False).splitlines()} - {"fe80::/64", "multicast"}


@contextlib.contextmanager
def a_file_on(lab, directory):
    """A file of a's for a tunnel to b, which runs. There is a resolvconf in `directory`/bin."""
    need("wg", "nft")
    key, records = key_files(directory), fake_resolvconf(directory)
    with interface_names(2) as (name, name_b):
        for address in FAR:
            lab.ip("b", "address", "add", address, "dev", "lo")
        lab.fastpump("b", name_b, *tunnel_words("b", key["b"], key["a"][1], "--queues", "2",
                                                endpoint=False))
        made = Quick(lab, name, directory, key["a"][0].read_text().strip(), key["b"][1], records)
        made.write(ADDRESSES)
        yield made
