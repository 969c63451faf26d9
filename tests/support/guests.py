"""Real guests: small virtual machines on TAP interfaces in the namespaces of a lab.

    guest: eth0 (virtio-net, offloads on) -- QEMU -- a persistent TAP interface in a namespace

QEMU emulates the processor, so no KVM is needed. The guest runs one program, INIT, which sets
the addresses and then speaks on its serial console, which is QEMU's stdin and stdout:

    guest:  \\x1e ready
    host:   NUMBER SECONDS COMMAND        a line that sh runs, and that is killed after so long
    guest:  its output \\x1e NUMBER STATUS

Guests boot together: `start` only launches one, `wait_until_ready` waits. QEMU is among the
lab's processes and ends with the lab; and with the test's process, whatever kills that.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from fastpump.errors import SystemSetupError
from fastpump.lab.networks import need, stop, wait_for_line
from support.hosts import until

GUEST4 = {"a": "10.77.0.1", "b": "10.77.0.2"}
GUEST6 = {"a": "fd00:77::1", "b": "fd00:77::2"}
MAC = {"a": "52:54:00:77:00:01", "b": "52:54:00:77:00:02"}

MACHINE = ["-machine", "q35", "-accel", "tcg", "-cpu", "qemu64", "-no-user-config", "-nodefaults",
           "-no-reboot", "-display", "none",
           "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
# Between the lines of the protocol the kernel writes nothing but emergencies.
KERNEL_WORDS = "console=ttyS0 quiet loglevel=1 panic=-1 nokaslr mitigations=off"

# The kernel hands on, as environment, what its command line has of no use to it.
INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
exec < /dev/ttyS0 > /dev/ttyS0 2>&1
stty -echo -icanon -onlcr
@load modules@
until [ -e /sys/class/net/eth0 ]; do usleep 10000; done
echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad
ip link set lo up
ip link set eth0 up
ip address add $address4/24 dev eth0
ip address add $address6/64 dev eth0
until [ "$(cat /sys/class/net/eth0/operstate)" = up ]; do usleep 10000; done
while ip -6 address show dev eth0 | grep -q tentative; do usleep 10000; done
cd /tmp
printf '\036 ready\n'
# In a process of its own: the first process hears of the end of orphans, and ash's read begins
# anew at a signal, without what it had.
(while read -r number seconds command; do
    timeout -s KILL $seconds sh -c "$command" < /dev/null
    printf '\036 %s %s\n' $number $?
done)
poweroff -f
"""


