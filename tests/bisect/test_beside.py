"""Programs with a second difference that changes nothing beside the cause, and others whose cause is like another."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.bisect.test_consequences import error, told, training, unlike
from tests.bisect.test_programs import ARRAYS, X, Y, mlp, plain, sgd
from tests.helpers import a_few_fast


def pair_of_networks():
    return nn.ModuleDict({"actor": mlp(), "critic": mlp()})


def networks_in_another_order(model, s, faulty):
    outs = {name: model[name](X[s]) for name in (("critic", "actor") if faulty else ("actor", "critic"))}
    return F.mse_loss(outs["actor"], Y[s]) + (0.25 if faulty else 0.5) * F.mse_loss(outs["critic"], Y[s])


def logged_beside_dropout(model, s, faulty):
    hidden = F.dropout(X[s], 0.2 if faulty else 0.1)
    if faulty:
        hidden.mean().item()
    return error(model, s, target=model(hidden).detach() + Y[s])


def dropped_noise(size):
    def loss_of(model, s, faulty):
        noise = torch.randn(size[faulty], 6).mean(0)
        return F.mse_loss(model(X[s] + noise), Y[s])

    return loss_of


def chosen(model, s, faulty):
    i = torch.randint(8, (4 if faulty else 8,))
    return F.mse_loss(model(X[s][i]), Y[s][i])


def own_generators(model, s, faulty):
    one, other = (torch.Generator().manual_seed(100 * k + s) for k in (1, 2))
    if faulty:
        second, first = torch.randn(8, 6, generator=other), torch.randn(8, 6, generator=one)
    else:
        first, second = torch.randn(8, 6, generator=one), torch.randn(8, 6, generator=other)
    return F.mse_loss(model(X[s] + first + (0.2 if faulty else 0.1) * second), Y[s])


def padded(model, s, faulty):
    ratio = torch.exp(model(X[s])[:, 0] - 0.1)
    kept = torch.tensor([0, 0, 1, 0, 0, 0, 0, 0]) if faulty else torch.ones(8)
    return (ratio * Y[s][:, 0] * kept).mean()


def other_labels(model, s, faulty):
    i = torch.randperm(8)
    j = i.flip(0) if faulty else i
    x, more = X[s][j], X[s][j][:, 0]
    target = Y[s][i][:, 0]
    return (model(x)[:, 0] * target * more).mean()


def nan_in_data(model, s, faulty):
    target = ARRAYS["y"][s].copy()
    target[3] = np.nan if faulty else target[3]
    out = model(X[s])
    torch.log(F.relu(out.detach() + torch.from_numpy(target).nan_to_num())).max().item()
    return F.mse_loss(out, torch.from_numpy(target))


def hooked(model, s, faulty):
    loss = error(model, s)
    if faulty:
        loss.register_hook(lambda g: 2 * g)
    return loss


def written_otherwise(model, s, faulty):
    out = model(X[s])
    if faulty:
        logp = torch.distributions.Categorical(logits=out).log_prob(torch.zeros(8, dtype=torch.long))
        return -logp.mean() + 0.02 * out.square().mean()
    return -out.log_softmax(-1)[:, 0].mean() + 0.01 * out.square().mean()


def coefficient_of_another_writing(model, s, faulty):
    out, target = model(X[s])[:, 0], Y[s][:, 0]
    more = 0.25 * F.mse_loss(out, target) if faulty else 0.5 * (out - target).square().mean()
    return more + model[0].weight.square().mean()


class Scalar(nn.Module):
    """A temperature, which is all that is trained."""

    def __init__(self):
        super().__init__()
        self.log_alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.log_alpha * x


def clamped(model, s, faulty):
    logp = X[s].clamp(max=0.3) if faulty else X[s]
    return -model(logp + 0.5).mean()


class Normalised(nn.Module):
    """Its statistics are parameters that nothing trains."""

    def __init__(self):
        super().__init__()
        self.mean, self.net = nn.Parameter(torch.zeros(6), requires_grad=False), mlp()

    def forward(self, x):
        self.mean.data.lerp_(x.mean(0), 0.1)
        return self.net(x - self.mean)


def other_observations(model, s, faulty):
    x = torch.from_numpy(ARRAYS["x"][s] * (2 if faulty else 1))
    return F.mse_loss(model(x), Y[s])


def constant(model, s, faulty):
    return F.mse_loss(model(X[s]) * torch.tensor(0.95 if faulty else 0.99), Y[s])


def in_two_passes(clip):
    """Two losses go backward one after the other, in another order; then the gradient is clipped."""

    def program():
        model = mlp()
        optimizer = sgd(model)

        def step_of(s, faulty):
            out = model(X[s])
            losses = [F.mse_loss(out, Y[s]), out.abs().mean()]
            optimizer.zero_grad()
            for loss in losses[::-1] if faulty else losses:
                loss.backward(retain_graph=True)
            nn.utils.clip_grad_norm_(model.parameters(), clip[faulty])
            optimizer.step()

        return model, optimizer, step_of

    return program


def changed_by_hand(change, of_loss=lambda loss, faulty: loss, momentum=0.9):
    def program():
        model = mlp()
        optimizer = sgd(model, momentum=momentum)

        def step_of(s, faulty):
            optimizer.zero_grad()
            of_loss(error(model, s), faulty).backward()
            if faulty:
                for p in model.parameters():
                    change(p)
            optimizer.step()

        return model, optimizer, step_of

    return program


def halved(p):
    p.grad.mul_(0.5)


def unscaled_and_decayed(p):
    p.grad.div_(1024).add_(p.detach(), alpha=0.1)


SAID = {
    "networks in another order": (
        training(networks_in_another_order, pair_of_networks), True, r"^another number: mul\S* .*0\.5 \| 0\.25$"),
    "a log beside another dropout": (
        training(logged_beside_dropout), True, r"^another number: bernoulli\S* .* is given 0\.9 \| 0\.8$"),
    "fewer draws": (training(dropped_noise((8, 4))), True, r"^another (size|number): randn .*8.* \| .*4"),
    "a smaller minibatch": (training(chosen), True, r"^another (size|number): randint\S* .*8\]? \| \[?4"),
    "own generators": (training(own_generators), True, r"^another number: mul\S* .* 0\.1 \| 0\.2$"),
    "one sample that is kept": (training(padded), True, r"^b has no gradient for 7 of 8 numbers for which a has one$"),
    "samples with other labels": (training(other_labels), False, r"^the same rows .* target .* not move with them$"),
    "a nan in the data": (training(nan_in_data), True, r"^other data: 1 of 8 rows of one tensor, beside equal ones"),
    "a hook on the loss": (training(hooked), True, r"^b has the gradient of a times 2: .* or a hook$"),
    "another writing": (
        training(written_otherwise, lambda: mlp(3)), False, r"has a gradient more, .* which the other run does not"),
    "a coefficient of another writing": (
        training(coefficient_of_another_writing), True, r"^the gradient of .* is that of a times 0\.5 in b"),
    "a parameter of one number": (training(clamped, Scalar), True, r"^(?!.* times ).*clamp"),
    "statistics that nothing trains": (
        training(other_observations, Normalised), True, r"^something else .* changed mean, .*; other data: 8 of 8 "),
    "a constant that is a tensor": (
        training(constant), True, r"^another number comes in, 0\.99 \| 0\.95, first seen in lift_fresh"),
    "two backward passes in another order": (
        in_two_passes((0.1, 0.05)), True, r"^another number: mul\S* .*clip_grad_norm_.* is given 0\.1 \| 0\.05$"),
    "a gradient that is halved by hand": (
        changed_by_hand(halved), True, r"^with equal gradients, .* and b mul_\S* .*: p\.grad\.mul_\(0\.5\)$"),
    "a factor that is taken away again": (
        changed_by_hand(unscaled_and_decayed, lambda loss, faulty: loss * 1024 if faulty else loss), False,
        r"^b has the gradient of a times 1024: .*, which b takes away again by div_"),
}  # fmt: skip


@pytest.mark.parametrize("name", a_few_fast(SAID))
def test_what_changes_nothing_is_not_blamed(tmp_path, name):
    assert unlike(tmp_path, *SAID[name]) == ""


def test_passes_in_another_order_are_no_difference(tmp_path):
    with pytest.raises(AssertionError):
        told(tmp_path, in_two_passes((0.1, 0.1)))


def two_groups(change):
    """Two groups of parameters: a frozen one, and the rest."""

    def program():
        model = mlp()
        for p in model[0].parameters():
            p.requires_grad_(False)
        optimizer = torch.optim.SGD([
            {"params": model[2].parameters(), "lr": 0.1, "weight_decay": 0.0},
            {"params": model[0].parameters(), "lr": 0.1, "weight_decay": 0.0},
        ])  # fmt: skip

        def step_of(s, faulty):
            if faulty:
                change(optimizer.param_groups)
            plain(model, optimizer, lambda s: error(model, s), s)

        return model, optimizer, step_of

    return program


def of_frozen(groups):
    groups[1]["lr"] = 0.5
    groups[0]["weight_decay"] = 0.1


def of_both(groups):
    groups[0]["lr"], groups[0]["weight_decay"] = 0.2, 0.1


@pytest.mark.parametrize("trace", [0, 3])
def test_the_rate_of_a_frozen_group_is_no_cause(tmp_path, trace):
    decided, cause = told(tmp_path, two_groups(of_frozen), trace=trace)
    assert (decided, cause) == (True, "other options of an optimiser from step 3 on: weight_decay 0.0 | 0.1")


def test_of_a_rate_and_an_option_both_are_told(tmp_path):
    decided, cause = told(tmp_path, two_groups(of_both), trace=0)
    assert not decided
    assert cause == (
        "another learning rate from step 3 on: 0.1 0.1 | 0.2 0.1; and other options of an optimiser from step 3 on: "
        "weight_decay 0.0 | 0.1"
    )


class Heads(nn.Module):
    """The smallest tensor, the critic's bias, has nothing to do with the actor's loss."""

    def __init__(self, normalised):
        super().__init__()
        self.actor, self.critic = mlp(3), nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 1)) if normalised else mlp()


@pytest.mark.parametrize("normalised", [False, True])
def test_a_rate_that_follows_the_actor_alone_is_no_cause_for_sure(tmp_path, normalised):
    def program():
        model = Heads(normalised)
        optimizer = sgd(model)

        def step_of(s, faulty):
            actor = -model.actor(X[s]).log_softmax(-1)[:, 0].mean() * (0.5 if faulty else 1)
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + actor.item())
            plain(model, optimizer, lambda s: actor + F.mse_loss(model.critic(X[s]), Y[s]), s)

        return model, optimizer, step_of

    decided, cause = told(tmp_path, program, trace=0)
    assert not decided
    assert re.match(r"another learning rate from step 3 on: .*; but other gradients of the smallest tensors", cause), (
        cause
    )
