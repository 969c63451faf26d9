"""The background process: what it keeps of its caller, and of its memory's secrets."""

import os
import select
import signal
import subprocess
import sys

import pytest

from fastpump.errors import SystemSetupError
from fastpump.process.daemon import detach
from fastpump.process.signals import unwinding

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
    said = tmp_path / "said"

    def work(foreground):
        with unwinding():
            try:
                foreground._way.send(b"T")
                signal.pause()
            except SystemExit:
                said.write_text("undone")
                raise

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detach(work, on_turn=interrupt)
    assert said.read_text() == "undone"


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
