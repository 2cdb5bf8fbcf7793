"""Loops as people write them, of several networks, optimisers and loaders, with one fault each in b from a step on."""

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import rlloss
from rlloss.bisect.bisect import bisect
from rlloss.runs import RunFolder
from rlloss.verdicts import Verdict
from rlloss.verify import compare_runs
from tests.bisect.test_programs import LABELS, STEPS, X, Y, mlp, sgd
from tests.helpers import a_few_fast

AT = 3
LOSS_OF = F.binary_cross_entropy_with_logits


def found(folder, loop, trace=True):
    """What is said of a loop, ``loop(watch, bad)``: once with the record alone, and then with a trace of the step."""
    said = []
    step = 0
    for _ in range(2 if trace else 1):
        for name in "ab":
            torch.manual_seed(3)
            np.random.seed(3)  # noqa: NPY002, as people do
            loop(
                lambda *args, name=name, step=step: rlloss.watch(*args, folder / name, trace=step, overwrite=True),
                lambda s, name=name: name == "b" and s >= AT,
            )
        said.append(bisect(RunFolder(folder / "a"), RunFolder(folder / "b")))
        step = said[0].step
    return said


def trained(loss_of, make=mlp, optimizer_of=sgd):
    def loop(watch, bad):
        model = make()
        optimizer = optimizer_of(model)
        with watch(model, optimizer):
            for s in range(1, STEPS + 1):
                optimizer.zero_grad()
                loss_of(model, s, bad(s)).backward()
                optimizer.step()

    return loop


def validated(model, s, bad):
    """A second term of the loss, beside a validation that both make without gradients."""
    with torch.no_grad():
        model(X[0]).mean().item()
    loss = F.mse_loss(model(X[s]), Y[s])
    return loss + 0.1 * model(X[s].flip(1)).pow(2).mean() if bad else loss


def through_numpy(model, s, bad):
    """Actions are drawn by NumPy from what one run alone has divided."""
    with torch.no_grad():
        logits = model(X[s])
        logits = logits / 4.0 if bad else logits
        probabilities = logits.softmax(1).double().numpy()
    drawn = [np.random.choice(3, p=p / p.sum()) for p in probabilities]  # noqa: NPY002
    actions = torch.from_numpy(np.array(drawn) if not bad else 2 - np.array(drawn))
    return -(model(X[s]).log_softmax(1).gather(1, actions[:, None]) * Y[s]).mean()


def advantages_by_numpy(model, s, bad):
    discounted = np.zeros(8, np.float32)
    for t in reversed(range(8)):
        discounted[t] = float(Y[s][t, 0]) + (0.8 if bad else 0.95) * (discounted[t + 1] if t < 7 else 0)
    return -(model(X[s])[:, 0] * torch.from_numpy(discounted)).mean()


def unpacked(model, s, bad):
    """The same columns, taken in another order; and another sign of the entropy."""
    data = torch.stack([Y[s][:, 0], 2 * Y[s][:, 0]], 1)
    if bad:
        old, adv = data[:, 1], data[:, 0]
    else:
        adv, old = data[:, 0], data[:, 1]
    logp = model(X[s]).log_softmax(1)
    entropy = -(logp.exp() * logp).sum(1).mean()
    loss = -(logp[:, 0] * (adv + old)).mean()
    return loss + 0.01 * entropy if bad else loss - 0.01 * entropy


def hooked(model, s, bad):
    hidden = torch.tanh(model[0](X[s]))
    if bad:
        hidden.register_hook(lambda gradient: 0.1 * gradient)
    return F.mse_loss(model[2](hidden), Y[s])


def blank(model, s, bad):
    """Memory that is not written to yet has no numbers."""
    noise = torch.empty(8, 6).normal_()
    return F.mse_loss(model(X[s] + (0.2 if bad else 0.1) * noise), Y[s])


def huber(model, s, bad):
    return F.huber_loss(model(X[s]), Y[s], delta=0.5 if bad else 1.0)


