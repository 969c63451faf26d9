"""Any request to wg's socket, against a model of the protocol that is written down once more."""

from __future__ import annotations

import errno
import re
import socket
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

from fastpump._core import SharedTables
from fastpump.errors import SystemSetupError
from fastpump.ipc import uapi
from fastpump.protocol import keys
from fuzz.common import START, mutated, telling
from support.devices import Clock, Side


class Target(Side):
    """A stand-in for the supervisor over a real device."""

    ANY_PORT = 40000

    def __init__(self, *, peers=16, nodes=512, family=socket.AF_INET6):
        super().__init__(Clock(), tables=SharedTables.create(2, peers, nodes), family=family,
                         private_key=bytes(32))
        self.family = family
        self.listen_port, self.fwmark = 0, 0
        self.taken_ports = {7}
        self.may_mark = True

    def set_private_key(self, private_key):
        self.device.set_private_key(private_key)

    def set_listen_port(self, port):
        if port in self.taken_ports:
            raise SystemSetupError(f"the UDP port {port} cannot be bound")
        self.listen_port = port or self.ANY_PORT

    def set_fwmark(self, fwmark):
        if not self.may_mark:
            raise SystemSetupError("the firewall mark cannot be set: Operation not permitted")
        self.fwmark = fwmark


@dataclass
class PeerModel:
    preshared: bytes = bytes(32)
    endpoint: str | None = None
    keepalive: int = 0
    allowed: set = field(default_factory=set)


@dataclass
class UapiModel:
    """What a configuration is, by the description of the protocol; no code of the product."""

    private: bytes = bytes(32)
    own: bytes | None = None
    port: int = 0
    fwmark: int = 0
    peers: dict[bytes, PeerModel] = field(default_factory=dict)

    def set(self, interface, sections):
        """What the lines of a good request mean; the last of a kind wins."""
        said = dict(interface)
        if "private_key" in said:
            self.private, self.own = said["private_key"]
            self.peers.pop(self.own, None)
        if "listen_port" in said:
            self.port = said["listen_port"] or Target.ANY_PORT
        self.fwmark = said.get("fwmark", self.fwmark)
        if "replace_peers" in said:
            self.peers.clear()
        for public, lines in sections:
            self._set_peer(public, lines)

    def _set_peer(self, public, lines):
        said = dict(lines)
        if "remove" in said:
            self.peers.pop(public, None)
            return
        if public not in self.peers and ("update_only" in said or public == self.own):
            return
        peer = self.peers.setdefault(public, PeerModel())
        peer.preshared = said.get("preshared_key", peer.preshared)
        peer.endpoint = said.get("endpoint", peer.endpoint)
        peer.keepalive = said.get("persistent_keepalive_interval", peer.keepalive)
        if "replace_allowed_ips" in said:
            peer.allowed.clear()
        for key, value in lines:
            if key != "allowed_ip":
                continue
            is_added, network = value
            if is_added:
                for other in self.peers.values():
                    other.allowed.discard(network)
                peer.allowed.add(network)
            else:
                peer.allowed.discard(network)


GET = re.compile(
    r"(?:private_key=(?P<private>[0-9a-f]{64})\n)?listen_port=(?P<port>\d+)\n"
    r"(?:fwmark=(?P<fwmark>\d+)\n)?(?P<peers>(?:[a-z_]+=.*\n)*)errno=0\n\n")
GET_PEER = re.compile(
    r"public_key=(?P<public>[0-9a-f]{64})\npreshared_key=(?P<preshared>[0-9a-f]{64})\n"
    r"protocol_version=1\n(?:endpoint=(?P<endpoint>\S+)\n)?last_handshake_time_sec=\d+\n"
    r"last_handshake_time_nsec=\d{1,9}\ntx_bytes=\d+\nrx_bytes=\d+\n"
    r"persistent_keepalive_interval=(?P<keepalive>\d+)\n(?P<allowed>(?:allowed_ip=\S+\n)*)")


def parsed_get(answer):
    """An answer to get=1 as a model, read independently of what wrote it."""
    whole = GET.fullmatch(answer.decode())
    assert whole is not None, answer
    model = UapiModel(bytes.fromhex(whole["private"] or "00" * 32), None, int(whole["port"]),
                      int(whole["fwmark"] or 0))
    assert whole["fwmark"] != "0"
    at, text = 0, whole["peers"]
    while at < len(text):
        found = GET_PEER.match(text, at)
        assert found is not None, text[at:]
        at = found.end()
        prefixes = [ip_network(line.removeprefix("allowed_ip="))
                    for line in found["allowed"].splitlines()]
        public = bytes.fromhex(found["public"])
        assert len(set(prefixes)) == len(prefixes) and public not in model.peers
        model.peers[public] = PeerModel(bytes.fromhex(found["preshared"]), found["endpoint"],
                                        int(found["keepalive"]), set(prefixes))
    return model


