"""A virtual machine that was cloned: how the kernel says so, and what becomes of the keys."""

import asyncio
import errno
import os
import socket

import pytest

from fastpump.constants import REKEY_TIMEOUT
from fastpump.protocol import lane_messages, noise
from fastpump.tunnel import clones
from support.devices import World

LINE = b"random: crng reseeded due to virtual machine fork\n"


@pytest.mark.parametrize(("record", "is_fork"), [
    (b"5,1234,98765432,-;" + LINE, True),
    (b"6,1,2,c,caller=T1;" + LINE + b" SUBSYSTEM=acpi\n", True),
    (b"13,1234,98765432,-;" + LINE, False),         # LOG_USER: a program wrote it
    (b"30,1234,98765432,-;" + LINE, False),
    (b"5,1234,98765432,-;systemd[1]: " + LINE, False),
    (b"6,1234,98765432,-;usb 1-1: Product: x;" + LINE, False),       # a device's own words
    (b"6,1234,98765432,-;x\n SUBSYSTEM=usb;" + LINE, False),
    (b"5,1234,98765432,-;random: crng init done\n", False),
    (b"-5,1,2,-;" + LINE, False), (b"", False), (b";" + LINE, False),
])
def test_records_of_the_kernel_s_log(record, is_fork):
    assert clones.is_fork_record(record) is is_fork


@pytest.mark.parametrize(("message", "pid", "is_fork"), [
    (b"change@/devices/x\0ACTION=change\0NEW_VMGENID=1\0SEQNUM=7\0", 0, True),
    (b"change@/devices/x\0ACTION=change\0NEW_VMGENID=1\0SEQNUM=7\0", 1, False),
    (b"change@/devices/x\0SYNTH_ARG_NEW_VMGENID=1\0", 0, False),
    (b"change@/devices/x\0NEW_VMGENID=10\0", 0, False),
    (b"add@/devices/x\0ACTION=add\0", 0, False), (b"", 0, False),
])
def test_uevents(message, pid, is_fork):
    assert clones.is_fork_uevent(message, pid) is is_fork


@pytest.mark.parametrize("what", ["/dev/null", "a file", "nothing"])
def test_what_is_not_the_kernel_s_log_is_not_read(monkeypatch, tmp_path, what):
    """In containers /dev/kmsg may be anything."""
    path = tmp_path / "kmsg"
    if what == "a file":
        path.write_bytes(b"5,1,2,-;" + LINE)
    elif what != "nothing":
        path.symlink_to(what)
    monkeypatch.setattr(clones, "KERNEL_LOG", path)
    assert clones.open_kernel_log() is None


def test_uevents_that_are_forbidden_are_not_waited_for(monkeypatch):
    """The socket is, or only its group."""
    def refuse(*_arguments):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(socket.socket, "bind", refuse)
    assert clones.open_uevents() is None
    monkeypatch.setattr(socket, "socket", refuse)
    assert clones.open_uevents() is None


class Uevents:
    """A socket of which messages were lost."""

    def __init__(self):
        self.answers = [OSError(errno.ENOBUFS, "full"), BlockingIOError()]

    def recvfrom(self, _length):
        raise self.answers.pop(0)

    def fileno(self):
        return -1

    def close(self):
        pass


@pytest.mark.parametrize("has_log", [True, False])
def test_lost_uevents_may_have_said_so_if_no_log_does(monkeypatch, has_log):
    """As links come and go by the thousand, say."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    if not has_log:
        os.close(reader)
    monkeypatch.setattr(clones, "open_kernel_log", lambda: reader if has_log else None)
    monkeypatch.setattr(clones, "open_uevents", Uevents)
    guard = clones.CloneGuard(None, None)
    assert guard.must_assume_a_clone() == (not has_log)
    guard.close()
    os.close(writer)


class Cloned:
    """A world whose side a is guarded, and has a kernel log that a test writes."""

    def __init__(self, monkeypatch, caplog):
        self.world, self.caplog = World(), caplog
        reader, self.log = os.pipe2(os.O_NONBLOCK)
        monkeypatch.setattr(clones, "open_kernel_log", lambda: reader)
        monkeypatch.setattr(clones, "open_uevents", lambda: None)
        monkeypatch.setattr(clones, "now_ns", lambda: self.world.now)
        device = self.world.a.device
        self.was_halted = []
        stop = device.stop
        monkeypatch.setattr(device, "stop", lambda: (
            self.was_halted.append(self.world.a.tables.is_halted), stop()))

    def clone(self, times=1):
        """The kernel says so; until that was logged, and so all was done."""
        self.caplog.clear()
        async def guarded():
            guard = clones.CloneGuard(self.world.a.tables, self.world.a.device)
            guard.start(asyncio.get_running_loop())
            try:
                for number in range(times):
                    os.write(self.log, b"5,1,2,-;" + LINE)
                    while len(self.caplog.records) <= number:
                        await asyncio.sleep(0.001)
            finally:
                guard.close()
        asyncio.run(asyncio.wait_for(guarded(), 20))
        os.close(self.log)


def test_sending_stops_before_keys_are_dropped_and_goes_on_after(monkeypatch, caplog):
    cloned = Cloned(monkeypatch, caplog)
    world = cloned.world
    world.handshake(world.a, world.b)
    cloned.clone(times=2)
    assert cloned.was_halted == [True, True]
    assert not world.a.tables.is_halted
    assert not world.a.has_session and world.a.device.is_up
    assert len(world.a.tables.retired) or world.a.must_reclaim


def test_a_clone_shakes_hands_with_the_peers_that_it_had_a_session_with(monkeypatch, caplog):
    cloned = Cloned(monkeypatch, caplog)
    world = cloned.world
    world.handshake(world.a, world.b)
    world.pass_time(REKEY_TIMEOUT)
    cloned.clone()
    world.advance(0)
    assert world.deliver(world.a, world.b) == [1]
    assert world.deliver(world.b, world.a) == [2]
    assert world.a.has_session


def test_a_handshake_under_way_is_dropped(monkeypatch, caplog):
    """Its ephemeral key is the other machine's, too."""
    cloned = Cloned(monkeypatch, caplog)
    world = cloned.world
    world.a.want_session()
    world.deliver(world.a, world.b)
    cloned.clone()
    assert world.deliver(world.b, world.a) == [2]
    assert not world.a.has_session
    assert world.a.device.verdicts == {"DROP_UNEXPECTED_RESPONSE": 1}


def test_an_interface_that_is_down_stays_down(monkeypatch, caplog):
    cloned = Cloned(monkeypatch, caplog)
    cloned.world.a.device.is_up = False
    cloned.clone()
    assert cloned.was_halted == [] and not cloned.world.a.device.is_up
    assert not cloned.world.a.tables.is_halted


def test_keys_are_made_of_the_kernel_s_random_numbers(monkeypatch):
    """Those of a library have a state in our memory, which the other machine has, too."""
    monkeypatch.setattr(os, "urandom", lambda length: bytes([7]) * length)
    assert noise.DhKeyPair.generate().public == noise.DhKeyPair.from_private(bytes([7]) * 32).public
    one, two = (lane_messages.generate_kem_key() for _ in range(2))
    assert one.public_key().public_bytes_raw() == two.public_key().public_bytes_raw()