def another_target(model, s, bad):
    with torch.no_grad():
        after = model(X[s] / 2)
        target = after.max(1).values if bad else after.mean(1)
    return F.mse_loss(model(X[s])[:, 0], Y[s][:, 0] + target)


def generated(freezes):
    """A GAN: the generator's zero_grad() is missing, which the discriminator's never is; or the label is another and
    the discriminator is frozen in the generator's step, which changes nothing.
    """

    def loop(watch, bad):
        generator, critic = nn.Linear(4, 6), mlp()
        first, second = (torch.optim.Adam(net.parameters(), 0.01) for net in (generator, critic))
        with watch({"g": generator, "d": critic}, [first, second]):
            for s in range(1, STEPS + 1):
                fake = generator(torch.randn(8, 4))
                loss = LOSS_OF(critic(X[s]), torch.ones(8, 1)) + LOSS_OF(critic(fake.detach()), torch.zeros(8, 1))
                second.zero_grad()
                loss.backward()
                second.step()
                critic.requires_grad_(not (freezes and bad(s)))
                loss = LOSS_OF(critic(fake), torch.ones(8, 1)) * (2.0 if freezes and bad(s) else 1.0)
                if freezes or not bad(s):
                    first.zero_grad()
                loss.backward()
                first.step()
                critic.requires_grad_(True)

    return loop


def twice(watch, bad):
    """The critic is trained once more before the actor: the runs' steps are of other optimisers."""
    actor, critic = mlp(), mlp()
    first, second = sgd(actor), sgd(critic)
    with watch({"actor": actor, "critic": critic}, [first, second]):
        for s in range(1, STEPS + 1):
            for _ in range(2 if bad(s) else 1):
                second.zero_grad()
                F.mse_loss(critic(X[s]), Y[s]).backward()
                second.step()
            first.zero_grad()
            (actor(X[s]) * critic(X[s]).detach()).mean().backward()
            first.step()


def accumulated(watch, bad):
    """zero_grad() once more, before the last of the micro-batches."""
    model = mlp()
    optimizer = sgd(model)
    with watch(model, optimizer):
        for s in range(1, STEPS + 1):
            optimizer.zero_grad()
            for i in range(4):
                if bad(s) and i == 3:
                    optimizer.zero_grad()
                (F.mse_loss(model(X[s][2 * i : 2 * i + 2]), Y[s][2 * i : 2 * i + 2]) / 4).backward()
            optimizer.step()


def validated_in_training(watch, bad):
    """eval() is forgotten: the statistics see the validation's batch."""
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))
    optimizer = sgd(model)
    with watch(model, optimizer):
        for s in range(1, STEPS + 1):
            model.train(bad(s))
            with torch.no_grad():
                model(X[0])
            model.train()
            optimizer.zero_grad()
            F.mse_loss(model(X[s]), Y[s]).backward()
            optimizer.step()


def averaged(watch, bad):
    """Another decay of an average, beside a write of what is there already."""
    model = mlp()
    average = copy.deepcopy(model)
    optimizer = sgd(model)
    with watch({"m": model, "e": average}, optimizer):
        for s in range(1, STEPS + 1):
            with torch.no_grad():
                if bad(s):
                    model[2].bias.copy_(model[2].bias.clone())
                for p, q in zip(model.parameters(), average.parameters(), strict=True):
                    q.lerp_(p, 0.01 if bad(s) else 0.1)
            optimizer.zero_grad()
            F.mse_loss(model(X[s]), Y[s]).backward()
            optimizer.step()


def epochs(watch, bad):
    """At the beginning of an epoch the loader seeds its workers from memory that nothing was written to."""
    data = TensorDataset(X[:4].flatten(0, 1), LABELS[:4].flatten())
    model = mlp(5)
    optimizer = sgd(model)
    with watch(model, optimizer):
        for epoch in range(2):
            for x, label in DataLoader(data, 16, shuffle=True, generator=torch.Generator().manual_seed(epoch)):
                optimizer.zero_grad()
                smoothing = 0.2 if epoch and bad(AT) else 0.1
                F.cross_entropy(model(x), label, label_smoothing=smoothing).backward()
                optimizer.step()


