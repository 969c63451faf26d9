"""`fastpump-wg`, driven by the real wg-quick, as a kernel's WireGuard would be."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from fastpump.lab.networks import INSIDE4, INSIDE6, OUTSIDE4, need
from fastpump.protocol import keys
from support.hosts import (
    fake_resolvconf,
    is_reachable,
    make_program,
    network_state,
    pids_in,
    transfer,
    until,
)
from support.quick import a_public_key
from support.wginterfaces import Interface, section_of


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


def full_tunnel(path, private, public, allowed="0.0.0.0/0, ::/0"):
    """A file that leads everything into the tunnel."""
    path.touch(mode=0o600)
    path.write_text(
        f"[Interface]\nPrivateKey = {private}\n"
        f"Address = {INSIDE4['a']}/24, {INSIDE6['a']}/64\nDNS = 10.9.0.2, example.net\n"
        f"PostUp = echo up %i >> {path.parent}/hooks\n"
        f"PostDown = echo down %i >> {path.parent}/hooks\n"
        f"[Peer]\nPublicKey = {public}\nAllowedIPs = {allowed}\n"
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


HALVES = "0.0.0.0/1, 128.0.0.0/1, ::/1, 8000::/1"
FAR = "203.0.113.7", "2001:db8:77::7"


@pytest.fixture
def gateway(lab, names, tmp_path, quick):
    """An interface on side b that has the addresses FAR behind it, and one to be on side a, whose
    way to b is its default route."""
    a, b = (Interface(lab, side, name, tmp_path)
            for side, name in zip("ab", names, strict=False))
    b.start()
    b.wg("setconf", b.config(section_of(a)))
    b.set_up()
    for address in FAR:
        lab.ip("b", "address", "add", address, "dev", "lo")
    lab.ip("a", "-4", "address", "flush", "dev", "wire")
    lab.ip("a", "address", "add", OUTSIDE4["a"], "dev", "wire")
    lab.ip("a", "route", "add", "default", "dev", "wire")
    return a, b


def rules(lab):
    return json.loads(lab.ip("a", "-json", "rule"))


@pytest.mark.parametrize(("allowed", "hosts"), [
    (HALVES, FAR), ("192.0.0.0/8, 10.9.0.0/24", ()),
    (f"{OUTSIDE4['b']}/32, 10.9.0.0/24", ())], ids=["halves", "holding", "itself"])
def test_networks_that_hold_the_endpoint(lab, gateway, tmp_path, quick, allowed, hosts):
    """Which wg-quick puts into the main table."""
    a, b = gateway
    run, records = quick
    path = full_tunnel(tmp_path / f"{a.name}.conf", a.private, b.public, allowed)
    before = network_state(lab, "a", records)
    run("a", "up", path)
    for host in (INSIDE4["b"], *hosts):
        assert is_reachable(lab, host)
    assert transfer(lab, "a", INSIDE4["b"], 4 << 20)
    ours = [each for each in rules(lab) if each["priority"] not in (0, 32766, 32767)]
    for each in ours:
        lab.ip("a", "rule", "delete", "priority", str(each["priority"]))
    until(lambda: all(each in rules(lab) for each in ours))
    run("a", "down", path)
    until(lambda: pids_in(lab, "a") == [])
    assert network_state(lab, "a", records) == before


def test_halves_are_closed_behind_a_killed_process(lab, gateway, tmp_path, quick):
    a, b = gateway
    run, records = quick
    path = full_tunnel(tmp_path / f"{a.name}.conf", a.private, b.public, HALVES)
    before = network_state(lab, "a", records)
    run("a", "up", path)
    assert is_reachable(lab, FAR[0])
    os.kill(a.pid, signal.SIGKILL)
    until(lambda: pids_in(lab, "a") == [])
    assert "unreachable 0.0.0.0/1 " in lab.ip("a", "route", "show", "table", "all")
    run("a", "up", path)
    assert is_reachable(lab, FAR[0])
    run("a", "down", path)
    until(lambda: pids_in(lab, "a") == [])
    assert network_state(lab, "a", records) == before


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
