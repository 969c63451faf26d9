"""The sources keep their own rules (make lint)."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fastpump"
HOT = sorted(str(path.relative_to(ROOT)) for path in (PACKAGE / "hot").glob("*.pxd"))
PARTS = sorted((PACKAGE / "core_parts").glob("*.pxi"))

# What the modules of a room may import: modules of the root, and other rooms. A room is a folder of
# fastpump/; its own modules are always allowed. docs/ARCHITECTURE.md says what each room is for.
VOCABULARY = {"errors", "constants", "kernel", "classic_bpf", "paths", "ratelimit", "clock",
              "cpus", "ip", "verdicts"}
ROOMS = {
    "process": VOCABULARY,
    "netlink": VOCABULARY,
    "protocol": VOCABULARY | {"_core"},
    "conn": VOCABULARY | {"protocol"},
    "lab": VOCABULARY | {"process", "protocol"},
    "bench": VOCABULARY | {"process", "lab", "protocol"},
    "tun": VOCABULARY | {"_core", "protocol"},
    "device": VOCABULARY | {"_core", "protocol", "conn"},
    "config": VOCABULARY | {"protocol", "conn", "tun"},
    "host": VOCABULARY | {"netlink", "tun", "config"},
    "ipc": VOCABULARY | {"_core", "protocol", "conn", "device", "config"},
    "tunnel": VOCABULARY | {"_core", "worker", "process", "netlink", "protocol", "conn", "tun",
                            "device", "config", "host", "ipc"},
    "cli": VOCABULARY | {"__init__", "process", "netlink", "protocol", "conn", "lab",
                         "bench", "tun", "device", "config", "host", "ipc", "tunnel"},
}
# What a module of the root may import.
ROOT_MODULES = {
    "__init__": set(), "__main__": {"cli"}, "worker": {"_core"}, "errors": set(),
    "constants": set(), "paths": {"errors"}, "clock": set(), "cpus": set(), "ratelimit": {"errors"},
    "verdicts": set(), "ip": set(), "kernel": set(), "classic_bpf": set(),
}
SOURCES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("command", [
    ["ruff", "check", "--no-cache", "."],
    ["mypy", "--cache-dir=/dev/null"],
    ["cython-lint", "fastpump/_core.pyx", "fastpump/bench/_packets.pyx", *HOT],
], ids=lambda command: command[0])
def test_linter(command, monkeypatch):
    run_linter(command, monkeypatch)


def test_linter_of_the_core_s_parts(tmp_path, monkeypatch):
    """cython-lint looks for unused names in .pyx files only: so it gets copies of that name."""
    copies = [tmp_path / f"{path.stem}.pyx" for path in PARTS]
    for path, copy in zip(PARTS, copies, strict=True):
        shutil.copy(path, copy)
    run_linter(["cython-lint", "--max-line-length", "100", *copies], monkeypatch)


def run_linter(command, monkeypatch):
    scripts = Path(sys.executable).parent       # of the virtual environment
    monkeypatch.setenv("PATH", str(scripts), prepend=":")       # cython-lint calls others
    result = subprocess.run([scripts / command[0], *command[1:]], cwd=ROOT,
                            capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_core_includes_all_its_parts():
    included = re.findall(r'^include "core_parts/(.*)"$', (PACKAGE / "_core.pyx").read_text(),
                          re.MULTILINE)
    assert sorted(included) == [path.name for path in PARTS]


def test_the_hot_path_is_free_of_python():
    """Cython's generated C for hot functions takes no GIL and makes no Python object: every
    function in a .pxd is declared noexcept nogil, which makes the compiler refuse both."""
    for path in HOT:
        for line in (ROOT / path).read_text().split("\ncdef inline ")[1:]:
            head = line[:line.index(":\n")]
            assert "noexcept nogil" in head, f"{path}: {head}"


def test_a_worker_s_loads_come_after_its_epoch():
    """An iteration begins with a store and a full fence. x86 does not show whether it is there: a
    sequentially consistent store is a fence as well there, on aarch64 (LDAPR) it is not."""
    stores = {path for path in HOT if re.search(r"\bstore64\(&\w+(\.shared)?\.epoch",
                                                (ROOT / path).read_text())}
    assert stores == {"fastpump/hot/reclaim.pxd", "fastpump/hot/worker_exit.pxd"}
    (enter,) = re.findall(r"(?s)epoch_enter\(WorkerShared .*?\n\n", (
        PACKAGE / "hot/reclaim.pxd").read_text())
    assert enter.rstrip().splitlines()[-1].strip() == "fence(SEQ_CST)"
    loop = (PACKAGE / "hot/loop.pxd").read_text()
    assert loop.count("epoch_enter(worker.shared") == 2


def room_of(module):
    """fastpump.host.taps -> host; fastpump.errors -> errors; fastpump -> __init__."""
    return module.split(".")[1] if "." in module else "__init__"


def is_module(dotted):
    path = PACKAGE.joinpath(*dotted.split(".")[1:])
    return path != PACKAGE and (path.is_dir() or path.with_suffix(".py").exists()
                                or path.with_suffix(".pyx").exists())


def imported_by(tree):
    """The modules of ours that a module imports: at its head, inside of functions, and by a
    string ("fastpump.config.model", or "host.taps" of `lazily`)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("fastpump"))
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide the room"
            if node.module.split(".")[0] == "fastpump":
                for name in node.names:
                    inner = f"{node.module}.{name.name}"
                    yield inner if is_module(inner) else node.module
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.removeprefix("fastpump.").split(".")
            if all(word.isidentifier() for word in words) and "." in node.value:
                names = ["fastpump." + ".".join(words), "fastpump." + ".".join(words[:-1])]
                yield from [name for name in names if is_module(name)][:1]


