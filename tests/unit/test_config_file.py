"""Texts of configuration files: what wg-quick takes is taken, and complaints say where and what."""

import ipaddress
import re
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastpump import ratelimit
from fastpump.config import file as config_file
from fastpump.config.file import FileConfig, parse, tunnel_config
from fastpump.config.file_emit import emit
from fastpump.config.options import OPTIONS, PEER_OPTIONS
from fastpump.errors import ConfigError
from fastpump.protocol import keys
from support.configfiles import (
    KEY,
    PRIVATE,
    PSK,
    SECRET,
    WHOLE,
    ZEROS,
    A,
    B,
    file_of,
    file_peer,
    networks,
    public,
)

TAP = """\
[Interface]
Mode = tap
Bridge = br0
Attach = eth1, tap0
AttachMode = tc
MACAddress = 02:00:00:00:00:0a
Relay = true
MacAgeing = 60
MacLimit = 16
MacTable = 1024
StormLimit = off
"""


def interfaces(*texts):
    return tuple(map(ipaddress.ip_interface, texts))


def test_a_whole_file():
    config = parse(WHOLE, "wg0.conf")
    assert config == file_of(
        private_key=PRIVATE, listen_port=51820, fwmark=0xCA6C,
        addresses=interfaces("10.9.0.1/24", "fd00::1/64", "10.9.0.5/32", "10.9.1.1/24"),
        dns=("10.9.0.53", "fd00::53", "corp.example", "~lab"), mtu=1400,
        table="256", pre_up=("true",),
        post_up=("iptables -A FORWARD -i %i -j ACCEPT; echo a=b  # the shell's", "echo two"),
        pre_down=('echo "[three]"',), post_down=(), save_config=True,
        peers=(file_peer(A, PSK, ("2001:DB8::1", 51820),
                        networks("10.1.0.0/16", "fd01::/48", "192.0.2.1/32", "10.2.0.0/16"), 25,
                        "both-ops=1k"),
               file_peer(B, None, ("vpn.example.org", 1), (), 0)),
        queues=4, pin=True, busy_poll_us=50, offloads={"tso4": False, "gro": True},
        resolve_every_s=30, rate_limits=ratelimit.parse("tx=1gbit,burst=10mb"),
        gateway=("forward", "nat:eth0", "mss"))
    assert config.dns_servers == ("10.9.0.53", "fd00::53")
    assert config.dns_search == ("corp.example", "~lab")
    assert config.warnings == ()
    assert SECRET not in repr(config)
    assert repr(PRIVATE) not in repr(config)
    assert repr(PSK) not in repr(config)


def test_the_text_that_is_written():
    assert emit(parse(WHOLE, "wg0.conf")) == f"""\
[Interface]
Address = 10.9.0.1/24
Address = fd00::1/64
Address = 10.9.0.5/32
Address = 10.9.1.1/24
DNS = 10.9.0.53, fd00::53, corp.example, ~lab
MTU = 1400
Table = 256
Queues = 4
Pin = true
BusyPoll = 50
Offload = tso4=off, gro=on
ResolveEvery = 30
RateLimit = tx=1gbit,burst=10mb
Gateway = forward, nat:eth0, mss
SaveConfig = true
PreUp = true
PostUp = iptables -A FORWARD -i %i -j ACCEPT; echo a=b  # the shell's
PostUp = echo two
PreDown = echo "[three]"
ListenPort = 51820
FwMark = 0xca6c
PrivateKey = {SECRET}

[Peer]
PublicKey = {KEY}
PresharedKey = {keys.encode(PSK)}
AllowedIPs = 10.1.0.0/16, fd01::/48, 192.0.2.1/32, 10.2.0.0/16
Endpoint = [2001:DB8::1]:51820
PersistentKeepalive = 25
RateLimit = both-ops=1k

[Peer]
PublicKey = {keys.encode(B)}
Endpoint = vpn.example.org:1
"""


