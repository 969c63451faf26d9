"""DNS of a tunnel on hosts without resolvconf: in /etc/resolv.conf itself, or by systemd-resolved.
(tests/netns/test_quick.py has it with resolvconf.)"""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from fastpump.lab.networks import INSIDE4, need, stop, wait_for_line
from support.hosts import make_program, pids_in, until
from support.quick import ADDRESSES, FULL

OLD = "# of the administrator\nnameserver 192.0.2.99\noptions timeout:1"


@pytest.fixture
def etc(quick):
    """An /etc for host a, which has no resolvconf; files in it can be replaced, as `prefix` says
    how else."""
    copy = quick.directory / "etc"
    subprocess.run(["cp", "-a", "/etc", copy], check=True)
    (copy / "resolv.conf").unlink(missing_ok=True)
    (copy / "resolv.conf").write_text(OLD)
    (quick.directory / "bin" / "resolvconf").unlink()
    others = [path for each in os.environ["PATH"].split(":")
              if os.access(path := f"{each}/resolvconf", os.F_OK)]
    hidden = "".join(f"mount --bind /dev/null {path}\n" for path in others)
    quick.prefix = ["sh", "-euc", f'mount --bind {copy} /etc\n{hidden}exec "$@"', "sh"]
    return copy


@pytest.fixture
def file(etc):
    return etc / "resolv.conf"


def servers(file):
    return [line.split()[1] for line in file.read_text().splitlines()
            if line.startswith("nameserver")]


def kill(quick):
    os.kill(quick.pid, signal.SIGKILL)
    until(lambda: not pids_in(quick.lab, "a"))


def test_names_are_resolved_by_the_servers_of_the_tunnel(quick, lab, file):
    need("dnsmasq")
    lab.spawn("b", "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-hosts", "--no-resolv",
              "--port=53", f"--listen-address={INSIDE4['b']}", "--bind-interfaces", "--user=root",
              "--pid-file=", "--host-record=there.inside.test,10.44.0.1")
    (file.parent / "nsswitch.conf").write_text("hosts: dns\n")
    quick.write(ADDRESSES, f"DNS = {INSIDE4['b']}, inside.test")
    before = quick.state()
    quick("up")
    assert servers(file) == [INSIDE4["b"]]
    said = until(lambda: lab.run("a", *quick.prefix, "getent", "ahostsv4", "there",
                                 check=False).stdout)
    assert said.split()[0] == "10.44.0.1"
    quick("down")
    assert file.read_text() == OLD
    assert {**quick.state(), "processes": 0} == {**before, "processes": 0}


def test_reload_changes_the_file(quick, file):
    quick.write(ADDRESSES)
    quick("up")
    for value, expected in (("10.9.0.2", ["10.9.0.2"]), ("10.9.0.3, a.test", ["10.9.0.3"]),
                            ("", ["192.0.2.99"])):
        quick.write(ADDRESSES, *[f"DNS = {value}"] * bool(value))
        assert quick("reload").stdout == "changed: DNS\n"
        assert servers(file) == expected
    assert file.read_text() == OLD
    quick("down")
    assert file.read_text() == OLD


@pytest.mark.parametrize("then", ["down", "up", "reboot"])
def test_what_a_killed_tunnel_left_in_the_file_is_undone(quick, file, then):
    quick.write(ADDRESSES, "DNS = 10.9.0.2")
    quick("up")
    kill(quick)
    assert servers(file) == ["10.9.0.2"]
    if then == "reboot":        # after which /run is empty
        shutil.rmtree(quick.directory / "run")
    quick.write(ADDRESSES)
    assert "was killed" in quick("down" if then == "down" else "up").stderr
    assert file.read_text() == OLD


def test_the_next_full_tunnel_takes_over_what_a_killed_one_left(quick, file):
    for lines, expected in ((["DNS = 10.9.0.2"], "10.9.0.2"), (["DNS = 10.9.0.3"], "10.9.0.3"),
                            ([], "192.0.2.99")):
        quick.write(ADDRESSES, *lines, peer=(FULL,))
        quick("up")
        assert servers(file) == [expected]
        kill(quick)
        assert servers(file) == [expected]
    quick("down")
    assert file.read_text() == OLD


def test_what_another_program_wrote_meanwhile_stays(quick, file):
    quick.write(ADDRESSES, "DNS = 10.9.0.2")
    quick("up")
    file.write_text("nameserver 192.0.2.98\n")
    kill(quick)
    assert ("/etc/resolv.conf was changed by another program meanwhile, and stays as it is"
            in quick("down").stderr)
    assert file.read_text() == "nameserver 192.0.2.98\n"