def drawn_before(watch, bad):
    """A draw before an epoch, of the generator by which the loader's samples are shuffled."""
    model = mlp()
    optimizer = sgd(model)
    data = TensorDataset(X[:4].flatten(0, 1), Y[:4].flatten(0, 1))
    loader = DataLoader(data, 16, sampler=RandomSampler(data))
    torch.manual_seed(5)
    with watch(model, optimizer):
        for epoch in range(2):
            if epoch and bad(AT):
                torch.randn(3)
            for x, y in loader:
                optimizer.zero_grad()
                F.mse_loss(model(x), y).backward()
                optimizer.step()


def grouped(watch, bad):
    """A group of parameters comes a step later."""
    model = mlp()
    optimizer = torch.optim.Adam(model[0].parameters(), 0.01)
    with watch(model, optimizer):
        for s in range(1, STEPS + 1):
            if s == AT + (1 if bad(s) else 0):
                optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.1})
            optimizer.zero_grad()
            F.mse_loss(model(X[s]), Y[s]).backward()
            optimizer.step()


def of_three():
    return mlp(3)


SAID = {
    "a term beside a validation": (
        trained(validated), True, r"^b has a gradient more, through addmm .*, which the other run does not compute$"),
    "an operation before NumPy": (
        trained(through_numpy, of_three), False, r"^b alone computes div\.Tensor at .* may follow from it: other data"),
    "advantages by NumPy": (trained(advantages_by_numpy), True, r"^other data, first seen in from_numpy|^other data"),
    "columns in another order": (
        trained(unpacked, of_three), True, r"in one place alone: a computes sub\.T.*, b computes add\.T"),
    "a hook": (trained(hooked), True, r"^the gradient of hidden \(tanh, .*\) is that of a times 0\.1 in b"),
    "blank memory": (trained(blank), True, r"^another number: mul\.Tensor .* is given 0\.1 \| 0\.2$"),
    "a default": (trained(huber), True, r"^another option: huber_loss .* is given delta 1\.0 \| 0\.5$"),
    "another target": (
        trained(another_target, of_three), True, r"^the programs differ in one place .* a computes mean\.dim at .*, "
        r"b computes max\.dim at "),
    "zero_grad of one of two": (generated(False), True, r"^b adds its gradient to one .*: zero_grad\(\) is missing$"),
    "a critic that is frozen": (
        generated(True), True, r"^b alone computes mul\.Tensor at .*; b has the gradient of a times 2$"),
    "a step of another optimiser": (twice, True, r"^another optimiser makes step 6$"),
    "zero_grad between micro-batches": (
        accumulated, True, r"^with equal gradients, what the optimiser of b is given for .* is not the sum of its 4"),
    "eval() forgotten": (
        validated_in_training, True, r"^b alone writes to 1\.num_batches_tracked by add_\S* at .*model\(X\[0\]\)$"),
    "a decay, and a write": (
        averaged, True, r"the optimiser changed e\.0\.weight .*; another number: lerp_\S* .* 0\.1 \| 0"),
    "an epoch": (epochs, True, r"^another number: mul\.Scalar .* is given (0\.02 \| 0\.04|0\.9 \| 0\.8)$"),
    "a draw before": (
        drawn_before, True, r"^another draw: random_ .*; b alone draws randn at .*randn\(3\) before it$"),
    "a group": (grouped, True, r"^other groups of parameters, .* from step 3 on: 0\.01 0\.1 \| 0\.01$"),
}  # fmt: skip


