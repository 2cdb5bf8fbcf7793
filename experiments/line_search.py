"""L-BFGS reads the value in two places: its line search, and the tolerance at which it stops."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from rlloss.claims import Claim, Finding, Overrides
from rlloss.claims.twins import Setting, judge_twins, twin_figure, twin_runs
from rlloss.runs import RunFolder

LBFGS = ("optimizer=lbfgs", "learning_rate=0.1", "max_grad_norm=inf", "update_epochs=1")
BLIND = (*LBFGS, "optimizer.tolerance_change=0")
SETTINGS = {
    "no line search, tolerance 0": Setting(BLIND, same=True),
    "no line search, torch's tolerance": Setting(LBFGS, same=None),
    "strong Wolfe": Setting((*BLIND, "optimizer.line_search_fn=strong_wolfe"), same=False),
}


def runs(preset: str) -> list[Overrides]:
    return twin_runs(SETTINGS, preset)


def judge(runs: Sequence[RunFolder]) -> Finding:
    return judge_twins(SETTINGS, runs)


def figure(runs: Sequence[RunFolder]) -> Figure:
    return twin_figure(SETTINGS, runs, {"policy_loss": "policy loss", "evaluations": "evaluations"})


CLAIM = Claim(
    sentence=(
        "L-BFGS without a line search and without a tolerance on the loss stays identical; with strong-Wolfe line "
        "search it reads the value, evaluates the two formulations a different number of times, and parts."
    ),
    runs=runs,
    judge=judge,
    figure=figure,
    order=120,
)
