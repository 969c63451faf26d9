"""What `fastpump bench` hears of the machine."""

import pytest

from fastpump.bench.machine import Energy, Quiet


def package(root, name, used, most=None):
    path = root / name
    path.mkdir(exist_ok=True)
    (path / "energy_uj").write_text(f"{used}\n")
    if most is not None:
        (path / "max_energy_range_uj").write_text(f"{most}\n")


def test_energy_is_that_of_all_packages(tmp_path):
    """A part is in its package already; a counter begins anew."""
    for name, used in (("intel-rapl:0", 1000), ("intel-rapl:0:0", 500), ("intel-rapl:1", 7_900_000),
                       ("intel-rapl", 5)):
        package(tmp_path, name, used, 8_000_000)
    energy = Energy(tmp_path)
    assert energy.joules() == 0
    package(tmp_path, "intel-rapl:0", 2_001_000)
    package(tmp_path, "intel-rapl:0:0", 900_000)
    package(tmp_path, "intel-rapl:1", 400_000)
    assert energy.joules() == pytest.approx(2.0 + 0.5)


def test_a_machine_that_does_not_say(tmp_path):
    (tmp_path / "intel-rapl:0").mkdir()
    assert Energy(tmp_path).joules() is None and Energy(tmp_path / "none").joules() is None


@pytest.fixture
def machine(tmp_path):
    """Its /proc/stat, and a CPU that counts how often it was too hot."""
    stat, count = tmp_path / "stat", tmp_path / "cpu0/thermal_throttle/core_throttle_count"
    count.parent.mkdir(parents=True)

    def say(busy, stolen, hot):
        stat.write_text(f"cpu  {busy} 0 0 1000 0 0 0 {stolen} 0 0\ncpu0 1 1 1\n")
        count.write_text(f"{hot}\n")

    say(0, 0, 3)
    return Quiet(stat, tmp_path), say


@pytest.mark.parametrize(("busy", "stolen", "hot", "said"), [
    (500, 5, 3, []), (500, 100, 3, ["the hypervisor took 17% of the CPU time"]),
    (0, 0, 3, []), (500, 0, 5, ["processors were too hot and slowed down 2 times"])])
def test_why_not_to_believe_a_machine(machine, busy, stolen, hot, said):
    quiet, say = machine
    say(busy, stolen, hot)
    assert quiet.doubts() == said


def test_this_machine_can_be_read():
    assert all(isinstance(doubt, str) for doubt in Quiet().doubts())
    assert Energy().joules() is None or Energy().joules() >= 0
