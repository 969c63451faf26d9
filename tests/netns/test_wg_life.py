"""The life of an interface of `fastpump-wg`: moves and ends, bad surroundings, bad clients."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastpump.lab.networks import INSIDE4, OUTSIDE4, stop, wait_for_line
from support.hosts import children, is_reachable, pids_in, transfer, until
from support.wginterfaces import FASTPUMP_WG, other


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
    assert len(status["queues"]) == 3 and set(status["aead"].values()) == {"openssl"}
    assert not {"tso4", "uso"} & set(status["offloads"]) and "tso6" in status["offloads"]


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
