"""Any text as a configuration file, and any configuration as text."""

from __future__ import annotations

import re
from ipaddress import ip_interface, ip_network

from fastpump.config import file as config_file
from fastpump.config.file_emit import emit
from fastpump.config.model import PeerConfig
from fastpump.config.options import OPTIONS, PEER_OPTIONS
from fastpump.errors import ConfigError
from fastpump.protocol import keys
from fuzz.common import mutated, telling
from fuzz.ratelimit import random_limits
from fuzz.uapi import random_prefix

FILE_KEY = keys.encode(bytes(range(32)))
FILE_VALUES = {
    "Address": ["10.9.0.1/24", "fd00::1/64, 10.9.0.5", "10.9.0.1", "10.9.0.1/33", ","],
    "DNS": ["10.9.0.53 fd00::53,corp.example", "~lab", "~", "1.2.3", "::1%1", "a..b"],
    "MTU": ["1400", "", "576", "65000", "575", "0x578", "1e3", "٣٠٠٠"],
    "Table": ["auto", "off", "", "0x100", "main", "4294967295", "0", "²", "-1", "OFF"],
    "Queues": ["4", "0", "256", "257"],
    "Pin": ["true", "False", "", "yes"],
    "BusyPoll": ["50", "0", "1000001"],
    "Latency": ["low", "balanced", "throughput", "", "Low", "50"],
    "DSCP": ["copy", "46", "COPY", "64", "-1", ""],
    "Offload": ["tso4=off, gro=off", "gro=on", "gro", "x=on", ""],
    "Transport": ["auto", "wireguard", "lanes", "", "wg"],
    "Cipher": ["auto", "aes-256-gcm", "chacha20-poly1305", "aes", ""],
    "RateLimit": ["tx=1gbit,burst=10mb", "rx.ops.size=5,rx.ops.refill-time=7", "", "off", "@/x",
                  '{"rx_rate_limiter": {"ops": {"size": 9, "refill_time": 8}}}', "[]", "tx=1"],
    "Mode": ["tap", "tun", "TAP", ""],
    "Bridge": ["br0", "", "a b", "..", "sixteen-letters-"],
    "Attach": ["eth1, tap0", "", "tap0", "a/b"],
    "AttachMode": ["bridge", "tc", ""],
    "MACAddress": ["02:00:00:00:00:01", "02-00-00-00-00-0A", "", "01:00:00:00:00:00", "02:00"],
    "Relay": ["true", "FALSE", "1"],
    "MacAgeing": ["60", "300", "9", "86401"],
    "MacLimit": ["16", "4096", "0"],
    "BridgeVlans": ["2-4094", "7", "1", "0", "4095", "9-8", "2-", "-"],
    "MacTable": ["1048576", "32768", "1048577"],
    "StormLimit": ["100", "off", "0", "10000", "-1"],
    "ResolveEvery": ["30", "off", "4", "86400"],
    "Gateway": ["forward, nat, mss", "nat:eth0", "nat", "nat:", "mss:eth0", "all", "nat:a#b"],
    "KillSwitch": ["on", "off", "TRUE", "", "1"],
    "KillSwitchAllow": ["192.168.7.0/24, fd07::/64", "0.0.0.0/0", "192.168.7.1", "", "a", "::/129"],
    "EndpointDNS": ["192.0.2.53, 2001:db8::53", "fe80::53%eth0", "192.0.2.53:53", "", "a.b"],
    "SaveConfig": ["TRUE", "false"],
    "PreUp": ["true", "", "iptables -A FORWARD -i %i -j ACCEPT; echo a=b", "[x]", "\v", "="],
    "PostUp": ["echo \u2028 two", "a # b"], "PreDown": ["\x85"], "PostDown": [" x\t"],
    "ListenPort": ["51820", "0", "65536", "0o17", "1_0"],
    "FwMark": ["0xCA6C", "off", "0", "4294967296"],
    "PrivateKey": [FILE_KEY, keys.encode(bytes(32)), FILE_KEY[:-1], FILE_KEY + "=", ""],
    "PublicKey": [keys.encode(bytes([n]) * 32) for n in range(1, 4)] + [FILE_KEY[::-1]],
    "PresharedKey": [FILE_KEY, keys.encode(bytes(32)), "x"],
    "AllowedIPs": ["10.1.2.3/16,fd01::/48,192.0.2.1", "", "+10.3.0.0/16, -fd01::/48",
                   "0.0.0.0/0, ::/0", "10.0.0.0/8", "10.1.2.3/255.255.0.0",
                   "10.0.0.0/0.255.255.255", "::/129", "1%1"],
    "Endpoint": ["[2001:DB8::1]:51820", "vpn.example.org:1", "192.0.2.1:65535", "[fe80::1%2]:1",
                 "::1:1", "a:0", "[a]:1", "b\u00fccher.example:1", "[]:1"],
    "PersistentKeepalive": ["25", "OFF", "0", "65536", "0x19"],
}


INTERFACE_NAMES = [option.key for option in OPTIONS if option.key]
PEER_NAMES = [option.key for option in PEER_OPTIONS]


