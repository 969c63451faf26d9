"""Configuration files as people have them, ways to mangle them, and how `wg setconf` and our parser
are compared: where we differ from it on purpose."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from fastpump.protocol import keys
from support.setconf import Judge, Verdict

BLANKS = b"\t\n\v\f\r "
QUICK_KEYS = frozenset((b"address", b"mtu", b"dns", b"table", b"preup", b"predown", b"postup",
                        b"postdown", b"saveconfig"))
"""What wg-quick keeps from wg, in [Interface]."""


def _key(number: int) -> str:
    return keys.encode(bytes([number, 0xFB, 0xEF, *range(29)]))


OWN, PSK = _key(0x41), _key(0x42)
A, B, C, D = map(_key, range(0x50, 0x54))

ROAD_WARRIOR = f"""\
[Interface]
PrivateKey = {OWN}
Address = 10.8.0.2/24, fd42:42:42::2/64
DNS = 10.8.0.1, 1.1.1.1

[Peer]
PublicKey = {A}
PresharedKey = {PSK}
Endpoint = vpn.example.com:51820
AllowedIPs = 0.0.0.0/0, ::/0
PersistentKeepalive = 25
"""

PROVIDER = f"""\
[Interface]
# Device: Bold Heron
PrivateKey = {OWN}
Address = 10.64.12.7/32,fc00:bbbb:bbbb:bb01::1:c06/128
DNS = 10.64.0.1
PostUp = iptables -I OUTPUT ! -o %i -m mark ! --mark $(wg show %i fwmark) -j REJECT
PreDown = iptables -D OUTPUT ! -o %i -m mark ! --mark $(wg show %i fwmark) -j REJECT

[Peer]
PublicKey = {B}
AllowedIPs = 0.0.0.0/0,::0/0
Endpoint = 192.0.2.130:3025
"""

HUB = f"""\
[Interface]
Address = 10.200.0.1/24
SaveConfig = true
PostUp = iptables -A FORWARD -i %i -m comment --comment 'hub #1' -j ACCEPT; sysctl -q -w a.b=1
PostDown = iptables -D FORWARD -i %i -m comment --comment 'hub #1' -j ACCEPT
ListenPort = 51820
FwMark = 0xca6c
PrivateKey = {OWN}

[Peer] # laptop
PublicKey = {A}
AllowedIPs = 10.200.0.2/32

[Peer] # phone
PublicKey = {B}
PresharedKey = {PSK}
AllowedIPs = 10.200.0.3/32, fd00:200::3/128
Endpoint = 198.51.100.7:41641

# [Peer]
# PublicKey = {D}

[Peer]
PublicKey = {C}
AllowedIPs = 10.200.0.4, 192.168.44.0/24
PersistentKeepalive = off
"""

SITE = f"""\
[Interface]
ListenPort=443
PrivateKey={OWN}
MTU=1380
Table=off
Address=172.16.255.1/30

[Peer]
PublicKey={A}
AllowedIPs=172.16.255.2/32,192.168.0.1/16
AllowedIPs=10.11.12.13/8
Endpoint=gw.example.net:443
PersistentKeepalive=15
"""

ADDRESSES_OF_IPV6 = f"""\
[Interface]
PrivateKey = {OWN}
ListenPort = 0
FwMark = off
PreUp = ip -6 rule add fwmark 51820 table main # before the others

[Peer]
PublicKey = {A}
Endpoint = [2001:db8:0:0::1]:51820
AllowedIPs = 2000::/3, ::ffff:0:0/96, fe80::/10

[Peer]
PublicKey = {B}
Endpoint = six.example.com:65535
AllowedIPs = 2001:db8:1:2:3:4:5:6/56
"""

TWICE = f"""\
[Peer]
PublicKey = {A}
AllowedIPs = 10.0.0.0/8, 10.1.0.0/16
PresharedKey = {PSK}
[Interface]
ListenPort = 1000
[Peer]
PublicKey = {B}
AllowedIPs = 10.0.0.0/8
Endpoint = localhost:9
[Peer]
PublicKey = {A}
AllowedIPs = 10.2.0.0/16
PersistentKeepalive = 9
[Interface]
FwMark = 51820
PrivateKey = {OWN}
ListenPort = 2000
"""

SPLIT_TUNNEL = f"""\
  [interface]
  privatekey = {OWN}   # mine
  address = 10.5.0.9/24
  dns = 10.5.0.1, corp.example

  [peer]   # the company
  publickey = {A}
  endpoint = 203.0.113.5:51821
  allowedips = 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16
  persistentkeepalive = 21