def test_imports_by_strings_and_in_functions_are_seen():
    tree = ast.parse("import fastpump.errors\nfrom fastpump.host import (\n    taps,\n)\n"
                     "def f():\n    from fastpump.lab.networks import Lab\n"
                     "parse = lazily('parse_mac', 'tun.queues')\nx = 'fastpump.cli.main.run'\n"
                     "log = 'fastpump.steering'\nfrom fastpump import __version__\n")
    assert sorted(imported_by(tree)) == [
        "fastpump", "fastpump.cli.main", "fastpump.errors", "fastpump.host.taps",
        "fastpump.lab.networks", "fastpump.tun.queues"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_the_rooms_of_its_row(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    room = parts[0]
    allowed = ROOT_MODULES[room] if len(parts) == 1 else ROOMS[room] | {room}
    for module in imported_by(ast.parse(path.read_text())):
        assert room_of(module) in allowed, f"{'/'.join(parts)} imports {module}"


def test_the_rooms_make_no_circle():
    """So that a reader can go through them from the bottom to the top."""
    settled = set(ROOT_MODULES) | {"_core"}
    left = dict(ROOMS)
    while left:
        ready = {room for room, allowed in left.items() if allowed <= settled}
        assert ready, f"in a circle: {sorted(left)}"
        settled |= ready
        for room in ready:
            del left[room]


def test_the_values_of_log_lines_have_names():
    """In one dict, so that they are fields with --log-json (process/logs.py)."""
    levels = {"debug", "info", "warning", "error", "exception", "critical"}
    for path in SOURCES:
        for call in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
                    and isinstance(call.func.value, ast.Name) and call.func.value.id == "log"):
                continue
            assert call.func.attr in levels | {"log"}, f"{path}:{call.lineno}"
            message, *values = call.args[call.func.attr == "log":]
            if isinstance(message, ast.Constant):
                given = {key.value for each in values for key in each.keys}
                named = re.findall(r"%(?:\((\w+)\)|.)", message.value)
                assert len(values) <= 1 and set(named) == given, f"{path}:{call.lineno}"


def test_nothing_is_too_large():
    """A file is at most 600 lines, a class at most 30 methods."""
    cython = [*PACKAGE.glob("*.pyx"), *PARTS, *(PACKAGE / "hot").glob("*.*")]
    for path in [*SOURCES, *cython]:
        assert len(path.read_text().splitlines()) <= 600, path
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                methods = [each for each in node.body
                           if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
                assert len(methods) <= 30, f"{path}: {node.name}"
    for path in cython:
        for part in re.split(r"(?m)^cdef class ", path.read_text())[1:]:
            body = re.split(r"(?m)^(?=\S)", part, maxsplit=1)[-1]
            body = part[:part.index(body)] if body != part else part
            methods = re.findall(r"(?m)^    (?:cdef|cpdef|def) .*\(", body)
            assert len(methods) <= 30, f"{path}: {part[:20]}"


def test_rooms_load_nothing_by_themselves():
    """`fastpump genkey` and a worker start quickly: a package's __init__ imports nothing."""
    for path in PACKAGE.rglob("__init__.py"):
        assert path.parent == PACKAGE or not path.read_text(), path


def test_only_the_room_of_netlink_uses_pyroute2():
    users = {path.parent.name for path in SOURCES
             for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.Import | ast.ImportFrom)
             for name in ([node.module or ""] if isinstance(node, ast.ImportFrom)
                          else [each.name for each in node.names])
             if name.split(".")[0] == "pyroute2"}
    assert users == {"netlink"}
