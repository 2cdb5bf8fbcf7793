"""Judge the claims on what has been run, and write the paper: tables, figures and one page."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import joblib
import pandas as pd

from rlloss import figures, stats, tables
from rlloss.claims import page
from rlloss.claims.claim import Claim
from rlloss.claims.judged import Judged, judge
from rlloss.runs.reader import RunFolder

FIGURES_EACH = 4  # for a process to draw, or starting it takes longer than drawing them


def report_claims(
    claims: Sequence[Claim], preset: str, run_root: Path, out: Path, absent: Mapping[str, str] | None = None
) -> list[Judged]:
    """Judge each claim, and write the report into ``out``.

    - NAME.csv, .tex and .md: the evidence of a claim; NAME.pdf, .png and .svg: its figure.
    - claims.csv and .tex: the verdicts. returns.csv and .tex: the returns over seeds; aggregate: over tasks, too.
    - digests.csv: every run's final digest, and the vector extensions of the CPU that made it.
    - bisect.html, to which it links, and bisect.csv, .tex: where runs part, and why.
    - index.html: all of it on one page, which needs no other file.
    - explanation.html, to which it links: what the claims are about, live, with their numbers, if the tables are there.

    A claim whose runs are not all finished does not hold: it is reported as not run. ``absent`` says, by claim,
    which of the packages that it needs are not installed here. Returns the claims, judged.
    """
    out.mkdir(parents=True, exist_ok=True)
    judged = [judge(claim, preset, run_root, (absent or {}).get(claim.name, "")) for claim in claims]
    processes = min(os.cpu_count() or 1, len(judged) // FIGURES_EACH + 1)
    joblib.Parallel(n_jobs=processes)(joblib.delayed(write_claim)(one, out) for one in judged)
    verdicts = pd.DataFrame(
        [(one.claim.name, one.verdict, one.summary) for one in judged], columns=["claim", "verdict", "evidence"]
    )
    finished = [run for one in judged for run in one.ours if one.finding]
    returns, aggregate = stats.returns_table(finished), stats.aggregate_table(finished)
    command = f"rlloss reproduce --preset {preset}"
    write_table(verdicts, out / "claims", command)
    write_table(returns, out / "returns", command)
    write_table(aggregate, out / "aggregate", command)
    digests_table([run for _, run in finished]).to_csv(out / "digests.csv", index=False)
    from rlloss.claims.explanation import write_explanation  # here, since they trace losses with torch
    from rlloss.claims.parted import write_parted

    write_explanation(out)
    write_table(write_parted(judged, out), out / "bisect", command)
    page.write(judged, returns, aggregate, [run for _, run in finished], command, out)
    return judged


def digests_table(runs: Sequence[RunFolder]) -> pd.DataFrame:
    """A row per run, by name: two reports with one such table rest on the same parameters, to the last bit.

    Beside each digest stands the vector extension that torch's kernels used, since other kernels round differently.
    """
    rows = {
        run.path.name: (
            run.info["final_digest"],
            run.info["optimizer_steps"],
            run.info["machine"].get("torch_cpu_capability"),
        )
        for run in runs
    }
    columns = ["run", "final_digest", "optimizer_steps", "torch_cpu_capability"]
    return pd.DataFrame([(name, *rows[name]) for name in sorted(rows)], columns=columns)


def write_claim(judged: Judged, out: Path) -> None:
    """A claim's tables and figure. If it was not run, those of an earlier report are removed: they are no evidence."""
    name, finding = judged.claim.name, judged.finding
    if finding is None:
        for suffix in ("csv", "tex", "md", "pdf", "png", "svg"):
            (out / f"{name}.{suffix}").unlink(missing_ok=True)
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
