"""L + C has the gradient of L. Optimisers agree; ReduceLROnPlateau's default threshold, a relative one, does not."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from rlloss.claims import Claim, Finding, Overrides
from rlloss.runs import RunFolder
from rlloss.twins import Condition, judge_twins, twin_figure, twin_runs

OFFSETS = ("loss.offset=0", "loss.offset=5")
REINFORCE = "loss=reinforce"  # whose value falls from above 0: something for a threshold to compare
FAST = (REINFORCE, "learning_rate=0.003")
PLATEAU = (*FAST, "schedule=plateau", "schedule.patience=2", "schedule.factor=0.5")  # on the policy loss
CONDITIONS = {
    "Adam": Condition(FAST, same=True),
    "SGD": Condition((REINFORCE, "optimizer=sgd", "learning_rate=0.1"), same=True),
    "plateau, absolute": Condition((*PLATEAU, "schedule.threshold_mode=abs", "schedule.threshold=1e-3"), same=True),
    "plateau, relative": Condition((*PLATEAU, "schedule.threshold=0.01"), same=False),
}


def runs(preset: str) -> list[Overrides]:
    return twin_runs(CONDITIONS, preset, twins=OFFSETS)


def judge(runs: Sequence[RunFolder]) -> Finding:
    return judge_twins(CONDITIONS, runs)


def figure(runs: Sequence[RunFolder]) -> Figure:
    columns = {"policy_loss": "policy loss", "learning_rate": "learning rate"}
    return twin_figure(CONDITIONS, runs, columns, labels=("C = 0", "C = 5"))


CLAIM = Claim(
    sentence=(
        "A constant added to the loss changes no bit of what SGD and Adam do, nor of ReduceLROnPlateau with an "
        "absolute threshold; with its default, a relative threshold, the learning rates part."
    ),
    runs=runs,
    judge=judge,
    figure=figure,
    order=110,
)
