"""Programs of kinds that people have, with one fault each: a cause that is named is true, or it is left undecided."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import rlloss
from rlloss.bisect.bisect import bisect
from rlloss.runs import RunFolder

STEPS, AT = 5, 3
X = torch.randn(STEPS + 1, 8, 6, generator=torch.Generator().manual_seed(1))
Y = torch.randn(STEPS + 1, 8, 1, generator=torch.Generator().manual_seed(2))
ARRAYS = {"x": X.numpy(), "y": Y.numpy(), "mask": np.ones((STEPS + 1, 8), np.float32)}


def loaded(array):
    """As a data loader hands it over, of which PyTorch sees nothing before."""
    return torch.from_numpy(np.ascontiguousarray(array))


def mlp(outputs=1):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, outputs))


def plain(model, optimizer, loss_of, step):
    optimizer.zero_grad()
    loss_of(step).backward()
    optimizer.step()


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), 0.1, **options)


def routed(faulty):
    """A mixture of experts: other data go to other experts, of which the rest gets no gradient."""
    torch.manual_seed(3)
    model = nn.ModuleDict({"gate": nn.Linear(6, 2), "0": nn.Linear(6, 1), "1": nn.Linear(6, 1)})

    def loss_of(step):
        x = loaded(-ARRAYS["x"][step] if faulty(step) else ARRAYS["x"][step])
        expert = int(model["gate"](x).sum(0).argmax())
        return (model[str(expert)](x) * model["gate"](x)[:, :1].sigmoid()).square().mean()

    return model, sgd(model), loss_of


def dropped(faulty):
    """Layers that are left out by chance."""
    torch.manual_seed(3)
    model = nn.ModuleList([nn.Linear(6, 6) for _ in range(4)])

    def loss_of(step):
        torch.manual_seed(100 * step + faulty(step))
        x = X[step]
        for layer in model:
            x = x + layer(x) if torch.rand(()).item() < 0.5 else x
        return (x * model[0](x)).mean()

    return model, sgd(model), loss_of


def unused(faulty):
    model = nn.ModuleDict({"a": mlp(), "b": mlp()})

    def loss_of(step):
        return (model["a"](X[step]) + model["a" if faulty(step) else "b"](X[step]) - Y[step]).square().mean()

    return model, sgd(model), loss_of


def nesterov(faulty):
    model = mlp()
    return model, sgd(model, momentum=0.9, nesterov=faulty(AT)), lambda s: (model(X[s]) - Y[s]).square().mean()


def amsgrad(faulty):
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), fused=True, amsgrad=faulty(AT))
    return model, optimizer, lambda s: (model(X[s]) - Y[s]).square().mean()


def another_network(faulty):
    model, target = mlp(), mlp()
    with torch.no_grad():
        target[0].weight.mul_(0.9)
    both = nn.ModuleDict({"model": model, "target": target})

    def loss_of(step):
        value, after = model(X[step]), (model if faulty(step) else target)(X[step])
        return (value - Y[step] - after.detach()).square().mean()

    return both, sgd(model), loss_of


def labels_like_a_bias(faulty):
    """Labels of zeros have the digest of a bias of zeros."""
    model = mlp(8)
    nn.init.zeros_(model[2].bias)
    labels = torch.ones(8) if faulty(AT) else torch.zeros(8)
    return model, sgd(model), lambda s: F.binary_cross_entropy_with_logits(model(X[s]).mean(0), labels)


def arrays(step, *, flip="", change=""):
    batch = {name: values[step].copy() for name, values in ARRAYS.items()}
    for name in flip.split():
        batch[name] = batch[name][::-1]
    if change:
        batch[change][2:4] = 0
    return {name: loaded(values) for name, values in batch.items()}


def handed(how):
    def program(faulty):
        model = mlp()

        def loss_of(step):
            batch = arrays(step, **(how if faulty(step) else {}))
            return ((model(batch["x"]) - batch["y"]).square().squeeze(1) * batch["mask"]).mean()

        return model, sgd(model), loss_of

    return program


def half_a_batch(faulty):
    model = mlp()

    def loss_of(step):
        x, y = (loaded(ARRAYS[name][step][: 4 if faulty(step) else 8]) for name in ("x", "y"))
        return (model(x) - y).square().mean()

    return model, sgd(model), loss_of


def hooked(faulty):
    model = mlp()

    def loss_of(step):
        if step == AT and faulty(step):
            model[0].weight.register_hook(lambda gradient: gradient * 2)
        return (model(X[step]) - Y[step]).square().mean()

    return model, sgd(model), loss_of


def grouped(faulty):
    """The same rates in one group or in two, and no weight decay on biases."""
    model = mlp()
    weights, biases = ([p for n, p in model.named_parameters() if n.endswith(kind)] for kind in ("weight", "bias"))
    groups = [{"params": [*weights, *biases]}] if faulty(AT) else [
        {"params": weights}, {"params": biases, "weight_decay": 0.0}
    ]  # fmt: skip
    optimizer = torch.optim.SGD(groups, 0.1, weight_decay=0.5)
    return model, optimizer, lambda s: (model(X[s]) - Y[s]).square().mean()


def renamed_options(faulty):
    """Options that compute the same, beside another draw."""
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)

    def loss_of(step):
        if step == AT and faulty(step):
            optimizer.param_groups[0].update(betas=[0.9, 0.999], initial_lr=0.01, foreach=False)
        torch.manual_seed(100 * step + faulty(step))
        return (model(F.dropout(X[step], 0.5)) - Y[step]).square().mean()

    return model, optimizer, loss_of


LABELS = torch.arange(8 * (STEPS + 1)).view(STEPS + 1, 8) % 5


def classified(how):
    """Cross-entropy with other options."""

    def program(faulty):
        model = mlp(5)
        return model, sgd(model), lambda s: F.cross_entropy(model(X[s]), LABELS[s], **(how if faulty(s) else {}))

    return program


def another_loss(faulty):
    model = mlp()

    def loss_of(step):
        return (F.huber_loss if faulty(step) else F.mse_loss)(model(X[step]), Y[step])

    return model, sgd(model), loss_of


def in_bfloat16(faulty):
    model = mlp()

    def loss_of(step):
        with torch.autocast("cpu", torch.bfloat16, enabled=faulty(step)):
            out = model(X[step])
        return (out.float() - Y[step]).square().mean()

    return model, sgd(model), loss_of


def forgetful(make):
    """The optimiser's state is cleared, or was not loaded."""

    def program(faulty):
        model = mlp()
        optimizer = make(model.parameters())

        def loss_of(step):
            if step == AT and faulty(step):
                optimizer.state.clear()
            return (model(X[step]) - Y[step]).square().mean()

        return model, optimizer, loss_of

    return program


