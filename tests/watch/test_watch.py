"""``rlloss.watch`` on trainings of all kinds: what it sees, and what it must not be misled by."""

import copy
import logging
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.overrides import TorchFunctionMode

import rlloss
from rlloss.bisect.bisect import bisect
from rlloss.cli.main import main
from rlloss.errors import ConfigError
from rlloss.runs import RunFolder
from rlloss.runs.watched import Record, first_tensors
from rlloss.verify import compare_runs
from rlloss.watch.tensors import ABSENT, hashed
from tests.helpers import ROOT

STEPS = 12


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def backward(model, scale=1.0):
    model.zero_grad()
    (model(torch.ones(3, 4)).pow(2).sum() * scale).backward()


def training(folder, steps=STEPS, *, before=lambda k, model: None, after=lambda k, model: None, start=0, **options):
    """A few steps of Adam on noise, watched; ``before`` and ``after`` each step something may happen to the model."""
    torch.manual_seed(1)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with rlloss.watch(model, optimizer, folder, **options):
        for k in range(1, steps + 1):
            optimizer.zero_grad()
            model(torch.randn(8, 4, generator=torch.Generator().manual_seed(k))).pow(2).mean().backward()
            before(k, model)
            optimizer.step()
            after(k, model)
    return RunFolder(folder)


def an_ulp(tensor):
    with torch.no_grad():
        tensor.view(-1)[-1] = torch.nextafter(tensor.view(-1)[-1], torch.tensor(9.0))


def rows(folder, *columns):
    return RunFolder(folder).metrics[list(columns)].to_numpy().tolist()


def test_a_training_is_recorded_step_by_step_and_does_not_notice(tmp_path):
    run = training(tmp_path / "a", snapshot_every=5, gradients=True)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for k in range(1, STEPS + 1):
        optimizer.zero_grad()
        model(torch.randn(8, 4, generator=torch.Generator().manual_seed(k))).pow(2).mean().backward()
        optimizer.step()
        now = {name: hashed(parameter, name) for name, parameter in model.named_parameters()}
        record = Record(run)
        assert dict(zip(record.names(k), (entry.tobytes() for entry in record.after(k)), strict=True)) == now
        assert record.gradients(k) == {n: hashed(p.grad + 0.0, n) for n, p in model.named_parameters()}
    assert (run.status, len(run.digests), run.snapshot_steps, run.damage) == ("finished", STEPS, [0, 5, 10, 12], "")
    assert len({digest.tobytes() for digest in run.digests}) == STEPS
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    assert np.array_equal(run.snapshot(STEPS), flat.numpy())
    assert rows(run.path, "optimizer", "optimizer_step", "learning_rate", "skipped_steps", "changed_outside") == [
        [0, k, 0.01, 0, 0] for k in range(1, STEPS + 1)
    ]


