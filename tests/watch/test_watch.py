"""``rlloss.watch`` on trainings of all kinds: what it sees, and what it must not be misled by."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import rlloss
from rlloss.cli.main import main
from rlloss.errors import ConfigError
from rlloss.runs import RunFolder
from rlloss.runs.watched import Record, first_tensors
from rlloss.verify import compare_runs
from rlloss.watch.tape import NOTHING, Tape
from rlloss.watch.tensors import ABSENT, hashed
from tests.helpers import ROOT
from tests.watch.trainings import STEPS, an_ulp, backward, network, rows, training


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


class NoSuper(torch.optim.Optimizer):
    def __init__(self):
        self.param_groups = []


def test_an_optimiser_that_is_given_the_models_tensors_late_is_watched(tmp_path):
    model = network()
    other = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([other], 0.1)
    with rlloss.watch(model, None, tmp_path / "a") as watched:
        optimizer.step()
        assert watched.steps == 0
        optimizer.add_param_group({"params": model.parameters()})
        backward(model)
        optimizer.step()
        optimizer.step()
        assert watched.steps == 2


def test_a_scaler_may_step_what_is_no_optimiser_of_torchs(tmp_path):
    class Duck:
        def __init__(self, inner):
            self.param_groups, self.step = inner.param_groups, inner.step

    model, other = network(), network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = other[0].weight.detach().clone()
    with rlloss.watch(model, optimizer, tmp_path / "a") as watched:
        duck = Duck(torch.optim.SGD(other.parameters(), 0.1))
        scaler.scale(other(torch.ones(3, other[0].in_features)).sum()).backward()
        scaler.step(duck)
        scaler.update()
        assert watched.steps == 0
    assert not torch.equal(other[0].weight, before)


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


def test_a_sparse_buffer_can_be_left_out(tmp_path):
    model = nn.Linear(3, 3)
    model.register_buffer("adjacency", torch.eye(3).to_sparse())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ConfigError, match=r"^adjacency: .* cannot be read .*; buffers=False leaves all buffers out$"):
        rlloss.watch(model, optimizer, tmp_path / "a")
    with rlloss.watch(model, optimizer, tmp_path / "a", buffers=False) as watched:
        model(torch.ones(3)).sum().backward()
        optimizer.step()
    assert watched.steps == 1


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


def lstm(layer, x):
    return layer(x)[0].sum()


def ctc(layer, x):
    lengths = torch.full((5,), 8), torch.tensor([3, 1, 2, 2, 2])
    return F.ctc_loss(layer(x).log_softmax(-1), torch.tensor([[1, 2, 1]] * 5), *lengths)


@pytest.mark.parametrize(("layer", "loss"), [(nn.LSTM(6, 5), lstm), (nn.Linear(6, 3), ctc)])
def test_memory_that_a_kernel_leaves_unwritten_is_no_number(layer, loss):
    """Before, it was the first operation with equal inputs and another output."""
    tapes = []
    for number in (1.0, 2.0):
        litter = [torch.full((size,), number) for size in (*range(1, 3000, 7), *(1 << n for n in range(18))) * 6]
        layer.zero_grad()
        del litter  # which is what memory has in it that is given out next
        tapes.append(Tape())
        with tapes[-1]:
            loss(layer, torch.linspace(-1, 1, 240).view(8, 5, 6)).backward()
    first, second = ([(entry.op, entry.inputs, entry.outputs) for entry in tape.entries] for tape in tapes)
    assert first == second
    assert sum(NOTHING in outputs for _, _, outputs in first) == 1


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


def test_an_optimiser_of_another_model_is_said_to_be_one(tmp_path, caplog):
    watched, trained = (torch.nn.Linear(2, 1) for _ in "ab")
    optimizer = torch.optim.SGD(trained.parameters(), 0.1)
    with rlloss.watch(watched, optimizer, tmp_path / "run"):
        trained(torch.ones(3, 2)).sum().backward()
        optimizer.step()
    assert "the optimiser trains no tensor of the model" in caplog.text
    caplog.clear()
    with rlloss.watch(trained, optimizer, tmp_path / "other") as record:
        with pytest.raises(ConfigError, match="log: v is str"):
            record.log(v="x")
        optimizer.step()
    assert not caplog.text


def test_records_of_which_no_step_changed_a_tensor_are_not_put_to_the_test(tmp_path):
    for name, factor in (("a", 1), ("b", 3)):
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.0)
        with rlloss.watch(model, optimizer, tmp_path / name):
            for _ in range(3):
                (factor * model(torch.ones(3, 2))).sum().backward()
                optimizer.step()
    verdict = compare_runs(*(RunFolder(tmp_path / name) for name in ("a", "b")))
    assert (verdict.verdict, verdict.tested) == ("IDENTICAL", False)
    assert verdict.untested == "no optimiser step changed a parameter"
