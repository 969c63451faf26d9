"""wg's configuration protocol (wireguard.com/xplatform), over a device without sockets."""

import errno
import random
import re
import socket
import struct
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpump.conn.endpoint import NO_SOURCE_ADDRESS
from fastpump.constants import SECOND
from fastpump.ipc import uapi
from fastpump.protocol import keys
from fuzz.common import START
from fuzz.uapi import PeerModel, Target, UapiModel, check_answer, check_device, get

PRIVATE = bytes([64]) * 32
OWN = keys.public_of(PRIVATE)
A, B, C = (bytes([n]) * 32 for n in (0xA1, 0xB1, 0xC1))
PSK = bytes(range(32))


@pytest.fixture
def target():
    return Target()


def lines(text):
    """`text` with {A} and so on filled in, as a request has it."""
    names = {"A": A, "B": B, "C": C, "OWN": OWN, "PRIVATE": PRIVATE, "PSK": PSK, "ZEROS": bytes(32)}
    return re.sub(r"\{(\w+)\}", lambda found: names[found[1]].hex(), text.replace(" ", "\n"))


def ask(target, text, now=START):
    """The errno that a set of these lines is answered with."""
    answer = uapi.answer(target, f"set=1\n{lines(text)}\n\n".encode(), now)
    number = check_answer(answer)
    assert answer == f"errno={number}\n\n".encode()
    return number


def put(target, text, now=START):
    """A set that succeeds; the configuration after it."""
    assert ask(target, text, now) == 0
    return check_device(target)


def peer(*allowed, **fields):
    return PeerModel(allowed={ip_network(prefix) for prefix in allowed}, **fields)


# -- get

def test_nothing_configured(target):
    assert uapi.answer(target, b"get=1\n\n", START) == b"listen_port=0\nerrno=0\n\n"


def test_everything_configured_in_wgs_order(target):
    put(target, "private_key={PRIVATE} listen_port=51820 fwmark=7 public_key={A} "
        "preshared_key={PSK} endpoint=192.0.2.1:9 persistent_keepalive_interval=25 "
        "allowed_ip=10.0.0.0/8 public_key={B}")
    one, other = target.device.peers.values()
    one.latest_handshake_unix_ns = 12 * SECOND + 34
    target.tables.peers.record_sent(one.slot, START, 148)
    target.tables.peers.record_received(one.slot, START, 92)
    assert other.slot != one.slot
    assert uapi.answer(target, b"get=1\n\n", START).decode() == lines(
        "private_key={PRIVATE} listen_port=51820 fwmark=7 public_key={A} preshared_key={PSK} "
        "protocol_version=1 endpoint=192.0.2.1:9 last_handshake_time_sec=12 "
        "last_handshake_time_nsec=34 tx_bytes=148 rx_bytes=92 persistent_keepalive_interval=25 "
        "allowed_ip=10.0.0.0/8 public_key={B} preshared_key={ZEROS} protocol_version=1 "
        "last_handshake_time_sec=0 last_handshake_time_nsec=0 tx_bytes=0 rx_bytes=0 "
        "persistent_keepalive_interval=0 errno=0 ") + "\n"


def test_a_get_changes_nothing(target):
    put(target, "private_key={PRIVATE} public_key={A}")
    before = target.rings, target.alarm, list(target.sent)
    assert get(target) == get(target)
    assert (target.rings, target.alarm, list(target.sent)) == before


# -- set: name, requests one after the other, the peers after them

