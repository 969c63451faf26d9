"""Names under a kill switch, as far as they need no name server."""

import pytest

from fastpump.conn import marked_names
from fastpump.conn.endpoint import EndpointError
from fastpump.conn.marked_names import MarkedNames
from fastpump.errors import ConfigError


@pytest.fixture
def files(tmp_path, monkeypatch):
    """hosts, resolv.conf and systemd-resolved's."""
    made = {name: tmp_path / name for name in ("hosts", "resolv.conf", "upstream")}
    monkeypatch.setattr(marked_names, "HOSTS", made["hosts"])
    monkeypatch.setattr(marked_names, "RESOLV_CONF", (made["resolv.conf"], made["upstream"]))
    return made


@pytest.mark.parametrize("stub, upstream, expected", [
    ("nameserver 192.0.2.53\nnameserver 2001:db8::53\n", None, ("192.0.2.53", "2001:db8::53")),
    ("nameserver 127.0.0.53\noptions edns0\n", "nameserver 192.0.2.1\n", ("192.0.2.1",)),
    ("nameserver ::1\nnameserver\nnameserver nonsense\n", None, ()),
    (None, "nameserver fe80::1%eth0\n", ("fe80::1%eth0",)), (None, None, ())])
def test_the_name_servers_of_the_host(files, stub, upstream, expected):
    for name, text in (("resolv.conf", stub), ("upstream", upstream)):
        if text is not None:
            files[name].write_text(text)
    for named, servers in (((), expected), (["198.51.100.53"], ("198.51.100.53",))):
        names = MarkedNames(named, lambda: 0)
        names.take_servers()
        assert names.servers == servers


def test_the_hosts_file_comes_first(files):
    files["hosts"].write_text("# 192.0.2.9 vpn.test\n192.0.2.1 localhost other Vpn.Test # home\n"
                              "nonsense vpn.test\n::1%lo vpn.test\n")
    names = MarkedNames(["192.0.2.53"], lambda: 0)
    found = names.resolve("vpn.test.", 51820)
    assert sorted((str(each.address), each.port) for each in found) == [
        ("192.0.2.1", 51820), ("::1", 51820)]


def test_without_a_server_outside_it_says_what_to_do(files):
    with pytest.raises(EndpointError, match=r"must be named that can be reached .*EndpointDNS"):
        MarkedNames((), lambda: 0).resolve("vpn.test", 51820)


def test_the_library_is_needed_for_names_only(monkeypatch):
    monkeypatch.setattr(marked_names, "_has_library", lambda: False)
    marked_names.check(["192.0.2.1", "2001:db8::1", "fe80::1%eth0"])
    with pytest.raises(ConfigError, match=r"pip install 'fastpump\[killswitch\]'"):
        marked_names.check(["192.0.2.1", "vpn.test"])
