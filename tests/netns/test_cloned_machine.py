"""A virtual machine that was cloned: the kernel's uevent in a tunnel's network namespace."""

import json
import os
import sys
from pathlib import Path

import pytest

from fastpump.lab.networks import INSIDE4, fastpump_pair, wait_for_line
from support import uevents
from support.hosts import is_reachable

# Sends packets into the tunnel without end, and prints when (in seconds after a uevent) which
# receiver index left on the underlay. The uevent comes once a hundred messages have left, which are
# watched for another 1.5 s, and until there are other keys.
WATCHED = """
import json, os, socket, struct, sys, time
from support import uevents
underlay, inside = sys.argv[1:]
sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
sniffer.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)        # SO_RCVBUFFORCE
sniffer.setsockopt(socket.SOL_SOCKET, 35, 1)               # SO_TIMESTAMPNS
sniffer.bind((underlay, 0))
sniffer.settimeout(20)
watcher = os.getpid()
if os.fork() == 0:
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    while os.getppid() == watcher:
        sender.sendto(bytes(600), (inside, 9))
        time.sleep(0.0001)
    os._exit(0)

def next_that_leaves():
    while True:
        frame, control, _, address = sniffer.recvmsg(128, 128)
        if address[2] == 4 and frame[23] == 17 and frame[42] in (4, 5):      # PACKET_OUTGOING
            seconds, ns = struct.unpack("qq", control[0][2])
            return seconds + ns / 1e9, frame[46:50].hex()

left = [next_that_leaves() for _ in range(100)]
cloned_at = time.time()
uevents.send("kernel")
end, old = cloned_at + 1.5, left[-1][1]
while left[-1][0] < end or left[-1][1] == old and left[-1][0] < end + 20:
    left.append(next_that_leaves())
print(json.dumps([(at - cloned_at, index) for at, index in left]))
"""


@pytest.mark.parametrize("transport", ["wireguard", "lanes"])
def test_a_clone_sends_nothing_more_with_its_keys(lab, tmp_path, transport):
    with fastpump_pair(lab, tmp_path, "--queues", "2", "--transport", transport) as processes:
        assert is_reachable(lab, INSIDE4["b"])
        environment = ["env", "PYTHONPATH=" + os.pathsep.join(
            [str(Path(__file__).parents[1]), *sys.path])]
        left = json.loads(lab.run("a", *environment, sys.executable, "-c", WATCHED, "wire",
                                  INSIDE4["b"], timeout=60).stdout)
        old = {index for at, index in left if at < 0}
        window = max(at for at, index in left if index in old)
        print(f"{transport}: used keys left for {window * 1000:.2f} ms")
        assert len(old) == 1 and window < 0.5
        assert {index for _, index in left} - old       # and it goes on, with new ones
        wait_for_line(processes["a"], "cloned or restored")
        assert is_reachable(lab, INSIDE4["b"])


def test_only_the_kernel_is_believed(lab, tunnel):
    """The first uevent that is heeded is the kernel's: each is logged."""
    for sender, name in (("user", b"NEW_VMGENID=1"), ("kernel", b"OLD_VMGENID=1"),
                         ("kernel", b"NEW_VMGENID=1")):
        lab.run("a", sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv[1])\n"
                "import uevents; uevents.send(sys.argv[2], (*uevents.FIELDS[:-1], "
                "sys.argv[3].encode()))", str(Path(uevents.__file__).parent), sender,
                name.decode())
    wait_for_line(tunnel["a"], "cloned or restored")
    assert is_reachable(lab, INSIDE4["b"])
    tunnel["a"].terminate()
    assert "cloned or restored" not in tunnel["a"].communicate(timeout=20)[0]
