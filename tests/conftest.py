"""Fixtures of the suite, and the surroundings that each of its tests has, whoever runs it and
wherever. Tests that make namespaces need root and say so."""

import contextlib
import locale
import os
import re
import resource
import signal
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

from fastpump.lab.networks import Lab, fastpump_pair

# Of these, all tests run in one process: they share what takes long to make.
UNDIVIDED = ("tests/guests/test_guests.py", "tests/netns/test_sites.py")

# Programs are asked for English and for lines of 80 columns, in no colour.
ENVIRONMENT = {"LC_ALL": "C.UTF-8", "TZ": "UTC", "COLUMNS": "80", "PYTHON_COLORS": "0"}
# What changes the programs under test. FASTPUMP_EXPECT_BACKENDS is said to a suite by another.
FOREIGN = re.compile("FASTPUMP_(?!EXPECT_BACKENDS)|WG_|LOG_LEVEL$|LANG|LC_|FORCE_COLOR$"
                     "|PYTHON(IOENCODING|UTF8|WARNINGS|DEVMODE)$")
TEMPORARY = "fastpump-tests-"
SYSTEM_PROGRAMS = "/usr/sbin", "/sbin"

# No deadline on a machine that others share.
settings.register_profile("fastpump", database=None, deadline=None)
settings.load_profile("fastpump")


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true",
                     help="what a suite does in short for so long as it takes")


@pytest.fixture
def is_long(request):
    """Whether there is time to wait for what WireGuard waits for: keys expire after minutes."""
    return request.config.getoption("--long")


def pytest_configure(config):
    """Neither Hypothesis, Python nor matplotlib leaves files in the tree or the user's directory,
    and a run that a signal ends leaves no networks. Programs under test share what Python compiled:
    they start in half the time."""
    directory = tempfile.TemporaryDirectory(prefix=TEMPORARY)
    config.add_cleanup(directory.cleanup)
    set_hypothesis_home_dir(directory.name)
    if TEMPORARY not in os.environ.get("PYTHONPYCACHEPREFIX", ""):      # else of who started us
        os.environ["PYTHONPYCACHEPREFIX"] = f"{directory.name}/pycache"
        os.environ["MPLCONFIGDIR"] = f"{directory.name}/matplotlib"
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)


def _interrupt(_number, _frame):
    """End the run as Ctrl-C does, and once, though a terminal signals all processes."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def pytest_keyboard_interrupt():
    """xdist gives its workers ten seconds to end, and does not say why."""
    task = Path(f"/proc/self/task/{os.getpid()}/children")
    for pid in task.read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGTERM)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hand out tests one by one (`-n 2`), but undivided modules whole."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            module = nodeid.partition("::")[0]
            return module if module in UNDIVIDED else nodeid

    return Scheduling(config, log) if config.getvalue("dist") == "load" else None


@pytest.fixture(scope="session", autouse=True)
def _surroundings(tmp_path_factory):
    """The same environment, locale, umask and limits for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in filter(FOREIGN.match, list(os.environ)):
            patch.delenv(name)
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        path = os.environ.get("PATH", os.defpath).split(os.pathsep)
        patch.setenv("PATH", os.pathsep.join(dict.fromkeys((*path, *SYSTEM_PROGRAMS))))
        locale.setlocale(locale.LC_ALL, ENVIRONMENT["LC_ALL"])
        time.tzset()
        os.umask(0o022)
        _limit_resources()
        yield


def _limit_resources():
    """The usual number of files. No core dumps of programs that are crashed on purpose: a limit
    of 1 byte, unlike 0, also holds where dumps go to a program (fs/coredump.c)."""
    for which, wanted in ((resource.RLIMIT_NOFILE, 1024), (resource.RLIMIT_CORE, 1)):
        most = resource.getrlimit(which)[1]
        soft = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(which, (soft, most))


@pytest.fixture
def lab():
    """Two hosts on one network; everything in them is gone afterwards."""
    if os.geteuid() != 0:
        pytest.fail("this test makes network namespaces: run the suite as root (make test)")
    with Lab() as made:
        yield made


@pytest.fixture
def tunnel(lab, tmp_path):
    """A tunnel of four queues between both hosts: {side: process}."""
    with fastpump_pair(lab, tmp_path, "--queues", "4") as processes:
        yield processes


@pytest.fixture(autouse=True)
def _own_directories(tmp_path, monkeypatch):
    """No test writes to /var/lib or meets another's tunnels in /run."""
    monkeypatch.setenv("FASTPUMP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("FASTPUMP_RUN", str(tmp_path / "run"))
