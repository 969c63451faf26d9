"""Which ways to peers have changed."""

import errno
import ipaddress
import os
import socket
from types import SimpleNamespace

import pytest

from fastpump.conn import sockets
from fastpump.conn.endpoint import NO_SOURCE_ADDRESS, Endpoint, source_address_of
from fastpump.conn.sockets import source_towards
from fastpump.tunnel.containment import Containment
from fastpump.tunnel.ways import MIN_KNOWN, Ways


class Host:
    """`sources`: the address that the kernel sends from, by that of the peer."""

    def __init__(self):
        self.sources, self.changed, self.redirected = {}, [], []
        self.peers = {}
        endpoints = SimpleNamespace(
            way_changed=lambda peer, _now: self.changed.append(peer.name))
        device = SimpleNamespace(
            peers=self.peers, endpoints=endpoints,
            redirect=lambda peer, _now: self.redirected.append(peer.name))
        self.ways = Ways(device, Containment(), lambda where: self.sources.get(where.host))

    def peer(self, name, host, source=None):
        """`source`: the address of ours that it sends to, if it has sent."""
        endpoint = Endpoint(ipaddress.ip_address(host), 51820)
        self.peers[name] = SimpleNamespace(
            name=name, endpoint=endpoint,
            source_address=NO_SOURCE_ADDRESS if source is None else source_address_of(source))
        self.ways.note(endpoint)

    def look(self):
        self.changed.clear()
        self.redirected.clear()
        self.ways.follow(self.ways.find_changed())
        assert self.redirected == self.changed
        return sorted(self.changed)


@pytest.fixture
def host():
    made = Host()
    made.sources.update({"192.0.2.1": "10.0.0.1", "2001:db8::1": "2001:db8:1::1"})
    made.peer("one", "192.0.2.1")
    made.peer("two", "192.0.2.1")
    made.peer("six", "2001:db8::1")
    made.peers["nowhere"] = SimpleNamespace(name="nowhere", endpoint=None)
    return made


def test_only_what_changed(host):
    assert host.look() == []
    host.sources["192.0.2.1"] = "10.1.0.1"
    assert host.look() == ["one", "two"] and host.look() == []


@pytest.mark.parametrize("before", ["10.0.0.1", "::ffff:10.0.0.1"])
def test_a_peer_that_came_by_another_uplink_stays_there(host, before):
    """The default route changes; `ip rule from 10.5.0.1` leads its datagrams another way."""
    host.sources["192.0.2.1"] = before
    host.peer("one", "192.0.2.1", "10.0.0.1")
    host.peer("two", "192.0.2.1", "10.5.0.1")
    host.sources["192.0.2.1"] = "10.1.0.1"
    assert host.look() == ["one"]
    del host.sources["192.0.2.1"]               # no way at all is no way by a rule
    assert host.look() == []
    host.sources["192.0.2.1"] = "10.1.0.1"
    assert host.look() == ["one", "two"]


def test_a_way_that_is_lost_and_found(host):
    del host.sources["2001:db8::1"]
    assert host.look() == ["six"]
    host.sources["2001:db8::1"] = "2001:db8:1::1"
    assert host.look() == ["six"] and host.look() == []


def test_a_peer_that_moved_meanwhile_needs_nothing(host):
    host.sources["192.0.2.9"] = "10.9.0.1"
    host.peer("one", "192.0.2.9")
    assert host.look() == []


def test_what_is_known_is_bounded(host):
    """A peer says where it is, as often as it likes."""
    for number in range(4 * MIN_KNOWN):
        host.peer("one", str(ipaddress.IPv4Address("198.51.100.0") + number))
        assert len(host.ways.known) <= MIN_KNOWN + 2 * len(host.peers) + 1
    host.sources["192.0.2.1"] = "10.1.0.1"
    assert host.look() == ["two"]


def test_no_file_descriptor_is_no_way(monkeypatch):
    """And no error: whoever was heard has moved all the same."""
    def no_socket(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    there = Endpoint(ipaddress.ip_address("127.0.0.1"), 51820)
    assert source_towards(there, socket.AF_INET) == "127.0.0.1"
    monkeypatch.setattr(sockets.socket, "socket", no_socket)
    assert source_towards(there, socket.AF_INET) is None
