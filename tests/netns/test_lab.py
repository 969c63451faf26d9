"""Networks for tests: the same on every machine, and gone afterwards."""

import pytest

from fastpump.errors import SystemSetupError
from fastpump.lab.networks import SETTINGS, Lab, ip


def read_settings(lab, side):
    """Those of SETTINGS as they are in a namespace."""
    files = [f"/proc/sys/{name.replace('.', '/')}" for name in SETTINGS]
    return dict(zip(SETTINGS, map(int, lab.run(side, "cat", *files).stdout.split()), strict=True))


def test_its_hosts_have_the_kernels_default_settings(lab):
    lab.add_host("c")
    for side in "abc":
        assert read_settings(lab, side) == SETTINGS
    lab.sysctl("a", {"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.disable_ipv6": 1})
    changed = read_settings(lab, "a")
    assert changed["net.ipv4.ip_forward"] == changed["net.ipv6.conf.lo.disable_ipv6"] == 1
    assert read_settings(lab, "b") == SETTINGS
    with pytest.raises(SystemSetupError, match="no_such_thing"):
        lab.sysctl("a", {"net.ipv4.no_such_thing": 1})


def test_it_is_gone_whatever_happens_in_it():
    with pytest.raises(ZeroDivisionError), Lab() as lab:
        lab.add_host("c")
        sleeper = lab.spawn("a", "sleep", "600")
        orphan = int(lab.run("c", "sh", "-c", "sleep 600 > /dev/null 2>&1 & echo $!").stdout)
        assert ip("netns", "pids", lab.names["c"]) == f"{orphan}\n"
        names = set(lab.names.values())
        assert len(names) == 3 and names <= set(ip("netns", "list").split())
        raise ZeroDivisionError
    assert sleeper.poll() is not None
    assert not names & set(ip("netns", "list").split())
