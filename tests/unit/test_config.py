"""What the operator types: accepted forms, and complaints that say what is expected."""

import ipaddress
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpump import ratelimit
from fastpump.config import command_line, model, parsers
from fastpump.config import file as config_file
from fastpump.config.options import named
from fastpump.conn.endpoint import Endpoint, split_host_port
from fastpump.errors import ConfigError
from fastpump.protocol import keys

KEY = keys.encode(bytes(range(32)))


def network(text):
    return ipaddress.ip_network(text)


def test_a_whole_peer(tmp_path):
    psk = tmp_path / "psk"
    psk.touch(mode=0o600)
    psk.write_text(KEY + "\n")
    peer = command_line.parse_peer(f"{KEY}@[2001:db8::1]:51820,allowed-ips=10.0.0.1/8+fd00::/64,"
                             f"psk={psk},keepalive=25")
    assert peer == model.PeerConfig(
        bytes(range(32)), (("2001:db8::1", 51820),), (network("10.0.0.0/8"), network("fd00::/64")),
        bytes(range(32)), 25)
    assert KEY not in repr(peer)


def test_a_key_file_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "key"
    path.write_text(KEY)
    for mode in (0o644, 0o640, 0o604):
        path.chmod(mode)
        with pytest.raises(ConfigError, match="chmod 600"):
            keys.read_file(path, "private key")
    path.chmod(0o400)
    assert keys.read_file(path, "private key") == bytes(range(32))


def test_only_of_a_key_it_is_said_that_others_can_read_it():
    with pytest.raises(ConfigError) as caught:
        keys.read_file(Path("/etc/passwd"), "private key")
    assert str(caught.value) == ("invalid private key in /etc/passwd: must be 44 characters of "
                                 "base64, as `fastpump genkey` prints them")


@pytest.mark.parametrize("secret", [KEY, KEY[:-1], "/" + KEY[1:]])
def test_a_key_in_place_of_its_file_is_not_repeated(secret):
    for parse in (lambda text: keys.read_file(Path(text), "private key"),
                  lambda text: command_line.parse_peer(f"{KEY},psk={text}")):
        with pytest.raises(ConfigError, match="key is given itself: must be the name of a "
                                              "file") as caught:
            parse(secret)
        assert secret[5:] not in str(caught.value)
    for parse in (lambda text: command_line.parse_rate_limit(f"@{text}"), config_file.find,
                  lambda text: command_line.parse_peer(f"{KEY},psk:{text}"),
                  command_line.parse_rate_limit, split_host_port):
        with pytest.raises(ConfigError) as caught:
            parse(secret)
        assert secret[5:] not in str(caught.value)


def test_strange_key_files_are_refused(tmp_path):
    (tmp_path / "big").touch(mode=0o600)
    (tmp_path / "big").write_bytes(b"\xff" * 100000)
    os.mkfifo(tmp_path / "fifo", 0o600)
    for name in ("big", "fifo", ".", "missing"):
        with pytest.raises(ConfigError):
            keys.read_file(tmp_path / name, "private key")


def test_a_kept_key_is_made_once(tmp_path):
    first = keys.load_or_create(tmp_path / "state" / "fp0.key")
    assert keys.load_or_create(tmp_path / "state" / "fp0.key") == first
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["fp0.key"]


