"""Lanes under random schedules; `python -m fuzz --check lanelife` runs more of them."""

import random

import pytest

from fuzz.lanelife import check_lanelife

SCHEDULES_OF_A_TEST = 25


@pytest.mark.parametrize("first", range(0, 100, SCHEDULES_OF_A_TEST))
def test_flows_leave_a_blocked_lane_and_healthy_lanes_live(first):
    for number in range(first, first + SCHEDULES_OF_A_TEST):
        try:
            check_lanelife(random.Random(number))
        except AssertionError as error:
            error.add_note(f"again: check_lanelife(random.Random({number}))")
            raise
