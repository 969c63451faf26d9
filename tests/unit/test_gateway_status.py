"""What `status` says of a gateway when it cannot see all of it."""

import pytest

from fastpump.cli import status_text
from fastpump.config.gateway import Gateway
from fastpump.host import gateway_status, gateway_table
from support.hosts import make_program

RULES = "  iif 5 {0}\n  oif 5 {0}\n".format(
    "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu")
NAT = '  iif 5 oif != 5 oifname { "masquerade", "size set rt mtu" } masquerade\n'


@pytest.mark.parametrize("text, code, parts", [
    (RULES + NAT, 0, {"nat", "mss"}), (NAT, 0, {"nat"}), (RULES, 0, {"mss"}),
    (NAT.removesuffix(" masquerade\n") + "\n" + RULES[:RULES.index("\n") + 1], 0, set()),
    ("Error: No such file or directory", 1, set()), ("Operation not permitted", 1, None),
], ids=["all", "nat", "mss", "neither", "no table", "refused"])
def test_the_parts_of_a_table(tmp_path, monkeypatch, text, code, parts):
    (tmp_path / "text").write_text(text)
    make_program(tmp_path / "bin", "nft", f"#!/bin/sh\ncat {tmp_path}/text >&{code + 1}\n"
                                          f"exit {code}\n")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    wanted = Gateway(True, True, True)
    lacking = gateway_status._lacking(wanted, "some")
    if parts is None:
        assert lacking is None
    else:
        assert gateway_table.parts_in("some") == parts
        assert set(lacking) == {"nat", "mss"} - parts


def test_only_parts_that_were_wanted_can_be_missing(monkeypatch):
    monkeypatch.setattr(gateway_table, "parts_in", lambda _: set())
    assert gateway_status._lacking(Gateway(masquerades=True), "some") == ["nat"]
    assert gateway_status._lacking(Gateway(clamps=True), "some") == ["mss"]


@pytest.mark.parametrize("change, expected", [
    ({"table_lacks": None}, "    nftables table t: not known, as nft fails"),
    ({"table_lacks": ["nat", "mss"]}, "    nftables table t: lacks nat, mss"),
    ({"forwarding_off": ["a", "b", "c"]}, "    forwarding: off by a, b, c"),
    ({"forwarding_off": list("abcde")}, "    forwarding: off by a, b, c and 2 more"),
    ({"interfaces_missing": ["x", "y"]}, "    there is no interface x, y"),
])
def test_the_lines_of_a_gateway(change, expected):
    found = {"forward": True, "nat": True, "mss": False, "interfaces": ["x", "y"],
             "interfaces_missing": [], "table": "t", "table_lacks": [], "forwarding_off": []}
    usual = ["  gateway: forward, nat on x, y", "    nftables table t: complete",
             "    forwarding: on"]
    assert status_text._gateway_lines(found) == usual
    lines = status_text._gateway_lines(found | change)
    assert expected in lines and set(lines) <= {*usual, expected}
    assert status_text._gateway_lines(None) == []
