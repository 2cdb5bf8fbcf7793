"""The page of a finding, in a real browser: the table, the timeline, and the losses marked where the runs part."""

import re

import pandas as pd
import pytest

from rlloss.bisect.bisect import bisect
from rlloss.bisect.page import marks, page, timeline
from rlloss.claims import Claim, Finding
from rlloss.claims.judged import Judged
from rlloss.claims.parted import write_parted
from rlloss.cli.main import main
from rlloss.graph import trace
from rlloss.runs import RunFolder
from tests.bisect import trainings
from tests.bisect.trainings import train
from tests.browser import opened, readable

MARKED = """() => rlloss.figures.map((figure) => [...figure.root.querySelectorAll('.rl-graph')].map((graph) =>
  [...graph.querySelectorAll('.rl-marked .rl-title')].map((title) => title.textContent)))"""
ORDERS = ("num_steps=30", "loss=reinforce"), ("num_steps=30", "loss=reinforce_textbook")


@pytest.mark.parametrize("width", [pytest.param(1280, marks=pytest.mark.slow), 390])
def test_the_page_marks_where_in_both_losses_two_runs_part(make_run, tmp_path, browser, capsys, width):
    a, b = (make_run(*overrides) for overrides in ORDERS)
    file = tmp_path / "new" / "page.html"
    assert main(["bisect", str(a.path), str(b.path), "-o", str(file)]) == 1
    said = capsys.readouterr()
    assert said.err.endswith(f"written to {file}\n")
    assert said.out.startswith("runs ")
    with opened(browser, file, width=width) as tab:
        readable(tab, width)
        assert tab.evaluate(MARKED) == [[["×"], ["×"]]]
        text = tab.evaluate("document.querySelector('main').innerText")
    assert re.search(r"Equal up to optimiser step \d+, and unlike from \d+ on", text)
    assert "the same product, multiplied in another order" in text
    assert "1 ulp apart" in text


def test_a_cause_that_is_read_from_the_files_is_told_without_graphs(make_run, tmp_path):
    plateau = ("schedule=plateau", "schedule.monitor=policy_loss", "schedule.patience=0")
    found = bisect(*(make_run(*plateau, f"loss={loss}") for loss in ("ppo_clip", "reinforce")))
    html = page([found])
    assert "plateau on policy_loss" in html
    assert "rl-data" not in html.partition("<script>")[0]


def test_the_operations_marked_are_those_that_use_logp(make_run):
    found = bisect(*(make_run(*overrides) for overrides in ORDERS))
    for loss, parts in (("reinforce", found.parts_a), ("reinforce_textbook", found.parts_b)):
        graph = trace(loss)
        (node,) = marks(graph, parts)
        assert 0 in graph.nodes[node].args
        assert graph.nodes[node].op == "mul"
    assert marks(graph, ["mul, elsewhere.py:3"]) == set()


def test_twins_have_a_page_too_and_another_format_is_refused(make_run, tmp_path, capsys):
    a, b = make_run("loss=ppo_clip"), make_run("loss=reinforce")
    assert main(["bisect", str(a.path), str(b.path), "-o", str(tmp_path / "page.html")]) == 0
    assert f"No difference in {len(a.digests):,} optimiser steps." in (tmp_path / "page.html").read_text()
    assert main(["bisect", str(a.path), str(b.path), "-o", str(tmp_path / "page.pdf")]) == 2
    assert "unknown format .pdf; use .html" in capsys.readouterr().err


def test_records_of_other_trainers_have_a_page_without_graphs(tmp_path, browser):
    train(tmp_path / "a", trace=6)
    train(tmp_path / "b", trace=6, loss=trainings.two_sided)
    assert main(["bisect", str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(tmp_path / "page.html")]) == 1
    with opened(browser, tmp_path / "page.html") as tab:
        readable(tab, 1280)
        assert tab.evaluate("rlloss.figures.length") == 0
        assert "a | b" in tab.evaluate("document.querySelector('main').innerText")


@pytest.mark.slow
def test_a_report_says_of_each_two_losses_where_they_part_first(make_run, tmp_path):
    runs = [make_run(f"seed={seed}", *overrides) for seed in (1, 2) for overrides in ORDERS]
    runs += [make_run("seed=3", "num_steps=30", "loss=ppo_clip"), make_run("seed=3", *ORDERS[0])]
    claim = Claim("", lambda preset: [], lambda runs: Finding(True, "", pd.DataFrame()), lambda runs: None, name="one")
    judged = Judged(claim, "quick", [""] * len(runs), runs, claim.judge(runs))
    table = write_parted([judged], tmp_path)
    assert table[["claim", "a", "b"]].to_numpy().tolist() == [["one", "reinforce", "reinforce_textbook"]]
    assert table["first step that differs"][0] == bisect(runs[0], runs[1]).step
    assert "one: reinforce | reinforce_textbook" in (tmp_path / "bisect.html").read_text()
    assert write_parted([judged], tmp_path).equals(table)
    assert write_parted([Judged(claim, "quick", [], runs, None)], tmp_path).empty
    assert not (tmp_path / "bisect.html").exists()
    assert page([bisect(*runs[:2])]) == page([bisect(*runs[:2])])


def test_few_steps_have_a_tick_each(tmp_path):
    """Of nine, a logarithmic axis would label 6 × 10⁻¹."""
    for name, fault in (("a", ""), ("b", "learning rate")):
        train(tmp_path / name, steps=9, fault=fault)
    a, b = (RunFolder(tmp_path / name) for name in "ab")
    drawing = timeline(bisect(a, b), a, b)
    drawing.draw_without_rendering()
    line = drawing.axes[-1].xaxis
    assert [tick.label1.get_text() for tick in line.get_major_ticks()] == [str(step) for step in range(1, 10)]
    assert not any(tick.label1.get_text() for tick in line.get_minor_ticks())
