"""Fixtures of the unit tests."""

import pytest

from support.lanedevices import World


@pytest.fixture
def worlds():
    """A function that makes two devices that are peers (support/lanedevices.py)."""
    made = []

    def make(**options):
        made.append(World(**options))
        return made[-1]

    yield make
    for world in made:
        world.close()
