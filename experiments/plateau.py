"""ReduceLROnPlateau reads a value: on the policy loss it parts twins of one gradient, on the return it cannot."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from rlloss.claims import Claim, Finding, Overrides
from rlloss.claims.twins import Setting, judge_twins, twin_figure, twin_runs
from rlloss.runs import RunFolder

BASE = ("learning_rate=0.003", "schedule=plateau", "schedule.patience=2", "schedule.factor=0.5")
SETTINGS = {
    "plateau on policy_loss": Setting((*BASE, "schedule.monitor=policy_loss"), same=False),
    "plateau on total_loss": Setting((*BASE, "schedule.monitor=total_loss"), same=None),
    "plateau on episodic_return": Setting((*BASE, "schedule.monitor=episodic_return", "schedule.mode=max"), same=True),
}


def runs(preset: str) -> list[Overrides]:
    return twin_runs(SETTINGS, preset)


def judge(runs: Sequence[RunFolder]) -> Finding:
    return judge_twins(SETTINGS, runs, decided=True)


def figure(runs: Sequence[RunFolder]) -> Figure:
    return twin_figure(SETTINGS, runs, {"policy_loss": "policy loss", "learning_rate": "learning rate"})


def facts(evidence: pd.DataFrame) -> dict[str, str]:
    return {"plateau": evidence.set_index("condition")["the same"]["plateau on policy_loss"]}


CLAIM = Claim(
    sentence=(
        "With ReduceLROnPlateau on the policy loss, the two formulations get other learning rates and end with other "
        "parameters; on the episodic return they get the same ones and stay identical."
    ),
    runs=runs,
    judge=judge,
    figure=figure,
    order=80,
    facts=facts,
)