class Guest:
    """A virtual machine on a TAP interface of one side of a lab; `image` is its kernel and
    initramfs (guestimage.py)."""

    def __init__(self, lab, side, tap, image, *, mac=None, address4=None, address6=None,
                 memory_mib=160):
        self.memory_mib = memory_mib
        self.lab, self.side, self.tap, self.image = lab, side, tap, image
        self.mac = mac or MAC[side]
        self.address4 = address4 or GUEST4[side]
        self.address6 = address6 or GUEST6[side]
        self.process = None
        self._unread = b""
        self._number = 0

    def start(self):
        """Launch it."""
        need("qemu-system-x86_64")
        kernel, initramfs = self.image
        words = f"{KERNEL_WORDS} address4={self.address4} address6={self.address6}"
        self.process = subprocess.Popen(
            self.lab.command(self.side, [
                "setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", *MACHINE,
                "-m", str(self.memory_mib),
                "-kernel", str(kernel), "-initrd", str(initramfs), "-append", words,
                "-netdev", f"tap,id=net,ifname={self.tap},script=no,downscript=no,vhost=off",
                "-device", f"virtio-net-pci,netdev=net,mac={self.mac},romfile="]),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", process_group=0)
        self.lab.processes.append(self.process)

    def wait_until_ready(self, timeout_s=90):
        """Wait until it takes commands."""
        self._read_to(rb"\x1e ready\n", timeout_s)

    def run(self, command, timeout_s=30, check=True):
        """Run a line of shell inside; its output. With `check` it must exit with 0."""
        assert "\n" not in command
        self._number += 1
        line = f"{self._number} {timeout_s} {command}\n"
        self.process.stdin.write(line)
        self.process.stdin.flush()
        # The guest's own clock ends the command; this limit is for a guest that hangs.
        output, end = self._read_to(rb"\x1e %d (\d+)\n" % self._number, 2 * timeout_s + 10)
        if check and end[1] != b"0":
            raise SystemSetupError(f"{command} in guest {self.side}: exit status "
                                   f"{end[1].decode()}: {output}")
        return output

    def close(self):
        """Pull its plug."""
        if self.process is not None:
            stop(self.process, signal.SIGKILL)
            self.lab.processes.remove(self.process)
            self.process = None

    def _read_to(self, pattern, timeout_s):
        """What it writes up to a pattern, and the match."""
        deadline = time.monotonic() + timeout_s
        fd = self.process.stdout.fileno()
        while not (match := re.search(pattern, self._unread)):
            left = max(0, deadline - time.monotonic())
            if not select.select([fd], [], [], left)[0]:
                raise SystemSetupError(f"guest {self.side} did not say {pattern!r} within "
                                       f"{timeout_s} s: {self._unread!r}")
            data = os.read(fd, 1 << 16)
            if not data:
                raise SystemSetupError(f"guest {self.side} ended: {self._unread!r}")
            self._unread += data
        before, self._unread = self._unread[:match.start()], self._unread[match.end():]
        return before.decode(errors="replace"), match

    # -- what tests do inside

    def reaches(self, host, size=56):
        """Whether a ping is answered. (Of several, busybox awaits the last for a second only,
        which a guest on a busy machine may miss.)"""
        return " 1 packets received" in self.run(f"ping -c 1 -s {size} -W 15 {host} || :")

    def neighbour_mac(self, host):
        """The MAC address that it has learnt for an address of its network."""
        found = re.search(r"lladdr (\S+)", self.run(f"ip neigh show {host}"))
        return found and found[1]

    def negotiated(self):
        """The numbers of the virtio-net features in use: linux/virtio_net.h."""
        bits = self.run("cat /sys/class/net/eth0/device/features").strip()
        return {number for number, bit in enumerate(bits) if bit == "1"}


@contextlib.contextmanager
def running(lab, taps, image, **more):
    """Guests on TAP interfaces, {side: interface}, that have booted together: {side: guest}."""
    guests = {side: Guest(lab, side, tap, image, **more) for side, tap in taps.items()}
    try:
        for guest in guests.values():
            guest.start()
        for guest in guests.values():
            guest.wait_until_ready()
        yield guests
    finally:
        for guest in guests.values():
            guest.close()


def add_tap(lab, side, name):
    """A persistent TAP interface with one queue, which a guest can take."""
    lab.ip(side, "tuntap", "add", "name", name, "mode", "tap", "vnet_hdr", "user", "root")
    lab.ip(side, "link", "set", name, "up")


def guest_transfer(sender, receiver, host, size, port=7000, timeout_s=90):
    """Send `size` random bytes over TCP to a guest's address; whether their hash arrived."""
    sender.run(f"head -c {size} /dev/urandom > sent", timeout_s)
    # At the end of its input nc ends that way of the connection, and its peer ends: so a FIFO
    # that has none.
    receiver.run("killall -q nc; rm -f hash none; mkfifo none; "
                 f"(nc -l -p {port} <> none | sha256sum > hash.new; mv hash.new hash) &")
    until(lambda: f":{port} " in receiver.run("netstat -ltn"))
    sender.run(f"nc {host} {port} < sent", timeout_s)
    received = receiver.run("until [ -e hash ]; do usleep 10000; done; cat hash", timeout_s)
    return received == sender.run("sha256sum < sent; rm sent", timeout_s) != ""


@contextlib.contextmanager
def watched(lab, guests):
    """What the TAP interfaces of guests carry meanwhile: {side: counts of tapwatch.py}, filled
    in at the end."""
    script = str(Path(__file__).with_name("tapwatch.py"))
    watches = {side: lab.spawn(side, sys.executable, script, guest.tap)
               for side, guest in guests.items()}
    seen = {}
    try:
        for watch in watches.values():
            wait_for_line(watch, "watching")
        yield seen
    finally:
        for side, watch in watches.items():
            seen[side] = stop(watch)
            lab.processes.remove(watch)
    seen.update({side: json.loads(output) for side, output in seen.items()})