def test_defaults_are_not_written():
    for text in ("", "[Interface]", "\n# nothing\n[Interface]\n\n"):
        assert parse(text, "wg0.conf") == FileConfig()
    assert emit(FileConfig()) == "[Interface]\n"


INTERFACE = [
    ("FwMark = off", {}), ("FwMark = 51820", {"fwmark": 51820}),
    ("FwMark = 0xffffffff", {"fwmark": 2 ** 32 - 1}), ("FwMark = 0", {}),
    ("ListenPort = 0", {"listen_port": 0}), ("ListenPort = 65535", {"listen_port": 65535}),
    ("MTU = 576", {"mtu": 576}), ("MTU = 65521", {"mtu": 65521}),
    ("MTU = 1400\nMTU =", {}), ("MTU = 1400\nMTU = 1300", {"mtu": 1300}),
    ("Table =", {}), ("Table = auto", {}), ("Table = off", {"table": "off"}),
    ("Table = main", {"table": "main"}), ("Table = 1", {"table": "1"}),
    ("Table = 4294967295", {"table": "4294967295"}), ("Table = vpn_2-x", {"table": "vpn_2-x"}),
    ("Address =", {}), ("DNS = ,", {}),
    ("Address = fd00::1", {"addresses": interfaces("fd00::1/128")}),
    ("Address = 10.0.0.1/8 10.0.0.1/8", {"addresses": interfaces("10.0.0.1/8")}),
    ("DNS = fe80::1%eth0", {"dns": ("fe80::1%eth0",)}),
    ("DNS = 1.1.1.1,a.example,1.1.1.1", {"dns": ("1.1.1.1", "a.example")}),
    ("DNS = ~", {"dns": ("~",)}),
    ("SaveConfig = true\nSaveConfig = false", {}), ("Pin = false", {}),
    ("Queues = 1", {"queues": 1}), ("Queues = 256", {"queues": 256}),
    ("DSCP = Copy", {"dscp": "copy"}), ("DSCP = 46", {"dscp": 46}),
    ("BusyPoll = 1000000", {"busy_poll_us": 1_000_000}), ("BusyPoll = 0", {}),
    ("ResolveEvery = off", {}), ("ResolveEvery = 5", {"resolve_every_s": 5}),
    ("ResolveEvery = 86400", {"resolve_every_s": 86400}),
    (f"PrivateKey = {ZEROS}", {}),
    ("PreUp = a\n[Interface]\nPreUp = b", {"pre_up": ("a", "b")}),
    ("PostDown =", {}), ("PostDown = # nothing", {"post_down": ("# nothing",)}),
    ("postup\t=  iptables -m comment --comment 'vpn #1' -j ACCEPT \r",
     {"post_up": ("iptables -m comment --comment 'vpn #1' -j ACCEPT",)}),
    ("PreDown = echo ${x#y} a=b", {"pre_down": ("echo ${x#y} a=b",)}),
    ("# PostUp = a", {}), ("MTU = 0x58C", {"mtu": 1420}), ("MTU = 0X58c # PostUp =", {"mtu": 1420}),
    ("Listen Port = 0051 820", {"listen_port": 51820}), ("FwMark = 010", {"fwmark": 10}),
    ("FwMark = o f f", {}), ("FwMark = 0xca 6c", {"fwmark": 0xca6c}),
    (f"Private Key = {SECRET[:20]} {SECRET[20:]}", {"private_key": PRIVATE}),
    ("Queues = 010", {"queues": 10}),
    ("Address = 10.0.0.2/255.255.255.0", {"addresses": interfaces("10.0.0.2/24")}),
    ("  ListenPort=1#", {"listen_port": 1}),
    ("RateLimit =", {}), ("RateLimit = off", {}),
    ("RateLimit = rx=1gbit\nRateLimit = tx-ops=9", {"rate_limits": ratelimit.parse("tx-ops=9")}),
    ('RateLimit = {"rx_rate_limiter": {"ops": {"size": 9, "refill_time": 7}}}',
     {"rate_limits": ratelimit.parse("rx.ops.size=9,rx.ops.refill-time=7")}),
    ("Mode = tun", {}), ("Mode = tap", {"mode": "tap"}),
    ("Bridge = br0\nBridge =", {}), ("Bridge = a.b-c", {"bridge": "a.b-c"}),
    ("Attach =", {}), ("Attach = b a\nAttach = c,a", {"attach": ("b", "a", "c")}),
    ("AttachMode = bridge", {}), ("AttachMode = tc", {"attach_mode": "tc"}),
    ("MACAddress =", {}), ("MACAddress = FE-00-00-00-00-0A", {"mac": b"\xfe\0\0\0\0\x0a"}),
    ("Relay = false", {}), ("Relay = TRUE", {"relay": True}),
    ("MacAgeing = 300", {}), ("MacAgeing = 86400", {"mac_ageing_s": 86400}),
    ("MacLimit = 4096", {}), ("MacLimit = 1", {"mac_limit": 1}),
    ("MacTable = 32768", {}), ("MacTable = 1048576", {"mac_table": 1 << 20}),
    ("StormLimit = 10000", {}), ("StormLimit = off", {"storm_limit": 0}),
    ("StormLimit = 10000000", {"storm_limit": 10_000_000}),
]


