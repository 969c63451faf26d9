"""A day of a road warrior, in half an hour: TCP streams with hashes run through a gateway with NAT,
while addresses, uplinks, MTUs and NAT ports change, processes are killed and rulesets are flushed,
at random.

    PYTHONPATH=.:tests python -m support.day [--minutes 30] [--seed 7] [--options "--queues 4"]

    a   192.168.1.0/24   r (NAT)   100.64.1.0/24   n   192.0.2.0/24   b   198.51.100.0/24   c
        192.168.2.0/24   q (NAT)   100.64.2.0/24

a sends everything through the tunnel to b, with a kill switch (`fastpump tunnel`); b is a gateway,
which is restarted as the unit does it (`fastpump down --keep-closed`, `fastpump up`); c does not
know the tunnel, and sends back what it receives. No stream may end, and no byte differ. For each
event it is measured how long nothing came back after its cause was over: by datagrams, of which one
is sent every 50 ms, and by the slowest of the streams, whose TCP waits longer. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shlex
import signal
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from fastpump.errors import SystemSetupError
from fastpump.lab.networks import (
    INSIDE4,
    INSIDE6,
    OUTSIDE4,
    Lab,
    ip,
    key_files,
    stop,
    wait_for_line,
    wait_until,
)
from support.hosts import FASTPUMP, children, is_worker, own_pid

SERVERS = "198.51.100.2", "2001:db8:51::2"
STREAMS = SERVERS * 2
UPLINKS = {"wire": ("r", 1), "wire2": ("q", 2)}
MTUS = 1280, 1300, 1400, 1492, 1500
RECOVERY_S = 120
"""Nothing may take longer."""
BUCKETS = 0.25, 1, 2, 5, 10, 20, 60

_SERVER = """
import socket, sys, threading
def echo(connection):
    while data := connection.recv(1 << 16):
        connection.sendall(data)
    connection.close()
def accept(server):
    while True:
        threading.Thread(target=echo, args=(server.accept()[0],), daemon=True).start()
def datagrams(sock):
    while True:
        sock.sendto(*sock.recvfrom(2048))
for host in sys.argv[1:]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    threading.Thread(target=accept, args=(socket.create_server((host, 7000), family=family),),
                     daemon=True).start()
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((host, 7000))
    threading.Thread(target=datagrams, args=(sock,), daemon=True).start()
print("listening", flush=True)
threading.Event().wait()
"""
# Says every 0.1 s when each stream received last, and how long each received nothing: in a file,
# which is replaced. SIGTERM: no more is sent, what is under way is awaited, and the end is said.
_CLIENT = """
import hashlib, json, os, signal, socket, sys, threading, time
path, hosts = sys.argv[1], sys.argv[2:]
ending = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ending.set())
class Way:
    def __init__(self):
        self.last, self.gaps, self.error = time.monotonic(), [], None
    def received(self):
        now = time.monotonic()
        if now - self.last > 0.25:
            self.gaps.append((self.last, now))
        self.last = now
class Stream(Way):
    def __init__(self, host):
        super().__init__()
        self.socket = socket.create_connection((host, 7000), 20)
        self.socket.settimeout(None)
        self.sent, self.back, self.sizes = hashlib.sha256(), hashlib.sha256(), [0, 0]
        self.threads = [threading.Thread(target=self.run, args=(each,)) for each in
                        (self.send, self.receive)]
        for each in self.threads:
            each.start()
    def run(self, what):
        try:
            what()
        except OSError as error:
            self.error = str(error)
    def send(self):
        while not ending.is_set():
            data = os.urandom(8192)
            self.sent.update(data)
            self.sizes[0] += len(data)
            self.socket.sendall(data)
            time.sleep(0.05)
        self.socket.shutdown(socket.SHUT_WR)
    def receive(self):
        while data := self.socket.recv(1 << 16):
            self.received()
            self.back.update(data)
            self.sizes[1] += len(data)
    def end(self):
        for each in self.threads:
            each.join(120)
        return {"bytes": self.sizes[0], "error": self.error,
                "is_equal": self.sizes[0] == self.sizes[1] and self.sent.digest()
                == self.back.digest()}
class Datagrams(Way):
    def __init__(self, host):
        super().__init__()
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET,
                                    socket.SOCK_DGRAM)
        self.host = host
        for each in (self.send, self.receive):
            threading.Thread(target=each, daemon=True).start()
    def send(self):
        while True:
            try:
                self.socket.sendto(b"x" * 100, (self.host, 7000))
            except OSError:
                pass
            time.sleep(0.05)
    def receive(self):
        time.sleep(0.05)
        while True:
            try:
                self.socket.recv(2048)
                self.received()
            except OSError:
                time.sleep(0.01)