PEERS = [
    ("peers are added in order", ["public_key={A} public_key={B}", "public_key={C}"],
     {A: peer(), B: peer(), C: peer()}),
    ("peers that are not named stay", ["public_key={A} allowed_ip=10.0.0.0/8", "public_key={B}"],
     {A: peer("10.0.0.0/8"), B: peer()}),
    ("what is not said stays",
     ["public_key={A} preshared_key={PSK} endpoint=192.0.2.1:9 persistent_keepalive_interval=9",
      "public_key={A} allowed_ip=::/0"],
     {A: peer("::/0", preshared=PSK, endpoint="192.0.2.1:9", keepalive=9)}),
    ("the last of a key wins",
     ["public_key={A} endpoint=192.0.2.1:9 persistent_keepalive_interval=9 preshared_key={PSK} "
      "endpoint=192.0.2.2:8 persistent_keepalive_interval=8 preshared_key={ZEROS}"],
     {A: peer(endpoint="192.0.2.2:8", keepalive=8)}),
    ("one peer in two sections",
     ["public_key={A} allowed_ip=10.0.0.0/8 public_key={B} public_key={A} allowed_ip=::/0"],
     {A: peer("10.0.0.0/8", "::/0"), B: peer()}),
    ("replace_peers", ["public_key={A} public_key={B}", "replace_peers=true public_key={C}"],
     {C: peer()}),
    ("replace_peers keeps nothing of a peer that is named again",
     ["public_key={A} preshared_key={PSK} allowed_ip=10.0.0.0/8",
      "replace_peers=true public_key={A}"], {A: peer()}),
    ("replace_peers alone", ["public_key={A}", "replace_peers=true"], {}),
    ("remove", ["public_key={A} allowed_ip=10.0.0.0/8 public_key={B}",
                "public_key={A} remove=true"], {B: peer()}),
    ("remove wins over the rest of its section",
     ["public_key={A}", "public_key={A} remove=true allowed_ip=10.0.0.0/8 endpoint=192.0.2.1:9"],
     {}),
    ("remove nobody", ["public_key={A} remove=true allowed_ip=10.0.0.0/8"], {}),
    ("remove nobody by update_only", ["public_key={A} update_only=true remove=true"], {}),
    ("remove and add again",
     ["public_key={A} preshared_key={PSK} allowed_ip=10.0.0.0/8",
      "public_key={A} remove=true public_key={A}"], {A: peer()}),
    ("update_only makes no peer", ["public_key={A} update_only=true allowed_ip=10.0.0.0/8"], {}),
    ("update_only changes one", ["public_key={A}",
                                 "public_key={A} update_only=true allowed_ip=10.0.0.0/8"],
     {A: peer("10.0.0.0/8")}),
    ("update_only takes nothing from others when there is no peer",
     ["public_key={B} allowed_ip=10.0.0.0/8",
      "public_key={A} update_only=true allowed_ip=10.0.0.0/8"], {B: peer("10.0.0.0/8")}),
    ("allowed IPs are added", ["public_key={A} allowed_ip=10.0.0.0/8",
                               "public_key={A} allowed_ip=10.0.0.0/9 allowed_ip=10.0.0.0/8"],
     {A: peer("10.0.0.0/8", "10.0.0.0/9")}),
    ("replace_allowed_ips",
     ["public_key={A} allowed_ip=10.0.0.0/8 allowed_ip=::/0",
      "public_key={A} replace_allowed_ips=true allowed_ip=10.0.0.0/9 allowed_ip=::/0"],
     {A: peer("10.0.0.0/9", "::/0")}),
    ("replace_allowed_ips says so for the whole section",
     ["public_key={A} allowed_ip=10.0.0.0/8",
      "public_key={A} allowed_ip=10.0.0.0/9 replace_allowed_ips=true"], {A: peer("10.0.0.0/9")}),
    ("replace_allowed_ips by none", ["public_key={A} allowed_ip=10.0.0.0/8",
                                     "public_key={A} replace_allowed_ips=true"], {A: peer()}),
    ("replace_allowed_ips of one peer only",
     ["public_key={A} allowed_ip=10.0.0.0/8 public_key={B} allowed_ip=::/0",
      "public_key={A} replace_allowed_ips=true"], {A: peer(), B: peer("::/0")}),
    ("an allowed IP moves", ["public_key={A} allowed_ip=10.0.0.0/8 allowed_ip=::/0",
                             "public_key={B} allowed_ip=10.0.0.0/8"],
     {A: peer("::/0"), B: peer("10.0.0.0/8")}),
    ("an allowed IP moves back and forth in one set",
     ["public_key={A} allowed_ip=::/0 public_key={B} allowed_ip=::/0 public_key={A} "
      "allowed_ip=::/0"], {A: peer("::/0"), B: peer()}),
    ("an allowed IP is taken away", ["public_key={A} allowed_ip=10.0.0.0/8 allowed_ip=::/0",
                                     "public_key={A} allowed_ip=-10.0.0.0/8"], {A: peer("::/0")}),
    ("with host bits", ["public_key={A} allowed_ip=10.0.0.0/8",
                        "public_key={A} allowed_ip=-10.1.2.3/8"], {A: peer()}),
    ("an allowed IP is not taken from another",
     ["public_key={A} allowed_ip=10.0.0.0/8 public_key={B}",
      "public_key={B} allowed_ip=-10.0.0.0/8"],
     {A: peer("10.0.0.0/8"), B: peer()}),
    ("allowed IPs are added and taken in order",
     ["public_key={A} allowed_ip=10.0.0.0/8 allowed_ip=-10.0.0.0/8 allowed_ip=-::/0 "
      "allowed_ip=::/0"], {A: peer("::/0")}),
    ("in a replacement too",
     ["public_key={A} allowed_ip=10.0.0.0/8 allowed_ip=::/0",
      "public_key={A} replace_allowed_ips=true allowed_ip=::/0 allowed_ip=-::/0"], {A: peer()}),
    ("a plus as wg takes it", ["public_key={A} allowed_ip=+10.0.0.0/8"], {A: peer("10.0.0.0/8")}),
    ("host bits are cleared",
     ["public_key={A} allowed_ip=10.1.2.3/8 allowed_ip=fd00::1/64 allowed_ip=192.0.2.255/31 "
      "allowed_ip=1.2.3.4/0 allowed_ip=2001:db8:0:0:8000::1/65"],
     {A: peer("10.0.0.0/8", "fd00::/64", "192.0.2.254/31", "0.0.0.0/0", "2001:db8:0:0:8000::/65")}),
    ("an address alone is all of its bits", ["public_key={A} allowed_ip=10.1.2.3 allowed_ip=::1"],
     {A: peer("10.1.2.3/32", "::1/128")}),
    ("a preshared key of zeros is none", ["public_key={A} preshared_key={PSK}",
                                          "public_key={A} preshared_key={ZEROS}"], {A: peer()}),
    ("a keepalive of 0 is none",
     ["public_key={A} persistent_keepalive_interval=65535",
      "public_key={A} persistent_keepalive_interval=0"], {A: peer()}),
    ("protocol_version 1", ["public_key={A} protocol_version=1"], {A: peer()}),
    ("keys in capitals", ["public_key=" + A.hex().upper()], {A: peer()}),
    ("empty lines", ["\n\npublic_key={A}\n\nremove=true"], {}),
    ("our own public key is passed over, with all of its section",
     ["private_key={PRIVATE} public_key={B} allowed_ip=10.0.0.0/8",
      "public_key={OWN} allowed_ip=10.0.0.0/8 endpoint=192.0.2.1:9"], {B: peer("10.0.0.0/8")}),
    ("also when it comes in the same set", ["private_key={PRIVATE} public_key={OWN}"], {}),
    ("a peer that turns out to be us goes", ["public_key={OWN} allowed_ip=::/0 public_key={A}",
                                             "private_key={PRIVATE}"], {A: peer()}),
    ("without a private key it is a peer as any", ["public_key={OWN}"], {OWN: peer()}),
    ("and when we are nobody any more", ["private_key={PRIVATE}",
                                         "private_key={ZEROS} public_key={OWN}"], {OWN: peer()}),
]


