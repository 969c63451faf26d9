"""Which way DNS is set on a host, and what is asked of resolvectl and resolvconf."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fastpump.errors import SystemSetupError
from fastpump.host import dns, resolv_conf
from fastpump.host.dns import Way
from support.hosts import make_program, until

RECORD = Path("/run/fastpump/1/wg0.json")
STUB = b"# stub\nnameserver 127.0.0.53\noptions edns0 trust-ad\n"


@pytest.mark.parametrize("order, is_link, record", [
    ("lo.inet*\neth*\ntun*\n", False, "eth.wg0"),
    ("lo.inet*\neth*\ntun*\n", True, "wg0"),       # left behind by an upgrade to systemd-resolved
    (None, False, "wg0"), ("lo.inet\n", False, "wg0")],
    ids=["Debian's", "of before an upgrade", "openresolv", "no pattern"])
def test_the_record_has_the_prefix_that_resolvconf_wants(tmp_path, monkeypatch, order, is_link,
                                                         record):
    program = make_program(tmp_path / "bin", "resolvconf", (
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncat >> {tmp_path}/calls\n'))
    if is_link:
        program.rename(program.with_name("resolvectl"))
        program.symlink_to("resolvectl")
    if order is not None:
        (tmp_path / "interface-order").write_text(order)
    monkeypatch.setattr(dns, "RESOLVCONF_ORDER", tmp_path / "interface-order")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    dns.set_dns(Way("resolvconf"), RECORD, ["10.9.0.2"], ["example.net"])
    dns.unset_dns(Way("resolvconf"), RECORD)
    assert (tmp_path / "calls").read_text() == (
        f"-a {record} -m 0 -x\nnameserver 10.9.0.2\nsearch example.net\n-d {record} -f\n")


class Host:
    """One with its own /etc/resolv.conf, programs and processes."""

    def __init__(self, directory, monkeypatch):
        self.file, self._bin = directory / "etc" / "resolv.conf", directory / "bin"
        self.run = directory / "run" / "systemd" / "resolve"
        self.calls = directory / "calls"
        self.runs = True
        for each in (self.file.parent, self.run, self._bin):
            each.mkdir(parents=True)
        for module in (dns, resolv_conf):
            monkeypatch.setattr(module, "RESOLV_CONF", self.file)
        monkeypatch.setattr(dns, "RESOLVED_FILES", self.run)
        monkeypatch.setattr(dns, "_resolved_runs", lambda: self.runs)
        monkeypatch.setenv("PATH", f"{self._bin}:/usr/bin:/bin")
        monkeypatch.setattr(dns.shutil, "which", lambda name: (
            str(self._bin / name) if (self._bin / name).exists() else None))

    def install(self, name, then=""):
        return make_program(self._bin, name, (
            f'#!/bin/sh\necho {name} "$@" >> {self.calls}\ncat >> {self.calls}\n{then}\n'))

    def link(self, name, text=STUB):
        self.file.symlink_to(self.run / name)
        if text is not None:
            (self.run / name).write_bytes(text)


@pytest.fixture
def host(tmp_path, monkeypatch):
    return Host(tmp_path, monkeypatch)


def stub(host):
    host.link("stub-resolv.conf")


def uplink(host):
    host.link("resolv.conf", b"nameserver 192.0.2.1\n")


def dangling(host):
    host.link("stub-resolv.conf", None)


def written(text):
    def make(host):
        host.file.write_bytes(text)
    return make


def not_there(_host):
    """No file at all."""


def stopped(host):
    host.runs = False
    stub(host)


@pytest.mark.parametrize("etc, programs, way", [
    (stub, "resolvectl resolvconf", "resolved"), (uplink, "resolvectl", "resolved"),
    (dangling, "resolvectl", "resolved"), (written(STUB), "resolvectl", "resolved"),
    (written(b"nameserver\t127.0.0.54 \n"), "resolvectl", "resolved"),
    (written(b"nameserver 127.0.0.1\n"), "resolvectl", "file"),
    (written(b"#nameserver 127.0.0.53\nnameserver\n\xff\n"), "resolvectl resolvconf",
     "resolvconf"),
    (stopped, "resolvectl resolvconf", "resolvconf"), (stopped, "resolvectl", "file"),
    (stub, "resolvconf", "resolvconf"), (stub, "", "file"),
    (not_there, "resolvectl resolvconf", "resolvconf"), (not_there, "resolvectl", "file"),
], ids=["its stub", "its servers", "its file is gone", "its stub's address", "the other stub",
        "another server here", "mentioned", "it is stopped", "stopped, no resolvconf",
        "no resolvectl", "neither", "no file", "no file, no resolvconf"])
def test_the_way_is_the_host_s(host, etc, programs, way):
    etc(host)
    for name in programs.split():
        host.install(name)
    assert dns.choose(7, None) == Way(way, 7 if way == "resolved" else 0)


def test_resolvconf_may_be_another_name_of_resolvectl(host):
    """Debian's package systemd-resolved has it. Where that is not in charge, it is of no use."""
    stopped(host)
    program = host.install("resolvectl")
    program.with_name("resolvconf").symlink_to("resolvectl")
    assert dns.choose(7, None) == Way("file")


