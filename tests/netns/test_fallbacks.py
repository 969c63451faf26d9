"""What is promised and then refused: the pump goes on without it. Offloads, by the kernel; the
faster ciphers, where their library is missing.

No kernel here refuses, so a small library is preloaded that does. Every writev of a superpacket is
EINVAL. A GSO send is refused as the environment says at that moment: REFUSED holds port=errno=size
of destinations, separated by blanks; segments of that size and more are refused.
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
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

static int refusal(struct msghdr *message)
{
    int port = ntohs(((struct sockaddr_in6 *)message->msg_name)->sin6_port);
    const char *at = getenv("REFUSED");
    int refused, error, from, length;
    unsigned short size = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c))
        if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == 103) /* UDP_SEGMENT */
            memcpy(&size, CMSG_DATA(c), sizeof size);
    while (size && at && sscanf(at, " %d=%d=%d%n", &refused, &error, &from, &length) == 3) {
        if (refused == port && size >= from)
            return error;
        at += length;
    }
    return 0;
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags)
{
    static int (*real)(int, struct mmsghdr *, unsigned int, int);
    int error = refusal(&messages[0].msg_hdr);
    if (error) {
        errno = error;
        return -1;
    }
    if (!real)
        real = dlsym(RTLD_NEXT, "sendmmsg");
    return real(fd, messages, 1, flags);
}
"""

PROGRAM = """
import errno, os
from support.packets import A4, B4, VNET, superpacket, tcp, udp
from support.pumps import pair
from fastpump import _core

one, two = pair()
os.environ["REFUSED"] = f"{two.udp.getsockname()[1]}={errno.EIO}=0"
whole = superpacket(tcp(A4, B4, bytes(range(250)) * 20), 1000)
for round_number in range(2):
    one.interface.send(whole)
    for _ in range(4):
        one.poll()
        two.poll()
    assert [data[VNET.size:] for data in two.take()] == _core.split(whole), "packets differ"
print(one.verdicts(), two.verdicts())
print(sorted(one.tables.offloads), sorted(two.tables.offloads))
print([event for event in one.events() if event != "unanswered_tx"],
      two.events().count("offload_off"))
"""

# `messages`: how many messages five datagrams to an address become, and how many sends of them were
# refused, so many seconds after the start.
PATHS = """
import errno, os, socket
from fastpump._core import NewKeypair
from fastpump.constants import SECOND
from support.packets import A4, B4, PLAIN, superpacket, tcp
from support.pumps import START, Endpoint, pair, udp_socket

C4 = "10.9.0.9"
BEGIN = START // SECOND * SECOND
END = BEGIN + 200 * SECOND
one, two = pair()
other = udp_socket()
peer = one.tables.peers.add()
slot, index = one.tables.keypairs.reserve(0)
one.tables.keypairs.install(slot, NewKeypair(
    local_index=index, remote_index=9, peer=peer, worker=0, send_key=bytes(32),
    receive_key=bytes(32), is_initiator=True, rekey_at_ns=END, rekey_rx_at_ns=END,
    reject_at_ns=END))
one.tables.peers.set_send_keypair(peer, slot)
one.tables.allowed_ips.insert(bytes([10, 9, 0, 9]), 32, peer)
PORTS = {B4: two.udp.getsockname()[1], C4: other.getsockname()[1]}


def endpoint(to):
    where = Endpoint.from_python(("::ffff:127.0.0.1", PORTS[to], 0, 0))
    one.tables.peers.set_endpoint(one.peer if to == B4 else peer, where.sockaddr(socket.AF_INET6))


def forget(to):
    "What was refused there: it is elsewhere, and there again."
    one.tables.peers.set_endpoint(one.peer if to == B4 else peer, b"")
    endpoint(to)


def refuse(*refused):
    os.environ["REFUSED"] = " ".join(f"{PORTS[to]}={error}={size}" for to, error, size in refused)


def counts():
    return one.counters()["udp_tx_messages"], one.verdicts().get("FAILED_UDP_GSO", 0)


def messages(to, seconds, size=1000):
    before = counts()
    one.interface.send(superpacket(tcp(A4, to, bytes(5 * size)), size))
    one.poll(BEGIN + int(seconds * SECOND))
    return tuple(after - count for after, count in zip(counts(), before))


endpoint(C4)
"""