@pytest.mark.parametrize(("requests", "peers"), [row[1:] for row in PEERS],
                         ids=[row[0] for row in PEERS])
def test_peers(target, requests, peers):
    for request in requests:
        found = put(target, request)
    assert found.peers == peers
    assert list(found.peers) == list(peers)


@pytest.mark.parametrize(("text", "shown", "address", "port", "scope"), [
    ("192.0.2.1:9", "192.0.2.1:9", "::ffff:192.0.2.1", 9, 0),
    ("192.0.2.1:00009", "192.0.2.1:9", "::ffff:192.0.2.1", 9, 0),
    ("[2001:DB8:0::1]:65535", "[2001:db8::1]:65535", "2001:db8::1", 65535, 0),
    ("[fe80::1%1]:9", "[fe80::1%1]:9", "fe80::1", 9, 1),
    ("[fe80::1%lo]:9", "[fe80::1%1]:9", "fe80::1", 9, 1),
])
def test_endpoints(target, text, shown, address, port, scope):
    assert put(target, f"public_key={{A}} endpoint={text}").peers[A].endpoint == shown
    sockaddr, source_address = target.tables.peers.endpoint(target.device.peers[A].slot)
    assert struct.unpack("=H2sI16sI", sockaddr) == (
        socket.AF_INET6, port.to_bytes(2, "big"), 0, ip_address(address).packed, scope)
    assert source_address == NO_SOURCE_ADDRESS
    assert put(target, f"public_key={{A}} endpoint={shown}").peers[A].endpoint == shown


