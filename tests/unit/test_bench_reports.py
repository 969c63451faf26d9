"""The report of `fastpump bench --html`."""

import json
import re
import sys
from html.parser import HTMLParser

import pytest

from fastpump.bench import page, plots, verdicts
from fastpump.bench.figures import Figure, cpu_per_gb, lost, throughput
from fastpump.bench.results import Column, Results, this_machine
from fastpump.cli.main import main
from fastpump.errors import ConfigError

SPEED, COST, LOST = throughput("TCP"), cpu_per_gb("TCP"), lost("UDP")
OURS, WIREGUARD, RIVAL = "fastpump, 1 queue", "fastpump wireguard, 1 queue", "rival <b>"


def results(rounds=6):
    """Ours carries more, at the CPU of the rival, give or take; the bare cable is no rival."""
    names = {"bare": (20, 0, 0), OURS: (5, 2, 0), WIREGUARD: (4, 3, 0), RIVAL: (2.5, 2, 0.5)}
    columns = {}
    for name, (speed, cost, share) in names.items():
        columns[name] = Column("IP", "", f"settings of {name}")
        for number in range(rounds):
            more = number % 2 / 10 if name == OURS else 0.05
            columns[name].turns.append({SPEED: speed + number / 10, COST: cost * (1 + more),
                                        LOST: float(share)})
    return Results(this_machine(), {"rounds": str(rounds)}, {"hosts": columns}, ["so & so"])


class Page(HTMLParser):
    """Its cells, and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.loads, self.open, self.svgs, self.said = [], [], [], 0, ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.loads += [value for name, value in attributes if name in ("src", "href", "xlink:href")
                       and not value.startswith("#")]
        self.svgs += tag == "svg"
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open.pop() != tag:
            pass

    def handle_data(self, data):
        self.said += data
        if {"td", "th"} & set(self.open[-3:]):
            self.rows[-1][-1] += data


def test_who_wins_is_said_first():
    text = page.render(results(), RIVAL)
    read = Page(text)
    assert read.rows[:4] == [
        ["at", "wins", "", "before", "factor", "sure?"],
        [SPEED.name, OURS, "5.25 Gbit/s", RIVAL, "1.91 (1.83 to 2.00)", "yes"],
        [COST.name, OURS, "2.10 s/GB", RIVAL, "1.00 (0.95 to 1.05)", "the rounds cannot tell"],
        [LOST.name, OURS, "0.00 %", RIVAL, "", "yes"]]
    assert read.svgs == 3 and text.index("<table") < text.index("<svg")


def test_it_needs_nothing_else():
    read = Page(page.render(results(), RIVAL))
    assert read.loads == [] and "so & so" in read.said
    assert RIVAL in read.said and "settings of bare" in read.said


def test_what_it_was_made_of_is_in_it():
    text = page.render(results(), RIVAL)
    (data,) = re.findall(r'<script type="application/json" id="results">(.*?)</script>', text)
    assert json.loads(data) == json.loads(json.dumps(results().as_json()))


def test_the_same_results_make_the_same_page():
    assert page.render(results(), OURS) == page.render(results(), OURS)


def test_what_cannot_be_shown_is_left_out():
    """Nobody succeeded, or one alone; figures that are 0 for all."""
    nobody = Results(this_machine(), {}, {"hosts": {"one": Column("IP", "", "", [{}])}})
    assert "nobody to win against" in page.render(nobody, "one")
    alone = Results(this_machine(), {}, {"hosts": {OURS: Column("IP", "", "", [
        {SPEED: 1.0, LOST: 0.0}])}})
    text = page.render(alone, OURS)
    assert "nobody to win against" in text and Page(text).svgs == 1
    assert "None: no figure" in text


def test_a_program_does_not_win_against_itself():
    columns = results().columns["hosts"]
    (first, *_) = verdicts.wins(columns)
    assert (first.winner, first.rival) == (OURS, RIVAL) and first.is_sure
    del columns[RIVAL]
    assert list(verdicts.wins(columns)) == []
    few = list(verdicts.wins(results(5).columns["hosts"]))
    assert not any(win.is_sure for win in few)


def test_a_plot_has_a_bar_for_each_and_its_value():
    svg = plots.bars(Figure("x", "s/GB", False, 2), {
        name: Column("", "", "", [{Figure("x", "s/GB", False, 2): value}] if value else [{}])
        for name, value in (("a", 1234.5), ("b", 2), ("gone", None))})
    assert svg.startswith("<svg") and "1,234.50" in svg and ">b<" in svg and ">gone<" not in svg
    assert "less is better" in svg


def test_the_command(tmp_path, capsys):
    figures, report = tmp_path / "figures.json", tmp_path / "report.html"
    results().save(figures)
    assert main(["bench", "report", str(figures), "--html", str(report), "--baseline", OURS]) == 0
    assert report.read_text() == page.render(results(), OURS)
    assert "x 0.52" in capsys.readouterr().out
    assert main(["bench", "report", str(figures), "--html", str(tmp_path)]) == 1
    assert "Is a directory" in capsys.readouterr().err
    assert main(["bench", "report"]) == 1
    assert "takes one file" in capsys.readouterr().err


def lying(change):
    """A file of results of which one thing is not as we write it."""
    data = json.loads(json.dumps(results().as_json()))
    column = data["topologies"]["hosts"].pop(OURS)
    change(data, column)
    data["topologies"]["hosts"].setdefault(OURS, column)
    return json.dumps(data)


@pytest.mark.parametrize("change", [
    lambda data, _: data["machine"].pop("processor"),
    lambda data, _: data.update(settings=["x"]),
    lambda data, _: data.update(doubts=None),
    lambda data, column: data["topologies"]["hosts"].update({" ": column}),
    lambda _, column: column["figures"][0].update(digits="x"),
    lambda _, column: column["figures"][0].update(name=7),
    lambda _, column: column["turns"][0].update({SPEED.name: float("nan")}),
    lambda _, column: column["turns"][0].update({SPEED.name: float("inf")}),
    lambda _, column: column["turns"][0].update({SPEED.name: -1}),
    lambda _, column: column["turns"][0].update({SPEED.name: "1"}),
    lambda _, column: column["turns"].append([]),
])
def test_a_file_that_lies_is_refused(tmp_path, capsys, change):
    path = tmp_path / "x.json"
    path.write_text(lying(change))
    assert main(["bench", "report", str(path), "--html", str(tmp_path / "x.html")]) == 1
    assert "is no file of `fastpump bench --json`" in capsys.readouterr().err


def test_names_are_shown_as_they_are(tmp_path):
    r"""Neither HTML nor formulas, like $\frac$."""
    odd = '"><script>x</script> $\\frac$ $'
    path, report = tmp_path / "x.json", tmp_path / "x.html"
    path.write_text(lying(lambda data, column: data["topologies"].update(
        {odd: {odd: column, OURS: column}})))
    assert main(["bench", "report", str(path), "--html", str(report)]) == 0
    assert "<script>x" not in report.read_text() and Page(report.read_text()).svgs > 3


def test_without_matplotlib_it_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError):
        plots.check()
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert main(["bench", "--html", str(tmp_path / "x")]) == 1       # before an hour has passed
    assert "pip install 'fastpump[bench]'" in capsys.readouterr().err