@pytest.mark.parametrize(("lines", "fields"), INTERFACE, ids=[line for line, _ in INTERFACE])
def test_values_of_the_interface(lines, fields):
    config = parse("[Interface]\n" + lines, "wg0.conf")
    assert config == file_of(**fields)
    assert parse(emit(config), "again.conf") == config


PEER = [
    ("PersistentKeepalive = 0", {}), ("PersistentKeepalive = Off", {}),
    ("PersistentKeepalive = 65535", {"keepalive_s": 65535}),
    ("PersistentKeepalive = 9\nPersistentKeepalive = off", {}),
    ("AllowedIPs = 0.0.0.0/0,::/0", {"allowed_ips": networks("0.0.0.0/0", "::/0")}),
    ("AllowedIPs = 10.0.0.1/8, 10.0.0.2/8", {"allowed_ips": networks("10.0.0.0/8")}),
    ("Allowed IPs = 1 0.0.0.0/00 8", {"allowed_ips": networks("10.0.0.0/8")}),
    ("AllowedIPs = +10.0.0.0/8, -10.0.0.0/8, + fd00::1", {"allowed_ips": networks("fd00::1")}),
    ("AllowedIPs = -10.0.0.0/8\nAllowedIPs = 10.0.0.0/8",
     {"allowed_ips": networks("10.0.0.0/8")}),
    ("PersistentKeepalive = 025", {"keepalive_s": 25}),
    ("Persistent Keepalive = " + "0" * 5000 + "2 5", {"keepalive_s": 25}),
    ("Endpoint = vpn . example . com : 051820", {"endpoint": ("vpn.example.com", 51820)}),
    ("Endpoint = [2001:db8::1] : 1", {"endpoint": ("2001:db8::1", 1)}),
    ("Endpoint = [fe80::1%eth0]:5", {"endpoint": ("fe80::1%eth0", 5)}),
    ("Endpoint = [192.0.2.1]:5", {"endpoint": ("192.0.2.1", 5)}),
    ("Endpoint = a:1\nEndpoint = b-c.d_e:65535",
     {"endpoints": (("a", 1), ("b-c.d_e", 65535))}),
    (f"PresharedKey = {KEY}\nPresharedKey = {ZEROS}", {}),
    ("RateLimit = both=1gbit,burst=1mb", {"rate_limits": "both=1gbit,burst=1mb"}),
    ("RateLimit = tx=1gbit\nRateLimit =", {}),
]


@pytest.mark.parametrize(("lines", "fields"), PEER, ids=[line for line, _ in PEER])
def test_values_of_a_peer(lines, fields):
    config = parse(f"[Peer]\n{public(A)}{lines}", "wg0.conf")
    assert config == file_of(peers=(file_peer(A, **fields),))
    assert parse(emit(config), "again.conf") == config


