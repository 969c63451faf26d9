"""What an installation of fastpump must have and do. Needs nothing but Python's own library: it is
also run by the Python that fastpump was installed for.

    PREFIX/bin/python installed.py PREFIX PROGRAMS
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGES = ("man1/fastpump.1", "man1/fastpump-wg.1", "man5/fastpump.conf.5")
SEALS = """
from fastpump import _core
library = _core.choose_backends()["aes-256-gcm"]
sealed = _core.aead(library, "aes-256-gcm", bytes(32), bytes(12), b"", b"x", seal=True)
print(_core.aead("openssl", "aes-256-gcm", bytes(32), bytes(12), b"", sealed, seal=False))
"""


def check_installed(prefix: Path, programs: Path) -> None:
    """What is installed below `prefix`, with `programs` on the PATH; AssertionError."""
    assert _run(programs / "fastpump", "--version").startswith("fastpump ")
    assert _run(programs / "fastpump-wg", "--version").startswith("fastpump ")
    private = _run(programs / "fastpump", "genkey")
    assert len(_run(programs / "fastpump", "pubkey", given=private)) == 45
    assert _run(programs / "fastpump", "tunnel", "--help").startswith("usage: fastpump tunnel")
    wrong = subprocess.run([programs / "fastpump", "tap", "create", "--bride", "br0"], text=True,
                           capture_output=True, check=False)
    assert (wrong.returncode, wrong.stderr) == (
        2, "fastpump tap create: unknown option --bride (did you mean --bridge?); `fastpump tap "
           "create --help` explains it\n"), wrong.stderr
    assert _run(prefix / "bin" / "python", "-c", SEALS).strip() == "b'x'"
    for page in PAGES:
        text = (prefix / "share" / "man" / page).read_text()
        assert text.count(".SH ") >= 5 and re.search(r"^\.TH ", text, re.MULTILINE), page
        assert "**" not in text and "## " not in text, page
    assert (prefix / "lib/systemd/system/fastpump@.service").is_file()
    (package,) = prefix.glob("lib/python3.*/site-packages/fastpump")
    (information,) = package.parent.glob("fastpump-*.dist-info")
    assert (information / "licenses" / "LICENSE").is_file()
    sources = [path.name for path in package.rglob("*") if path.suffix in (
        ".c", ".h", ".pxd", ".pxi", ".pyx")]
    assert not sources, sources
    assert (package / "py.typed").is_file() and (package / "_core.pyi").is_file()


def _run(program: Path, *words: str, given: str = "") -> str:
    result = subprocess.run([str(program), *words], input=given, capture_output=True, text=True,
                            check=False, cwd="/", timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


if __name__ == "__main__":
    check_installed(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"good: Python {sys.version.split()[0]}")