STEPS = {
    "a path without checksum offload concerns no other": """
refuse((B4, errno.EIO, 0))
assert messages(B4, 0) == (5, 1)
assert messages(C4, 0) == (1, 0)
assert messages(B4, 0.5, size=10) == (5, 0)
assert messages(C4, 0.5) == (1, 0)
""",
    "a smaller path MTU concerns its path and size only": """
for error in (errno.EMSGSIZE, errno.EINVAL):
    refuse((B4, error, 1000))
    assert messages(B4, 0) == (5, 1)
    assert messages(B4, 0) == (5, 0)
    assert messages(B4, 0, size=900) == (1, 0)
    assert messages(C4, 0) == (1, 0)
    forget(B4)
""",
    "the source address has nothing to do with it": """
one.udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
two.interface.send(PLAIN + tcp(B4, A4, b"where two is, and where it sends to"))
two.poll(BEGIN)
one.poll(BEGIN)
where = one.tables.peers.endpoint(one.peer)
assert any(where[1]) and one.events().count("roam") == 1
one.tables.peers.rearm(one.peer, "roam")
for error in (errno.EINVAL, errno.EMSGSIZE):
    refuse((B4, error, 1000))
    for seconds, refused in ((0, 1), (0.2, 0), (0.4, 0)):
        assert messages(B4, seconds) == (5, refused)
        assert one.tables.peers.endpoint(one.peer) == where
        two.interface.send(PLAIN + tcp(B4, A4, b"an answer from there"))
        two.poll(BEGIN)
        one.poll(BEGIN)
        assert not {"roam", "source_address_gone"} & set(one.events())
    forget(B4)
    one.tables.peers.set_endpoint(one.peer, *where)
""",
    "all whom it concerns are reported": """
refuse((B4, errno.EIO, 0), (C4, errno.EIO, 0))
assert messages(B4, 0) == messages(C4, 0.1) == (5, 1)
assert one.events().count("gso_refused") == 2
assert messages(B4, 1)[1] == messages(C4, 1.1)[1] == 1
assert one.events().count("gso_refused") == 0
one.tables.peers.rearm(peer, "gso_refused")
assert messages(C4, 4)[1] == 1
assert one.events().count("gso_refused") == 1
""",
    "tried again later and later, and used when it works": """
refuse((B4, errno.EIO, 0))
tries = [seconds / 2 for seconds in range(160) if messages(B4, seconds / 2) == (5, 1)]
assert tries == [0, 1, 3, 7, 15, 31, 63], tries
refuse()
assert messages(B4, 94) == (5, 0)
assert messages(B4, 95) == (1, 0)
assert messages(B4, 95) == (1, 0)
refuse((B4, errno.EIO, 0))
assert [messages(B4, 95 + seconds)[1] for seconds in (0, 0.5, 1)] == [1, 0, 1]
""",
    "one of a batch tries again": """
refuse((B4, errno.EIO, 0))
assert messages(B4, 0) == (5, 1)
for _ in range(20):
    one.interface.send(superpacket(tcp(A4, B4, bytes(60000)), 1000))
one.poll(BEGIN + SECOND)
assert counts()[1] == 2, one.verdicts()
""",
    "forgotten when the peer is elsewhere": """
refuse((B4, errno.EIO, 0))
assert messages(B4, 0) == (5, 1)
PORTS[B4], PORTS[C4] = PORTS[C4], PORTS[B4]
endpoint(B4)
endpoint(C4)
assert messages(B4, 0) == (1, 0)
assert messages(C4, 0) == (5, 1)
""",
}


@pytest.fixture(scope="module")
def refusing(tmp_path_factory):
    directory = tmp_path_factory.mktemp("refuse")
    source, library = directory / "refuse.c", directory / "refuse.so"
    source.write_text(REFUSE)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def run(library, program):
    """What a program prints whose kernel refuses."""
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(
        [str(Path(__file__).parents[1]), *sys.path])}
    result = subprocess.run([sys.executable, "-c", program], env=environment, text=True,
                            capture_output=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_refused_superpackets_go_singly(refusing):
    """To the interface, that is switched off; UDP GSO on this path only, for a while."""
    assert run(refusing, PROGRAM) == [
        "{'FAILED_UDP_GSO': 1} {'FAILED_TUN_GSO': 1}",
        "['tun-tcp4', 'tun-tcp6', 'tun-udp4', 'tun-udp6', 'udp-gso'] "
        "['tun-tcp6', 'tun-udp4', 'tun-udp6', 'udp-gso']",
        "['gso_refused'] 1",
    ]


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_a_refused_gso_send_is_a_matter_of_the_path(refusing, steps):
    run(refusing, PATHS + steps)


@pytest.mark.skipif("ipsec-mb" not in _core.BACKENDS, reason="it is not in this build")
def test_a_machine_without_the_faster_library_is_told_and_has_a_tunnel(lab, tmp_path):
    """What was built with it runs with the others, in all processes."""
    hidden = without_ipsec_mb(tmp_path)
    key = key_files(tmp_path)
    processes = {side: lab.spawn(side, *FASTPUMP, "tunnel", *tunnel_words(
        side, key[side], key[other][1]), env=hidden) for side, other in ("ab", "ba")}
    for process in processes.values():
        assert re.match(r"WARNING fp0: ipsec-mb cannot be used \(\S+/libIPSec_MB\.so\.\d+: file "
                        r"too short\): [a-z and]+ gives the ciphers, slower$",
                        wait_for_line(process, "WARNING"))
        wait_for_line(process, " is ready: ")
    assert is_reachable(lab, "10.9.0.2")
    for side in "ab":
        assert "ipsec-mb" not in lab.status(side)["aead"].values()
    result = subprocess.run(lab.command("a", [*FASTPUMP, "tunnel", "fp1"]), text=True, timeout=20,
                            capture_output=True, check=False,
                            env={**os.environ, **hidden, "FASTPUMP_AEAD": "ipsec-mb"})
    assert result.returncode == 1 and result.stderr.startswith(
        f"fastpump: FASTPUMP_AEAD: {tmp_path}/libIPSec_MB.so.")
