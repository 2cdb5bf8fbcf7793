"""Numbers that go to Python, and what follows there; multiples of a gradient that have a reason; words for the odd."""

import pytest
import torch
from torch.nn import functional as F

from tests.bisect.test_consequences import error, training, unlike
from tests.bisect.test_programs import AT, X, Y, mlp, sgd
from tests.helpers import a_few_fast


def coefficient_from_kl(model, s, faulty):
    out = model(X[s])
    ratio = out.detach() - Y[s]
    kl = ratio.abs().mean() if faulty else ratio.square().mean()
    beta = 0.1 * kl.item()
    return F.mse_loss(out, Y[s]) + beta * out.abs().mean()


def length_from_a_mask(model, s, faulty):
    kept = X[s][:, 0] >= 0.3 if faulty else X[s][:, 0] > 0.5
    n = int(kept.sum()) + 2
    return F.mse_loss(model(X[s][:n]), Y[s][:n])


def branch(model, s, faulty):
    out = model(X[s])
    size = -out.detach().square().mean() if faulty else out.detach().square().mean()
    loss = F.mse_loss(out, Y[s])
    return loss + 0.1 * out.abs().mean() if size.item() > 0 else loss


def by_a_list(model, s, faulty):
    rewards = (Y[s].clamp(-0.1, 0.1) if faulty else Y[s]).flatten().tolist()
    total = [sum(rewards[i:]) for i in range(len(rewards))]
    return F.mse_loss(model(X[s]), torch.tensor(total)[:, None])


def followed(model, s, faulty):
    """The learning rate follows what is computed after a step."""
    out = model(X[s])
    return out.abs().mean() if faulty else out.square().mean()


def rated():
    model = mlp()
    optimizer = sgd(model)

    def step_of(s, faulty):
        optimizer.zero_grad()
        error(model, s).backward()
        with torch.no_grad():
            optimizer.param_groups[0]["lr"] = 0.05 / (1 + followed(model, s, faulty).item())
        optimizer.step()

    return model, optimizer, step_of


def logged_loss(model, s, faulty):
    loss = (0.7 if faulty else 0.5) * F.mse_loss(model(X[s]), Y[s])
    assert loss.item() > 0
    return loss


def logged_beside_a_detach(model, s, faulty):
    with torch.no_grad():
        model(X[s - 1] if faulty else X[s - 2]).mean().item()
    out = model(X[s])
    weight = out.square() if faulty else out.detach().square()
    return (weight * (out - Y[s]).square()).mean()


def of_one_sample(model, s, faulty):
    target = Y[s][:1].abs() if faulty else 0.5 * Y[s][:1].relu() + 0.1
    return F.mse_loss(model(X[s][:1]), target)


def of_one_number(model, s, faulty):
    with torch.no_grad():
        weight = torch.sigmoid(X[s].amax() if faulty else X[s].mean())
    return weight * F.mse_loss(model(X[s]), Y[s])


def divided_after():
    def program():
        model = mlp()
        optimizer = sgd(model)

        def step_of(s, faulty):
            optimizer.zero_grad()
            for k in range(3):
                (F.mse_loss(model(X[s - k]), Y[s - k]) / (1 if faulty else 3)).backward()
            for p in model.parameters() if faulty else ():
                p.grad /= 3
            optimizer.step()

        return model, optimizer, step_of

    return program


def clamped_in_place(model, s, faulty):
    logits = 5 * model(X[s])
    if faulty:
        logits = logits.clamp_(-1, 1)
    return F.cross_entropy(logits, torch.zeros(8, dtype=torch.long))


def assigned(model, s, faulty):
    logits = model(X[s]).clone()
    if faulty:
        logits[:, 2] = -5.0
    return F.cross_entropy(logits, torch.zeros(8, dtype=torch.long))


def weighted(model, s, faulty):
    return F.cross_entropy(model(X[s]), torch.arange(8) % 3, weight=WEIGHT if faulty else None)


