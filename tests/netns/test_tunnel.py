"""`fastpump tunnel` in two namespaces: traffic, faults, and what it leaves behind."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fastpump import cpus
from fastpump.lab.networks import (
    INSIDE4,
    INSIDE6,
    OUTSIDE4,
    Lab,
    fastpump_pair,
    key_files,
    stop,
    tunnel_words,
    wait_for_line,
)
from fastpump.protocol import keys
from support.hosts import (
    FASTPUMP,
    as_user,
    children,
    is_reachable,
    is_worker,
    transfer,
    until,
    with_tun_device,
)


def test_ping_and_tcp_both_ways(lab, tunnel):
    for side, inside in (("a", "b"), ("b", "a")):
        for host in (INSIDE4[inside], INSIDE6[inside]):
            assert is_reachable(lab, host, side)
            assert transfer(lab, side, host, 100 << 20)
    for side in "ab":
        assert lab.status(side)["worker_restarts"] == 0


@pytest.mark.parametrize("outside, options, expected", [
    ("1400", (), {"a": 1320, "b": 1320}), ("1300", (), {"a": 1280, "b": 1280}),
    ("9000", (), {"a": 8920, "b": 8920}), ("1400", ("--mtu", "1380"), {"a": 1380, "b": 1380})])
def test_the_mtu_fits_the_way_to_the_peer(lab, tmp_path, outside, options, expected):
    """IPv6 is inside. It is not raised later."""
    for side in "ab":
        lab.ip(side, "link", "set", "wire", "mtu", outside)
        if side == "b":     # which knows no endpoint
            lab.ip(side, "route", "add", "default", "dev", "wire")
    with fastpump_pair(lab, tmp_path, *options):
        assert {side: lab.status(side)["mtu"] for side in "ab"} == expected
        lab.ip("a", "link", "set", "wire", "mtu", "9000")
        lab.ip("b", "link", "set", "wire", "mtu", "9000")
        assert transfer(lab, "a", INSIDE4["b"], 1 << 20)
        assert transfer(lab, "b", INSIDE6["a"], 1 << 20)
        assert {side: lab.status(side)["mtu"] for side in "ab"} == expected


def test_status_shows_live_workers_that_share_the_work(lab, tunnel):
    lab.serve_iperf("b")
    lab.iperf("a", INSIDE4["b"], 2, "--parallel", "16")
    for side in "ab":
        status = lab.status(side)
        assert len(status["queues"]) == 4
        for queue in status["queues"]:
            assert Path(f"/proc/{queue['pid']}").exists()
        assert status["mode"] == "tun" and status["listen_port"] == 51820
        (peer,) = status["peers"]
        assert peer["transport"] == "lanes" and peer["rx_bytes"] > 1 << 16
        assert peer["allowed_ips"] == ["10.9.0.0/24", "fd00:9::/64"]
        assert peer["latest_handshake"] > time.time() - 60
    busy = [queue for queue in lab.status("a")["queues"] if queue["udp_tx_bytes"] > 1 << 20]
    assert len(busy) > 1
    text = lab.run("a", *FASTPUMP, "status", "fp0").stdout
    assert "interface: fp0 (tun, MTU 1420)" in text and peer["public_key"] != ""


@pytest.mark.parametrize("options", [
    ("--offload", "csum=off"), ("--offload", "uso=off", "--offload", "tso6=off"),
    ("--offload", "gro=off", "--offload", "udp-gro=off"), ("--offload", "udp-gso=off"),
    ("--busy-poll", "50"), ("--latency", "throughput"), ("--latency", "low"), ("--pin",),
    ("--mtu", "1280"), ("--mtu", "9000"), ("--mtu", "65000"),
], ids=" ".join)
def test_each_option_still_carries_traffic(lab, tmp_path, options):
    with fastpump_pair(lab, tmp_path, "--queues", "2", *options):
        assert transfer(lab, "a", INSIDE4["b"], 4 << 20)
        assert transfer(lab, "b", INSIDE6["a"], 4 << 20)
        status = lab.status("a")
    names = {option.partition("=")[0] for option in options if option.endswith("=off")}
    assert not names & set(status["offloads"])


@pytest.mark.parametrize("backend", ["openssl", "ipsec-mb", "boringssl"])
def test_outside_ipv6_and_each_aead_library(lab, tmp_path, backend):
    with fastpump_pair(lab, tmp_path, "--queues", "2", v6_outside=True,
                       env={"FASTPUMP_AEAD": backend}):
        assert transfer(lab, "a", INSIDE4["b"], 4 << 20)
        status = lab.status("a")
        assert status["peers"][0]["endpoint"] == "[2001:db8::2]:51820"
        assert set(status["aead"].values()) == {backend}


def test_a_dead_worker_is_back_within_200_ms_and_traffic_within_a_second(lab, tunnel):
    assert is_reachable(lab, INSIDE4["b"])
    lab.serve_iperf("b")
    load = lab.spawn("a", "iperf3", "--client", INSIDE4["b"], "--time", "8", "--parallel", "4",
                     "--bitrate", "50M")
    until(lambda: lab.status("a")["peers"][0]["tx_bytes"] > 1 << 20)
    index = lab.ip("a", "-json", "link", "show", "fp0")
    for victim in range(4):
        before = lab.status("a")
        pid = before["queues"][victim]["pid"]
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        until(lambda pid=pid: len([p for p in children(tunnel["a"].pid) if p != pid
                                   and is_worker(p)]) == 4, 2)
        assert time.monotonic() - killed < 1.0      # 0.2 s promised; the machine is loaded
        assert is_reachable(lab, INSIDE4["b"])
        assert time.monotonic() - killed < 2.0
    after = lab.status("a")
    assert after["worker_restarts"] == 4
    assert [queue["restarts"] for queue in after["queues"]] == [1, 1, 1, 1]
    assert json.loads(lab.ip("a", "-json", "link", "show", "fp0"))[0]["ifindex"] == json.loads(
        index)[0]["ifindex"]
    stop(load)
    lab.processes.remove(load)
    assert "died of SIGKILL; restarting it" in stop(tunnel["a"])


@pytest.mark.parametrize("transport", ["wireguard", "lanes"])
def test_no_nonce_is_used_twice_across_worker_deaths(lab, tmp_path, transport):
    """Every message on the wire has a (receiver index, lane, counter) of its own, though
    workers are killed under load. GSO is off so that each is seen."""
    with fastpump_pair(lab, tmp_path, "--queues", "4", "--offload", "udp-gso=off", "--transport",
                       transport) as tunnel:
        assert is_reachable(lab, INSIDE4["b"])
        lab.serve_iperf("b")
        capture = lab.spawn("b", sys.executable, "-c", CAPTURE, "wire")
        wait_for_line(capture, "capturing")
        load = lab.spawn("a", "iperf3", "--client", INSIDE4["b"], "--time", "60", "--parallel", "4",
                         "--bitrate", "10M")
        until(lambda: lab.status("a")["peers"][0]["tx_bytes"] > 4 << 20)
        for round_number in range(12):
            victims = [queue["pid"] for queue in lab.status("a")["queues"] if queue["pid"]]
            os.kill(victims[round_number % len(victims)], signal.SIGKILL)
            until(lambda done=round_number: lab.status("a")["worker_restarts"] > done)
        before = lab.status("a")["peers"][0]["tx_bytes"]
        until(lambda: lab.status("a")["peers"][0]["tx_bytes"] > before + (1 << 20))
        assert lab.status("a")["worker_restarts"] == 12
        stop(load)
        lab.processes.remove(load)
        capture.send_signal(signal.SIGINT)
        seen, repeated = map(int, wait_for_line(capture, "seen").split()[1:])
        assert seen > 5000 and repeated == 0
        assert tunnel["a"].poll() is None


CAPTURE = """
import signal, socket, sys
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
sock.bind((sys.argv[1], 0))
sock.settimeout(0.5)
seen, repeated, going = set(), 0, [True]
signal.signal(signal.SIGINT, lambda *_: going.clear())
print("capturing", flush=True)
while going:
    try:
        frame = sock.recv(2048)
    except TimeoutError:
        continue
    # Ethernet 14, IPv4 20, UDP 8: to port 51820, type 4 or 5
    if (frame[12:14], frame[36:38]) == (b"\\x08\\0", b"\\xca\\x6c") and frame[42] in (4, 5):
        key = frame[42:43] + frame[44:58]
        repeated += key in seen
        seen.add(key)
