"""The report: made twice it is the same, the page needs nothing but itself, and tables come as papers want them."""

import base64
import re
import shutil
import subprocess

import pandas as pd
import pytest

from rlloss import tables
from rlloss.claims import load_claims
from rlloss.claims.judged import HOLDS
from rlloss.claims.report import report_claims
from rlloss.config import load
from rlloss.sweep.run import run_one
from tests.browser import opened, readable

CLAIM = """
import pandas as pd
from rlloss import figures
from rlloss.claims import Claim, Finding

def runs(preset):
    base = ("num_envs=2", "num_steps=50", "total_timesteps=400", "learning_rate=0.003")
    return [(*base, f"seed={seed}", f"loss={loss}") for seed in (1, 2) for loss in ("ppo_clip", "reinforce")]

def judge(runs):
    same = runs[0].info["final_digest"] == runs[1].info["final_digest"]
    table = pd.DataFrame({"ρ_50 % & <b>": [0.5, -1234567.0], "same": [same, same], "text": ["a long cell " * 6, "–"]})
    return Finding(same, "ρ > 1 & <i>so on</i>", table)

def figure(runs):
    drawing, axes = figures.panels(1, 1, figures.PAGE, 2)
    axes[0, 0].plot(runs[0].metrics["policy_loss"])
    return drawing

CLAIM = Claim("Two runs <script>document.title = 'broken'</script> end with one digest.", runs, judge, figure)
"""
UNFINISHED = CLAIM.replace("seed={seed}", "seed={seed + 7}")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report of two claims, one of which has not been run, and a function that makes it again elsewhere."""
    folder = tmp_path_factory.mktemp("report")
    experiments = folder / "experiments"
    experiments.mkdir()
    (experiments / "one_digest.py").write_text(CLAIM)
    (experiments / "unfinished.py").write_text(UNFINISHED)
    claims = load_claims(experiments)
    for overrides in claims[0].runs("quick"):
        assert not run_one(load([*overrides, f"run_root={folder / 'runs'}"])).reason

    def make(name):
        judged = report_claims(claims, "quick", folder / "runs", folder / name)
        assert [one.verdict == HOLDS for one in judged] == [True, False]
        return {path.name: path.read_bytes() for path in (folder / name).iterdir()}

    make("report")
    return folder / "report", make


def test_made_twice_it_is_byte_for_byte_the_same(made):
    folder, make = made
    again = make("again")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == again
    assert "digests.csv" in again
    assert len(again) == 16
    assert "bisect.html" not in again, "no runs part"


@pytest.mark.slow
def test_drawn_by_several_processes_it_is_the_same(made, monkeypatch):
    """A claim's functions come from a file that no worker can import by name."""
    monkeypatch.setattr("rlloss.claims.report.FIGURES_EACH", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    folder, make = made
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == make("by several processes")


def test_what_was_not_run_is_said_to_be(made):
    folder, _ = made
    verdicts = pd.read_csv(folder / "claims.csv").set_index("claim")
    assert verdicts["verdict"].to_dict() == {"one_digest": "holds", "unfinished": "not run"}
    assert verdicts.loc["unfinished", "evidence"] == "4 of 4 runs are not finished"
    assert not list(folder.glob("unfinished*"))


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_stands_alone_and_fits(made, browser, width):
    folder, _ = made
    with opened(browser, folder / "index.html", width=width) as page:
        readable(page, width)
        assert page.locator("img").count() == 1
        assert page.title() == "rlloss: 1 of 2 claims hold", "and nothing in a claim's text is run as a script"
        assert page.locator("#verdicts tbody tr").first.inner_text().endswith("ρ > 1 & <i>so on</i>")
        assert page.locator("#verdicts").bounding_box()["y"] < 700, "the verdicts are what one sees first"
        for link in page.locator("a[href^='#']").all():
            assert page.locator(link.get_attribute("href")).count() == 1
        picture = page.locator("#one_digest img").bounding_box()
        assert picture["width"] >= 640, "at its own size or more: on a narrow screen it scrolls in its frame"
        assert "rlloss reproduce --claim one_digest --preset quick" in page.inner_text("#one_digest")
        for key in ("torch", "cpu", "gymnasium", "python"):
            assert key in page.inner_text("#machine thead")


def test_the_page_holds_the_files_themselves(made):
    folder, _ = made
    document = (folder / "index.html").read_text()
    links = dict(re.findall(r'href="data:[\w/-]+;base64,([^"]+)" download="([^"]+)"', document))
    assert {name: base64.b64decode(data) for data, name in links.items()} == {
        name: (folder / name).read_bytes()
        for name in ("one_digest.csv", "one_digest.tex", "one_digest.pdf", "returns.csv", "returns.tex")
    }


def test_returns_call_identical_pairs_identical(made):
    returns = pd.read_csv(made[0] / "returns.csv")
    assert returns["difference from the first loss"].tolist() == ["–", "identical"]
    assert returns["condition"].tolist() == ["num_envs=2, num_steps=50, learning_rate=0.003"] * 2


def test_latex_escapes_aligns_and_refuses_what_it_cannot_write(made):
    text = (made[0] / "one_digest.tex").read_text()
    assert text.startswith("% rlloss reproduce --claim one_digest --preset quick\n")
    assert r"$\rho$\_50 \% \& $<$b$>$ & same & text \\" in text
    assert r"$-$1,234,567 & yes & -- \\" in text
    assert r"\begin{tabular}{rlp{60mm}}" in text
    with pytest.raises(ValueError, match="no LaTeX for ♥: add it to"):
        tables.latex(pd.DataFrame({"♥": [1]}), "x")


def test_latex_compiles(made, tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex: apt-get install texlive-latex-recommended")
    for source in made[0].glob("*.tex"):
        paper = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}\input{{{source}}}\end{{document}}"
        (tmp_path / "paper.tex").write_text(paper)
        done = subprocess.run(
            ["pdflatex", "-halt-on-error", "paper.tex"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
