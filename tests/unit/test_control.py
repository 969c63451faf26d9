"""The control socket: a tunnel that does not answer, and a client that does not wait."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from fastpump import paths
from fastpump.cli.main import main
from fastpump.errors import SystemSetupError
from fastpump.ipc import control, uapi_server
from fastpump.ipc.control import ControlServer
from fastpump.ipc.unix_server import is_answered

QUICKLY_S = 0.2


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr(control, "ANSWER_TIMEOUT_S", QUICKLY_S)


@contextlib.contextmanager
def listening(name, *, backlog=8):
    """A tunnel that takes nothing, as one that is stopped or out of file descriptors."""
    path = paths.runtime_dir() / f"{name}.sock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(backlog)
        yield path


@contextlib.contextmanager
def serving(name, commands):
    """A tunnel that serves, in a thread of its own."""
    loop, is_ready, ended = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve():
        server = ControlServer(name, commands)
        await server.start()
        is_ready.set()
        await ended.wait()
        await server.stop()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert is_ready.wait(20)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


async def show(_request):
    return {"it": "works"}


def test_a_tunnel_that_does_not_answer_is_an_error_in_time():
    with listening("fp0"):
        began = time.monotonic()
        with pytest.raises(SystemSetupError) as caught:
            control.ask("fp0", "status")
    assert QUICKLY_S <= time.monotonic() - began < 20
    assert str(caught.value) == (f"the tunnel fp0 does not answer: its process {os.getpid()} is "
                                 "busy, or has no file descriptor left")


def test_a_stopped_tunnel_is_called_stopped():
    program = ("import socket, sys; listener = socket.socket(socket.AF_UNIX); "
               "listener.bind(sys.argv[1]); listener.listen(); print('listening', flush=True); "
               "listener.accept()")
    path = paths.runtime_dir() / "fp0.sock"
    path.parent.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", program, str(path)], text=True,
                          stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == "listening\n"
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            with pytest.raises(SystemSetupError) as caught:
                control.ask("fp0", "stop")
        finally:
            process.kill()
    assert str(caught.value).endswith(
        f": its process {process.pid} is stopped; `kill -CONT {process.pid}` continues it")


def test_a_tunnel_with_a_full_backlog_is_an_error_at_once():
    """Clients that left are in it, too: nobody has taken them."""
    with listening("fp0", backlog=0) as path, socket.socket(socket.AF_UNIX) as first:
        first.connect(str(path))
        with pytest.raises(SystemSetupError, match=r"^the tunnel fp0 does not answer$"):
            control.ask("fp0", "status")
        assert is_answered(path)
    assert not is_answered(path)        # it was killed


def test_status_shows_the_other_tunnels(monkeypatch, capsys):
    monkeypatch.setattr("fastpump.tunnel.status.show", lambda status: status["it"])
    with listening("fp0"), listening("fp2"), serving("fp1", {"status": show}):
        began = time.monotonic()
        assert main(["status"]) == 1
        assert time.monotonic() - began < 20
        said = capsys.readouterr()
        assert said.out == "works\n"
        lines = said.err.splitlines()
        assert [line.partition(" does not answer: ")[0] for line in lines] == [
            "fastpump: the tunnel fp0", "fastpump: the tunnel fp2"]
        assert main(["status", "--json"]) == 1
        assert json.loads(capsys.readouterr().out) == {"interfaces": [{"it": "works"}]}
        assert main(["status", "fp0"]) == 1
        assert capsys.readouterr().out == ""
        assert main(["status", "fp1"]) == 0
        assert capsys.readouterr().out == "works\n"


def test_a_command_that_was_taken_may_take_longer():
    """Meanwhile two others wait as long as may be for a tunnel that takes nothing, one by one."""
    def give_up():
        with pytest.raises(SystemSetupError):
            control.ask("fp1", "status")

    async def reload(_request):
        for _ in range(2):
            await asyncio.to_thread(give_up)
        return {"changed": []}

    with listening("fp1"), serving("fp0", {"reload": reload}):
        assert control.ask("fp0", "reload") == {"changed": []}


def test_nothing_is_done_for_a_client_that_left():
    """What it sent is there, and so is that it has gone, when the tunnel goes on. A client that
    has nothing more to send is another matter."""
    done = []

    async def limit(request):
        done.append(request["number"])
        return {}

    def send(number):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(paths.runtime_dir() / "fp0.sock"))
        client.sendall(json.dumps({"command": "limit", "number": number}).encode() + b"\n")
        return client

    async def scenario():
        server = ControlServer("fp0", {"limit": limit})
        await server.start()
        # The loop does not run until the first `await`, as if it were stopped.
        send(1).close()
        waits = send(2)
        waits.shutdown(socket.SHUT_WR)
        send(3).close()
        answer = await asyncio.to_thread(waits.makefile("rb").readline)
        waits.close()
        last = send(4)
        await asyncio.to_thread(last.makefile("rb").readline)
        last.close()
        await server.stop()
        return json.loads(answer)

    assert asyncio.run(scenario()) == {"limit": {}}
    assert done == [2, 4]


def test_nothing_is_done_for_a_wg_that_left(monkeypatch, tmp_path):
    requests = []

    def answer(request, _now):
        requests.append(request)
        return b"errno=0\n\n"

    monkeypatch.setattr(uapi_server, "DIRECTORY", tmp_path / "wireguard")

    def send(request):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(tmp_path / "wireguard" / "fp0.sock"))
        client.sendall(request)
        return client

    async def scenario():
        server = uapi_server.UapiServer("fp0", answer)
        await server.start()
        send(b"set=1\nlisten_port=1\n\n").close()
        waits = send(b"set=1\nlisten_port=2\n\n")
        assert await asyncio.to_thread(waits.recv, 100) == b"errno=0\n\n"
        waits.close()
        await server.stop()

    asyncio.run(scenario())
    assert requests == [b"set=1\nlisten_port=2\n\n"]
