"""What is promised and then refused: the pump goes on without it. Offloads, by the kernel; the
faster ciphers, where their library is missing.

No kernel here refuses, so a small library is preloaded that does: every writev of a
superpacket is EINVAL, every GSO send is EIO.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastpump import _core
from fastpump.lab.networks import key_files, tunnel_words, wait_for_line
from support.hosts import FASTPUMP, is_reachable
from support.libraries import without_ipsec_mb

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


@pytest.mark.skipif("ipsec-mb" not in _core.BACKENDS, reason="only one library in this build")
def test_a_machine_without_the_faster_library_is_told_and_has_a_tunnel(lab, tmp_path):
    """What was built with it runs with OpenSSL, in all processes."""
    hidden = without_ipsec_mb(tmp_path)
    key = key_files(tmp_path)
    processes = {side: lab.spawn(side, *FASTPUMP, "tunnel", *tunnel_words(
        side, key[side], key[other][1]), env=hidden) for side, other in ("ab", "ba")}
    for process in processes.values():
        assert re.match(r"WARNING ipsec-mb cannot be used \(\S+/libIPSec_MB\.so\.\d+: file too "
                        r"short\): openssl gives the ciphers, at about half the speed$",
                        wait_for_line(process, "WARNING"))
        wait_for_line(process, " is ready: ")
    assert is_reachable(lab, "10.9.0.2")
    assert lab.status("a")["aead"] == lab.status("b")["aead"] == "openssl"
    result = subprocess.run(lab.command("a", [*FASTPUMP, "tunnel", "fp1"]), text=True, timeout=20,
                            capture_output=True, check=False,
                            env={**os.environ, **hidden, "FASTPUMP_AEAD": "ipsec-mb"})
    assert result.returncode == 1 and result.stderr.startswith(
        f"fastpump: FASTPUMP_AEAD: {tmp_path}/libIPSec_MB.so.")
