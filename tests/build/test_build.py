"""Other builds of the extension: without intel-ipsec-mb, with sanitizers, without headers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastpump import _core

ROOT = Path(__file__).parents[2]
HOT_TESTS = (
    "pump", "unit/test_lanes.py", "unit/test_lane_messages.py", "unit/test_split.py",
    "unit/test_coalesce.py", "unit/test_tables.py", "unit/test_replay.py", "unit/test_aead.py",
    "unit/test_admission.py", "unit/test_cookie.py", "unit/test_shared_memory.py",
    "fuzz/test_fuzz.py::test_random_input[lanes]", "fuzz/test_fuzz.py::test_random_input[egress]",
    "fuzz/test_fuzz.py::test_random_input[frames]")


def copy_tree(target):
    for name in ("fastpump", "tests"):
        shutil.copytree(ROOT / name, target / name,
                        ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, target)


def build(tree, **environment):
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"], cwd=tree, text=True,
        capture_output=True, check=False, env={**os.environ, **environment})


def run_suite(tree, *files, **environment):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly",
         *(f"tests/{name}" for name in files)],
        cwd=tree, text=True, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1",
             **environment})


@pytest.mark.timeout(400)
def test_without_ipsec_mb(tmp_path):
    copy_tree(tmp_path)
    result = build(tmp_path, FASTPUMP_BUILD_NO_IPSEC_MB="1")
    assert result.returncode == 0, result.stderr
    assert "_core.c" not in result.stderr, result.stderr      # no compiler warnings
    assert "IPSec_MB" not in subprocess.run(
        ["ldd", *tmp_path.glob("fastpump/*.so")], capture_output=True, text=True,
        check=True).stdout
    result = run_suite(tmp_path, "pump/test_pump.py", "pump/test_lane_pump.py",
                       "pump/test_hostile_lanes.py", "pump/test_lane_order.py",
                       "pump/test_lane_ways.py", "unit/test_lane_messages.py", "unit/test_aead.py",
                       FASTPUMP_EXPECT_BACKENDS="openssl,boringssl")
    assert result.returncode == 0, result.stdout
    assert "ipsec-mb" not in result.stdout


@pytest.mark.timeout(600)
def test_hot_code_under_sanitizers(tmp_path):
    """The tests of everything in hot/, compiled with ASan and UBSan."""
    copy_tree(tmp_path)
    flags = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined"
    result = build(tmp_path, FASTPUMP_BUILD_DEBUG="1", CFLAGS=flags, LDFLAGS=flags)
    assert result.returncode == 0, result.stderr
    libraries = [subprocess.run(["cc", f"-print-file-name=lib{name}.so"], capture_output=True,
                                text=True, check=True).stdout.strip() for name in ("asan", "ubsan")]
    result = run_suite(tmp_path, *HOT_TESTS, LD_PRELOAD=" ".join(libraries),
                       ASAN_OPTIONS="detect_leaks=0", UBSAN_OPTIONS="print_stacktrace=1")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]


@pytest.mark.parametrize(("hidden", "package"), [
    ("openssl/evp.h", "libssl-dev"), ("Python.h", "python3-dev")])
def test_missing_headers_name_their_package(tmp_path, hidden, package):
    """A compiler that does not find the header stands in for a machine without it."""
    copy_tree(tmp_path)
    compiler = tmp_path / "cc-without"
    compiler.write_text(
        "#!/bin/sh\nfor word; do case $word in *.c) "
        f"grep -q '<{hidden}>' \"$word\" && [ $(wc -l < \"$word\") -lt 5 ] && exit 1;; esac; done\n"
        "exec cc \"$@\"\n")
    compiler.chmod(0o755)
    result = build(tmp_path, CC=str(compiler))
    assert result.returncode != 0
    assert f"apt install {package}" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.timeout(400)
def test_a_build_without_encryption_refuses_to_run(tmp_path):
    """It is for measuring only, and made only on purpose."""
    assert not _core.HAS_NULL_CIPHER
    copy_tree(tmp_path)
    result = build(tmp_path, FASTPUMP_BUILD_NULL_CIPHER="1", FASTPUMP_BUILD_DEBUG="1")
    assert result.returncode == 0, result.stderr
    result = subprocess.run(
        [sys.executable, "-m", "fastpump", "tunnel", "--address", "10.9.0.1/24"], cwd=tmp_path,
        text=True, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1
    assert "this build encrypts nothing" in result.stderr
