"""Routing rules, as far as they need no kernel."""

import contextlib
import errno
import os
from types import SimpleNamespace

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from fastpump.errors import SystemSetupError
from fastpump.netlink import rules
from fastpump.netlink.rules import TableRules

RULES = TableRules(4, 51820, 32765, (0,))
STRICT = TableRules(6, 51820, 32765, (), "wg0", ("fd00::/8", "2001:db8::/32"))


def refuse(number):
    def request(*_words, **_what):
        raise NetlinkError(number, os.strerror(number))
        yield

    return request


def netlink(monkeypatch, **requests):
    monkeypatch.setattr(rules, "IPRoute", lambda **_: contextlib.nullcontext(
        SimpleNamespace(**requests)))


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EOPNOTSUPP])
def test_a_kernel_without_rules_has_none(monkeypatch, number):
    """CONFIG_IP_MULTIPLE_TABLES, that is; or without that IP version."""
    netlink(monkeypatch, get_rules=refuse(number))
    assert rules.unused_priority(4) == 32765
    rules.remove(RULES)


def test_what_the_kernel_refuses_is_explained(monkeypatch):
    def rule(*_words, **_what):
        raise NetlinkError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    netlink(monkeypatch, get_rules=refuse(errno.EPERM), rule=rule)
    for ask in (lambda: rules.unused_priority(4), lambda: rules.add(RULES),
                lambda: rules.remove(RULES), lambda: rules.add_missing(RULES)):
        with pytest.raises(SystemSetupError, match=r"cannot be \w+: Operation not "):
            ask()


def test_no_socket_to_the_kernel_is_explained(monkeypatch):
    def no_socket(**_options):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(rules, "IPRoute", no_socket)
    with pytest.raises(SystemSetupError, match="Too many open files"):
        rules.unused_priority(4)


def in_order(made):
    return sorted(made.in_order_of_adding(), key=lambda rule: rule["priority"])


@pytest.mark.parametrize("lengths, expected", [
    ((0,), [(32764, 254, 0), (32765, 51820, None)]),
    ((16, 8, 1), [(32760, 254, 16), (32761, 51820, 15), (32762, 254, 8), (32763, 51820, 7),
                  (32764, 254, 1), (32765, 51820, None)])])
def test_the_rules_for_prefixes_of_several_lengths(lengths, expected):
    """(priority, table, the longest prefix that does not count)"""
    made = TableRules(4, 51820, 32765, lengths)
    found = [(rule["priority"], rule["table"], rule.get("FRA_SUPPRESS_PREFIXLEN"))
             for rule in in_order(made)]
    assert found == expected and len(found) == made.count


def test_strict_rules():
    found = in_order(STRICT)
    assert [rule["priority"] for rule in found] == [32761, 32762, 32763, 32764, 32765]
    assert [rule["table"] for rule in found] == [254, 254, 254, 254, 51820]
    assert found[0]["iifname"] == "wg0" and found[0]["FRA_SUPPRESS_PREFIXLEN"] == 0
    assert (found[1]["FRA_SPORT_RANGE"], found[1]["FRA_DPORT_RANGE"]) == ("546:546", "547:547")
    assert [(rule["dst"], rule["dst_len"]) for rule in found[2:4]] == [
        ("fd00::", 8), ("2001:db8::", 32)]
    assert found[4]["fwmark"] == 51820 and found[4]["flags"] == rules.FIB_RULE_INVERT
    assert STRICT.count == 5


def test_whatever_leads_past_the_tunnel_is_added_first():
    for made in (STRICT, TableRules(4, 51820, 32765, (8, 0))):
        tables = [rule["table"] for rule in made.in_order_of_adding()]
        assert tables == sorted(tables)
        assert made.in_order_of_adding()[0]["priority"] == 32764


@pytest.mark.parametrize("made", [RULES, STRICT])
def test_in_a_record(made):
    assert TableRules.from_json(made.to_json()) == made
    assert TableRules.from_json([4, 51820, 32765, [0]]) == RULES       # of an older version


def test_there_must_be_room_before_the_rules_of_others(monkeypatch):
    there = SimpleNamespace(get_attr=lambda _: 6)
    netlink(monkeypatch, get_rules=lambda **_: iter([there]))
    assert rules.unused_priority(4, 4) == 5
    with pytest.raises(SystemSetupError, match="a routing rule of a priority below 7 already"):
        rules.unused_priority(4, 6)


def test_what_is_missing_is_added_where_it_was(monkeypatch):
    added = []
    wanted = STRICT.in_order_of_adding()
    class Rule(dict):
        def get_attr(self, name, default=None):
            return {"FRA_PRIORITY": self["priority"], "FRA_TABLE": self["real"]}.get(name, default)

    there = [Rule(priority=rule["priority"], real=rule["table"], table=0) for rule in wanted[1:4]]
    netlink(monkeypatch, get_rules=lambda **_: iter(there),
            rule=lambda _verb, **rule: added.append(rule))
    assert rules.add_missing(STRICT)
    assert added == [wanted[0], wanted[4]]
    there = [Rule(priority=rule["priority"], real=rule["table"], table=0) for rule in wanted]
    added.clear()
    assert not rules.add_missing(STRICT) and added == []
