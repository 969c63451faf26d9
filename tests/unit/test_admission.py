"""What is admitted: cheap checks first, and fairness under overload."""

import os
import socket
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpump._core import (
    ADMIT_HANDSHAKE,
    ADMIT_TRANSPORT,
    SENT_COOKIE_REPLY,
    Admission,
    SharedTables,
)
from fastpump.conn.endpoint import NO_SOURCE_ADDRESS, Endpoint
from fastpump.constants import SECOND
from fastpump.kernel import UDP_GRO
from fastpump.protocol import cookie, keys, wire

PUBLIC = keys.public_of(keys.generate_private())
KEY, COOKIE_KEY = cookie.mac1_key(PUBLIC), cookie.cookie_key(PUBLIC)
START = 1000 * SECOND


def place(address="192.0.2.7", port=51820):
    return Endpoint(ip_address(address), port).sockaddr(socket.AF_INET6)


def initiation(cookie_value=None):
    return cookie.add_macs(b"\1\0\0\0" + os.urandom(144), KEY, cookie_value)


def cookie_for(admission, sockaddr):
    """The cookie that the holder of an address gets."""
    message = initiation()
    reply = wire.parse(admission.cookie_reply(message, sockaddr))
    assert reply.receiver_index == int.from_bytes(message[4:8], "little")
    return cookie.open_reply(COOKIE_KEY, cookie.mac1_of(message), reply)


@pytest.fixture
def admission():
    made = Admission()
    made.set_keys(KEY, COOKIE_KEY)
    return made


def verdicts(admission):
    return {name: count for name, count in admission.verdicts.items() if count}


def test_length_type_and_mac1(admission):
    good = initiation()
    cases = [
        (b"", "DROP_MALFORMED_HANDSHAKE"),
        (good[:-1], "DROP_MALFORMED_HANDSHAKE"),
        (good + b"x", "DROP_MALFORMED_HANDSHAKE"),
        (b"\5" + good[1:], "DROP_MALFORMED_HANDSHAKE"),
        (b"\1\1" + good[2:], "DROP_MALFORMED_HANDSHAKE"),
        (b"\2" + good[1:], "DROP_MALFORMED_HANDSHAKE"),
        (good[:50] + bytes([good[50] ^ 1]) + good[51:], "DROP_INVALID_MAC1"),
        (good[:117] + bytes([good[117] ^ 1]) + good[118:], "DROP_INVALID_MAC1"),
    ]
    for message, name in cases:
        before = admission.verdicts[name]
        assert admission.judge(message, place(), START) is None
        assert admission.verdicts[name] == before + 1
    assert admission.judge(good, place(), START) == ADMIT_HANDSHAKE
    response = cookie.add_macs(b"\2\0\0\0" + bytes(88), KEY)
    assert admission.judge(response, place(), START) == ADMIT_HANDSHAKE
    assert admission.judge(b"\3\0\0\0" + bytes(60), place(), START) == ADMIT_HANDSHAKE
    assert admission.judge(b"\4\0\0\0" + bytes(28), place(), START) == ADMIT_TRANSPORT
    assert admission.judge(b"\4\0\0\0" + bytes(144), place(), START) == ADMIT_TRANSPORT


def test_nothing_is_admitted_without_a_key(admission):
    admission.set_keys(None, None)
    assert admission.judge(initiation(), place(), START) is None
    assert verdicts(admission) == {"DROP_INVALID_MAC1": 1}


def test_the_same_initiation_twice(admission):
    message = initiation()
    assert admission.judge(message, place(), START) == ADMIT_HANDSHAKE
    assert admission.judge(message, place("192.0.2.8"), START + SECOND) is None
    assert verdicts(admission) == {"DROP_REPLAYED_INITIATION": 1}


def flood(admission, sources, count, now=START, ports=lambda n: 51820):
    """`count` different good messages at one moment; how often each verdict."""
    found = {}
    for number in range(count):
        verdict = admission.judge(initiation(), place(sources(number), ports(number)), now)
        found[verdict] = found.get(verdict, 0) + 1
    return found


def test_more_than_can_be_served_is_an_overload(admission):
    assert flood(admission, lambda n: "192.0.2.1", 1000) == {ADMIT_HANDSHAKE: 1000}
    assert not admission.is_overloaded(START)
    flood(admission, lambda n: "192.0.2.1", 1)
    assert admission.is_overloaded(START + SECOND - 1)
    assert not admission.is_overloaded(START + SECOND)


