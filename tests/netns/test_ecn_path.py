"""Congestion marks on a real path: an ECN router, and TCP that reacts to it (RFC 6040)."""

import json
import sys

import pytest

from fastpump.lab.networks import INSIDE4, INSIDE6, key_files, tunnel_words
from support.hosts import is_reachable, transfer

# Prints the ECN fields of 20 datagrams that come to the tunnel's port, while pings go out.
CAPTURE = """
import json, socket, subprocess, sys
to, tos = sys.argv[1:]
sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
sniffer.bind(("wire", 0))
sniffer.settimeout(20)
pings = subprocess.Popen(["ping", "-n", "-q", "-i", "0.01", "-c", "40", "-Q", tos, to],
                         stdout=subprocess.DEVNULL)
found = []
while len(found) < 20:
    frame, address = sniffer.recvfrom(128)
    if address[2] != 4:                     # PACKET_OUTGOING
        continue
    if frame[12:14] == b"\\x08\\x00" and frame[23] == 17 and frame[42] in (4, 5):
        found.append(frame[15] & 3)
    elif frame[12:14] == b"\\x86\\xdd" and frame[20] == 17 and frame[62] in (4, 5):
        found.append(frame[15] >> 4 & 3)
pings.wait()
print(json.dumps(found))
"""
MARK = """table inet router { chain in { type filter hook prerouting priority -300
udp dport 51820 ip ecn { ect0, ect1 } ip ecn set ce
udp dport 51820 ip6 ecn { ect0, ect1 } ip6 ecn set ce
}
}
"""
ENDS = pytest.mark.parametrize("transport, v6_outside", [
    ("lanes", False), ("lanes", True), ("wireguard", False), ("wireguard", True)])


@pytest.fixture
def pair(lab, tmp_path):
    """Tunnels with one queue, so that all goes to one port."""
    def start(transport, v6_outside):
        key = key_files(tmp_path)
        for side, other in ("ab", "ba"):
            lab.fastpump(side, *tunnel_words(side, key[side], key[other][1], "--transport",
                                             transport, v6_outside=v6_outside))
        assert is_reachable(lab, INSIDE4["b"])
        return lab
    return start


def marked(lab, side):
    """Packets with CE that a host has received, by IP version."""
    counts = dict(line.split()[:2] for line in lab.run(
        side, "nstat", "-asz", "IpExtInCEPkts", "Ip6InCEPkts").stdout.splitlines()[1:])
    return {version: int(counts.get(name, 0)) for version, name in (
        (4, "IpExtInCEPkts"), (6, "Ip6InCEPkts"))}


@ENDS
def test_a_datagram_shows_what_is_in_it(pair, transport, v6_outside):
    lab = pair(transport, v6_outside)
    for tos in range(4):
        shown = json.loads(lab.run("a", sys.executable, "-c", CAPTURE, INSIDE4["b"],
                                   str(tos)).stdout)
        # Keepalives and probes are not marked, nor what was under way from before.
        assert shown.count(tos) >= 15


@ENDS
def test_a_router_s_mark_reaches_tcp(pair, transport, v6_outside):
    lab = pair(transport, v6_outside)
    for side in "ab":
        lab.sysctl(side, {"net.ipv4.tcp_ecn": 1})
    lab.run("b", "nft", "-f", "-", input=MARK)
    version = 4 if v6_outside else 6        # what is inside is counted apart from what is outside
    inside = (INSIDE4 if v6_outside else INSIDE6)["b"]
    before = marked(lab, "b")
    assert transfer(lab, "a", inside, 2 << 20)
    after = marked(lab, "b")
    assert after[version] - before[version] > 20
    told = lab.run("a", "nstat", "-asz", "TcpExtTCPDeliveredCE").stdout.split()[-2]
    assert int(told) > 0
