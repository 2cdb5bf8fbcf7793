"""The policy against torch.distributions, analytic gradients, and the NumPy actor against the torch network."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Bernoulli, Categorical, Normal

from rlloss.errors import ConfigError
from rlloss.train.policy import (
    ActorCritic,
    BernoulliHead,
    CategoricalHead,
    GaussianHead,
    MultiCategoricalHead,
    make_head,
)


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
    new = policy.evaluate(policy.named, obs, actions)
    (new.logp.sum() + new.values.sum()).backward()
    for name, (offset, shape) in policy.layout.items():
        part = slice(offset, offset + math.prod(shape))
        assert torch.equal(policy.named[name].grad.flatten(), policy.flat.grad[part]), name
        assert policy.flat.grad[part].any(), f"{name} got no gradient"
    before = policy.evaluate(policy.named, obs, actions).logp
    with torch.no_grad():
        policy.flat.mul_(1.5)
    assert not torch.equal(policy.evaluate(policy.named, obs, actions).logp, before)


def test_network_agrees_with_torch_modules():
    policy = make(dtype=torch.float64)
    p = policy.named

    def module(tower: str) -> torch.nn.Sequential:
        layers: list[torch.nn.Module] = []
        for i in range(3):
            weight, bias = p[f"{tower}.{i}.weight"], p[f"{tower}.{i}.bias"]
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
            linear.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
            layers += [linear, torch.nn.Tanh()]
        return torch.nn.Sequential(*layers[:-1])

    obs, actions = torch.randn(20, 4, dtype=torch.float64), torch.randint(0, 3, (20,))
    new = policy.evaluate(policy.named, obs, actions)
    torch.testing.assert_close(new.values, module("critic")(obs).squeeze(-1))
    torch.testing.assert_close(new.logp, Categorical(logits=module("actor")(obs)).log_prob(actions))


def test_initialisation_is_orthogonal_with_the_usual_gains():
    p = make().named
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
    assert policy.evaluate(policy.named, torch.randn(5, 4), torch.zeros(5, dtype=torch.long)).logp.shape == (5,)


def test_numpy_actor_draws_from_the_torch_networks_softmax():
    policy = make()
    with torch.no_grad():
        policy.named["actor.2.weight"].mul_(300)  # spread the probabilities
    obs, draws = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32), 20_000
    noise = policy.head.noise(np.random.default_rng(1), draws, 3)
    actor = policy.actor()
    actions = np.stack([actor.act(obs, step) for step in noise])
    with torch.no_grad():
        probabilities = torch.softmax(policy.act(torch.from_numpy(obs)), -1).numpy()
    frequencies = np.stack([(actions == a).mean(0) for a in range(3)], -1)
    standard_error = np.sqrt(probabilities * (1 - probabilities) / draws)
    assert probabilities.max() > 0.5
    assert (np.abs(frequencies - probabilities) < 4.5 * standard_error + 1e-9).all()


def test_an_actor_takes_any_number_of_observations():
    policy, rng = make(), np.random.default_rng(0)
    actor = policy.actor()
    for num_envs in (3, 5, 1, 3):
        obs = rng.normal(size=(num_envs, 4)).astype(np.float32)
        noise = policy.head.noise(rng, 1, num_envs)[0]
        assert actor.act(obs, noise).tolist() == policy.actor().act(obs, noise).tolist()


def test_gaussian_actor_has_the_networks_mean_and_standard_deviation():
    policy = make(GaussianHead(2))
    with torch.no_grad():
        policy.named["actor.log_std"].copy_(torch.tensor([0.5, -1.0]))
    obs, draws = np.ones((1, 4), np.float32), 20_000
    noise = policy.head.noise(np.random.default_rng(1), draws, 1)
    actor = policy.actor()
    actions = np.concatenate([actor.act(obs, step) for step in noise])
    with torch.no_grad():
        mean = policy.act(torch.from_numpy(obs)).numpy()[0]
    np.testing.assert_allclose(actions.std(0), np.exp([0.5, -1.0]), rtol=0.02)
    np.testing.assert_allclose(actions.mean(0), mean, atol=0.05)
    assert actions.dtype == np.float32


def test_multi_categorical_is_a_product_of_categoricals():
    logits, head = torch.randn(50, 5, dtype=torch.float64), MultiCategoricalHead([2, 3])
    actions = torch.stack([torch.randint(0, 2, (50,)), torch.randint(0, 3, (50,))], -1)
    logp, entropy = head.evaluate(logits, actions, {})
    parts = [Categorical(logits=part) for part in logits.split([2, 3], -1)]
    torch.testing.assert_close(logp, sum(p.log_prob(actions[:, i]) for i, p in enumerate(parts)))
    torch.testing.assert_close(entropy, sum(p.entropy() for p in parts))


def test_bernoulli_agrees_with_torch_distributions_and_stays_finite():
    logits, actions = torch.randn(50, 3, dtype=torch.float64), torch.randint(0, 2, (50, 3))
    logp, entropy = BernoulliHead(3).evaluate(logits, actions, {})
    reference = Bernoulli(logits=logits)
    torch.testing.assert_close(logp, reference.log_prob(actions.double()).sum(-1))
    torch.testing.assert_close(entropy, reference.entropy().sum(-1))
    _, entropy = BernoulliHead(3).evaluate(torch.full((1, 3), 1e4), actions[:1], {})
    assert entropy.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("head", [MultiCategoricalHead([2, 3]), BernoulliHead(3)])
def test_samples_of_several_choices_follow_their_probabilities(head):
    out = np.linspace(-1, 1, head.outputs)
    noise = head.noise(np.random.default_rng(0), 1, 40_000)[0]
    actions = head.sample(np.broadcast_to(out, noise.shape), noise, {})
    assert actions.shape == (40_000, *head.shape)
    distinct, counts = np.unique(actions, axis=0, return_counts=True)
    logp, _ = head.evaluate(torch.from_numpy(np.tile(out, (len(distinct), 1))), torch.from_numpy(distinct), {})
    assert logp.exp().sum().item() == pytest.approx(1)
    np.testing.assert_allclose(counts / 40_000, logp.exp().numpy(), atol=0.01)


@pytest.mark.parametrize("space", [spaces.Box(0, 3, (2,), np.int64), spaces.Text(3)])
def test_unsupported_action_spaces_are_named(space):
    with pytest.raises(ConfigError, match=r"action space .* is not supported; it must be"):
        make_head(space)


def pixels(num=6, shape=(2, 44, 40)):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, *shape), dtype=np.uint8))


def make_cnn(dtype=torch.float32, head=None, shape=(2, 44, 40)):
    return ActorCritic(shape, head or CategoricalHead(3), (), generator=torch.Generator().manual_seed(0), dtype=dtype)


def nature_modules(policy):
    """Plain torch.nn modules with copies of the policy's weights, by name."""
    shapes = {name: shape for name, (_, shape) in policy.layout.items() if name.endswith("weight")}
    modules = {}
    for name, stride in (("torso.0", 4), ("torso.1", 2), ("torso.2", 1)):
        outputs, inputs, kernel, _ = shapes[f"{name}.weight"]
        modules[name] = torch.nn.Conv2d(inputs, outputs, kernel, stride, dtype=torch.float64)
    for name in ("torso.3", "actor.0", "critic.0"):
        outputs, inputs = shapes[f"{name}.weight"]
        modules[name] = torch.nn.Linear(inputs, outputs, dtype=torch.float64)
    for name, module in modules.items():
        module.load_state_dict({part: policy.named[f"{name}.{part}"].detach() for part in ("weight", "bias")})
    return modules


