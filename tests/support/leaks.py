"""What leaves a host in clear: traffic of host a without end, and host b, which counts what arrives
on the wire that is none of the tunnel's own datagrams."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path

from fastpump.lab.networks import OUTSIDE4, OUTSIDE6, stop, wait_for_line
from support.hosts import FASTPUMP, pids_in, until
from support.quick import ADDRESSES, EVERYWHERE, FAR

# By sockets that exist since before the tunnel, and by new ones; to port 53, too.
SENDER = """\
import socket, sys, time
def udp(host):
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
old = {}
for host in sys.argv[1:]:
    old[host] = udp(host)
    try:
        old[host].connect((host, 9))
    except OSError:
        pass
print("sending", flush=True)
while True:
    for host, sock in old.items():
        with udp(host) as new:
            for way in (lambda: sock.send(b"in clear"), lambda: new.sendto(b"in clear", (host, 9)),
                        lambda: new.sendto(b"in clear", (host, 53))):
                try:
                    way()
                except OSError:
                    pass
    time.sleep(0.002)
"""
# Everything on a wire is in clear but what the tunnel sends, and what keeps the link going.
COUNTERS = f"""\
table inet seen {{
  counter clear {{}}
  counter near {{}}
  counter inside {{}}
  chain raw {{
    type filter hook prerouting priority raw
    iifname "wire*" icmpv6 type {{ 133, 134, 135, 136 }} return
    iifname "wire*" udp dport 51820 return
    iifname "wire*" udp sport 51820 return
    iifname "wire*" ip daddr {FAR[0]} counter name clear
    iifname "wire*" ip6 daddr {FAR[1]} counter name clear
    iifname "wire*" ip daddr {OUTSIDE4['b']} counter name near
    iifname "wire*" ip6 daddr {OUTSIDE6['b']} counter name near
    iifname != "wire*" ip daddr {FAR[0]} counter name inside
  }}
}}
"""
FLAGS = {"KillSwitch": "--kill-switch", "KillSwitchAllow": "--kill-switch-allow",
         "EndpointDNS": "--endpoint-dns"}


def watch(lab, *metric):
    """Have b count, and make it the way of a to everywhere."""
    lab.run("b", "nft", "-f", "-", input=COUNTERS)
    for version, gateway in ((4, OUTSIDE4["b"]), (6, OUTSIDE6["b"])):
        lab.ip("a", f"-{version}", "route", "add", "default", "via", gateway, *metric)


def seen(lab, what):
    """How many packets arrived at b: `clear`: on the wire, for hosts behind the tunnel; `near`: for
    b itself; `inside`: through the tunnel."""
    listed = json.loads(lab.run("b", "nft", "-j", "list", "counters").stdout)["nftables"]
    return next(each["counter"]["packets"] for each in listed
                if "counter" in each and each["counter"]["name"] == what)


def in_clear(lab):
    """All that nobody may see who has a kill switch."""
    return seen(lab, "clear") + seen(lab, "near")


@contextlib.contextmanager
def traffic(lab, *hosts):
    """To hosts behind the tunnel, or others."""
    sender = lab.spawn("a", sys.executable, "-c", SENDER, *(hosts or FAR))
    try:
        wait_for_line(sender, "sending")
        yield
    finally:
        lab.processes.remove(sender)
        stop(sender)


def passes(lab, timeout_s=30):
    """The tunnel carries what is sent into it."""
    before = seen(lab, "inside")
    until(lambda: seen(lab, "inside") > before + 20, timeout_s)


def is_silent(lab, packets=60):
    """Nothing arrives in clear while a sends so much."""
    before = in_clear(lab)
    assert threading.Event().wait(packets * 0.02) is False
    return in_clear(lab) == before


class Started:
    """A tunnel of a, by either command; `options`: lines of its [Interface] section."""

    def __init__(self, world, way, *options, allowed=EVERYWHERE, endpoint=OUTSIDE4["b"]):
        self.world, self.way, self.options = world, way, options
        self.allowed, self.endpoint, self.said = allowed, endpoint, ""
        self.up()

    def up(self):
        world, lab = self.world, self.world.lab
        world.write(ADDRESSES, *self.options, endpoint=self.endpoint,
                    peer=(f"AllowedIPs = {', '.join(self.allowed)}",))
        if self.way == "up":
            self.said += world("up").stderr
            return
        key = world.directory / "key"
        key.touch(mode=0o600)
        key.write_text(world.private)
        where = f"[{self.endpoint}]" if ":" in self.endpoint else self.endpoint
        with (world.directory / "said").open("w") as said:
            self.process = lab.spawn(
                "a", *world.prefix, *FASTPUMP, "tunnel", world.name, "--queues", "2",
                "--private-key", str(key), *self._flags(),
                *(word for each in ADDRESSES.removeprefix("Address = ").split(", ")
                  for word in ("--address", each)), "--peer",
                f"{world.public_b}@{where}:51820,allowed-ips={'+'.join(self.allowed)}",
                stderr=said.fileno())
        wait_for_line(self.process, " is ready: ")
        self.said += (world.directory / "said").read_text()

    def _flags(self):
        for option in self.options:
            key, _, value = option.partition(" = ")
            for each in value.split(", "):
                yield from (FLAGS[key],) if value == "on" else (FLAGS[key], each)

    def kill(self, supervisor=True, workers=True):
        """SIGKILL. Without their supervisor, workers end by themselves."""
        lab = self.world.lab
        pid = self.world.pid
        for each in ([pid] if supervisor else []) + (
                [worker for worker in pids_in(lab, "a") if worker != pid
                 and "worker" in _title(worker)] if workers else []):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        if supervisor:
            until(lambda: f"{self.world.name}:" not in lab.ip("a", "link", "show"))
            if self.way == "tunnel":
                lab.processes.remove(self.process)
                stop(self.process)

    def end(self):
        if self.way == "up":
            self.world("down")
        else:
            self.world.lab.processes.remove(self.process)
            stop(self.process, signal.SIGTERM)
            assert self.process.returncode == 0, self.said


def _title(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    return ""
