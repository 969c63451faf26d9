"""What an operator finds the processes and log lines of a tunnel by."""

import json
import os
import signal
import sys
from pathlib import Path

from fastpump.lab.networks import wait_for_line
from support.hosts import FASTPUMP, until


def names(pid):
    """What ps and top show: (command line, short name)."""
    process = Path(f"/proc/{pid}")
    return (process / "cmdline").read_bytes(), (process / "comm").read_text().rstrip("\n")


def workers_of(lab, count=2):
    """Their pids, when all of them run."""
    pids = until(lambda: [queue["pid"] for queue in lab.status("a")["queues"] if queue["pid"]])
    assert len(pids) == count
    until(lambda: all(names(pid)[0].startswith(b"fastpump: ") for pid in pids))
    return pids


def test_workers_and_log_lines_name_the_interface(lab):
    process = lab.spawn("a", *FASTPUMP, "tunnel", "wg7", "--queues", "2", "--log-json")
    assert json.loads(wait_for_line(process, '"ready"'))["name"] == "wg7"
    pids = workers_of(lab)
    for number, pid in enumerate(pids):
        assert names(pid) == (f"fastpump: wg7 worker {number}\0".encode(), f"fpw{number}:wg7")
    os.kill(pids[1], signal.SIGKILL)
    line = json.loads(wait_for_line(process, "died of SIGKILL"))
    assert (line["level"], line["interface"]) == ("warning", "wg7")
    assert (line["worker"], line["pid"], line["cause"]) == (1, pids[1], "SIGKILL")
    assert line["message"] == f"worker 1 (pid {pids[1]}) died of SIGKILL; restarting it"


def test_a_new_name(lab):
    process = lab.spawn("a", sys.executable, "-m", "fastpump", "tunnel", "wg7", "--queues", "2")
    wait_for_line(process, " is ready: ")
    lab.ip("a", "link", "set", "wg7", "down")
    wait_for_line(process, "INFO wg7: the interface is down")
    name = "a-long.name=015"
    lab.ip("a", "link", "set", "wg7", "name", name)
    assert f"INFO {name}: the interface is now {name} in" in wait_for_line(process, "is now")
    lab.ip("a", "link", "set", name, "up")
    for number, pid in enumerate(workers_of(lab)):
        assert names(pid) == (f"fastpump: {name} worker {number}\0".encode(),
                              f"fpw{number}:{name}"[:15])
