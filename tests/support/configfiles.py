"""A configuration file that says everything, and short words for what tests expect of files."""

from __future__ import annotations

import ipaddress

from fastpump import ratelimit
from fastpump.config.file import FileConfig
from fastpump.config.model import PeerConfig
from fastpump.protocol import keys

PRIVATE, PSK = bytes(range(1, 33)), bytes(range(2, 34))
A, B, C = (bytes([n]) * 32 for n in (0xA1, 0xB1, 0xC1))
ZEROS = keys.encode(bytes(32))
KEY, SECRET = keys.encode(A), keys.encode(PRIVATE)

WHOLE = f"""\
# of the gateway
[interface]
ADDRESS = 10.9.0.1/24, fd00::1/64\t10.9.0.5
Address=10.9.1.1/24
dns = 10.9.0.53 fd00::53,corp.example
DNS = ~lab
MTU = 1400
Table = 0x100
Queues = 4
Pin = True
BusyPoll = 50
Offload = tso4=off, gro=off
Offload = gro=on
ResolveEvery = 30
ratelimit = TX=1gbit, burst=10mb
Gateway = forward
Gateway = nat:eth0, mss
SaveConfig = TRUE
PreUp = true
PostUp = iptables -A FORWARD -i %i -j ACCEPT; echo a=b  # the shell's
PostUp = echo two
PreDown = echo "[three]"
PostDown =
ListenPort = 51820
FwMark = 0xCA6C
PrivateKey = {SECRET}

[Peer] # the office
PublicKey = {KEY}
PresharedKey = {keys.encode(PSK)}
AllowedIPs = 10.1.2.3/16,fd01::/48, 192.0.2.1
AllowedIPs = 10.2.0.0/16
Endpoint = [2001:DB8::1]:51820
PersistentKeepalive = 25
RateLimit = both-ops=1000
[ PEER ]
publickey={keys.encode(B)}
presharedkey={ZEROS}
endpoint=vpn.example.org:1
persistentkeepalive=OFF\r
"""


def file_peer(public_key, preshared_key=None, endpoint=None, allowed_ips=(), keepalive_s=0,
              rate_limits="off", endpoints=()):
    return PeerConfig(public_key, (endpoint,) if endpoint else endpoints, allowed_ips,
                      preshared_key, keepalive_s, ratelimit.parse(rate_limits))


def file_of(**values):
    """A file that says these, by the names of the options."""
    return FileConfig().having(**values)


def networks(*texts):
    return tuple(map(ipaddress.ip_network, texts))


def public(key):
    return f"PublicKey = {keys.encode(key)}\n"
