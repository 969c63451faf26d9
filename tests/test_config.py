"""What the operator types: accepted forms, and complaints that say what is expected."""

import ipaddress
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpump import config, keys
from fastpump.endpoint import Endpoint, split_host_port
from fastpump.errors import ConfigError

KEY = keys.encode(bytes(range(32)))


def network(text):
    return ipaddress.ip_network(text)


def test_a_whole_peer(tmp_path):
    psk = tmp_path / "psk"
    psk.touch(mode=0o600)
    psk.write_text(KEY + "\n")
    peer = config.parse_peer(f"{KEY}@[2001:db8::1]:51820,allowed-ips=10.0.0.1/8+fd00::/64,"
                             f"psk={psk},keepalive=25")
    assert peer == config.PeerConfig(
        bytes(range(32)), ("2001:db8::1", 51820), (network("10.0.0.0/8"), network("fd00::/64")),
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
        ({"name": "../evil"}, "no interface name"),
        ({"addresses": (address("10.0.0.1/8"), address("10.0.0.1/8"))}, "twice"),
        ({"addresses": (address("fd00::1/64"),), "mtu": 1279}, "1280"),
        ({"peers": (config.PeerConfig(bytes(32), allowed_ips=same),
                    config.PeerConfig(bytes(range(32)), allowed_ips=same))}, "two peers"),
    ]
    for fields, complaint in cases:
        with pytest.raises(ConfigError, match=complaint):
            config.check(config.TunnelConfig(**fields))
    config.check(config.TunnelConfig(addresses=(address("fd00::1/64"),), mtu=1280))
    with pytest.raises(ConfigError, match="no allowed IPs"):
        config.with_default_allowed_ips(config.TunnelConfig(
            peers=(config.PeerConfig(bytes(32)),), addresses=(address("10.0.0.1/32"),)))


def test_a_bare_peer():
    assert config.parse_peer(KEY) == config.PeerConfig(bytes(range(32)))
    assert config.parse_peer(f"{KEY},keepalive=off").keepalive_s == 0
    assert config.parse_peer(f"{KEY},allowed-ips=").allowed_ips == ()
    assert config.parse_peer(f"{KEY}@host.example:1").endpoint == ("host.example", 1)


BAD_PEERS = [
    ("", "public key is not a key"), ("abc", "public key"), (KEY[:-1], "public key"),
    (KEY[:-2] + "9=", "public key"),
    (f"{KEY}@host", "HOST:PORT"), (f"{KEY}@:1", "HOST:PORT"), (f"{KEY}@h:0", "1 to 65535"),
    (f"{KEY}@h:65536", "1 to 65535"), (f"{KEY}@::1:5", r"\[ADDRESS\]:PORT"),
    (f"{KEY}@h:\u0663", "HOST:PORT"), (f"{KEY}@h:{'1' * 5000}", "HOST:PORT"),
    (f"{KEY},keepalive=65536", "0 to 65535"), (f"{KEY},keepalive=x", "0 to 65535"),
    (f"{KEY},allowed-ips=10.0.0.0/33", "allowed IP"),
    (f"{KEY},allowed-ips=fe80::%lo/64", "scope"), (f"{KEY},allowed-ips=x", "allowed IP"),
    (f"{KEY},psk=/nonexistent", "cannot be read"), (f"{KEY},psk", "is no peer option"),
    (f"{KEY},color=red", "is no peer option"), (f"{KEY},keepalive=1,keepalive=2", "twice"),
]


@pytest.mark.parametrize(("spec", "complaint"), BAD_PEERS,
                         ids=[spec[-20:] for spec, _ in BAD_PEERS])
def test_bad_peers(spec, complaint):
    with pytest.raises(ConfigError, match=complaint):
        config.parse_peer(spec)


@given(st.text(max_size=80))
def test_no_text_breaks_the_parsers(text):
    for parse in (config.parse_peer, config.parse_address, config.parse_network,
                  config.parse_mtu, config.parse_offload, split_host_port):
        try:
            parse(text)
        except ConfigError as error:
            assert str(error)


def test_default_allowed_ips():
    peer, other = config.PeerConfig(bytes(32)), config.PeerConfig(bytes(range(32)))
    addresses = tuple(map(ipaddress.ip_interface, ("10.9.0.1/24", "fd00::1/64", "10.9.0.5/24")))

    def fill(*peers, addresses=addresses):
        return config.with_default_allowed_ips(
            config.TunnelConfig(peers=peers, addresses=addresses)).peers

    (filled,) = fill(peer)
    assert filled.allowed_ips == (network("10.9.0.0/24"), network("fd00::/64"))
    assert fill() == ()
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
