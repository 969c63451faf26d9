"""Short TCP connections of `fastpump bench`."""

import json
import socket
import subprocess
import sys
import threading

import pytest

from fastpump.bench.connections import Connections, connect

COMMAND = sys.executable, "-m", "fastpump.bench.connections"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_each_is_answered(host):
    words = {"host": host, "at_once": 4, "seconds": 0.2}
    with subprocess.Popen([*COMMAND, "serve", json.dumps(words)], stdout=subprocess.PIPE,
                          text=True) as server:
        try:
            words["port"] = int(server.stdout.readline().rpartition(" ")[2])
            ran = subprocess.run([*COMMAND, "connect", json.dumps(words)], capture_output=True,
                                 text=True, check=True)
        finally:
            server.terminate()
    times = json.loads(ran.stdout)
    assert times and all(0 < time < 30_000 for time in times)


def test_those_that_do_not_end_do_not_count():
    """The first two are answered, the next ones never."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept = []

        def serve():
            for number in range(4):
                connection, _ = listener.accept()
                if number < 2:
                    connection.sendall(connection.recv(1))
                    connection.close()
                kept.append(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        times = connect({"host": "127.0.0.1", "port": listener.getsockname()[1], "at_once": 2,
                         "seconds": 0.5})
        thread.join()
        for each in kept:
            each.close()
    assert len(times) == 2 and Connections(0.5, times).per_s == 4


def test_who_refuses_is_told():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    words = {"host": "127.0.0.1", "port": port, "at_once": 1, "seconds": 1}
    ran = subprocess.run([*COMMAND, "connect", json.dumps(words)], capture_output=True, text=True,
                         check=False)
    assert ran.returncode == 1 and "Connection refused" in ran.stderr
    assert "Traceback" not in ran.stderr
