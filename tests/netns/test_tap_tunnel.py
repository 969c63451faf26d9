"""`fastpump tunnel --tap` between two hosts, and `up` with Mode = tap: set-up, limits, faults,
what users do wrong."""

import json
import os
import re
import signal
import sys
import time

import pytest

from fastpump.lab.networks import (
    INSIDE4,
    INSIDE6,
    OUTSIDE4,
    fastpump_pair,
    key_files,
    stop,
    tunnel_words,
    wait_for_line,
)
from fastpump.protocol import keys
from support.hosts import FASTPUMP, is_reachable, network_state, transfer, until


def status_peer(lab, side):
    (peer,) = lab.status(side)["peers"]
    return peer


@pytest.fixture
def tap(lab, tmp_path):
    with fastpump_pair(lab, tmp_path, "--tap", "--queues", "3") as processes:
        yield processes


def test_a_tap_is_an_ethernet_between_the_hosts(lab, tap):
    for side, other in ("ab", "ba"):
        assert is_reachable(lab, INSIDE4[other], side) and is_reachable(lab, INSIDE6[other], side)
        assert transfer(lab, side, INSIDE6[other], 20 << 20)
    status = lab.status("a")
    assert status["mode"] == "tap" and status["mtu"] == 1382
    assert {"tso4", "tso6", "uso", "gro", "partial"} <= set(status["offloads"])
    assert status["switch"]["macs"] == 2 and status["switch"]["macs_on_this_side"] == 1
    assert status["peers"][0]["macs"] == 1 and status["peers"][0]["transport"] == "lanes"
    assert status["peers"][0]["allowed_ips"] == []
    assert sum(queue["tun_rx_superpackets"] for queue in status["queues"]) > 100
    text = lab.run("a", *FASTPUMP, "status").stdout
    assert "(tap, MTU 1382" in text and "MAC addresses: 2 of at most 32768" in text
    # A probe may come before its lane's keys, and waits 20 ms for them: not enough on a busy CPU.
    assert not set(status["verdicts"]) - {"DROP_LOCAL_FRAME", "DROP_UNKNOWN_INDEX"}


def test_flows_are_spread_over_all_workers(lab, tap):
    """By the steering program, behind the Ethernet header: both ways to the same worker."""
    assert is_reachable(lab, INSIDE4["b"]) and is_reachable(lab, INSIDE6["b"])
    lab.serve_iperf("b")
    for host in (INSIDE4["b"], INSIDE6["b"]):
        before = {side: lab.status(side)["queues"] for side in "ab"}
        # So many that chance does not leave one of three out: 3 * (2/3)^40 is 3e-7.
        lab.iperf("a", host, 1, "--parallel", "40", "--bitrate", "5M")
        for side in "ab":
            after = lab.status(side)["queues"]
            read = [new["tun_rx_packets"] - old["tun_rx_packets"]
                    for new, old in zip(after, before[side], strict=True)]
            assert min(read) > 20, read


def test_jumbo_frames_go_in_fragments_and_it_is_said(lab, tmp_path):
    with fastpump_pair(lab, tmp_path, "--tap", "--queues", "2", "--mtu", "9000"):
        assert is_reachable(lab, INSIDE4["b"])
        for size in (1400, 8972):
            lab.run("a", "ping", "-c", "1", "-W", "5", "-M", "do", "-s", str(size), INSIDE4["b"])
        assert transfer(lab, "a", INSIDE4["b"], 20 << 20)
    process = lab.spawn("a", *FASTPUMP, "tunnel", "--tap", "--mtu", "9000",
                        "--peer", keys.encode(bytes(range(1, 33))) + f"@{OUTSIDE4['b']}:51820")
    line = wait_for_line(process, "go in fragments")
    assert "raise the MTU of that path to 9118" in line and "of the tunnel, to 1382" in line
    stop(process)


