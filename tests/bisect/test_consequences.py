"""Programs in which something else differs, too, that is not the cause: it follows from it, or nothing reads it."""

import re
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import rlloss
from rlloss.bisect.bisect import bisect
from rlloss.cli.main import main
from rlloss.runs import RunFolder
from tests.bisect.test_programs import ARRAYS, AT, LABELS, STEPS, X, Y, loaded, mlp, plain, sgd
from tests.helpers import a_few_fast


def told(folder, program, trace=AT, **options):
    """What is said of a program that is at fault in b from step ``AT`` on: decided or not, and the cause."""
    for name in ("a", "b"):
        torch.manual_seed(3)
        model, optimizer, step_of = program()
        with rlloss.watch(model, optimizer, folder / name, trace=trace, **options):
            for step in range(1, STEPS + 1):
                step_of(step, name == "b" and step >= AT)
    found = bisect(RunFolder(folder / "a"), RunFolder(folder / "b"))
    assert found.step == AT
    return found.decided, found.cause


def unlike(folder, program, decided, words):
    """What is said of a program that is at fault, where that is another cause, or not decided as it should be."""
    found = told(folder, program)
    return "" if re.search(words, found[1]) and found[0] == decided else f"{found}"


def training(loss_of, make=mlp, optimizer_of=sgd):
    """A program of one loss, ``loss_of(model, step, faulty)``."""

    def program():
        model = make()
        optimizer = optimizer_of(model)
        return model, optimizer, lambda s, faulty: plain(model, optimizer, lambda s: loss_of(model, s, faulty), s)

    return program


def error(model, s, faulty=False, target=None):
    return (F.huber_loss if faulty else F.mse_loss)(model(X[s]), Y[s] if target is None else target)


class Net(nn.Module):
    """All calls of its layers come from one line each."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 1)

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        return self.second(hidden)


def bootstrapped(model, s, faulty):
    after = 0.9 * model(X[s] / 2)
    return F.mse_loss(model(X[s]), Y[s] + (after if faulty else after.detach()))


def otherwise_written(model, s, faulty):
    if faulty:
        hidden = torch.tanh(F.linear(X[s], model[0].weight, model[0].bias))
        return F.huber_loss(F.linear(hidden, model[2].weight, model[2].bias), Y[s])
    h = torch.tanh(F.linear(X[s], model[0].weight, model[0].bias))
    return F.mse_loss(F.linear(h, model[2].weight, model[2].bias), Y[s])


def coefficient(model, s, faulty):
    out = model(X[s])
    return F.mse_loss(out, Y[s]) + (0.2 if faulty else 0.1) * out.abs().mean()


def timed(model, s, faulty):
    """The time, as a tensor, differs in every run and step."""
    torch.zeros(1).add_(torch.tensor(time.perf_counter()))
    return coefficient(model, s, faulty)


def logged(model, s, faulty):
    if faulty:
        X[s].mean().item()
    x = X[s] - (0.2 if faulty else 0.1)
    return F.mse_loss(model(x), Y[s])


def in_part(model, s, faulty):
    x = X[s].clone()
    x[:, 0] = x[:, 0].abs() if faulty else x[:, 0].relu()
    return F.mse_loss(model(x), Y[s])


def ignored(model, s, faulty):
    return F.cross_entropy(model(X[s]), LABELS[s], ignore_index=1 if faulty else 0)


def masked_before_a_clamp(model, s, faulty):
    errors = (model(X[s]) - Y[s]).square()[:, 0]
    kept = errors * (torch.arange(8) > 2) if faulty else errors
    return kept.clamp(max=100.0).mean()


def scaled(model, s, faulty):
    return error(model, s) if faulty else (error(model, s) * 1000) * 0.0011


def of_one_sample(model, s, faulty):
    target = Y[s][:1] + 0.9 * model(X[s][1:2]).detach() * (1 if faulty else -1)
    return F.mse_loss(model(X[s][:1]), target)


def following_rate():
    """The learning rate is computed of this step's loss."""
    model = mlp()
    optimizer = sgd(model)

    def step_of(s, faulty):
        loss = error(model, s, faulty)
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return model, optimizer, step_of