def test_nature_network_and_its_gradients_agree_with_torch_modules():
    policy, obs, actions = make_cnn(torch.float64), pixels(), torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.no_grad():  # the actor's small initial gain would hide errors in its path
        policy.named["actor.0.weight"].mul_(100)
    modules = nature_modules(policy)
    relu, flatten = torch.nn.ReLU(), torch.nn.Flatten()
    convolutions = [layer for i in range(3) for layer in (modules[f"torso.{i}"], relu)]
    torso = torch.nn.Sequential(*convolutions, flatten, modules["torso.3"], relu)
    features = torso(obs.double() / 255)
    logp = Categorical(logits=modules["actor.0"](features)).log_prob(actions)
    values = modules["critic.0"](features).squeeze(-1)
    new = policy.evaluate(policy.named, obs, actions)
    torch.testing.assert_close(new.logp, logp)
    torch.testing.assert_close(new.values, values)
    torch.testing.assert_close(policy.values(obs), values)
    torch.testing.assert_close(policy.logp_entropy(obs, actions)[0], logp)
    (new.logp.sum() + 2 * new.values.sum()).backward()
    (logp.sum() + 2 * values.sum()).backward()
    for name, module in modules.items():
        for part, reference in module.named_parameters():
            assert reference.grad.abs().max() > 0
            torch.testing.assert_close(policy.named[f"{name}.{part}"].grad, reference.grad)


def test_nature_network_has_the_papers_layers_and_fills_the_flat_vector():
    policy = make_cnn(shape=(4, 84, 84), head=CategoricalHead(4))
    shapes = [shape for _, shape in policy.layout.values()]
    assert shapes == [
        (32, 4, 8, 8), (32,), (64, 32, 4, 4), (64,), (64, 64, 3, 3), (64,), (512, 3136), (512,),
        (4, 512), (4,), (1, 512), (1,),
    ]  # fmt: skip
    offsets = [offset for offset, _ in policy.layout.values()]
    sizes = [math.prod(shape) for shape in shapes]
    assert offsets == [sum(sizes[:i]) for i in range(len(sizes))]
    assert sum(sizes) == policy.flat.numel() == policy.flat.grad.numel() == 1_686_693
    for name, gain in {"torso.0": 2**0.5, "torso.2": 2**0.5, "torso.3": 2**0.5, "actor.0": 0.01, "critic.0": 1}.items():
        w = policy.named[f"{name}.weight"].detach().flatten(1)
        torch.testing.assert_close(w @ w.T, gain**2 * torch.eye(len(w)), atol=1e-4, rtol=1e-4)
    new = policy.evaluate(policy.named, pixels(2, (4, 84, 84)), torch.tensor([0, 3]))
    (new.logp.sum() + new.values.sum()).backward()
    for name, (offset, shape) in policy.layout.items():
        part = policy.flat.grad[offset : offset + math.prod(shape)]
        assert part.any(), f"{name} got no gradient"
        assert torch.equal(policy.named[name].grad.flatten(), part)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_image_actor_draws_from_the_networks_outputs(dtype):
    policy, obs = make_cnn(dtype), pixels()
    with torch.no_grad():
        policy.named["actor.0.weight"].mul_(100)
        out = policy.act(obs).double().numpy()
    actor, noise = policy.actor(), policy.head.noise(np.random.default_rng(1), 20, 6)
    for step in noise:
        assert np.array_equal(actor.act(obs.numpy(), step), np.argmax(out + step, -1))
    assert actor.dtype == (np.float64 if dtype == torch.float64 else np.float32)
    gaussian = make_cnn(dtype, GaussianHead(2)).actor().act(obs.numpy(), np.zeros((6, 2)))
    assert gaussian.dtype == actor.dtype
