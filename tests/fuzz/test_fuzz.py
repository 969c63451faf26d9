"""A short run of the fuzzer's checks; fuzz/__main__.py says how to run a long one."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpump._core import Admission
from fastpump.config import file as config_file
from fastpump.errors import ConfigError
from fuzz import __main__ as fuzz
from fuzz.common import telling
from fuzz.conffile import FILE_KEY, FILE_VALUES, INTERFACE_NAMES, PEER_NAMES

SECONDS = 1.4
SHORT = [name for name in fuzz.CHECKS if name not in fuzz.LONG]


@pytest.mark.parametrize("name", SHORT)
def test_random_input(name):
    """A fixed beginning, so that it is the same each time, as far as the time allows."""
    end, number = time.monotonic() + SECONDS, 0
    while time.monotonic() < end or number < 50:
        try:
            fuzz.run_case(0, number, name)
        except BaseException as error:
            error.add_note(f"again: python -m fuzz --seed 0 --first {number} --cases 1 "
                           f"--check {name}")
            raise
        number += 1


@pytest.mark.parametrize("name", SHORT)
@given(st.randoms(use_true_random=False))
def test_input_that_hypothesis_finds(name, rng):
    fuzz.CHECKS[name](rng)


def test_every_key_of_a_file_has_values():
    assert set(FILE_VALUES) == {*INTERFACE_NAMES, *PEER_NAMES}


def test_a_failure_tells_its_input():
    with pytest.raises(AssertionError) as caught, telling([b"one", "two"]):
        raise AssertionError
    assert caught.value.__notes__ == ["input:\n  b'one'\n  'two'"]


def test_a_case_is_the_same_again(monkeypatch):
    drawn = []
    monkeypatch.setitem(fuzz.CHECKS, "uapi", lambda rng: drawn.append(rng.random()))
    for number in (0, 1, 0):
        fuzz.run_case(7, number, "uapi")
    assert drawn[0] == drawn[2] != drawn[1]


def soak(*options, code="pass"):
    """The fuzzer's output and how it ended; `code` plants a bug first."""
    program = (f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); "
               f"from fuzz import __main__ as fuzz; {code}; sys.exit(fuzz.main())")
    result = subprocess.run([sys.executable, "-c", program, *options], capture_output=True,
                            text=True, check=False, cwd=Path(__file__).parents[2])
    return result.returncode, result.stdout + result.stderr


def test_the_soak_says_how_it_went():
    code, output = soak("--cases", "30", "--seed", "5", "--jobs", "2")
    assert code == 0 and "seed 5" in output and "30 cases in" in output


@pytest.mark.parametrize(("bug", "told"), [
    ("from fastpump.ipc import uapi; uapi.answer = lambda *_: b''", "b''"),
    ("import os; from fastpump.ipc import uapi; uapi.answer = lambda *_: os.kill(os.getpid(), 11)",
     "Segmentation fault"),
])
def test_the_soak_ends_at_a_failure_and_says_how_to_repeat_it(bug, told):
    code, output = soak("--cases", "30", "--seed", "5", "--check", "uapi", code=bug)
    assert code == 1 and told in output
    assert "--seed 5 --first 0 --cases 1 --check uapi" in output


def test_a_sockaddr_that_is_shorter_than_its_family_is_refused():
    """Not read beyond its end: a caller's bug is a ValueError."""
    admission, rng = Admission(), random.Random(1)
    for family in (0, 10, 65535):
        sockaddr = family.to_bytes(2, sys.byteorder) + rng.randbytes(14)
        for call in (lambda where: admission.cookie_reply(bytes(148), where), admission.add_known,
                     lambda where: admission.judge(b"\3\0\0\0" + bytes(60), where, 1)):
            with pytest.raises(ValueError, match="sockaddr"):
                call(sockaddr)


@pytest.mark.parametrize("name", [*INTERFACE_NAMES, *PEER_NAMES])
def test_no_complaint_repeats_a_key_wherever_it_stands(name):
    """Also one that was pasted behind the wrong word."""
    secret = FILE_KEY
    section = "Peer" if name in PEER_NAMES else "Interface"
    for value in (secret, f"{secret} x", f"x,{secret}", f"x={secret}"):
        try:
            config_file.parse(f"[{section}]\n{name} = {value}\n", "wg0.conf")
        except ConfigError as error:
            assert secret not in str(error)