def test_two_trainings_that_are_one_are_identical_and_verify_says_by_which_hash(tmp_path, capsys):
    for name in "ab":
        training(tmp_path / name)
    assert main(["verify", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "1 IDENTICAL of 1 pairs" in out
    assert "digests are SHA-256 over the xxh3_128 of each tensor" in out


@pytest.mark.parametrize("place", ["0.weight", "0.bias", "2.weight", "2.bias"])
def test_a_tensor_that_changes_outside_a_step_is_named_and_so_is_the_step(tmp_path, place):
    training(tmp_path / "a")
    training(tmp_path / "b", after=lambda k, model: k == 6 and an_ulp(model.get_parameter(place)))
    a, b = (RunFolder(tmp_path / name) for name in "ab")
    found = compare_runs(a, b)
    assert found.first_difference == 7
    assert found.first_tensors == first_tensors(Record(a), Record(b), 7)
    assert (found.first_tensors.step, found.first_tensors.when, list(found.first_tensors.names)) == (
        7,
        "before",
        [place],
    )
    assert rows(b.path, "changed_outside") == [[int(k == 7)] for k in range(1, STEPS + 1)]


def test_a_gradient_that_differs_changes_tensors_in_the_step(tmp_path):
    training(tmp_path / "a", gradients=True)
    training(tmp_path / "b", gradients=True, before=lambda k, model: k == 4 and model[2].bias.grad.mul_(1.5))
    a, b = (RunFolder(tmp_path / name) for name in "ab")
    found = compare_runs(a, b).first_tensors
    assert (found.step, found.when, list(found.names)) == (4, "in", ["2.bias"])
    ours, theirs = (Record(run).gradients(4) for run in (a, b))
    assert [name for name in ours if ours[name] != theirs[name]] == ["2.bias"]


def test_what_a_step_takes_back_is_said_and_changes_no_verdict(tmp_path):
    """A number too small for its place: the step rounds it away."""
    for name in "ab":
        model = nn.Linear(1, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), 1.0)
        nn.init.ones_(model.weight)
        with rlloss.watch(model, optimizer, tmp_path / name):
            for k in range(3):
                model.weight.grad = torch.full((1, 1), 2.0**24)
                if (name, k) == ("b", 1):
                    an_ulp(model.weight)
                optimizer.step()
                nn.init.ones_(model.weight)
    found = compare_runs(*(RunFolder(tmp_path / name) for name in "ab"))
    assert found.verdict == "IDENTICAL"
    assert found.reason.startswith(
        "weight first (1 of 1 tensors), before step 2, outside its optimiser, which that step"
    )


@pytest.mark.parametrize("how", ["data", "numpy", "no_grad", "load_state_dict", "replaced"])
def test_it_sees_a_change_however_it_is_made(tmp_path, how):
    def change(k, model):
        bias = model[2].bias
        if k != 3:
            return
        match how:
            case "data":
                bias.data[0] = 5.0
            case "numpy":
                bias.detach().numpy()[0] = 5.0
            case "no_grad":
                with torch.no_grad():
                    bias[0] = 5.0
            case "load_state_dict":
                model.load_state_dict({**model.state_dict(), "2.bias": torch.tensor([5.0, 0.0])})
            case "replaced":
                model[2].bias = nn.Parameter(torch.tensor([5.0, 0.0]))

    run = training(tmp_path / "a", after=change)
    assert rows(run.path, "changed_outside")[3] == [2 if how == "replaced" else 1]  # the optimiser keeps the old one
    assert sum(outside for (outside,) in rows(run.path, "changed_outside")) == (2 if how == "replaced" else 1)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_forbids_is_one_that_was_skipped(tmp_path, fused):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with rlloss.watch(model, optimizer, tmp_path / "a"):
        for factor in (1.0, float("inf"), 1.0):
            model.zero_grad()
            scaler.scale(model(torch.ones(3, 4)).pow(2).sum() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
    assert rows(tmp_path / "a", "optimizer_step", "skipped_steps") == [[1, 0], [2, 1], [3, 0]]
    digests = RunFolder(tmp_path / "a").digests
    assert digests[0] == digests[1] != digests[2]
    assert torch.amp.GradScaler.step.__qualname__ == "GradScaler.step", "as torch has it"


class CallsSuper(torch.optim.Adam):
    def step(self, closure=None):
        return super().step(closure)


class UsesAnother(torch.optim.Optimizer):
    def __init__(self, inner):
        super().__init__(inner.param_groups, {"lr": 0.1})
        self.inner = inner

    def step(self, closure=None):
        self.inner.step()
        self.inner.step()


def test_a_step_within_a_step_is_part_of_it(tmp_path):
    model = network()
    optimizer = CallsSuper(model.parameters())
    with rlloss.watch(model, optimizer, tmp_path / "super") as watched:
        for _ in range(3):
            backward(model)
            optimizer.step()
    assert watched.steps == 3
    inner = torch.optim.SGD(model.parameters(), 0.1)
    outer = UsesAnother(inner)
    with rlloss.watch(model, [outer, inner], tmp_path / "another") as watched:
        backward(model)
        outer.step()
        inner.step()
    assert rows(tmp_path / "another", "optimizer", "optimizer_step") == [[0, 1], [1, 1]]


def test_a_step_that_raises_is_none_and_the_next_one_is(tmp_path):
    model = network()
    optimizer = CallsSuper(model.parameters())

    def fails():
        raise KeyError("no data")

    with rlloss.watch(model, optimizer, tmp_path / "a") as watched:
        for _ in range(2):
            with pytest.raises(KeyError):
                optimizer.step(fails)
            backward(model)
            optimizer.step()
    assert watched.steps == 2


def test_lbfgs_makes_one_step_of_several_evaluations(tmp_path):
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    evaluations = []

    def closure():
        backward(model)
        evaluations.append(1)
        return model(torch.ones(3, 4)).pow(2).sum()

    with rlloss.watch(model, optimizer, tmp_path / "a") as watched:
        optimizer.step(closure)
    assert (watched.steps, len(evaluations) > 1) == (1, True)


def test_several_optimisers_count_their_own_steps(tmp_path):
    actor, critic = network(), network()
    a, b = torch.optim.Adam(actor.parameters()), torch.optim.SGD(critic.parameters(), 0.1)
    temperature = torch.zeros((), requires_grad=True)
    c = torch.optim.SGD([temperature], 0.5)
    with rlloss.watch({"actor": actor, "critic": critic}, [a, b, c], tmp_path / "a"):
        for optimizer in (a, b, b, c, a):
            backward(actor)
            backward(critic)
            temperature.grad = torch.ones(())
            optimizer.step()
    assert rows(tmp_path / "a", "optimizer", "optimizer_step") == [[0, 1], [1, 1], [1, 2], [2, 1], [0, 2]]
    record = Record(RunFolder(tmp_path / "a"))
    assert {"actor.0.weight", "critic.2.bias", "optimizer.2.group.0.0"} <= set(record.names(1))
    moved = [
        [n for n, x, y in zip(record.names(k), record.after(k - 1), record.after(k), strict=True) if x != y]
        for k in range(1, 6)
    ]
    assert all(name.startswith("actor") for name in moved[0] + moved[4])
    assert all(name.startswith("critic") for name in moved[1] + moved[2])
    assert moved[3] == ["optimizer.2.group.0.0"]


def test_an_optimiser_within_backward_makes_a_step_of_each_tensor(tmp_path):
    model = network()
    optimizers = {p: torch.optim.SGD([p], 0.1) for p in model.parameters()}
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())
    with rlloss.watch(model, optimizers.values(), tmp_path / "a") as watched:
        model(torch.ones(3, 4)).pow(2).sum().backward()
    assert watched.steps == 4


def test_a_trainer_that_makes_its_optimiser_late_is_watched_by_its_model(tmp_path):
    model, other = network(), network()
    with rlloss.watch(model, None, tmp_path / "a"):
        optimizer, stranger = torch.optim.AdamW(model.parameters()), torch.optim.SGD(other.parameters(), 0.1)
        for _ in range(2):
            backward(model)
            backward(other)
            stranger.step()
            optimizer.step()
    run = RunFolder(tmp_path / "a")
    assert len(run.digests) == 2
    assert run.info["optimizers"]["0"]["class"] == "AdamW"
    backward(model)
    optimizer.step()
    assert len(RunFolder(tmp_path / "a").digests) == 2, "and no longer"


class Odd(nn.Module):
    """A module with everything that names could trip over."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.inner.weight
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.tied(self.inner(x)))


def test_tied_frozen_and_unused_parameters_and_buffers_have_their_names(tmp_path):
    torch.manual_seed(0)
    model = Odd()
    optimizer = torch.optim.SGD([*model.inner.parameters(), *model.norm.parameters()], 0.1)
    with rlloss.watch(model, optimizer, tmp_path / "a"):
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(5, 4)).pow(2).sum().backward()
            optimizer.step()
    record = Record(RunFolder(tmp_path / "a"))
    names = record.names(1)
    assert names.count("inner.weight") == 1
    assert "tied.weight" not in names
    assert {"frozen", "unused", "tied.bias", "norm.running_mean", "norm.num_batches_tracked"} <= set(names)
    still = [name for name, x, y in zip(names, record.after(0), record.after(2), strict=True) if x == y]
    assert sorted(still) == ["frozen", "tied.bias", "unused"]
    assert rows(tmp_path / "a", "changed_outside") == [[0], [0]], "buffers change in the forward pass"


def test_a_compiled_model_and_one_within_data_parallel_have_the_names_of_the_plain_one(tmp_path):
    plain = network()
    wrapped = nn.DataParallel(torch.compile(network(), backend="eager"))
    for name, model in (("a", plain), ("b", wrapped)):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with rlloss.watch(model, optimizer, tmp_path / name):
            backward(model)
            optimizer.step()
    assert Record(RunFolder(tmp_path / "b")).names(1) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert compare_runs(RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b")).differing_keys == []


def test_parameters_that_are_replaced_or_added_are_seen_at_their_step(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with rlloss.watch(model, optimizer, tmp_path / "a", gradients=True):
        backward(model)
        optimizer.step()
        model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
        optimizer.step()  # of tensors that the model no longer has
        model.append(nn.Linear(2, 2))
        optimizer.add_param_group({"params": model[3].parameters()})
        backward(model)
        optimizer.step()
        backward(model)
        optimizer.step()
    run = RunFolder(tmp_path / "a")
    record = Record(run)
    assert record.names(1) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert "optimizer.0.group.0.0" in record.names(2)
    assert "3.weight" in record.names(3)
    assert [part["step"] for part in record.segments] == [0, 2, 3]
    assert len(record.after(4)) == len(record.names(4))
    assert set(record.gradients(4)) == set(record.names(4))
    assert run.damage == ""


KINDS = {
    "bfloat16": torch.randn(5, 3).bfloat16(),
    "float8": torch.randn(4).to(torch.float8_e4m3fn),
    "complex": torch.randn(3, dtype=torch.complex64).conj(),
    "one number": torch.tensor(1.5),
    "none": torch.empty(0, 3),
    "transposed": torch.randn(3, 5).t(),
    "every other": torch.randn(8)[::2],
    "truth": torch.tensor([True, False]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_of_any_kind_is_hashed_by_its_numbers(kind):
    tensor = KINDS[kind]
    assert hashed(tensor, "x") == hashed(tensor.clone(memory_format=torch.contiguous_format), "x")
    if kind not in ("one number", "none"):
        swapped = torch.stack(list(tensor)[::-1])
        assert hashed(tensor, "x") != hashed(swapped, "x"), "which a XOR of all numbers would miss"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=40), st.data())
def test_one_bit_of_one_number_makes_another_hash(numbers, data):
    tensor = torch.tensor(numbers)
    place, bit = data.draw(st.integers(0, len(numbers) - 1)), data.draw(st.integers(0, 31))
    other = tensor.clone()
    other.view(torch.int32)[place] ^= -(2**31) if bit == 31 else 1 << bit
    assert hashed(tensor, "x") != hashed(other, "x")
    assert hashed(tensor, "x") == hashed(tensor.clone(), "x")


def test_a_zero_of_either_sign_is_one_gradient_and_none_is_another(tmp_path):
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with rlloss.watch(model, optimizer, tmp_path / "a", gradients=True):
        for gradient in (torch.tensor([[0.0, 1.0]]), torch.tensor([[-0.0, 1.0]]), None):
            model.weight.grad = gradient
            optimizer.step()
    record = Record(RunFolder(tmp_path / "a"))
    first, second, none = (record.gradients(k)["weight"] for k in (1, 2, 3))
    assert first == second != none
    assert none == ABSENT


def test_what_has_no_numbers_is_refused_by_name(tmp_path):
    model = network()
    model[2].bias = nn.Parameter(torch.empty(2, device="meta"))
    with pytest.raises(ConfigError, match=r"2\.bias: a Parameter of torch.float32 on meta cannot be read"):
        rlloss.watch(model, torch.optim.SGD(model[0].parameters(), 0.1), tmp_path / "a")
    assert not (tmp_path / "a").exists()


class NoSuper(torch.optim.Optimizer):
    def __init__(self):
        self.param_groups = []


@pytest.mark.parametrize(
    ("model", "optimizer", "said"),
    [
        ("a model", None, "model=str: give a torch.nn.Module"),
        (nn.Linear(1, 1), "adam", "optimizer=str: is no torch.optim.Optimizer"),
        (nn.Linear(1, 1), [], "optimizer: an empty list"),
        (nn.Linear(1, 1), NoSuper(), "has no hooks"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_and_nothing_is_made(tmp_path, model, optimizer, said):
    with pytest.raises(ConfigError, match=said):
        rlloss.watch(model, optimizer, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_second_watch_is_refused_until_the_first_is_closed(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    first = rlloss.watch(model, optimizer, tmp_path / "a")
    with pytest.raises(ConfigError, match="watched already"):
        rlloss.watch(model, optimizer, tmp_path / "b")
    first.close()
    first.close()
    with rlloss.watch(model, optimizer, tmp_path / "b") as second:
        backward(model)
        optimizer.step()
    assert (first.steps, second.steps) == (0, 1)


def test_what_the_user_logs_belongs_to_the_next_step(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with rlloss.watch(model, optimizer, tmp_path / "a") as watched:
        for k in range(2):
            backward(model)
            watched.log(loss=torch.tensor(k / 3, requires_grad=True), epoch=k)
            optimizer.step()
    scalars = RunFolder(tmp_path / "a").scalars
    assert scalars["step"].tolist() == [1, 1, 2, 2]
    assert scalars["name"].tolist() == ["loss", "epoch"] * 2
    assert scalars["value"].tolist() == [0, 0, float(np.float32(1 / 3)), 1]


def test_a_training_that_fails_leaves_a_record_that_says_so(tmp_path):
    with pytest.raises(ZeroDivisionError):
        training(tmp_path / "a", after=lambda k, model: 1 / (k - 3))
    run = RunFolder(tmp_path / "a")
    assert (run.status, run.info["error"], len(run.digests)) == ("failed", "ZeroDivisionError: division by zero", 3)


PROGRAM = """
import os, signal, sys, torch, rlloss
torch.manual_seed(0)
model = torch.nn.Linear(3, 2)
optimizer = torch.optim.Adam(model.parameters())
handle = rlloss.watch(model, optimizer, sys.argv[1])
for k in range(50):
    optimizer.zero_grad()
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    if k == 19: {act}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "status", "steps"),
    [
        ("pass", "finished", 50),
        ("raise KeyError('x')", "failed", 20),
        ("os.kill(os.getpid(), signal.SIGKILL)", "interrupted", 20),
        ("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))", "failed", 0),
    ],
    ids=["ended", "raised", "killed", "disk full"],
)
def test_a_program_that_ends_without_closing_leaves_what_it_did(tmp_path, act, status, steps):
    command = [sys.executable, "-c", PROGRAM.format(act=act), str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    run = RunFolder(tmp_path / "a")
    assert run.status == status, done.stderr
    if status == "failed" and done.returncode == 0:
        assert f"recorded no further than optimiser step {len(run.digests)}: [Errno 27] File too large" in done.stderr
        assert 20 < len(run.digests) < 50
        return
    assert len(run.digests) == steps
    assert len(Record(run).after(steps)) == 2
    assert len(run.metrics) == steps
    assert (done.returncode == 0) == (act == "pass"), done.stderr
    assert signal.SIGKILL == 9


def whole_files(folder):
    names = ("digests.bin", "tensors.bin", "gradients.bin", "metrics.csv", "tensors.json")
    return {name: (folder / name).read_bytes() for name in names}


def kept_at(at, folder, until, kept=None, **options):
    """A training that, as trainers do, keeps a checkpoint after ``at`` steps, or begins at the one that it is given."""
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    if kept:
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
    with rlloss.watch(model, optimizer, folder, gradients=True, snapshot_every=2, **options):
        for k in range(kept["step"] if kept else 0, until):
            backward(model)
            optimizer.step()
            if k + 1 == at:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": at}
                made = copy.deepcopy(state)
    return made


def test_a_record_goes_on_where_the_trainer_does(tmp_path):
    kept_at(6, tmp_path / "whole", 10)
    parts = tmp_path / "parts"
    kept = kept_at(6, parts, 8)
    with pytest.raises(ConfigError, match="holds a record of 8 optimiser steps"):
        kept_at(6, parts, 10, kept, step=9)
    with pytest.raises(ConfigError, match=r"0\.weight and 3 more is not what it was after that step"):
        kept_at(6, parts, 10, kept, step=7)
    with pytest.raises(ConfigError, match="holds a record of 8 optimiser steps; name another folder, or go on with it"):
        kept_at(6, parts, 10)
    kept_at(8, parts, 10, kept, step=6)
    assert whole_files(parts) == whole_files(tmp_path / "whole")
    found = compare_runs(RunFolder(tmp_path / "whole"), RunFolder(parts))
    assert (found.verdict, found.steps) == ("IDENTICAL", 10)
    (parts / "thesis.txt").write_text("precious")
    kept_at(2, parts, 3, overwrite=True)
    assert (parts / "thesis.txt").read_text() == "precious"
    assert len(RunFolder(parts).digests) == 3


def test_a_folder_that_is_no_record_is_left_alone(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="is not empty and holds no run"):
            training(tmp_path / "a", overwrite=overwrite)
    (tmp_path / "a" / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError, match="holds a run that is no record of watch"):
        training(tmp_path / "a", overwrite=True)
    assert (tmp_path / "a" / "thesis.txt").read_text() == "precious"


def test_a_snapshot_is_held_against_its_hashes(tmp_path):
    training(tmp_path / "a")
    training(tmp_path / "b")
    file = max((tmp_path / "b" / "snapshots").iterdir())
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    found = compare_runs(*(RunFolder(tmp_path / name) for name in "ab"))
    assert (found.verdict, found.reason) == (
        "INCOMPLETE", f"b: snapshots/ has another 2.bias after step {STEPS} than tensors.bin says",
    )  # fmt: skip


def test_hashes_are_held_against_their_digests(tmp_path):
    for name in "ab":
        training(tmp_path / name)
    file = tmp_path / "b" / "tensors.bin"
    data = bytearray(file.read_bytes())
    data[5 * 4 * 16 + 3] ^= 1  # of step 5
    file.write_bytes(data)
    found = compare_runs(*(RunFolder(tmp_path / name) for name in "ab"))
    assert (found.verdict, found.reason) == (
        "INCOMPLETE", "b: tensors.bin has other hashes after step 5 than digests.bin says",
    )  # fmt: skip


def test_a_change_after_the_last_step_is_a_difference(tmp_path):
    for name, factor in (("a", 2.0), ("b", 2.0), ("c", 3.0)):

        def change(k, model, factor=factor):
            if k == STEPS:
                model[0].weight.data.mul_(factor)

        training(tmp_path / name, after=change)
    a, b, c = (RunFolder(tmp_path / name) for name in "abc")
    assert compare_runs(a, b).verdict == "IDENTICAL"
    found = compare_runs(a, c)
    assert (found.verdict, found.first_difference) == ("DIVERGED", None)
    assert found.reason == "identical at every optimiser step; after the last one something else changed the parameters"
    assert not bisect(a, b).differs
    assert (
        bisect(a, c).cause == "something else than an optimiser changed the parameters of one run after its last step"
    )


def test_what_is_wrong_is_said_before_a_record_is_written_over(tmp_path):
    training(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"is no torch\.optim\.Optimizer"):
        rlloss.watch(network(), "adam", tmp_path / "a", overwrite=True)
    model = network()
    model[2].bias = nn.Parameter(torch.empty(2, device="meta"))
    with pytest.raises(ConfigError, match="cannot be read"):
        rlloss.watch(model, None, tmp_path / "a", overwrite=True)
    assert (RunFolder(tmp_path / "a").status, len(RunFolder(tmp_path / "a").digests)) == ("finished", STEPS)


def test_an_optimiser_without_a_learning_rate_and_sparse_gradients_are_recorded(tmp_path):
    class Halves(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {})

        def step(self, closure=None):
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.mul_(0.5)

    model = nn.Embedding(4, 2, sparse=True)
    optimizer = Halves(model.parameters())
    with rlloss.watch(model, optimizer, tmp_path / "a", gradients=True) as watched:
        for _ in range(2):
            model.zero_grad()
            model(torch.tensor([1, 2])).sum().backward()
            optimizer.step()
    run = RunFolder(tmp_path / "a")
    assert (watched.steps, run.status) == (2, "finished")
    assert run.metrics["learning_rate"].isna().all()
    assert Record(run).gradients(1)["weight"] == Record(run).gradients(2)["weight"] != ABSENT


class Counting(TorchFunctionMode):
    """Somebody else's mode, which must neither miss a call nor be lost."""

    calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        Counting.calls += 1
        return func(*args, **(kwargs or {}))


def test_a_trace_leaves_the_modes_of_others_where_they_are(tmp_path):
    counts = []
    for trace in (0, 2):
        Counting.calls = 0
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with rlloss.watch(model, optimizer, tmp_path / f"{trace}", trace=trace):
            for _ in range(3):
                with Counting():  # entered before the trace begins and left after, and the other way round
                    backward(model)
                    optimizer.step()
        counts.append(Counting.calls)
        assert not torch.overrides._get_current_function_mode_stack()
    assert counts[0] == counts[1] > 0
    assert (tmp_path / "2" / "trace.json").exists()


def test_mixed_precisions_have_snapshots_that_hold_them_exactly(tmp_path):
    for name in "ab":
        model = network()
        model[0].bfloat16()
        model[2].double()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with rlloss.watch(model, optimizer, tmp_path / name, snapshot_every=1):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 0.1)
            optimizer.step()
    found = compare_runs(*(RunFolder(tmp_path / name) for name in "ab"))
    assert found.verdict == "IDENTICAL", found.reason
    assert Record(RunFolder(tmp_path / "a")).other_snapshot([0, 1]) == ""