print("seen", len(seen), repeated, flush=True)
"""


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGHUP", "deleted"])
def test_nothing_is_left_behind(lab, tmp_path, how):
    with fastpump_pair(lab, tmp_path, "--queues", "2") as tunnel:
        assert is_reachable(lab, INSIDE4["b"])
        pids = children(tunnel["a"].pid)
        assert len(pids) == 2
        if how == "deleted":
            lab.ip("a", "link", "delete", "fp0")
        else:
            tunnel["a"].send_signal(getattr(signal, how))
        output = tunnel["a"].communicate(timeout=10)[0]
        assert tunnel["a"].returncode == 0, output
        assert f"stopped {'because the interface was deleted' if how == 'deleted' else 'on '}" \
            in output
        assert "Traceback" not in output
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        assert ": fp0:" not in lab.ip("a", "link")
        assert "10.9.0" not in lab.ip("a", "route")
        assert not [path for path in (tmp_path / "run").rglob("*") if "a" in path.parts]
    assert list((tmp_path / "run").rglob("*")) == [] or not (tmp_path / "run").exists()


def test_a_killed_supervisor_takes_its_workers_along(lab, tmp_path):
    with fastpump_pair(lab, tmp_path, "--queues", "2") as tunnel:
        pids = children(tunnel["a"].pid)
        tunnel["a"].kill()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
        until(lambda: ": fp0:" not in lab.ip("a", "link"))
        # The socket it could not remove is no obstacle.
        words = tunnel_words("a", (tmp_path / "a.key", ""), keys.encode(keys.public_of(
            keys.read_file(tmp_path / "b.key", "key"))))
        lab.fastpump("a", *words)
        assert is_reachable(lab, INSIDE4["b"])


def test_either_side_may_be_restarted(lab, tmp_path):
    """A restarted side has no sessions; the other notices and handshakes again."""
    with fastpump_pair(lab, tmp_path, "--queues", "2") as tunnel:
        assert is_reachable(lab, INSIDE4["b"])
        stop(tunnel["a"])
        words = tunnel_words("a", (tmp_path / "a.key", ""), keys.encode(keys.public_of(
            keys.read_file(tmp_path / "b.key", "key"))))
        lab.fastpump("a", *words)
        assert is_reachable(lab, INSIDE4["b"])


def test_roaming_to_another_address_and_port(lab, tmp_path):
    key = key_files(tmp_path)
    lab.fastpump("b", *tunnel_words("b", key["b"], key["a"][1], endpoint=False))
    first = lab.fastpump("a", *tunnel_words("a", key["a"], key["b"][1]))
    assert is_reachable(lab, INSIDE4["b"])
    assert lab.status("b")["peers"][0]["endpoint"] == "192.0.2.1:51820"
    stop(first)
    lab.ip("a", "address", "add", "192.0.2.77/24", "dev", "wire")
    lab.ip("a", "address", "delete", "192.0.2.1/24", "dev", "wire")
    lab.ip("a", "address", "add", "192.0.2.77/24", "dev", "wire", check=False)
    lab.fastpump("a", *tunnel_words("a", key["a"], key["b"][1], "--listen-port", "4242"))
    assert is_reachable(lab, INSIDE4["b"])
    until(lambda: lab.status("b")["peers"][0]["endpoint"] == "192.0.2.77:4242")
    # The same session from another address, when the first is gone: only workers see it.
    lab.sysctl("a", {"net.ipv4.conf.all.promote_secondaries": 1})
    lab.ip("a", "address", "add", "192.0.2.78/24", "dev", "wire")
    lab.ip("a", "address", "delete", "192.0.2.77/24", "dev", "wire")
    assert is_reachable(lab, INSIDE4["b"])
    until(lambda: lab.status("b")["peers"][0]["endpoint"] == "192.0.2.78:4242")
    assert is_reachable(lab, INSIDE4["a"], "b")


def test_hosts_behind_a_third_prefix_and_routes(lab, tmp_path):
    """Link two networks: routes to all allowed IPs, and packets forwarded from behind."""
    key = key_files(tmp_path)
    lab.sysctl("b", {"net.ipv4.ip_forward": 1})
    lab.ip("b", "address", "add", "10.77.0.1/24", "dev", "lo")
    lab.fastpump("b", *tunnel_words("b", key["b"], key["a"][1]))
    peer = f"{key['b'][1]}@{OUTSIDE4['b']}:51820,allowed-ips=10.9.0.0/24+10.77.0.0/24,keepalive=25"
    lab.fastpump("a", "--address", "10.9.0.1/24", "--private-key", str(key["a"][0]),
                 "--peer", peer)
    assert "10.77.0.0/24 dev fp0" in lab.ip("a", "route")
    assert is_reachable(lab, "10.77.0.1")
    assert lab.status("a")["peers"][0]["persistent_keepalive"] == 25


def test_a_gateway_with_several_peers(lab, tmp_path):
    """Three tunnels on one host, one peer each, come to a gateway that they roam past; each
    gets its own packets, and nobody may use another's address."""
    key = key_files(tmp_path)
    peers = []
    for number in range(3):
        path = tmp_path / f"peer{number}.key"
        path.touch(mode=0o600)
        path.write_text(keys.encode(keys.generate_private()))
        public = keys.encode(keys.public_of(keys.read_file(path, "key")))
        peers += ["--peer", f"{public},allowed-ips=10.9.0.{10 + number}/32"]
    lab.fastpump("b", "--queues", "2", "--address", "10.9.0.2/24", "--private-key",
                 str(key["b"][0]), *peers)
    for number in range(3):
        lab.fastpump("a", f"fp{number}", "--queues", "1", "--listen-port", "0", "--address",
                     f"10.9.0.{10 + number}/32", "--private-key",
                     str(tmp_path / f"peer{number}.key"), "--no-routes", "--peer",
                     f"{key['b'][1]}@{OUTSIDE4['b']}:51820,allowed-ips=10.9.0.2/32")
    for number in range(3):
        lab.ip("a", "route", "replace", "10.9.0.2/32", "dev", f"fp{number}", "src",
               f"10.9.0.{10 + number}")
        assert is_reachable(lab, "10.9.0.2")
        assert transfer(lab, "a", "10.9.0.2", 2 << 20, port=str(7000 + number))
    status = lab.status("b")
    assert len({peer["endpoint"] for peer in status["peers"]}) == 3
    assert {peer["worker"] for peer in status["peers"]} == {0, 1}
    # Through the last tunnel with the first one's address: dropped and counted.
    lab.ip("a", "route", "replace", "10.9.0.2/32", "dev", "fp2", "src", "10.9.0.10")
    assert lab.run("a", "ping", "-c", "2", "-i", "0.2", "-W", "1", "10.9.0.2",
                   check=False).returncode != 0
    assert lab.status("b")["verdicts"]["DROP_SOURCE_NOT_ALLOWED"] == 2


