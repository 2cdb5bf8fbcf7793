"""bfloat16 autocast and scaled float16 keep the twins identical; pure float16 parts them in subnormal halves."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from rlloss.claims import Claim, Finding, Overrides
from rlloss.runs import RunFolder
from rlloss.twins import Condition, judge_twins, twin_figure, twin_runs

FAST = ("learning_rate=0.003",)
CONDITIONS = {
    "bf16 autocast": Condition((*FAST, "precision=bf16_autocast"), same=True),
    "fp16 autocast, GradScaler": Condition((*FAST, "precision=fp16_scaled"), same=True),
    "pure fp16": Condition((*FAST, "precision=fp16"), same=False),
    "pure fp16, loss x 1024": Condition((*FAST, "precision=fp16", "precision.loss_scale=1024"), same=None),
}


def runs(preset: str) -> list[Overrides]:
    return twin_runs(CONDITIONS, preset, steps=10_000)


def judge(runs: Sequence[RunFolder]) -> Finding:
    return judge_twins(CONDITIONS, runs)


def figure(runs: Sequence[RunFolder]) -> Figure:
    return twin_figure(CONDITIONS, runs, {"policy_loss": "policy loss", "episodic_return": "return"})


CLAIM = Claim(
    sentence=(
        "Under bfloat16 autocast, and under float16 autocast with GradScaler, the two formulations train to the same "
        "bits; with pure float16 parameters the halves that PPO's minimum makes become subnormal, round, and part them."
    ),
    runs=runs,
    judge=judge,
    figure=figure,
    order=150,
)