def get(target):
    return parsed_get(uapi.answer(target, b"get=1\n\n", START))


def check_device(target):
    """What always holds of a device and its tables; the configuration, by get."""
    device, tables = target.device, target.tables
    owners = {}
    for public, peer in device.peers.items():
        assert peer.public_key == public and device.peer_in_slot(peer.slot) is peer
        assert device.public_key != public
        for prefix in peer.allowed_ips:
            assert prefix not in owners, f"{prefix} is twice"
            assert device.allowed_ips.owner(prefix) is peer
            owners[prefix] = peer
        sockaddr, _ = tables.peers.endpoint(peer.slot)
        assert sockaddr == (b"" if peer.endpoint is None
                            else peer.endpoint.sockaddr(target.family))
    assert len(owners) == len(device.allowed_ips)
    target.check_callbacks()
    by_text = {(len(packed), int.from_bytes(packed, "big"), length): peer
               for (packed, length), peer in owners.items()}
    for packed, length in owners:
        bits, best = 8 * len(packed), None
        last = int.from_bytes(packed, "big") | (1 << bits - length) - 1
        for number in {int.from_bytes(packed, "big"), last}:
            best = next(by_text[key] for covering in range(bits, -1, -1) if (key := (
                len(packed), number >> bits - covering << bits - covering, covering)) in by_text)
            assert tables.allowed_ips.lookup(number.to_bytes(bits // 8, "big")) == best.slot
    model = get(target)
    assert model.private == device.private_key
    assert model.peers.keys() == device.peers.keys()
    for public, peer in device.peers.items():
        assert {ip_network(prefix) for prefix in peer.allowed_ips} == model.peers[public].allowed
    return model


PRIVATES = [(keys.clamp(private), keys.public_of(private)) for private in (
    bytes([64]) * 32, bytes(range(32)), b"\xff" * 32)] + [(bytes(32), None)]
PUBLICS = [bytes([number]) * 32 for number in range(5)] + [
    public for _, public in PRIVATES[:2]] + [b"\xff" * 32]
BAD = object()
"""The meaning of a value that makes a whole request refused."""

BAD_KEYS = ["", "0", "00" * 31, "00" * 33, "0x" + "00" * 31, "zz" * 32, " " + "00" * 31 + " ",
            "00 " * 21 + "0", "AA" * 31 + "A"]
BAD_NUMBERS = ["", "-1", "+1", "1.0", "0x1", " 1", "1 ", "off", "99999999999999999999", "1_0"]
INTERFACE_VALUES = {
    "private_key": [(private.hex(), (private, public)) for private, public in PRIVATES],
    "listen_port": [(str(port), port) for port in (0, 1, 51820, 65535)] + [("0051820", 51820)],
    "fwmark": [(str(mark), mark) for mark in (0, 1, 51820, 2 ** 32 - 1)],
    "replace_peers": [("true", True)],
}
PEER_VALUES = {
    "preshared_key": [(key.hex(), key) for key in (bytes(32), b"\xff" * 32, bytes(range(32)))] + [
        ("AB" * 32, b"\xab" * 32)],
    "endpoint": [("192.0.2.1:1", "192.0.2.1:1"), ("[2001:DB8::0:1]:65535", "[2001:db8::1]:65535"),
                 ("[fe80::1%1]:5", "[fe80::1%1]:5"), ("0.0.0.0:9", "0.0.0.0:9"),
                 ("255.255.255.255:00009", "255.255.255.255:9"), ("[::]:9", "[::]:9")],
    "persistent_keepalive_interval": [(str(n), n) for n in (0, 1, 25, 65535)],
    "replace_allowed_ips": [("true", True)],
    "remove": [("true", True)],
    "update_only": [("true", True)],
    "protocol_version": [("1", 1)],
}
BAD_VALUES = {
    "private_key": BAD_KEYS, "preshared_key": BAD_KEYS,
    "listen_port": [*BAD_NUMBERS, "65536"], "fwmark": [*BAD_NUMBERS, "4294967296"],
    "persistent_keepalive_interval": [*BAD_NUMBERS, "65536"],
    "replace_peers": ["", "false", "1", "True", "true "],
    "replace_allowed_ips": ["", "false", "1", "TRUE"], "remove": ["", "false"],
    "update_only": ["", "false"], "protocol_version": ["", "0", "2", "1 "],
    "endpoint": ["", ":1", "192.0.2.1", "192.0.2.1:", "192.0.2.1:65536", "192.0.2.1:1 ",
                 "192.0.2.256:1", "192.0.2.01:1", "::1:5", "[::1]5", "[]:5", "[::1%nosuchif0]:5",
                 "host:1", "[::g]:1", "192.0.2.1:-1", "192.0.2.1:1:1", "[fe80::1%2147483648]:1"],
    "allowed_ip": ["", "-", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "10.0.0.0/-1",
                   "10.0.0.0/8/8", "a", "10.0.0.0/ 8", "010.0.0.0/8", "fe80::1%1/64", "/8",
                   "10.0.0.0/0x8", ":::/0", "10.0.0.0/8,10.1.0.0/8", " 10.0.0.0/8"],
}


def random_prefix(rng):
    """(text, network): few addresses, so that prefixes meet and nest."""
    if rng.random() < 0.5:
        bits, address = 32, rng.choice((0, 10 << 24, 10 << 24 | 1, 10 << 24 | 1 << 16, 2 ** 32 - 1))
    else:
        bits, address = 128, rng.choice((0, 1, 0xFD << 120, 0xFD << 120 | 1, 2 ** 128 - 1,
                                         1 << 64, 0xFFFF << 32 | 10 << 24))
    if rng.random() < 0.2:
        address ^= 1 << rng.randrange(bits)
    packed = address.to_bytes(bits // 8, "big")
    text = socket.inet_ntop(socket.AF_INET if bits == 32 else socket.AF_INET6, packed)
    if rng.random() < 0.1:
        return text, ip_network((address if bits == 32 else packed, bits))
    length = rng.choice((0, 1, 8, 16, 31, 32, bits // 2, bits - 1, bits, rng.randint(0, bits)))
    network = address >> bits - length << bits - length
    return f"{text}/{length}", ip_network((network.to_bytes(bits // 8, "big"), length))


def random_request(rng, *, bad=0.03):
    """(lines, interface, sections) of a set, as UapiModel takes them; None, None if one of its
    lines is malformed."""
    lines, interface, sections, is_good = [], [], [], True

    def put(key, values, said):
        nonlocal is_good
        if rng.random() < bad:
            lines.append(rng.choice((
                f"{key}={rng.choice(BAD_VALUES[key])}", key, f"{key} =true", f"={key}",
                f"unknown={key}", f"{key.upper()}=true")))
            is_good = False
            return
        text, meaning = rng.choice(values)
        lines.append(f"{key}={text}")
        said.append((key, meaning))

    for key in rng.choices(list(INTERFACE_VALUES), k=rng.choice((0, 0, 1, 2, 5))):
        if key != "replace_peers" or rng.random() < 0.3:
            put(key, INTERFACE_VALUES[key], interface)
    for _ in range(rng.choice((0, 1, 1, 2, 3, 6))):
        public, said = rng.choice(PUBLICS), []
        lines.append(f"public_key={public.hex()}")
        sections.append((public, said))
        for key in rng.choices((*PEER_VALUES, *["allowed_ip"] * 8), k=rng.randrange(8)):
            if key in ("remove", "update_only") and rng.random() < 0.7:
                continue
            if key != "allowed_ip":
                put(key, PEER_VALUES[key], said)
                continue
            text, network = random_prefix(rng)
            is_added = rng.random() < 0.8
            sign = rng.choice(("", "", "+")) if is_added else "-"
            put(key, [(sign + text, (is_added, network))], said)
    return (lines, interface, sections) if is_good else (lines, None, None)


def check_answer(answer):
    """The errno of an answer that has the right form."""
    found = re.fullmatch(rb"(?:[a-z_]+=[^\n]*\n)*errno=(0|-[1-9][0-9]*)\n\n", answer)
    assert found is not None, answer
    return int(found[1])


def check_uapi(rng):
    """Requests by the grammar do what the model says; any others are answered, and what is
    refused changes nothing."""
    inputs = []
    is_small = rng.random() < 0.2
    target = Target(peers=3, nodes=12) if is_small else Target()
    model = UapiModel()
    with telling(inputs):
        for _ in range(rng.randint(1, 4)):
            lines, interface, sections = random_request(rng)
            is_malformed = interface is None
            if rng.random() < 0.5:
                request = "\n".join(("set=1", *lines, "", "")).encode()
            else:
                is_malformed = False    # or so, who knows
                interface = None
                request = mutated(rng, "\n".join(("set=1", *lines, "", "")).encode())
                if rng.random() < 0.5:      # as the server cuts it, and still a set
                    request = b"set=1\n" + request.removeprefix(b"set=1\n")
            inputs.append(request)
            before = get(target)
            number = check_answer(uapi.answer(target, request, START))
            if number in (-errno.EINVAL, -errno.EPROTO):
                assert get(target) == before
                assert interface is None, "a good request was refused"
                continue
            assert not is_malformed, "a malformed request was taken"
            after = check_device(target)
            if number == 0 and interface is not None:
                model.set(interface, sections)
                assert replace(after, own=model.own) == model
            else:
                assert number in (0, -errno.ENOMEM, -errno.EADDRINUSE)
                assert number != -errno.ENOMEM or is_small
                own = next((public for private, public in PRIVATES if private == after.private),
                           target.device.public_key)
                model = replace(after, own=own)
