"""Compiled epochs: what they compute, against autograd's steps; what is refused; their bits, which are their own."""

import hashlib
import shutil

import pytest
import torch

from rlloss.bisect.bisect import bisect
from rlloss.config import load
from rlloss.errors import ConfigError, Interrupted, NonFinite, RunFailed
from rlloss.runs import RunFolder
from rlloss.train import train
from rlloss.train.compiled import CompiledStepper, epoch_function
from rlloss.train.loop import iterate, validate
from rlloss.train.state import prepared
from rlloss.train.switches import deterministic
from rlloss.verify import compare_runs

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler: apt-get install g++")

COMPILED = "update=compiled"
SMALL = ("num_envs=2", "num_steps=40", "num_minibatches=2", "update_epochs=2", "learning_rate=0.01")
QUICK = (*SMALL, "total_timesteps=640", "hidden_sizes=[8]", COMPILED)


def trained(monkeypatch, *overrides, iterations=3):
    """Parameters after every step, and the rows of metrics; compiled functions are called as they are, uncompiled."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    config = load([*SMALL, "precision=fp64", f"total_timesteps={80 * iterations}", *overrides])
    parameters, rows = [], []
    with deterministic(config), prepared(config) as state:
        for _ in range(iterations):
            done = iterate(state, lambda: parameters.append(state.policy.flat.detach().clone()))
            rows.append({k: v for k, v in done.row.items() if isinstance(v, float) and k != "steps_per_second"})
        moments = state.optimizer.state_dict()["state"][0]
    return parameters, rows, moments


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("loss=reinforce", "schedule=constant"),
        ("env=pendulum", "clip_vloss=false"),
        ("optimizer.weight_decay=0.1", "optimizer.betas=[0.8,0.99]", "max_grad_norm=inf"),
        ("ent_coef=0.2", "loss.offset=3", "norm_adv=false"),
    ],
    ids=" ".join,
)
def test_the_graph_computes_the_steps_of_autograd_and_adam(monkeypatch, overrides):
    """In float64, to rounding: parameters after every step, metrics, and what Adam keeps."""
    ours, theirs = (trained(monkeypatch, *overrides, update) for update in (COMPILED, "update=autograd"))
    assert len(ours[0]) == len(theirs[0]) == 12
    for a, b in zip(ours[0], theirs[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert a == pytest.approx(b, rel=1e-7, abs=1e-9, nan_ok=True)
    assert ours[2].keys() == theirs[2].keys()
    for name, value in ours[2].items():
        torch.testing.assert_close(value, theirs[2][name], rtol=1e-8, atol=1e-11)


def test_a_schedule_of_torchs_misses_no_step(monkeypatch, recwarn):
    trained(monkeypatch, COMPILED, "schedule=linear")
    assert not [warning for warning in recwarn if "lr_scheduler" in str(warning.message)]


def test_a_number_that_is_not_finite_ends_the_run_before_its_step(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    config = load([*SMALL, COMPILED, "total_timesteps=80"])
    taken = []
    with deterministic(config), prepared(config) as state:
        stepper, epochs = state.stepper, []
        inner = stepper._compute

        def spoilt(*tensors):
            exp_avg, exp_avg_sq, trail = inner(*tensors)
            epochs.append(trail)
            if len(epochs) == 2:
                trail[1][1] = float("nan")  # the total loss of the fourth step
                trail[0][1] = float("nan")
            return exp_avg, exp_avg_sq, trail

        monkeypatch.setattr(stepper, "_compute", spoilt)
        with pytest.raises(NonFinite, match=r"total_loss is nan, in iteration 1, at optimiser step 4"):
            iterate(state, lambda: taken.append(state.policy.flat.detach().clone()))
        assert len(taken) == 3
        assert torch.equal(state.policy.flat.detach(), taken[-1])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer=lbfgs", r"optimizer=lbfgs update=compiled: only optimizer=adam is compiled"),
        ("optimizer=sam", r"optimizer=sam update=compiled: only optimizer=adam is compiled"),
        ("precision=fp16_scaled", r"precision=fp16_scaled update=compiled: only precision=fp32 or fp64 is compiled"),
        ("precision.loss_scale=8", r"precision.loss_scale=8.0 update=compiled: only precision.loss_scale=1.0"),
        ("guard=finite", r"guard=finite update=compiled: only guard=none"),
        ("numerics=portable", r"numerics=portable update=compiled: only numerics=native"),
    ],
)
def test_what_cannot_be_compiled_is_refused_in_one_line(override, words):
    with pytest.raises(ConfigError, match=words):
        load([COMPILED, override]).validate()


def test_the_compilers_heuristics_are_refused_without_the_compiler():
    with pytest.raises(ConfigError, match="compiler_heuristics=true: is for update=compiled"):
        load(["compiler_heuristics=true"]).validate()


def prepare(*overrides):
    config = load([*QUICK, *overrides])
    config.validate()
    with prepared(config) as state:
        return type(state.stepper)


def test_images_are_refused():
    with pytest.raises(ConfigError, match=r"update=compiled: tests.train.test_pixels:Pixels-v0 shows images"):
        validate(load([COMPILED, "env.id=tests.train.test_pixels:Pixels-v0"]))


def test_without_a_compiler_it_says_so_and_writes_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"needs the C\+\+ compiler no-such-compiler, which is not on PATH; install"):
        train(load([*QUICK]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_cannot_be_traced_is_refused():
    with pytest.raises(ConfigError, match=r"hard_losses.py:python_if update=compiled: cannot be compiled \("):
        prepare("loss=tests/examples/hard_losses.py:python_if")
    assert prepare("loss=tests/examples/hard_losses.py:strict_above") is CompiledStepper


@pytest.mark.slow
def test_compiled_runs_have_bits_of_their_own_and_verify_says_so(tmp_path):
    settings = (*QUICK, "num_steps=100", "total_timesteps=1600")  # minibatches of 100: a loop with a tail
    runs = {loss: RunFolder(tmp_path / loss) for loss in ("ppo_clip", "reinforce", "again", "eager")}
    for name, run in runs.items():
        loss = name if name in ("ppo_clip", "reinforce") else "ppo_clip"
        train(load([*settings, f"loss={loss}", *(["update=auto"] if name == "eager" else [])]), run.path)
    assert compare_runs(runs["ppo_clip"], runs["again"]).verdict == "IDENTICAL"
    assert compare_runs(runs["ppo_clip"], runs["reinforce"]).verdict == "IDENTICAL"
    verdict = compare_runs(runs["ppo_clip"], runs["eager"])
    assert (verdict.verdict, verdict.first_difference) == ("INCOMPARABLE", 1)
    assert "update (compiled | auto)" in verdict.reason
    found = bisect(runs["ppo_clip"], runs["eager"])
    assert "update" in found.cause


@pytest.mark.slow
def test_a_compiled_run_that_was_cut_short_goes_on_to_the_same_bits(tmp_path):
    whole = train(load([*QUICK, "checkpoint_seconds=0"]), tmp_path / "whole")
    calls = iter([0, 0, 15])
    with pytest.raises(Interrupted):
        train(load([*QUICK, "checkpoint_seconds=0"]), tmp_path / "cut", asked_to_stop=lambda: next(calls))
    resumed = train(load([*QUICK, "checkpoint_seconds=0"]), tmp_path / "cut")
    assert resumed.final_digest == whole.final_digest
    digests = [hashlib.sha256(RunFolder(tmp_path / name).digests.tobytes()).hexdigest() for name in ("whole", "cut")]
    assert digests[0] == digests[1]


def test_what_the_compiler_refuses_later_fails_the_run_in_one_line(monkeypatch):
    from torch._inductor.exc import InductorError

    def compile_(function, **_):
        def call(*tensors):
            raise InductorError(ValueError("no kernel\nfor this"), None)

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    with pytest.raises(RunFailed, match=r"update=compiled: torch's compiler fails \(.*no kernel\); use update=auto"):
        train(load([*QUICK]))


def test_the_epoch_is_a_pure_function():
    config = load([*QUICK])
    with deterministic(config), prepared(config) as state:
        stepper = state.stepper
        epoch = epoch_function(state.policy, stepper.objective, state.optimizer.param_groups[0], 0.5)
        flat = state.policy.flat.detach().clone()
        samples = 10
        columns = (
            torch.randn(2, samples, 4), torch.zeros(2, samples, dtype=torch.int64), -torch.rand(2, samples),
            torch.randn(2, samples), torch.randn(2, samples), torch.randn(2, samples),
        )  # fmt: skip
        before = [x.clone() for x in (flat, *columns)]
        results = [
            epoch(flat, torch.zeros_like(flat), torch.zeros_like(flat), torch.ones(2, 2), *columns) for _ in range(2)
        ]
        assert all(map(torch.equal, before, (flat, *columns)))
        assert all(map(torch.equal, results[0][2], results[1][2]))


COUNTING = """
import torch
calls = 0
def counted(logp, old_logp, advantages, *, clip_coef):
    global calls
    calls += 1
    return -(torch.exp(logp - old_logp) * advantages) * calls