def test_one_source_does_not_crowd_out_another(admission):
    admission.declare_overload(START + 10 * SECOND)
    # Five for the address, five for the port.
    assert flood(admission, lambda n: "192.0.2.1", 1000) == {ADMIT_HANDSHAKE: 10, None: 990}
    assert admission.judge(initiation(), place("192.0.2.2"), START) == ADMIT_HANDSHAKE
    assert verdicts(admission) == {"DROP_HANDSHAKE_RATE": 990}
    # 20 a second each.
    assert flood(admission, lambda n: "192.0.2.1", 9, START + SECOND // 20) == {
        ADMIT_HANDSHAKE: 2, None: 7}
    assert flood(admission, lambda n: f"2001:db8::{n:x}", 2000, ports=lambda n: 7)[None] > 1800


def test_an_honest_peer_behind_the_attackers_address_is_served(admission):
    admission.declare_overload(START + SECOND)
    flood(admission, lambda n: "192.0.2.1", 1000)
    assert admission.judge(initiation(), place("192.0.2.1", 4242), START) == ADMIT_HANDSHAKE
    # Also when the attacker uses all ports: at least with its cookie.
    flood(admission, lambda n: "192.0.2.1", 3000, ports=lambda n: 1024 + n)
    mine = place("192.0.2.1", 4243)
    assert admission.judge(initiation(), mine, START) is None
    assert admission.judge(initiation(cookie_for(admission, mine)), mine, START) == ADMIT_HANDSHAKE
    assert admission.judge(initiation(), place("192.0.2.2"), START) == ADMIT_HANDSHAKE


def test_a_flood_from_everywhere_is_answered_with_cookies_then_dropped(admission):
    admission.declare_overload(START + SECOND)
    found = flood(admission, lambda n: f"10.{n >> 8}.{n & 255}.1", 2000)
    assert found == {ADMIT_HANDSHAKE: 50, SENT_COOKIE_REPLY: 500, None: 1450}
    assert admission.verdicts["DROP_HANDSHAKE_OVERLOAD"] > 1300
    assert admission.verdicts["SENT_COOKIE_REPLY"] == 500


def test_a_cookie_gets_through(admission):
    admission.declare_overload(START + SECOND)
    flood(admission, lambda n: f"10.{n >> 8}.{n & 255}.1", 1000)
    mine = place("192.0.2.9")
    value = cookie_for(admission, mine)
    assert admission.judge(initiation(value), mine, START) == ADMIT_HANDSHAKE
    assert admission.judge(initiation(value), place("192.0.2.10"), START) is None
    assert admission.judge(initiation(value), place("192.0.2.9", 1), START) is None
    admission.renew_cookie_secret()
    assert admission.judge(initiation(value), mine, START) is None


def test_the_endpoints_of_peers_have_a_share_of_their_own(admission):
    admission.add_known(place("198.51.100.1"))
    admission.add_known(place("2001:db8:1::5"))
    admission.declare_overload(START + SECOND)
    flood(admission, lambda n: f"10.{n >> 8}.{n & 255}.1", 1000)
    assert admission.judge(initiation(), place("198.51.100.1", 5), START) == ADMIT_HANDSHAKE
    assert admission.judge(initiation(), place("2001:db8:1::5"), START) == ADMIT_HANDSHAKE
    assert admission.judge(initiation(), place("198.51.100.2"), START) is None
    assert admission.judge(initiation(), place("2001:db8:1::6"), START) is None


def test_an_address_is_known_while_a_peer_is_there(admission):
    """Each peer that was there and left takes its own mark along."""
    shared, left = place("198.51.100.1", 5), place("198.51.100.2", 5)
    for _ in range(300):
        admission.add_known(shared)
    for _ in range(299):
        admission.remove_known(shared)
    admission.add_known(left)
    admission.remove_known(left)
    admission.declare_overload(START + SECOND)
    flood(admission, lambda n: f"10.{n >> 8}.{n & 255}.1", 1000)
    assert admission.judge(initiation(), shared, START) == ADMIT_HANDSHAKE
    assert admission.judge(initiation(), left, START) is None


