"""The background process: what it keeps of its caller, and of its memory's secrets."""

import asyncio
import os
import select
import signal
import subprocess
import sys

import pytest

from fastpump.errors import SystemSetupError
from fastpump.process.daemon import detach
from fastpump.process.signals import unwinding
from support.hosts import until

GET_DUMPABLE = """
import ctypes, os

def leave(*_):
    os._exit(10 + ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))       # PR_GET_DUMPABLE
"""


def is_closed(reader, timeout_ms=20_000):
    """Whether nobody has the other end of a pipe open, after a while at most."""
    poll = select.poll()
    poll.register(reader, 0)
    return bool(poll.poll(timeout_ms))


@pytest.fixture
def pipe():
    ends = list(os.pipe())
    yield ends
    for fd in ends:
        os.close(fd)


def test_the_background_process_closes_what_its_caller_had_open(pipe):
    """A pipe that the caller reads to its end, say. What we opened ourselves goes on to work."""
    reader, writer = pipe
    os.set_inheritable(writer, True)            # as it is in a program that inherited it
    ours, background = os.pipe()

    def work(foreground):
        foreground.ready()
        os.write(background, b"still open")
        signal.pause()

    pid = detach(work)
    try:
        os.close(pipe.pop())
        assert is_closed(reader)
        assert os.read(ours, 20) == b"still open"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ours)
        os.close(background)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_start_that_a_signal_ended_is_no_bug(capfd, number):
    def work(_foreground):
        with unwinding():
            os.kill(os.getpid(), number)
            signal.pause()

    with pytest.raises(SystemSetupError) as caught:
        detach(work)
    assert str(caught.value) == "it was ended by a signal before it was ready"
    assert capfd.readouterr().err == ""


def test_ctrl_c_ends_what_waits_in_the_background(tmp_path):
    """For a name server that is not up, say: it is in a session of its own."""
    said, ready = tmp_path / "said", tmp_path / "ready"
    program = (
        "import sys, signal, pathlib\n"
        "from fastpump.process.daemon import detach\n"
        "from fastpump.process.signals import unwinding\n"
        "said, ready = map(pathlib.Path, sys.argv[1:])\n"
        "def work(foreground):\n"
        "    with unwinding():\n"
        "        try:\n"
        "            ready.touch()\n"
        "            signal.pause()\n"
        "        except SystemExit:\n"
        "            said.write_text('undone')\n"
        "            raise\n"
        "detach(work)\n")
    with subprocess.Popen([sys.executable, "-c", program, str(said), str(ready)],
                          stderr=subprocess.PIPE, text=True) as running:
        assert until(ready.exists)
        running.send_signal(signal.SIGINT)
        errors = running.communicate(timeout=20)[1]
    assert said.read_text() == "undone" and "KeyboardInterrupt" in errors


def test_a_turn_that_fails_is_a_start_that_fails():
    """No signal: that would be an end as by `down`."""
    seen, writer = os.pipe()

    def work(foreground):
        try:
            asyncio.run(foreground.take_turn())
        except BaseException as error:
            os.write(writer, type(error).__name__.encode())
            raise

    def fail():
        raise SystemSetupError("PreUp")

    with pytest.raises(SystemSetupError, match="PreUp"):
        detach(work, on_turn=fail)
    assert os.read(seen, 100) == b"SystemSetupError"
    os.close(seen)
    os.close(writer)


@pytest.mark.parametrize("program", [
    "from fastpump.tunnel import run\nfrom fastpump.config.model import TunnelConfig\n"
    "run._Start.open_queues = leave\n"
    "run.run(TunnelConfig(name='fpdump', keeps_key=False),\n"
    "        run.Program(configure=leave, on_ready=leave))",
    "from fastpump.cli import quick\nquick.config_file.find = leave\nquick.up('fpdump')",
    "from fastpump.cli import quick\nquick.config_file.find = leave\nquick.check('fpdump')",
], ids=["a tunnel", "up", "check"])
def test_memory_with_keys_is_not_dumped(program):
    """Also where core dumps go to a program, which a limit of zero bytes does not prevent."""
    result = subprocess.run([sys.executable, "-c", GET_DUMPABLE + program], capture_output=True,
                            text=True, check=False, timeout=60)
    assert result.returncode == 10, result.stderr