def test_a_tunnel_keeps_its_way_while_it_lives(host):
    """So that what is undone is what was done."""
    host.install("resolvectl")
    host.install("resolvconf")
    stub(host)
    for way in (Way("file", 0, True), Way("resolvconf"), Way("resolved", 7, True)):
        assert dns.choose(7, way) == way
    assert dns.choose(8, Way("resolved", 7, True)) == Way("resolved", 8)    # its interface is gone


@pytest.mark.parametrize("said, way", [
    ({}, None), ({"has_dns": False}, None), ({"has_dns": True}, Way("resolvconf")),
    ({"has_dns": True, "dns": None}, None),
    ({"has_dns": True, "dns": ["resolved", 7, True]}, Way("resolved", 7, True)),
], ids=["nothing", "no", "an earlier version's", "not begun", "a way"])
def test_the_way_of_a_record(said, way):
    assert dns.way_in(said) == way
    if way is not None and "dns" in said:
        assert way.to_json() == said["dns"]


@pytest.mark.parametrize("servers, domains, calls", [
    (["10.9.0.2", "fd00:9::2"], ["example.net", "b.test"],
     "dns 7 10.9.0.2 fd00:9::2|domain 7 ~. example.net b.test|default-route 7 yes"),
    (["10.9.0.2"], [], "dns 7 10.9.0.2|domain 7 ~.|default-route 7 yes"),
    ([], ["example.net"], "dns 7 |domain 7 example.net|default-route 7 no"),
], ids=["both", "servers", "search domains"])
def test_what_is_asked_of_resolved(host, servers, domains, calls):
    host.install("resolvectl")
    dns.set_dns(Way("resolved", 7), RECORD, servers, domains)
    assert host.calls.read_text() == "".join(
        f"resolvectl {call}\n" for call in calls.split("|"))


def test_search_domains_alone_leave_resolvconf_the_servers_of_others(host, monkeypatch):
    host.install("resolvconf")
    monkeypatch.setattr(dns, "RESOLVCONF_ORDER", Path("/nowhere"))
    dns.set_dns(Way("resolvconf"), RECORD, [], ["example.net"])
    assert host.calls.read_text() == "resolvconf -a wg0 -m 0\nsearch example.net\n"


def test_what_resolved_refuses_is_an_error(host):
    host.install("resolvectl", "echo no >&2; exit 1")
    with pytest.raises(SystemSetupError, match=r"resolvectl dns 7 10\.9\.0\.2 failed: no"):
        dns.set_dns(Way("resolved", 7), RECORD, ["10.9.0.2"], [])


def test_with_an_interface_goes_what_resolved_knew_of_it(host):
    host.install("resolvectl")
    dns.unset_dns(Way("resolved", 0x7FFFFFF0, True), RECORD)
    assert not host.calls.exists()
    index = socket.if_nametoindex("lo")
    dns.unset_dns(Way("resolved", index, True), RECORD)
    assert host.calls.read_text() == f"resolvectl revert {index}\n"


def test_resolved_is_looked_for_among_the_processes_of_this_namespace(monkeypatch):
    """By the name that the kernel keeps of its command."""
    own = os.getpid()
    monkeypatch.setattr(dns, "RESOLVED_COMMAND", f"fake-{own}")
    assert not dns._resolved_runs()
    name = (f"import sys; open('/proc/self/comm', 'w').write('fake-{own}'); print(flush=True); "
            "sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-c", name], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"\n"
        assert dns._resolved_runs()
        inode = dns.paths.namespace_inode()
        monkeypatch.setattr(dns.paths, "namespace_inode", lambda: inode + 1)
        assert not dns._resolved_runs()
        monkeypatch.undo()
        process.stdin.close()
    until(lambda: not dns._resolved_runs())