BAD = [
    ("ListenPort = 1", 1, r"in no section: must follow \[Interface\] or \[Peer\]"),
    ("\n[Tunnel]", 2, r"must be \[Interface\] or \[Peer\]"),
    ("[Peer", 1, r"must be \[Interface\] or \[Peer\]"),
    ("[", 1, r"must be \[Interface\] or \[Peer\]"),
    ("[Interface]\n\nhello", 3, "KEY = VALUE"),
    ("[Interface]\n; old style", 2, "KEY = VALUE"),
    (f"[Interface]\nPrivateKey {SECRET}", 2,
     r"there is no '=' behind PrivateKey: must be PrivateKey = VALUE$"),
    ("[Interface]\n listenport: 5", 2, "there is no '=' behind ListenPort: must be ListenPort ="),
    ("[Peer]\nEndpoint\ta.example=1", 2, "there is no '=' behind Endpoint: must be"),
    ("[Interface]\nPostUp", 2, "there is no '=' behind PostUp: must be PostUp = VALUE"),
    ("[Peer]\nPublicKey = abc", 2, "invalid public key: .* as `fastpump pubkey` prints them"),
    ("[Peer]\nPresharedKey = abc", 2, "preshared key: .* as `fastpump genpsk` prints them"),
    ("[Interface]\nPrivateKey = abc", 2, "private key: .* as `fastpump genkey` prints them"),
    ("[Interface]\nPostUp = a\0b", 2, "must be text"),
    ("[Interface]\nAdress = 10.0.0.1/8", 2,
     r"unknown key 'Adress' in \[Interface\] \(did you mean Address\?\): must be one of Address, "
     "DNS, .*PrivateKey$"),
    ("[Interface]\nColour = red", 2, r"unknown key 'Colour' in \[Interface\]: must be one of"),
    ("[Interface]\n= red", 2, r"unknown key in \[Interface\]: must be one of Address"),
    ("[Interface]\nAllowedIPs = ::/0", 2, r"AllowedIPs does not belong in \[Interface\]"),
    ("[Peer]\npostup = true", 2, r"PostUp does not belong in \[Peer\].*AllowedIPs"),
    ("[Peer]\nEndpiont = a:1", 2, r"\(did you mean Endpoint\?\): must be one of PublicKey"),
    ("[Interface]\nAddress = 10.0.0.1/33", 2, "must be ADDRESS/PREFIXLEN"),
    ("[Interface]\nDNS = 1.1.1", 2, "IP address of a server, or a search domain"),
    ("[Interface]\nDNS = a;b", 2, "or a search domain"),
    ("[Interface]\nDNS = ::g", 2, "or a search domain"),
    ("[Interface]\nMTU = 575", 2, "must be 576 to 65521"),
    ("[Interface]\nTable = 0", 2, "must be 1 to 4294967295, or auto, off"),
    ("[Interface]\nTable = 0x1ffffffff", 2, "must be 1 to 4294967295"),
    ("[Interface]\nTable = Main", 2, r"auto, off, a number \(1 to 4294967295\), or a name"),
    ("[Interface]\nTable = -1", 2, "invalid routing table"),
    ("[Interface]\nSaveConfig = yes", 2, "must be true or false"),
    ("[Interface]\nPin =", 2, "must be true or false"),
    ("[Interface]\nListenPort = 65536", 2, "must be 0 to 65535$"),
    ("[Interface]\nListenPort = off", 2, r"must be 0 to 65535 \(in decimal\)$"),
    ("[Interface]\nFwMark = 0x100000000", 2, "must be 0 to 4294967295, or off"),
    ("[Interface]\nPrivateKey = abc", 2, "invalid private key: must be 44 characters"),
    ("[Interface]\nMTU = 1_420", 2, r"576 to 65521 \(in decimal without leading zeros, or "),
    ("[Interface]\nMTU = 01420", 2, "without leading zeros"),
    ("[Interface]\nMTU = 0o2614", 2, "invalid MTU"),
    ("[Interface]\nMTU = \u0661\u0664\u0662\u0660", 2, "invalid MTU"),
    ("[Interface]\nMTU = \u00a01420", 2, "invalid MTU"),
    ("[Interface]\nTable = 0123", 2, "without leading zeros.*, or auto, off, or the name"),
    ("[Interface]\nTable = \u0661", 2, "invalid routing table"),
    ("[Interface]\nListenPort = 0x10", 2, r"must be 0 to 65535 \(in decimal\)"),
    ("[Interface]\nListenPort = +5", 2, "invalid UDP port"),
    ("[Interface]\nFwMark = 0XCA6C", 2, r"or off \(in decimal, or in hexadecimal with 0x\)"),
    ("[Interface]\nFwMark = 0x_1", 2, "invalid firewall mark"),
    ("[Interface]\nQueues = 1_0", 2, "invalid number of queues"),
    ("[Interface]\nAddress = 10.0.0.3/0.0.0.255", 2, "must be ADDRESS/PREFIXLEN"),
    ("[Interface]\nAddress = 10.0.0.5/030", 2, "without leading zeros"),
    ("[Interface]\nAdd ress = 10.0.0.5/8", 2, "unknown key"),
    ("[Interface]\nPost#Up = true", 2, "must be KEY = VALUE"),
    ("[Interface]\nFwMar\u212a = 1", 2, "unknown key"),
    ("[Interface]\x1c", 1, "unknown section"), ("\u00a0[Peer]", 1, "must be KEY = VALUE"),
    ("[Peer]\nAllowedIPs =", 2, "invalid allowed IP ''"),
    ("[Peer]\nAllowedIPs = 10.0.0.0/8,", 2, "invalid allowed IP ''"),
    ("[Peer]\nAllowedIPs = 10.0.0.1 10.0.0.2", 2, "invalid allowed IP '10.0.0.110.0.0.2'"),
    ("[Peer]\nAllowedIPs = 10.0.0.0/255.0.0.0", 2, "the length must be decimal"),
    ("[Peer]\nAllowedIPs = 10.0.0.0/0.0.0.255", 2, "the length must be decimal"),
    ("[Peer]\nAllowedIPs = +-10.0.0.0/8", 2, "invalid allowed IP '-10.0.0.0/8'"),
    ("[Peer]\nPersistentKeepalive = 0x19", 2, r"must be 0 to 65535, or off \(in decimal\)"),
    ("[Peer]\nEndpoint = http://host:51820", 2, "invalid endpoint host 'http://host': .*not a URL"),
    ("[Peer]\nEndpoint = 2001:db8::1", 2, "invalid endpoint host '2001:db8:'"),
    ("[Peer]\nEndpoint = 192.0.2.1:domain", 2, "HOST:PORT"),
    ("[Interface]\nQueues = 0", 2, "must be 1 to 256"), ("[Interface]\nQueues = 257", 2, "to 256"),
    ("[Interface]\nBusyPoll = 1000001", 2, "must be 0 to 1000000"),
    ("[Interface]\nDSCP = 64", 2, "must be 0 to 63, or copy"),
    ("[Interface]\nOffload = tso4", 2, "must be NAME=on or NAME=off"),
    ("[Interface]\nResolveEvery = 4", 2, "must be 5 to 86400, or off"),
    ("[Interface]\nResolveEvery = 86401", 2, "must be 5 to 86400"),
    ("[Interface]\nRateLimit = fast", 2, "invalid rate limit .*: must be off, or items like "),
    ("[Interface]\nRateLimit = @/etc/passwd", 2, "must be its text, in one line"),
    ("[Interface]\nRateLimit = {", 2, "invalid JSON"),
    ("[Peer]\nRateLimit = tx=0bit", 2, "invalid rate .*: must be at least 8bit"),
    ("[Interface]\nMode = TAP", 2, "must be tun or tap"),
    ("[Interface]\nBridge = a b", 2, "invalid interface name"),
    ("[Interface]\nAttach = eth1, a/b", 2, "invalid interface name"),
    ("[Interface]\nAttachMode =", 2, "must be bridge or tc"),
    ("[Interface]\nMACAddress = 01:00:00:00:00:00", 2, "must be six bytes like "),
    ("[Interface]\nRelay = yes", 2, "must be true or false"),
    ("[Interface]\nMacAgeing = 9", 2, "must be 10 to 86400"),
    ("[Interface]\nMacLimit = 0", 2, "must be 1 to 1048576"),
    ("[Interface]\nMacTable = off", 2, "must be 1 to 1048576"),
    ("[Interface]\nStormLimit = 10000001", 2, "must be 0 to 10000000, or off"),
    ("[Peer]\nMode = tap", 2, r"Mode does not belong in \[Peer\]"),
    ("[Interface]\n\n[Peer]\nAllowedIPs = ::/0\n", 3, "must contain PublicKey = KEY"),
    (f"[Peer]\n[Peer]\n{public(A)}", 1, "must contain PublicKey = KEY"),
    ("[Peer]\nPublicKey =", 2, "invalid public key: must be"),
    ("[Peer]\nPresharedKey = x", 2, "invalid preshared key: must be"),
    ("[Peer]\nAllowedIPs = 10.0.0.0/8, x", 2, "invalid allowed IP .*: must be ADDRESS/PREFIXLEN"),
    ("[Peer]\nEndpoint = a", 2, "HOST:PORT"), ("[Peer]\nEndpoint =", 2, "HOST:PORT"),
    ("[Peer]\nEndpoint = a\u00a0b:1", 2, "invalid endpoint host"),
    ("[Peer]\nEndpoint = [[a]]:1", 2, "HOST:PORT"),
    ("[Peer]\nEndpoint = [a:b]:1", 2, "or an IPv6 address"),
    ("[Peer]\nPersistentKeepalive = 65536", 2, "must be 0 to 65535, or off"),
]


