"""Programs that are written otherwise in one place, which is the cause, and in several, which decides nothing."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import rlloss
from rlloss.bisect.bisect import bisect
from rlloss.runs import RunFolder
from tests.bisect.test_consequences import training, unlike
from tests.bisect.test_programs import X, Y, mlp
from tests.helpers import a_few_fast

LABELS = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
REWARDS = torch.linspace(-1, 2, 8)
OTHER = nn.Linear(6, 1)


def twice(model, s, faulty):
    logits = model(X[s])
    if faulty:
        logits = logits.softmax(-1)
    return F.cross_entropy(logits, LABELS)


def shifted(model, s, faulty):
    labels = LABELS if not faulty else (LABELS + 1) % 2
    return F.cross_entropy(model(X[s]), labels)


def another_slice(model, s, faulty):
    targets = REWARDS[:-1] if faulty else REWARDS[1:]
    return F.smooth_l1_loss(model(X[s])[:-1, 0], targets)


def of_all(model, s, faulty):
    errors = (model(X[s]) - Y[s]).square() * (1 + X[s][:, :1].abs())
    return errors.sum() / len(errors) if faulty else (errors.sum(0) / errors.abs().sum(0).detach()).mean()


def without_end(model, s, faulty):
    ends = (X[s][:, 0] > 0).float()
    target = REWARDS + 0.9 * Y[s][:, 0] * (1 if faulty else 1 - ends)
    return F.mse_loss(model(X[s])[:, 0], target)


def reversed_sum(model, s, faulty):
    returns = REWARDS.cumsum(0) if faulty else REWARDS.flip(0).cumsum(0).flip(0)
    return F.mse_loss(model(X[s])[:, 0], returns)


def broadcast(model, s, faulty):
    values = model(X[s]) if faulty else model(X[s]).squeeze(-1)
    return (values - REWARDS).square().mean()


def broadcast_advantages(model, s, faulty):
    """The bias gets the same gradient but for rounding, the weights do not."""
    values = model(X[s])
    errors = values - REWARDS if faulty else values.squeeze(-1) - REWARDS
    return errors.square().mean()


def in_two_places(model, s, faulty):
    rewards = REWARDS.clamp(max=1) if faulty else REWARDS
    values = model(X[s])[:, 0]
    values = values.tanh() if faulty else values
    return F.mse_loss(values, rewards)


def beside_another_network(model, s, faulty):
    """What is written otherwise rounds; the cause is the tensor that is read, in a line that is alike in both."""
    weight = OTHER.weight if faulty else OTHER.weight.flip(1)
    values = model(X[s])[:, 0]
    target = F.linear(X[s], weight)[:, 0].detach()
    halved = values / 3 if faulty else values * (1 / 3)
    return F.mse_loss(halved, target)


LOSSES = {
    "a softmax before another": (twice, 2, True, r"one place alone: b alone computes _softmax at "),
    "labels": (shifted, 2, True, r"one place alone: b alone computes add\.Tensor at .*: labels = "),
    "another slice": (another_slice, 1, True, r"^another number: slice\.Tensor at .* is given 1 \| 0$"),
    "another mean": (of_all, 2, True, r"one place alone: a computes sum\.dim_IntList at .*, b computes sum at "),
    "the end of an episode": (without_end, 1, True, r"one place alone: a alone computes rsub\.Scalar at "),
    "another order of sums": (reversed_sum, 1, True, r"one place alone: a alone computes flip at "),
    "a broadcast": (broadcast, 1, True, r"one place alone: a alone computes squeeze\.dim at "),
    "a broadcast that leaves the bias alone": (
        broadcast_advantages,
        1,
        True,
        r"one place alone: a alone computes squeeze",
    ),
    "two places": (in_two_places, 1, False, r"^(?!.*one place)"),
    "another network": (beside_another_network, 1, False, r"^(?!.*one place)"),
}


@pytest.mark.parametrize("name", a_few_fast(LOSSES))
def test_one_place_is_the_cause_and_two_are_not(tmp_path, name):
    loss, outputs, decided, words = LOSSES[name]
    program = training(loss, lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, outputs)))
    assert unlike(tmp_path, program, decided, words) == ""


def test_a_tensor_that_one_optimiser_leaves_out_is_named(tmp_path):
    for name in ("a", "b"):
        model = mlp()
        trained = [p for p in model.parameters() if name == "a" or p is not model[2].bias]
        optimizer = torch.optim.SGD(trained, 0.1)
        with rlloss.watch(model, optimizer, tmp_path / name):
            for s in range(2):
                optimizer.zero_grad()
                F.mse_loss(model(X[s]), Y[s]).backward()
                optimizer.step()
    found = bisect(RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b"))
    assert (found.decided, found.step) == (True, 1)
    assert found.cause == "2.bias: in no group of the optimiser of b, which the other run trains"


def test_an_option_of_the_optimiser_decides_from_the_first_step_on(tmp_path):
    for name, decay in (("a", 0.0), ("b", 0.05)):
        model = mlp()
        optimizer = torch.optim.AdamW(
            [{"params": model[0].parameters()}, {"params": model[2].parameters(), "weight_decay": decay}]
        )
        with rlloss.watch(model, optimizer, tmp_path / name):
            F.mse_loss(model(X[0]), Y[0]).backward()
            optimizer.step()
    found = bisect(RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b"))
    assert (found.decided, found.cause) == (
        True,
        "other options of an optimiser from step 1 on: weight_decay 0.0 | 0.05 in group 1",
    )
