"""Routing rules, as far as they need no kernel."""

import contextlib
import errno
import os
from types import SimpleNamespace

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from fastpump.errors import SystemSetupError
from fastpump.netlink import links, routes
from fastpump.netlink.routes import TableRules

RULES = TableRules(4, 51820, 32765, (0,))


def refuse(number):
    def request(*_words, **_what):
        raise NetlinkError(number, os.strerror(number))
        yield

    return request


def netlink(monkeypatch, **requests):
    monkeypatch.setattr(routes, "IPRoute", lambda **_: contextlib.nullcontext(
        SimpleNamespace(**requests)))


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EOPNOTSUPP])
def test_a_kernel_without_rules_has_none(monkeypatch, number):
    """CONFIG_IP_MULTIPLE_TABLES, that is; or without that IP version."""
    netlink(monkeypatch, get_rules=refuse(number), route=lambda *_, **__: iter(()))
    assert routes.unused_table(51820, {51820}) == 51821
    assert routes.unused_priority(4) == 32765
    routes.remove_rules(RULES)


def test_what_the_kernel_refuses_is_explained(monkeypatch):
    def rule(*_words, **_what):
        raise NetlinkError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    netlink(monkeypatch, get_rules=refuse(errno.EPERM), rule=rule)
    for ask in (lambda: routes.unused_table(51820, ()), lambda: routes.unused_priority(4),
                lambda: routes.add_rules(RULES),
                lambda: routes.remove_rules(RULES)):
        with pytest.raises(SystemSetupError, match=r"cannot be \w+: Operation not "):
            ask()


def test_no_socket_to_the_kernel_is_explained(monkeypatch):
    def no_socket(**_options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    for module in (routes, links):
        monkeypatch.setattr(module, "IPRoute", no_socket)
    for ask in (lambda: routes.change_routes(1, [], []), lambda: routes.addresses_of(1),
                lambda: routes.change_addresses(1, [], []), lambda: links.change_all([]),
                lambda: routes.unused_priority(4)):
        with pytest.raises(SystemSetupError, match="Too many open files"):
            ask()


@pytest.mark.parametrize("lengths, expected", [
    ((0,), [(32764, 254, 0), (32765, 51820, None)]),
    ((16, 8, 1), [(32760, 254, 16), (32761, 51820, 15), (32762, 254, 8), (32763, 51820, 7),
                  (32764, 254, 1), (32765, 51820, None)])])
def test_the_rules_for_prefixes_of_several_lengths(lengths, expected):
    """(priority, table, the longest prefix that does not count)"""
    found = [(rule["priority"], rule["table"], rule.get("FRA_SUPPRESS_PREFIXLEN"))
             for pair in TableRules(4, 51820, 32765, lengths).pairs() for rule in pair]
    assert found == expected


def test_there_must_be_room_before_the_rules_of_others(monkeypatch):
    there = SimpleNamespace(get_attr=lambda _: 6)
    netlink(monkeypatch, get_rules=lambda **_: iter([there]))
    assert routes.unused_priority(4, 2) == 5
    with pytest.raises(SystemSetupError, match="a routing rule of a priority below 7 already"):
        routes.unused_priority(4, 3)