@pytest.mark.parametrize(("text", "line", "complaint"), BAD, ids=[text for text, _, _ in BAD])
def test_complaints_say_where_and_what_is_expected(text, line, complaint):
    with pytest.raises(ConfigError, match=complaint) as caught:
        parse(text, "wg0.conf")
    assert str(caught.value).startswith(f"wg0.conf:{line}: ")


@pytest.mark.parametrize("line", [SECRET, f"PrivateKey {SECRET}", f"PrivateKey: {SECRET}",
                                  f"PrivateKey = {SECRET}x", f"PrivateKey = x = {SECRET}"])
def test_no_complaint_repeats_a_key(line):
    with pytest.raises(ConfigError) as caught:
        parse(f"[Interface]\n{line}\n", "wg0.conf")
    assert SECRET[:20] not in str(caught.value)


def test_every_key_of_the_tables_is_known():
    for section, options in (("Interface", OPTIONS), ("Peer", PEER_OPTIONS)):
        for key in filter(None, (option.key for option in options)):
            try:
                parse(f"[{section}]\n{key.upper()} = !", "wg0.conf")
            except ConfigError as error:
                assert "unknown key" not in str(error)


def test_the_tunnel_of_a_file():
    file = parse(WHOLE, "wg0.conf")
    config = tunnel_config("wg0", file)
    assert config == replace(file.tunnel, name="wg0", keeps_key=False)
    assert tunnel_config("wg1", FileConfig()).listen_port == 0      # any free one
    with pytest.raises(ConfigError, match="is for Ethernet"):
        tunnel_config("wg0", parse("[Interface]\nRelay = true", "wg0.conf"))


