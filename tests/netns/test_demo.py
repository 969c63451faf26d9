"""`fastpump demo`: prints its table and leaves nothing behind."""

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from fastpump.lab.networks import ip, need, stop

ROWS = ("ping, median", "TCP, one stream", "TCP, 4 streams", "TCP, the other way",
        "TCP, both ways", "UDP, 64 bytes")
DEMO = [sys.executable, "-m", "fastpump", "demo", "--queues", "2", "--seconds", "1"]
OWNER = str(Path(__file__).stat().st_uid)       # who can read the program, wherever it is


@contextlib.contextmanager
def demo(*prefix):
    """The demo, which is ended if it does not end."""
    process = subprocess.Popen([*prefix, *DEMO], text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        stop(process)


def namespaces(pid):
    """Those that the lab of a process has made."""
    return [name for name in ip("netns", "list").split() if name.startswith(f"fp{pid}-")]


def check_table(process):
    """It has all rows, and they are plausible."""
    output, progress = process.communicate(timeout=150)
    assert process.returncode == 0, progress
    header, rule, *rows = output.splitlines()
    assert "bare cable" in header and "fastpump, 2 queues" in header and set(rule) == {"-"}
    for name in ROWS:
        (row,) = [row for row in rows if row.startswith(name)]
        assert row.split()[-1] in ("ms", "Gbit/s", "packets/s")
        assert float(row.split()[-2].replace(",", "")) > 0
    assert "0 worker restarts" in output and "not plausible" not in output
    assert "  TCP, one stream" in progress


def test_demo(lab, tmp_path):
    before = lab.ip("a", "-brief", "link")
    with demo(*lab.command("a", [])) as process:
        check_table(process)
    assert lab.ip("a", "-brief", "link") == before
    assert not namespaces(process.pid)
    assert not list((tmp_path / "run").rglob("*.sock"))


def test_demo_of_a_plain_user():
    """Without rights outside a user namespace."""
    need("unshare", "setpriv")
    prefix = ["setpriv", "--reuid", OWNER, "--regid", OWNER, "--clear-groups", "unshare", "--user",
              "--map-root-user", "--mount", "--net", "env", "-u", "FASTPUMP_RUN"]
    probe = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"users may make no namespaces here: {probe.stderr.strip()}")
    with demo(*prefix, "FASTPUMP_DEMO_INSIDE=1") as process:
        check_table(process)
    assert not namespaces(process.pid)


@pytest.mark.parametrize(("number", "status"), [(2, 130), (15, 143), (1, 129)])
def test_interrupted_demo_cleans_up(number, status):
    """Ctrl-C or a signal in the middle: no namespace stays, no process in one."""
    with demo() as process:
        for line in process.stderr:
            if "starting" in line:
                break
        assert len(namespaces(process.pid)) == 2
        process.send_signal(number)
        _, progress = process.communicate(timeout=60)
    assert process.returncode == status and "Traceback" not in progress
    assert not namespaces(process.pid)
