"""ReduceLROnPlateau reads a value: on the policy loss it parts twins of one gradient, on the return it cannot."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from rlloss.claims import Claim, Finding, Overrides
from rlloss.runs import RunFolder
from rlloss.twins import Condition, judge_twins, twin_figure, twin_runs

BASE = ("learning_rate=0.003", "schedule=plateau", "schedule.patience=2", "schedule.factor=0.5")
CONDITIONS = {
    "plateau on policy_loss": Condition((*BASE, "schedule.monitor=policy_loss"), same=False),
    "plateau on total_loss": Condition((*BASE, "schedule.monitor=total_loss"), same=None),
    "plateau on episodic_return": Condition(
        (*BASE, "schedule.monitor=episodic_return", "schedule.mode=max"), same=True
    ),
}


def runs(preset: str) -> list[Overrides]:
    return twin_runs(CONDITIONS, preset)


def judge(runs: Sequence[RunFolder]) -> Finding:
    return judge_twins(CONDITIONS, runs, decided=True)


def figure(runs: Sequence[RunFolder]) -> Figure:
    return twin_figure(CONDITIONS, runs, {"policy_loss": "policy loss", "learning_rate": "learning rate"})


CLAIM = Claim(
    sentence=(
        "With ReduceLROnPlateau on the policy loss, the two formulations get other learning rates and end with other "
        "parameters; on the episodic return they get the same ones and stay identical."
    ),
    runs=runs,
    judge=judge,
    figure=figure,
    order=80,
)
