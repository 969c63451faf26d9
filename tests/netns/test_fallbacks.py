"""Offloads that the kernel promises and then refuses: the pump goes on without them.

No kernel here refuses, so a small library is preloaded that does: every writev of a
superpacket is EINVAL, every GSO send is EIO.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REFUSE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

ssize_t writev(int fd, const struct iovec *iov, int count)
{
    static ssize_t (*real)(int, const struct iovec *, int);
    if (count > 2) { /* a vnet header, a packet, and the payloads of more */
        errno = EINVAL;
        return -1;
    }
    if (!real)
        real = dlsym(RTLD_NEXT, "writev");
    return real(fd, iov, count);
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags)
{
    static int (*real)(int, struct mmsghdr *, unsigned int, int);
    if (!real)
        real = dlsym(RTLD_NEXT, "sendmmsg");
    if (messages[0].msg_hdr.msg_control) {
        errno = EIO;
        return -1;
    }
    return real(fd, messages, 1, flags);
}
"""

PROGRAM = """
from support.packets import A4, B4, superpacket, tcp, udp
from support.pumps import pair
from fastpump import _core

one, two = pair()
whole = superpacket(tcp(A4, B4, bytes(range(250)) * 20), 1000)
for round_number in range(2):
    one.interface.send(whole)
    for _ in range(4):
        one.poll()
        two.poll()
    assert [data[10:] for data in two.take()] == _core.split(whole), "packets differ"
print(one.verdicts(), two.verdicts())
print(sorted(one.tables.offloads), sorted(two.tables.offloads))
print(one.events().count("offload_off"), two.events().count("offload_off"))
"""


@pytest.fixture
def refusing(tmp_path):
    source, library = tmp_path / "refuse.c", tmp_path / "refuse.so"
    source.write_text(REFUSE)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def test_refused_superpackets_go_singly_and_are_switched_off(refusing):
    environment = {**os.environ, "LD_PRELOAD": str(refusing), "PYTHONPATH": os.pathsep.join(
        [str(Path(__file__).parents[1]), *sys.path])}
    result = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, text=True,
                            capture_output=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "{'FAILED_UDP_GSO': 1} {'FAILED_TUN_GSO': 1}",
        "['tun-tcp4', 'tun-tcp6', 'tun-udp4', 'tun-udp6'] "
        "['tun-tcp6', 'tun-udp4', 'tun-udp6', 'udp-gso']",
        "1 1",
    ]