def test_no_prefix_shares_the_bucket_of_another(admission):
    """Nor the one for a purpose that of another purpose, whatever the attacker chooses."""
    admission.declare_overload(START + SECOND)
    mine = place("2001:db8:1::1")
    value = cookie_for(admission, mine)
    for third in range(8):
        flood(admission, lambda n, third=third: f"2001:db8:{third}:{n & 3:x}::1", 200)
    assert admission.judge(initiation(value), mine, START) == ADMIT_HANDSHAKE


def test_cookie_replies_have_a_limit_at_all_times(admission):
    reply = b"\3\0\0\0" + bytes(60)
    found = [admission.judge(reply, place(), START) for _ in range(100)]
    assert found.count(ADMIT_HANDSHAKE) == 5


def test_replies_to_no_message_of_ours_take_nothing_from_that_limit():
    tables = SharedTables.create(1, 4, 64)
    admission = Admission(tables)
    admission.set_keys(KEY, COOKIE_KEY)
    slot, index = tables.keypairs.reserve(0)

    def reply(number):
        return b"\3\0\0\0" + number.to_bytes(4, "little") + bytes(56)

    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as ours, socket.socket(
            socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        ours.bind(("::1", 0))

        def receive(*messages):
            for message in messages:
                sender.sendto(message, ours.getsockname())
            return [data for data, _, _ in admission.receive(ours.fileno(), START)[1]]

        for _ in range(10):
            assert receive(*(reply(index ^ 1 << 31 ^ n) for n in range(20))) == []
        assert verdicts(admission) == {"DROP_UNEXPECTED_COOKIE": 200}
        assert receive(reply(index)) == [reply(index)]
        tables.keypairs.retire(slot)
        tables.retired.reclaim()
        assert receive(reply(index), reply(0)) == []
    tables.close()


def test_receive_takes_trains_apart(admission):
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as ours, \
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as theirs:
        ours.bind(("::1", 0))
        ours.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        ours.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        theirs.bind(("::1", 0))
        first, second = initiation(), initiation()
        theirs.sendmsg([first + second], [(socket.IPPROTO_UDP, 103, (148).to_bytes(2, "little"))],
                       0, ours.getsockname())
        theirs.sendto(bytes(10), ours.getsockname())
        received, admitted, passed_on = admission.receive(ours.fileno(), START)
        assert received == 2 and not passed_on
        assert [data for data, _, _ in admitted] == [first, second]
        _, sockaddr, source_address = admitted[0]
        assert Endpoint.from_sockaddr(sockaddr).port == theirs.getsockname()[1]
        assert source_address == ip_address("::1").packed and source_address != NO_SOURCE_ADDRESS
        assert admission.receive(ours.fileno(), START) == (0, [], ())
    assert verdicts(admission) == {"DROP_MALFORMED_HANDSHAKE": 1}


def test_cookies_are_sent_from_the_address_that_was_asked(admission):
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as ours, \
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as theirs:
        for sock in (ours, theirs):
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        ours.bind(("::", 0))
        ours.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        theirs.bind(("::ffff:127.0.0.1", 0))
        theirs.settimeout(5)
        admission.declare_overload(START + SECOND)
        flood(admission, lambda n: f"10.{n >> 8}.{n & 255}.1", 50)
        message = initiation()
        theirs.sendto(message, ("::ffff:127.0.0.77", ours.getsockname()[1]))
        assert admission.receive(ours.fileno(), START) == (1, [], set())
        data, where = theirs.recvfrom(100)
    assert where[0] == "::ffff:127.0.0.77"
    assert cookie.open_reply(COOKIE_KEY, cookie.mac1_of(message), wire.parse(data)) is not None
    assert verdicts(admission) == {"SENT_COOKIE_REPLY": 1}


@given(st.binary(max_size=200), st.booleans())
def test_no_datagram_breaks_it(data, is_overloaded):
    admission = Admission()
    admission.set_keys(KEY, COOKIE_KEY)
    if is_overloaded:
        admission.declare_overload(START + SECOND)
    with_macs = cookie.add_macs(data, KEY) if len(data) >= wire.MACS_LEN else data
    for message in (data, with_macs):
        assert admission.judge(message, place(), START) in (
            None, ADMIT_HANDSHAKE, ADMIT_TRANSPORT, SENT_COOKIE_REPLY)
