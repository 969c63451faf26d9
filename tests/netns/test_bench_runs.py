"""`fastpump bench` for real, as short as it gets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.hosts import until

FASTPUMP = sys.executable, "-m", "fastpump"
SHORT = "--rounds", "1", "--seconds", "1", "--queues", "2"


def bench(*words):
    return subprocess.run([*FASTPUMP, "bench", *words], capture_output=True, text=True, check=True)


def namespaces():
    return set(Path("/run/netns").iterdir()) if Path("/run/netns").exists() else set()


@pytest.mark.parametrize("topology, load, only", [
    ("hosts", "ping,tcp4,tcp-reverse,udp64-20k,udp1300,ping-tcp", "fastpump"),
    ("hosts,gateways", "ping,tcp1", "bare,fastpump wireguard,wireguard-go"),
    ("hosts", "tcp1", "nebula,openvpn,fastd,tinc")])
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
            assert all(value > 0 for figure, value in turn.items() if not figure.endswith("lost")
                       and (name != "bare" or not figure.endswith("CPU")))
            assert f"{name}: " in ran.stdout
            for each in column["figures"]:
                assert each["name"] in ran.stdout
    assert "no ratio is sure" in ran.stdout
    again = bench("compare", str(path), str(path))
    assert " x 1.00 " in again.stdout


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
