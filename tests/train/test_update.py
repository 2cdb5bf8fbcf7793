"""The update against plain PyTorch: modules, distributions, per-tensor optimiser; then its parts one by one."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical

from rlloss.config import load
from rlloss.config.schema import AdamConfig, Config, LossConfig, OptimizerConfig, RMSpropConfig, SGDConfig
from rlloss.errors import ConfigError
from rlloss.train import train
from rlloss.train.conditions import make_schedule
from rlloss.train.optimizers import make_optimizer
from rlloss.train.policy import ActorCritic, CategoricalHead
from rlloss.train.precision import make_precision
from rlloss.train.steppers import make_stepper
from rlloss.train.update import Batch, clip_grad_norm_, metrics, shuffled, split, update

N = 64


def make_step(policy, optimizer, config):
    precision = make_precision("fp32")
    return make_stepper(config, policy, optimizer, precision, precision.scaler("cpu"))


def policy_and_batch(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    policy = ActorCritic(4, CategoricalHead(3), (16, 16), generator=generator, dtype=dtype)
    with torch.no_grad():
        policy.flat.add_(0.1 * torch.randn(policy.flat.shape, generator=generator, dtype=dtype))
    obs = torch.randn(N, 4, generator=generator, dtype=dtype)
    actions = torch.randint(0, 3, (N,), generator=generator)
    with torch.no_grad():
        new = policy.evaluate(policy.named, obs, actions)
    noise = torch.randn(3, N, generator=generator, dtype=dtype)
    return policy, Batch(obs, actions, new.logp + 0.3 * noise[0], noise[1], new.values + noise[2], new.values)


class PlainPPO(torch.nn.Module):
    """PPO as a textbook would write it in PyTorch, to hold ours against."""

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        for tower in ("actor", "critic"):
            layers = []
            for i in range(3):
                weight, bias = policy.named[f"{tower}.{i}.weight"], policy.named[f"{tower}.{i}.bias"]
                linear = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
                linear.load_state_dict({"weight": weight.detach().clone(), "bias": bias.detach().clone()})
                layers += [linear, torch.nn.Tanh()]
            setattr(self, tower, torch.nn.Sequential(*layers[:-1]))

    def loss(self, batch: Batch, config: Config) -> torch.Tensor:
        distribution = Categorical(logits=self.actor(batch.obs))
        ratio = (distribution.log_prob(batch.actions) - batch.old_logp).exp()
        clipped = ratio.clamp(1 - config.clip_coef, 1 + config.clip_coef)
        policy_loss = torch.max(-batch.advantages * ratio, -batch.advantages * clipped).mean()
        values = self.critic(batch.obs).squeeze(-1)
        value_loss = (values - batch.returns).pow(2)
        if config.clip_vloss:
            near = batch.old_values + (values - batch.old_values).clamp(-config.clip_coef, config.clip_coef)
            value_loss = torch.max(value_loss, (near - batch.returns).pow(2))
        entropy = distribution.entropy().mean()
        return policy_loss - config.ent_coef * entropy + config.vf_coef * 0.5 * value_loss.mean()

    def flat(self) -> torch.Tensor:
        return torch.nn.utils.parameters_to_vector(self.parameters()).detach()


@pytest.mark.parametrize("loss", ["ppo_clip", "reinforce", "reinforce_textbook", "reinforce_mask"])
@pytest.mark.parametrize("clip_vloss", [True, False])
@pytest.mark.parametrize(
    ("optimizer", "plain_optimizer"),
    [
        (AdamConfig(), lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-5)),
        (SGDConfig(), lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
        (RMSpropConfig(), lambda p: torch.optim.RMSprop(p, lr=0.01, eps=1e-5)),
    ],
    ids=["adam", "sgd", "rmsprop"],
)
def test_steps_agree_with_plain_pytorch(optimizer, plain_optimizer, clip_vloss, loss):
    policy, batch = policy_and_batch()
    config = Config(loss=LossConfig(loss), optimizer=optimizer, clip_vloss=clip_vloss, learning_rate=0.01)
    plain = PlainPPO(policy)
    ours, theirs = make_optimizer(optimizer, policy, 0.01), plain_optimizer(list(plain.parameters()))
    stepper = make_step(policy, ours, config)
    for _ in range(5):
        step = stepper(batch)
        theirs.zero_grad()
        plain.loss(batch, config).backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), config.max_grad_norm)
        theirs.step()
        torch.testing.assert_close(step.grad_norm, norm)
        # The plain module registers the actor first and then the critic, as the layout does.
        torch.testing.assert_close(policy.flat.detach(), plain.flat())


def test_formulations_step_to_the_same_bits_at_any_minibatch_size():
    for n in (1, 7, 60, 64):
        ends = []
        for loss in ("ppo_clip", "reinforce"):
            policy, batch = policy_and_batch(dtype=torch.float32)
            optimizer = make_optimizer(AdamConfig(), policy, 0.05)
            part = Batch(*(column[:n] for column in batch))
            stepper = make_step(policy, optimizer, Config(loss=LossConfig(loss)))
            for _ in range(20):
                stepper(part)
            ends.append(policy.flat.detach().clone())
        assert torch.equal(*ends), f"minibatches of {n}"


@pytest.mark.parametrize("max_norm", [0.5, 100.0, math.inf])
def test_gradient_clipping_is_torchs(max_norm):
    gradient = torch.randn(1000)
    leaf = torch.nn.Parameter(torch.zeros(1000))
    leaf.grad = gradient.clone()
    expected = torch.nn.utils.clip_grad_norm_([leaf], max_norm)
    assert torch.equal(clip_grad_norm_(gradient, max_norm), expected)
    assert torch.equal(gradient, leaf.grad)


def test_an_epoch_visits_every_sample_once_and_normalises_each_minibatch():
    _, batch = policy_and_batch()
    minibatches = list(split(shuffled(batch, 4, np.random.default_rng(0), norm_adv=True)))
    assert len(minibatches) == 4
    seen = torch.cat([mb.obs for mb in minibatches])
    assert not torch.equal(seen, batch.obs)
    assert torch.equal(seen.sort(0).values, batch.obs.sort(0).values)
    rows = {tuple(row.tolist()): i for i, row in enumerate(batch.obs)}
    for mb in minibatches:
        order = [rows[tuple(row.tolist())] for row in mb.obs]
        assert torch.equal(mb.actions, batch.actions[order])
        A = batch.advantages[order]
        torch.testing.assert_close(mb.advantages, (A - A.mean()) / (A.std() + 1e-8))
        assert torch.equal(mb.returns, batch.returns[order])
    (raw,) = split(shuffled(batch, 1, np.random.default_rng(0), norm_adv=False))
    assert torch.equal(raw.advantages.sort().values, batch.advantages.sort().values)


def test_metrics_are_means_over_all_minibatches():
    policy, batch = policy_and_batch()
    config = Config(loss=LossConfig("reinforce"), norm_adv=False)
    optimizer = make_optimizer(SGDConfig(), policy, 0.0)  # the policy stands still, so every formula can be redone
    stepper = make_step(policy, optimizer, config)
    steps = [stepper(mb) for mb in split(shuffled(batch, 4, np.random.default_rng(0), norm_adv=False))]
    ours = metrics(steps, config)
    with torch.no_grad():
        new = policy.evaluate(policy.named, batch.obs, batch.actions)
    logratio, A = new.logp - batch.old_logp, batch.advantages
    ratio = logratio.exp()
    active = ((A > 0) & (ratio > 1.2)) | ((A < 0) & (ratio < 0.8))
    expected = {
        "ppo_clip_loss": -torch.min(ratio * A, ratio.clamp(0.8, 1.2) * A).mean(),
        "reinforce_loss": -(torch.where(active, 0, ratio) * new.logp * A).mean(),
        "approx_kl": (ratio - 1 - logratio).mean(),
        "old_approx_kl": -logratio.mean(),
        "ratio_outside_frac": ((ratio > 1.2) | (ratio < 0.8)).double().mean(),
        "clip_active_frac": active.double().mean(),
        "entropy_loss": new.entropy.mean(),
        "value_loss": 0.5 * (new.values - batch.returns).pow(2).mean(),
    }
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value.item(), rel=1e-9), name
    assert ours["policy_loss"] == pytest.approx(ours["reinforce_loss"])
    total = ours["policy_loss"] - 0.01 * ours["entropy_loss"] + 0.5 * ours["value_loss"]
    assert ours["total_loss"] == pytest.approx(total)
    assert 0 < ours["clip_active_frac"] < ours["ratio_outside_frac"]


def count_steps(target_kl):
    policy, batch = policy_and_batch()
    config = Config(target_kl=target_kl, learning_rate=0.01)
    calls = []
    optimizer = make_optimizer(config.optimizer, policy, 0.01)
    stepper = make_step(policy, optimizer, config)
    update(stepper, batch, config, np.random.default_rng(0), lambda: calls.append(1))
    return len(calls)


def test_target_kl_stops_after_the_epoch_that_exceeds_it():
    assert count_steps(None) == 16
    assert count_steps(1e6) == 16
    assert count_steps(1e-9) == 4


def test_linear_schedule_falls_from_the_learning_rate_towards_zero():
    config = Config(total_timesteps=512 * 4)
    rates = []
    train(config, progress=lambda row: rates.append(row["learning_rate"]))
    assert rates == pytest.approx([2.5e-4, 2.5e-4 * 0.75, 2.5e-4 * 0.5, 2.5e-4 * 0.25])
    rates.clear()
    train(load(["schedule=constant", "total_timesteps=1536"]), progress=lambda row: rates.append(row["learning_rate"]))
    assert rates == [2.5e-4] * 3


def test_unknown_names_and_rejected_values_are_named():
    policy, _ = policy_and_batch()
    with pytest.raises(ConfigError, match="optimizer=adamw: unknown; use one of adam, sgd, rmsprop"):
        make_optimizer(OptimizerConfig("adamw"), policy, 0.1)
    with pytest.raises(ConfigError, match=r"optimizer=adam with .*beta"):
        make_optimizer(AdamConfig(betas=[2.0, 0.9]), policy, 0.1)
    config = Config()
    config.schedule.name = "cosine"
    with pytest.raises(ConfigError, match="schedule=cosine"):
        make_schedule(config, make_optimizer(AdamConfig(), policy, 0.1))