def test_an_ipv6_endpoint_on_a_host_without_it_is_told():
    target = Target(family=socket.AF_INET)
    assert ask(target, "public_key={A} endpoint=[2001:db8::1]:9") == -errno.EAFNOSUPPORT
    assert put(target, "public_key={A} endpoint=192.0.2.1:9").peers[A].endpoint == "192.0.2.1:9"


def test_the_interface(target):
    cases = [
        ("private_key={PRIVATE}", {"private": PRIVATE}), ("listen_port=51820", {"port": 51820}),
        ("fwmark=4294967295", {"fwmark": 2 ** 32 - 1}),
        ("fwmark=1 listen_port=65535 fwmark=0", {"fwmark": 0, "port": 65535}),
        ("listen_port=0", {"port": Target.ANY_PORT}), ("fwmark=5", {"fwmark": 5}),
        ("private_key={ZEROS}", {"private": bytes(32)}), ("", {}),
    ]
    expected = UapiModel()
    for text, changes in cases:
        for name, value in changes.items():
            setattr(expected, name, value)
        assert put(target, text) == expected
    assert b"private_key" not in uapi.answer(target, b"get=1\n\n", START)


def test_a_preshared_key_is_not_a_reason_to_drop_the_session(target):
    put(target, "private_key={PRIVATE} public_key={A}")
    same = target.device.peers[A]
    put(target, "private_key={PRIVATE} public_key={A} preshared_key={PSK} endpoint=192.0.2.1:9")
    assert target.device.peers[A] is same and same.preshared_key == PSK


def test_keepalives_begin_at_once_and_go_on(target):
    put(target, "private_key={PRIVATE} public_key={A} endpoint=192.0.2.1:9 "
        "persistent_keepalive_interval=25")
    assert target.device.next_deadline() == START
    target.device.tick(START)
    assert target.kinds == [1]
    target.sent.clear()
    put(target, "public_key={A} persistent_keepalive_interval=0")
    target.device.peers[A].timers.forget_session()
    target.device.tick(START + 1000 * SECOND)
    assert target.sent == []


def test_saying_the_same_keepalive_again_does_not_put_it_off(target):
    """As somebody does who applies one file every few seconds."""
    put(target, "private_key={PRIVATE} public_key={A} endpoint=192.0.2.1:9 "
        "persistent_keepalive_interval=25")
    now, begin = START, len(target.sent)
    target.device.tick(now)
    target.device.peers[A].timers.forget_session()      # the try that this began
    assert len(target.sent) == begin + 1
    for _ in range(6):
        now += 10 * SECOND
        put(target, "public_key={A} persistent_keepalive_interval=25", now)
        target.device.tick(now)
    assert len(target.sent) >= begin + 2


# -- errors

