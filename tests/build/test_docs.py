"""The documents keep up with the sources."""

import ast
import re
from pathlib import Path

import pytest
from test_lint import ROOMS, VOCABULARY

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SOURCE_FILE = re.compile(r"(?<![\w/.])((?:[a-z_]+/)*[a-z][a-z_0-9]*\.(?:py|pyx|pxd|pxi|h))\b")


def text_of(name):
    return (ROOT / "docs" / name).read_text()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_lines_are_short(path):
    long = [line for line in path.read_text().splitlines() if len(line) > 100]
    assert not long


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_source_files_that_are_named_exist(path):
    """By their path from the root or the package, or by their name alone."""
    known = {found.relative_to(base).as_posix() for base in (ROOT, ROOT / "fastpump")
             for folder in ("fastpump", "tests", "bench") if (ROOT / folder).is_dir()
             for found in (ROOT / folder).rglob("*") if base in found.parents}
    names = {name.rsplit("/", 1)[-1] for name in known} | {"setup.py"}
    for name in SOURCE_FILE.findall(path.read_text()):
        if not name.startswith(("linux/", "include/", "net/", "drivers/")):
            assert name in (known if "/" in name else names), name


def test_the_map_of_rooms_is_that_of_the_lint_test():
    """The rooms, and what each may import."""
    table = text_of("ARCHITECTURE.md").split("```\n")[1].splitlines()
    column = table[1].rindex(" -")
    imports, room = {}, None
    for line in table[2:]:
        if line[0] != " ":
            room = line.split()[0].rstrip("/")
            imports[room] = ""
        imports[room] += " " + line[column:].partition("(")[0]
    assert set(ROOMS) == set(imports) - {"vocabulary", "_core", "worker"}
    for room, allowed in ROOMS.items():
        if imports[room].strip() != "all above":
            assert set(re.findall(r"\w+", imports[room])) == allowed - VOCABULARY, room


def test_the_functions_that_a_packet_passes_exist():
    """Those of the two chains in "The way of a packet"."""
    chain = text_of("ARCHITECTURE.md").split("## The way of a packet")[1].split("```")[1]
    hot = "".join(path.read_text() for path in (ROOT / "fastpump" / "hot").glob("*.pxd"))
    names = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", chain))
    assert len(names) > 15
    defined = set(re.findall(r"\b(\w+)\(", hot)) | {path.stem for path in (
        ROOT / "fastpump" / "hot").glob("*.pxd")}
    assert names <= defined, names - defined


def test_the_classes_that_a_handshake_passes_exist():
    chain = text_of("ARCHITECTURE.md").split("## The way of a handshake")[1].split("```")[1]
    classes = {node.name for path in (ROOT / "fastpump").rglob("*.py")
               for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)}
    heads = [re.split(r"[ .]", line)[0] for line in chain.splitlines() if line[:1].isupper()]
    assert len(heads) > 5
    assert set(heads) <= classes | {"Admission"}