def test_no_routes(lab, tmp_path):
    key = key_files(tmp_path)
    lab.fastpump("a", "--private-key", str(key["a"][0]), "--no-routes", "--peer",
                 f"{key['b'][1]},allowed-ips=10.77.0.0/24")
    assert "10.77" not in lab.ip("a", "route")


def test_first_steps_of_a_newcomer(lab, tmp_path):
    """Without any key or peer: the printed command, typed on the other host, works."""
    process = lab.spawn("b", *FASTPUMP, "tunnel", "--address", "10.9.0.2/24")
    public_b = re.search(r"public key (\S+),", wait_for_line(process, " is ready: "))[1]
    printed = wait_for_line(process, "fastpump tunnel --queues").strip()
    assert f"--address 10.9.0.3/24 --peer {public_b}@192.0.2.2:51820" in printed
    stop(process)
    words = printed.split()[2:]
    other = lab.spawn("a", *FASTPUMP, "tunnel", *words)
    public_a = re.search(r"public key (\S+),", wait_for_line(other, " is ready: "))[1]
    assert public_a != public_b     # one state directory, two namespaces
    lab.fastpump("b", "--address", "10.9.0.2/24", "--peer", public_a)
    assert lab.status("b")["public_key"] == public_b
    assert is_reachable(lab, "10.9.0.2")
    kept = sorted((tmp_path / "state").glob("*.key"))
    assert len(kept) == 2 and all(path.stat().st_mode & 0o777 == 0o600 for path in kept)