def older_state():
    """The optimiser's state of the first step is loaded."""
    model = mlp()
    optimizer = sgd(model, momentum=0.9)
    kept = {}

    def step_of(s, faulty):
        if faulty and s == AT:
            optimizer.load_state_dict(kept["state"])
        plain(model, optimizer, lambda s: error(model, s), s)
        kept.setdefault("state", {**optimizer.state_dict(), "state": {
            i: {k: v.clone() for k, v in state.items()} for i, state in optimizer.state_dict()["state"].items()
        }})  # fmt: skip

    return model, optimizer, step_of


def gates():
    """Two tensors of one value: one is read first, the other is changed."""
    model = mlp()
    model.register_parameter("one", nn.Parameter(torch.ones(2), requires_grad=False))
    model.register_parameter("two", nn.Parameter(torch.ones(2), requires_grad=False))
    optimizer = sgd(model)

    def step_of(s, faulty):
        model.one.norm()
        if faulty and s == AT:
            model.two.mul_(0.9)
        plain(model, optimizer, lambda s: error(model, s), s)

    return model, optimizer, step_of


def sharp():
    """Weights are moved by a gradient and back: with another loss they move otherwise."""
    model = mlp()
    optimizer = sgd(model)

    def step_of(s, faulty):
        optimizer.zero_grad()
        error(model, s, faulty).backward()
        moves = [0.05 * p.grad for p in model.parameters()]
        with torch.no_grad():
            for p, move in zip(model.parameters(), moves, strict=True):
                p.add_(move)
        plain(model, optimizer, lambda s: error(model, s, faulty), s)
        with torch.no_grad():
            for p, move in zip(model.parameters(), moves, strict=True):
                p.sub_(move)

    return model, optimizer, step_of


SAID = {
    "a detach() in a network used twice": (
        training(bootstrapped, Net), True, r"^b has a gradient more, through addmm .*: a detach\(\) is missing"),
    "names that differ": (
        training(otherwise_written), True, r"one place alone: a computes mse_loss at .*, b computes huber_loss at "),
    "a time that is logged": (timed, True, r"^another number: mul\S* .* 0\.1 \| 0\.2$"),
    "what one run alone logs": (logged, True, r"^another number: sub.Tensor .* is given 0\.1 \| 0\.2$"),
    "a part that is written in place": (in_part, False, r"^the forward passes part"),
    "an index that is no reduction": (
        training(ignored, lambda: mlp(5)), True, r"^another number: nll_loss_forward .* is given 0 \| 1$"),
    "a clamp that cuts nothing": (masked_before_a_clamp, True, r"^b has no gradient for 3 of 8 numbers(?!.*clamp)"),
    "a factor that is not taken away again": (scaled, True, r"^b has the gradient of a times 0\.909091: another "),
    "a gradient of one number": (of_one_sample, True, r"^another number: mul\S* .* is given -1 \| 1$"),
    "a rate that follows the loss": (following_rate, True, r"in one place alone: a computes mse_loss at "),
    "an older state": (older_state, True, r"^momentum_buffer of 0\.weight in the optimiser was another before"),
    "a tensor like another": (gates, True, r"^something else .* changed two, .*: b alone writes to two by mul_"),
}  # fmt: skip


@pytest.mark.parametrize("name", a_few_fast(SAID))
def test_the_cause_is_told_and_not_what_differs_beside_it(tmp_path, name):
    program, decided, words = SAID[name]
    of_a_loss = program in (timed, logged, in_part, masked_before_a_clamp, scaled, of_one_sample)
    assert unlike(tmp_path, training(program) if of_a_loss else program, decided, words) == ""


@pytest.mark.parametrize("gradients", [False, True])
def test_a_rate_that_may_follow_the_loss_is_no_cause_for_sure(tmp_path, gradients):
    """Without a trace: that the gradient is another is seen of the smallest tensors, whose hash is always kept."""
    decided, cause = told(tmp_path, following_rate, trace=0, gradients=gradients)
    assert not decided
    seen = "another gradient of 0.weight \\(4 of 4\\)" if gradients else "other gradients of the smallest tensors"
    assert re.match(f"another learning rate from step {AT} on: .* | .*; but {seen}", cause), cause


def test_with_equal_gradients_a_rate_is_a_cause(tmp_path):
    def program():
        model = mlp()
        optimizer = sgd(model)

        def step_of(s, faulty):
            optimizer.param_groups[0]["lr"] = 0.05 if faulty else 0.1
            plain(model, optimizer, lambda s: error(model, s), s)

        return model, optimizer, step_of

    decided, cause = told(tmp_path, program, trace=0)
    assert (decided, cause) == (True, f"another learning rate from step {AT} on: 0.1 | 0.05")


