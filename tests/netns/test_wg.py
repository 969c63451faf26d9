"""`fastpump-wg`, driven by the real wg, wg-quick and ip, as a kernel's WireGuard would be."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fastpump.lab.networks import (
    INSIDE4,
    INSIDE6,
    OUTSIDE4,
    OUTSIDE6,
    need,
    stop,
    wait_for_line,
)
from fastpump.protocol import keys
from support.hosts import (
    WG_SOCKETS,
    Pings,
    children,
    fake_resolvconf,
    handshakes,
    interface_names,
    is_reachable,
    make_program,
    network_state,
    own_pid,
    pids_in,
    transfer,
    until,
    wg_ask,
)

FASTPUMP_WG = [sys.executable, "-m", "fastpump.cli.wg"]


def other(side):
    return "b" if side == "a" else "a"


def a_public_key(number):
    return keys.encode(keys.public_of(bytes([number]) * 32))


def has_its_sockets(lab, side):
    """Those of two queues and for handshakes, on one port, and those of lanes."""
    ports = Counter(line.split()[3].rpartition(":")[2]
                    for line in lab.run(side, "ss", "-lunH").stdout.splitlines())
    return sorted(ports.values()) == [1] * 32 + [3]


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


@pytest.fixture(autouse=True)
def _tools(monkeypatch):
    need("wg")
    monkeypatch.setenv("FASTPUMP_QUEUES", "2")


@pytest.fixture
def names():
    with interface_names(4) as made:
        yield made


@pytest.fixture
def alone(lab, names, tmp_path):
    """One interface on a, without peers, down."""
    made = Interface(lab, "a", names[0], tmp_path)
    made.start()
    return made


def section(public_key, allowed_ips, *lines):
    return "\n".join(("[Peer]", f"PublicKey = {public_key}", f"AllowedIPs = {allowed_ips}",
                      *lines, ""))


def section_of(to, *lines):
    """The [Peer] of the other side of a pair."""
    return section(to.public, f"{INSIDE4[to.side]}/32, {INSIDE6[to.side]}/128", *lines)


@pytest.fixture
def pair(lab, names, tmp_path):
    """An interface on each side with a session: {side: Interface}. a knows where b is."""
    made = {side: Interface(lab, side, name, tmp_path)
            for side, name in zip("ab", names, strict=False)}
    for side, interface in made.items():
        interface.start()
        extra = [f"Endpoint = {OUTSIDE4['b']}:51820"] if side == "a" else []
        interface.wg("setconf", interface.config(section_of(made[other(side)], *extra)))
        interface.set_up()
    assert is_reachable(lab, INSIDE4["b"])
    until(lambda: made["b"].handshakes()[made["a"].public] > (0, 0))
    return made


# -- what wg shows and sets

def test_it_goes_to_the_background_and_wg_sees_it(alone, lab):
    (link,) = json.loads(lab.ip("a", "-json", "link", "show", alone.name))
    assert link["mtu"] == 1420 and "UP" not in link["flags"]
    assert alone.socket.stat().st_mode & 0o777 == 0o600
    pid = alone.pid
    assert os.getsid(pid) == pid
    assert all(Path(f"/proc/{pid}/fd/{fd}").samefile("/dev/null") for fd in (0, 1, 2))
    assert alone.name in lab.run("a", "wg", "show", "interfaces").stdout.split()
    assert f"interface: {alone.name}\n" in lab.run("a", "wg", "show", "all").stdout
    assert f"{alone.name}\t(none)\t(none)\t0\toff" in lab.run(
        "a", "wg", "show", "all", "dump").stdout.splitlines()
    assert alone.dump() == (["(none)", "(none)", "0", "off"], {})
    assert alone.wg("showconf").stdout == "[Interface]\n\n"


def test_in_front_it_says_when_it_is_ready(lab, names):
    process = lab.spawn("a", *FASTPUMP_WG, "-f", names[0])
    assert wait_for_line(process, "ready") == f"{names[0]} is ready"
    assert f"interface: {names[0]}" in lab.run("a", "wg", "show", names[0]).stdout
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=10)[0]
    assert process.returncode == 0 and "stopped on SIGINT" in output
    assert "Traceback" not in output
    process = lab.spawn("a", *FASTPUMP_WG, names[0], env={"WG_PROCESS_FOREGROUND": "1"})
    wait_for_line(process, f"{names[0]} is ready")


@pytest.mark.parametrize("state", ["down", "up"])
def test_wg_set_changes_what_it_names(alone, lab, state):
    lab.ip("a", "link", "set", alone.name, state)
    psk = keys.encode(bytes(range(32)))
    first, second = a_public_key(1), a_public_key(2)
    alone.set_key()
    port = alone.dump()[0][2]
    assert (port == "0") is (state == "down")
    fixed = [alone.private, alone.public]
    assert alone.dump()[0] == [*fixed, port, "off"]
    for words, expected in (
            (("listen-port", "4242"), ["4242", "off"]),
            (("fwmark", "0x1234"), ["4242", "0x1234"]),
            (("listen-port", "4243"), ["4243", "0x1234"]),
            (("fwmark", "off"), ["4243", "off"]),
            (("fwmark", "0xffffffff"), ["4243", "0xffffffff"]),
            (("fwmark", "0"), ["4243", "off"])):
        alone.wg("set", *words)
        assert alone.dump()[0] == [*fixed, *expected], words
    empty = ["(none)", "(none)", "(none)", "0", "0", "0", "off"]
    # Without a private key nothing is sent, though there are keepalives and an endpoint.
    alone.wg("set", "private-key", "/dev/null")
    for words, changed in (
            ((), {}),
            (("preshared-key", alone.file(psk, "psk")), {0: psk}),
            (("endpoint", "192.0.2.2:5"), {1: "192.0.2.2:5"}),
            (("endpoint", "[2001:db8::2]:6"), {1: "[2001:db8::2]:6"}),
            (("persistent-keepalive", "25"), {6: "25"}),
            (("allowed-ips", "10.1.2.3/16"), {2: "10.1.0.0/16"}),
            (("allowed-ips", "fd00::/64"), {2: "fd00::/64"}),
            (("allowed-ips", "0.0.0.0/0"), {2: "0.0.0.0/0"}),
            (("allowed-ips", ""), {2: "(none)"}),
            (("persistent-keepalive", "off"), {6: "off"}),
            (("preshared-key", "/dev/null"), {0: "(none)"}),
            (("allowed-ips", "10.1.0.0/16", "persistent-keepalive", "65535"),
             {2: "10.1.0.0/16", 6: "65535"})):
        alone.wg("set", "peer", first, *words)
        empty = [changed.get(number, value) for number, value in enumerate(empty)]
        assert alone.dump()[1] == {first: empty}, words
    # An allowed IP has one owner.
    alone.wg("set", "peer", second, "allowed-ips", "10.1.0.0/16,10.2.0.0/16")
    assert alone.peer(first)[2] == "(none)"
    assert set(alone.peer(second)[2].split(",")) == {"10.1.0.0/16", "10.2.0.0/16"}
    alone.wg("set", "peer", first, "remove")
    alone.wg("set", "peer", first, "remove")
    assert set(alone.dump()[1]) == {second}
    # Our own key is no peer: not when it is set, and not when it becomes ours.
    alone.set_key()
    alone.wg("set", "peer", alone.public, "allowed-ips", "10.3.0.0/16")
    assert set(alone.dump()[1]) == {second}
    alone.wg("set", "private-key", alone.file(keys.encode(bytes([2]) * 32), "key"))
    assert alone.dump()[1] == {} and alone.dump()[0][1] == second


def test_setconf_addconf_and_syncconf(alone):
    one, two, three = (section(a_public_key(number), f"10.{number}.0.0/16", *lines)
                       for number, lines in ((1, ["Endpoint = 192.0.2.7:1"]),
                                             (2, [f"PresharedKey = {keys.encode(b'x' * 32)}"]),
                                             (3, ["PersistentKeepalive = 7"])))

    def peers():
        return {keys.decode(key, "key"): value[2] for key, value in alone.dump()[1].items()}

    def expected(*numbers):
        return {keys.decode(a_public_key(number), "key"): f"10.{number}.0.0/16"
                for number in numbers}

    alone.wg("setconf", alone.config(one, two, port=4242))
    assert alone.dump()[0][2] == "4242" and peers() == expected(1, 2)
    alone.wg("addconf", alone.file(three, "conf"))
    assert peers() == expected(1, 2, 3)
    assert alone.peer(a_public_key(1))[1] == "192.0.2.7:1"
    assert alone.peer(a_public_key(3))[6] == "7"
    text = alone.wg("showconf").stdout
    alone.wg("syncconf", alone.config(three, two, port=4243))
    assert peers() == expected(2, 3) and alone.dump()[0][2] == "4243"
    alone.wg("syncconf", alone.config(port=4242))
    assert peers() == {}
    # What showconf says makes the same interface again; what setconf does not say is gone.
    alone.wg("setconf", alone.file(text, "conf"))
    assert sorted(alone.wg("showconf").stdout.split("\n\n")) == sorted(text.split("\n\n"))
    assert peers() == expected(1, 2, 3)
    alone.wg("setconf", alone.file("[Interface]\n", "conf"))
    assert peers() == {} and alone.dump()[0][0] == "(none)"


def test_what_wg_does_not_send_is_refused_and_changes_nothing(alone):
    alone.set_key()
    before = alone.dump()
    peer = f"public_key={'11' * 32}\n"
    for lines in ("listen_port=70000\n", "fwmark=-1\n", "private_key=00\n", "color=red\n",
                  "listen_port\n", f"{peer}allowed_ip=10.0.0.0/33\n", f"{peer}endpoint=host:1\n",
                  f"{peer}persistent_keepalive_interval=65536\n", f"{peer}protocol_version=2\n",
                  f"{peer}remove=yes\n", "listen_port=\u00b2\n"):
        answer = alone.ask(f"set=1\nfwmark=5\n{lines}\n".encode())
        assert re.fullmatch(r"errno=-?[1-9]\d*\n\n", answer), lines
        assert alone.dump() == before, lines


# -- traffic

def test_a_session_between_two(pair, lab):
    for side in "ab":
        for host in (INSIDE4[other(side)], INSIDE6[other(side)]):
            assert is_reachable(lab, host, side)
            assert transfer(lab, side, host, 8 << 20)
    for side, interface in pair.items():
        _, endpoint, _, handshake, received, sent, _ = interface.peer(pair[other(side)].public)
        assert endpoint == f"{OUTSIDE4[other(side)]}:51820" and int(handshake) > 0
        assert int(received) > 16 << 20 and int(sent) > 16 << 20
        assert "latest handshake:" in interface.wg("show").stdout


def test_a_change_elsewhere_does_not_disturb_a_session(pair, lab, tmp_path):
    a, b = pair["a"], pair["b"]
    known = section_of(b, f"Endpoint = {OUTSIDE4['b']}:51820")
    more = section(a_public_key(1), "10.77.0.0/16", "Endpoint = 192.0.2.9:9")
    steps = (
        ("set", "peer", a_public_key(2), "allowed-ips", "10.78.0.0/16"),
        ("set", "peer", a_public_key(2), "remove"),
        ("syncconf", a.file(Path(a.config(known, more)).read_text(), "sync1")),
        ("syncconf", a.file(Path(a.config(known)).read_text(), "sync2")),
        ("addconf", a.file(more, "add")),
        # To us from another, and away again.
        ("set", "peer", b.public, "allowed-ips",
         f"{INSIDE4['b']}/32,{INSIDE6['b']}/128,10.77.0.0/16"),
        ("set", "peer", a_public_key(1), "allowed-ips", "10.77.0.0/16"),
        # A shorter prefix around the one in use goes to another.
        ("set", "peer", a_public_key(1), "allowed-ips", "10.9.0.0/24"),
        ("set", "private-key", a.file(a.private, "same")),
        ("set", "listen-port", "51820"),
        ("set", "fwmark", "7"), ("set", "fwmark", "off"),
        ("set", "peer", b.public, "persistent-keepalive", "20"),
        ("set", "peer", b.public, "endpoint", f"{OUTSIDE4['b']}:51820"))
    before = a.handshakes()[b.public], b.handshakes()[a.public]
    pings = Pings(lab, "a", INSIDE4["b"], tmp_path / "pings")
    with ThreadPoolExecutor() as pool:
        stream = pool.submit(transfer, lab, "a", INSIDE4["b"], 8 << 20, seconds=3)
        for command, *words in steps:
            a.wg(command, *words)
            assert not pings.go_on(), (command, *words)
            assert (a.handshakes()[b.public], b.handshakes()[a.public]) == before, words
        assert stream.result()
    assert not pings.end()


def test_moving_an_allowed_ip_moves_its_packets(pair, lab):
    """With the prefix at a peer that is nowhere there is no way; back, the session is there."""
    a, b = pair["a"], pair["b"]
    before = a.handshakes()[b.public]
    a.wg("set", "peer", a_public_key(1), "allowed-ips", f"{INSIDE4['b']}/32")
    assert b.public in a.dump()[1] and a.peer(b.public)[2] == f"{INSIDE6['b']}/128"
    ping = lab.run("a", "ping", "-c", "1", "-W", "1", INSIDE4["b"], check=False)
    assert ping.returncode != 0
    assert is_reachable(lab, INSIDE6["b"])
    a.wg("set", "peer", b.public, "allowed-ips", f"{INSIDE4['b']}/32,{INSIDE6['b']}/128")
    assert is_reachable(lab, INSIDE4["b"])
    assert a.handshakes()[b.public] == before


def test_another_port_keeps_the_session(pair, lab):
    a, b = pair["a"], pair["b"]
    before = a.handshakes(), b.handshakes()
    with ThreadPoolExecutor() as pool:
        stream = pool.submit(transfer, lab, "a", INSIDE4["b"], 8 << 20, seconds=2)
        for port in ("4001", "4002", "0"):
            a.wg("set", "listen-port", port)
            now = a.dump()[0][2]
            assert now == port if port != "0" else now not in ("0", "4002")
            until(lambda now=now: b.peer(a.public)[1] == f"{OUTSIDE4['a']}:{now}")
        assert stream.result()
    assert (a.handshakes(), b.handshakes()) == before
    assert has_its_sockets(lab, "a")


def test_a_taken_port_changes_nothing(pair, lab):
    a, b = pair["a"], pair["b"]
    holder = lab.spawn("a", sys.executable, "-c", (
        "import socket, time\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.bind(('', 4000))\n"
        "print('bound', flush=True)\n"
        "time.sleep(1000)\n"))
    wait_for_line(holder, "bound")
    before, session = a.dump()[0], a.handshakes()
    result = a.wg("set", "listen-port", "4000", check=False)
    assert result.returncode == 1 and "Address already in use" in result.stderr
    assert a.dump()[0] == before and is_reachable(lab, INSIDE4["b"])
    assert a.handshakes() == session
    # While it is down nobody notices; once up, it works when there is a port.
    lab.ip("a", "link", "set", a.name, "down")
    a.wg("set", "listen-port", "4000")
    lab.ip("a", "link", "set", a.name, "up")
    until(lambda: a.wg("set", "listen-port", "4000", check=False).returncode == 1)
    a.wg("set", "listen-port", "4001")
    until(lambda: is_reachable(lab, INSIDE4["b"]))
    assert b.peer(a.public)[1] == f"{OUTSIDE4['a']}:4001"


def test_without_a_private_key_there_is_no_session(pair, lab):
    a, b = pair["a"], pair["b"]
    a.wg("set", "private-key", "/dev/null")
    assert a.dump()[0][:2] == ["(none)", "(none)"] and b.public in a.dump()[1]
    ping = lab.run("a", "ping", "-c", "1", "-W", "1", INSIDE4["b"], check=False)
    assert ping.returncode != 0
    before = b.handshakes()[a.public]
    a.set_key()
    assert is_reachable(lab, INSIDE4["b"])
    assert b.handshakes()[a.public] > before


SOURCES = """
import socket, sys
sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
sock.bind(("wire", 0))
sock.settimeout(0.2)
print("capturing", flush=True)
while True:
    try:
        packet, (_, _, kind, *_) = sock.recvfrom(4096)
    except TimeoutError:
        continue
    if kind == 4:       # sent by this host
        continue
    if packet[0] >> 4 == 4 and packet[9] == 17:
        print(socket.inet_ntop(socket.AF_INET, packet[12:16]), packet[28], flush=True)
    if packet[0] >> 4 == 6 and packet[6] == 17:
        print(socket.inet_ntop(socket.AF_INET6, packet[8:24]), packet[48], flush=True)