WEIGHT = torch.tensor([1.0, 2.0, 3.0])


def approximate(model, s, faulty):
    return F.gelu(model(X[s]), approximate="tanh" if faulty else "none").square().mean()


def summed(model, s, faulty):
    return F.mse_loss(model(X[s]), Y[s], reduction="sum" if faulty else "mean")


def scaled(model, s, faulty):
    x = (100 * X[s]) * (1 / 255) if faulty else (100 * X[s]) / 255
    out = model(x)
    return F.mse_loss(out, Y[s]) + (0.5 if faulty else 0.1) * out.abs().mean()


def resumed():
    """An optimiser that is made anew, and whose state is loaded, or not."""
    model = mlp()
    held = [torch.optim.Adam(model.parameters(), 0.01)]

    def step_of(s, faulty):
        held[0].zero_grad()
        error(model, s).backward()
        held[0].step()

    def reload(s, faulty):
        if s == AT:
            state = held[0].state_dict()
            held[0].load_state_dict({**state, "state": {}} if faulty else state)
        step_of(s, faulty)

    return model, held[0], reload


SAID = {
    "a coefficient": (
        training(coefficient_from_kl), False,
        r"^a computes \w+\S* at .*kl = .*, b computes abs at .*; .*, which may follow from it by way of Python$"),
    "a length": (
        training(length_from_a_mask), False,
        r"^a computes gt\.Scalar at .*, b computes ge\.Scalar at .*; .* is given \d+ \| \d+, which may follow"),
    "a branch": (training(branch), False, r"^b alone computes neg at .*size = .*; .*which may follow from it"),
    "a list": (training(by_a_list), False, r"^b alone computes clamp at .*, which may follow from it: other data"),
    "a loss that is logged": (
        training(logged_loss), True, r"^(?!.*Python)(another number: mul.* 0\.5 \| 0\.7|.* times 1\.4)"),
    "a learning rate": (
        rated, False, r"^a computes pow.* at .*, b computes abs at .*; another learning rate from step 3 on.*"),
    "a number that is logged beside a detach": (
        training(logged_beside_a_detach), True, r"^b has a gradient more, .*: a detach\(\) is missing"),
    "one sample": (
        training(of_one_sample), True,
        r"^the forward passes part: a computes mul\.Tensor at .*target = .*; b has the gradient of a times"),
    "one number": (
        training(of_one_number), True,
        r"^the forward passes part: a computes mean at .*, b computes amax at .*; b has the gradient of a times"),
    "rounding beside a coefficient": (
        training(scaled), False,
        r"^the forward passes part: .*, which only rounds; .* for another reason, as another number: .* 0\.1 \| 0\.5$"),
    "a state that is not loaded": (resumed, True, r"^with equal gradients, b makes its optimiser's state anew, by"),
    "a sum that is divided after": (
        divided_after(), False, r"^b has the gradient of a times 3: .*, which b takes away again by div_\.Tensor at"),
    "clamp_()": (training(clamped_in_place, lambda: mlp(3)), True, r"b alone computes clamp_ at test_leaving\.py:\d+"),
    "an assignment": (training(assigned, lambda: mlp(3)), True, r"b alone computes fill_\.Tensor at test_leav"),
    "a weight of classes": (
        training(weighted, lambda: mlp(3)), True, r"nll_loss_forward at .* is given None \| a tensor of \[3\]$"),
    "an option by its name": (
        training(approximate), True, r"^another option: b alone gives 'tanh' to gelu at .*|.*gelu .* is given"),
    "a reduction": (training(summed), True, r"^another (option|reduction): mse_loss at .* is given .*mean \| sum$"),
}  # fmt: skip


@pytest.mark.parametrize("name", a_few_fast(SAID))
def test_what_follows_by_way_of_python_and_what_is_odd(tmp_path, name):
    assert unlike(tmp_path, *SAID[name]) == ""
