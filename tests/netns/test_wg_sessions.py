"""Two interfaces of `fastpump-wg`, and what wg does to the session between them."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastpump.lab.networks import INSIDE4, INSIDE6, OUTSIDE4, OUTSIDE6, wait_for_line
from support.hosts import Pings, is_reachable, transfer, until
from support.quick import a_public_key
from support.wginterfaces import Interface, has_its_sockets, other, section, section_of


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