@pytest.mark.parametrize(("words", "is_taken"), [((), True), (("--listen-port", "0"), False)])
def test_the_printed_commands_name_a_port_that_stays(lab, words, is_taken):
    """With 51820 taken, or any port wanted, both sides find each other by the printed commands."""
    if is_taken:
        other = lab.fastpump("b", "fp7", "--address", "10.7.0.1/24", "--listen-port", "51820")
    process = lab.spawn("b", *FASTPUMP, "tunnel", "--address", "10.9.0.2/24", *words)
    if is_taken:
        assert "the UDP port 51820 is in use: this tunnel has port " in wait_for_line(
            process, "WARNING")
    port = re.search(r"UDP port (\d+),", wait_for_line(process, " is ready: "))[1]
    assert port != "51820"
    there = shlex.split(wait_for_line(process, "fastpump tunnel --queues"))[1:]
    here = shlex.split(wait_for_line(process, "ITS_PUBLIC_KEY"))[1:]
    assert here == ["tunnel", "--address", "10.9.0.2/24", *words, "--listen-port", port, "--peer",
                    "ITS_PUBLIC_KEY"]
    stop(process)
    if is_taken:
        stop(other)         # 51820 is free again, and yet not taken
    started = lab.spawn("a", *FASTPUMP, *there)
    public_a = re.search(r"public key (\S+),", wait_for_line(started, " is ready: "))[1]
    again = lab.spawn("b", *FASTPUMP, *here[:-1], public_a)
    wait_for_line(again, f" is ready: {min(cpus.usable_count(), 16)} queues, UDP port {port},")
    assert is_reachable(lab, "10.9.0.2")


