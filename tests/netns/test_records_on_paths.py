"""Superpackets that travel whole, between real tunnels: only on paths that bring them."""

import pytest

from fastpump.lab.networks import INSIDE4, INSIDE6, fastpump_pair
from support.hosts import is_reachable, transfer, until

MUCH = 64 << 20


def total(status, name):
    return sum(queue[name] for queue in status["queues"])


@pytest.mark.parametrize("words, v6_outside", [
    ((), False), (("--cipher", "chacha20-poly1305"), True), (("--tap",), False),
    (("--mtu", "1300"), False)], ids=["IPv4 outside", "IPv6 outside", "TAP", "small MTU"])
def test_much_goes_whole_both_ways(lab, tmp_path, words, v6_outside):
    with fastpump_pair(lab, tmp_path, "--queues", "2", *words, v6_outside=v6_outside):
        # A TAP's addresses are tentative for a while.
        assert until(lambda: is_reachable(lab, INSIDE6["a"], "b"))
        assert transfer(lab, "a", INSIDE4["b"], MUCH)
        assert transfer(lab, "b", INSIDE6["a"], MUCH)
        status = {side: lab.status(side) for side in "ab"}
    for side, other in (("a", "b"), ("b", "a")):
        sent = total(status[side], "udp_tx_records")
        assert sent > 100 and total(status[other], "udp_rx_records") > 0.8 * sent
        assert any(lane["records"] for lane in status[side]["peers"][0]["lanes"])
        assert "DROP_RECORD_CUT" not in status[side]["verdicts"]


def test_a_path_that_brings_datagrams_one_by_one(lab, tmp_path):
    """The probe fails, and no data was risked."""
    for side in "ab":
        lab.run(side, "ethtool", "-K", "wire", "tx", "off", "rx", "off", "gso", "off", "gro",
                "off")
    with fastpump_pair(lab, tmp_path, "--queues", "2"):
        assert transfer(lab, "a", INSIDE4["b"], MUCH)
        status = {side: lab.status(side) for side in "ab"}
    assert total(status["a"], "udp_tx_records") == 0
    assert 1 <= status["b"]["verdicts"]["DROP_RECORD_CUT"] <= 8
    assert not any(lane["records"] for lane in status["a"]["peers"][0]["lanes"])


def test_a_path_that_starts_to_lose(lab, tmp_path):
    """The first record that comes in part is the last."""
    with fastpump_pair(lab, tmp_path, "--queues", "1"):
        assert transfer(lab, "a", INSIDE4["b"], MUCH)
        before = lab.status("a")
        assert total(before, "udp_tx_records") > 100
        # A cable without GSO: only so the filter sees single datagrams. GRO puts together what
        # is left.
        lab.run("a", "ethtool", "-K", "wire", "gso", "off", "tx-udp-segmentation", "off")
        lab.run("b", "ethtool", "-K", "wire", "gro", "on")
        lab.run("b", "nft", "-f", "-", input=(
            "table netdev lossy {\nchain in {\ntype filter hook ingress device wire priority 0\n"
            "meta l4proto udp meta length > 1000 numgen inc mod 500 0 drop\n}\n}\n"))
        assert transfer(lab, "a", INSIDE4["b"], MUCH // 4)
        assert until(lambda: not any(
            lane["records"] for lane in lab.status("a")["peers"][0]["lanes"]))
        after = lab.status("b")
    assert 1 <= after["verdicts"]["DROP_RECORD_CUT"] <= 20
