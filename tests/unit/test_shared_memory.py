"""What a worker can write into the shared memory, and what the supervisor makes of it."""

import errno
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastpump._core import SharedTables

TESTS = Path(__file__).parents[1]


def run_supervisor(module, *options):
    """In a process of its own, which may die."""
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", module, *options],
        cwd=TESTS.parent, text=True, capture_output=True, check=False, timeout=240,
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}"})


@pytest.mark.timeout(300)
def test_the_supervisor_survives_whatever_a_worker_writes():
    """Every word of the state by pages, and a sample singly; `make fuzz-memory` does them all."""
    result = run_supervisor("fuzz.sharedmemory", "--short")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert "no failure" in result.stdout


@pytest.mark.timeout(300)
def test_a_device_lives_on_whatever_its_workers_write():
    """With its timers, sessions, lanes and status: some cases of the fuzzer's check."""
    result = run_supervisor("fuzz", "--check", "sharedmemory", "--seed", "0", "--cases", "60")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert "60 cases" in result.stdout


def test_what_workers_have_of_the_configuration_cannot_be_written():
    """Not by the descriptor, nor by a mapping of it."""
    tables = SharedTables.create(1, 4, 64)
    try:
        for access in (mmap.ACCESS_WRITE, mmap.ACCESS_DEFAULT):
            with pytest.raises(PermissionError):
                mmap.mmap(tables.readonly_fd, 0, access=access)
        with pytest.raises(OSError) as refused:
            os.pwrite(tables.readonly_fd, b"x", 0)
        assert refused.value.errno == errno.EBADF
        with mmap.mmap(tables.readonly_fd, 0, access=mmap.ACCESS_READ) as memory:
            tables.mtu = 1234
            assert (1234).to_bytes(4, sys.byteorder) in memory[:256]
    finally:
        tables.close()


@pytest.mark.parametrize("name", ["configuration_fd", "state_fd"])
def test_no_page_can_be_taken_from_under_a_mapping(name):
    tables = SharedTables.create(1, 4, 64)
    try:
        with pytest.raises(PermissionError):
            os.ftruncate(getattr(tables, name), 0)
    finally:
        tables.close()


def test_a_supervisor_that_takes_the_memory_over_can_write_it():
    """There is no write seal: its descriptor is enough."""
    tables = SharedTables.create(1, 4, 64)
    with mmap.mmap(tables.configuration_fd, 0) as memory:
        memory[0:1] = memory[0:1]
    tables.close()