def test_combinations_that_cannot_be():
    address = ipaddress.ip_interface
    same = (network("10.0.0.0/8"),)
    cases = [
        ({"name": "../evil"}, "invalid interface name"),
        ({"addresses": (address("10.0.0.1/8"), address("10.0.0.1/8"))}, "twice"),
        ({"addresses": (address("fd00::1/64"),), "mtu": 1279}, "1280"),
        ({"mtu": 65001}, "over 65000 is for Ethernet only"),
        ({"bridge": "br0"}, "--bridge is for Ethernet, .* add --tap"),
        ({"attach": ("eth1",)}, "--attach is for"),
        ({"attach_mode": "tc"}, "--attach-mode"), ({"mac": bytes(6)}, "--mac "),
        ({"mode": "tap", "gateway": ("mss",)}, "--gateway is for IP packets, but --tap"),
        ({"gateway": ("nat", "nat:a")}, "--gateway nat is for all ways out"),
        ({"relay": True}, "--relay"), ({"mac_ageing_s": 10}, "--mac-ageing"),
        ({"mac_limit": 1}, "--mac-limit"), ({"mac_table": 1}, "--mac-table"),
        ({"storm_limit": 0}, "--storm-limit"),
        ({"mode": "tap", "transport": "wireguard"}, "Ethernet frames need lanes"),
        ({"transport": "wireguard", "cipher": "aes-256-gcm"},
         "--cipher aes-256-gcm is for lanes, which --transport wireguard disables"),
        ({"transport": "wireguard", "offloads": {"partial": True}}, "--offload partial=on is for"),
        ({"transport": "wireguard", "offloads": {"bundle": True}}, "--offload bundle=on is for"),
        ({"mode": "tap", "routes": False}, "--no-routes has no effect with --tap"),
        ({"mode": "tap", "bridge": "a b"}, "invalid interface name"),
        ({"mode": "tap", "attach": ("eth1", "")}, "invalid interface name"),
        ({"mode": "tap", "addresses": (address("fd00::1/64"),), "mtu": 1279}, "1280"),
        ({"mode": "tap", "peers": (model.PeerConfig(bytes(32), allowed_ips=same),)},
         "allowed IPs have no effect with --tap"),
        ({"peers": (model.PeerConfig(bytes(32), allowed_ips=same),
                    model.PeerConfig(bytes(range(32)), allowed_ips=same))}, "two peers"),
    ]
    for fields, complaint in cases:
        with pytest.raises(ConfigError, match=complaint):
            model.check(model.TunnelConfig(**fields))
    for good in ({"addresses": (address("fd00::1/64"),), "mtu": 1280},
                 {"addresses": (address("fd00::1/64"),)}, {"mtu": 65000},
                 {"transport": "wireguard", "cipher": "auto", "routes": False,
                  "offloads": {"bundle": False, "partial": False, "tso4": True}},
                 {"transport": "lanes", "cipher": "aes-256-gcm", "offloads": {"bundle": True}},
                 {"mode": "tap"}, {"mode": "tap", "mtu": 65521, "transport": "lanes"},
                 {"mode": "tap", "bridge": "br0", "attach": ("eth1",), "attach_mode": "tc",
                  "mac": bytes(6), "relay": True, "mac_ageing_s": 10, "mac_limit": 1,
                  "mac_table": 1, "storm_limit": 0}):
        model.check(model.TunnelConfig(**good))
    with pytest.raises(ConfigError, match="no allowed IPs"):
        command_line.with_default_allowed_ips(model.TunnelConfig(
            peers=(model.PeerConfig(bytes(32)),), addresses=(address("10.0.0.1/32"),)))


def test_a_bare_peer():
    assert command_line.parse_peer(KEY) == model.PeerConfig(bytes(range(32)))
    assert command_line.parse_peer(f"{KEY},keepalive=off").keepalive_s == 0
    assert command_line.parse_peer(f"{KEY},allowed-ips=").allowed_ips == ()
    assert command_line.parse_peer(f"{KEY}@host.example:1").endpoints == (("host.example", 1),)


@pytest.mark.parametrize("spec", [
    f"{KEY}@a.example:1,endpoint=[2001:db8::1]:2,keepalive=5,endpoint=192.0.2.1:3",
    f"{KEY},endpoint=a.example:1,endpoint=[2001:db8::1]:2,endpoint=192.0.2.1:3"])
def test_a_peer_with_several_endpoints(spec):
    assert command_line.parse_peer(spec).endpoints == (
        ("a.example", 1), ("2001:db8::1", 2), ("192.0.2.1", 3))


