"""VXLAN and Geneve through a tunnel: their superpackets stay whole until they are sealed."""

import pytest

from fastpump.errors import SystemSetupError
from fastpump.lab.networks import INSIDE4, INSIDE6, fastpump_pair
from support.hosts import transfer

SIZE = 8 << 20
FURTHER = {"a": "10.44.0.1", "b": "10.44.0.2"}


def add_inner(lab, kind, inside, options):
    """A tunnel in the tunnel, with FURTHER addresses."""
    for side, other in (("a", "b"), ("b", "a")):
        where = ("local", inside[side]) if kind == "vxlan" else ()
        try:
            lab.ip(side, "link", "add", "inner0", "type", kind, "id", "7", *where, "remote",
                   inside[other], "dstport", "4789", *options)
        except SystemSetupError as error:
            if "Unknown device type" in str(error) or "not supported" in str(error):
                pytest.skip(f"this kernel has no {kind}")
            raise
        lab.ip(side, "address", "add", f"{FURTHER[side]}/24", "dev", "inner0")
        lab.ip(side, "link", "set", "inner0", "mtu", "1340", "up")


def read_packets(lab, side):
    """By its workers from the interface: packets, bytes, and how many were superpackets."""
    queues = lab.status(side)["queues"]
    return [sum(queue[name] for queue in queues)
            for name in ("tun_rx_packets", "tun_rx_bytes", "tun_rx_superpackets")]


@pytest.mark.parametrize("kind, inside, options, words", [
    ("vxlan", INSIDE4, (), ()),
    ("vxlan", INSIDE4, ("noudpcsum",), ()),
    ("vxlan", INSIDE6, (), ("--transport", "wireguard")),
    ("geneve", INSIDE6, (), ()),
    ("vxlan", INSIDE4, (), ("--tap",)),
    ("vxlan", INSIDE4, (), ("--offload", "tunnel=off")),
], ids=lambda value: " ".join(value) if isinstance(value, tuple) else
    value if isinstance(value, str) else "v4" if value is INSIDE4 else "v6")
def test_tcp_in_a_tunnel_inside(lab, tmp_path, kind, inside, options, words):
    with fastpump_pair(lab, tmp_path, "--queues", "2", *words):
        add_inner(lab, kind, inside, options)
        before = read_packets(lab, "a")
        assert transfer(lab, "a", FURTHER["b"], SIZE)
        assert transfer(lab, "b", FURTHER["a"], SIZE)
        packets, size, superpackets = (now - then for now, then in zip(
            read_packets(lab, "a"), before, strict=True))
        status = lab.status("a")
    assert size > SIZE
    if "tunnel" in status["offloads"]:
        assert superpackets > 20 and size / packets > 3000
    else:       # Linux before 6.17, or it was not wanted
        assert superpackets == 0
    assert not {name for name in status["verdicts"]
                if name.startswith(("DROP_MALFORMED", "FAILED"))}