def test_its_own_troubles_stop_the_record_and_not_the_training(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "rlloss"):
        run = training(tmp_path / "a", after=lambda k, model: k == 4 and _to_meta(model))
    assert "recorded no further than optimiser step 4: 2.bias2" in caplog.text
    assert (run.status, len(run.digests)) == ("failed", 4)


def _to_meta(model):
    model.register_buffer("ghost", None)
    model.register_parameter("2.bias".replace(".", "_"), None)
    model[2].register_buffer("bias2", torch.empty(1, device="meta"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_each_of_several_processes_records_what_it_has(tmp_path, kind):
    for name, fault in (("a", ""), ("b", ""), ("c", "1")):
        command = [
            sys.executable,
            "-m",
            "tests.watch.sharded",
            kind,
            tmp_path / name,
            tmp_path / f"{name}.store",
            fault,
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-2000:]
    runs = {(name, rank): RunFolder(tmp_path / name / f"rank-{rank}") for name in "abc" for rank in (0, 1)}
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    for rank in (0, 1):
        verdict = compare_runs(runs["a", rank], runs["b", rank])
        assert (verdict.verdict, verdict.steps) == ("IDENTICAL", 4), verdict.reason
        assert Record(runs["a", rank]).names(1) == names
    found = compare_runs(runs["a", 1], runs["c", 1]).first_tensors
    assert (found.step, found.when, list(found.names)) == (3, "in", ["2.weight"])
    assert (runs["a", 0].digests[-1] == runs["a", 1].digests[-1]) == (kind == "ddp"), "of FSDP2 each has its own part"


def test_what_flattens_parameters_is_refused_by_name(tmp_path):
    flat = type("FullyShardedDataParallel", (nn.Module,), {})()
    with pytest.raises(ConfigError, match=r"so that they have no names; use fully_shard \(FSDP2\)"):
        rlloss.watch(flat, None, tmp_path / "a")