streams = [Stream(host) for host in hosts]
datagrams = [Datagrams(host) for host in dict.fromkeys(hosts)]
def write():
    with open(path + ".new", "w") as file:
        json.dump({kind: [[each.last, each.gaps[-20:], each.error] for each in ways]
                   for kind, ways in (("streams", streams), ("datagrams", datagrams))}, file)
    os.replace(path + ".new", path)
print("sending", flush=True)
while not ending.is_set():
    write()
    time.sleep(0.1)
print("end", json.dumps([each.end() for each in streams]), flush=True)
os._exit(0)
"""
_FLUSH_CONNTRACK = ("from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket; "
                    "NFCTSocket().flush()")
_MASQUERADE = """table ip nat { chain leaving { type nat hook postrouting priority srcnat
oifname "out" masquerade random
}
}
"""


class Day:
    """The hosts, the tunnel, and what may happen to them."""

    def __init__(self, lab, directory, rng, options):
        self.lab, self.directory, self.rng = lab, directory, rng
        self._options = options
        self._keys = key_files(directory)
        self._env = {"FASTPUMP_STATE": str(directory / "state"),
                     "FASTPUMP_RUN": str(directory / "run")}
        self.names = {side: f"fpday{side}" for side in "ab"}
        self._file = directory / f"{self.names['b']}.conf"
        self._number = 10
        self._build()
        for side in "ba":
            self.start(side)
        self._server = lab.spawn("c", sys.executable, "-c", _SERVER, *SERVERS)
        wait_for_line(self._server, "listening")
        self._progress = directory / "progress"
        self._client = lab.spawn("a", sys.executable, "-c", _CLIENT, str(self._progress), *STREAMS)
        wait_for_line(self._client, "sending")

    # -- hosts

    def _build(self):
        lab = self.lab
        lab.ip("a", "link", "delete", "wire")
        for host in "rqnc":
            lab.add_host(host)
        for name, (router, number) in UPLINKS.items():
            self._cable("a", name, router, "in")
            self._cable(router, "out", "n", router)
            lab.ip(router, "address", "add", f"192.168.{number}.1/24", "dev", "in")
            lab.ip(router, "address", "add", f"100.64.{number}.2/24", "dev", "out")
            lab.ip("n", "address", "add", f"100.64.{number}.1/24", "dev", router)
            lab.ip(router, "route", "add", "default", "via", f"100.64.{number}.1")
            lab.run(router, "nft", "-f", "-", input=_MASQUERADE)
            self._come_by(name)
        self._cable("n", "core", "b", "wire")
        lab.ip("n", "address", "add", "192.0.2.254/24", "dev", "core")
        lab.ip("b", "address", "add", f"{OUTSIDE4['b']}/24", "dev", "wire")
        lab.ip("b", "route", "add", "default", "via", "192.0.2.254")
        lab.join("b", "c", "way", ("198.51.100.1/24", "2001:db8:51::1/64"),
                 ("198.51.100.2/24", "2001:db8:51::2/64"))
        for router in "rqn":
            lab.sysctl(router, {"net.ipv4.ip_forward": 1, "net.ipv4.icmp_ratelimit": 0})

    def _cable(self, one, name, other, other_name):
        names = self.lab.names
        ip("link", "add", name, "netns", names[one], "type", "veth", "peer", "name", other_name,
           "netns", names[other])
        self.lab.ip(one, "link", "set", name, "up")
        self.lab.ip(other, "link", "set", other_name, "up")

    def _come_by(self, uplink):
        """As DHCP does: an address of a's there, and a default route."""
        number = UPLINKS[uplink][1]
        self._number = self._number % 200 + 10
        self.lab.ip("a", "address", "add", f"192.168.{number}.{self._number}/24", "dev", uplink)
        self.lab.ip("a", "route", "replace", "default", "via", f"192.168.{number}.1", "dev", uplink,
                    "metric", str(100 * number))

    # -- the tunnel

    def start(self, side):
        self._START[side](self)

    def _start_client(self):
        with (self.directory / "a.log").open("a") as log:
            self.client = self.lab.spawn(
                "a", *FASTPUMP, "tunnel", self.names["a"], "--queues", "2", "--listen-port",
                "51820", "--address", f"{INSIDE4['a']}/24", "--address", f"{INSIDE6['a']}/64",
                "--private-key", str(self._keys["a"][0]), *self._options, "--kill-switch", "--peer",
                f"{self._keys['b'][1]}@{OUTSIDE4['b']}:51820,"
                "allowed-ips=0.0.0.0/0+::/0,keepalive=25", env=self._env, stderr=log.fileno())
        wait_for_line(self.client, " is ready: ")

    def _start_gateway(self):
        self._file.touch(mode=0o600)
        self._file.write_text(
            f"[Interface]\nPrivateKey = {self._keys['b'][0].read_text()}Queues = 2\n"
            f"ListenPort = 51820\nAddress = {INSIDE4['b']}/24, {INSIDE6['b']}/64\n"
            "Gateway = forward, nat, mss\n"
            f"[Peer]\nPublicKey = {self._keys['a'][1]}\n"
            f"AllowedIPs = {INSIDE4['a']}/32, {INSIDE6['a']}/128\n")
        self._fastpump("b", "up", str(self._file))

    _START = {"a": _start_client, "b": _start_gateway}

    def _fastpump(self, side, *words):
        env = (f"{name}={value}" for name, value in self._env.items())
        return self.lab.run(side, "env", *env, *FASTPUMP, *words, timeout=60)

    def pid(self, side):
        """Of the supervisor."""
        return self.client.pid if side == "a" else own_pid(self.lab, "b", self.names["b"])

    # -- what happens; each returns when its cause is over

    def other_address(self):
        """The lease ended: another address on the uplink in use."""
        self.lab.ip("a", "address", "flush", "dev", "wire")
        self._come_by("wire")

    def lose_uplink(self):
        """Wi-Fi to LTE."""
        self.lab.ip("a", "address", "flush", "dev", "wire")
        self.lab.ip("a", "link", "set", "wire", "down")

    def find_uplink(self):
        """And home again."""
        self.lab.ip("a", "link", "set", "wire", "up")
        self._come_by("wire")

    def prefer_uplink(self):
        """Another program prefers the other one."""
        self.lab.ip("a", "route", "add", "default", "via", "192.168.2.1", "metric", "50")

    def prefer_none(self):
        self.lab.ip("a", "route", "delete", "default", "via", "192.168.2.1", "metric", "50")

    def other_mtu(self):
        """Of the path, in the middle; nobody says so."""
        mtu = self.rng.choice(MTUS)
        for router, _ in UPLINKS.values():
            self.lab.ip(router, "link", "set", "out", "mtu", str(mtu))
            self.lab.ip("n", "link", "set", router, "mtu", str(mtu))

    def other_nat_port(self):
        """The NAT forgets, or was restarted."""
        for router, _ in UPLINKS.values():
            self.lab.run(router, sys.executable, "-c", _FLUSH_CONNTRACK)

    def outage(self):
        """Nothing passes for some seconds."""
        self.lab.ip("n", "link", "set", "core", "down")
        time.sleep(self.rng.uniform(1, 8))
        self.lab.ip("n", "link", "set", "core", "up")

    def kill_worker(self, side):
        pid = self.rng.choice([each for each in children(self.pid(side))
                               if is_worker(each)])
        self.lab.run(side, "kill", "-KILL", str(pid))

    def kill_all(self, side):
        """The supervisor; systemd starts it again."""
        if side == "a":
            self._end_client(signal.SIGKILL)
        else:
            pid = self.pid("b")
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the gateway goes on")
        time.sleep(0.1)
        self.start(side)

    def restart(self, side):
        if side == "a":
            self._end_client(signal.SIGTERM)
        else:
            self._fastpump("b", "down", "--keep-closed", str(self._file))
        self.start(side)

    def _end_client(self, number):
        stop(self.client, number)
        self.lab.processes.remove(self.client)

    def run(self, side, command):
        """By some other program on that host."""
        self.lab.run(side, "sh", "-ec", command.replace("NAME", self.names[side]))

    EVENTS = {
        "another address": other_address,
        "the uplink is lost": lose_uplink,
        "another uplink is better": prefer_uplink,
        "another path MTU": other_mtu,
        "the NAT forgets its ports": other_nat_port,
        "an outage": outage,
        "SIGKILL of a worker (client)": lambda self: self.kill_worker("a"),
        "SIGKILL of a worker (gateway)": lambda self: self.kill_worker("b"),
        "SIGKILL of the supervisor (client)": lambda self: self.kill_all("a"),
        "SIGKILL of the supervisor (gateway)": lambda self: self.kill_all("b"),
        "restart (client)": lambda self: self.restart("a"),
        "restart (gateway)": lambda self: self.restart("b"),
        "`nft flush ruleset` (client)": lambda self: self.run("a", "nft flush ruleset"),
        "`nft flush ruleset` (gateway)": lambda self: self.run("b", "nft flush ruleset"),
        "`ip rule flush` (client)": lambda self: self.run(
            "a", "ip rule flush; ip -6 rule flush; ip rule add lookup main pref 32766; "
            "ip -6 rule add lookup main pref 32766"),
        "the routes are flushed (client)": lambda self: self.run(
            "a", "ip route flush table 51820; ip -6 route flush table 51820"),
        "the addresses are flushed (client)": lambda self: self.run(
            "a", "ip address flush dev NAME"),
        "the addresses are flushed (gateway)": lambda self: self.run(
            "b", "ip address flush dev NAME"),
        "link down and up (client)": lambda self: self.run(
            "a", "ip link set NAME down; ip link set NAME up"),
        "link down and up (gateway)": lambda self: self.run(
            "b", "ip link set NAME down; ip link set NAME up"),
        "forwarding is switched off (gateway)": lambda self: self.run(
            "b", "for each in way NAME; do echo 0 > /proc/sys/net/ipv4/conf/$each/forwarding; "
            "echo 0 > /proc/sys/net/ipv6/conf/$each/forwarding; done"),
    }

    FOLLOWING = {
        "the uplink is lost": ("the uplink comes back", find_uplink),
        "another uplink is better": ("and worse again", prefer_none),
    }

    def happen(self, name):
        """What happens, and what must follow: (name, as `measure` has it)."""
        yield name, self.measure(name, self.EVENTS[name])
        if name in self.FOLLOWING:
            yield self.FOLLOWING[name][0], self.measure(*self.FOLLOWING[name])

    def measure(self, name, event):
        """Let it happen; (seconds without datagrams, seconds without TCP) after its cause was over.
        SystemSetupError if they do not come again."""
        begun = time.monotonic()
        event(self)
        over = time.monotonic()
        wait_until(lambda: all(last > over + 1 for ways in self._ways() for last, _, _ in ways),
                   f"{name}: not everything came back", RECOVERY_S)
        return tuple(max((end - over for _, gaps, _ in ways for start, end in gaps
                          if end > begun and start < over + 1), default=0.0)
                     for ways in self._ways())

    def _ways(self):
        """Datagrams and streams, as the client says."""
        for _ in range(100):
            with contextlib.suppress(OSError, ValueError):
                said = json.loads(self._progress.read_text())
                return said["datagrams"], said["streams"]
            time.sleep(0.05)
        raise SystemSetupError("the client says nothing")

    def end(self):
        """What became of each stream."""
        self._client.send_signal(signal.SIGTERM)
        return json.loads(wait_for_line(self._client, "end [", RECOVERY_S).removeprefix("end"))


