"""Stable-Baselines3 and TRL with one line of theirs exchanged: what is one loss in our loop is one in theirs."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rlloss import figures
from rlloss.claims import Claim, Finding, Overrides
from rlloss.others import Training
from rlloss.runs import RunFolder
from rlloss.verdicts import Verdict
from rlloss.verify import RunComparison, compare_runs

REFERENCE = "ppo"
# Of each trainer: its settings, and the losses that are put in the place of its own, with what is expected of each.
# None: the same bits at every step; a number: it parts at that step; "early": it parts, and when is not foretold.
Expected = int | str | None
Setting = tuple[dict[str, Any], dict[str, Expected]]
SB3: dict[str, Setting] = {
    f"{env}, minibatches of {minibatch}": (
        {"env": f"{env}-v1", "minibatch": minibatch, "num_steps": steps, "ent_coef": entropy},
        {"reinforce": None, "reinforce_textbook": None if minibatch == 64 else 2, "two_sided_mask": "early"},
    )
    for env, (minibatch, steps, entropy) in product(
        ("CartPole", "Pendulum"), ((64, 1024, 0.0), (60, 960, 0.01), (100, 500, 0.01))
    )
}
EACH: dict[str, Expected] = {
    "reinforce": None,
    "reinforce_logratio": None,
    "reinforce_textbook": 2,
    "two_sided_mask": "early",
}
TRL: dict[str, Setting] = {
    **{
        f"{loss_type}, {accumulation} micro-batch{'es' if accumulation > 1 else ''}": (
            {"loss_type": loss_type, "accumulation": accumulation}, EACH,
        )
        for loss_type, accumulation in product(("grpo", "bnpo", "dr_grpo", "dapo"), (1, 2))
    },
    "grpo with a KL term": ({"beta": 0.04}, {**EACH, "reinforce": 2}),
    "grpo with a KL term, bias corrected": (
        {"beta": 0.04, "bias_correction": True},
        {**EACH, "reinforce": 2, "reinforce_logratio": 2},
    ),
}  # fmt: skip
TRAINERS: dict[str, tuple[str, dict[str, Setting]]] = {
    "Stable-Baselines3": ("sb3", SB3),
    "TRL": ("trl", TRL),
}
LENGTH = {  # of every run of a preset
    "quick": {"sb3": {"timesteps": 3000}, "trl": {"steps": 24}},
    "paper": {"sb3": {"timesteps": 30_000}, "trl": {"steps": 300, "iterations": 4}},
}


def cases() -> Iterator[tuple[str, str, str, dict[str, Any], str, Expected]]:
    """(trainer, module, setting, its options, loss, what is expected), those of one setting with its own loss first."""
    for trainer, (module, settings) in TRAINERS.items():
        for setting, (options, losses) in settings.items():
            for loss, expected in {REFERENCE: None, **losses}.items():
                yield trainer, module, setting, options, loss, expected


def no_runs(preset: str) -> list[Overrides]:
    return []


def others(preset: str) -> list[Training]:
    return [
        Training(f"{module}-{preset}-{setting.replace(', ', '-').replace(' ', '-')}-{loss}", module, loss,
                 {**options, **LENGTH[preset][module]})
        for _, module, setting, options, loss, _ in cases()
    ]  # fmt: skip


def compared(runs: Sequence[RunFolder]) -> Iterator[tuple[str, str, str, Expected, RunComparison]]:
    """(trainer, setting, loss, what is expected, verdict) of each loss that was put in the place of theirs."""
    theirs = runs[0]
    for (trainer, _, setting, _, loss, expected), run in zip(cases(), runs, strict=True):
        if loss == REFERENCE:
            theirs = run
        else:
            yield trainer, setting, loss, expected, compare_runs(theirs, run)


def judge(runs: Sequence[RunFolder]) -> Finding:
    """Holds if every pair is identical, or parts at the step, that is expected of it."""
    rows = []
    for trainer, setting, loss, expected, verdict in compared(runs):
        identical, first = verdict.verdict == Verdict.IDENTICAL, verdict.first_difference
        as_expected = identical if expected is None else first is not None and expected in (first, "early")
        rows.append({
            "trainer": trainer,
            "setting": setting,
            "loss": loss,
            "verdict": verdict.verdict,
            "optimiser steps": verdict.steps,
            "first step that differs": first,
            "as expected": as_expected,
        })  # fmt: skip
    table = pd.DataFrame(rows).astype({"first step that differs": "Int64"})
    same = table[table["verdict"] == Verdict.IDENTICAL]
    summary = (
        f"{len(same)} of {len(table)} pairs identical at all {same['optimiser steps'].sum():,} optimiser steps, "
        f"{(~table['as expected']).sum()} otherwise than expected"
    )
    return Finding(bool(table["as expected"].all()), summary, table)


def figure(runs: Sequence[RunFolder]) -> Figure:
    """At which optimiser step each loss parts from the trainer's own; at the right, those that do not."""
    found = list(compared(runs))
    losses = list(dict.fromkeys(loss for *_, loss, _, _ in found))
    settings = list(dict.fromkeys((trainer, setting) for trainer, setting, *_ in found))
    drawing, axes = figures.panels(1, 1, figures.TEXT, 4.2)
    panel = axes[0, 0]
    never = 10 ** np.ceil(np.log10(max(verdict.steps for *_, verdict in found)) + 0.3)
    for place, (loss, colour) in enumerate(zip(losses, figures.colours(losses), strict=True)):
        mine = [
            (settings.index((trainer, setting)), verdict)
            for trainer, setting, name, _, verdict in found
            if name == loss
        ]
        x = [verdict.first_difference or never for _, verdict in mine]
        y = [row + 0.22 * (place - (len(losses) - 1) / 2) for row, _ in mine]
        panel.plot(x, y, "o", color=colour, markersize=3.2, label=figures.label(loss))
    panel.axvline(never / 1.8, color=figures.GREY, linewidth=0.6)
    panel.set_xscale("log")
    ticks = [float(10**k) for k in range(int(np.log10(never)))]
    panel.set_xticks([*ticks, never], [*(f"{tick:,.0f}" for tick in ticks), "never"])
    panel.set_xlabel("optimiser step at which it parts from the trainer's own loss")
    panel.set_yticks(range(len(settings)), [f"{trainer}: {setting}" for trainer, setting in settings], fontsize=6)
    panel.invert_yaxis()
    return figures.finish(drawing, axes, columns=2)


CLAIM = Claim(
    sentence=(
        "In Stable-Baselines3's PPO and in TRL's GRPOTrainer, with one line of theirs exchanged, REINFORCE with PPO's "
        "detached weight trains to the bits of their own loss, whatever the mean and the accumulation; the textbook "
        "order does so only where the mean divides by a power of two. With a KL term autograd adds the gradients of "
        "log pi in another order; the weight times the log ratio, PPO's own node, keeps the bits, unless the term is "
        "multiplied by the ratio."
    ),
    runs=no_runs,
    judge=judge,
    figure=figure,
    others=others,
    order=35,
)
