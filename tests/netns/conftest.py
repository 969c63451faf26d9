"""Fixtures of the tests in network namespaces."""

import os

import pytest

from support.quick import a_file_on


@pytest.fixture
def quick(lab, tmp_path, monkeypatch):
    """A file on host a, for a tunnel to b, and the commands for it."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    with a_file_on(lab, tmp_path) as made:
        yield made
