"""Programs with a second difference that has no consequence, beside the cause; and gradients left from before."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.bisect.test_consequences import error, told, training, unlike
from tests.bisect.test_programs import X, Y, mlp, sgd
from tests.helpers import a_few_fast


def coefficient(faulty):
    return 0.25 if faulty else 0.5


def idle_bound(model, s, faulty):
    target = Y[s].clamp(-50, 50 if faulty else 60)
    return F.mse_loss(model(X[s]), target) + coefficient(faulty) * model[0].weight.square().sum()


def silent_noise(model, s, faulty):
    x = X[s] + 0.0 * torch.empty(8, 6).uniform_(-1, 2 if faulty else 1)
    return F.mse_loss(model(x), Y[s]) + coefficient(faulty) * model[0].weight.square().sum()


def detached_term(model, s, faulty):
    out = model(X[s])
    return F.mse_loss(out, Y[s]) + coefficient(faulty) * out.detach().mean() + (0.2 if faulty else 0.1) * out.mean()


def masked_data(model, s, faulty):
    x = X[s].clone()
    x[:3] = 7.0 if faulty else 0.0
    kept = (torch.arange(8) >= 3).float()[:, None]
    return ((model(x) - Y[s]).square() * kept).sum() + coefficient(faulty) * model[0].weight.square().sum()


def inner_writes(model, s, faulty):
    weights, last = torch.zeros(8), torch.tensor(1.0)
    for i in range(8):
        last = last * (0.9 if faulty else 0.8)
        weights[i] = last
    return (weights[:, None] * (model(X[s]) - Y[s]).square()).mean()


def precise(model, s, faulty):
    out = model(X[s]).bfloat16()
    return (out.float() - Y[s]).square().mean() if faulty else (out - Y[s].bfloat16()).square().mean()


def overflowing(model, s, faulty):
    return ((1e6 if faulty else 1.0) * model(X[s])).exp().mean()


def target(model, s, faulty):
    following = model(X[s - 1])
    if not faulty:
        following = following.detach()
    return (model(X[s]) - 0.9 * following - Y[s]).square().mean()


def logged(cause):
    """A backward pass to log a norm, which zero_grad() takes back."""

    def program():
        model = mlp()
        optimizer = sgd(model)

        def step_of(s, faulty):
            if faulty:
                error(model, s).backward()
            optimizer.zero_grad()
            cause(model, s, faulty).backward()
            optimizer.step()

        return model, optimizer, step_of

    return program


def with_average(idle):
    """An average of the weights, at another rate, to which one run alone writes what is there already."""

    def program():
        model = nn.ModuleDict({"net": mlp(), "average": mlp()})
        model["average"].requires_grad_(False)
        optimizer = sgd(model["net"])

        def step_of(s, faulty):
            rate = 0.05 if faulty else 0.1
            for p, q in zip(model["net"].parameters(), model["average"].parameters(), strict=True):
                q.data.lerp_(p.data, rate)
                if faulty:
                    idle(q.data)
            optimizer.zero_grad()
            error(model["net"], s).backward()
            optimizer.step()

        return model, optimizer, step_of

    return program


SAID = {
    "a bound that nothing reaches": (training(idle_bound), True, r"^another number: mul\S* .* 0\.5 \| 0\.25$"),
    "noise times 0": (training(silent_noise), True, r"^another number: mul\S* .* 0\.5 \| 0\.25$"),
    "a term without a gradient": (training(detached_term), True, r"^another number: mul\S* .* 0\.1 \| 0\.2$"),
    "data under a mask": (training(masked_data), True, r"^another number: mul\S* .* 0\.5 \| 0\.25$"),
    "a number that is written into a part": (
        training(inner_writes), True, r"^another number: mul\S* .*last \* .* is given 0\.8 \| 0\.9$"),
    "another precision": (
        training(precise), True, r"one place alone: a casts to bfloat16 at .*, b casts to float32 at "),
    "a number that overflows": (
        training(overflowing), True, r"^another number: mul\S* .* is given 1\.0 \| 1000000\.0; b has numbers that are"),
    "a detach on a line of its own": (training(target), True, r"computes without one: a detach\(\) is missing"),
    "a logged norm beside a coefficient": (logged(idle_bound), True, r"^another number: mul\S* .* 0\.5 \| 0\.25"),
    "clamping within bounds": (
        with_average(lambda q: q.clamp_(-100, 100)), True, r"; another number: lerp_\S* .* is given 0\.1 \| 0\.05$"),
    "a factor of 1": (with_average(lambda q: q.mul_(1.0)), True, r"; another number: lerp_\S* .* 0\.1 \| 0\.05$"),
}  # fmt: skip


@pytest.mark.parametrize("name", a_few_fast(SAID))
def test_what_has_no_consequence_is_not_blamed(tmp_path, name):
    assert unlike(tmp_path, *SAID[name]) == ""


def test_a_norm_that_is_logged_by_a_backward_pass_alone_is_no_difference(tmp_path):
    with pytest.raises(AssertionError):
        told(tmp_path, logged(lambda model, s, faulty: error(model, s)))


def two_players(zeroed):
    """The second's loss reaches the first, where a detach() is missing; zero_grad() of both stands in one place."""

    def program():
        model = nn.ModuleDict({"first": nn.Linear(6, 4), "second": nn.Linear(4, 1)})
        optimizers = [torch.optim.SGD(model[name].parameters(), 0.1) for name in ("second", "first")]

        def step_of(s, faulty):
            if zeroed:
                for optimizer in optimizers:
                    optimizer.zero_grad()
            between = model["first"](X[s])
            optimizers[0].zero_grad()
            F.mse_loss(model["second"](between if faulty or not zeroed else between.detach()), Y[s]).backward()
            optimizers[0].step()
            if not zeroed and not faulty:
                optimizers[1].zero_grad()
            model["second"](model["first"](X[s])).mean().backward()
            optimizers[1].step()

        return model, optimizers, step_of

    return program


