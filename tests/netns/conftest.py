"""Fixtures of the tests in network namespaces."""

import os

import pytest

from fastpump.lab.networks import need
from support.hosts import interface_names
from support.quick import a_file_on
from support.wginterfaces import Interface, connected


@pytest.fixture
def quick(lab, tmp_path, monkeypatch):
    """A file on host a, for a tunnel to b, and the commands for it."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    with a_file_on(lab, tmp_path) as made:
        yield made


@pytest.fixture
def names(monkeypatch):
    """Four names for interfaces of `fastpump-wg`, each of which will have two queues."""
    need("wg")
    monkeypatch.setenv("FASTPUMP_QUEUES", "2")
    with interface_names(4) as made:
        yield made


@pytest.fixture
def alone(lab, names, tmp_path):
    """One of them on a, without peers, down."""
    made = Interface(lab, "a", names[0], tmp_path)
    made.start()
    return made


@pytest.fixture
def pair(lab, names, tmp_path):
    """One on each side with a session: {side: Interface}. a knows where b is."""
    return connected(lab, names, tmp_path)
