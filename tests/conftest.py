"""Fixtures of the suite. Tests that make namespaces need root and say so."""

import os

import pytest
from hypothesis import settings

from fastpump.lab.networks import Lab, fastpump_pair

# Of these, all tests run in one process: they share what takes long to make.
UNDIVIDED = ("tests/guests/test_guests.py", "tests/netns/test_sites.py")

# No files left in the tree, no deadline on a machine that others share.
settings.register_profile("fastpump", database=None, deadline=None)
settings.load_profile("fastpump")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hand out tests one by one (`-n 2`), but undivided modules whole."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            module = nodeid.partition("::")[0]
            return module if module in UNDIVIDED else nodeid

    return Scheduling(config, log) if config.getvalue("dist") == "load" else None


@pytest.fixture
def lab():
    """Two hosts on one network; everything in them is gone afterwards."""
    if os.geteuid() != 0:
        pytest.fail("this test makes network namespaces: run the suite as root (make test)")
    with Lab() as made:
        yield made


@pytest.fixture
def tunnel(lab, tmp_path):
    """A tunnel of four queues between both hosts: {side: process}."""
    with fastpump_pair(lab, tmp_path, "--queues", "4") as processes:
        yield processes


@pytest.fixture(autouse=True)
def _own_directories(tmp_path, monkeypatch):
    """No test writes to /var/lib or meets another's tunnels in /run."""
    monkeypatch.setenv("FASTPUMP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("FASTPUMP_RUN", str(tmp_path / "run"))