"""


@pytest.mark.parametrize("outside, second", [
    (OUTSIDE4, "192.0.2.22"), (OUTSIDE6, "2001:db8::22")], ids=["outside4", "outside6"])
def test_answers_come_from_the_address_that_was_asked(lab, names, tmp_path, outside, second):
    """b has two addresses, and the kernel would choose the first."""
    prefix = "64" if ":" in second else "24"
    lab.ip("b", "address", "add", f"{second}/{prefix}", "dev", "wire",
           *(["nodad", "preferred_lft", "0"] if ":" in second else []))
    where = {address: f"[{address}]" if ":" in address else address
             for address in (second, outside["a"], outside["b"])}
    a, b = (Interface(lab, side, name, tmp_path)
            for side, name in zip("ab", names, strict=False))
    for interface in (a, b):
        interface.start()
    a.wg("setconf", a.config(section_of(b, f"Endpoint = {where[second]}:51820")))
    b.wg("setconf", b.config(section_of(a)))
    log = tmp_path / "sources"
    lab.spawn("a", "sh", "-c", 'exec "$0" -c "$1" > "$2"', sys.executable, SOURCES, str(log))
    until(lambda: log.exists() and "capturing" in log.read_text())
    for interface in (a, b):
        interface.set_up()
    for side in "ab":
        assert is_reachable(lab, INSIDE4[other(side)], side)
    assert transfer(lab, "b", INSIDE4["a"], 1 << 20)
    # And the answer to another handshake.
    a.wg("set", "private-key", "/dev/null")
    a.set_key()
    assert is_reachable(lab, INSIDE4["b"])
    seen = {tuple(line.split()) for line in log.read_text().splitlines()[1:]}
    assert {source for source, _ in seen} == {second} and {"2", "4"} <= {kind for _, kind in seen}
    assert a.peer(b.public)[1] == f"{where[second]}:51820"
    # When that address is gone, another will do, and a follows.
    lab.sysctl("b", {"net.ipv4.conf.all.promote_secondaries": 1})
    lab.ip("b", "address", "delete", f"{second}/{prefix}", "dev", "wire")
    assert until(lambda: is_reachable(lab, INSIDE4["a"], "b"))
    assert a.peer(b.public)[1] == f"{where[outside['b']]}:51820"


# -- the interface's life

def test_it_follows_its_interface_down_up_and_under_another_name(pair, lab, names):
    a = pair["a"]
    lab.ip("a", "link", "set", a.name, "down")
    until(lambda: not lab.run("a", "ss", "-lunH").stdout)
    assert a.dump()[0][2] == "51820"
    lab.ip("a", "link", "set", a.name, "name", names[2])
    until(lambda: not a.socket.exists())
    a.name = names[2]
    until(a.socket.exists)
    lab.ip("a", "link", "set", a.name, "up")
    # The first name is free for another.
    lab.run("a", *FASTPUMP_WG, names[0])
    lab.ip("a", "link", "delete", names[0])
    assert until(lambda: is_reachable(lab, INSIDE4["b"]))
    assert a.peer(pair["b"].public)[1] == f"{OUTSIDE4['b']}:51820"
    assert f"{a.name}\n" in lab.run("a", "wg", "show", "interfaces").stdout.replace(" ", "\n")
    (status,) = (each for each in json.loads(lab.run(
        "a", sys.executable, "-m", "fastpump", "status", "--json").stdout)["interfaces"]
        if each["name"] == a.name)
    assert status["is_up"]


def test_tcp_flows_through_every_mtu(pair, lab):
    for mtu in ("1280", "9000", "65000", "1420"):
        for side, interface in pair.items():
            lab.ip(side, "link", "set", interface.name, "mtu", mtu)
        until(lambda mtu=mtu: lab.status("a")["mtu"] == int(mtu) == lab.status("b")["mtu"])
        for side in "ab":
            assert transfer(lab, side, INSIDE4[other(side)], 2 << 20)
    assert lab.status("a")["worker_restarts"] == 0


def test_its_udp_socket_stays_where_it_was_born(pair, lab):
    """The interface moves to a namespace without any other: as containers use it."""
    a = pair["a"]
    lab.add_host("c")
    pid = a.pid
    lab.ip("a", "link", "set", a.name, "netns", lab.names["c"])
    lab.ip("c", "address", "add", f"{INSIDE4['a']}/24", "dev", a.name)
    lab.ip("c", "link", "set", a.name, "up")
    until(lambda: is_reachable(lab, INSIDE4["b"], "c"))
    assert f": {a.name}:" not in lab.ip("a", "link")
    assert transfer(lab, "c", INSIDE4["b"], 1 << 20)
    assert ":51820" in lab.run("a", "ss", "-lunH").stdout
    assert lab.run("c", "ss", "-lunH").stdout == ""
    assert f"interface: {a.name}" in lab.run("c", "wg", "show", a.name).stdout
    lab.ip("c", "link", "set", a.name, "mtu", "1300")
    until(lambda: lab.status("c")["mtu"] == 1300)
    lab.ip("c", "link", "delete", a.name)
    until(lambda: not Path(f"/proc/{pid}").exists() and not a.socket.exists())


@pytest.mark.parametrize("how", ["deleted", "socket removed", "SIGTERM", "SIGINT", "SIGHUP"])
def test_it_ends_and_leaves_nothing(pair, lab, tmp_path, how):
    a = pair["a"]
    pids = [a.pid, *children(a.pid)]
    assert len(pids) == 3
    if how == "deleted":
        lab.ip("a", "link", "delete", a.name)
    elif how == "socket removed":
        a.socket.unlink()
    else:
        os.kill(pids[0], getattr(signal, how))
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert a.is_gone() and pids_in(lab, "a") == []
    assert lab.run("a", "ss", "-lunH").stdout == ""
    assert a.name not in lab.run("a", "wg", "show", "interfaces").stdout.split()
    b = pair["b"]
    os.kill(b.pid, signal.SIGTERM)
    until(b.is_gone)
    assert not (tmp_path / "run").exists()


def complaint(lab, side, *words, **environment):
    """What a fastpump-wg that cannot start says: one sentence, status 1."""
    result = subprocess.run(lab.command(side, [*FASTPUMP_WG, *words]), capture_output=True,
                            text=True, timeout=20, check=False, env=os.environ | environment)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 1 and result.stdout == "" and line.startswith("fastpump-wg: ")
    return line


def test_a_name_has_one_owner(alone, lab):
    before = alone.ask()
    for words in ((alone.name,), ("-f", alone.name)):
        assert "exists already" in complaint(lab, "a", *words)
        assert "another WireGuard already listens" in complaint(lab, "b", *words)
        assert f": {alone.name}:" not in lab.ip("b", "link")
        assert pids_in(lab, "b") == []
    assert alone.ask() == before and alone.pid is not None


def test_what_a_killed_one_leaves_is_replaced(alone, lab):
    os.kill(alone.pid, signal.SIGKILL)
    until(lambda: pids_in(lab, "a") == [])
    until(lambda: f": {alone.name}:" not in lab.ip("a", "link"))
    assert alone.socket.exists()
    alone.start()
    assert alone.dump()[0] == ["(none)", "(none)", "0", "off"]


@pytest.mark.parametrize("variable, value, word", [
    ("QUEUES", "0", "QUEUES"), ("QUEUES", "257", "QUEUES"), ("QUEUES", "many", "QUEUES"),
    ("PIN", "2", "PIN"), ("PIN", "yes", "PIN"), ("BUSY_POLL", "-1", "BUSY_POLL"),
    ("BUSY_POLL", "1000001", "BUSY_POLL"), ("OFFLOAD", "tso4", "tso4"),
    ("OFFLOAD", "rot13=off", "rot13"), ("OFFLOAD", "gro=off,tso4=maybe", "maybe"),
    ("LOG_LEVEL", "loud", "LOG_LEVEL"), ("AEAD", "rot13", "AEAD")])
def test_a_bad_environment_is_explained(lab, names, variable, value, word):
    assert word in complaint(lab, "a", names[0], **{f"FASTPUMP_{variable}": value})
    assert f": {names[0]}:" not in lab.ip("a", "link")


def test_the_environment_is_obeyed(lab, names, monkeypatch):
    for variable, value in (("QUEUES", "3"), ("BUSY_POLL", "5"), ("PIN", "0"), ("AEAD", "openssl"),
                            ("OFFLOAD", "tso4=off, uso=off,"), ("LOG_LEVEL", "DEBUG")):
        monkeypatch.setenv(f"FASTPUMP_{variable}", value)
    lab.run("a", *FASTPUMP_WG, names[0])
    status = lab.status("a")
    assert len(status["queues"]) == 3 and status["aead"] == "openssl"
    assert not {"tso4", "uso"} & set(status["offloads"]) and "tso6" in status["offloads"]


# -- the socket under attack

def test_garbage_and_slow_clients_do_no_harm(pair, lab):
    a = pair["a"]
    pid, before = a.pid, a.handshakes()
    shown = a.wg("show", "peers").stdout

    def client():
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(10)
        made.connect(str(a.socket))
        return made

    for junk in (b"\n\n", b"get=2\n\n", b"\0" * 100 + b"\n\n", bytes(range(256)) * 9 + b"\n\n",
                 b"set=1\nprivate_key=\xff\n\n", b"get=1\nx=y\n\n", b"set\n\n",
                 b"set=1\nfwmark=" + b"9" * 5000 + b"\n\n"):
        assert re.fullmatch(r"errno=-?[1-9]\d*\n\n", a.ask(junk)), junk
    with client() as huge:                      # a line without an end
        try:
            for _ in range(80):
                huge.sendall(b"x" * (1 << 20))
            huge.shutdown(socket.SHUT_WR)
            assert huge.recv(1) == b""
        except (BrokenPipeError, ConnectionResetError):
            pass
    with client() as slow:                      # byte by byte, with others in between
        for byte in b"get=1\n\n":
            slow.sendall(bytes([byte]))
            assert a.wg("show", "peers").stdout == shown
        assert slow.recv(1 << 16).startswith(b"private_key=")
        slow.sendall(b"get=1\n\nget=1\n\n")     # two at once
        answers = b""
        while answers.count(b"errno=0\n\n") < 2:
            answers += slow.recv(1 << 16)
    with client() as deaf:                      # asks and never reads
        deaf.settimeout(0.2)
        try:
            for _ in range(20000):
                deaf.sendall(b"get=1\n\n" * 100)
        except TimeoutError:
            pass
        assert a.wg("show", "peers").stdout == shown
        assert is_reachable(lab, INSIDE4["b"])
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: a.wg("show", "peers").stdout, range(24))) == {shown}
    assert a.pid == pid and a.handshakes() == before
    assert is_reachable(lab, INSIDE4["b"])


def test_idle_clients_do_not_keep_wg_out(alone):
    idle = []
    try:
        for _ in range(40):
            idle.append(socket.socket(socket.AF_UNIX))
            idle[-1].connect(str(alone.socket))
        assert alone.dump()[0][3] == "off"
    finally:
        for each in idle:
            each.close()
    until(lambda: alone.wg("show", check=False).returncode == 0)


# -- wg-quick

@pytest.fixture
def quick(lab, names, tmp_path, monkeypatch):
    """Debian's wg-quick as on a host without the kernel's WireGuard, with a resolvconf of ours;
    a function that runs it on a side, and the directory of resolvconf's records."""
    need("wg-quick", "nft")
    programs, records = tmp_path / "bin", fake_resolvconf(tmp_path)
    # It puts its own directory first in PATH.
    text = Path(shutil.which("wg-quick")).read_text().replace("/sys/module/wireguard", "/none")
    make_program(programs, "wg-quick", text)
    make_program(programs, "ip", (
        "#!/bin/sh\n"
        'case "$*" in "link add "*" type wireguard") exit 2 ;; esac\n'
        f'exec {shutil.which("ip")} "$@"\n'))
    package = Path(sys.modules["fastpump"].__file__).parent.parent
    monkeypatch.setenv("WG_QUICK_USERSPACE_IMPLEMENTATION", str(make_program(
        programs, "fastpump-wg", "#!/bin/sh\n"
        f'PYTHONPATH={package} exec {sys.executable} -m fastpump.cli.wg "$@"\n')))

    def run(side, verb, path, **options):
        return lab.run(side, "bash", str(programs / "wg-quick"), verb, str(path), **options)

    return run, records