def replaced(faulty):
    """Other weights are loaded."""
    model, other = mlp(), mlp()
    with torch.no_grad():
        other[0].weight.mul_(0.9)

    def loss_of(step):
        if step == AT and faulty(step):
            model.load_state_dict(other.state_dict())
        return (model(X[step]) - Y[step]).square().mean()

    return model, sgd(model), loss_of


DECIDED = ("other weights are loaded", "nesterov")  # by the record, without a trace
CAUSES = {
    "smoothed labels": (
        classified({"label_smoothing": 0.1}),
        r"^the programs differ in one place alone: b alone computes sum.dim_IntList at .* has another gradient: ",
    ),
    "a sum": (classified({"reduction": "sum"}), r"^another reduction: nll_loss_forward .* is given mean \| sum$"),
    "another loss": (
        another_loss,
        r"^the programs differ in one place alone: a computes mse_loss at .*, b computes huber_loss at ",
    ),
    "autocast": (in_bfloat16, r"^the programs differ in one place alone: b alone casts to bfloat16 at "),
    "no state": (
        forgetful(lambda parameters: torch.optim.Adam(parameters, 0.01)),
        r"^with equal gradients, b makes its optimiser's state anew, by lift_fresh at .* cleared, or not loaded$",
    ),
    "no momentum": (
        forgetful(lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9)),
        r"^with equal gradients, b makes its optimiser's state anew, by clone at .* cleared, or not loaded$",
    ),
    "other weights are loaded": (
        replaced,
        r"^something else than the optimiser changed 0\.weight and 3 more, before step 3: b alone writes to 0\.weight "
        r"by copy_ at \S+: model\.load_state_dict",
    ),
    "other data, other experts": (routed, r"^other data|^another minibatch"),
    "another draw, other layers": (dropped, r"^another draw: rand"),
    "a network that is not used": (unused, r"^the forward pass of b does not use b\.0\.bias and \d more, with which a"),
    "nesterov": (nesterov, r"^other options of an optimiser from step 1 on: nesterov False \| True$"),
    "amsgrad": (amsgrad, r"is given \d+ \| \d+ tensors and numbers; recorded: another amsgrad"),
    "another network is read": (another_network, r"is given another tensor: target\.0\.weight \| model\.0\.weight"),
    "labels like a bias": (labels_like_a_bias, r"^other data"),
    "the batch the other way round": (handed({"flip": "x y"}), r"^the same samples in another order"),
    "samples with other labels": (handed({"flip": "y"}), r"^the same rows, put together otherwise"),
    "another mask": (handed({"change": "mask"}), r"^other data: 2 of 8 rows of one tensor, beside equal ones"),
    "half a batch": (half_a_batch, r"^another minibatch: 8 \| 4 samples"),
    "a hook on a gradient": (hooked, r"^the gradient of 0\.weight is that of a times 2 in b: .*, or a hook$"),
    "other groups of parameters": (
        grouped,
        r"^with equal gradients, .*: group 1 of optimiser 0 in one run alone, with weight_decay 0\.0$",
    ),
    "options that do nothing": (renamed_options, r"^another draw"),
}