def test_all_of_a_tap():
    config = parse(TAP, "vms.conf")
    assert config == file_of(
        mode="tap", bridge="br0", attach=("eth1", "tap0"), attach_mode="tc",
        mac=b"\2\0\0\0\0\x0a", relay=True, mac_ageing_s=60, mac_limit=16, mac_table=1024,
        storm_limit=0)
    assert emit(config) == TAP


def test_a_table_of_a_tap_gets_a_warning():
    """Wherever Mode stands: it may be a habit."""
    for table in ("off", "7"):
        config = parse(f"[Interface]\nTable = {table}\nMode = tap\n", "vms.conf")
        assert config.warnings == ("vms.conf:2: Table has no effect with Mode = tap: no routes are "
                                   "added",)
    for lines in ("Table = auto\nMode = tap", "Mode = tap\nTable =", "Table = off"):
        assert parse(f"[Interface]\n{lines}\n", "vms.conf").warnings == ()


def test_a_cipher_of_lanes_without_lanes():
    file = parse("[Interface]\nTransport = wireguard\nCipher = aes-256-gcm\n", "wg0.conf")
    with pytest.raises(ConfigError) as caught:
        tunnel_config("wg0", file)
    assert str(caught.value) == ("wg0.conf:3: Cipher = aes-256-gcm is for lanes, which Transport = "
                                 "wireguard disables; leave out one of them")


