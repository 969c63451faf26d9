"""The source distribution and what is installed from it, in an environment that has nothing of this
tree's."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from support.documents import commands

ROOT = Path(__file__).parents[2]
NOT_COPIED = shutil.ignore_patterns("*.egg-info", "*.so", "__pycache__", ".*_cache")

INSTALL = ["sudo python3 -m venv /opt/fastpump", "sudo /opt/fastpump/bin/pip install .",
           "sudo ln -s /opt/fastpump/bin/fastpump /opt/fastpump/bin/fastpump-wg /usr/local/bin/"]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The path of fastpump-VERSION.tar.gz, made of a copy of the tree."""
    tree = tmp_path_factory.mktemp("sdist") / "fastpump"
    shutil.copytree(ROOT, tree, ignore=lambda folder, names: {
        *NOT_COPIED(folder, names), *({".venv", ".git", "build", "dist"} if folder == str(ROOT)
                                      else ())})
    run([sys.executable, "-m", "build", "--sdist", "."], tree)
    (archive,) = (tree / "dist").glob("fastpump-*.tar.gz")
    return archive


def run(command, tree, **environment):
    result = subprocess.run(command, cwd=tree, text=True, capture_output=True, check=False,
                            env={**os.environ, **environment})
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


def test_the_source_distribution_has_all_sources(sdist):
    """What git has of the package, the documents and the tests, and nothing that is made of it."""
    with tarfile.open(sdist) as archive:
        there = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {path.relative_to(ROOT).as_posix()
              for folder in ("fastpump", "docs", "units", "tests", "bench")
              for path in (ROOT / folder).rglob("*")
              if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"}
    wanted |= {"README.md", "LICENSE", "CONTRIBUTING.md", "Makefile", "pyproject.toml", "setup.py",
               "MANIFEST.in"}
    assert wanted <= there, wanted - there
    assert not [name for name in there if name.endswith((".c", ".so", ".pyc"))]


# Arguments: a directory; then the commands.
PRIVATE_HOST = r"""
mkdir "$1/opt" "$1/programs"
mount --rbind /opt "$1/opt"
mount -t tmpfs tmpfs /opt
for each in "$1"/opt/*/; do
    [ -d "$each" ] && mkdir "/opt/${each##*/opt/}" && mount --bind "$each" "/opt/${each##*/opt/}"
done
cp -a /usr/local/bin/. "$1/programs"
printf '#!/bin/sh\nexec "$@"\n' > "$1/programs/sudo"
chmod +x "$1/programs/sudo"
mount --bind "$1/programs" /usr/local/bin
shift
for command; do eval "$command"; done
"""


@pytest.mark.timeout(900)
def test_it_installs_as_the_readme_says(sdist, tmp_path):
    """In a mount namespace: into an /opt and a /usr/local/bin of its own. pip takes what the build
    and the program need from its index."""
    if os.geteuid() != 0:
        pytest.fail("this test mounts: run the suite as root (make test)")
    run(["tar", "-xf", sdist], tmp_path)
    (tree,) = tmp_path.glob("fastpump-*")
    install = [command for command in commands(ROOT / "README.md") if "/opt/fastpump" in command]
    assert install == INSTALL
    shown = run(["unshare", "--mount", "--propagation", "private", "bash", "-euc", PRIVATE_HOST,
                 "bash", tmp_path, *install, "/opt/fastpump/bin/python "
                 f"{ROOT}/tests/support/installed.py /opt/fastpump /usr/local/bin",
                 "if command -v man > /dev/null; then MANWIDTH=80 man --warnings "
                 "-M /opt/fastpump/share/man fastpump 2>&1; fi"],
                tree, PIP_DISABLE_PIP_VERSION_CHECK="1",
                FASTPUMP_BUILD_DEBUG="1")       # compiled in a fraction of the time
    assert "good: Python 3." in shown
    if shutil.which("man"):
        assert re.search(r"^ +--listen-port PORT$", shown, re.MULTILINE)
        # Of the formatter, anywhere: it writes to another stream than the page goes to. A narrow
        # column of a table cannot be adjusted.
        warned = re.findall(r"<standard input>.*warning.*$", shown, re.MULTILINE)
        assert [each for each in warned if "cannot adjust line" not in each] == []


def test_the_unit_runs_commands_that_there_are():
    from fastpump.cli.main import COMMANDS

    unit = (ROOT / "units" / "fastpump@.service").read_text()
    verbs = re.findall(r"^(?:Exec\w+=|  exec )/usr/local/bin/fastpump (\w+)(?: \"\$\$@\")? %i\'?$",
                       unit, re.MULTILINE)
    assert verbs == ["up", "reload", "down"]
    assert set(verbs) <= {name for name, *_ in COMMANDS}
