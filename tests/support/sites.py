"""TAP sites in this process, each one pump with a socket pair for its interface, joined by lanes
over loopback UDP in any topology."""

from __future__ import annotations

import hashlib
import os
import socket

from fastpump._core import NewLanes, Pump, SharedTables
from fastpump.conn.endpoint import Endpoint
from fastpump.constants import REJECT_AFTER_TIME, REKEY_AFTER_TIME
from support.packets import A4, B4, VNET, frame, udp
from support.plainlanes import FRAME, PlainLane, origin
from support.pumps import (
    ALL_FEATURES,
    EVERYTHING,
    START,
    Pumped,
    attached,
    datagrams,
    udp_socket,
)

ALL = "ff:ff:ff:ff:ff:ff"
HOST = {name: f"02:00:00:00:00:0{number}" for number, name in enumerate("abcdefg")}
ARP = 0x0806
PACKET = udp(A4, B4, b"inside")


class Site(Pumped):
    """One side of a switch: `interface` is the kernel's end of its only queue."""

    def __init__(self, name: str, *, mac_limit=1000, per_peer=500, ageing_s=300, storm_limit=0,
                 is_relay=False):
        self.name = name
        self.tables = SharedTables.create(1, 16, 64, is_tap=True, mac_limit=mac_limit)
        self.tables.offloads = EVERYTHING
        self.tables.mtu = 1500
        self.tables.set_originator_id(int.from_bytes(origin(name.encode()), "little"))
        self.tables.configure_switch(is_relay=is_relay, ageing_s=ageing_s,
                                     limit_per_peer=per_peer, storm_limit=storm_limit)
        self.interface, self.queue = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for sock in (self.interface, self.queue):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.udp = udp_socket()
        self.doorbell, self.event = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))
        self.peers: dict[str, int] = {}
        self.plain: dict[str, PlainLane] = {}
        """By peer: this site's end of the lane, as the plain implementation has it."""
        self.others: dict[str, Site] = {}
        self.pump = Pump(attached(self.tables), 0, [self.queue.fileno()], self.udp.fileno(),
                         self.doorbell, self.event)

    def owner(self, mac, vlan=0, now=START):
        """On whose side an address is: a name, "" for this site, None."""
        slot = self.tables.fdb.owner(bytes.fromhex(mac.replace(":", "")), vlan, now)
        return {None: None, **{slot: name for name, slot in self.peers.items()}}.get(slot, "")

    def lie(self, to, payload, flags=FRAME):
        """Send what this site's pump would not."""
        counter = self.tables.lanes.take_counter(self._first[to], START)
        self.udp.sendto(self.plain[to].seal(payload, flags, counter=counter),
                        self.others[to].udp.getsockname())

    def wire(self, sender):
        """All messages that wait here, opened as that peer's: [(flags, payload)]."""
        return [self.plain[sender].open(message) for message in datagrams(self.udp)]

    def connect(self, other):
        """A lane between both."""
        slots = {}
        for one, two in ((self, other), (other, self)):
            slot = one.peers[two.name] = one.tables.peers.add()
            one.others[two.name] = two
            where = Endpoint.from_python(two.udp.getsockname()).sockaddr(socket.AF_INET6)
            one.tables.peers.set_endpoint(slot, where)
            one.tables.peers.set_originator_id(
                slot, int.from_bytes(origin(two.name.encode()), "little"))
            one.tables.peers.set_policy(slot, "lanes")
            slots[one] = one.tables.lanes.reserve(slot, 1)
        for one, two in ((self, other), (other, self)):
            keys = [hashlib.sha256(f"{a} {b}".encode()).digest()
                    for a, b in ((one.name, two.name), (two.name, one.name))]
            where = Endpoint.from_python(two.udp.getsockname()).sockaddr(socket.AF_INET6)
            first, index = slots[one][0], slots[two][1]
            one.tables.lanes.install(first, NewLanes(
                remote_index=index, cipher="aes-256-gcm", features=ALL_FEATURES,
                keys=[tuple(keys)], endpoints=[(where, bytes(16))], sockets=None,
                rekey_at_ns=START + REKEY_AFTER_TIME, rekey_rx_at_ns=START + REKEY_AFTER_TIME,
                reject_at_ns=START + REJECT_AFTER_TIME))
            one.tables.peers.set_lanes(one.peers[two.name], first, None)
            one.plain[two.name] = PlainLane(0, index, *keys)
            one._first = {**getattr(one, "_first", {}), two.name: first}
        for one, two in ((self, other), (other, self)):
            one.lie(two.name, b"", 0)
            two.poll()
            two.tables.workers.events(0)


def network(*names, relays="", links=None, **more):
    """Sites by name, all joined to each other, or as `links` says: ("ab", "bc")."""
    sites = {name: Site(name, is_relay=name in relays, **more) for name in names}
    for one, two in links or [a + b for a in names for b in names if a < b]:
        sites[one].connect(sites[two])
    return sites


def settle(sites, turns=20, now=START):
    """Let all that is under way arrive."""
    for _ in range(turns):
        for site in sites.values():
            site.poll(now)


def close(sites):
    for site in sites.values():
        site.close()


def arp(source, vlans=()):
    """A broadcast of a host."""
    return frame(ALL, source, bytes(46), ethertype=ARP, vlans=vlans)


def unicast(source, destination, vlans=(), packet=PACKET):
    return frame(destination, source, packet, vlans=vlans)


def sent(sites, name, *frames, now=START):
    """What each site gets of frames that enter at one."""
    for each in frames:
        sites[name].give(each)
    settle(sites, now=now)
    return {other: [data[VNET.size:] for data in site.take()] for other, site in sites.items()}
