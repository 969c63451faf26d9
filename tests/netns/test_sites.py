"""One Ethernet over three sites with two hosts each: what hosts see of it."""

import contextlib
import json
import random
import re
import sys
import time
from pathlib import Path

import pytest

from fastpump._core import split
from fastpump.lab.networks import stop, wait_for_line
from support.ethernets import Sites, broadcast, inside4, inside6, switched
from support.hosts import until
from support.packets import (
    ACK,
    PLAIN,
    checksums_are_right,
    frame,
    framed,
    parse_vnet,
    superpacket,
    tcp,
    udp,
)

STATION = str(Path(__file__).parents[1] / "support" / "station.py")


@pytest.fixture(autouse=True, scope="module")
def _own_directories(tmp_path_factory):
    """As in conftest.py, for the whole module: its tunnels last as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTPUMP_STATE", str(tmp_path_factory.mktemp("state")))
        patch.setenv("FASTPUMP_RUN", str(tmp_path_factory.mktemp("run")))
        yield


@pytest.fixture(scope="module")
def lab():
    with Sites() as made:
        yield made


@pytest.fixture(scope="module")
def mesh(lab, tmp_path_factory):
    """Every site the peer of every other."""
    with switched(lab, tmp_path_factory.mktemp("mesh"), "--queues", "2") as processes:
        yield processes


def learned(lab, site):
    """{(MAC, VLAN): the peer's key, None for this side}."""
    answer = json.loads(lab.run(site, sys.executable, "-m", "fastpump", "fdb", "show", "fp0",
                                "--json").stdout)
    return {(entry["mac"], entry["vlan"]): entry["peer"] for entry in answer["macs"]}


def mac_of(lab, host, link="eth0"):
    return re.search(r"link/ether (\S+)", lab.ip(host, "link", "show", link)).group(1)


@pytest.mark.parametrize("address", [inside4, inside6], ids=["IPv4", "IPv6"])
def test_every_host_reaches_every_other(lab, mesh, address):
    failed = [(one, two) for one in lab.hosts for two in lab.hosts
              if one != two and not lab.pings(one, address(two))]
    assert failed == []


def test_hosts_are_learned_where_they_are(lab, mesh):
    for host in lab.hosts:
        assert lab.pings(host, inside4("h11" if host != "h11" else "h21"))
    sites = {lab.status(site)["public_key"]: site for site in lab.sites}
    known = learned(lab, "s1")
    for host in lab.hosts:
        owner = known[mac_of(lab, host), 0]
        assert (owner is None) == (host[1] == "1")
        assert owner is None or sites[owner] == f"s{host[1]}"


def test_a_tcp_stream_keeps_its_superpackets(lab, mesh):
    before = lab.status("s1")["queues"]
    lab.serve_iperf("h31")
    report = lab.iperf("h12", inside4("h31"), 1)
    assert report["end"]["sum_received"]["bytes"] > 10 << 20
    after = lab.status("s1")["queues"]
    packets, supers, total = (
        sum(queue[key] for queue in after) - sum(queue[key] for queue in before)
        for key in ("tun_rx_packets", "tun_rx_superpackets", "tun_rx_bytes"))
    assert supers > packets / 4 and total / packets > 5000


def test_dhcp_crosses(lab, mesh, tmp_path):
    lab.ip("h32", "address", "flush", "dev", "eth0")
    server = lab.spawn("h11", "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null",
                       "--port=0", "--interface=eth0",
                       "--dhcp-range=10.8.0.200,10.8.0.210,255.255.255.0",
                       f"--dhcp-leasefile={tmp_path}/leases", "--log-facility=-", "--user=root",
                       f"--pid-file={tmp_path}/pid")
    wait_for_line(server, "DHCP, IP range")
    script = tmp_path / "bound"
    script.write_text("#!/bin/sh\n[ \"$1\" = bound ] && ip address add $ip/$mask dev $interface\n"
                      "exit 0\n")
    script.chmod(0o755)
    lab.run("h32", "busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-t", "5", "-s", str(script))
    assert re.search(r"inet 10\.8\.0\.2(0\d|10)/24", lab.ip("h32", "address", "show", "eth0"))
    assert lab.pings("h32", inside4("h21"))
    stop(server)
    lab.processes.remove(server)
    lab.ip("h32", "address", "flush", "dev", "eth0", "scope", "global")
    lab.ip("h32", "address", "add", f"{inside4('h32')}/24", "dev", "eth0")
    lab.ip("h32", "address", "add", f"{inside6('h32')}/64", "dev", "eth0", "nodad")


def send(lab, host, *frames):
    """Frames, each with its vnet header, out of a host."""
    lab.run(host, sys.executable, STATION, "send", *(data.hex() for data in frames))


LAST = 0x88B6       # the type of a frame that is sent after the others; for experiments, as 0x88B5


@contextlib.contextmanager
def heard(lab, *hosts, of):
    """What comes to hosts meanwhile from the MAC address `of`, which is behind h11: {host: [(vnet,
    frame)]}, filled at the end."""
    stations = {host: lab.spawn(host, sys.executable, STATION, "listen") for host in hosts}
    for process in stations.values():
        wait_for_line(process, "listening")
    found = {}
    yield found
    last = frame("ff:ff:ff:ff:ff:ff", of, bytes(46), ethertype=LAST)
    send(lab, "h11", PLAIN + last)
    for host, process in stations.items():
        lines = [wait_for_line(process, "frame")]
        while not lines[-1].endswith(last.hex()):
            lines.append(wait_for_line(process, "frame"))
        rest = stop(process).splitlines()       # on another lane they may come later
        lab.processes.remove(process)
        assert rest.pop() == "end"
        frames = [parse_vnet(bytes.fromhex(line.split()[1])) for line in lines + rest]
        found[host] = [(vnet, data) for vnet, data in frames
                       if data[6:12].hex(":") == of and data != last]


def test_vlans_stay_apart(lab, mesh):
    """One MAC address, in two VLANs behind two sites: each is found in its own."""
    twin, sender = "02:00:00:00:07:07", "02:00:00:00:07:01"
    for vlan in (10, 20):
        send(lab, "h11", PLAIN + frame("ff:ff:ff:ff:ff:ff", sender, bytes(46), ethertype=0x88B5,
                                       vlans=(vlan,)))
    # To that host only: the bridges here know no VLANs, and would mix up the twins.
    for host, vlan in (("h21", 10), ("h31", 20)):
        send(lab, host, PLAIN + frame(sender, twin, bytes(46), ethertype=0x88B5, vlans=(vlan,)))
    keys = {lab.status(site)["public_key"]: site for site in lab.sites}
    until(lambda: {(twin, 10), (twin, 20)} <= learned(lab, "s1").keys())
    known = learned(lab, "s1")
    assert {vlan: keys[known[twin, vlan]] for vlan in (10, 20)} == {10: "s2", 20: "s3"}
    frames = {vlan: frame(twin, sender, b"in %d" % vlan + bytes(42), ethertype=0x88B5,
                          vlans=(vlan,)) for vlan in (10, 20, 30)}
    with heard(lab, "h12", "h21", "h31", of=sender) as found:
        send(lab, "h11", *(PLAIN + data for data in frames.values()))
    got = {host: [data for _, data in each] for host, each in found.items()}
    assert got["h21"] == [frames[10], frames[30]]       # 30 is known nowhere: to all
    assert got["h31"] == [frames[20], frames[30]]


@pytest.mark.parametrize("vlans", [(), (10,), (100, 10)], ids=["untagged", "tagged", "stacked"])
@pytest.mark.parametrize("inner", ["tcp4", "tcp6", "udp4", "udp6"])
def test_superpackets_cross_the_kernels_as_they_are(lab, mesh, vlans, inner):
    """Through both bridges and TAPs: whole, or as packets that are right."""
    source, destination = "02:00:00:00:08:01", "02:00:00:00:08:02"
    payload = random.Random(inner).randbytes(5000)
    net = "10.8.0." if inner.endswith("4") else "fd00:8::"
    addresses = f"{net}77", f"{net}78"
    packet = (tcp(*addresses, payload, flags=ACK) if inner.startswith("tcp")
              else udp(*addresses, payload))
    link = frame(destination, source, packet, vlans=vlans)[:-len(packet)]
    data = framed(superpacket(packet, 1200), link)
    send(lab, "h21", PLAIN + frame("ff:ff:ff:ff:ff:ff", destination, bytes(46), ethertype=0x88B5,
                                   vlans=vlans))
    with heard(lab, "h21", of=source) as found:
        send(lab, "h11", data)
    got = b""
    for vnet, whole in found["h21"]:
        assert whole.startswith(link)
        parts = split(vnet.emit() + whole, is_frame=True)
        for part in parts:
            assert checksums_are_right(part[len(link):])
            header = (40 if inner.endswith("6") else 20) + (20 if inner.startswith("tcp") else 8)
            got += part[len(link) + header:]
    assert got == payload


def test_a_host_that_moves_is_found_within_a_second(lab, mesh):
    for far in ("h11", "h31"):
        assert lab.pings(far, inside4("h22"))
    pings = lab.spawn("h31", "ping", "-n", "-D", "-i", "0.05", inside4("h22"))
    wait_for_line(pings, "icmp_seq=3")
    lab.move("h22", "s1")
    first_frame = time.time()
    lab.run("h22", "ping", "-c", "1", "-W", "1", inside4("h12"), check=False)
    line = wait_for_line(pings, "bytes from", 5)
    while float(line[1:].split("]")[0]) < first_frame:
        line = wait_for_line(pings, "bytes from", 5)
    assert float(line[1:].split("]")[0]) - first_frame < 1
    stop(pings)
    lab.processes.remove(pings)
    for near_and_far in ("h11", "h21", "h32"):
        assert lab.pings(near_and_far, inside4("h22"))
    assert learned(lab, "s1")[mac_of(lab, "h22"), 0] is None
    lab.move("h22", "s2")
    lab.run("h22", "ping", "-c", "1", "-W", "1", inside4("h12"), check=False)
    assert lab.pings("h31", inside4("h22"))


def test_the_fdb_is_changed_by_hand(lab, mesh):
    def fdb(*words, check=True):
        return lab.run("s1", sys.executable, "-m", "fastpump", "fdb", *words, check=check)

    keys = {site: lab.status(site)["public_key"] for site in lab.sites}
    mac = mac_of(lab, "h21")
    assert lab.pings("h11", inside4("h21"))
    fdb("add", "fp0", mac, "--peer", keys["s3"])            # a lie, which locks it out
    assert not lab.pings("h21", inside4("h11"))
    assert lab.status("s1")["verdicts"]["DROP_MAC_LOCKED"] > 0
    assert re.search(rf"{mac} .* static  {re.escape(keys['s3'])}", fdb("show", "fp0").stdout)
    fdb("flush", "fp0")
    assert learned(lab, "s1").get((mac, 0)) == keys["s3"]
    fdb("del", "fp0", mac)
    assert lab.pings("h11", inside4("h21"))
    with lab.unplugged("h21", "s2"):
        assert (mac, 0) in learned(lab, "s1")
        assert "forgotten" in fdb("flush", "fp0", "--peer", keys["s2"], "--static").stdout
        assert (mac, 0) not in learned(lab, "s1")
    for words, complaint in (
            (("del", "fp0", "02:00:00:00:00:99"), "is not known in VLAN 0"),
            (("add", "fp0", "02:00:00:00:00:99"), "must be --peer PUBKEY or --local"),
            (("add", "fp0"), "no MAC address given"),
            (("add", "fp0", "03:00:00:00:00:99", "--local"), "invalid MAC address"),
            (("add", "fp0", "02:00:00:00:00:99", "--peer", "x"), "invalid peer's public key"),
            (("show", "fp0", "02:00:00:00:00:99"), "takes no MAC address"),
            (("show", "nothere"), "no tunnel is running on nothere")):
        result = fdb(*words, check=False)
        assert result.returncode == 1 and complaint in result.stderr, result
        assert result.stderr.count("\n") == 1
    result = fdb("add", "fp0", "02:00:00:00:00:99", "--local", "--vlan", "4096", check=False)
    assert result.returncode == 2 and "invalid VLAN '4096'" in result.stderr


def test_broadcasts_come_once(lab, mesh):
    got = broadcast(lab, "h11", [host for host in lab.hosts if host != "h11"], 300)
    assert got == {host: list(range(300)) for host in got}


# -- relays

@pytest.mark.parametrize(("links", "relays"), [
    ([("s1", "s2"), ("s1", "s3")], ["s1"]),             # a hub
    (None, ["s1", "s2", "s3"]),                         # all relay for all, redundantly
], ids=["hub", "redundant"])
def test_relays_reach_all_once(tmp_path, links, relays):
    with Sites() as lab, switched(lab, tmp_path, "--queues", "2", links=links, relays=relays):
        failed = [(one, two) for one in lab.hosts for two in lab.hosts
                  if one != two and not lab.pings(one, inside4(two))]
        assert failed == []
        for sender, size in (("h21", 100), ("h31", 1300)):
            got = broadcast(lab, sender, [host for host in lab.hosts if host != sender], 300, size)
            for host, numbers in got.items():
                assert sorted(numbers) == list(range(300)), host
        lab.serve_iperf("h32")
        assert lab.iperf("h22", inside4("h32"), 1)["end"]["sum_received"]["bytes"] > 10 << 20
        quiet = until(lambda: _is_quiet(lab), 20)
        assert quiet
        verdicts = [lab.status(site)["verdicts"] for site in lab.sites]
        assert not any("DROP_HOP_LIMIT" in each for each in verdicts)
        if links is None:
            assert any("DROP_DUPLICATE_FRAME" in each for each in verdicts)
            # A site that loses its way to another is reached over the third.
            for one, two in (("s2", "3"), ("s3", "2")):
                lab.run(one, "nft", "add table inet t; add chain inet t c { type filter hook input "
                        "priority 0; }; add rule inet t c ip saddr 192.0.2." + two + " drop")
            lab.run("s2", sys.executable, "-m", "fastpump", "fdb", "flush", "fp0")
            lab.run("s3", sys.executable, "-m", "fastpump", "fdb", "flush", "fp0")
            lab.run("h21", "ping", "-c", "3", "-i", "0.3", "-b", "10.8.0.255", check=False)
            until(lambda: lab.pings("h21", inside4("h31")), 20)
            for site in ("s2", "s3"):
                lab.run(site, "nft", "delete table inet t")


def _is_quiet(lab):
    """Nothing goes round: hardly a frame in the time that it takes to look twice."""
    def sent():
        return time.monotonic(), sum(queue["udp_tx_datagrams"] for site in lab.sites
                                     for queue in lab.status(site)["queues"])
    (begin, before), (end, after) = sent(), sent()
    return after - before < 120 * (end - begin)
