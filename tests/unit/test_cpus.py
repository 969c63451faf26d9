"""How many CPUs a process can keep busy, and what follows from it."""

import os

import pytest

from fastpump import cpus
from fastpump.config.model import TunnelConfig

V2 = "30 25 0:26 {root} {mounted} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "31 25 0:27 {root} {mounted} rw - cgroup cgroup rw,cpu,cpuacct\n"
OTHER_V1 = "32 25 0:28 / {mounted}-memory rw - cgroup cgroup rw,memory\n"
V2_LINE = "0::/system.slice/fastpump.service\n"
V1_LINE = "12:memory:/x\n4:cpu,cpuacct:/docker/abc\n0::/\n"


@pytest.fixture
def host(tmp_path):
    """A function that writes a process's files and its groups' limits, {path below what is mounted:
    {file: text}}; it gives the quota that is found."""
    def make(mounts, groups, limits, root="/"):
        mounted = tmp_path / "sys fs"
        proc = tmp_path / "proc"
        proc.mkdir()
        place = {"root": root, "mounted": str(mounted).replace(" ", "\\040")}
        (proc / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/vda rw\n" + "".join(
            line.format(**place) for line in mounts))
        (proc / "cgroup").write_text(groups)
        for path, files in limits.items():
            (mounted / path).mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (mounted / path / name).write_text(text + "\n")
        return cpus.quota(proc)
    return make


def v2(share):
    return {"cpu.max": f"{share} 100000"}


def v1(share):
    return {"cpu.cfs_quota_us": str(share), "cpu.cfs_period_us": "50000"}


@pytest.mark.parametrize(("mounts", "groups", "root", "limits", "quota"), [
    ([V2], V2_LINE, "/", {"system.slice/fastpump.service": v2(150000)}, 1.5),
    ([V2], V2_LINE, "/", {"system.slice/fastpump.service": v2("max"), "system.slice": v2(300000)},
     3),
    ([V2], V2_LINE, "/", {"system.slice/fastpump.service": v2(400000), "system.slice": v2(50000)},
     0.5),
    ([V2], V2_LINE, "/", {"system.slice/fastpump.service": v2("max")}, None),
    ([V2], V2_LINE, "/", {"elsewhere": v2(100000)}, None),
    ([V2], "0::/\n", "/", {"": v2(200000)}, 2),                  # of a container
    ([V2], "0::/../other\n", "/", {"": v2(200000)}, 2),          # outside of our namespace
    ([V2], V2_LINE, "/system.slice", {"fastpump.service": v2(100000), "": v2(70000)}, 0.7),
    ([V1, OTHER_V1], V1_LINE, "/", {"docker/abc": v1(100000), "docker": v1(-1)}, 2),
    ([V1], V1_LINE, "/", {"docker/abc": v1(-1), "docker": v1(25000)}, 0.5),
    ([V1], V1_LINE, "/docker/abc", {"": v1(75000)}, 1.5),
    ([V1, V2], V1_LINE, "/", {"docker/abc": v1(100000)}, 2),      # version 2 has no controllers
    ([V2], V2_LINE, "/", {"system.slice/fastpump.service": {"cpu.max": "rubbish"}}, None),
    ([], V2_LINE, "/", {}, None),
    ([V2], "", "/", {"": v2(100000)}, None),
])
def test_the_least_quota_up_to_the_root_counts(host, mounts, groups, root, limits, quota):
    assert host(mounts, groups, limits, root) == quota


def test_a_host_without_these_files_has_no_quota(tmp_path):
    assert cpus.quota(tmp_path) is None


@pytest.mark.parametrize(("allowed", "quota", "usable", "queues"), [
    (4, None, 4, 4), (4, 1.5, 2, 2), (4, 0.1, 1, 1), (4, 8, 4, 4), (64, None, 64, 16),
    (512, 300, 300, 16), (1, None, 1, 1),
])
def test_the_default_number_of_queues(monkeypatch, allowed, quota, usable, queues):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
    monkeypatch.setattr(cpus, "quota", lambda: quota)
    assert cpus.usable_count() == usable
    assert TunnelConfig().queue_count == queues
    assert TunnelConfig(queues=256).queue_count == 256
