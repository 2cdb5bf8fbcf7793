"""'Keep the best checkpoint by loss' keeps another one for each formulation, of one and the same run."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from rlloss.claims import Claim, Finding, Overrides
from rlloss.runs import RunFolder
from rlloss.twins import Condition, judge_twins, twin_figure, twin_runs

BASE = ("learning_rate=0.003", "best=metric")
CONDITIONS = {
    "best by policy_loss": Condition((*BASE, "best.monitor=policy_loss"), same=False),
    "best by episodic_return": Condition((*BASE, "best.monitor=episodic_return", "best.mode=max"), same=True),
}


def runs(preset: str) -> list[Overrides]:
    return twin_runs(CONDITIONS, preset)


def judge(runs: Sequence[RunFolder]) -> Finding:
    """As for all conditions; and the iterations that were kept last, beside the final digests, which are equal."""
    finding = judge_twins(CONDITIONS, runs, decided=True)
    kept = {name: [] for name in CONDITIONS}  # type: dict[str, list[str]]
    same = True
    for i in range(0, len(runs), 2):
        name = list(CONDITIONS)[i * len(CONDITIONS) // len(runs)]
        a, b = runs[i : i + 2]
        kept[name].append(f"{a.decisions[-1].iteration} and {b.decisions[-1].iteration}")
        same &= a.info["final_digest"] == b.info["final_digest"]
    evidence = finding.evidence.assign(**{"kept iteration, per seed": [", ".join(k) for k in kept.values()]})
    return Finding(finding.holds and same, finding.summary, evidence)


def figure(runs: Sequence[RunFolder]) -> Figure:
    return twin_figure(CONDITIONS, runs, {"policy_loss": "policy loss", "episodic_return": "return"})


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
