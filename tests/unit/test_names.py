"""Names of verdicts, counters and events: made from the enums of hot/ by the build."""

import pytest

from fastpump import _core
from fastpump.verdicts import Verdict


@pytest.mark.parametrize(("names", "first"), [
    (_core.VERDICT_NAMES, 1),           # PASS is no verdict for the operator
    (_core.COUNTER_NAMES, 0),
    (_core.EVENT_NAMES, 1),
    (_core.ADMISSION_NAMES, 2),         # nor is what is admitted
])
def test_every_value_has_a_name(names, first):
    assert list(names) == list(range(first, first + len(names)))
    assert len(set(names.values())) == len(names)


def test_names_are_written_as_the_operator_knows_them():
    assert {name.split("_")[0] for name in _core.VERDICT_NAMES.values()} == {"DROP", "FAILED"}
    assert {name.split("_")[0] for name in _core.ADMISSION_NAMES.values()} == {"DROP", "SENT"}
    assert _core.COUNTER_NAMES[0] == "tun_rx_packets"
    assert _core.EVENT_NAMES[1] == "want_session"


def test_the_control_plane_s_verdicts_are_their_names():
    assert Verdict.DROP_TABLE_FULL == "DROP_TABLE_FULL"
    assert all(verdict == verdict.name for verdict in Verdict)