def test_an_ipv6_endpoint_needs_no_brackets_but_gets_a_warning():
    for text, host in (("2001:db8::1:51820", "2001:db8::1"), (":::51820", "::"),
                       ("::ffff:192.0.2.1:51820", "::ffff:192.0.2.1"),
                       ("fe80::1%lo:51820", "fe80::1%lo")):
        config = parse(f"[Peer]\n{public(A)}Endpoint = {text}", "wg0.conf")
        assert config.tunnel.peers == (file_peer(A, endpoint=(host, 51820)),)
        assert config.warnings == (f"wg0.conf:3: this endpoint is read as [{host}]:51820; write "
                                   "IPv6 addresses in brackets",)
        assert parse(emit(config), "again.conf").warnings == ()


def test_warnings_do_not_make_files_different():
    assert FileConfig(warnings=("odd",)) == FileConfig()


@pytest.mark.parametrize("fields", [{"post_up": ("a\nPrivateKey = b",)}, {"table": "a # b"},
                                    {"table": "a\0b"}, {"dns": ("a\nPin = true",)}])
def test_what_cannot_be_read_again_is_not_written(fields):
    with pytest.raises(ValueError, match="one line"):
        emit(file_of(**fields))


def check_text(text):
    """It is read, and then survives being written; or there is a complaint."""
    try:
        config = parse(text, "wg0.conf")
    except ConfigError as error:
        assert re.match(r"wg0\.conf:[1-9][0-9]*: .* must ", str(error), re.DOTALL)
        return
    again = parse(emit(config), "again.conf")
    assert again == config
    assert again.warnings == ()


@given(st.text(max_size=200))
@example("[Interface]\nPostUp = a\x0b\u2028b\r\x85")
def test_no_text_breaks_the_parser(text):
    check_text(text)


@given(st.sampled_from([*config_file.INTERFACE_KEYS, *config_file.PEER_KEYS]),
       st.text(max_size=40) | st.text("0123456789abcfx.:/[]%~-+=, on", max_size=30))
def test_no_value_breaks_the_parser(key, value):
    section = f"[Peer]\n{public(A)}" if key in config_file.PEER_KEYS else "[Interface]\n"
    check_text(f"{section}{key} = {value}\n")


MUTATIONS = st.lists(st.tuples(
    st.integers(0, len(WHOLE)), st.integers(0, 6),
    st.text(max_size=3) | st.sampled_from([
        "\n", "#", "=", "[Peer]\n", "[Interface]\n", public(A), "AllowedIPs = 10.2.0.0/16\n",
        "Endpoint = h:1\n", "0", ",", " ", "\0", "\r"])), max_size=4)


@given(MUTATIONS, st.permutations(range(4)), st.booleans())
def test_no_mutation_breaks_the_parser(mutations, order, shuffled):
    text = WHOLE
    for start, length, put in mutations:
        text = text[:start] + put + text[start + length:]
    if shuffled:
        quarter = len(text) // 4 + 1
        text = "".join(text[n * quarter:(n + 1) * quarter] for n in order)
    check_text(text)
