"""What breaks while a tunnel runs, and who says so: in namespaces, as its operator meets it."""

import os
import signal

from fastpump.lab.networks import INSIDE4, fastpump_pair, wait_for_line
from support.hosts import is_reachable


def test_a_worker_that_hangs_is_reported_and_restarted(lab, tmp_path):
    with fastpump_pair(lab, tmp_path, "--queues", "2") as tunnel:
        assert is_reachable(lab, INSIDE4["b"])
        victim, other = (queue["pid"] for queue in lab.status("a")["queues"])
        os.kill(victim, signal.SIGSTOP)
        wait_for_line(tunnel["a"], f"worker 0 (pid {victim}) has not moved for 2 seconds")
        queues = lab.status("a")["queues"]
        assert queues[0]["unresponsive_s"] >= 2 and queues[1]["unresponsive_s"] == 0
        wait_for_line(tunnel["a"], f"worker 0 (pid {victim}) has not moved for 5 seconds: killing")
        wait_for_line(tunnel["a"], "worker 0 is back after")
        queues = lab.status("a")["queues"]
        assert [queue["restarts"] for queue in queues] == [1, 0] and queues[1]["pid"] == other
        assert queues[0]["unresponsive_s"] == 0
        assert is_reachable(lab, INSIDE4["b"])
