"""Networks for tests: the same on every machine, and gone afterwards."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastpump.errors import SystemSetupError
from fastpump.lab.networks import SETTINGS, Lab, ip, stop, wait_until


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_run_of_the_suite_that_is_ended_leaves_none(tmp_path, number):
    """With conftest.py as a plugin, and a test that would take very long."""
    test = tmp_path / "test_long.py"
    test.write_text("def test_long(tunnel, lab):\n    lab.run('a', 'sleep', '600', timeout=600)\n")
    plugins = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-c",
         os.devnull, test], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(plugins)})
    try:
        wait_until(lambda: "sleep" in commands(process.pid), "no test runs")
        assert len(namespaces(process.pid)) == 2
    finally:
        output = stop(process, number, 60)
    assert process.returncode != 0 and "KeyboardInterrupt" in output
    assert not namespaces(process.pid)


def namespaces(pid):
    """Those of the labs of a process."""
    return [name for name in ip("netns", "list").split() if name.startswith(f"fp{pid}-")]


def commands(pid):
    """The names of the programs that run in those."""
    found = []
    for namespace in namespaces(pid):
        for each in ip("netns", "pids", namespace, check=False).split():
            with contextlib.suppress(OSError):      # it has ended
                found.append(Path(f"/proc/{each}/comm").read_text().strip())
    return found