def full_tunnel(path, private, public):
    """A file that leads everything into the tunnel."""
    path.touch(mode=0o600)
    path.write_text(
        f"[Interface]\nPrivateKey = {private}\n"
        f"Address = {INSIDE4['a']}/24, {INSIDE6['a']}/64\nDNS = 10.9.0.2, example.net\n"
        f"PostUp = echo up %i >> {path.parent}/hooks\n"
        f"PostDown = echo down %i >> {path.parent}/hooks\n"
        f"[Peer]\nPublicKey = {public}\nAllowedIPs = 0.0.0.0/0, ::/0\n"
        f"Endpoint = {OUTSIDE4['b']}:51820\n")
    return path


def test_wg_quick_brings_a_full_tunnel_up_and_down(lab, names, tmp_path, quick):
    run, records = quick
    a, b = (Interface(lab, side, name, tmp_path)
            for side, name in zip("ab", names, strict=False))
    b.start()
    b.wg("setconf", b.config(section_of(a)))
    b.set_up()
    far = ("203.0.113.7", "2001:db8:77::7")
    for address in far:
        lab.ip("b", "address", "add", address, "dev", "lo")
    path = full_tunnel(tmp_path / f"{a.name}.conf", a.private, b.public)
    before = network_state(lab, "a", records)
    for _ in range(2):
        run("a", "up", path)
        assert (records / a.name).read_text() == "nameserver 10.9.0.2\nsearch example.net\n"
        for host in (INSIDE4["b"], INSIDE6["b"], *far):
            assert is_reachable(lab, host)
        assert transfer(lab, "a", far[0], 4 << 20)
        assert a.dump()[0][3] == "0xca6c"
        (link,) = json.loads(lab.ip("a", "-json", "link", "show", a.name))
        assert link["mtu"] == 1420
        run("a", "down", path)
        until(a.is_gone)
        assert network_state(lab, "a", records) == before
    assert (tmp_path / "hooks").read_text() == f"up {a.name}\ndown {a.name}\n" * 2


