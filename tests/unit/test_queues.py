"""Opening a TUN where the kernel or its surroundings refuse something: what is said, and done."""

import errno
import fcntl
import os
import struct

import pytest

from fastpump.errors import SystemSetupError
from fastpump.kernel import (
    IFF_MULTI_QUEUE,
    IFF_NO_PI,
    IFF_TUN,
    IFF_TUN_EXCL,
    IFF_VNET_HDR,
    IFREQ_FLAGS,
    TUNGETFEATURES,
    TUNSETIFF,
)
from fastpump.tun import queues
from support.hosts import open_files

FLAGS = IFF_TUN | IFF_VNET_HDR | IFF_MULTI_QUEUE
ALL = FLAGS | IFF_NO_PI
MISC = "  1 psaux\n200 tun\n"


class Driver:
    """A TUN driver that knows some flags, and interfaces."""

    def __init__(self, known, *, has_excl=True, tells=True, interfaces=()):
        self.known, self.has_excl, self.tells = known, has_excl, tells
        self.interfaces, self.made = interfaces, []

    def ioctl(self, _fd, number, argument):
        if number == TUNGETFEATURES:
            if not self.tells:
                raise OSError(errno.ENOTTY, "no such request")
            return struct.pack("=I", self.known)
        assert number == TUNSETIFF
        name, flags = IFREQ_FLAGS.unpack(argument)
        excl = IFF_TUN_EXCL if self.has_excl else 0
        if flags & ~(self.known | excl):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if name.rstrip(b"\0").decode() in self.interfaces and flags & IFF_TUN_EXCL:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        self.made.append((name.rstrip(b"\0").decode(), flags))
        return argument


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that installs a driver."""
    def install(driver):
        (tmp_path / "tun").touch()
        monkeypatch.setattr(queues, "DEVICE", str(tmp_path / "tun"))
        monkeypatch.setattr(fcntl, "ioctl", driver.ioctl)
        return driver
    return install


def refusal(name="fp-test0"):
    before = open_files()
    with pytest.raises(SystemSetupError) as error:
        queues.open_queue(name, FLAGS)
    assert open_files() == before
    return str(error.value)


@pytest.mark.parametrize("known, tells, missing", [
    (ALL & ~IFF_MULTI_QUEUE, True, "queues (IFF_MULTI_QUEUE);"),
    (ALL & ~IFF_VNET_HDR, True, "vnet headers (IFF_VNET_HDR);"),
    (IFF_TUN | IFF_NO_PI, False, "queues (IFF_MULTI_QUEUE) and vnet headers (IFF_VNET_HDR);")])
def test_a_driver_without_a_feature_is_not_an_interface_that_exists(install, known, tells,
                                                                    missing):
    install(Driver(known, tells=tells))
    assert f"cannot be created: the TUN driver of this kernel has no {missing}" in refusal()


def test_a_driver_that_does_not_know_exclusive_opening(install):
    """lo exists on each host; without that flag, a TUN of that name would be taken over."""
    driver = install(Driver(ALL, has_excl=False))
    os.close(queues.open_queue("fp-test0", FLAGS))
    assert driver.made == [("fp-test0", ALL)]
    assert "the interface lo exists already" in refusal("lo")
    assert len(driver.made) == 1


def test_an_interface_that_exists(install):
    install(Driver(ALL, interfaces=("fp-test0",)))
    assert "the interface fp-test0 exists already" in refusal()


def test_a_refusal_of_another_kind_is_told_as_it_is(install, monkeypatch):
    driver = install(Driver(ALL))

    def refuse(_fd, _number, _argument):
        raise OSError(errno.EBADFD, "File descriptor in bad state")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    assert refusal() == "the TUN fp-test0 cannot be created: File descriptor in bad state"
    assert not driver.made


@pytest.mark.parametrize("misc, number, words, never", [
    # In a container, modprobe is of no use if the driver is there.
    (MISC, errno.ENOENT, ("--device /dev/net/tun", "mknod"), "modprobe"),
    ("", errno.ENOENT, ("modprobe tun", "on the host", "--device /dev/net/tun"), "mknod"),
    (None, errno.ENOENT, ("modprobe tun", "--device /dev/net/tun"), "mknod"),
    (MISC, errno.EPERM, ("--device /dev/net/tun", "CAP_NET_ADMIN"), "modprobe"),    # of a cgroup
    (MISC, errno.EACCES, ("CAP_NET_ADMIN",), "modprobe"),
    ("", errno.ENODEV, ("modprobe tun", "on the host"), "--device")])
def test_a_missing_device_is_explained(tmp_path, monkeypatch, misc, number, words, never):
    def refuse(_path, _flags):
        raise OSError(number, os.strerror(number))

    if misc is not None:
        (tmp_path / "misc").write_text(misc)
    monkeypatch.setattr(queues, "MISC_DEVICES", tmp_path / "misc")
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(SystemSetupError) as error:
            queues.open_queue("fp-test0", FLAGS)
    message = str(error.value)
    assert all(word in message for word in words) and never not in message, message
    assert "\n" not in message