ONE_KEY = "00" * 31
BAD_LINES = {
    "private_key": ["", ONE_KEY, "00" + ONE_KEY + "00", "zz" + ONE_KEY, "0x" + ONE_KEY,
                    "00\t" * 21 + "0", keys.encode(A)],
    "listen_port": ["", "65536", "-1", "+1", "0x1", "1.0", "51820,"],
    "fwmark": ["", "4294967296", "-1", "0x1", "off"],
    "replace_peers": ["", "false", "1", "True"],
    "nonsense": ["true"], "protocol_version": ["1"], "remove": ["true"], "get": ["1"], "set": ["1"],
    "PRIVATE_KEY": ["00" + ONE_KEY], "": ["true"],
}
BAD_PEER_LINES = {
    "public_key": ["", ONE_KEY, "zz" + ONE_KEY], "preshared_key": ["", ONE_KEY, "zz" + ONE_KEY],
    "persistent_keepalive_interval": ["", "65536", "-1", "off", "1s"],
    "replace_allowed_ips": ["", "false", "1"], "remove": ["", "false"],
    "update_only": ["", "false"], "protocol_version": ["", "0", "2"],
    "endpoint": ["", "192.0.2.1", "192.0.2.1:", ":9", "192.0.2.1:65536", "192.0.2.256:9",
                 "::1:9", "[::1]", "[]:9", "[::1%nosuchif0]:9", "[fe80::1%4294967296]:9",
                 "example.org:9", "192.0.2.1:9:9", "192.0.2.1%1:9"],
    "allowed_ip": ["", "-", "+", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "a/8",
                   "10.0.0.0/-1", "fe80::1%1/64", "10.0.0.0/8/8", "--10.0.0.0/8", "-+10.0.0.0/8",
                   "++10.0.0.0/8", "10.0.0.0/8,10.1.0.0/16"],
    "listen_port": ["1"], "private_key": ["00" + ONE_KEY], "replace_peers": ["true"],
    "last_handshake_time_sec": ["0"], "rx_bytes": ["0"], "errno": ["0"],
}
BAD = [f"{key}={value}" for key, values in BAD_LINES.items() for value in values] + [
    f"public_key={{B}} {key}={value}" for key, values in BAD_PEER_LINES.items()
    for value in values] + [
    "listen_port", "public_key", "public_key={A} remove", "public_key={A} allowed_ip"]


@pytest.mark.parametrize("bad", BAD)
def test_what_is_malformed_changes_nothing(target, bad):
    put(target, "private_key={PRIVATE} listen_port=5 fwmark=6 public_key={A} allowed_ip=10.0.0.0/8")
    before = get(target)
    good = ("listen_port=9 fwmark=9 replace_peers=true", "public_key={C} allowed_ip=10.0.0.0/8 "
            "public_key={A} remove=true")
    texts = [bad, f"{good[0]} {bad} {good[1]}" if not bad.startswith("public_key=")
             else f"{good[0]} {good[1]} {bad}"]
    if bad in ("protocol_version=1", "remove=true"):
        texts = [bad, f"{good[0]} {bad} {good[1]}"]     # without a peer
    for text in texts:
        assert ask(target, text) in (-errno.EINVAL, -errno.EPROTO)
        assert check_device(target) == before


@pytest.mark.parametrize("request_", [
    b"", b"\n\n", b"get=1", b"get=2\n\n", b"get=1\nlisten_port=1\n\n", b"set=2\n\n", b"set\n\n",
    b"\nget=1\n\n", b"get=1\r\n\n", b"set=1\nlisten_port=\xff\n\n", b"\0\n\n",
    b"set=1\nlisten_port=1\0\n\n", b"set=1\npublic_key=" + b"a1" * 32 + b"\nallowed_ip=1.2\0/8\n\n",
    b"set=1\npublic_key=" + b"a1" * 32 + b"\nendpoint=[fe80::1%l\0o]:9\n\n",
    b"set=1\nset=1\n\n", b"set=1\npublic_key=" + b"\xc3\xa9" * 32 + b"\n\n",
    "set=1\nlisten_port=\u0665\n\n".encode()])
def test_strange_requests_have_an_errno(target, request_):
    number = check_answer(uapi.answer(target, request_, START))
    assert number in (0, -errno.EINVAL, -errno.EPROTO)
    assert (number == 0) == (request_ == b"get=1")
    assert get(target) == UapiModel()


