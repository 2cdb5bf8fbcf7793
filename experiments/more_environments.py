"""The identity on environments that come with extras: Box2D, MuJoCo under normalisation wrappers, Atari from pixels."""

from itertools import product

from rlloss.claims import PAPER_STEPS, Claim, Overrides, seeds_of
from rlloss.claims.twins import PAIR, identity_figure, judge_identity

# Learning rates at which the clip is active within a short run, and minibatches of no power of two: 125, and 50.
VECTORS: Overrides = ("learning_rate=0.003", "num_steps=125")
PIXELS: Overrides = ("learning_rate=0.001", "num_steps=50")
ENVS = {
    "lunarlander": VECTORS,
    "halfcheetah": VECTORS,
    "hopper": VECTORS,
    "invertedpendulum": VECTORS,
    "breakout": PIXELS,
}
QUICK_STEPS = {"halfcheetah": 9000, "breakout": 1000}  # two episodes of each copy; it is slow
QUICK_SEEDS = {"breakout": (1,)}  # far slower than the others


def runs(preset: str) -> list[Overrides]:
    return [
        (f"env={env}", *settings, f"seed={seed}", f"loss={loss}", *budget(preset, env))
        for env, settings in ENVS.items()
        for seed, loss in product(seeds_of(preset, QUICK_SEEDS.get(env, (1, 2))), PAIR)
    ]


def budget(preset: str, env: str) -> Overrides:
    """A snapshot of the policy on pixels takes 7 MB, so there are few of them."""
    if preset == "paper":
        return (f"total_timesteps={PAPER_STEPS}", f"snapshot_every={10_000 if env == 'breakout' else 500}")
    return (f"total_timesteps={QUICK_STEPS.get(env, 6000)}", "snapshot_every=20")


CLAIM = Claim(
    sentence=(
        "On LunarLander, on three MuJoCo tasks with normalised observations and rewards, and on Atari Breakout from "
        "pixels, clipped PPO and REINFORCE with PPO's detached importance weight have identical parameters after every "
        "optimiser step, to the last bit, while their loss values differ."
    ),
    runs=runs,
    judge=judge_identity,
    figure=identity_figure,
    order=20,
)