def random_file(rng):
    """The text of a file: mostly good lines, in sections that are mostly theirs."""
    lines = []
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        is_peer = bool(lines) and rng.random() < 0.9
        lines.append(rng.choice(("[Peer]", "[peer ] # x", " [ PEER]")) if is_peer
                     else rng.choice(("[Interface]", "[INTERFACE]\r")))
        names = PEER_NAMES if is_peer else INTERFACE_NAMES
        if is_peer and rng.random() < 0.95:
            lines.append(f"PublicKey = {rng.choice(FILE_VALUES['PublicKey'])}")
        for name in rng.choices(names, k=rng.randrange(7)):
            values = FILE_VALUES[name]
            value = values[0] if rng.random() < 0.6 else rng.choice(values)
            lines.append(rng.choice((f"{name} = {value}", f"{name.lower()}={value}",
                                     f"\t{name.upper()}\t=\t{value}\r",
                                     f"{name} = {value}#{name}")))
    if rng.random() < 0.2:
        rng.shuffle(lines)
    return "\n".join(lines) + rng.choice(("\n", ""))


def check_conffile_text(text):
    """It is read, and then survives being written; or there is a complaint about a line."""
    try:
        config = config_file.parse(text, "wg0.conf")
    except ConfigError as error:
        place = re.match(r"wg0\.conf:([1-9][0-9]*): .", str(error), re.DOTALL)
        assert place is not None and int(place[1]) <= text.count("\n") + 1, str(error)
        return
    tunnel = config.tunnel
    assert tunnel.mode == "tun" or not any(peer.allowed_ips for peer in tunnel.peers)
    for warning in config.warnings:
        assert re.match(r"wg0\.conf:[1-9][0-9]*: ", warning)
    networks = [network for peer in tunnel.peers for network in peer.allowed_ips]
    assert len(set(networks)) == len(networks)
    assert len({peer.public_key for peer in tunnel.peers}) == len(tunnel.peers)
    assert "private_key=" not in repr(config) and "preshared_key=" not in repr(config)
    again = config_file.parse(emit(config), "again.conf")
    assert again == config and again.warnings == ()


def random_config(rng):
    """A FileConfig that a file can hold."""
    def some(values):
        return tuple(dict.fromkeys(rng.choices(values, k=rng.randrange(4))))

    def perhaps(*values):
        return rng.choice((None, *values))

    hooks = ["true", "echo a=b", "echo '[x]'", "iptables -A x; y && z", "a # b"]
    publics = rng.sample(range(1, 256), rng.randrange(4))
    prefixes = list(dict.fromkeys(random_prefix(rng)[1] for _ in range(8)))
    mode = rng.choice(("tun", "tun", "tap"))
    if mode == "tap":
        prefixes = []
    table = "auto" if mode == "tap" else rng.choice(("auto", "off", "main", "1", "4294967295"))
    closes = mode == "tun" and table != "off" and rng.random() < 0.5
    peers = tuple(PeerConfig(
        bytes([number]) * 32, some([("192.0.2.1", 1), ("2001:db8::1", 65535), ("a.b", 9)]),
        tuple(prefixes[place::4]), perhaps(bytes([number ^ 1 or 2]) * 32),
        rng.choice((0, 25, 65535)), random_limits(rng)) for place, number in enumerate(publics))
    return config_file.FileConfig().having(
        private_key=perhaps(rng.randbytes(31) + b"\x01"), listen_port=perhaps(0, 51820, 65535),
        fwmark=rng.choice((0, 1, 2 ** 32 - 1)),
        addresses=some([ip_interface(text) for text in ("10.9.0.1/24", "fd00::1/64", "::/0")]),
        dns=some(["10.9.0.53", "fd00::53", "corp.example", "~lab", "~"]),
        mtu=perhaps(576, 65000),
        table=table, kill_switch=closes,
        kill_switch_allow=some([ip_network("192.168.7.0/24"), ip_network("fd07::/64")])
        if closes else (),
        endpoint_dns=some(["192.0.2.53", "2001:db8::53", "fe80::53%eth0"]) if closes else (),
        pre_up=some(hooks), post_up=some(hooks), pre_down=some(hooks), post_down=some(hooks),
        save_config=rng.random() < 0.5, peers=peers, queues=perhaps(1, 256),
        pin=rng.random() < 0.5, busy_poll_us=rng.choice((0, 1, 1_000_000)),
        dscp=rng.choice((0, 63, "copy")),
        latency=rng.choice(("low", "balanced", "throughput")),
        offloads=dict(rng.choices((("gro", True), ("gro", False), ("tso4", False)),
                                  k=rng.randrange(3))),
        resolve_every_s=rng.choice((0, 5, 86400)), rate_limits=random_limits(rng), mode=mode,
        gateway=some(["forward", "nat:eth0", "nat:eth1.7", "mss"]),
        bridge=perhaps("br0"), attach=some(["eth1", "tap0"]),
        attach_mode=rng.choice(("bridge", "tc")), mac=perhaps(b"\x02" + rng.randbytes(5)),
        relay=rng.random() < 0.5, mac_ageing_s=rng.choice((10, 300, 86400)),
        mac_limit=rng.choice((1, 4096)), mac_table=rng.choice((1, 32768, 1 << 20)),
        storm_limit=rng.choice((0, 10_000, 10_000_000)))


def check_conffile(rng):
    """No text breaks the parser; what was read or made is written and read again."""
    if rng.random() < 0.15:
        config = random_config(rng)
        with telling([config]):
            text = emit(config)
            assert config_file.parse(text, "wg0.conf") == config
    else:
        text = random_file(rng)
    inputs = [text]
    with telling(inputs):
        check_conffile_text(text)
        for _ in range(rng.randrange(3)):
            data = mutated(rng, text.encode())
            inputs.append(data.decode("utf-8", "surrogateescape"))
            check_conffile_text(inputs[-1])