def test_wg_quick_undoes_all_when_a_command_of_the_file_fails(lab, names, tmp_path, quick):
    run, records = quick
    path = full_tunnel(tmp_path / f"{names[0]}.conf", keys.encode(bytes([9]) * 32), a_public_key(1))
    path.write_text(path.read_text().replace("PostUp = ", "PostUp = exit 7 # "))
    before = network_state(lab, "a", records)
    assert run("a", "up", path, check=False).returncode == 7
    until(lambda: pids_in(lab, "a") == [])
    assert network_state(lab, "a", records) == before


def test_wg_quick_saves_what_wg_set(lab, names, tmp_path, quick):
    run, _ = quick
    a = Interface(lab, "a", names[0], tmp_path)
    path = tmp_path / f"{a.name}.conf"
    path.touch(mode=0o600)
    path.write_text(f"[Interface]\nPrivateKey = {a.private}\nListenPort = 4242\n"
                    "Address = 10.9.0.1/24\nSaveConfig = true\n")
    run("a", "up", path)
    a.wg("set", "peer", a_public_key(1), "allowed-ips", "10.7.0.0/16", "endpoint", "192.0.2.2:7")
    run("a", "down", path)
    until(a.is_gone)
    run("a", "up", path)
    assert a.peer(a_public_key(1))[1:3] == ["192.0.2.2:7", "10.7.0.0/16"]
    assert a.dump()[0][:3] == [a.private, a.public, "4242"]
    os.kill(a.pid, signal.SIGTERM)
    until(a.is_gone)


def test_two_that_serve_wg_beside_each_other(lab, names):
    """The directory of wg's sockets is one for all, and goes with its last socket."""
    processes = [lab.spawn(side, *FASTPUMP_WG, "-f", name, env={"FASTPUMP_QUEUES": "1"})
                 for side, name in zip("abab", names, strict=True)]
    for process in processes:
        wait_for_line(process, "is ready")
    shown = lab.run("a", "wg", "show", "interfaces").stdout.split()
    assert set(names) <= set(shown)
    for process in processes:
        assert "stopped on SIGTERM" in stop(process)
        assert process.returncode == 0
