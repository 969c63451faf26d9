"""What breaks while a tunnel runs, and who says so: in namespaces, as its operator meets it."""

import contextlib
import os
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastpump.lab.networks import (
    INSIDE4,
    OUTSIDE4,
    fastpump_pair,
    key_files,
    stop,
    tunnel_words,
    wait_for_line,
)
from support.ethernets import MTU, Sites, switched
from support.hosts import FASTPUMP, is_reachable, until


def test_a_worker_that_hangs_is_reported_and_restarted(lab, tmp_path):
    with fastpump_pair(lab, tmp_path, "--queues", "2") as tunnel:
        assert is_reachable(lab, INSIDE4["b"])
        victim, other = (queue["pid"] for queue in lab.status("a")["queues"])
        os.kill(victim, signal.SIGSTOP)
        wait_for_line(tunnel["a"], f"worker 0 (pid {victim}) has not moved for 2 seconds")
        queues = lab.status("a")["queues"]
        assert queues[0]["unresponsive_s"] >= 2 and queues[1]["unresponsive_s"] == 0
        wait_for_line(tunnel["a"], f"worker 0 (pid {victim}) has not moved for 5 seconds: killing")
        wait_for_line(tunnel["a"], "worker 0 is back after")
        queues = lab.status("a")["queues"]
        assert [queue["restarts"] for queue in queues] == [1, 0] and queues[1]["pid"] == other
        assert queues[0]["unresponsive_s"] == 0
        assert is_reachable(lab, INSIDE4["b"])


# -- a supervisor that does not answer

@contextlib.contextmanager
def stopped(process):
    process.send_signal(signal.SIGSTOP)
    try:
        yield "is stopped"
    finally:
        process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def without_descriptors(process):
    """Those that it has open now, and no other."""
    pid = process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    is_open = set()
    while is_open != (now := {int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()}):
        is_open = now       # one may be open for a moment only: then there is room for another
        first_free = min(set(range(len(is_open) + 1)) - is_open)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (first_free, before[1]))
        time.sleep(0.3)
    try:
        yield "has no file descriptor left"
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("fault", [stopped, without_descriptors])
def test_a_tunnel_that_does_not_answer_is_said_in_time_and_does_nothing_later(lab, fault):
    """`status` shows the other tunnel."""
    busy, other = (lab.fastpump("a", name, "--listen-port", port)
                   for name, port in (("fp0", "1"), ("fp1", "2")))
    commands = ("status",), ("status", "fp0"), ("limit", "fp0", "tx=100mbit"), ("down", "fp0")
    with fault(busy) as why, ThreadPoolExecutor() as pool:
        began = time.monotonic()
        results = list(pool.map(lambda words: lab.run("a", *FASTPUMP, *words, check=False),
                                commands))
        assert time.monotonic() - began < 20        # 3 s; the machine is loaded
    for words, result in zip(commands, results, strict=True):
        assert result.returncode == 1
        assert ("interface: fp1" in result.stdout) == (words == ("status",))
        (line,) = result.stderr.splitlines()
        assert line.startswith("fastpump: the tunnel fp0 does not answer: ") and why in line
    until(lambda: lab.run("a", *FASTPUMP, "limit", "fp0", check=False).stdout == "no limits\n")
    for process in (busy, other):
        assert process.poll() is None
    # Once; and again if a client left meanwhile, and so one was free for a moment.
    said = stop(busy).count("have to wait: Too many open files")
    assert (1 <= said <= 2) if fault is without_descriptors else said == 0


# -- the underlay

def test_an_underlay_that_goes_and_comes_is_said_once(lab, tmp_path):
    with fastpump_pair(lab, tmp_path, "--queues", "2") as tunnel:
        assert is_reachable(lab, INSIDE4["b"])
        lab.ip("a", "link", "set", "wire", "down")
        load = lab.spawn("a", "sh", "-c", f"exec ping -i 0.02 {INSIDE4['b']} > /dev/null")
        wait_for_line(tunnel["a"], "sending to peer")
        (peer,) = lab.status("a")["peers"]
        assert peer["send_error"] == "Network is unreachable (ENETUNREACH)"
        assert f"sending fails: {peer['send_error']}" in lab.run("a", *FASTPUMP, "status").stdout
        sent = lab.status("a")["verdicts"]["DROP_SEND_ERROR"]
        until(lambda: lab.status("a")["verdicts"]["DROP_SEND_ERROR"] > sent + 100)
        lab.ip("a", "link", "set", "wire", "up")
        wait_for_line(tunnel["a"], "works again")
        assert lab.status("a")["peers"][0]["send_error"] is None
        stop(load)
        lab.processes.remove(load)
        assert "sending to" not in stop(tunnel["a"])


def test_a_wrong_key_is_said_on_both_sides(lab, tmp_path):
    key = key_files(tmp_path)
    (tmp_path / "other").mkdir()
    wrong = key_files(tmp_path / "other")
    b = lab.fastpump("b", *tunnel_words("b", key["b"], wrong["a"][1], endpoint=False))
    a = lab.fastpump("a", *tunnel_words("a", key["a"], key["b"][1]))
    assert not lab.ping("a", INSIDE4["b"], 1)
    line = wait_for_line(b, "was rejected")
    assert f"from {OUTSIDE4['a']}:51820" in line and key["a"][1] in line
    wait_for_line(a, "no handshake with peer")
    text = lab.run("a", *FASTPUMP, "status").stdout
    assert "handshake: tried 2 times: no answer: " in text


# -- a loop

def test_a_second_tunnel_between_the_same_bridges_is_called_a_loop(tmp_path):
    with Sites(count=2) as lab, switched(lab, tmp_path) as first:
        (tmp_path / "second").mkdir()
        key = dict(zip(lab.sites, key_files(tmp_path / "second").values(), strict=True))
        second = [lab.fastpump(
            site, "fp1", "--tap", "--bridge", "br0", "--mtu", str(MTU), "--listen-port", "51821",
            "--private-key", str(key[site][0]), "--peer",
            f"{key[other][1]}@192.0.2.{other[1:]}:51821")
            for site, other in (lab.sites, lab.sites[::-1])]
        lab.run("h11", "ping", "-c", "3", "-W", "1", "-b", "10.8.0.255", check=False)
        wait_for_line(first["s1"], "frames go round in a loop")
        for process in second:
            stop(process)
