"""Which datagrams the kernel lets through to which socket."""

import errno
import os
import socket

import pytest

from fastpump.conn.sockets import SocketGroup, preferred_family
from fastpump.errors import SystemSetupError


@pytest.fixture
def group():
    made = SocketGroup(1, 0, preferred_family(), lane_sockets=1)
    yield made
    made.close()


def first_bytes(sock):
    """Of the datagrams that wait in a socket."""
    found = []
    while True:
        try:
            found.append(sock.recv(100)[0])
        except BlockingIOError:
            return found


def test_each_socket_gets_the_types_that_are_its(group):
    sockets = {"handshake": group.handshake, "worker": group.workers[0], "lane": group.lanes[0]}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for port in (group.port, group.lanes[0].getsockname()[1]):
            for kind in (0, 1, 2, 3, 4, 5, 6, 255):
                sender.sendto(bytes([kind]) + bytes(99), ("127.0.0.1", port))
    assert {name: first_bytes(sock) for name, sock in sockets.items()} == {
        "handshake": [1, 2, 3], "worker": [4, 5], "lane": [5]}


@pytest.mark.parametrize(("wanted", "named"), [(None, 51820), (4711, 4711)])
def test_a_port_that_cannot_be_bound_is_named(monkeypatch, wanted, named):
    def refuse(_sock, _address):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(SystemSetupError, match=f"the UDP port {named} cannot be bound: Perm"):
        SocketGroup(1, wanted, socket.AF_INET)
