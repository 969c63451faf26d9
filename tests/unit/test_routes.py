"""Routes, as far as they need no kernel."""

import contextlib
import errno
import os
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