def test_another_key_than_the_kept_one_is_told(lab, tmp_path):
    """Peers know the public key of the one that was made for the interface."""
    stop(lab.fastpump("a"))
    key = key_files(tmp_path)
    process = lab.spawn("a", *FASTPUMP, "tunnel", "--private-key", str(key["a"][0]))
    line = wait_for_line(process, "WARNING fp0: the key is that of")
    assert f"the peers need the new public key, {key['a'][1]}" in line
    stop(process)
    kept = next((tmp_path / "state").glob("*.key"))
    process = lab.spawn("a", *FASTPUMP, "tunnel", "--private-key", str(kept))
    said = ""
    while " is ready: " not in said:
        said += process.stdout.readline()
    assert "the key is that of" not in said


def failure(lab, side, *words, env=None):
    """What a tunnel that cannot start says; it says one line and nothing else."""
    result = subprocess.run(lab.command(side, [*FASTPUMP, "tunnel", *words]), text=True,
                            capture_output=True, timeout=20, check=False,
                            env={**os.environ, **(env or {})})
    assert result.returncode == 1 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("fastpump: ")
    return line


def test_mistakes_are_explained_in_one_line(lab, tmp_path):
    key = key_files(tmp_path)
    lab.fastpump("a", *tunnel_words("a", key["a"], key["b"][1]))
    own = keys.encode(keys.generate_private())
    good = ["--private-key", str(key["b"][0])]
    assert "fp0 exists already" in failure(lab, "a", *good)
    assert ": fp0:" in lab.ip("a", "link")
    assert "port 51820 is in use" in failure(lab, "a", "fp1", "--listen-port", "51820", *good)
    assert "wire exists already" in failure(lab, "a", "wire", *good)
    assert "own public key" in failure(lab, "b", *good, "--peer",
                                       f"{key['b'][1]},allowed-ips=10.0.0.0/8")
    assert "no allowed IPs" in failure(lab, "b", *good, "--peer", key["a"][1])
    assert "cannot be read" in failure(lab, "b", "--private-key", "/nonexistent")
    assert "several peers" in failure(lab, "b", *good, "--address", "10.9.0.1/24", "--peer",
                                      key["a"][1], "--peer", own)
    lab.ip("b", "route", "add", "10.50.0.0/16", "dev", "wire")
    assert "--no-routes" in failure(lab, "b", *good, "--peer",
                                    f"{key['a'][1]},allowed-ips=10.50.0.0/16")
    assert "cannot be reached" in failure(lab, "b", *good, "--address", "10.9.0.1/24", "--peer",
                                          f"{key['a'][1]}@203.0.113.9:51820")
    assert "two peers" in failure(lab, "b", *good, "--no-routes", "--peer",
                                  f"{key['a'][1]},allowed-ips=10.0.0.0/8", "--peer",
                                  f"{own},allowed-ips=10.0.0.0/8")
    (tmp_path / "open.key").write_text(own)
    assert "chmod 600" in failure(lab, "b", "--private-key", str(tmp_path / "open.key"))
    assert "1280" in failure(lab, "b", *good, "--mtu", "1000", "--address", "fd00::1/64")
    assert "rot13" in failure(lab, "b", *good, env={"FASTPUMP_AEAD": "rot13"})
    assert "invalid interface name" in failure(lab, "b", "a/b", *good)
    assert ": fp0:" not in lab.ip("b", "link")


