"""The control socket: a tunnel that does not answer, and a client that does not wait."""

import asyncio
import contextlib
import errno
import json
import logging
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
from fastpump.errors import ConfigError, SystemSetupError
from fastpump.ipc import control, uapi_server
from fastpump.ipc.control import ControlServer
from fastpump.ipc.unix_server import MAX_PATH_LEN, UnixServer, is_answered

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
    """A tunnel that serves, in a thread of its own; what was reported."""
    reported = []
    loop, is_ready, ended = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve():
        server = ControlServer(name, commands, reported.append)
        await server.start()
        is_ready.set()
        await ended.wait()
        await server.stop()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert is_ready.wait(20)
    try:
        yield reported
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


async def show(_request):
    return {"it": "works"}


def no_report(error):
    raise error


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


@pytest.mark.parametrize("failure, said, is_reported", [
    (ConfigError("no such thing"), "no such thing", False),
    (OSError(errno.ENOEXEC, "Exec format error"), "system error: [Errno 8] Exec format error",
     False),
    (TimeoutError(), "system error: TimeoutError()", False),
    (ValueError("a bug"), "internal error; the log has more about it", True),
    (KeyError("a bug"), "internal error; the log has more about it", True),
    (None, "internal error; the log has more about it", True),      # that is no JSON
], ids=repr)
def test_what_goes_wrong_with_a_command_is_told(failure, said, is_reported):
    async def reload(_request):
        if failure is not None:
            raise failure
        return {"bytes": b""}

    with serving("fp0", {"reload": reload, "status": show}) as reported:
        with pytest.raises(SystemSetupError) as caught:
            control.ask("fp0", "reload")
        assert str(caught.value) == f"the tunnel fp0: {said}"
        assert len(reported) == is_reported and (failure is None or not reported
                                                 or reported == [failure])
        assert control.ask("fp0", "status") == {"it": "works"}


def test_a_tunnel_that_hangs_up_is_not_called_busy():
    with listening("fp0") as path, socket.socket(socket.AF_UNIX) as listener:
        path.unlink()
        listener.bind(str(path))
        listener.listen()

        def hang_up(with_what):
            client, _ = listener.accept()
            with client:
                client.recv(1000)
                client.sendall(with_what)

        for with_what in (b"", control.TAKEN):
            thread = threading.Thread(target=hang_up, args=(with_what,))
            thread.start()
            with pytest.raises(SystemSetupError) as caught:
                control.ask("fp0", "status")
            thread.join()
            assert str(caught.value) == ("the tunnel fp0 has closed the connection without an "
                                         "answer: it has ended, or has too many clients")


def test_a_command_that_takes_too_long_is_called_so(monkeypatch):
    monkeypatch.setattr(control, "COMMAND_TIMEOUT_S", QUICKLY_S)

    async def reload(_request):
        await asyncio.Event().wait()

    with serving("fp0", {"reload": reload}), pytest.raises(SystemSetupError) as caught:
        control.ask("fp0", "reload")
    assert str(caught.value) == (f"the tunnel fp0 has not done `reload` within {QUICKLY_S} s, and "
                                 "goes on with it")


def test_a_request_may_be_long(monkeypatch):
    """`stop` has the file's PostDown."""
    monkeypatch.setattr(control, "ANSWER_TIMEOUT_S", 20.0)

    async def stop(request):
        return {"count": len(request["post_down"])}

    with serving("fp0", {"stop": stop}):
        assert control.ask("fp0", "stop", post_down=["x" * 999] * 1000) == {"count": 1000}


def test_a_path_that_is_too_long_is_called_so(monkeypatch, tmp_path):
    """By who serves as well: it could make a socket there that nobody can connect to."""
    inside = len(f"/{paths.namespace_inode()}/fp0.sock")
    longest = tmp_path / ("x" * (MAX_PATH_LEN - inside - len(str(tmp_path)) - 1))
    monkeypatch.setenv("FASTPUMP_RUN", str(longest))
    with serving("fp0", {"status": show}):
        assert control.ask("fp0", "status") == {"it": "works"}
    monkeypatch.setenv("FASTPUMP_RUN", f"{longest}x")
    with pytest.raises(SystemSetupError) as caught:
        control.ask("fp0", "status")
    assert str(caught.value) == (
        f"the tunnel fp0 cannot be queried: the path {longest}x/{paths.namespace_inode()}/fp0.sock "
        "is too long for a socket; name a directory with a short path in FASTPUMP_RUN")
    with pytest.raises(SystemSetupError, match="its path has more bytes than the 107"):
        asyncio.run(ControlServer("fp0", {}, no_report).start())