def test_a_refusal_does_not_show_keys(target, caplog):
    caplog.set_level("DEBUG")
    ask(target, "private_key={PRIVATE} public_key={A} preshared_key={PSK}x")
    ask(target, "private_key={PRIVATE}x")
    assert PSK.hex()[:16] not in caplog.text and PRIVATE.hex()[:16] not in caplog.text
    assert len(caplog.records) == 2


def test_a_port_that_is_taken(target):
    put(target, "private_key={PRIVATE} listen_port=5 public_key={A}")
    before = get(target)
    assert ask(target, "listen_port=7 replace_peers=true public_key={B}") == -errno.EADDRINUSE
    assert check_device(target) == before
    assert put(target, "listen_port=8").port == 8


def test_a_taken_port_leaves_us_who_we_are(target):
    """The kernel sets port and mark before the key (device.c of its netlink, wg_set_device)."""
    put(target, "private_key={PRIVATE} public_key={A}")
    assert ask(target, "private_key=" + "11" * 32 + " listen_port=7") == -errno.EADDRINUSE
    assert check_device(target).private == PRIVATE


def test_a_mark_that_the_system_refuses_is_told(target):
    """As without CAP_NET_ADMIN."""
    target.may_mark = False
    assert ask(target, "fwmark=1 public_key={A}") < 0
    assert check_device(target) == UapiModel()


# -- many

def test_many_allowed_ips():
    target = Target(nodes=1 << 18)
    prefixes = [f"allowed_ip=10.{n >> 8}.{n & 255}.0/24" for n in range(32500)] + [
        f"allowed_ip=fd00:{n:x}::/32" for n in range(32500)]
    assert ask(target, "public_key={A} " + " ".join(prefixes)) == 0
    assert len(get(target).peers[A].allowed) == 65000
    assert ask(target, "public_key={B} " + " ".join(prefixes)) == 0     # all of them move
    found = get(target)
    assert found.peers[A].allowed == set() and len(found.peers[B].allowed) == 65000
    slot = target.device.peers[B].slot
    for address in ("0a000001", "0a7ef301", "fd007ef3000000000000000000000001"):
        assert target.tables.allowed_ips.lookup(bytes.fromhex(address)) == slot
    assert ask(target, "public_key={B} replace_allowed_ips=true") == 0
    assert target.tables.allowed_ips.lookup(bytes([10, 0, 0, 1])) is None


def test_many_peers():
    target = Target(peers=16384, nodes=1 << 18)
    text = "\n".join(f"public_key={n:064x}\nallowed_ip=10.{n >> 8}.{n & 255}.0/24\n"
                     f"endpoint=192.0.2.1:{n}" for n in range(1, 10001))
    assert ask(target, text) == 0
    found = get(target)
    assert len(found.peers) == 10000
    assert list(found.peers) == [n.to_bytes(32, "big") for n in range(1, 10001)]
    assert ask(target, "replace_peers=true") == 0
    assert ask(target, text) == 0       # the slots are there again
    assert len(get(target).peers) == 10000


def test_a_full_table_of_peers(target):
    text = " ".join(f"public_key={n:064x}" for n in range(1, 30))
    assert ask(target, text) == -errno.ENOMEM
    assert len(check_device(target).peers) == 16
    assert ask(target, "public_key={A}") == -errno.ENOMEM
    assert list(put(target, "replace_peers=true public_key={A} allowed_ip=::/0").peers) == [A]


def test_a_full_table_of_allowed_ips():
    target = Target(nodes=64)
    text = " ".join(f"allowed_ip=10.0.{n}.0/24" for n in range(100))
    assert ask(target, "public_key={B} allowed_ip=::/0 public_key={A} " + text) == -errno.ENOMEM
    found = check_device(target)
    assert found.peers[B] == peer("::/0") and 20 < len(found.peers[A].allowed) < 64
    assert put(target, "public_key={A} replace_allowed_ips=true allowed_ip=10.0.0.0/24 "
               "public_key={B} allowed_ip=10.0.0.0/8").peers == {
        A: peer("10.0.0.0/24"), B: peer("::/0", "10.0.0.0/8")}


