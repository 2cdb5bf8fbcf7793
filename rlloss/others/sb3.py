"""Stable-Baselines3's PPO with one of our losses in the place of its policy loss, watched."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import rlloss
from rlloss.errors import NotInstalled
from rlloss.losses import LOSSES
from rlloss.others import one_thread
from rlloss.others.exchange import exchanged

LINE = "policy_loss = -th.min(policy_loss_1, policy_loss_2).mean()"
OURS = "policy_loss = theirs(log_prob, rollout_data.old_log_prob, advantages, clip_coef=clip_range).mean()"
NATIVE = "ppo"  # as they have it


def train(
    folder: Path,
    loss: str,
    *,
    env: str = "CartPole-v1",
    minibatch: int = 64,
    num_steps: int = 1024,
    ent_coef: float = 0.0,
    timesteps: int = 3000,
    seed: int = 3,
    watched: Mapping[str, Any] | None = None,
    prepare: Callable[[Any], None] = lambda trainer: None,
) -> None:
    """``loss``: ``ppo`` as they have it, or a name of ``LOSSES``. ``prepare`` gets their trainer before it trains.

    Raises: NotInstalled.
    """
    try:
        from stable_baselines3 import PPO
    except ImportError as error:
        raise NotInstalled("Stable-Baselines3 is not installed; pip install 'rlloss[trainers]'") from error
    with one_thread():
        trainer = PPO if loss == NATIVE else exchanged(PPO, "train", LINE, OURS, theirs=LOSSES[loss])
        model = trainer(
            "MlpPolicy", env, seed=seed, device="cpu", n_steps=num_steps, batch_size=minibatch, ent_coef=ent_coef
        )
        prepare(model)
        config = {"loss": loss, "trainer": "stable_baselines3", "env": env, "minibatch": minibatch, "seed": seed}
        with rlloss.watch(model.policy, model.policy.optimizer, folder, config=config, **(watched or {})):
            model.learn(timesteps)
