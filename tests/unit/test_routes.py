"""Routes, as far as they need no kernel."""

import contextlib
import errno
import os
from ipaddress import ip_address
from types import SimpleNamespace

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from fastpump.errors import SystemSetupError
from fastpump.netlink import links, routes


def refuse(number):
    def request(*_words, **_what):
        raise NetlinkError(number, os.strerror(number))
        yield

    return request


def netlink(monkeypatch, **requests):
    monkeypatch.setattr(routes, "IPRoute", lambda **_: contextlib.nullcontext(
        SimpleNamespace(**requests)))


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EOPNOTSUPP])
def test_a_kernel_without_rules_has_unused_tables(monkeypatch, number):
    """CONFIG_IP_MULTIPLE_TABLES, that is; or without that IP version."""
    netlink(monkeypatch, get_rules=refuse(number), route=lambda *_, **__: iter(()))
    assert routes.unused_table(51820, {51820}) == 51821


def test_what_the_kernel_refuses_is_explained(monkeypatch):
    netlink(monkeypatch, get_rules=refuse(errno.EPERM))
    with pytest.raises(SystemSetupError, match="cannot be read: Operation not "):
        routes.unused_table(51820, ())


def test_no_socket_to_the_kernel_is_explained(monkeypatch):
    def no_socket(**_options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    for module in (routes, links):
        monkeypatch.setattr(module, "IPRoute", no_socket)
    for ask in (lambda: routes.change_routes(1, [], []), lambda: routes.addresses_of(1),
                lambda: routes.change_addresses(1, [], []), lambda: links.change_all([])):
        with pytest.raises(SystemSetupError, match="Too many open files"):
            ask()


def route_of(mtu):
    return SimpleNamespace(get_attr={
        "RTA_METRICS": SimpleNamespace(get_attr={"RTAX_MTU": mtu}.get), "RTA_OIF": 2}.get)


@pytest.mark.parametrize("paths, defaults, expected", [
    ({"192.0.2.2": 1500}, {}, 1420), ({"192.0.2.2": 1500, "2001:db8::2": 1400}, {}, 1320),
    ({"192.0.2.2": 1500, "192.0.2.3": None}, {4: 1300}, 1420),
    ({"192.0.2.2": 9000}, {4: 1500}, 8920), ({"127.0.0.1": 65536}, {}, 65000),
    ({"192.0.2.2": 600}, {}, 576),
    ({"192.0.2.3": None}, {4: 1480}, 1400), ({}, {6: 1492}, 1412), ({}, {4: 1500, 6: 1300}, 1420),
    ({}, {}, 1420)])
def test_the_mtu_fits_the_paths_to_the_peers(monkeypatch, paths, defaults, expected):
    """Or else the default route; within what an interface may have."""
    def route(_verb, dst, **_where):
        if paths[dst] is None:
            raise NetlinkError(errno.ENETUNREACH, "unreachable")
        yield route_of(paths[dst])

    def read(version):
        if version == 6 and 6 not in defaults:
            raise OSError(errno.EOPNOTSUPP, "without IPv6")
        return [route_of(defaults[version])] if version in defaults else []

    netlink(monkeypatch, route=route)
    monkeypatch.setattr(routes.default_routes, "read", read)
    assert routes.fitting_mtu(map(ip_address, paths)) == expected