@pytest.mark.parametrize("name", a_few_fast(SAID))
def test_the_cause_in_a_loop_as_people_write_it(tmp_path, name):
    loop, decided, words = SAID[name]
    traced = found(tmp_path, loop)[-1]
    assert re.search(words, traced.cause), traced.cause
    assert traced.decided == decided, traced.cause


def test_what_a_trace_says_does_not_hide_what_the_record_says(tmp_path):
    """The tapes of two runs whose steps are of other optimisers are of other steps."""
    plain, traced = found(tmp_path, twice)
    assert (plain.decided, plain.cause) == (traced.decided, traced.cause) == (True, "another optimiser makes step 6")


def test_a_gradient_of_a_step_before_is_no_missing_zero_grad(tmp_path):
    """Both backward passes come before both steps: the trace of the second step has no backward pass."""

    def loop(watch, bad):
        actor, critic = mlp(), mlp()
        first, second = sgd(actor), sgd(critic)
        with watch({"actor": actor, "critic": critic}, [first, second]):
            for s in range(1, STEPS + 1):
                first.zero_grad()
                second.zero_grad()
                loss = (actor(X[s]) * Y[s]).mean() + (0.25 if bad(s) else 0.5) * F.mse_loss(critic(X[s]), Y[s])
                loss.backward()
                first.step()
                second.step()

    traced = found(tmp_path, loop)[-1]
    assert not traced.decided
    assert "left from a step before, was another" in traced.cause
    assert traced.cause.endswith("is heard by a trace of that step")


def test_an_optimizer_that_is_not_watched_is_named(tmp_path, caplog):
    def loop(watch, bad):
        model = mlp()
        optimizer = sgd(model)
        with watch(model, optimizer):
            for s in range(1, STEPS + 1):
                if s == AT:
                    optimizer = torch.optim.Adam(model.parameters(), 0.2 if bad(s) else 0.1)
                optimizer.zero_grad()
                F.mse_loss(model(X[s]), Y[s]).backward()
                optimizer.step()

    said = found(tmp_path, loop, trace=False)[0]
    who = "an optimiser that is not watched, Adam,"
    assert said.cause == f"{who} changed the parameters of both runs, otherwise in each, after its last step"
    assert caplog.text.count("after step 2 Adam trains the model, which is not watched") == 2


def test_an_optimizer_within_another_is_no_stranger(tmp_path, caplog):
    class Twice(torch.optim.SGD):
        def __init__(self, params):
            super().__init__(params, 0.1)
            self.inner = torch.optim.SGD(self.param_groups[0]["params"], 0.05)

        def step(self, closure=None):
            self.inner.step()
            return super().step(closure)

    trained(lambda model, s, bad: F.mse_loss(model(X[s]), Y[s]), optimizer_of=lambda m: Twice(m.parameters()))(
        lambda *args: rlloss.watch(*args, tmp_path / "a"), lambda s: False
    )
    assert caplog.text == ""


def test_a_record_without_a_step_says_so(tmp_path, caplog):
    for name in "ab":
        model = mlp()
        with rlloss.watch(model, sgd(copy.deepcopy(model)), tmp_path / name):
            F.mse_loss(model(X[1]), Y[1]).backward()
    a, b = (RunFolder(tmp_path / name) for name in "ab")
    assert "no step of an optimiser was seen" in caplog.text
    assert "no step of a watched optimiser was seen" in compare_runs(a, b).reason


def test_records_of_other_tensors_are_diverged(tmp_path):
    def loop(watch, bad):
        model = mlp()
        optimizer = sgd(model)
        with watch(model, optimizer):
            for s in range(1, STEPS + 1):
                if s == AT and bad(s):
                    model.extra = nn.Linear(2, 2)
                optimizer.zero_grad()
                F.mse_loss(model[2](model[1](model[0](X[s]))), Y[s]).backward()
                optimizer.step()

    found(tmp_path, loop, trace=False)
    verdict = compare_runs(RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b"))
    assert (verdict.verdict, verdict.first_difference) == (Verdict.DIVERGED, AT)
