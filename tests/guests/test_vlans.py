"""A bridge that filters VLANs, in a guest: the host's kernel may not be able to."""

import json
import platform
from pathlib import Path

import pytest

from support import guestvlans
from support.guestimage import make_image
from support.guestpython import python_files
from support.guests import INIT, add_tap, running

PROGRAM = Path(guestvlans.__file__)

# The first download of the kernel package takes its time.
pytestmark = [pytest.mark.timeout(600), pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the guests are of the PC's architecture")]


def test_the_tunnels_port_carries_the_vlans_that_are_asked_for(lab, tmp_path):
    files, command = python_files(PROGRAM)
    image = make_image(tmp_path, INIT, files)
    add_tap(lab, "a", "guest0")
    with running(lab, {"a": "guest0"}, image, memory_mib=320) as guests:
        guest = guests["a"]
        for words in ("add trunk type veth", "add vmbr0 type bridge",
                      "set trunk master vmbr0", "set vmbr0 up", "set trunk up", "set veth0 up"):
            guest.run(f"ip link {words}")
        guest.run("echo 1 > /sys/class/net/vmbr0/bridge/vlan_filtering; mkdir -p /dev/net /run; "
                  "[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200")
        found = json.loads(guest.run(command, timeout_s=120).splitlines()[-1])
    assert found["filters"]
    without, given = found["without"], found["with"]
    assert without["to_station"] == without["to_tap"] == [None]
    assert without["tagged"] == []
    assert without["warnings"] == [
        "the bridge vmbr0 filters VLANs, and lets no tagged frame pass to or from fp0: say which "
        "VLANs the tunnel carries, such as --bridge-vlans 2-4094"]
    assert given["to_station"] == given["to_tap"] == [3, 100, None]
    assert given["tagged"] == [[2, 50], [100, 4094]]
    assert given["warnings"] == []
