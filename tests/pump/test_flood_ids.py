"""A flooded frame passes each side once; and nobody who knows its flood id can stop it."""

import pytest

from support.packets import A4, VNET, flip, frame, ip, partial, udp
from support.plainlanes import FRAME, PARTIAL, RELAY, origin, parse_relay, relay_header
from support.pumps import START, datagrams
from support.sites import ALL, close, network, settle

HOST = "02:00:00:00:00:01"
ARP = frame(ALL, HOST, bytes(46), ethertype=0x0806)
OTHER = frame(ALL, HOST, bytes(45) + b"x", ethertype=0x0806)


class Race:
    """Sites, and what a has flooded, on its way still; m has read what it needs for its lies."""

    def __init__(self, *names, flooded=ARP, **options):
        self.sites = network(*names, **options)
        self.at = self.sites.__getitem__
        self.at("a").give(flooded)
        self.at("a").poll()
        self._flying = {name: datagrams(site.udp) for name, site in self.sites.items()}
        ((flags, payload),) = [self.at(name).plain["a"].open(wire)
                               for name, wires in self._flying.items() for wire in wires][:1]
        assert flags & RELAY
        self.flood_id, _, self.origin, _ = parse_relay(payload)

    def lie(self, to, data=ARP, *, hops=0, by="a", flags=FRAME | RELAY):
        """m is first, with the same flood id."""
        header = relay_header(self.flood_id, hops, origin(by.encode()))
        self.at("m").lie(to, header + data, flags)
        settle(self.sites)

    def arrive(self):
        """What a has sent arrives: what each site's interface gets, also before."""
        for name, wires in self._flying.items():
            for wire in wires:
                self.at("a").udp.sendto(wire, self.at(name).udp.getsockname())
        settle(self.sites)
        return {name: [data[VNET.size:] for data in site.take()]
                for name, site in self.sites.items()}


@pytest.fixture
def race():
    made = []

    def start(*names, **options):
        made.append(Race(*names, **options))
        return made[-1]

    yield start
    for each in made:
        close(each.sites)


def test_a_copy_is_one_whoever_brings_it(race):
    this = race(*"abm")
    this.lie("b", hops=1)
    assert this.arrive()["b"] == [ARP]
    assert this.at("b").verdicts() == {"DROP_DUPLICATE_FRAME": 1}


def test_another_frame_with_its_id_does_not_stop_it(race):
    this = race(*"abm")
    this.lie("b", OTHER)
    assert this.arrive()["b"] == [OTHER, ARP]
    assert this.at("b").verdicts() == {}


def test_a_copy_from_somebody_else_does_not_stop_it(race):
    """b takes it for its own, the relay g has passed it on."""
    this = race(*"abgm", relays="g", links=("ag", "bg", "mg"))
    this.lie("g", by="b")
    assert this.arrive()["b"] == [ARP]


@pytest.mark.parametrize("hops", range(1, 9))
def test_a_copy_of_many_hops_does_not_stop_it(race, hops):
    """The relays take m's copy, and may not pass it on so far."""
    this = race(*"abghm", relays="gh", links=("ag", "mg", "gh", "hb"))
    this.lie("g", hops=hops)
    got = this.arrive()
    assert {name: got[name] for name in "bgh"} == {name: [ARP] for name in "bgh"}


def test_a_copy_from_where_its_source_is_not_allowed_does_not_stop_it(race):
    this = race(*"abm")
    b = this.at("b")
    b.tables.fdb.add(bytes.fromhex(HOST.replace(":", "")), 0, b.peers["a"], START)
    this.lie("b")
    assert this.arrive()["b"] == [ARP]
    assert b.verdicts() == {"DROP_MAC_LOCKED": 1}


@pytest.mark.parametrize("is_v6", [False, True])
def test_a_checksum_may_be_complete_on_one_route_and_partial_on_another(race, is_v6):
    source, group = ("fd00:9::1", "ff02::1") if is_v6 else (A4, "255.255.255.255")
    packet = udp(source, group, b"to all")
    this = race(*"abm", flooded=frame(ALL, HOST, packet))
    this.lie("b", frame(ALL, HOST, partial(packet, 40 if is_v6 else 20, 6)),
             flags=FRAME | RELAY | PARTIAL)
    assert len(this.arrive()["b"]) == 1
    assert this.at("b").verdicts() == {"DROP_DUPLICATE_FRAME": 1}


@pytest.mark.parametrize("source, group", [(A4, "255.255.255.255"), ("fd00:9::1", "ff02::1")])
def test_a_router_may_have_marked_it_on_one_route(race, source, group):
    """Congestion: and IPv4's checksum is another one then. DSCP is not changed on the way."""
    def marked(tos):
        return frame(ALL, HOST, udp(source, group, b"to all", tos=tos))

    this = race(*"abm", flooded=marked(2))
    this.lie("b", marked(3))
    this.lie("b", marked(4 | 2))
    assert this.arrive()["b"] == [marked(3), marked(4 | 2)]
    assert this.at("b").verdicts() == {"DROP_DUPLICATE_FRAME": 1}


@pytest.mark.parametrize("protocol", [1, 6, 17])
def test_all_other_bytes_count(race, protocol):
    """Each of them, one after the other, also of packets too short for a checksum."""
    payload = bytes(7) if protocol == 1 else bytes(20)
    data = frame(ALL, HOST, ip(A4, "255.255.255.255", protocol, payload))
    checksum = {1: range(0), 6: range(50, 52), 17: range(40, 42)}[protocol]
    this = race(*"abm", flooded=data)
    flips = [at for at in range(6, len(data)) if at not in checksum
             and at != 6 and not 14 <= at < 18 and at not in range(20, 26)]
    for at in flips:
        this.lie("b", flip(data, at))
    assert len(this.at("b").take()) == len(flips)
    assert this.arrive()["b"] == [data]
