"""The peers of a configuration file: several sections of one, and whose an allowed IP is."""

import re

import pytest

from fastpump.config.file import parse, tunnel_config
from fastpump.config.file_emit import emit
from fastpump.errors import ConfigError
from fastpump.protocol import keys
from support.configfiles import PRIVATE, PSK, SECRET, ZEROS, A, B, C, file_peer, networks, public


def test_our_own_key_is_no_peer():
    """So that one file can serve all sides."""
    own = f"PublicKey = {keys.encode(keys.public_of(PRIVATE))}\n"
    file = parse(f"[Interface]\nPrivateKey = {SECRET}\n[Peer]\n{own}[Peer]\n{public(A)}", "w.conf")
    assert tunnel_config("wg0", file).peers == (file_peer(A),)


def test_allowed_ips_of_a_tap_are_dropped_with_a_warning():
    """Wherever Mode stands; and nobody loses one to anybody."""
    peers = (f"[Peer]\n{public(A)}\nAllowedIPs = 10.0.0.0/8\nRateLimit = tx=1gbit\n"
             f"[Peer]\n{public(B)}AllowedIPs = 10.0.0.0/8, ::/0\n")
    config = parse(peers + "[Interface]\nMode = tap\n", "vms.conf")
    assert config.tunnel.peers == (file_peer(A, rate_limits="tx=1gbit"), file_peer(B))
    assert config.warnings == ("vms.conf:4: AllowedIPs have no effect with Mode = tap: frames "
                               "go where their MAC address was learned",)
    assert parse(emit(config), "again.conf").warnings == ()
    without = re.sub("AllowedIPs.*", "", peers)
    assert parse(without + "[Interface]\nMode = tap\n", "vms.conf").warnings == ()
    with pytest.raises(ConfigError, match="allowed IP"):
        parse(peers.replace("::/0", "x") + "[Interface]\nMode = tap\n", "vms.conf")


def test_a_peer_in_two_sections_is_one():
    first = (f"[Peer]\n{public(A)}PresharedKey = {keys.encode(PSK)}\nEndpoint = a:1\n"
             "PersistentKeepalive = 9\nAllowedIPs = 10.0.0.0/8, fd00::/8\nRateLimit = tx=1gbit\n")
    between = f"[Peer]\n{public(B)}"
    cases = [
        ("AllowedIPs = 10.1.0.0/16\n",
         file_peer(A, PSK, ("a", 1), networks("10.1.0.0/16"), 9, "tx=1gbit")),
        # wg always replaces the allowed IPs
        ("", file_peer(A, PSK, ("a", 1), (), 9, "tx=1gbit")),
        (f"PresharedKey = {ZEROS}\nEndpoint = b:2\nPersistentKeepalive = off\nRateLimit = off\n"
         "AllowedIPs = 10.0.0.0/8\n", file_peer(A, None, ("b", 2), networks("10.0.0.0/8"), 0)),
    ]
    for lines, merged in cases:
        config = parse(f"{first}{between}[Peer]\n{public(A)}{lines}", "wg0.conf")
        assert config.tunnel.peers == (merged, file_peer(B))
        (warning,) = config.warnings
        assert re.match(r"wg0\.conf:10: the peer \S+ already has a \[Peer\] on line 1;", warning)


def test_an_allowed_ip_goes_to_the_peer_that_named_it_last():
    config = parse(f"[Peer]\n{public(A)}AllowedIPs = 10.0.0.0/8, fd00::/8\n"
                   f"[Peer]\n{public(B)}\nAllowedIPs = 10.0.0.1/8, 10.0.0.0/16\n"
                   f"[Peer]\n{public(C)}AllowedIPs = 10.0.0.0/8\n", "wg0.conf")
    assert [peer.allowed_ips for peer in config.tunnel.peers] == [
        networks("fd00::/8"), networks("10.0.0.0/16"), networks("10.0.0.0/8")]
    first, second = config.warnings
    assert re.match(r"wg0\.conf:7: the allowed IPs 10\.0\.0\.0/8 .* line 3;", first)
    assert re.match(r"wg0\.conf:10: the allowed IPs 10\.0\.0\.0/8 .* line 7;", second)
    again = parse(emit(config), "again.conf")
    assert again == config
    assert again.warnings == ()


def test_allowed_ips_move_section_by_section():
    """As the kernel takes them: what a replaced section once had is nobody's loss."""
    config = parse(f"[Peer]\n{public(A)}AllowedIPs = 10.0.0.0/8\n"
                   f"[Peer]\n{public(B)}AllowedIPs = 10.0.0.0/8\n"
                   f"[Peer]\n{public(A)}AllowedIPs = fd00::/8\n"
                   f"[Peer]\n{public(B)}AllowedIPs = 10.1.0.0/16\n"
                   f"[Peer]\n{public(C)}AllowedIPs = 10.0.0.0/8\n", "wg0.conf")
    assert config.tunnel.peers == (file_peer(A, allowed_ips=networks("fd00::/8")),
                            file_peer(B, allowed_ips=networks("10.1.0.0/16")),
                            file_peer(C, allowed_ips=networks("10.0.0.0/8")))
    assert len(config.warnings) == 3        # line 6, and the peers on 7 and 10


def test_many_peers():
    text = "[Interface]\n" + "".join(
        f"[Peer]\n{public(n.to_bytes(32, 'little'))}AllowedIPs = 10.{n >> 8}.{n & 255}.0/24\n"
        for n in range(1, 10001))
    config = parse(text, "wg0.conf")
    assert len(config.tunnel.peers) == 10000
    assert config.warnings == ()
    assert parse(emit(config), "wg0.conf") == config


def test_signs_change_the_allowed_ips_of_an_earlier_section():
    first = f"[Peer]\n{public(A)}AllowedIPs = 10.0.0.0/8, 11.0.0.0/8\n"
    for lines, merged in (
            ("+12.0.0.0/8", ["10.0.0.0/8", "11.0.0.0/8", "12.0.0.0/8"]),
            ("12.0.0.0/8, -10.0.0.0/8", ["11.0.0.0/8", "12.0.0.0/8"]),
            ("+12.0.0.0/8\nAllowedIPs = 13.0.0.0/8", ["12.0.0.0/8", "13.0.0.0/8"]),
            ("13.0.0.0/8\nAllowedIPs = -11.0.0.0/8", ["10.0.0.0/8", "13.0.0.0/8"])):
        config = parse(f"{first}[Peer]\n{public(A)}AllowedIPs = {lines}\n", "wg0.conf")
        assert config.tunnel.peers == (file_peer(A, allowed_ips=networks(*merged)),)
        assert len(config.warnings) == 1
    loses = f"[Peer]\n{public(B)}AllowedIPs = -10.0.0.0/8\n"     # not what is another's
    config = parse(first + loses, "wg0.conf")
    assert config.tunnel.peers == (
        file_peer(A, allowed_ips=networks("10.0.0.0/8", "11.0.0.0/8")), file_peer(B))
    assert config.warnings == ()
