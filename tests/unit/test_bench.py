"""`fastpump bench` without its tunnels: who takes part, what medians say, files and tables."""

import json
import random
import sys
from contextlib import contextmanager
from dataclasses import replace

import pytest

from fastpump.bench import choice, contender, run, table
from fastpump.bench.contender import BARE, Contender
from fastpump.bench.ends import Ends
from fastpump.bench.figures import Figure, cpu_per_gb, throughput
from fastpump.bench.loads import Turn
from fastpump.bench.medians import median_of, ratio_in_turn, ratio_of_runs
from fastpump.bench.results import Column, Results, load_results, this_machine
from fastpump.cli.bench import Progress
from fastpump.cli.main import main
from fastpump.errors import ConfigError, SystemSetupError

SPEED, COST = throughput("TCP"), cpu_per_gb("TCP")


# -- medians

@pytest.mark.parametrize("count, skipped, confidence", [
    (1, 0, 0.0), (2, 0, 0.5), (5, 0, 0.9375), (6, 0, 0.96875), (8, 0, 0.9921875),
    (9, 1, 0.9609375), (20, 5, 0.9586), (21, 5, 0.9734)])
def test_the_interval_is_that_of_the_sign_test(count, skipped, confidence):
    """Tables of the binomial distribution with p = 1/2."""
    values = list(range(count))
    random.Random(7).shuffle(values)
    median = median_of(values)
    assert (median.low, median.high) == (skipped, count - 1 - skipped)
    assert median.confidence == pytest.approx(confidence, abs=5e-5)
    assert median.is_sure == (confidence >= 0.95)


def test_the_interval_holds_the_median_as_often_as_it_says():
    rng = random.Random(1)
    held = sum(median.low <= 0 <= median.high for median in (
        median_of([rng.gauss(0, 1) for _ in range(9)]) for _ in range(4000)))
    assert 0.95 < held / 4000 < 0.97


def test_ratios_are_taken_round_by_round():
    """The machine got slower; who is faster did not change."""
    ours, theirs = [10, 8, 6, 4, 2, 1], [5, 4, 3, 2, 1, 0.5]
    ratio = ratio_in_turn(list(zip(ours, theirs, strict=True)))
    assert (ratio.value, ratio.low, ratio.high) == (2, 2, 2) and ratio.excludes(1)
    assert not ratio_of_runs(ours, theirs).excludes(1)
    assert ratio_in_turn([]) is ratio_in_turn([(1, 0)]) is ratio_of_runs([1], [0]) is None
    assert ratio_of_runs([1], []) is None


def test_few_rounds_say_nothing_for_sure():
    assert not median_of([2] * 5).excludes(1) and median_of([2] * 6).excludes(1)


# -- results

def results():
    """Ours costs half; both carry about the same; its third turn failed."""
    mine = Column("IP", "", "--queues 1")
    other = Column("IP", "/usr/bin/other", "")
    for number in range(8):
        mine.turns.append({SPEED: 4.5 + number % 2, COST: 1 + number / 10})
        other.turns.append({} if number == 2 else {SPEED: 5, COST: 2 + number / 5})
    return Results({**this_machine(), "kernel": "Linux 6.1"}, {"rounds": "8"},
                   {"hosts": {"mine": mine, "other": other}}, ["round 3, hosts: other: failed"])


def test_a_file_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "figures.json"
    results().save(path)
    again = load_results(path)
    assert again == results() and list(tmp_path.iterdir()) == [path]
    assert json.loads(path.read_text())["topologies"]["hosts"]["other"]["turns"][2] == {}


@pytest.mark.parametrize("text, said", [
    ("", "is no file of"), ("[]", "is no file of"), ("{}", "is no file of"),
    ('{"format": "fastpump bench 0"}', "of another version"),
    ('{"format": "fastpump bench 1", "machine": {}, "settings": {}, "doubts": [], '
     '"topologies": {"hosts": {"a": {"kind": "", "program": "", "settings": "", "figures": [], '
     '"turns": [{"x": 1}]}}}}', "is no file of"),
])
def test_other_files_are_refused(tmp_path, text, said):
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_results(path)
    with pytest.raises(ConfigError, match="No such file"):
        load_results(tmp_path / "none")


def lines(text, *words):
    return [line for line in text.splitlines() if all(word in line for word in words)]


