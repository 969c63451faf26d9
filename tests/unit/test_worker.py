"""The command line of a worker process."""

import subprocess
import sys
from pathlib import Path

import fastpump
from fastpump.worker import WorkerArguments


def test_arguments_survive_the_command_line():
    arguments = WorkerArguments(interface="a=b,c", number=3, udp_fd=5, configuration_fd=6,
                                state_fd=11, doorbell_fd=7, event_fd=8, busy_poll_us=50,
                                parent=4711, lane_fds=(), tun_fds=(9, 10))
    assert WorkerArguments.parse(arguments.emit()) == arguments
    assert arguments.fds == (5, 6, 11, 7, 8, 9, 10)
    assert arguments.titles == (b"fastpump: a=b,c worker 3", b"fpw3:a=b,c")
    lanes = arguments._replace(lane_fds=(20, 21))
    assert WorkerArguments.parse(lanes.emit()) == lanes


def test_a_worker_loads_little():
    """It has 200 ms to be back after a crash."""
    program = ("import sys, fastpump.worker, fastpump._core; "
               "print([name for name in ('typing', 'asyncio', 'dataclasses', 'logging') "
               "if name in sys.modules])")
    path = str(Path(fastpump.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c",
         f"import sys; sys.path.insert(0, {path!r}); {program}"],
        capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
