"""All keys are dropped at once: nothing that was sealed with them leaves from then on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.packets import A4, B4, frame, superpacket, tcp, udp
from support.plainlanes import parse_relay
from support.pumps import START, datagrams, lane_pair, pair
from support.sites import ALL, close, network, settle


@pytest.fixture(params=["session", "lane"])
def ends(request, closed):
    return closed((pair if request.param == "session" else lane_pair)())


def test_nothing_leaves_while_halted(ends, one, two):
    one.tables.halt()
    assert one.tables.is_halted
    one.give(udp(A4, B4, bytes(100)))
    one.interface.send(superpacket(tcp(A4, B4, bytes(5000)), 1000))
    one.poll()
    assert datagrams(two.udp) == [] and all(
        datagrams(sock) == [] for sock in two.lane_sockets)
    assert one.verdicts() == {"DROP_HALTED": 6}
    one.tables.resume()
    assert not one.tables.is_halted
    one.give(udp(A4, B4, bytes(100)))
    one.poll()
    assert len(datagrams(two.udp)) == 1
    assert one.verdicts() == {"DROP_HALTED": 6}


def test_counters_that_were_taken_do_not_come_back(ends, one, two):
    def counter():
        one.give(udp(A4, B4, bytes(600)))
        one.poll()
        return [int.from_bytes(each[8:16], "little") for each in datagrams(two.udp)]

    (before,) = counter()
    one.tables.halt()
    assert counter() == []
    one.tables.resume()
    assert counter() == [before + 2]


def test_resuming_without_a_halt_changes_nothing(ends, one, two):
    one.tables.resume()
    assert not one.tables.is_halted
    one.give(udp(A4, B4, bytes(100)))
    one.poll()
    assert len(datagrams(two.udp)) == 1


# Halts and resumes (the number goes up by two) while the pump reads the interface, as another
# process would.
HALT_IN_READ = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

ssize_t read(int fd, void *buffer, size_t length)
{
    static ssize_t (*real)(int, void *, size_t);
    const char *where = getenv("HALT_AT");
    int tables, offset;
    uint32_t number;
    if (!real)
        real = dlsym(RTLD_NEXT, "read");
    ssize_t result = real(fd, buffer, length);
    if (where && result > 0 && sscanf(where, "%d %d", &tables, &offset) == 2) {
        unsetenv("HALT_AT");
        if (pread(tables, &number, 4, offset) == 4) {
            number += 2;
            if (pwrite(tables, &number, 4, offset) != 4)
                abort();
        }
    }
    return result;
}
"""

PROGRAM = """
import os
from support.packets import A4, B4, udp
from support.pumps import datagrams, pair

one, two = pair()
before = os.pread(one.tables.configuration_fd, 4096, 0)
one.tables.halt()
halted = os.pread(one.tables.configuration_fd, 4096, 0)
one.tables.resume()
(offset,) = [at for at in range(4096) if before[at] != halted[at]]
one.poll()
os.environ["HALT_AT"] = f"{one.tables.configuration_fd} {offset}"
one.give(udp(A4, B4, bytes(100)))
one.poll()
assert os.pread(one.tables.configuration_fd, 4, offset)[0] == 4, "no halt"
assert not one.tables.is_halted
assert datagrams(two.udp) == []
assert one.verdicts() == {"DROP_HALTED": 1}
one.give(udp(A4, B4, bytes(100)))
one.poll()
assert len(datagrams(two.udp)) == 1
"""


def test_what_was_sealed_before_the_keys_were_dropped_does_not_leave_after(tmp_path):
    source, library = tmp_path / "halt.c", tmp_path / "halt.so"
    source.write_text(HALT_IN_READ)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    preloaded = f"{os.environ.get('LD_PRELOAD', '')} {library}"     # sanitizers must come first
    environment = {**os.environ, "LD_PRELOAD": preloaded, "PYTHONPATH": os.pathsep.join(
        [str(Path(__file__).parents[1]), *sys.path])}
    result = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, text=True,
                            capture_output=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("is_halted", [False, True])
def test_a_clone_s_flood_ids_are_its_own(is_halted):
    """A process that is forked stands for the other machine: its random numbers are the same until
    it is told."""
    sites = network("a", "b")

    def flood(name):
        """The id that a broadcast gets."""
        sites["a"].give(frame(ALL, f"02:00:00:00:00:0{name}", bytes(46), ethertype=0x0806))
        sites["a"].poll(START)
        ((_, payload),) = sites["b"].wire("a")
        return parse_relay(payload)[0]

    try:
        settle(sites)
        flood(1)
        ids, answer = [], os.pipe()
        for _ in range(2):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    if is_halted:
                        sites["a"].tables.halt()
                        sites["a"].tables.resume()
                    os.write(answer[1], repr(flood(2)).encode())
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0
            ids.append(os.read(answer[0], 100))
        assert (ids[0] == ids[1]) is not is_halted
    finally:
        close(sites)
