"""`fastpump demo`: prints its table and leaves nothing behind."""

import subprocess
import sys

import pytest

from fastpump.lab.networks import need

ROWS = ("ping, median", "TCP, one stream", "TCP, 4 streams", "TCP, the other way",
        "TCP, both ways", "UDP, 64 bytes")
DEMO = [sys.executable, "-m", "fastpump", "demo", "--queues", "2", "--seconds", "1"]


def links():
    return subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True,
                          check=True).stdout


def namespaces(pid):
    """Those that the lab of a process has made."""
    listing = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return [name for name in listing.stdout.split() if name.startswith(f"fp{pid}-")]


@pytest.mark.parametrize("prefix", [
    [], ["unshare", "--user", "--map-root-user", "--mount", "--net", "env",
         "FASTPUMP_DEMO_INSIDE=1"]], ids=["root", "user-namespace"])
def test_demo(prefix, tmp_path):
    """The second one has no rights outside a user namespace, as a plain user's demo."""
    need("ip", "iperf3", "ping")
    before = links()
    process = subprocess.Popen([*prefix, *DEMO], text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    output, progress = process.communicate(timeout=120)
    assert process.returncode == 0, progress
    header, rule, *rows = output.splitlines()
    assert "bare cable" in header and "fastpump, 2 queues" in header and set(rule) == {"-"}
    for name in ROWS:
        (row,) = [row for row in rows if row.startswith(name)]
        assert row.split()[-1] in ("ms", "Gbit/s", "packets/s")
        assert float(row.split()[-2].replace(",", "")) > 0
    assert "0 worker restarts" in output
    assert "  TCP, one stream" in progress
    assert links() == before
    assert not namespaces(process.pid)
    assert not list((tmp_path / "run").rglob("*.sock"))


@pytest.mark.parametrize(("number", "status"), [(2, 130), (15, 143), (1, 129)])
def test_interrupted_demo_cleans_up(number, status):
    """Ctrl-C or a signal in the middle: no namespace stays, no process in one."""
    process = subprocess.Popen(DEMO, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in process.stderr:
        if "starting" in line:
            break
    assert len(namespaces(process.pid)) == 2
    process.send_signal(number)
    _, progress = process.communicate(timeout=60)
    assert process.returncode == status and "Traceback" not in progress
    assert not namespaces(process.pid)
