"""Clipped PPO and REINFORCE with PPO's detached weight train to the same bits, on every environment tried."""

from itertools import product

import pandas as pd

from rlloss import tables
from rlloss.claims import Claim, Overrides, seeds_of, shared_budget
from rlloss.claims.twins import PAIR, identity_figure, judge_identity

ENVS = ("cartpole", "acrobot", "mountaincar", "pendulum")
# Learning rates at which the clip is active within a short run, so that equality is put to the test.
OPTIMIZERS = {"adam": ("learning_rate=0.003",), "sgd": ("optimizer=sgd", "learning_rate=0.1")}
NUM_STEPS = (128, 125)  # minibatches of 128, a power of two, and of 125; the figure shows the first of each list


def runs(preset: str) -> list[Overrides]:
    seeds = seeds_of(preset, (1, 2))
    return [
        (f"env={env}", *settings, f"num_steps={num_steps}", f"seed={seed}", f"loss={loss}", *shared_budget(preset, env))
        for env, settings, num_steps, seed, loss in product(ENVS, OPTIMIZERS.values(), NUM_STEPS, seeds, PAIR)
    ]


def facts(evidence: pd.DataFrame) -> dict[str, str]:
    same, pairs = evidence["identical"].str.split(" of ", expand=True).astype(int).sum()
    return {
        "steps": tables.number(int(evidence["steps compared"].sum())),
        "identical": f"{same} of {pairs}",
        "clip_low": f"{evidence['clip active'].min():.2%}",
        "clip_high": f"{evidence['clip active'].max():.2%}",
        "pairs": tables.number(int(pairs)),
    }


CLAIM = Claim(
    sentence=(
        "Clipped PPO and REINFORCE with PPO's detached importance weight, trained independently from one seed, have "
        "identical parameters after every optimiser step, to the last bit, while their loss values differ."
    ),
    runs=runs,
    judge=judge_identity,
    figure=identity_figure,
    order=10,
    facts=facts,
)