@pytest.mark.parametrize("user", [0, 65534])
def test_without_rights_it_says_so(lab, tmp_path, user):
    """A user 0 without capabilities may open /dev/net/tun, another one not."""
    key = key_files(tmp_path)["a"][0]
    result = lab.run("a", *with_tun_device(0o600, *as_user(
        user, *FASTPUMP, "tunnel", "--address", "10.9.0.1/24", "--private-key", str(key))),
        check=False)
    (line,) = result.stderr.splitlines()
    assert result.returncode == 1 and "run as root, or with CAP_NET_ADMIN" in line


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_streams_do_no_harm(lab, tmp_path, closed):
    words = " ".join(FASTPUMP)
    process = lab.spawn("a", "sh", "-c", f"exec {words} tunnel --fwmark 0xffffffff {closed}")
    until(lambda: len([pid for pid in children(process.pid) if is_worker(pid)]) == min(
        cpus.usable_count(), 16))
    until(lambda: len(lab.run("a", *FASTPUMP, "status").stdout.splitlines()) > 5)


def test_two_that_start_together_get_two_ports(lab):
    started = [lab.spawn("a", *FASTPUMP, "tunnel", f"fp{number}", "--queues", "1")
               for number in range(4)]
    for process in started:
        wait_for_line(process, " is ready: ")
    listing = json.loads(lab.run("a", *FASTPUMP, "status", "--json").stdout)["interfaces"]
    assert len({entry["listen_port"] for entry in listing}) == 4


def test_idle_control_clients_are_limited_and_end_quietly(lab, tunnel, tmp_path):
    (path,) = [p for p in (tmp_path / "run").rglob("fp0.sock")
               if p.parent.name == str(namespace_inode(lab, "a"))]
    clients = []
    for _ in range(40):
        clients.append(socket.socket(socket.AF_UNIX))
        clients[-1].connect(str(path))
    until(lambda: clients[-1].recv(1) == b"")
    output = stop(tunnel["a"])
    assert tunnel["a"].returncode == 0 and "Traceback" not in output
    for client in clients:
        client.close()


def test_a_taken_default_port_gives_way_to_a_free_one(lab, tmp_path):
    key = key_files(tmp_path)
    lab.fastpump("a", "fp0", "--private-key", str(key["a"][0]))
    lab.fastpump("a", "fp1", "--private-key", str(key["b"][0]))
    listing = json.loads(lab.run("a", *FASTPUMP, "status", "--json").stdout)["interfaces"]
    ports = {entry["name"]: entry["listen_port"] for entry in listing}
    assert ports["fp0"] == 51820 and ports["fp1"] not in (0, 51820)


@pytest.mark.parametrize(("usable", "expected"), [
    ("52060 52120", range(52076, 52121)), ("51900 51980", range(51900, 51981))])
def test_free_ports_are_none_that_tunnels_are_given(lab, usable, expected):
    """Where the host has others."""
    lab.run("b", "sh", "-c", f"echo {usable} > /proc/sys/net/ipv4/ip_local_port_range")
    lab.fastpump("b", "--listen-port", "0")
    ports = {int(port) for port in re.findall(r":(\d+)\s", lab.run("b", "ss", "-Hlun").stdout)}
    assert len(ports) > 32 and ports <= set(expected)


def test_status_of_nothing(lab):
    assert "no tunnel is running" in lab.run("a", *FASTPUMP, "status").stdout
    assert json.loads(lab.run("a", *FASTPUMP, "status", "--json").stdout) == {"interfaces": []}
    result = lab.run("a", *FASTPUMP, "status", "fp7", check=False)
    assert result.returncode == 1 and "no tunnel is running on fp7" in result.stderr