def test_the_table_says_who_is_better_and_how_sure_that_is():
    text = "\n".join(table.report(results(), "other"))
    assert lines(text, "Linux 6.1") and lines(text, "rounds: 8")
    assert lines(text, "TCP: CPU", "x 0.50 (0.50 to 0.50) better")
    assert lines(text, "TCP: throughput", "x 1.10 (0.90 to 1.10) ?")
    assert lines(text, "noisy: hosts, mine: TCP: CPU")
    assert lines(text, "not plausible: round 3, hosts: other: failed")
    assert not lines(text, "no ratio is sure")
    few = results()
    for column in few.columns["hosts"].values():
        del column.turns[3:]
    assert lines("\n".join(table.report(few, "other")), "no ratio is sure")


def test_a_table_of_nobody_who_succeeded():
    none = Results(this_machine(), {}, {"hosts": {"mine": Column("IP", "", "", [{}, {}])}})
    assert lines("\n".join(table.report(none, "mine")), "mine: IP")


def test_two_runs_beside_each_other(tmp_path, capsys):
    before, after = results(), results()
    for turn in after.columns["hosts"]["mine"].turns:
        turn[COST] /= 4
    after.machine["kernel"] = "Linux 6.18"
    after.columns["hosts"]["new"] = after.columns["hosts"].pop("other")
    for name, each in (("before", before), ("after", after)):
        each.save(tmp_path / name)
    assert main(["bench", "compare", str(tmp_path / "before"), str(tmp_path / "after")]) == 0
    text = capsys.readouterr().out
    assert lines(text, "machine: kernel: Linux 6.1 -> Linux 6.18")
    assert lines(text, "TCP: CPU", "x 0.25", "better") and lines(text, "TCP: throughput", "?")
    assert lines(text, "new: only in the second") and lines(text, "other: only in the first")


# -- who takes part

