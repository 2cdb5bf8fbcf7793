"""bfloat16 autocast and scaled float16 keep the twins identical; pure float16 parts them in subnormal halves."""

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from rlloss.claims import Claim, Finding, Overrides
from rlloss.claims.twins import Setting, by_setting, judge_twins, twin_figure, twin_runs
from rlloss.runs import RunFolder
from rlloss.verify import first_difference

PURE, SCALED = "pure fp16", "pure fp16, loss x 1024"
FAST = ("learning_rate=0.003",)
SETTINGS = {
    "bf16 autocast": Setting((*FAST, "precision=bf16_autocast"), same=True),
    "fp16 autocast, GradScaler": Setting((*FAST, "precision=fp16_scaled"), same=True),
    PURE: Setting((*FAST, "precision=fp16"), same=False),
    SCALED: Setting((*FAST, "precision=fp16", "precision.loss_scale=1024"), same=None),
}


def runs(preset: str) -> list[Overrides]:
    return twin_runs(SETTINGS, preset, steps=10_000)


def judge(runs: Sequence[RunFolder]) -> Finding:
    """Beside what each condition expects: in no seed does the scaled loss part as early as the unscaled."""
    finding = judge_twins(SETTINGS, runs)
    found = by_setting(SETTINGS, runs)
    pure, scaled = ([first_difference(a, b) or math.inf for a, b in found[name]] for name in (PURE, SCALED))
    later = [s > p for p, s in zip(pure, scaled, strict=True)]
    summary = f"{finding.summary}; with the loss x 1024, {sum(later)} of {len(later)} part later or never"
    return Finding(finding.holds and all(later), summary, finding.evidence)


def figure(runs: Sequence[RunFolder]) -> Figure:
    return twin_figure(SETTINGS, runs, {"policy_loss": "policy loss", "episodic_return": "return"})


def facts(evidence: pd.DataFrame) -> dict[str, str]:
    return {"half": evidence.set_index("condition")["the same"][PURE]}


CLAIM = Claim(
    sentence=(
        "Under bfloat16 autocast, and under float16 autocast with GradScaler, the two formulations train to the same "
        "bits; with pure float16 parameters the halves that PPO's minimum makes become subnormal, round and part them; "
        "with the loss scaled by 1,024, a power of two, they part later or never."
    ),
    runs=runs,
    judge=judge,
    figure=figure,
    order=150,
    facts=facts,
)