def test_dead_workers_lose_nothing_for_long(lab, tap):
    assert is_reachable(lab, INSIDE4["b"])
    for side, victim in (("a", 0), ("b", 1), ("a", 2)):
        os.kill(lab.status(side)["queues"][victim]["pid"], signal.SIGKILL)
        assert transfer(lab, "a", INSIDE4["b"], 2 << 20)
        assert transfer(lab, "b", INSIDE4["a"], 2 << 20)
    assert lab.status("a")["switch"]["macs"] == 2
    assert not {"DROP_UNAUTHENTIC", "DROP_REPLAYED"} & set(lab.status("b")["verdicts"])


def test_options_reach_the_switch(lab, tmp_path):
    with fastpump_pair(lab, tmp_path, "--tap", "--relay", "--mac", "02:00:00:00:00:77",
                       "--mac-ageing", "20", "--mac-limit", "5", "--mac-table", "7",
                       "--storm-limit", "9"):
        switch = lab.status("a")["switch"]
        assert switch.pop("macs") >= switch.pop("macs_on_this_side")
        assert switch == {"relay": True, "mac_ageing_s": 20, "mac_limit": 5, "mac_table": 7,
                          "storm_limit": 9}
        assert "02:00:00:00:00:77" in lab.ip("b", "link", "show", "fp0")


# -- rate limits

def limit(lab, side, *words, check=True):
    return lab.run(side, *FASTPUMP, "limit", "fp0", *words, check=check)


def shaped(lab, side):
    return sum(queue["shaped_packets"] for queue in lab.status(side)["queues"])


@pytest.mark.parametrize("mode", [(), ("--tap",)], ids=["tun", "tap"])
def test_limits_come_by_options_and_change_while_it_runs(lab, tmp_path, mode):
    key = key_files(tmp_path)
    processes = {}
    for side, other in ("ab", "ba"):
        more = ("--rate-limit", "tx=80mbit", "--rate-limit", f"{key[other][1]}:rx-ops=100k") \
            if side == "a" else ()
        processes[side] = lab.fastpump(
            side, *tunnel_words(side, key[side], key[other][1], *mode, "--queues", "2", *more))
    assert is_reachable(lab, INSIDE4["b"])
    status = lab.status("a")
    assert status["rate_limits"]["tx"]["bandwidth"]["size"] == 500_000
    assert status["peers"][0]["rate_limits"]["rx"]["ops"]["refill_time"] == 50
    assert transfer(lab, "a", INSIDE4["b"], 4 << 20)
    assert shaped(lab, "a") > 100 and shaped(lab, "b") == 0
    assert "80 Mbit/s" in limit(lab, "a").stdout
    limit(lab, "a", "off")
    limit(lab, "a", key["b"][1], "off")
    before = shaped(lab, "a")
    assert transfer(lab, "a", INSIDE4["b"], 4 << 20) and shaped(lab, "a") == before
    limit(lab, "b", key["a"][1], "rx=40mbit,burst=100kb")
    assert transfer(lab, "a", INSIDE4["b"], 2 << 20) and shaped(lab, "b") > 100
    answer = json.loads(limit(lab, "b", key["a"][1], "--json").stdout)
    assert answer["rx"]["bandwidth"]["size"] == 100_000 and answer["tx"]["bandwidth"] is None
    for words, complaint in (
            (("tx=fast",), "invalid rate 'fast'"), ((key["b"][1], "off"), "there is no peer"),
            (("tx=1gbit", "rx=1gbit"), "with a comma: tx=1gbit,rx=1gbit"),
            (("x", "y", "z"), "too many arguments")):
        result = limit(lab, "b", *words, check=False)
        assert result.returncode == 1 and complaint in result.stderr, result
    for process in processes.values():
        stop(process)


# -- who cannot

def test_a_peer_without_lanes_gets_no_frames(lab, tmp_path):
    """A plain WireGuard peer, and a fastpump with a TUN."""
    key = key_files(tmp_path)
    a = lab.fastpump("a", *tunnel_words("a", key["a"], key["b"][1], "--tap"))
    b = lab.fastpump("b", *tunnel_words("b", key["b"], key["a"][1]))
    assert not is_reachable(lab, INSIDE4["b"])
    until(lambda: status_peer(lab, "a")["no_lanes_because"] == "one side is a TUN, the other a TAP")
    assert not is_reachable(lab, INSIDE4["b"])
    assert "DROP_NO_LANES" in lab.status("a")["verdicts"]
    stop(b)
    b = lab.fastpump("b", *tunnel_words("b", key["b"], key["a"][1], "--transport", "wireguard"))
    lab.run("b", "ping", "-c", "1", "-W", "1", INSIDE4["a"], check=False)
    until(lambda: "does not announce" in (status_peer(lab, "a")["no_lanes_because"] or ""), 20)
    assert "DROP_NOT_IN_LANES" in lab.status("a")["verdicts"]
    stop(b)
    output = stop(a)
    assert "no lanes with peer" in output and "one side is a TUN, the other a TAP" in output


