"""Fixtures of the pump tests: ends and sites that speak to each other in this process."""

import pytest

from support.sites import close, network


@pytest.fixture
def closed():
    """A function that takes two ends, and gives them back; they are closed after the test."""
    made = []

    def keep(ends):
        made.extend(ends)
        return ends

    yield keep
    for end in made:
        end.close()


@pytest.fixture
def one(ends):
    """The first of the module's `ends`."""
    return ends[0]


@pytest.fixture
def two(ends):
    return ends[1]


@pytest.fixture
def mesh():
    """Three sites of a switch, all joined to each other."""
    sites = network(*"abc")
    yield sites
    close(sites)