def test_the_control_socket_survives_garbage(lab, tunnel, tmp_path):
    (path,) = [p for p in (tmp_path / "run").rglob("fp0.sock")
               if p.parent.name == str(namespace_inode(lab, "a"))]
    assert path.stat().st_mode & 0o777 == 0o600
    for garbage in (b"\n", b"hello\n", b"[1]\n", b'{"command": "quit"}\n', b"x" * 200000,
                    b"[" * 50000 + b"\n", b'{"command": "status"'):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            try:
                client.sendall(garbage)
                client.shutdown(socket.SHUT_WR)
                answer = client.recv(4096)
            except OSError:
                continue
            assert answer == b"" or "error" in json.loads(answer)
    assert lab.status("a")["name"] == "fp0"


def namespace_inode(lab, side):
    return int(lab.run(side, "stat", "-Lc", "%i", "/proc/self/ns/net").stdout)


def test_garbage_on_the_udp_port_is_counted_and_harmless(lab, tunnel):
    assert is_reachable(lab, INSIDE4["b"])
    lab.run("a", sys.executable, "-c", (
        "import os, socket, struct\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for kind in range(256):\n"
        "    for size in (0, 1, 3, 7, 8, 15, 16, 31, 32, 64, 92, 148, 1500):\n"
        "        s.sendto((bytes([kind]) + bytes(3) + os.urandom(1500))[:size], "
        "('192.0.2.2', 51820))\n"))
    assert is_reachable(lab, INSIDE4["b"])
    verdicts = until(lambda: lab.status("b")["verdicts"])
    assert verdicts["DROP_UNKNOWN_INDEX"] + verdicts["DROP_MALFORMED_MESSAGE"] > 5
    assert verdicts["DROP_INVALID_MAC1"] == 2
    assert lab.status("b")["worker_restarts"] == 0


def test_mtu_changes_while_running(lab, tunnel):
    assert is_reachable(lab, INSIDE4["b"])
    for mtu in ("1300", "8000"):
        for side in "ab":
            lab.ip(side, "link", "set", "fp0", "mtu", mtu)
        until(lambda mtu=mtu: lab.status("a")["mtu"] == int(mtu))
        assert transfer(lab, "a", INSIDE4["b"], 4 << 20)


def test_interface_down_and_up(lab, tunnel):
    assert is_reachable(lab, INSIDE4["b"])
    lab.ip("b", "link", "set", "fp0", "down")
    assert not lab.run("a", "ping", "-c", "1", "-W", "1", INSIDE4["b"], check=False).stdout.count(
        "1 received")
    down = lab.status("b")
    assert not down["is_up"] and [queue["pid"] for queue in down["queues"]] == [None] * 4
    assert not lab.run("b", "ss", "-lunH").stdout
    lab.ip("b", "link", "set", "fp0", "up")
    until(lambda: lab.status("b")["peers"][0]["latest_handshake"]
          > down["peers"][0]["latest_handshake"] or lab.status("b")["is_up"])
    assert is_reachable(lab, INSIDE4["b"])
    assert tunnel["b"].poll() is None


def test_ecn_and_every_protocol_pass(lab, tunnel):
    """Raw packets: ECN marks, unknown protocols, fragments, extension headers."""
    script = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 253)\n"
        "s.settimeout(5)\n"
        "print('listening', flush=True)\n"
        "for _ in range(3):\n"
        "    data = s.recv(65536)\n"
        "    print('got', data[1], len(data) - 20, flush=True)\n")
    receiver = lab.spawn("b", sys.executable, "-c", script)
    wait_for_line(receiver, "listening")
    lab.run("a", sys.executable, "-c", (
        "import socket\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 253)\n"
        "for tos, size in ((3, 10), (1, 1400), (2, 9000)):\n"
        "    s.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)\n"
        "    s.sendto(bytes(size), ('10.9.0.2', 0))\n"))
    assert receiver.communicate(timeout=10)[0].split() == (
        "got 3 10 got 1 1400 got 2 9000".split())
    assert is_reachable(lab, INSIDE6["b"])
    big = lab.run("a", "ping", "-c", "1", "-s", "8000", "-W", "5", INSIDE6["b"])
    assert "1 received" in big.stdout


def test_two_tunnels_share_nothing(tmp_path):
    """Two pairs with the same names and ports run beside each other."""
    outcome = []

    def one(number):
        directory = tmp_path / str(number)
        directory.mkdir()
        with Lab() as lab, fastpump_pair(lab, directory, "--queues", "2"):
            outcome.append(transfer(lab, "a", INSIDE4["b"], 4 << 20))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcome == [True, True]