BAD_PEERS = [
    ("", "invalid public key of a peer"), ("abc", "public key"), (KEY[:-1], "public key"),
    (KEY[:-2] + "9=", "public key"),
    (f"{KEY}@host", "HOST:PORT"), (f"{KEY}@:1", "HOST:PORT"), (f"{KEY}@h:0", "1 to 65535"),
    (f"{KEY},endpoint=", "HOST:PORT"), (f"{KEY},endpoint=a..b:1", "invalid endpoint host"),
    (f"{KEY}@{'a' * 64}.net:1", "invalid endpoint host"), (f"{KEY}@1.2.3.256:1", "must be a name"),
    (f"{KEY}@{'a.' * 127}a:1", "endpoint host"), (f"{KEY}@a.5:1", "endpoint host"),
    (f"{KEY}@h:65536", "1 to 65535"), (f"{KEY}@http://h:5", "not a URL"),
    (f"{KEY}@h:\u0663", "HOST:PORT"), (f"{KEY}@h:{'1' * 5000}", "HOST:PORT"),
    (f"{KEY},keepalive=65536", "0 to 65535"), (f"{KEY},keepalive=x", "0 to 65535"),
    (f"{KEY},keepalive=2_5", "in decimal"),
    (f"{KEY},allowed-ips=10.0.0.0/0.0.0.255", "decimal"),
    (f"{KEY},allowed-ips=10.0.0.0/33", "allowed IP"),
    (f"{KEY},allowed-ips=fe80::%lo/64", "scope"), (f"{KEY},allowed-ips=x", "allowed IP"),
    (f"{KEY},psk=/nonexistent", "cannot be read"), (f"{KEY},psk", "invalid peer option"),
    (f"{KEY},color=red", "invalid peer option"), (f"{KEY},keepalive=1,keepalive=2", "twice"),
]


@pytest.mark.parametrize(("spec", "complaint"), BAD_PEERS,
                         ids=[spec[-20:] for spec, _ in BAD_PEERS])
def test_bad_peers(spec, complaint):
    with pytest.raises(ConfigError, match=complaint):
        command_line.parse_peer(spec)


@given(st.text(max_size=80))
def test_no_text_breaks_the_parsers(text):
    for parse in (command_line.parse_peer, parsers.parse_address, parsers.parse_network,
                  parsers.parse_offload, split_host_port, parsers.parse_mac,
                  *(named(name).value.parse for name in ("mtu", "mode", "attach_mode",
                                                         "storm_limit")),
                  command_line.parse_rate_limit, lambda text: command_line.parse_limit([text])):
        try:
            parse(text)
        except ConfigError as error:
            assert str(error)


@pytest.mark.parametrize(("text", "mac"), [
    ("02:00:00:00:00:01", "020000000001"), ("FE-ff-00-0a-0B-ff", "feff000a0bff")])
def test_mac_addresses(text, mac):
    assert parsers.parse_mac(text) == bytes.fromhex(mac)


@pytest.mark.parametrize("text", [
    "", "02:00:00:00:00", "02:00:00:00:00:01:02", "02:00:00-00:00:01", "0200.0000.0001",
    "2:0:0:0:0:1", "00:00:00:00:00:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff",
    "02:00:00:00:00:0g", "02:00:00:00:00:01\n", "02:00:00:00:00:0\u0661"])
def test_what_is_no_mac_address_of_an_interface(text):
    with pytest.raises(ConfigError, match="six bytes like"):
        parsers.parse_mac(text)


@pytest.mark.parametrize(("text", "vlans"), [
    ("1", (1, 1)), ("4094", (4094, 4094)), ("2-4094", (2, 4094)), ("7-7", (7, 7))])
def test_a_vlan_or_a_range_of_them(text, vlans):
    assert parsers.parse_vlans(text) == vlans
    assert parsers.parse_vlans(parsers.emit_vlans(vlans)) == vlans


@pytest.mark.parametrize("text", [
    "", "0", "4095", "9-2", "2-", "-2", "2-9-11", "2- 9", "0x2", "2,9", "a", "2-4095", "\u0662"])
def test_what_is_no_vlan(text):
    with pytest.raises(ConfigError, match="1 to 4094, or a range"):
        parsers.parse_vlans(text)


LIMITS = ratelimit.parse("tx=1gbit")
JSON = '{"tx_rate_limiter": {"ops": {"size": 5, "refill_time": 9}}}'


