"""Judge the claims on what has been run, and write the paper: tables, figures and one page."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import joblib
import pandas as pd

from rlloss import figures, page, stats, tables
from rlloss.claims import Claim, Finding, Overrides
from rlloss.config import load, run_folder
from rlloss.graph_explain import write_explanation
from rlloss.runs import RunFolder

HOLDS, FAILS, NOT_RUN = "holds", "DOES NOT HOLD", "not run"
FIGURES_EACH = 4  # for a process to draw, or starting it takes longer than drawing them
UNSHOWN = ("env=", "loss=", "loss.offset=", "seed=", "total_timesteps=", "snapshot_every=")  # in a condition's name


@dataclass(frozen=True)
class Judged:
    """A claim with its runs and what came of them; ``finding`` is None if they are not all finished."""

    claim: Claim
    preset: str
    conditions: list[str]  # of each run, in words
    runs: list[RunFolder]
    finding: Finding | None
    needed: str = ""  # what is not installed here, and the remedy

    @property
    def verdict(self) -> str:
        if self.finding is None:
            return NOT_RUN
        return HOLDS if self.finding.holds else FAILS

    @property
    def summary(self) -> str:
        if self.finding is not None:
            return self.finding.summary
        missing = sum(run.status != "finished" for run in self.runs)
        unfinished = f"{missing} of {len(self.runs)} runs are not finished"
        return f"{unfinished}: {self.needed}" if self.needed else unfinished

    @property
    def command(self) -> str:
        return f"rlloss reproduce --claim {self.claim.name} --preset {self.preset}"


def judge(claim: Claim, preset: str, run_root: Path, needed: str = "") -> Judged:
    """The claim's verdict on the runs below ``run_root``; ``needed`` says why they could not be made here."""
    overrides = claim.runs(preset)
    runs = [RunFolder(run_folder(replace(load(o), run_root=str(run_root)))) for o in overrides]
    finished = all(run.status == "finished" for run in runs)
    finding = claim.judge(runs) if finished else None
    return Judged(claim, preset, list(map(condition, overrides)), runs, finding, needed)


def condition(overrides: Overrides) -> str:
    """The overrides that say under which condition a run stands, for people."""
    return ", ".join(o for o in overrides if not o.startswith(UNSHOWN))


def report_claims(
    claims: Sequence[Claim], preset: str, run_root: Path, out: Path, absent: Mapping[str, str] | None = None
) -> bool:
    """Judge each claim, write the report into ``out``, and print the verdicts.

    - NAME.csv, .tex and .md: the evidence of a claim; NAME.pdf, .png and .svg: its figure.
    - claims.csv and .tex: the verdicts. returns.csv and .tex: the returns over seeds; aggregate: over tasks, too.
    - index.html: all of it on one page, which needs no other file.
    - explanation.html, to which it links: what the claims are about, live, with their numbers, if the tables are there.

    A claim whose runs are not all finished does not hold: it is reported as not run. ``absent`` says, by claim,
    which of the packages that it needs are not installed here. Returns whether all hold.
    """
    out.mkdir(parents=True, exist_ok=True)
    judged = [judge(claim, preset, run_root, (absent or {}).get(claim.name, "")) for claim in claims]
    processes = min(os.cpu_count() or 1, len(judged) // FIGURES_EACH + 1)
    joblib.Parallel(n_jobs=processes)(joblib.delayed(write_claim)(one, out) for one in judged)
    verdicts = pd.DataFrame(
        [(one.claim.name, one.verdict, one.summary) for one in judged], columns=["claim", "verdict", "evidence"]
    )
    finished = [run for one in judged for run in zip(one.conditions, one.runs, strict=True) if one.finding]
    returns, aggregate = stats.returns_table(finished), stats.aggregate_table(finished)
    command = f"rlloss reproduce --preset {preset}"
    write_table(verdicts, out / "claims", command)
    write_table(returns, out / "returns", command)
    write_table(aggregate, out / "aggregate", command)
    write_explanation(out)
    page.write(judged, returns, aggregate, [run for _, run in finished], command, out)
    print(tables.text(verdicts[["claim", "verdict"]]))
    for one in judged:
        print(f"\n{one.claim.name}: {one.summary}")
    print(f"\ntables and figures: {out}\nall of it on one page: {out / 'index.html'}")
    return bool((verdicts["verdict"] == HOLDS).all())


def write_claim(judged: Judged, out: Path) -> None:
    """A claim's tables and figure; nothing if it was not run."""
    name, finding = judged.claim.name, judged.finding
    if finding is None:
        return
    write_table(finding.evidence, out / name, judged.command)
    text = (
        f"{judged.claim.sentence}\n\n{finding.summary}\n\n`{judged.command}`\n\n{tables.markdown(finding.evidence)}\n"
    )
    (out / f"{name}.md").write_text(text)
    with figures.style():
        figures.save(judged.claim.figure(judged.runs), out / name)


def write_table(table: pd.DataFrame, stem: Path, command: str) -> None:
    """``stem``.csv, and ``stem``.tex for papers."""
    table.to_csv(stem.with_name(stem.name + ".csv"), index=False)
    stem.with_name(stem.name + ".tex").write_text(tables.latex(table, command))