def fill(target):
    """How many prefixes of one chain (a node each) there is room for."""
    count = 0
    while ask(target, f"public_key={{A}} allowed_ip=::/{count}") == 0:
        count += 1
    assert ask(target, "public_key={A} replace_allowed_ips=true") == 0
    return count


def test_a_full_table_loses_no_nodes():
    target = Target(nodes=32)
    counts = [fill(target) for _ in range(20)]
    assert counts == counts[:1] * 20


def test_an_allowed_ip_moves_also_when_the_table_is_full():
    """That takes no memory."""
    target = Target(nodes=16)
    put(target, "public_key={B}")
    number = 0
    while ask(target, f"public_key={{A}} allowed_ip=::/{number}") == 0:
        number += 1
    assert put(target, "public_key={B} allowed_ip=::/3").peers[B] == peer("::/3")


# -- round trip

KEY = st.binary(min_size=32, max_size=32)
PREFIX = st.one_of(
    st.tuples(st.integers(0, 2 ** 32 - 1), st.integers(0, 32)).map(
        lambda pair: ip_network((pair[0] >> 32 - pair[1] << 32 - pair[1], pair[1]))),
    st.tuples(st.integers(0, 2 ** 128 - 1), st.integers(0, 128)).map(
        lambda pair: ip_network(((pair[0] >> 128 - pair[1] << 128 - pair[1]).to_bytes(16, "big"),
                                 pair[1]))))
ENDPOINT = st.tuples(st.one_of(
    st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map("[{}]".format)),
    st.integers(1, 65535)).map("{0[0]}:{0[1]}".format)
PEER = st.builds(PeerModel, KEY, st.none() | ENDPOINT, st.integers(0, 65535),
                 st.sets(PREFIX, max_size=6))
CLAMPED = KEY.map(lambda key: keys.clamp(key) if any(key) else key)
CONFIGURATION = st.builds(UapiModel, CLAMPED, st.none(),
                          st.integers(1, 65535).filter(lambda n: n != 7),
                          st.integers(0, 2 ** 32 - 1), st.dictionaries(KEY, PEER, max_size=6))


@given(CONFIGURATION, st.randoms(use_true_random=False))
def test_what_was_set_is_got(model, rng):
    target = Target()
    taken = set()
    request = ["set=1", f"private_key={model.private.hex()}", f"listen_port={model.port}",
               f"fwmark={model.fwmark}"]
    for public, said in model.peers.items():
        said.allowed -= taken
        taken |= said.allowed
        section = [f"preshared_key={said.preshared.hex()}",
                   f"persistent_keepalive_interval={said.keepalive}",
                   *[f"allowed_ip={prefix}" for prefix in said.allowed]]
        if said.endpoint is not None:
            section.append(f"endpoint={said.endpoint}")
        rng.shuffle(section)
        request += [f"public_key={public.hex()}", *section]
    request = "\n".join((*request, "", "")).encode()
    for _ in range(2):          # the second time over what is there
        assert uapi.answer(target, request, START) == b"errno=0\n\n"
        assert check_device(target) == model
    # What get says is a good set, but for what is only told.
    said = [line for line in uapi.answer(target, b"get=1\n\n", START).decode().splitlines()
            if not re.match(r"errno|last_|[rt]x_bytes|$", line)]
    other = Target()
    assert uapi.answer(other, "\n".join(("set=1", *said, "", "")).encode(), START) == b"errno=0\n\n"
    assert get(other) == model


def test_one_request_after_another(target):
    """A client's connection is a series of them, of either kind."""
    rng = random.Random(1)
    for number in range(50):
        text = rng.choice(("public_key={A}", "public_key={A} remove=true", "public_key={B} x=1",
                           f"listen_port={number + 10}"))
        assert ask(target, text) == (-errno.EINVAL if "x=1" in text else 0)
        check_device(target)
