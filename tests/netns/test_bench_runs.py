"""`fastpump bench` for real, as short as it gets."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastpump.bench.ends import Ends
from fastpump.bench.loads import Turn, udp_highest
from fastpump.bench.packets import Stream, run_stream
from fastpump.errors import SystemSetupError
from fastpump.lab.networks import OUTSIDE4, OUTSIDE6, stop, wait_for_line
from support.hosts import make_program, until

FASTPUMP = sys.executable, "-m", "fastpump"
SHORT = "--rounds", "1", "--seconds", "1", "--queues", "2"


def bench(*words):
    return subprocess.run([*FASTPUMP, "bench", *words], capture_output=True, text=True, check=True)


def namespaces():
    return set(Path("/run/netns").iterdir()) if Path("/run/netns").exists() else set()


@pytest.mark.parametrize("topology, load, only", [
    ("hosts", "ping,tcp128,tcp-both,connect,udp64-20k,imix,quic,ping-tcp", "fastpump"),
    ("hosts-plain,gateways", "ping,tcp1", "bare,fastpump wireguard,wireguard-go"),
    ("hosts,bridges-plain", "tcp1", "bare,fastpump tap,nebula,openvpn,fastd,tinc"),
    ("peers", "ping,handshakes", "bare,fastpump wireguard,wireguard-go"),
    ("hosts", "udp64-20k", "vtun,quicktun,n2n")])
def test_all_figures_of_all_who_take_part(tmp_path, topology, load, only):
    path = tmp_path / "figures.json"
    ran = bench(*SHORT, "--topology", topology, "--load", load, "--only", only, "--json",
                str(path), "--seed", "7")
    data = json.loads(path.read_text())
    assert data["settings"]["seed"] == "7" and data["machine"]["cpus"]
    assert list(data["topologies"]) == topology.split(",")
    for columns in data["topologies"].values():
        names = [name.removesuffix(", 2 queues") for name in columns]
        assert names == [name for name in only.split(",") if name in names]
        for name, column in columns.items():
            (turn,) = column["turns"]
            assert turn, ran.stderr
            assert all(value > 0 for figure, value in turn.items()
                       if not figure.endswith(("lost", "reordered")))
            assert (name == "bare") == ("memory, both ends" not in turn)
            assert f"{name}: " in ran.stdout
            for each in column["figures"]:
                assert each["name"] in ran.stdout
    assert "no ratio is sure" in ran.stdout
    again = bench("compare", str(path), str(path))
    assert " x 1.00 " in again.stdout


def filtered(lab, statement):
    """What comes to b is dropped by this."""
    lab.run("b", "nft", "-f", "-", input=(
        f"table ip lossy {{ chain in {{ type filter hook input priority 0; udp length > 30 "
        f"{statement} drop; }}; }}\n".replace("; ", "\n")))


def test_packets_that_a_host_drops_are_missed(lab):
    """Each tenth; IPv4 and IPv6."""
    filtered(lab, "numgen inc mod 10 0")
    arrived = run_stream(lab, "a", "b", OUTSIDE4["b"], Stream((64, 500), 2000, flows=2), 0.5)
    assert arrived.received == arrived.sent - -(-arrived.sent // 10)
    assert 0.1 <= arrived.lost < 0.11 and not arrived.reordered
    every = run_stream(lab, "a", "b", OUTSIDE6["b"], Stream((64,), 2000), 0.2)
    assert every.received == every.sent > 0


def test_the_highest_rate_is_not_beyond_a_limit(lab):
    filtered(lab, "limit rate over 8000/second burst 50 packets")
    turn = Turn(lab, Ends("a", "b", OUTSIDE4["b"], None), 0.5)
    (rate,) = udp_highest(64)(turn).values()
    assert 0 < rate < 8000 * 1.06


def test_who_cannot_send_or_receive_is_told(lab):
    stream = Stream((64,), 1000)
    with pytest.raises(SystemSetupError, match="Network is unreachable"):
        run_stream(lab, "a", "b", "203.0.113.9", stream, 0.1)
    with pytest.raises(SystemSetupError, match="nothing arrived"):
        Turn(lab, Ends("a", "b", OUTSIDE4["a"], None), 0.1).stream("small", stream, 0.1)


def test_two_real_hosts(lab, tmp_path):
    """Each tunnel joins the file. Neither end needs a namespace of its own, nor rights."""
    path = tmp_path / "hosts.json"
    loads = "ping,tcp1,tcp-reverse,connect,udp64-20k,udp64-highest"
    client = (*FASTPUMP, "bench", "--client", OUTSIDE4["b"], "--rounds", "1", "--seconds", "1",
              "--load", loads, "--json", str(path))
    refused = lab.run("a", *client, check=False)
    assert refused.returncode == 1 and "has to run there" in refused.stderr
    assert not path.exists()
    tunnel = f"tunnel-{lab.tag}"
    make_program(tmp_path, tunnel, "#!/bin/sh\nwhile sleep 0.1; do :; done\n")
    for side in "ab":
        lab.spawn(side, str(tmp_path / tunnel))
    server = lab.spawn("b", *FASTPUMP, "bench", "--server")
    wait_for_line(server, "serving on all addresses")
    for name in ("wire", "other"):
        ran = lab.run("a", *client, "--name", name, "--process", tunnel)
    text = ran.stdout
    assert "real: two real hosts" in text and "\nwire: over 192.0.2.2" in text
    columns = json.loads(path.read_text())["topologies"]["real"]
    assert list(columns) == ["wire", "other"]
    for name in ("wire", "other"):
        (turn,) = columns[name]["turns"]
        assert turn and "TCP, 1 stream: CPU" in turn and "memory, both ends" in turn
        assert not any("delay" in figure for figure in turn)
        assert all(value > 0 for figure, value in turn.items()
                   if not figure.endswith(("lost", "reordered", "CPU")))
    other = lab.run("a", *client[:-4], "--load", "ping", "--seconds", "2", "--json", str(path),
                    check=False)
    assert other.returncode == 1 and "give another file to --json" in other.stderr
    stop(server)
    lab.processes.remove(server)
    assert server.returncode == 128 + signal.SIGTERM


def test_an_end_under_way_leaves_nothing():
    """By SIGTERM, in the first turn."""
    with subprocess.Popen([*FASTPUMP, "bench", "--only", "fastpump", "--load", "tcp1"],
                          stderr=subprocess.PIPE, text=True) as running:
        assert "[1/" in running.stderr.readline()
        tag = f"fp{running.pid}-"
        assert until(lambda: any(each.name.startswith(tag) for each in namespaces()))
        running.terminate()
        running.communicate(timeout=30)
    assert running.returncode != 0
    assert not any(each.name.startswith(tag) for each in namespaces())