@pytest.mark.parametrize(("words", "complaint"), [
    (["--tap", "--transport", "wireguard"], "Ethernet frames need lanes"),
    (["--bridge", "br0"], "add --tap"),
    (["--tap", "--attach", "nothere", "--bridge", "br0"], "there is no interface nothere"),
    (["--tap", "--attach", "wire", "--bridge", "br0"], "has addresses, which would stop working"),
    (["--tap", "--attach", "wire", "--attach-mode", "tc"], "has addresses"),
    (["--tap", "--attach", "lo", "--bridge", "br0"], "is the loopback interface"),
    (["--tap", "--bridge", "wire"], "wire is not a bridge"),
    (["--tap", "--attach", "wire"], "wire is not in a bridge"),
    (["--tap", "--attach-mode", "tc"], "exactly one interface"),
    (["--tap", "--mac", "03:00:00:00:00:01"], "invalid MAC address"),
    (["--tap", "--mtu", "70000"], "invalid MTU"),
    (["--rate-limit", "tx=quick"], "invalid rate "),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_mistakes_end_in_one_sentence(lab, words, complaint):
    before = network_state(lab, "a")
    result = lab.run("a", *FASTPUMP, "tunnel", *words, "--peer", keys.encode(bytes(range(1, 33))),
                     check=False, timeout=20)
    assert result.returncode in (1, 2) and complaint in result.stderr, result
    assert result.stderr.splitlines()[-1].startswith("fastpump")
    assert network_state(lab, "a") == before


def test_a_name_that_is_taken(lab):
    lab.ip("a", "tuntap", "add", "mode", "tap", "name", "fp0")
    result = lab.run("a", *FASTPUMP, "tunnel", "--tap", check=False)
    assert result.returncode == 1 and "the interface fp0 exists already" in result.stderr


def test_ports_with_larger_mtus_are_named(lab, tmp_path):
    key = key_files(tmp_path)
    process = lab.fastpump("a", *tunnel_words("a", key["a"], key["b"][1], "--tap", "--bridge",
                                              "br0", "--mtu", "1390"))
    lab.ip("a", "link", "add", "late0", "type", "veth", "peer", "name", "late1")
    lab.ip("a", "link", "set", "late0", "master", "br0", "up")
    line = wait_for_line(process, "late0", 20)
    assert "MTU" in line and "1500" in line
    output = stop(process)
    assert output.count("late0") <= 1       # once, but for what is left behind


# -- from a file

def test_a_file_brings_an_ethernet_up_and_down(lab, tmp_path):
    key = key_files(tmp_path)
    for side, other in ("ab", "ba"):
        lab.ip(side, "link", "add", "guest0", "type", "veth", "peer", "name", "guest1")
        path = tmp_path / side / "fp7.conf"
        path.parent.mkdir()
        path.touch(mode=0o600)
        path.write_text(f"""
[Interface]
PrivateKey = {key[side][0].read_text().strip()}
ListenPort = 51820
Mode = tap
Bridge = br7
Attach = guest0
Address = {INSIDE4[side]}/24
Queues = 2
RateLimit = both=900mbit
Relay = true

[Peer]
PublicKey = {key[other][1]}
Endpoint = {OUTSIDE4[other]}:51820
RateLimit = rx=800mbit
""")
    before = {side: network_state(lab, side) for side in "ab"}
    for side in "ab":
        path = str(tmp_path / side / "fp7.conf")
        assert "is good" in lab.run(side, *FASTPUMP, "check", path).stdout
        lab.run(side, *FASTPUMP, "up", path)
    assert is_reachable(lab, INSIDE4["b"])
    status = lab.status("a")
    assert status["mode"] == "tap" and status["switch"]["relay"] and status["mtu"] == 1500
    assert status["rate_limits"]["rx"]["bandwidth"] and status["peers"][0]["rate_limits"]["rx"]
    assert "master br7" in lab.ip("a", "link", "show", "guest0")
    # The interface at the other end of the veth is a guest of that Ethernet.
    lab.ip("a", "address", "add", "10.9.0.77/24", "dev", "guest1", "noprefixroute")
    lab.ip("a", "link", "set", "guest1", "up")
    path = tmp_path / "a" / "fp7.conf"
    path.write_text(path.read_text().replace("both=900mbit", "tx=500mbit").replace(
        "Relay = true\n", ""))
    answer = lab.run("a", *FASTPUMP, "reload", str(path)).stdout
    assert "the rate limits" in answer and "relay" in answer
    assert lab.status("a")["rate_limits"]["rx"]["bandwidth"] is None
    lab.ip("a", "address", "flush", "dev", "guest1", "scope", "global")
    lab.ip("a", "link", "set", "guest1", "down")
    for side in "ab":
        lab.run(side, *FASTPUMP, "down", str(tmp_path / side / "fp7.conf"))
        assert network_state(lab, side) == before[side]


def test_a_killed_one_is_cleaned_up_by_the_next(lab, tmp_path):
    key = key_files(tmp_path)
    lab.ip("a", "link", "add", "guest0", "type", "veth", "peer", "name", "guest1")
    before = network_state(lab, "a")
    words = tunnel_words("a", key["a"], key["b"][1], "--tap", "--bridge", "br0", "--attach",
                         "guest0")
    process = lab.fastpump("a", *words)
    os.kill(process.pid, signal.SIGKILL)
    stop(process)
    process = lab.fastpump("a", *words)
    assert "master br0" in lab.ip("a", "link", "show", "fp0")
    stop(process)
    assert network_state(lab, "a") == before


def test_the_command_for_the_other_side_works(lab, tmp_path):
    process = lab.spawn("a", sys.executable, "-m", "fastpump", "tunnel", "--tap", "--address",
                        "10.9.0.1/24")
    line = wait_for_line(process, "    fastpump tunnel --tap").strip()
    assert re.fullmatch(r"fastpump tunnel --tap --queues \d+ --address 10\.9\.0\.2/24 --peer \S+",
                        line)
    stop(process)


def test_guests_of_the_usual_mtu_fit_a_new_bridge(lab, tmp_path):
    """As docs/ethernet.md has it: bridge by the tunnel, TAPs of guests afterwards."""
    key = key_files(tmp_path)
    for side, other in ("ab", "ba"):
        lab.fastpump(side, *tunnel_words(side, key[side], key[other][1], "--tap", "--bridge",
                                         "br0", "--queues", "2"))
        lab.ip(side, "link", "add", "guest0", "type", "veth", "peer", "name", "eth0", "netns",
               lab.names[side])
        lab.ip(side, "link", "set", "guest0", "master", "br0", "up")
        assert "mtu 1500" in lab.ip(side, "link", "show", "br0")
    lab.run("a", "ping", "-c", "1", "-W", "5", "-M", "do", "-s", "1472", INSIDE4["b"])
    assert transfer(lab, "a", INSIDE4["b"], 4 << 20)


def test_a_bridge_with_other_ports_stays_up(lab, tmp_path):
    key = key_files(tmp_path)
    process = lab.fastpump("a", *tunnel_words("a", key["a"], key["b"][1], "--tap", "--bridge",
                                              "br0"))
    lab.ip("a", "link", "add", "guest0", "type", "veth", "peer", "name", "guest1")
    lab.ip("a", "link", "set", "guest0", "master", "br0", "up")
    assert "the bridge br0 stays, since guest0 is in it" in stop(process)
    assert ",UP" in lab.ip("a", "link", "show", "br0")


def test_what_is_joined_no_more_is_said(lab, tmp_path):
    key = key_files(tmp_path)
    lab.ip("a", "link", "add", "guest0", "type", "veth", "peer", "name", "guest1")
    process = lab.fastpump("a", *tunnel_words("a", key["a"], key["b"][1], "--tap", "--bridge",
                                              "br0", "--attach", "guest0", "--mac-ageing", "10"))
    assert lab.status("a")["attachment"] == {"bridge": "br0", "interfaces": ["guest0"],
                                             "mode": "bridge", "vlans": []}
    lab.ip("a", "link", "delete", "guest0")
    assert "guest0 is gone" in wait_for_line(process, "has no part in the tunnel")
    lab.ip("a", "link", "delete", "br0")
    assert "start it again" in wait_for_line(process, "is not in a bridge any more")
    assert lab.status("a")["is_up"]


def test_a_signal_while_it_is_made_leaves_nothing(lab, tmp_path):
    """Whenever it comes: before, while, and after the bridge is made."""
    key = key_files(tmp_path)
    words = tunnel_words("a", key["a"], key["b"][1], "--tap", "--bridge", "br0")
    before, begin = network_state(lab, "a"), time.monotonic()
    stop(lab.fastpump("a", *words))
    whole = time.monotonic() - begin
    for part in (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0):
        process = lab.spawn("a", *FASTPUMP, "tunnel", *words)
        time.sleep(part * whole)
        stop(process)
        assert network_state(lab, "a") == before, part
    assert not list((tmp_path / "run").glob("**/*.attach"))


def test_a_tap_that_a_monitor_holds_is_no_name_for_a_tunnel(lab):
    lab.ip("a", "tuntap", "add", "mode", "tap", "name", "fp0")
    holder = lab.spawn("a", sys.executable, "-c", (
        "import fcntl, os, struct, time\n"
        "fd = os.open('/dev/net/tun', os.O_RDWR)\n"
        "fcntl.ioctl(fd, 0x400454CA, struct.pack('16sH22x', b'fp0', 0x5002))\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"))
    wait_for_line(holder, "held")
    result = lab.run("a", *FASTPUMP, "tunnel", "--tap", check=False)
    assert result.returncode == 1 and "is in use by python" in result.stderr
    assert "--attach fp0" in result.stderr and "ip link delete" not in result.stderr


def test_saved_configurations_keep_the_addresses_of_the_bridge(lab, tmp_path):
    path = tmp_path / "fp8.conf"
    path.touch(mode=0o600)
    path.write_text(f"[Interface]\nPrivateKey = {keys.encode(keys.generate_private())}\n"
                    "Mode = tap\nBridge = br8\nAddress = 10.8.8.1/24\nSaveConfig = true\n")
    lab.run("a", *FASTPUMP, "up", str(path))
    assert "10.8.8.1/24" in lab.ip("a", "address", "show", "br8")
    lab.run("a", *FASTPUMP, "down", str(path))
    assert "Address = 10.8.8.1/24" in path.read_text()


@pytest.mark.parametrize(("lines", "complaint"), [
    ("AttachMode = tc\nBridge = br0\nAttach = x", "without a bridge"),
    ("AttachMode = tc", "exactly one interface"),
    ("Bridge = br0\nAttach = br0", "as a port of it"),
])
def test_check_knows_what_up_would_refuse(tmp_path, lab, lines, complaint):
    path = tmp_path / "fp9.conf"
    path.touch(mode=0o600)
    path.write_text(f"[Interface]\nMode = tap\n{lines}\n")
    for command in ("check", "up"):
        result = lab.run("a", *FASTPUMP, command, str(path), check=False)
        assert result.returncode == 1 and complaint in result.stderr, result


@pytest.mark.parametrize(("words", "option"), [
    (("flush", "--vlan", "7"), "--vlan"), (("show", "--static"), "--static"),
    (("show", "--local"), "--local"), (("flush", "--json"), "--json"),
])
def test_fdb_takes_no_options_that_it_has_no_use_for(lab, words, option):
    result = lab.run("a", *FASTPUMP, "fdb", words[0], "fp0", *words[1:], check=False)
    assert result.returncode == 1 and f"does not take {option}: leave it out" in result.stderr
