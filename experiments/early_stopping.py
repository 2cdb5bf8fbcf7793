"""Early stopping on the policy loss stops the two formulations at different times; on the return, at the same."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from rlloss.claims import Claim, Finding, Overrides
from rlloss.claims.twins import Setting, judge_twins, twin_figure, twin_runs
from rlloss.runs import RunFolder

FAST = ("learning_rate=0.003",)
PATIENT = (*FAST, "stop=no_improvement", "stop.patience=8")
SETTINGS = {
    "policy loss at most -0.01": Setting((*FAST, "stop=threshold", "stop.threshold=-0.01"), same=False),
    "policy loss no better for 8": Setting(PATIENT, same=False),
    "return at least 100": Setting(
        (*FAST, "stop=threshold", "stop.monitor=episodic_return", "stop.mode=max", "stop.threshold=100"), same=True
    ),
    "return no better for 8": Setting((*PATIENT, "stop.monitor=episodic_return", "stop.mode=max"), same=True),
}


def runs(preset: str) -> list[Overrides]:
    return twin_runs(SETTINGS, preset)


def judge(runs: Sequence[RunFolder]) -> Finding:
    return judge_twins(SETTINGS, runs, decided=True)


def figure(runs: Sequence[RunFolder]) -> Figure:
    return twin_figure(SETTINGS, runs, {"policy_loss": "policy loss", "episodic_return": "return"})


def facts(evidence: pd.DataFrame) -> dict[str, str]:
    return {"stopping": evidence.set_index("condition")["the same"]["policy loss at most -0.01"]}


CLAIM = Claim(
    sentence=(
        "A stop rule on the policy loss stops clipped PPO and its REINFORCE form at different iterations, although "
        "their parameters are equal up to then; a stop rule on the return stops both at the same one."
    ),
    runs=runs,
    judge=judge,
    figure=figure,
    order=90,
    facts=facts,
)