def record(folder, program, *, faulty, trace=0):
    model, optimizer, loss_of = program(lambda step: faulty and step >= AT)
    with rlloss.watch(model, optimizer, folder, trace=trace):
        for step in range(1, STEPS + 1):
            plain(model, optimizer, loss_of, step)
    return RunFolder(folder)


FAST = ("other data, other experts", "nesterov", "another mask")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAST)) for name in CAUSES])
def test_a_fault_is_called_what_it_is(tmp_path, name):
    program, words = CAUSES[name]
    a, b, again = (record(tmp_path / n, program, faulty=n == "b") for n in ("a", "b", "again"))
    assert bisect(a, again).step is None
    found = bisect(a, b)
    assert found.step is not None
    assert found.decided == (name in DECIDED)
    assert found.decided or found.remedy.startswith(f"watch both with trace={found.step}")
    traced = [record(tmp_path / f"{n} traced", program, faulty=n == "b", trace=found.step) for n in ("a", "b")]
    assert [run.digests.tobytes() for run in traced] == [run.digests.tobytes() for run in (a, b)]
    told = bisect(*traced)
    assert re.search(words, told.cause), told.cause


MICRO = {
    "zero_grad() between": lambda model, optimizer: optimizer.zero_grad(),
    "clipping between": lambda model, optimizer: nn.utils.clip_grad_norm_(model.parameters(), 1e-3),
}