@pytest.mark.parametrize("fault", ["loss", "state"])
def test_the_smallest_gradient_tells_the_loss_from_the_optimizer(tmp_path, fault):
    def program():
        model = mlp()
        optimizer = sgd(model, momentum=0.9)

        def step_of(s, faulty):
            if faulty and fault == "state":
                optimizer.state.clear()
            plain(model, optimizer, lambda s: error(model, s, faulty and fault == "loss"), s)

        return model, optimizer, step_of

    decided, cause = told(tmp_path, program, trace=0)
    assert not decided
    if fault == "loss":
        assert cause.startswith("other gradients of the smallest tensors, for equal parameters: undecided between data")
    else:
        assert cause.startswith("equal parameters and equal gradients of the smallest tensors, and another result: "
                                "another state of the optimiser, or other gradients")  # fmt: skip


def test_weights_that_follow_another_loss_are_no_cause(tmp_path):
    _, cause = told(tmp_path, sharp)
    assert "writes other numbers" not in cause
    assert "the programs differ in one place alone: a computes mse_loss at " in cause, cause


@pytest.mark.slow
def test_another_class_of_optimiser_has_lost_no_state(tmp_path):
    for name, kind in (("a", torch.optim.Adagrad), ("b", torch.optim.RMSprop)):
        model = mlp()
        optimizer = kind(model.parameters(), 0.01)
        with rlloss.watch(model, optimizer, tmp_path / name, trace=1):
            plain(model, optimizer, lambda s, model=model: error(model, s), 1)
    cause = bisect(RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b")).cause
    assert cause.startswith("with equal gradients, another optimiser; recorded: another class of optimiser 0")


@pytest.mark.slow
def test_a_minus_infinity_that_both_have_is_not_blamed_for_a_nan(tmp_path):
    def loss_of(model, s, faulty):
        keep = torch.arange(8) > 1
        weights = (model(X[s])[:, 0] + keep.float().log()).softmax(0)
        errors = (model(X[s]) - Y[s])[:, 0]
        return (weights * errors).sum() + ((errors * 0).square().sum().sqrt() if faulty else 0)

    _, cause = told(tmp_path, training(loss_of))
    assert cause.startswith("b has numbers that are not finite: ")
    assert " log " not in cause


@pytest.mark.slow
def test_a_backward_pass_of_ones_own_hands_over_no_data(tmp_path):
    class Sine(torch.autograd.Function):
        faulty = False

        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.sin(x)

        @staticmethod
        def backward(ctx, up):
            (x,) = ctx.saved_tensors
            return up * loaded((np.sin if Sine.faulty else np.cos)(x.numpy()))

    def loss_of(model, s, faulty):
        Sine.faulty = faulty
        return (Sine.apply(model(X[s])) - loaded(ARRAYS["y"][s])).square().mean()

    decided, cause = told(tmp_path, training(loss_of))
    assert not decided
    assert "other data" not in cause


@pytest.mark.parametrize("kept", [0, 2])
def test_a_record_that_has_lost_digests_is_no_training_that_ended(tmp_path, capsys, kept):
    told(tmp_path, training(error))
    path = tmp_path / "b" / "digests.bin"
    path.write_bytes(path.read_bytes()[: 32 * kept])
    assert main(["bisect", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert f"b: digests.bin has {kept} digests, run.json says {STEPS} optimiser steps" in capsys.readouterr().err


@pytest.mark.slow
def test_sums_of_many_gradients_in_bfloat16_are_rounded_and_not_changed(tmp_path):
    for name in ("a", "b"):
        torch.manual_seed(3)
        model = mlp().to(torch.bfloat16)
        optimizer = sgd(model)
        with rlloss.watch(model, optimizer, tmp_path / name, trace=1):
            for rows in torch.arange(48).split(48 if name == "a" else 3):
                x, y = (values.view(-1, values.shape[-1])[rows].bfloat16() for values in (X, Y))
                ((model(x) - y).square().sum() / 48).backward()
            optimizer.step()
    cause = bisect(RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b")).cause
    assert cause.startswith("another accumulation: 1 | 16 backward passes")
    assert "something changes a gradient" not in cause