def test_whose_rate_limits():
    assert command_line.parse_rate_limit("tx=1gbit") == (None, LIMITS)
    assert command_line.parse_rate_limit(f"{KEY}:tx=1gbit") == (bytes(range(32)), LIMITS)
    assert command_line.parse_rate_limit(JSON) == (None, ratelimit.parse(JSON))
    assert command_line.parse_rate_limit(f"{KEY}:{JSON}") == (
        bytes(range(32)), ratelimit.parse(JSON))
    for bad, complaint in (("x", "items like"), (f"{KEY}:x", "items like"), (f"{KEY}:", "items"),
                           ("x:tx=1gbit", "before the colon"), (":off", "before the colon"),
                           (KEY, "items like"), ("@a:b", "cannot read")):
        with pytest.raises(ConfigError, match=complaint):
            command_line.parse_rate_limit(bad)


def test_the_words_of_the_limit_command():
    key = bytes(range(32))
    for words, meaning in (([], (None, None)), (["tx=1gbit"], (None, LIMITS)),
                           (["off"], (None, ratelimit.NO_LIMITS)), ([KEY], (key, None)),
                           ([KEY, "tx=1gbit"], (key, LIMITS))):
        assert command_line.parse_limit(words) == meaning
    for bad, complaint in ((["x"], "items like"), (["x", "off"], "public key"),
                           ([KEY, KEY], "items like"), ([KEY, "off", "off"], "too many arguments")):
        with pytest.raises(ConfigError, match=complaint):
            command_line.parse_limit(bad)


def test_rate_limits_go_to_the_interface_and_to_peers():
    one, two = model.PeerConfig(bytes(32)), model.PeerConfig(bytes(range(32)))
    plain = model.TunnelConfig(peers=(one, two))
    assert command_line.with_rate_limits(plain, []) == plain
    limited = command_line.with_rate_limits(plain, [(bytes(range(32)), LIMITS), (None, LIMITS)])
    assert limited == replace(plain, rate_limits=LIMITS,
                              peers=(one, replace(two, rate_limits=LIMITS)))
    for said, complaint in (([(None, LIMITS)] * 2, "twice for the interface"),
                            ([(bytes(32), LIMITS)] * 2, "twice for the peer AAAA"),
                            ([(b"\1" * 32, LIMITS)], "the peer AQEB.*, but no --peer")):
        with pytest.raises(ConfigError, match=complaint):
            command_line.with_rate_limits(plain, said)


def test_default_allowed_ips():
    peer, other = model.PeerConfig(bytes(32)), model.PeerConfig(bytes(range(32)))
    addresses = tuple(map(ipaddress.ip_interface, ("10.9.0.1/24", "fd00::1/64", "10.9.0.5/24")))

    def fill(*peers, addresses=addresses):
        return command_line.with_default_allowed_ips(
            model.TunnelConfig(peers=peers, addresses=addresses)).peers

    (filled,) = fill(peer)
    assert filled.allowed_ips == (network("10.9.0.0/24"), network("fd00::/64"))
    assert fill() == ()
    frames = model.TunnelConfig(mode="tap", peers=(peer, other), addresses=addresses)
    assert command_line.with_default_allowed_ips(frames) == frames
    with pytest.raises(ConfigError, match="several peers"):
        fill(peer, other)
    with pytest.raises(ConfigError, match="no allowed IPs"):
        fill(peer, addresses=())


@pytest.mark.parametrize("text", ["192.0.2.1:51820", "[2001:db8::1]:1", "[fe80::1%3]:65535"])
def test_endpoints_survive_the_way_through_sockaddr(text):
    import socket
    host, port = split_host_port(text)
    address, _, scope = host.partition("%")
    endpoint = Endpoint(ipaddress.ip_address(address), port, int(scope or 0))
    assert str(endpoint) == text
    assert Endpoint.from_sockaddr(endpoint.sockaddr(socket.AF_INET6)) == endpoint
    assert Endpoint.from_python(endpoint.to_python(socket.AF_INET6)) == endpoint
    if endpoint.address.version == 4:
        padded = endpoint.sockaddr(socket.AF_INET).ljust(28, b"\0")
        assert Endpoint.from_sockaddr(padded) == endpoint
    else:
        with pytest.raises(ConfigError, match="IPv6"):
            endpoint.sockaddr(socket.AF_INET)
