"""Python and a program of ours as files of a guest: what the program loads here, and no more.

Every file keeps its path, so the interpreter finds its own. Modules are compiled here: the guest's
emulated processor would take long.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import fastpump

PACKAGE_ROOT = Path(fastpump.__file__).parents[1]


def python_files(program: Path) -> tuple[dict[str, bytes | None], str]:
    """The files, {path without the first "/": content}, and the command that runs the program."""
    result = subprocess.run(_command(program, "modules"), capture_output=True, text=True,
                            check=True)
    modules = [Path(name) for name in json.loads(result.stdout)]
    interpreter = Path(sys.executable).resolve()
    native = [interpreter, *(path for path in modules if path.suffix == ".so")]
    found = {path: path.read_bytes() for path in (*native, *_libraries(native), program)}
    with tempfile.TemporaryDirectory() as name:
        for path in modules:
            if path.suffix == ".py":
                _compile(path, Path(name, "module.pyc"))
                found[path.with_suffix(".pyc")] = Path(name, "module.pyc").read_bytes()
    # Where it looks for modules in C, even if it loads none of them.
    dynamic = Path(sys.base_prefix, "lib", f"python{sys.version_info.major}."
                   f"{sys.version_info.minor}", "lib-dynload")
    return _with_directories(found, dynamic), " ".join(map(_quoted, _command(program)))


def _command(program: Path, *words: str) -> list[str]:
    """Without what an environment or a site adds; the modules of others are where they are here."""
    places = [str(PACKAGE_ROOT), *(path for path in sys.path if path.endswith("-packages"))]
    start = (f"import sys; sys.path += {places!r}; sys.argv[0] = {str(program)!r}; "
             "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')")
    return [str(Path(sys.executable).resolve()), "-I", "-S", "-B", "-c", start, *words]


def _quoted(word: str) -> str:
    return '"' + word + '"' if re.search(r"\W", word) else word


def _compile(source: Path, target: Path) -> None:
    subprocess.run([sys.executable, "-c", "import py_compile, sys; py_compile.compile("
                    "sys.argv[1], sys.argv[2], doraise=True)", source, target], check=True)


def _libraries(native: list[Path]) -> set[Path]:
    """The shared libraries that programs need: ldd(1)."""
    output = subprocess.run(["ldd", *native], capture_output=True, text=True, check=False).stdout
    return {Path(path) for path in re.findall(r"(?:=> |^\t)(/\S+) \(0x", output, re.MULTILINE)}


def _with_directories(files: dict[Path, bytes], *more: Path) -> dict[str, bytes | None]:
    """For an archive: each directory before what is in it."""
    directories = {parent for path in (*files, *(each / "x" for each in more))
                   for parent in path.parents}
    named: dict[str, bytes | None] = {
        str(path).lstrip("/"): None for path in sorted(directories) if path != Path("/")}
    return named | {str(path).lstrip("/"): content for path, content in files.items()}
