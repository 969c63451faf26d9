"""What is asked of nft and resolvconf."""

import pytest

from fastpump.host import firewall
from support.hosts import make_program


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
    monkeypatch.setattr(firewall, "RESOLVCONF_ORDER", tmp_path / "interface-order")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    firewall.set_dns("wg0", ["10.9.0.2"], ["example.net"])
    firewall.unset_dns("wg0")
    assert (tmp_path / "calls").read_text() == (
        f"-a {record} -m 0 -x\nnameserver 10.9.0.2\nsearch example.net\n-d {record} -f\n")
