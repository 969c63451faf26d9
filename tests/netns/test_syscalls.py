"""What a worker asks of the kernel while packets flow, and what it may ask at all."""

import os
import signal
import sys
from pathlib import Path

from fastpump.lab.networks import INSIDE4, fastpump_pair, need, stop, wait_for_line
from support.hosts import is_reachable, until

PUMP = {"read", "write", "writev", "sendmmsg", "recvmmsg", "epoll_wait", "epoll_pwait",
        "clock_nanosleep"}


def trace(lab, pids, seconds, output):
    """System calls of processes by name and number, while the lab runs load."""
    words = [word for pid in pids for word in ("-p", str(pid))]
    strace = lab.spawn("a", "strace", "-c", "-f", "-o", str(output), *words)
    for _ in pids:
        wait_for_line(strace, "attached")
    lab.tcp_both_ways("a", INSIDE4["b"], seconds)
    stop(strace, signal.SIGINT)
    lab.processes.remove(strace)
    rows = [line.split() for line in output.read_text().splitlines()]
    return {row[-1]: int(row[3]) for row in rows
            if len(row) >= 5 and row[0][0].isdigit() and row[-1] != "total"}


def test_only_the_pumps_system_calls_under_load(lab, tunnel, tmp_path):
    need("strace")
    assert is_reachable(lab, INSIDE4["b"])
    lab.serve_iperf("b")
    lab.tcp_both_ways("a", INSIDE4["b"], 1)
    pids = [queue["pid"] for queue in lab.status("a")["queues"]]
    calls = trace(lab, pids, 2, tmp_path / "strace")
    # restart_syscall: strace itself interrupts the wait when it attaches.
    assert set(calls) - {"restart_syscall"} <= PUMP, calls
    assert {"read", "sendmmsg", "recvmmsg", "writev"} <= set(calls), calls


def test_a_worker_is_locked_in(lab, tunnel):
    for queue in lab.status("a")["queues"]:
        pid = queue["pid"]
        status = lab.run("a", "cat", f"/proc/{pid}/status").stdout
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert fields["Seccomp"] == "2" and fields["NoNewPrivs"] == "1"
        for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"):
            assert int(fields[name], 16) == 0, name


def test_a_worker_cannot_write_the_configuration(lab, tunnel):
    """Keys, allowed IPs and bounds: neither its mapping nor its descriptor lets it."""
    for queue in lab.status("a")["queues"]:
        process = Path(f"/proc/{queue['pid']}")
        mapped = {words[-2]: words[1] for words in map(
            str.split, process.joinpath("maps").read_text().splitlines())
            if "memfd:fastpump" in words[-3]}
        assert mapped == {"configuration": "r--s", "state": "rw-s"}
        opened = {fd.readlink().name: process.joinpath("fdinfo", fd.name).read_text()
                  for fd in process.joinpath("fd").iterdir()
                  if "memfd:fastpump" in str(fd.readlink())}
        modes = {name.split()[1]: int(info.split("flags:")[1].split()[0], 8) & os.O_ACCMODE
                 for name, info in opened.items()}
        assert modes == {"configuration": os.O_RDONLY, "state": os.O_RDWR}


SMALL_PACKETS = """
import socket, sys, time
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end = time.monotonic() + 1
while time.monotonic() < end:
    for _ in range(200):
        sender.sendto(bytes(36), (sys.argv[1], 9))
"""


def pauses(lab):
    return sum(queue["pauses"] for queue in lab.status("a")["queues"])


def test_workers_pause_where_many_packets_come(lab, tmp_path):
    """And where few do, never."""
    with fastpump_pair(lab, tmp_path, "--queues", "1"):
        lab.ping("a", INSIDE4["b"], 20)
        assert pauses(lab) == 0
        lab.run("a", sys.executable, "-c", SMALL_PACKETS, INSIDE4["b"])
        assert until(lambda: pauses(lab) > 0)


def test_with_low_latency_they_do_not(lab, tmp_path):
    with fastpump_pair(lab, tmp_path, "--queues", "1", "--latency", "low"):
        lab.run("a", sys.executable, "-c", SMALL_PACKETS, INSIDE4["b"])
        assert until(lambda: lab.status("a")["queues"][0]["tun_rx_packets"] > 1000)
        assert pauses(lab) == 0


def test_batches_grow_under_load(lab, tunnel):
    """Many datagrams a system call under load, one when a lone packet comes."""
    assert is_reachable(lab, INSIDE4["b"])
    lab.serve_iperf("b")
    lab.iperf("a", INSIDE4["b"], 1)
    status = lab.status("a")
    datagrams = sum(queue["udp_tx_datagrams"] for queue in status["queues"])
    calls = sum(queue["udp_tx_calls"] for queue in status["queues"])
    assert datagrams > 10 * calls
    assert sum(sum(queue["tx_batches"]) for queue in status["queues"]) == calls
    assert until(lambda: sum(queue["tx_batches"][0] for queue in lab.status("a")["queues"])) > 0
