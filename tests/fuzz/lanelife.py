"""Random lives of lanes: what is blocked when, and where data flows."""

from __future__ import annotations

from fuzz.common import telling
from support.lanelife import Network


def check_lanelife(rng):
    """No flow stays on a dead way, and no healthy lane dies."""
    network = Network(rng, queues=rng.choice((2, 3, 4)))
    try:
        with telling(network.log):
            network.live()
    finally:
        network.close()
