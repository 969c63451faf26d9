"""A host that is to find its peer, whatever is not there yet."""

from __future__ import annotations

from fastpump.lab.networks import INSIDE4, key_files, tunnel_words, wait_for_line
from support.hosts import FASTPUMP, is_reachable, until
from support.pretence import pretending


class Road:
    """Host a, which is to find b. b does not know where a is."""

    def __init__(self, lab, directory):
        self.lab, self.directory = lab, directory
        self.key = key_files(directory)
        self.process_b = lab.fastpump("b", *tunnel_words(
            "b", self.key["b"], self.key["a"][1], "--queues", "1", endpoint=False))

    def words(self, *endpoints, keepalive=True):
        peer = ",".join((self.key["b"][1], *(f"endpoint={each}" for each in endpoints),
                         *["keepalive=25"] * keepalive))
        return ["--address", f"{INSIDE4['a']}/24", "--private-key", str(self.key["a"][0]),
                "--queues", "1", "--peer", peer]

    def start(self, hosts, *endpoints, keepalive=True, options=(), **pretence):
        """`fastpump tunnel` on a; once it is ready."""
        process = self.lab.spawn("a", *hosts.within(*FASTPUMP, "tunnel", *options, *self.words(
            *endpoints, keepalive=keepalive)), env=pretending(self.directory, **pretence))
        self.said = wait_for_line(process, " is ready: ")
        return process

    def file(self, *endpoints):
        path = self.directory / "fp0.conf"
        path.touch(mode=0o600)
        path.write_text("\n".join((
            "[Interface]", f"PrivateKey = {self.key['a'][0].read_text().strip()}", "Queues = 1",
            f"Address = {INSIDE4['a']}/24", "[Peer]", f"PublicKey = {self.key['b'][1]}",
            "AllowedIPs = 10.9.0.0/24", "PersistentKeepalive = 25",
            *(f"Endpoint = {each}" for each in endpoints), "")))
        return str(path)

    @property
    def peer(self):
        (peer,) = self.lab.status("a")["peers"]
        return peer

    def meets(self, where, timeout_s=30):
        """There is a handshake, and b is there."""
        until(lambda: self.peer["latest_handshake"] and self.peer["endpoint"] == where, timeout_s)
        assert is_reachable(self.lab, INSIDE4["b"])
