"""What Python and the data plane both know is the same."""

import re
from pathlib import Path

import pytest

from fastpump import constants
from fastpump._core import SHARED_CONSTANTS
from fastpump.protocol import lane_messages, wire

HOT = Path(__file__).parents[2] / "fastpump" / "hot"


def numbers_of(module):
    """The module's public constants that are numbers, by name."""
    return {name: value for name, value in vars(module).items()
            if re.fullmatch("[A-Z][A-Z0-9_]*", name) and isinstance(value, int)}


def python_constants():
    """Python's homes of what the data plane may have to know, by the data plane's names."""
    mode = lane_messages.Mode.TUN
    hello = lane_messages.Hello(lane_messages.Abilities(mode, (1,), 1, 0, 1420, in_use=0x01020304))
    return {"CONTROL_IN_USE_AT": hello.emit().index(b"\4\3\2\1"),
            **numbers_of(constants), **numbers_of(wire), **numbers_of(lane_messages),
            **{f"CONTROL_{kind.name}": kind for kind in lane_messages.Kind},
            **{f"CONTROL_{field.name}_FIELD": field for field in lane_messages.Field}}


def hot_names():
    """The constants of hot/*.pxd, by Python's names: all times of Python's are nanoseconds."""
    text = "\n".join(path.read_text() for path in HOT.glob("*.pxd"))
    enumerated = re.findall(r"^    ([A-Z][A-Z0-9_]*) =", text, re.MULTILINE)
    macros = re.findall(r'^    unsigned long long ([A-Z][A-Z0-9_]*) "', text, re.MULTILINE)
    return {name.removesuffix("_NS") for name in (*enumerated, *macros)}


@pytest.mark.parametrize("name", SHARED_CONSTANTS)
def test_both_sides_have_the_same_number(name):
    assert python_constants()[name] == SHARED_CONSTANTS[name]


def test_what_both_sides_name_is_compared():
    assert hot_names() & set(python_constants()) <= set(SHARED_CONSTANTS)
    assert {"TRANSPORT_TYPE", "INITIATION_LEN", "REJECT_AFTER_TIME"} <= hot_names()
