"""L + C has the gradient of L. Optimisers agree; ReduceLROnPlateau's default threshold, a relative one, does not."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from rlloss.claims import Claim, Finding, Overrides
from rlloss.claims.twins import Setting, judge_twins, twin_figure, twin_runs
from rlloss.runs import RunFolder

OFFSETS = ("loss.offset=0", "loss.offset=5")
REINFORCE = "loss=reinforce"  # whose value falls from above 0: something for a threshold to compare
FAST = (REINFORCE, "learning_rate=0.003")
PLATEAU = (*FAST, "schedule=plateau", "schedule.patience=2", "schedule.factor=0.5")  # on the policy loss
SETTINGS = {
    "Adam": Setting(FAST, same=True),
    "SGD": Setting((REINFORCE, "optimizer=sgd", "learning_rate=0.1"), same=True),
    "plateau, absolute": Setting((*PLATEAU, "schedule.threshold_mode=abs", "schedule.threshold=1e-3"), same=True),
    "plateau, relative": Setting((*PLATEAU, "schedule.threshold=0.01"), same=False),
}


def runs(preset: str) -> list[Overrides]:
    return twin_runs(SETTINGS, preset, twins=OFFSETS)


def judge(runs: Sequence[RunFolder]) -> Finding:
    return judge_twins(SETTINGS, runs)


def figure(runs: Sequence[RunFolder]) -> Figure:
    columns = {"policy_loss": "policy loss", "learning_rate": "learning rate"}
    return twin_figure(SETTINGS, runs, columns, labels=("C = 0", "C = 5"))


def facts(evidence: pd.DataFrame) -> dict[str, str]:
    same = evidence.set_index("condition")["the same"]
    return {"offset_adam": same["Adam"], "offset_sgd": same["SGD"]}


CLAIM = Claim(
    sentence=(
        "A constant added to the loss changes no bit of what SGD and Adam do, nor of ReduceLROnPlateau with an "
        "absolute threshold; with its default, a relative threshold, the learning rates part."
    ),
    runs=runs,
    judge=judge,
    figure=figure,
    order=110,
    facts=facts,
)