def test_a_directory_that_another_tunnel_removes_is_made_again(monkeypatch, tmp_path):
    """Its last user did so between our mkdir and our bind, or our rename."""
    path, elsewhere = tmp_path / "run" / "1" / "fp0.sock", tmp_path / "run" / "2" / "fp1.sock"

    class Raced(socket.socket):
        def bind(self, address):
            if removed.pop():
                os.removedirs(path.parent)
            super().bind(address)

    monkeypatch.setattr("fastpump.ipc.unix_server.socket.socket", Raced)
    removed = [False, True, True]

    async def scenario():
        server = UnixServer(path, None, limit=1)
        await server.start()
        assert is_answered(path) and not removed
        rename = type(path).rename

        def raced(self, target):
            monkeypatch.setattr(type(path), "rename", rename)
            elsewhere.parent.rmdir()
            return rename(self, target)

        monkeypatch.setattr(type(path), "rename", raced)
        server.rename(elsewhere)
        assert is_answered(elsewhere) and not path.exists()
        await server.stop()

    tmp_path.joinpath("other").touch()      # removedirs() goes no further
    asyncio.run(scenario())
    removed += [True] * 1000                # a directory that cannot be made to stay
    with pytest.raises(FileNotFoundError):
        asyncio.run(UnixServer(path, None, limit=1).start())


def test_a_socket_that_cannot_be_renamed_is_told(caplog):
    async def scenario():
        servers = [ControlServer(name, {}, no_report) for name in ("fp0", "fp1")]
        for server in servers:
            await server.start()
        with caplog.at_level(logging.WARNING):
            servers[0].rename("fp1", paths.namespace_inode())
        assert control.running() == ["fp0", "fp1"]
        for server in servers:
            await server.stop()

    asyncio.run(scenario())
    old, new = (paths.runtime_dir() / f"{name}.sock" for name in ("fp0", "fp1"))
    assert caplog.messages == [f"the control socket stays {old}, as it cannot become {new}: "
                               "AlreadyServed()"]


def test_status_shows_the_other_tunnels(monkeypatch, capsys):
    monkeypatch.setattr("fastpump.cli.status_text.show", lambda status: status["it"])
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
        server = ControlServer("fp0", {"limit": limit}, no_report)
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
        server = uapi_server.UapiServer("fp0", answer, no_report)
        await server.start()
        send(b"set=1\nlisten_port=1\n\n").close()
        waits = send(b"set=1\nlisten_port=2\n\n")
        assert await asyncio.to_thread(waits.recv, 100) == b"errno=0\n\n"
        waits.close()
        await server.stop()

    asyncio.run(scenario())
    assert requests == [b"set=1\nlisten_port=2\n\n"]


def test_wg_is_told_that_there_is_a_bug(monkeypatch, tmp_path):
    def answer(request, _now):
        if request == b"get=1\n\n":
            raise ValueError("a bug")
        return b"errno=0\n\n"

    monkeypatch.setattr(uapi_server, "DIRECTORY", tmp_path / "wireguard")
    reported = []

    async def scenario():
        server = uapi_server.UapiServer("fp0", answer, reported.append)
        await server.start()
        reader, writer = await asyncio.open_unix_connection(tmp_path / "wireguard" / "fp0.sock")
        for request, expected in ((b"get=1\n\n", -errno.EIO), (b"set=1\n\n", 0)):
            writer.write(request)
            assert await reader.readuntil(b"\n\n") == f"errno={expected}\n\n".encode()
        writer.close()
        await server.stop()

    asyncio.run(scenario())
    assert [str(error) for error in reported] == ["a bug"]
