"""'Keep the best checkpoint by loss' keeps another one for each formulation, of one and the same run."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from rlloss.claims import Claim, Finding, Overrides
from rlloss.claims.twins import Setting, by_setting, judge_twins, pairs, twin_figure, twin_runs
from rlloss.runs import RunFolder

BASE = ("learning_rate=0.003", "best=metric")
SETTINGS = {
    "best by policy_loss": Setting((*BASE, "best.monitor=policy_loss"), same=False),
    "best by episodic_return": Setting((*BASE, "best.monitor=episodic_return", "best.mode=max"), same=True),
}


def runs(preset: str) -> list[Overrides]:
    return twin_runs(SETTINGS, preset)


def judge(runs: Sequence[RunFolder]) -> Finding:
    """As for all settings; and the iterations that were kept last, beside the final digests, which are equal."""
    finding = judge_twins(SETTINGS, runs, decided=True)
    kept = [
        ", ".join(f"{a.decisions[-1].iteration} and {b.decisions[-1].iteration}" for a, b in found)
        for found in by_setting(SETTINGS, runs).values()
    ]
    same = all(a.info["final_digest"] == b.info["final_digest"] for a, b in pairs(runs))
    evidence = finding.evidence.assign(**{"kept iteration, per seed": kept})
    return Finding(finding.holds and same, finding.summary, evidence)


def figure(runs: Sequence[RunFolder]) -> Figure:
    return twin_figure(SETTINGS, runs, {"policy_loss": "policy loss", "episodic_return": "return"})


CLAIM = Claim(
    sentence=(
        "Runs of the two formulations are identical, yet the checkpoint that is best by policy loss is another one in "
        "each; the one that is best by return is the same."
    ),
    runs=runs,
    judge=judge,
    figure=figure,
    order=100,
)
