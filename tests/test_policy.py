"""The policy against torch.distributions, analytic gradients, and the NumPy sampler against the torch network."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Categorical, Normal

from rlloss.config import ConfigError
from rlloss.policy import ActorCritic, CategoricalHead, GaussianHead, make_head


def make(head=None, dtype=torch.float32, hidden=(64, 64), seed=0):
    return ActorCritic(
        4, head or CategoricalHead(3), hidden, generator=torch.Generator().manual_seed(seed), dtype=dtype
    )


def test_categorical_log_probability_and_entropy_agree_with_torch_distributions():
    logits, actions = torch.randn(50, 3, dtype=torch.float64), torch.randint(0, 3, (50,))
    logp, entropy = CategoricalHead(3).evaluate(logits, actions, {})
    reference = Categorical(logits=logits)
    torch.testing.assert_close(logp, reference.log_prob(actions))
    torch.testing.assert_close(entropy, reference.entropy())


def test_gaussian_log_density_and_entropy_agree_with_torch_distributions():
    mean, actions = torch.randn(50, 2, dtype=torch.float64), torch.randn(50, 2, dtype=torch.float64)
    log_std = torch.tensor([0.3, -0.7], dtype=torch.float64)
    logp, entropy = GaussianHead(2).evaluate(mean, actions, {"actor.log_std": log_std})
    reference = Normal(mean, log_std.exp())
    torch.testing.assert_close(logp, reference.log_prob(actions).sum(-1))
    torch.testing.assert_close(entropy, reference.entropy().sum(-1))


def test_policy_gradient_is_one_hot_minus_softmax():
    """d(log pi(a) * A)/d logits = (onehot(a) - softmax) * A."""
    logits = torch.tensor([[1.0, 1, 1], [2, 0, 0], [-1, -2, -3]], dtype=torch.float64, requires_grad=True)
    actions, A = torch.tensor([0, 1, 2]), torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    logp, _ = CategoricalHead(3).evaluate(logits, actions, {})
    (logp * A).sum().backward()
    analytic = (torch.nn.functional.one_hot(actions, 3) - torch.softmax(logits.detach(), -1)) * A.unsqueeze(-1)
    torch.testing.assert_close(logits.grad, analytic)


def test_parameters_and_gradients_are_views_of_the_flat_vectors():
    policy = make()
    obs, actions = torch.randn(8, 4), torch.randint(0, 3, (8,))
    new = policy.evaluate(obs, actions)
    (new.logp.sum() + new.values.sum()).backward()
    for name, (offset, shape) in policy.layout.items():
        part = slice(offset, offset + math.prod(shape))
        assert torch.equal(policy.parameters[name].grad.flatten(), policy.flat.grad[part]), name
        assert policy.flat.grad[part].any(), f"{name} got no gradient"
    before = policy.evaluate(obs, actions).logp
    with torch.no_grad():
        policy.flat.mul_(1.5)
    assert not torch.equal(policy.evaluate(obs, actions).logp, before)


def test_network_agrees_with_torch_modules():
    policy = make(dtype=torch.float64)
    p = policy.parameters

    def module(tower: str) -> torch.nn.Sequential:
        layers: list[torch.nn.Module] = []
        for i in range(3):
            weight, bias = p[f"{tower}.{i}.weight"], p[f"{tower}.{i}.bias"]
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
            linear.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
            layers += [linear, torch.nn.Tanh()]
        return torch.nn.Sequential(*layers[:-1])

    obs, actions = torch.randn(20, 4, dtype=torch.float64), torch.randint(0, 3, (20,))
    new = policy.evaluate(obs, actions)
    torch.testing.assert_close(new.values, module("critic")(obs).squeeze(-1))
    torch.testing.assert_close(new.logp, Categorical(logits=module("actor")(obs)).log_prob(actions))


def test_initialisation_is_orthogonal_with_the_usual_gains():
    p = make().parameters
    for name, gain in {"actor.1.weight": 2**0.5, "critic.1.weight": 2**0.5, "actor.2.weight": 0.01}.items():
        w = p[name].detach()
        torch.testing.assert_close(w @ w.T, gain**2 * torch.eye(len(w)), atol=1e-5, rtol=1e-5)
    assert torch.linalg.vector_norm(p["critic.2.weight"]).item() == pytest.approx(1, abs=1e-5)
    assert all(not leaf.any() for name, leaf in p.items() if name.endswith("bias"))


def test_precisions_start_from_the_same_network():
    assert torch.equal(make(dtype=torch.float64).flat.detach().float(), make().flat.detach())


def test_hidden_sizes_are_configurable():
    policy = make(hidden=(16, 8, 4))
    assert [shape for _, (_, shape) in policy.layout.items()][::2][:4] == [(16, 4), (8, 16), (4, 8), (3, 4)]
    assert policy.evaluate(torch.randn(5, 4), torch.zeros(5, dtype=torch.long)).logp.shape == (5,)


def test_numpy_sampler_draws_from_the_torch_networks_softmax():
    policy = make()
    with torch.no_grad():
        policy.parameters["actor.2.weight"].mul_(300)  # spread the probabilities
    obs, draws = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32), 20_000
    noise = policy.head.noise(np.random.default_rng(1), draws, 3)
    actor = policy.sampler()
    actions = np.stack([actor.act(obs, step) for step in noise])
    with torch.no_grad():
        probabilities = torch.softmax(policy._tower("actor", torch.from_numpy(obs)), -1).numpy()
    frequencies = np.stack([(actions == a).mean(0) for a in range(3)], -1)
    standard_error = np.sqrt(probabilities * (1 - probabilities) / draws)
    assert probabilities.max() > 0.5
    assert (np.abs(frequencies - probabilities) < 4.5 * standard_error + 1e-9).all()


def test_gaussian_sampler_has_the_networks_mean_and_standard_deviation():
    policy = make(GaussianHead(2))
    with torch.no_grad():
        policy.parameters["actor.log_std"].copy_(torch.tensor([0.5, -1.0]))
    obs, draws = np.ones((1, 4), np.float32), 20_000
    noise = policy.head.noise(np.random.default_rng(1), draws, 1)
    actor = policy.sampler()
    actions = np.concatenate([actor.act(obs, step) for step in noise])
    with torch.no_grad():
        mean = policy._tower("actor", torch.from_numpy(obs)).numpy()[0]
    np.testing.assert_allclose(actions.std(0), np.exp([0.5, -1.0]), rtol=0.02)
    np.testing.assert_allclose(actions.mean(0), mean, atol=0.05)
    assert actions.dtype == np.float32


@pytest.mark.parametrize(
    "space", [spaces.MultiDiscrete([2, 3]), spaces.Box(-1, 1, (2, 2)), spaces.Discrete(3, start=1)]
)
def test_unsupported_action_spaces_are_named(space):
    with pytest.raises(ConfigError, match=r"action space .* is not supported; it must be"):
        make_head(space)