def test_tunnels_end_in_any_order(quick, file):
    quick.write(ADDRESSES, "DNS = 10.9.0.2")
    other = quick.directory / "other.conf"
    other.touch(mode=0o600)
    other.write_text(f"[Interface]\nPrivateKey = {quick.private}\nQueues = 1\n"
                     "Address = 10.8.0.1/24\nDNS = 10.8.0.2\n")
    for first, second in ((quick.path, other), (other, quick.path)):
        for path, server in ((quick.path, "10.9.0.2"), (other, "10.8.0.2")):
            quick.lab.run("a", *quick.words("up"), str(path))
            assert servers(file) == [server]
        quick.lab.run("a", *quick.words("down"), str(first))
        assert servers(file) == ["10.8.0.2" if first == quick.path else "10.9.0.2"]
        quick.lab.run("a", *quick.words("down"), str(second))
        assert file.read_text() == OLD


def test_a_file_that_is_a_mount_point_is_overwritten(quick, file):
    """As in a container, and in a namespace that has an /etc/netns/NAME/resolv.conf."""
    quick.prefix[2] = quick.prefix[2].replace("exec", f"mount --bind {file} {file}\n"
                                              f"mount --bind {file} /etc/resolv.conf\nexec")
    inode = file.stat().st_ino
    quick.write(ADDRESSES, "DNS = 10.9.0.2")
    quick("up")
    assert servers(file) == ["10.9.0.2"] and file.stat().st_ino == inode
    quick("down")
    assert file.read_text() == OLD and file.stat().st_ino == inode
    assert not list(file.parent.glob(".resolv*"))


def test_a_file_that_cannot_be_written_is_an_error(quick, file):
    quick.prefix[2] = quick.prefix[2].replace("exec", "mount -o remount,bind,ro /etc\nexec")
    quick.write(ADDRESSES, "DNS = 10.9.0.2")
    before = quick.state()
    assert quick.fails("up") == (
        "fastpump: /etc/resolv.conf cannot be changed, which DNS needs: Read-only "
        "file system; make it writable, by a mount of its own for instance, or leave out DNS")
    assert quick.state() == before and file.read_text() == OLD


# -- systemd-resolved

RESOLVED = ("import signal; open('/proc/self/comm', 'w').write('systemd-resolved'[:15]); "
            "print('ready', flush=True); signal.pause()")


@pytest.fixture
def resolved(quick, lab, file):
    """What stands in for systemd-resolved, in charge of host a's DNS; the calls of resolvectl."""
    file.write_text("nameserver 127.0.0.53\noptions edns0 trust-ad\n")
    calls = quick.directory / "resolvectl.calls"
    make_program(quick.directory / "bin", "resolvectl", f'#!/bin/sh\necho "$@" >> {calls}\n')
    calls.touch()
    wait_for_line(lab.spawn("a", sys.executable, "-c", RESOLVED), "ready")

    def new_calls():
        text = calls.read_text()
        calls.write_text("")
        return text.splitlines()

    return new_calls


def test_resolved_is_told_of_the_interface(quick, lab, file, resolved):
    text = file.read_text()
    quick.write(ADDRESSES, "DNS = 10.9.0.2, a.test")
    before = quick.state()
    quick("up")
    index = lab.status("a")["ifindex"]
    assert resolved() == [f"dns {index} 10.9.0.2", f"domain {index} ~. a.test",
                          f"default-route {index} yes"]
    quick.write(ADDRESSES)
    assert quick("reload").stdout == "changed: DNS\n"
    assert resolved() == [f"revert {index}"]
    quick.write(ADDRESSES, "DNS = 10.9.0.3")
    quick("reload")
    assert resolved()[0] == f"dns {index} 10.9.0.3"
    quick("down")
    assert resolved() == [f"revert {index}"]
    assert quick.state() == before and file.read_text() == text


def test_resolved_forgets_a_killed_tunnel_by_itself(quick, resolved):
    quick.write(ADDRESSES, "DNS = 10.9.0.2")
    quick("up")
    assert len(resolved()) == 3
    os.kill(quick.pid, signal.SIGKILL)
    until(lambda: quick.pid is None)
    assert "was killed" in quick("down").stderr
    assert resolved() == []


def test_resolved_of_another_network_namespace_is_not_asked(quick, lab, file, resolved):
    """It would take the interface's index for one of its own."""
    for process in [each for each in lab.processes if RESOLVED in each.args]:
        stop(process)
        lab.processes.remove(process)
    wait_for_line(lab.spawn("b", sys.executable, "-c", RESOLVED), "ready")
    quick.write(ADDRESSES, "DNS = 10.9.0.2")
    quick("up")
    assert servers(file) == ["10.9.0.2"] and resolved() == []
    quick("down")
    assert servers(file) == ["127.0.0.53"]
