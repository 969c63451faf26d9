"""Which routes of a tunnel would lead its own datagrams into it."""

from ipaddress import ip_address, ip_network

import pytest

from fastpump.host import full_tunnel

V4, V6 = "192.0.2.9", "2001:db8::9"


@pytest.mark.parametrize("networks, endpoints, expected", [
    ("0.0.0.0/0 ::/0", "", "0.0.0.0/0 ::/0"),
    ("0.0.0.0/1 128.0.0.0/1 ::/1 8000::/1", "", "0.0.0.0/1 128.0.0.0/1 ::/1 8000::/1"),
    ("128.0.0.0/2 192.0.0.0/9 192.128.0.0/11 8.0.0.0/7", V4, "128.0.0.0/2 192.0.0.0/9 8.0.0.0/7"),
    ("2000::/3 fc00::/7 fd00::/8", "", "2000::/3"),
    ("10.0.0.0/8 192.0.0.0/8 172.16.0.0/12", "", ""),
    ("10.0.0.0/8 192.0.0.0/8 2001:db8::/32", f"{V4} {V6}", "192.0.0.0/8 2001:db8::/32"),
    (f"{V4}/32 {V6}/128 192.0.2.8/32", f"{V4} {V6}", f"{V4}/32 {V6}/128"),
    ("192.0.0.0/8", V6, ""), ("", f"{V4} {V6}", ""),
])
def test_routes_that_are_apart(networks, endpoints, expected):
    found = full_tunnel.apart([*map(ip_network, networks.split())],
                              {*map(ip_address, endpoints.split())})
    assert {*map(str, found)} == {*expected.split()}


@pytest.mark.parametrize("networks, has_ipv6, warns", [
    ("0.0.0.0/0", True, True), ("0.0.0.0/1 128.0.0.0/1 fd00::/8", True, True),
    ("0.0.0.0/0", False, False), ("0.0.0.0/0 ::/0", True, False),
    ("0.0.0.0/0 2000::/3", True, False), ("10.0.0.0/8", True, False), ("::/0", True, False)])
def test_a_full_tunnel_without_ipv6_warns_where_there_is_some(monkeypatch, networks, has_ipv6,
                                                              warns):
    monkeypatch.setattr(full_tunnel.default_routes, "read", lambda version: [
        version] * has_ipv6)
    assert bool(full_tunnel.warning([*map(ip_network, networks.split())])) == warns


def test_a_kernel_without_ipv6_has_none(monkeypatch):
    def refuse(_version):
        raise OSError(97, "no such family")

    monkeypatch.setattr(full_tunnel.default_routes, "read", refuse)
    assert full_tunnel.warning([ip_network("0.0.0.0/0")]) == ""
