"""The sources keep their own rules (make lint)."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOT = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "fastpump" / "hot").glob("*.pxd"))


@pytest.mark.parametrize("command", [
    ["ruff", "check", "--no-cache", "."],
    ["mypy", "--cache-dir=/dev/null"],
    ["cython-lint", "fastpump/_core.pyx", *HOT],
], ids=lambda command: command[0])
def test_linter(command, monkeypatch):
    scripts = Path(sys.executable).parent       # of the virtual environment
    monkeypatch.setenv("PATH", str(scripts), prepend=":")       # cython-lint calls others
    result = subprocess.run([scripts / command[0], *command[1:]], cwd=ROOT,
                            capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_hot_path_is_free_of_python():
    """Cython's generated C for hot functions takes no GIL and makes no Python object: every
    function in a .pxd is declared noexcept nogil, which makes the compiler refuse both."""
    for path in HOT:
        for line in (ROOT / path).read_text().split("\ncdef inline ")[1:]:
            head = line[:line.index(":\n")]
            assert "noexcept nogil" in head, f"{path}: {head}"


def test_imports_go_down_only():
    """docs/ARCHITECTURE.md's layers."""
    layers = [
        {"constants", "errors", "wire", "iperf"},
        {"tai64n", "noise", "upgrade", "endpoint", "streams", "logs", "record", "signals"},
        {"cookie", "keys", "keypairs", "timers", "ratelimit", "_core", "daemon", "unixserver"},
        {"peer", "sessions", "lanes", "device", "worker", "netdev", "steering", "paths",
         "holders"},
        {"handshakes", "sockets", "capabilities", "netlink", "netlinkports", "netlinklinks",
         "linkwatch", "config", "control", "firewall", "attach", "attachstate", "ethernet",
         "hostnet", "macs", "arguments",
         "conffile", "resolver", "uapi", "workers"},
        {"supervisor", "interfaces", "taps", "monitors"},
        {"stats", "uapiserver"},
        {"tunnel", "lab"},
        {"demo", "quick", "wg", "foreground", "hostcli", "livecli"},
        {"cli"},
    ]
    level = {name: number for number, names in enumerate(layers) for name in names}
    files = {path.stem for path in (ROOT / "fastpump").glob("*.py") if path.stem[0] != "_"}
    assert files <= set(level)
    for name in files:
        for line in (ROOT / "fastpump" / f"{name}.py").read_text().splitlines():
            words = line.split()
            if words[:1] != ["from"] or not words[1].startswith("fastpump"):
                continue
            imported = words[1].removeprefix("fastpump").lstrip(".")
            targets = [imported] if imported else [
                word.strip(",()") for word in words[3:] if word.strip(",()") in level]
            for target in targets:
                assert level[target] < level[name] or level[target] == level[name] != 0, (
                    f"{name} imports {target}")


def test_only_netlink_modules_use_pyroute2():
    users = {path.name for path in (ROOT / "fastpump").glob("*.py")
             if "from pyroute2" in path.read_text() or "import pyroute2" in path.read_text()}
    assert users == {"netlink.py", "netlinkports.py", "netlinklinks.py"}