def table(recoveries):
    """A histogram of seconds, in Markdown."""
    head = [f"≤ {limit:g} s" for limit in BUCKETS]
    print("| event | of | " + " | ".join(head) + " | longest |")
    print("|---|---|" + "---|" * (len(head) + 1))
    for kind, place in (("datagrams", 0), ("TCP", 1)):
        for name, found in sorted(recoveries.items()):
            seconds = [max(each[place], 0.0) for each in found]
            lower = (-1.0, *BUCKETS)
            counts = [sum(low < each <= high for each in seconds) or ""
                      for low, high in zip(lower, BUCKETS, strict=False)]
            print(f"| {name} | {kind} | " + " | ".join(map(str, counts))
                  + f" | {max(seconds):.1f} s |")


def live(minutes, seed, options=()):
    """{event: [(seconds without datagrams, without TCP)]}, and what became of the streams."""
    recoveries = defaultdict(list)
    rng = random.Random(seed)
    with Lab() as lab, tempfile.TemporaryDirectory() as directory:
        day = Day(lab, Path(directory), rng, options)
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            time.sleep(rng.uniform(0.5, 3))
            for name, seconds in day.happen(rng.choice(list(Day.EVENTS))):
                recoveries[name].append(seconds)
                print(f"{name}: {seconds[0]:.1f} {seconds[1]:.1f}", file=sys.stderr, flush=True)
        return recoveries, day.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--options", type=shlex.split, default=[], help="more for the client")
    args = parser.parse_args()
    recoveries, streams = live(args.minutes, args.seed, args.options)
    table(recoveries)
    print(f"\nseed {args.seed}: {sum(map(len, recoveries.values()))} events in {args.minutes:g} "
          f"minutes; streams:", *(f"{each['bytes'] / 1e6:.0f} MB" + (
              ", all equal" if each["is_equal"] else f", DIFFERENT ({each['error']})")
              for each in streams), sep="\n  ")
    return 0 if all(each["is_equal"] for each in streams) else 1


if __name__ == "__main__":
    sys.exit(main())
