"""Files through `wg setconf` and through our parser: both take the same ones, and understand the
same by them. Exceptions are the deliberate differences of support/wgfiles.py."""

import os
import random
import subprocess

import pytest

from support.setconf import Judge
from support.wgfiles import compare, known_differences, mangled, odd_files, real_files, strip

MANGLED = 1000
SEED = 1


@pytest.fixture(scope="module")
def judge():
    with Judge() as judge:
        yield judge


@pytest.fixture(scope="module")
def known(judge):
    return known_differences(judge)


def check(comparison, known):
    assert comparison.is_explained(known), (
        f"{comparison.data!r}\nwg:   {comparison.verdict.wg}\nours: {comparison.verdict.ours}"
        f"\n{comparison.verdict.complaint}")


def test_real_files_are_taken_by_both_with_the_same_values(judge):
    files = real_files()
    assert len(set(files)) >= 50
    for data in files:
        whole, stripped = judge(data), judge(strip(data))
        assert stripped.wg is not None, data
        assert whole.ours == stripped.ours == stripped.wg, (data, whole, stripped)


def test_odd_lines_are_taken_or_refused_by_both(judge, known):
    files = odd_files()
    assert len(set(files)) >= 150
    for data in files:
        check(compare(judge, data), known)


def test_mangled_files_are_taken_or_refused_by_both(judge, known):
    """And the mangling is neither too weak nor too strong to tell anything."""
    rng, files = random.Random(SEED), real_files()
    compared = [compare(judge, mangled(rng, rng.choice(files))) for _ in range(MANGLED)]
    for comparison in compared:
        check(comparison, known)
    taken = sum(each.verdict.wg is not None for each in compared)
    assert MANGLED // 5 < taken < MANGLED * 4 // 5


def test_every_deliberate_difference_is_one(judge, known):
    """Of no entry of the table is there any doubt that it is needed."""
    met = {compare(judge, data).difference(known) for data in [
        *odd_files(), b"[ Interface ]\nMTU = 1400\n"]}
    assert met - {None} == set(known)


def test_wg_quick_strips_as_we_think(tmp_path):
    path = tmp_path / "wg0.conf"
    path.touch(mode=0o600)
    for data in [*real_files(), b"[Interface]\nMTU\n mtu = 1\n[Peer]\nMTU = 2\n[Interface] # x\n"
                                b"dns=1\nAdd ress = 3\n#MTU=4\nMTU#=5\n[ Interface ]\nMTU = 6\n"]:
        path.write_bytes(data)
        stripped = subprocess.run(["wg-quick", "strip", path], capture_output=True, check=True,
                                  env=os.environ).stdout
        assert [line.strip() for line in stripped.splitlines() if line.strip()] == [
            line.strip() for line in strip(data).splitlines() if line.strip()]
