"""Programs that change the host for us: what is waited for, and what is said when they fail."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastpump.errors import SystemSetupError
from fastpump.host import programs
from support.hosts import make_program

RUN = (["resolvconf", "-d", "wg0", "-f"], "", "openresolv", "DNS")


@pytest.fixture
def resolvconf(tmp_path, monkeypatch):
    """Make a resolvconf of that text. What waits for the FIFO `gate` ends with the test."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    os.mkfifo(tmp_path / "gate")
    gate = os.open(tmp_path / "gate", os.O_RDWR)
    yield lambda text: make_program(tmp_path / "bin", "resolvconf", text)
    os.write(gate, b"open\n" * 10)
    os.close(gate)


def test_what_a_program_leaves_in_the_background_is_not_waited_for(resolvconf, tmp_path):
    """It has the program's standard streams, and may run for ever."""
    resolvconf(f'#!/bin/sh\n(read line < {tmp_path}/gate; touch {tmp_path}/ended) &\n')
    with ThreadPoolExecutor() as pool:
        done = pool.submit(programs.run, *RUN)
        try:
            assert done.result(20) == "" and not (tmp_path / "ended").exists()
        finally:
            (tmp_path / "gate").write_bytes(b"open\n")


def test_a_program_that_does_not_end_is_an_error_in_time(resolvconf, tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "TIMEOUT_S", 0.2)
    resolvconf(f'#!/bin/sh\nread line < {tmp_path}/gate\n')
    with ThreadPoolExecutor() as pool:
        done = pool.submit(programs.run, *RUN)
        try:
            with pytest.raises(SystemSetupError) as caught:
                done.result(20)
        finally:
            (tmp_path / "gate").write_bytes(b"open\n")
    assert str(caught.value) == ("resolvconf -d wg0 -f did not end within 0.2 s; find out what it "
                                 "waits for")


@pytest.mark.parametrize("text, complaint", [
    ("no program", "resolvconf cannot be started, which DNS needs: Exec format error"),
    ("#!/bin/sh\necho said; echo no >&2; echo more >&2; exit 3\n",
     "resolvconf -d wg0 -f failed: no"),
    ("#!/bin/sh\nprintf 'no\\377\\n'; exit 3\n", "resolvconf -d wg0 -f failed: no\ufffd"),
    ("#!/bin/sh\nexit 3\n", "resolvconf -d wg0 -f failed: no reason given"),
], ids=["no program", "stderr", "stdout", "nothing"])
def test_why_a_program_failed(resolvconf, text, complaint):
    resolvconf(text)
    with pytest.raises(SystemSetupError) as caught:
        programs.run(*RUN)
    assert str(caught.value) == complaint