@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Only wireguard-go is installed, and wg."""
    for name in ("wireguard-go", "wg", "elsewhere"):
        path = tmp_path / name
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(contender, "_has_module", lambda name: False)
    return tmp_path


def names(chosen):
    return [contender.name for contender, _ in chosen]


def test_whoever_is_there_takes_part(programs):
    everybody = choice.everybody([1, 4])
    assert names(choice.choose(everybody, None, {})) == [
        "bare", *(f"{kind}, {queues}" for kind in ("fastpump", "fastpump wireguard", "fastpump tap")
                  for queues in ("1 queue", "4 queues")), "wireguard-go"]
    (programs / "openssl").symlink_to(programs / "wg")
    assert names(choice.choose(everybody, ["fastpump", "fastpump tap, 4 queues", "openvpn"],
                               {"openvpn": str(programs / "elsewhere")})) == [
        "fastpump, 1 queue", "fastpump, 4 queues", "fastpump tap, 4 queues", "openvpn"]


@pytest.mark.parametrize("only, paths, said", [
    (["tinc"], {}, "tinc needs tincd; install what is missing, or say where it is: --program t"),
    (["kernel"], {}, "kernel needs wg and the kernel's module wireguard; install what is missing$"),
    (None, {"tincd": "/nowhere"}, "tinc needs tincd"),
    (["vpn"], {}, "no contender 'vpn'; there are: bare, fastpump, "),
    (None, {"vpn": "/x"}, "no program 'vpn'"),
])
def test_who_cannot_is_said(programs, only, paths, said):
    with pytest.raises(ConfigError, match=said):
        choice.choose(choice.everybody([1]), only, paths)


def test_whom_ratios_are_to():
    assert choice.baseline(None, ["bare", "fastpump, 1 queue"]) == "fastpump, 1 queue"
    assert choice.baseline(None, ["bare"]) == "bare"
    assert choice.baseline(None, ["bare", "fastpump, 1 queue", "wireguard-go"]) == "wireguard-go"
    assert choice.baseline("bare", ["bare"]) == "bare"
    with pytest.raises(ConfigError, match="no contender"):
        choice.baseline("x", ["bare"])


# -- the run

class Bench:
    """A run without laboratories. `failing`: who does, always."""

    def __init__(self, monkeypatch, failing=()):
        self.turns, self.failing = [], failing
        monkeypatch.setattr(run, "Lab", self.lab)
        monkeypatch.setattr(run, "built", self.built)
        monkeypatch.setattr(run, "run_loads", lambda turn, loads: {SPEED: 1.0}.items())

    @contextmanager
    def lab(self):
        yield self

    @contextmanager
    def built(self, topology, contender, program, lab, directory):
        assert directory.is_dir()
        self.turns.append((topology, contender.name))
        if contender.name in self.failing:
            raise SystemSetupError("it does not start")
        yield Ends("a", "b", "10.9.0.2", None)


class Heard:
    def __init__(self, bench):
        self.bench, self.begins_at, self.titles, self.ends, self.doubts = bench, [], [], [], []

    def begins(self, done, total, title):
        self.begins_at.append((done, total))
        self.titles.append(title)

    def ended(self, doubts):
        self.ends.append(len(self.bench.turns))
        self.doubts += doubts


def test_each_has_a_turn_in_each_round(monkeypatch):
    bench = Bench(monkeypatch, failing=["two"])
    contenders = [replace(BARE, topologies=("hosts",)), *(
        Contender(name, "IP", None, topologies=("hosts", "gateways")) for name in ("one", "two"))]
    found, heard = Results({}, {}), Heard(bench)
    run.run(run.Plan(["hosts", "gateways"], [(each, "") for each in contenders], ["tcp1"], 12, 1,
                     5), found, heard)
    everybody = [("hosts", "bare"), *((topology, name) for topology in ("hosts", "gateways")
                                      for name in ("one", "two"))]
    rounds = [bench.turns[at:at + 5] for at in range(0, 60, 5)]
    assert all(sorted(each) == sorted(everybody) for each in rounds) and len(bench.turns) == 60
    assert len({tuple(each) for each in rounds}) > 6        # in another order each time
    assert heard.ends == list(range(1, 61)) and heard.begins_at == [
        (number, 60) for number in range(60)]
    assert heard.titles[0].startswith("round 1, ") and len(heard.doubts) == 24
    assert found.columns["hosts"]["one"].values(SPEED) == [1.0] * 12
    assert found.columns["gateways"]["two"].turns == [{}] * 12
    assert len(found.doubts) == 24 and found.doubts[0].endswith("two: failed: it does not start")


@pytest.mark.parametrize("terminal, installed, said", [
    (False, True, "[1/2] round 1, hosts: one\n  odd\n[2/2] round 1, hosts: two\n"),
    (True, False, "[1/2] round 1, hosts: one\n  odd\n[2/2] round 1, hosts: two\n"),
    (True, True, "round 1, hosts: two:  50%")])
def test_how_far_it_is_is_shown(terminal, installed, said, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "100")
    if not installed:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    path = tmp_path / "figures.json"
    with Progress(results(), path) as progress:
        progress.begins(0, 2, "round 1, hosts: one")
        assert not path.exists()
        progress.ended(["odd"])
        assert load_results(path) == results()
        progress.begins(1, 2, "round 1, hosts: two")
        progress.ended([])
    assert said in capsys.readouterr().err.replace("\r", "\n")


def test_a_tunnel_whose_process_ends_has_no_cpu_time():
    class Usage:
        seconds = [5.0, 3.0]

        def cpu_seconds(self):
            return self.seconds.pop(0)

    turn = Turn(None, Ends("a", "b", "10.9.0.2", Usage()), 1)
    assert turn.used_by(lambda: 7) == (7, None) and "ended meanwhile" in turn.doubts[0]


# -- the command

@pytest.mark.parametrize("words, said", [
    (["compare", "a"], "takes two files"),
    (["compare", "/nowhere/a", "/nowhere/b"], "No such file"),
    (["run", "a.json"], "files are for"),
    (["--load", "tcp1,udp"], "there is no load 'udp'"),
    (["--topology", "ring"], "there is no topology 'ring'; there are: hosts, gateways, "),
    (["--only", "fastpump tap", "--topology", "gateways"], "none of them takes part in gateways"),
])
def test_what_is_wrong_is_said(words, said, capsys, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert main(["bench", *words]) == 1
    assert said in capsys.readouterr().err


def test_only_root_can(capsys, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["bench"]) == 1
    assert "sudo fastpump bench" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--program", "x"], ["--queues", "0"], ["--rounds", "0"]])
def test_usage(words, capsys):
    with pytest.raises(SystemExit) as error:
        main(["bench", *words])
    assert error.value.code == 2


def test_who_is_there_is_listed(programs, capsys):
    assert main(["bench", "--list"]) == 0
    text = capsys.readouterr().out
    assert lines(text, "wireguard-go: IP", "hosts, gateways") and lines(text, "tcp1", "udp64-60k")
    assert lines(text, "tinc", "not installed") and not lines(text, "bare", "not installed")


def test_figures_have_units():
    assert Figure("x", "s/GB", False, 2).text(1234.5) == "1,234.50"
