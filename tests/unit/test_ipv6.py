"""Whether a host has IPv6, and what is done without."""

import logging
from ipaddress import ip_interface, ip_network

import pytest

from fastpump.errors import SystemSetupError
from fastpump.host import ipv6

WANTED = [ip_interface("10.9.0.1/24"), ip_interface("fd00::1/64"), ip_network("::/0")]
ONLY_LOCAL = [ip_interface("::1/128"), ip_interface("fe80::1/64"), ip_interface("192.0.2.1/24")]


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A function that makes one: the settings of its interfaces, and its addresses."""
    def make(settings, addresses=()):
        for name, value in settings.items():
            (tmp_path / "conf" / name).mkdir(parents=True)
            (tmp_path / "conf" / name / "disable_ipv6").write_text(f"{value}\n")
        monkeypatch.setattr(ipv6, "SETTINGS", tmp_path / "conf")
        monkeypatch.setattr(ipv6.routes, "addresses_by_index", lambda: {1: list(addresses)})
    return make


@pytest.mark.parametrize("settings, addresses, is_left_out", [
    ({"all": 0, "wg0": 0}, ONLY_LOCAL, False),
    ({"all": 1, "wg0": 1}, ONLY_LOCAL, True),
    ({}, ONLY_LOCAL, True),                         # ipv6.disable=1
    ({"all": 0}, [ip_interface("2001:db8::1/64")], False)])     # an MTU under 1280
def test_a_host_has_ipv6_or_not(host, caplog, settings, addresses, is_left_out):
    host(settings, addresses)
    with caplog.at_level(logging.WARNING):
        assert ipv6.is_left_out("wg0", WANTED) is is_left_out
        assert not ipv6.is_left_out("wg0", WANTED[:1])
    assert [record.message for record in caplog.records] == [
        "this host has no IPv6: without fd00::1/64, ::/0"] * is_left_out


@pytest.mark.parametrize("settings, addresses", [
    ({"all": 0, "wg0": 1}, ONLY_LOCAL),     # others may have it later
    ({"all": 1, "wg0": 1}, [ip_interface("2001:db8::1/64")])])
def test_what_only_the_tunnel_may_not_have_is_an_error(host, settings, addresses):
    host(settings, addresses)
    with pytest.raises(SystemSetupError) as error:
        ipv6.is_left_out("wg0", WANTED)
    assert "wg0 may have no IPv6" in str(error.value)
    assert str(error.value).endswith("leave out fd00::1/64, ::/0")


@pytest.mark.parametrize("fitting, wanted, expected", [
    (1420, WANTED, 1420), (1280, WANTED, 1280), (1220, WANTED, 1280), (1220, WANTED[:1], 1220)])
def test_an_mtu_for_ipv6(fitting, wanted, expected):
    assert ipv6.fitting_mtu(fitting, wanted) == expected