"""

EMPTY = "# nothing yet\n[Interface]\n"

FILES = (ROAD_WARRIOR, PROVIDER, HUB, SITE, ADDRESSES_OF_IPV6, TWICE, SPLIT_TUNNEL, EMPTY)

# The same file as another editor, or another person, would have it.
LAYOUTS: tuple[Callable[[str], str], ...] = (
    str, lambda text: text.replace("\n", "\r\n"), lambda text: text.replace(" = ", "="),
    lambda text: text.replace(" = ", "\t=\t").replace(", ", " ,\t"),
    lambda text: text.rstrip("\n"), lambda text: text.replace("\n[Peer]", "\n\n[ Peer ]"),
    lambda text: re.sub("(PrivateKey|AllowedIPs|Endpoint|PersistentKeepalive)",
                        lambda key: key[0].upper(), text))


def real_files() -> list[bytes]:
    """Each file in each layout; and with a comment in Latin-1."""
    files = [layout(text).encode() for text in FILES for layout in LAYOUTS]
    return [*files, *(b"# B\xfcro\n" + text.encode() for text in FILES)]


INTERFACE_LINES = (
    "ListenPort = 0051820", "ListenPort = 51 820", "ListenPort = 51_820", "ListenPort = 0x10",
    "ListenPort = 0o17", "ListenPort = +5", "ListenPort = -1", "ListenPort = 65536",
    "ListenPort = domain", "ListenPort =", "ListenPort = off", "ListenPort = 5 = 6",
    "ListenPort = \u0665\u0661", "Listen Port = 7", "Listen#Port = 7", "ListenPort # = 7",
    "FwMark = 0XCA6C", "FwMark = 0xCA6c", "FwMark = 010", "FwMark = 0x", "FwMark = 0x_1",
    "FwMark = 0xca 6c", "FwMark = o f f", "FwMark = OFF", "FwMark = 4294967295",
    "FwMark = 4294967296", "FwMark = 1_0", "FwMark = +1", "FwMark = \u0661", "FwMark = 0b1",
    "FwMar\u212a = 1", "FwMark = 0xffffffff0", f"Private Key = {OWN[:9]} {OWN[9:]}",
    f"PrivateKey = {OWN}=", f"PrivateKey = {OWN[:-1]}", f"PrivateKey = {OWN[:-2]}9=",
    f"PrivateKey =\u00a0{OWN}", f'PrivateKey = "{OWN}"', f"PrivateKey = {keys.encode(bytes(32))}",
    "PrivateKey =", "Endpoint = 192.0.2.1:1", "Colour = red", "= red", "[Inter face]", "[Peers]",
    "[]", "[", "]", "; old style", "// new style", "\u00a0", "\x1c", "\x85", "\u2028", "\v",
    "ListenPort = 7\0junk",
)
PEER_LINES = (
    "Endpoint = 2001:db8::1:51820", "Endpoint = :::1", "Endpoint = ::1", "Endpoint = 1::1:2:3",
    "Endpoint = ::ffff:192.0.2.1:1", "Endpoint = fe80::1%lo:1", "Endpoint = [fe80::1%lo]:1",
    "Endpoint = [fe80::1%nosuch]:1", "Endpoint = [192.0.2.1]:1", "Endpoint = [localhost]:1",
    "Endpoint = http://host:51820", "Endpoint = udp://192.0.2.1:1", "Endpoint = user@localhost:1",
    "Endpoint = vpn . example . com : 51 820", "Endpoint = VPN.example.COM:1", "Endpoint = a:1",
    "Endpoint = vpn.example.com.:1", "Endpoint = 192.0.2.256:1", "Endpoint = 1.2.3.4.5:1",
    "Endpoint = 127.1:1", "Endpoint = 0xc0000201:1", "Endpoint = 3221225985:1",
    "Endpoint = 192.0.2.01:1", "Endpoint = 192.0.2.1:051820", "Endpoint = 192.0.2.1:0",
    "Endpoint = 192.0.2.1:70000", "Endpoint = 192.0.2.1:+5", "Endpoint = 192.0.2.1:domain",
    "Endpoint = 192.0.2.1:", "Endpoint = 192.0.2.1", "Endpoint = :1", "Endpoint = []:1",
    "Endpoint = [::1]", "Endpoint = [::1]1", "Endpoint = [[::1]]:1", "Endpoint = *:1",
    "Endpoint = 192.0.2.1:1\nEndpoint = vpn.example.com:2\nEndpoint = 192.0.2.3:3",
    "Endpoint = 192.0.2.1:1\nEndpoint = 192.0.2.2:2\nEndpoint = 192.0.2.1:1",
    "Endpoint = 192.0.2.1:1, 192.0.2.2:2", "Endpoint = 1.2.3:1", "Endpoint = a.5:1",
    "Endpoint = a.0x5:1", "Endpoint = " + "a" * 64 + ".example:1",
    "Endpoint = " + "a." * 127 + "a:1",
    "Endpoint =", "Endpoint = .:1", "Endpoint = a..b:1", "Endpoint = b\u00fccher.example:1",
    "Endpoint = \uff11\uff19\uff12.0.2.1:1", "Endpoint = 192.0.2.1:1/", "Endpoint = " + "a" * 64,
    "AllowedIPs =", "AllowedIPs = ,", "AllowedIPs = 10.0.0.0/8,", "AllowedIPs = ,10.0.0.0/8",
    "AllowedIPs = 10.0.0.0/8 10.1.0.0/16", "AllowedIPs = 10.0.0.1 10.0.0.2",
    "AllowedIPs = 1 0.0.0.0/ 8", "AllowedIPs = 10.0.0.0/255.0.0.0",
    "AllowedIPs = 10.0.0.0/0.0.0.255", "AllowedIPs = 10.0.0.0/008", "AllowedIPs = 10.0.0.0/+8",
    "AllowedIPs = 10.0.0.0/33", "AllowedIPs = ::/129", "AllowedIPs = 10.0.0.0/", "AllowedIPs = /8",
    "AllowedIPs = 10/8", "AllowedIPs = 010.0.0.0/8", "AllowedIPs = 10.0.0.0/0x8",
    "AllowedIPs = 10.0.0.0/8/8", "AllowedIPs = fe80::1%lo/64", "AllowedIPs = ::10.0.0.1/96",
    "AllowedIPs = 1:2:3:4:5:6:7::/112", "AllowedIPs = 10.0.0.0/\u0668",
    "AllowedIPs = 10.0.0.0/8\u00a0", "Allowed IPs = 10.0.0.0/8", "AllowedIPs = +10.0.0.0/8",
    "AllowedIPs = 10.0.0.0/8\nAllowedIPs = -10.0.0.0/8, + fd00::/8", "AllowedIPs = +-10.0.0.0/8",
    "AllowedIPs = -10.9.0.0/16", "AllowedIPs = +", "AllowedIPs = \u221210.0.0.0/8",
    f"AllowedIPs = 10.0.0.0/8\n[Peer]\nPublicKey={B}\n[Peer]\nPublicKey={A}\nAllowedIPs=+::/0",
    "PersistentKeepalive = 025", "PersistentKeepalive = 0x19", "PersistentKeepalive = 2 5",
    "PersistentKeepalive = 2_5", "PersistentKeepalive = 65536", "PersistentKeepalive = +25",
    "PersistentKeepalive = \u0662\u0665", "PersistentKeepalive = o\tf\tf",
    "PersistentKeepalive =", "PersistentKeepalive = -1", "PersistentKeepalive = 25s",
    "PersistentKeepalive = " + "0" * 5000 + "25", "PersistentKeepalive = " + "9" * 5000,
    f"PresharedKey = {PSK}\nPresharedKey = {keys.encode(bytes(32))}", "PresharedKey =",
    f"Preshared\tKey = {PSK}", f"PublicKey = {B}", "ListenPort = 1", "Address = 10.0.0.1",
    "[Peer]",
)


def odd_files() -> list[bytes]:
    """One line each in an otherwise good file."""
    return [f"[Interface]\n{line}\n".encode() for line in INTERFACE_LINES] + [
        f"[Peer]\nPublicKey={A}\n{line}\n".encode() for line in PEER_LINES] + [
        b"", b"ListenPort = 1\n", b"\xef\xbb\xbf[Interface]\n", b"\0\n[Interface]\n"]


_PUT = (*(bytes([byte]) for byte in b" \t\r\v\f\0#=,:/[]%+-_.0189xXa\x1c\x85\xa0\xff"),
        "\u00a0".encode(), "\u0663".encode(), "\u212a".encode(), b"0x", b"0o", b"off", b"::", b"\n",
        b"[Peer]\n", b"[Interface]\n", b"AllowedIPs = 10.0.0.0/8\n", b"+10.0.0.0/8, ",
        b"99999999999", b" # ", f"PublicKey = {A}\n".encode())


def mangled(rng: random.Random, data: bytes) -> bytes:
    """One or two slips of a keyboard or an editor."""
    for _ in range(rng.choice((1, 1, 2))):
        lines = data.split(b"\n")
        place = rng.randrange(len(lines))
        line = lines[place]
        at = rng.randint(0, len(line))
        match rng.randrange(9):
            case 0:
                line = line[:at] + line[at + 1:]
            case 1:
                line = line[:at] + line[at:at + 1] + line[at:]
            case 2:
                line = line[:at] + line[at + 1:at + 2] + line[at:at + 1] + line[at + 2:]
            case 3:
                line = line[:at] + line[at:].swapcase()
            case 4:
                other = rng.randrange(len(lines))
                line, lines[other] = lines[other], line
            case 5:
                line = line + b"\n" + line
            case 6:
                key, equals, _ = line.partition(b"=")
                line = key + equals + rng.choice(lines).rpartition(b"=")[2]
            case _:
                line = line[:at] + rng.choice(_PUT) + line[at:]
        lines[place] = line
        data = b"\n".join(lines)
    return data


def strip(data: bytes) -> bytes:
    """What wg-quick hands to wg. Lines keep their numbers: those that it takes itself are empty."""
    kept, in_interface = [], False
    for line in data.split(b"\n"):
        key = line.partition(b"#")[0].partition(b"=")[0].strip(BLANKS).lower()
        if key.startswith(b"["):
            in_interface = key == b"[interface]"
        kept.append(b"" if in_interface and key in QUICK_KEYS else line)
    return b"\n".join(kept)


def line_of(data: bytes, number: int) -> bytes:
    """As wg reads it: without comment and blanks, in lower case."""
    line = data.split(b"\n")[number - 1].partition(b"#")[0]
    return line.translate(None, BLANKS).lower()


# -- deliberate differences

class Difference(NamedTuple):
    """One kind: who takes it, how a line shows it, and why."""

    taken_by: str
    pattern: bytes
    reason: str


_PORT_KEY = rb"(listenport=|endpoint=.*:)"
_OVER_65535 = (rb"0*([1-9]\d{5,}|[7-9]\d{4}|6[6-9]\d{3}|65[6-9]\d\d|655[4-9]\d|6553[6-9])")
DIFFERENCES = (
    Difference("wg", rb"\0", "wg passes over the rest of the line after a NUL; such a file is "
                             "damaged"),
    Difference("wg", _PORT_KEY + rb"([+-]\d+|0+|" + _OVER_65535 + rb")$",
               "the C library cuts ports to 16 bits and takes signs; nobody means that. Port 0 "
               "is no place to send to"),
    Difference("wg", rb"^endpoint=\*:", "an oddity of glibc, which takes * for the loopback"),
    Difference("ours", b"^\xef\xbb\xbf", "some editors begin a file with a byte order mark"),
    Difference("ours", b"^(" + b"|".join(sorted(QUICK_KEYS)) + b")=",
               "wg-quick does not find its own keys after [ Interface ] with blanks; we do"),
)
# Of some hosts:
SERVICE_NAMES = Difference("wg", _PORT_KEY + rb"[a-z][a-z0-9-]*$",
                           "names of services depend on the host's /etc/services")
NO_SIGNS = Difference("ours", rb"^allowedips=([^,]*,)*[+-]",
                      "wg before 1.0.20250521 knows no signs")


def known_differences(judge: Judge) -> tuple[Difference, ...]:
    """The deliberate differences from this host's wg."""
    differences = list(DIFFERENCES)
    if judge(f"[Peer]\nPublicKey={A}\nAllowedIPs=+::/0\n".encode()).wg is None:
        differences.append(NO_SIGNS)
    if judge(b"[Interface]\nListenPort=domain\n").wg is not None:
        differences.append(SERVICE_NAMES)
    return tuple(differences)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A file that was judged, after `strip`."""

    data: bytes
    verdict: Verdict

    def difference(self, known: tuple[Difference, ...]) -> Difference | None:
        """The deliberate difference that explains the verdict; None if none does."""
        wg, ours = self.verdict.wg, self.verdict.ours
        if wg is not None and ours is None:
            lines, taken_by = (self.verdict.complaint_line,), "wg"
        elif wg is None and ours is not None:
            lines, taken_by = tuple(range(1, self.data.count(b"\n") + 2)), "ours"
        else:
            return None
        for each in known:
            if each.taken_by == taken_by and any(
                    re.search(each.pattern, line_of(self.data, line)) for line in lines if line):
                return each
        return None

    def is_explained(self, known: tuple[Difference, ...]) -> bool:
        """Whether both agree, or differ on purpose."""
        return self.verdict.wg == self.verdict.ours or self.difference(known) is not None


def compare(judge: Judge, data: bytes) -> Comparison:
    """What both make of a file, as wg-quick hands it to wg."""
    data = strip(data)
    return Comparison(data, judge(data))
