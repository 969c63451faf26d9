"""What the kernel drops before a worker sees it is in the status."""

import os
import re
import signal
import sys

from fastpump.lab.networks import INSIDE4, OUTSIDE4, fastpump_pair
from support.hosts import FASTPUMP, is_reachable, until

FLOOD = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
    for _ in range(int(sys.argv[3])):
        out.sendto(bytes.fromhex(sys.argv[4]), (sys.argv[1], int(sys.argv[2])))
"""
TRANSPORT = "04000000" + "00" * 1400      # receiver index 0: worker 0's


def flood(lab, side, host, port, count, datagram):
    lab.run(side, sys.executable, "-c", FLOOD, host, str(port), str(count), datagram)


def stopped(lab, number):
    pid = lab.status("a")["queues"][number]["pid"]
    os.kill(pid, signal.SIGSTOP)
    return pid


def test_packets_that_a_full_queue_of_the_interface_loses(lab, tmp_path):
    with fastpump_pair(lab, tmp_path, "--queues", "1"):
        assert is_reachable(lab, INSIDE4["b"])
        assert lab.status("a")["tun_rx_dropped"] == 0
        pid = stopped(lab, 0)
        try:
            lab.ip("a", "link", "set", "fp0", "txqueuelen", "10")
            flood(lab, "a", INSIDE4["b"], 9, 100, "00")
            statistics = "/sys/class/net/fp0/statistics/tx_dropped"
            lost = int(lab.run("a", "cat", statistics).stdout)
            assert lost >= 80
            assert lab.status("a")["tun_rx_dropped"] == lost
        finally:
            os.kill(pid, signal.SIGCONT)
        text = lab.run("a", *FASTPUMP, "status", "fp0").stdout
        assert f"  full interface queues (tx_dropped): {lost}\n" in text


def test_datagrams_that_full_sockets_lose_by_queue_and_from_one_socket_to_the_next(lab, tmp_path):
    with fastpump_pair(lab, tmp_path, "--queues", "2"):
        pid = stopped(lab, 0)
        try:
            flood(lab, "b", OUTSIDE4["a"], 51820, 3000, TRANSPORT)
            first, second = lab.status("a")["queues"]
            counts = [int(line.split()[-1]) for line in lab.run(
                "a", "cat", "/proc/net/udp6").stdout.splitlines()[1:]]
        finally:
            os.kill(pid, signal.SIGCONT)
        assert first["udp_rx_dropped"] == max(counts) > 100
        assert second["udp_rx_dropped"] == 0
        lab.ip("a", "link", "set", "fp0", "down")
        until(lambda: not lab.status("a")["is_up"])
        assert lab.status("a")["queues"][0]["udp_rx_dropped"] == first["udp_rx_dropped"]
        lab.ip("a", "link", "set", "fp0", "up")
        until(lambda: lab.status("a")["queues"][0]["pid"])
        assert lab.status("a")["queues"][0]["udp_rx_dropped"] == first["udp_rx_dropped"]
        text = lab.run("a", *FASTPUMP, "status", "fp0").stdout
        assert re.search(rf"\(RcvbufErrors\): {first['udp_rx_dropped']} at queue 0$", text,
                         re.MULTILINE)


def test_what_is_no_handshake_message_is_counted_at_the_handshake_socket(lab, tmp_path):
    with fastpump_pair(lab, tmp_path, "--queues", "1"):
        flood(lab, "b", OUTSIDE4["a"], 51820, 5, "09" * 40)
        until(lambda: lab.status("a")["handshakes_dropped"] == 5)