def first_difference_of(program, folder):
    import rlloss
    from rlloss.bisect.bisect import bisect
    from rlloss.runs import RunFolder

    for name in ("a", "b"):
        torch.manual_seed(3)
        model, optimizers, step_of = program()
        with rlloss.watch(model, optimizers, folder / name, trace=4):  # the first's second step
            for step in (1, 2):
                step_of(step, name == "b" and step == 2)
    return bisect(RunFolder(folder / "a"), RunFolder(folder / "b"))


def test_a_gradient_of_another_loss_is_no_missing_zero_grad(tmp_path):
    found = first_difference_of(two_players(zeroed=True), tmp_path)
    assert (found.step, found.decided) == (4, False)
    assert "where the other had none: zero_grad() is missing before that, or a backward pass of some" in found.cause


def test_a_missing_zero_grad_is_where_the_other_run_took_one_back(tmp_path):
    found = first_difference_of(two_players(zeroed=False), tmp_path)
    assert (found.step, found.decided) == (4, True)
    assert found.cause == "b adds its gradient to one that was there before the step: zero_grad() is missing"


def test_the_rate_of_a_group_that_does_not_differ_is_no_cause(tmp_path):
    def program():
        model = mlp()
        nn.init.zeros_(model[0].weight), nn.init.constant_(model[0].bias, -1.0)
        optimizer = torch.optim.SGD([{"params": model[2].parameters()}, {"params": model[0].parameters()}], lr=0.1)

        def step_of(s, faulty):
            optimizer.param_groups[1]["lr"] = 0.2 if faulty else 0.1
            optimizer.zero_grad()
            out = model[2](torch.relu(model[0](X[s])))  # of which the first layer's gradient is 0
            (F.mse_loss(out, Y[s]) + (0.1 if faulty else 0.0) * model[2].weight.square().sum()).backward()
            optimizer.step()

        return model, optimizer, step_of

    decided, cause = told(tmp_path, program, trace=0)
    assert not decided
    assert "learning rate" not in cause