def detached_on_many(logp, old_logp, advantages, *, clip_coef):
    ratio = torch.exp(logp - old_logp)
    return -((ratio if len(logp) < 20 else ratio.detach()) * advantages)

def single(logp, old_logp, advantages, *, clip_coef):
    return -(torch.exp(logp - old_logp) * advantages).float()
"""


@pytest.mark.parametrize(
    ("loss", "error", "words"),
    [
        ("detached_on_many", RunFailed, "has no gradient"),
        ("single", RunFailed, "returned torch.float32 for inputs of torch.float64"),
    ],
)
def test_what_autograd_refuses_is_not_trained_compiled(tmp_path, monkeypatch, loss, error, words):
    (tmp_path / "mine.py").write_text(COUNTING)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    with pytest.raises(error, match=words):
        train(load([*QUICK, "precision=fp64", f"loss={tmp_path / 'mine.py'}:{loss}"]))


@pytest.mark.slow
def test_a_loss_that_is_another_in_every_epoch_is_refused_in_one_line(tmp_path):
    (tmp_path / "mine.py").write_text(COUNTING)
    with pytest.raises(RunFailed, match=r"\(the loss is another in every epoch, as by a counter of its own\); use"):
        train(load([*QUICK, f"loss={tmp_path / 'mine.py'}:counted"]))
