"""`fastpump bench --server`: what it answers, and to whom it does not."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fastpump.bench import real, remote
from fastpump.bench.packets import Stream, run_stream
from fastpump.bench.remote import LONGEST_REQUEST, MOST_REQUESTS, Server
from fastpump.errors import SystemSetupError
from support.hosts import until


@pytest.fixture
def server():
    with Server("127.0.0.1", 0) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def port(server):
    return server.server_address[1]


def answer(port, line):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        with contextlib.suppress(OSError):      # it need not have read all
            connection.sendall(line)
            connection.shutdown(socket.SHUT_WR)
            return connection.makefile("rb").read()
        return b""


@pytest.mark.parametrize("line", [
    b"\n", b"{", b"\xff\xfe\n", b"[]\n", b"3\n", b'["usage"]\n', b'["usage", 3]\n',
    b'["os.system", {"host": "true"}]\n', b'["packets", []]\n', b'["packets", {}]\n',
    b'["packets", {"host": 3}]\n', b'["packets", {"host": "::", "flows": true}]\n',
    b'["packets", {"host": "::", "flows": 5000}]\n', b'["packets", {"host": "::", "run": -1}]\n',
    b'["../../x", {"host": "::"}]\n', b"[" * 4000 + b"\n", b"x" * (LONGEST_REQUEST + 10)])
def test_other_requests_are_refused(port, line):
    said = answer(port, line)
    assert said == b"" or "error" in json.loads(said)


def test_who_says_nothing_is_let_go(port, monkeypatch):
    monkeypatch.setattr(remote._Handler, "timeout", 0.1)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(5)
        assert connection.recv(100) == b""


def test_so_many_at_once_and_no_more(server, port):
    request = json.dumps(["packets", {"host": "127.0.0.1"}]).encode() + b"\n"
    with contextlib.ExitStack() as stack:
        busy = [stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                for _ in range(MOST_REQUESTS)]
        for each in busy:
            each.sendall(request)
            assert b"listening" in each.recv(100)
        assert "are under way already" in json.loads(answer(port, request))["error"]
    until(lambda: server.room._value == MOST_REQUESTS)      # all programs have ended


def test_what_programs_use(port):
    """Those of another process, by the name of its program; never ours, nor of who started us."""
    name = Path(sys.executable).name
    with subprocess.Popen([sys.executable, "-c", "print('up', flush=True); input()"], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == "up\n"
        found = remote.pids_of(name)
        assert child.pid in found and not {os.getpid(), os.getppid()} & set(found)
        seconds, size = json.loads(answer(port, json.dumps(["usage", name]).encode() + b"\n"))
        child.communicate("\n")
    assert seconds >= 0 and size > 1 << 20
    assert remote.pids_of("no-such-program") == []
    assert json.loads(answer(port, b'["usage", "no-such-program"]\n')) == [0, 0]


def test_packets_of_a_client(port):
    pair = real.Pair("127.0.0.1", "127.0.0.1", port, "loopback", None)
    with real.RealHosts(pair) as hosts:
        arrived = run_stream(hosts, real.HERE, real.THERE, "127.0.0.1", Stream((64,), 2000), 0.3)
    assert 0 < arrived.received == arrived.sent


def test_a_server_that_is_not_there():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(SystemSetupError, match=f"port {port}: Connection refused; `fastpump bench"):
        remote.ask("127.0.0.1", port, ["usage", "x"])
    ran = subprocess.run([sys.executable, "-m", "fastpump.bench.remote", "127.0.0.1", str(port),
                          "[]"], capture_output=True, text=True, check=False)
    assert ran.returncode == 1 and "Connection refused" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_server_that_lies():
    """Its answer is no usage."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def lie():
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b'["many"]\n')

        thread = threading.Thread(target=lie)
        thread.start()
        pair = real.Pair("127.0.0.1", "127.0.0.1", listener.getsockname()[1], "x", "python")
        with pytest.raises(SystemSetupError, match="many"):
            real._OfPrograms(pair, "python").cpu_seconds()
        thread.join()


def test_a_program_ends_with_its_client(server, port):
    """Also if that is killed."""
    with subprocess.Popen(
            [sys.executable, "-m", "fastpump.bench.remote", "127.0.0.1", str(port),
             json.dumps(["connections", {"host": "127.0.0.1"}])],
            stdout=subprocess.PIPE, text=True) as client:
        assert "listening" in client.stdout.readline()
        client.kill()
    until(lambda: server.room._value == MOST_REQUESTS)