@pytest.mark.parametrize("between", MICRO)
def test_what_changes_a_gradient_between_backward_passes_is_no_rounding(tmp_path, between):
    for name in ("a", "b"):
        model = mlp()
        optimizer = sgd(model)
        with rlloss.watch(model, optimizer, tmp_path / name, trace=AT):
            for step in range(1, STEPS + 1):
                optimizer.zero_grad()
                for rows in torch.arange(8).split(8 if name == "a" or step < AT else 4):
                    ((model(X[step][rows]) - Y[step][rows]).square().sum() / 8).backward()
                    if name == "b" and step >= AT:
                        MICRO[between](model, optimizer)
                optimizer.step()
    found = bisect(RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b"))
    assert found.step == AT
    assert found.decided
    assert re.search(r"^another accumulation: 1 \| 2 .* of b is given for \S+ is not their sum", found.cause)


def test_a_gradient_left_from_a_step_before_is_no_change_between_passes(tmp_path):
    """zero_grad() is missing where gradients are accumulated, too."""
    for name in ("a", "b"):
        model = mlp()
        optimizer = sgd(model)
        with rlloss.watch(model, optimizer, tmp_path / name, trace=AT):
            for step in range(1, STEPS + 1):
                faulty = name == "b" and step >= AT
                if not faulty:
                    optimizer.zero_grad()
                for rows in torch.arange(8).split(4 if faulty else 8):
                    ((model(X[step][rows]) - Y[step][rows]).square().sum() / 8).backward()
                optimizer.step()
    found = bisect(RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b"))
    assert found.cause == "b adds its gradient to one that was there before the step: zero_grad() is missing"


def test_a_gradient_that_no_optimiser_is_given_is_not_missed(tmp_path):
    """A critic that an actor's loss goes through: its own optimiser does not step here, in either run."""
    for name in ("a", "b"):
        actor, critic = mlp(6), mlp()
        optimizer = sgd(actor)
        with rlloss.watch({"actor": actor, "critic": critic}, optimizer, tmp_path / name, trace=1):
            for rows in torch.arange(8).split(8 if name == "a" else 4):
                (-critic(actor(X[1][rows])).sum() / 8).backward()
            optimizer.step()
    found = bisect(RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b"))
    assert found.cause.endswith("whose gradients add up to the same but for rounding, or a term that small")


def test_a_backward_pass_within_another_is_heard(tmp_path):
    """A checkpoint of the older kind computes its part's gradients in a pass of its own: none is missing."""
    for name in ("a", "b"):
        model = mlp()
        optimizer = sgd(model)
        with rlloss.watch(model, optimizer, tmp_path / name, trace=1):
            x = X[1].clone().requires_grad_()
            out = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=True) if name == "b" else model(x)
            F.smooth_l1_loss(out, Y[1]).backward() if name == "b" else F.mse_loss(out, Y[1]).backward()
            optimizer.step()
    found = bisect(RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b"))
    assert (found.step, found.decided) == (1, False)
    assert re.search(r"^another accumulation: 1 \| 2 backward passes .* do not add up to the same", found.cause)


def test_a_step_of_another_optimiser_comes_before_what_it_left_undone(tmp_path):
    for name in ("a", "b"):
        actor, critic, target = mlp(), mlp(), mlp()
        optimizers = [sgd(actor), sgd(critic)]
        with rlloss.watch({"actor": actor, "critic": critic, "target": target}, optimizers, tmp_path / name):
            for step in range(1, STEPS + 1):
                for model, optimizer in zip((actor, critic), optimizers, strict=True):
                    if not (name == "b" and step == AT and model is critic):
                        plain(model, optimizer, lambda s, model=model: (model(X[s]) - Y[s]).square().mean(), step)
                target.load_state_dict(critic.state_dict())
    found = bisect(RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b"))
    assert (found.step, found.cause) == (2 * AT, f"another optimiser makes step {2 * AT}")


def sparse(model, x):
    return model(x.long().abs() % 9).sum(1)


def forward_mode(model, x):
    out, tangent = torch.func.jvp(model, (x,), (torch.ones_like(x),))
    return out + tangent


@pytest.mark.parametrize("kind", [sparse, pytest.param(forward_mode, marks=pytest.mark.slow)])
def test_a_trace_of_what_is_no_row_of_numbers_leaves_the_training_as_it_was(tmp_path, kind):
    """A sparse gradient, and the zeros of forward-mode derivatives, which have no memory."""
    finals = []
    for trace in (0, 2):
        torch.manual_seed(3)
        model = nn.Embedding(9, 4, sparse=True) if kind is sparse else mlp()
        optimizer = torch.optim.SparseAdam(model.parameters()) if kind is sparse else sgd(model)
        with rlloss.watch(model, optimizer, tmp_path / f"{trace}", trace=trace):
            for step in range(1, STEPS + 1):
                plain(model, optimizer, lambda s, model=model: kind(model, X[s]).square().mean(), step)
        finals.append(RunFolder(tmp_path / f"{trace}").digests.tobytes())
    assert finals[0] == finals[1]
    assert len(finals[0]) == 32 * STEPS
    assert (tmp_path / "2" / "trace.json").exists()


def test_what_cannot_be_heard_ends_the_trace_and_not_the_training(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("rlloss.watch.tape.author", lambda frame: 1 / 0)
    model = mlp()
    optimizer = sgd(model)
    with rlloss.watch(model, optimizer, tmp_path / "a", trace=2) as watched:
        for step in range(1, STEPS + 1):
            plain(model, optimizer, lambda s: (model(X[s]) - Y[s]).square().mean(), step)
    assert watched.steps == len(RunFolder(tmp_path / "a").digests) == STEPS
    assert "step 2 was not traced: ZeroDivisionError" in caplog.text
    assert not (tmp_path / "a" / "trace.json").exists()


def sharpness_aware(model, optimizer, step, radius):
    """Up by a radius, and after the gradient there back again, which the weights do not survive to the last bit."""
    optimizer.zero_grad()
    (model(X[step]) - Y[step]).square().mean().backward()
    with torch.no_grad():
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        moves = [p.grad * (radius / norm) for p in model.parameters()]
        for p, move in zip(model.parameters(), moves, strict=True):
            p.add_(move)
    optimizer.zero_grad()
    (model(X[step]) - Y[step]).square().mean().backward()
    with torch.no_grad():
        for p, move in zip(model.parameters(), moves, strict=True):
            p.sub_(move)
    optimizer.step()


def test_weights_that_are_moved_and_moved_back_lead_to_the_number_that_moves_them(tmp_path):
    for name in ("a", "b"):
        model = mlp()
        optimizer = sgd(model)
        with rlloss.watch(model, optimizer, tmp_path / name, trace=AT):
            for step in range(1, STEPS + 1):
                sharpness_aware(model, optimizer, step, 0.06 if name == "b" and step >= AT else 0.05)
    found = bisect(RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b"))
    assert (found.step, found.decided, found.when) == (AT, True, "before")
    assert re.match(r"something else than the optimiser changed 0.weight and \d more, before step 3; ", found.cause)
    assert re.search(r"; another number: mul.Tensor at .* is given 0.05 \| 0.06$", found.cause)


@pytest.mark.parametrize("other", ["x", "y"])
def test_another_loss_of_other_data_is_not_blamed_on_the_loss(tmp_path, other):
    for name in ("a", "b"):
        model = mlp()
        optimizer = sgd(model)
        with rlloss.watch(model, optimizer, tmp_path / name, trace=1):
            x, y = (loaded(ARRAYS[k][1] * (-1 if (name, k) == ("b", other) else 1)) for k in "xy")
            (F.huber_loss if name == "b" else F.mse_loss)(model(x), y).backward()
            optimizer.step()
    found = bisect(RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b"))
    assert not (found.decided and "something else" in found.cause), found.cause
    assert found.cause.startswith("other data") or other == "y"
