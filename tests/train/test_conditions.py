"""What may read a loss's value: each condition against PyTorch's own component, replayed from what the run recorded."""

import hashlib
import math

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from rlloss.config import load
from rlloss.config.metrics import MONITORS
from rlloss.errors import ConfigError
from rlloss.losses import samples as losses
from rlloss.runs import RunFolder
from rlloss.train import train
from rlloss.train.checkpoint import unpack
from rlloss.train.conditions import BESTS, STOPS, make_guard, make_schedule
from rlloss.train.precision import PRECISIONS, make_precision
from rlloss.verify import compare_runs

PLATEAU = ("schedule=plateau", "schedule.patience=0", "schedule.factor=0.5")
LBFGS = ("optimizer=lbfgs", "max_grad_norm=inf", "norm_adv=true")


def test_every_monitor_is_a_metric_of_the_run(make_run):
    assert set(MONITORS) <= set(make_run().metrics.columns)


@pytest.mark.parametrize("monitor", ["policy_loss", "total_loss", "episodic_return"])
def test_plateau_is_torchs_scheduler_fed_with_the_named_metric(make_run, monitor):
    run = make_run(*PLATEAU, f"schedule.monitor={monitor}", f"schedule.mode={'max' if 'return' in monitor else 'min'}")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=run.config["learning_rate"])
    replay = ReduceLROnPlateau(optimizer, mode=run.config["schedule.mode"], factor=0.5, patience=0)
    for _, row in run.metrics.iterrows():
        assert row["learning_rate"] == optimizer.param_groups[0]["lr"]
        if not math.isnan(row[monitor]):
            replay.step(row[monitor])
    assert run.metrics["learning_rate"].nunique() > 1, "nothing was decided"
    assert [d.condition for d in run.decisions] == ["plateau"] * len(run.decisions)
    assert run.decisions[0].value == pytest.approx(
        run.metrics.set_index("iteration")[monitor][run.decisions[0].iteration]
    )


def test_plateau_on_the_return_cannot_tell_the_formulations_apart(make_run):
    settings = (*PLATEAU, "schedule.monitor=episodic_return", "schedule.mode=max")
    a, b = make_run(*settings), make_run(*settings, "loss=reinforce")
    assert a.decisions == b.decisions != []
    assert compare_runs(a, b).verdict == "IDENTICAL"


def test_plateau_on_the_policy_loss_tells_them_apart_and_verify_names_it(make_run):
    a, b = make_run(*PLATEAU), make_run(*PLATEAU, "loss=reinforce")
    verdict = compare_runs(a, b)
    assert verdict.verdict in ("ROUNDING", "DIVERGED")
    first = min(set(a.decisions) ^ set(b.decisions), key=lambda d: d.iteration)
    assert verdict.cause.startswith(
        f"learning rate 0.003 -> 0.0015, iteration {first.iteration}: plateau on policy_loss"
    )
    for run in (a, b):
        value = run.metrics.set_index("iteration")["policy_loss"][first.iteration]
        assert f"{value:.6g} for {run.loss}" in verdict.cause


def test_a_decision_after_the_first_difference_is_no_cause(make_run):
    a, b = make_run(*PLATEAU), make_run(*PLATEAU, "loss=reinforce_undetached")
    assert a.decisions != b.decisions
    verdict = compare_runs(a, b)
    assert verdict.first_difference == 1
    assert verdict.cause == ""


@pytest.mark.parametrize(("mode", "threshold"), [("min", 0.0), ("max", 0.01)])
def test_threshold_stops_after_the_first_iteration_beyond_it(make_run, mode, threshold):
    metric = make_run().metrics["ppo_clip_loss"]
    beyond = metric <= threshold if mode == "min" else metric >= threshold
    stop = ("stop=threshold", "stop.monitor=ppo_clip_loss", f"stop.mode={mode}", f"stop.threshold={threshold}")
    stopped = make_run(*stop)
    expected = int(np.argmax(beyond)) + 1 if beyond.any() else len(metric)
    assert len(stopped.metrics) == expected
    assert stopped.status == "finished"
    assert stopped.info["final_digest"] == make_run().digests[16 * expected - 1].tobytes().hex()
    assert len(stopped.decisions) == bool(beyond.any())


def test_runs_that_stop_at_different_times_are_not_identical(make_run):
    stop = ("stop=threshold", "stop.threshold=0")
    a, b = make_run(*stop), make_run(*stop, "loss=reinforce")
    assert len(a.metrics) != len(b.metrics), "this seed stops one of them earlier"
    verdict = compare_runs(a, b)
    assert verdict.verdict == "DIVERGED"
    assert "stop: at most 0, iteration 1: threshold on policy_loss" in verdict.cause
    assert verdict.reason.startswith("identical for 16 optimiser steps, then one stopped")


@pytest.mark.parametrize(
    ("mode", "values", "stops_at"),
    [
        ("min", [3, 2, 1, 1, 1, 1, 0], 6),
        ("max", [1, 2, 3, 2.9, math.nan, 3, 3], 7),
        ("min", [3, 2, 1, 0, -1], None),
        ("max", [0, 0.05, 0.09, 0.11, 0.12], None),
    ],
)
def test_no_improvement_waits_for_patience_and_min_delta(mode, values, stops_at):
    delta = 0.1 if values[1] == 0.05 else 0.0
    config = load(["stop=no_improvement", "stop.monitor=episodic_return", f"stop.mode={mode}", "stop.patience=2",
                   f"stop.min_delta={delta}"])  # fmt: skip
    stop = STOPS["no_improvement"](config)
    decided = [stop.after({"iteration": i, "episodic_return": value}) for i, value in enumerate(values, 1)]
    first = next((decision.iteration for decision in decided if decision is not None), None)
    assert first == stops_at


def test_a_loss_that_is_never_a_number_is_no_improvement():
    """As of torch's ReduceLROnPlateau."""
    never, last = math.nan, [1.0, math.nan, math.nan, math.nan, 0.5]
    for values, stops_at in (([never] * 4, 3), (last, 4), ([never, 1.0, 1.0], None)):
        stop = STOPS["no_improvement"](load(["stop=no_improvement", "stop.monitor=total_loss", "stop.patience=2"]))
        decided = [stop.after({"iteration": i, "total_loss": value}) for i, value in enumerate(values, 1)]
        assert next((decision.iteration for decision in decided if decision is not None), None) == stops_at


def test_the_best_checkpoint_is_the_parameters_after_the_best_iteration(make_run):
    run = make_run("best=metric", "best.monitor=total_loss")
    best = unpack(run.path / "best.safetensors")
    iteration = int(run.metrics["total_loss"].argmin()) + 1
    assert best["metrics"]["iteration"] == iteration == run.decisions[-1].iteration
    digest = hashlib.sha256(best["parameters"].numpy().data).digest()
    assert digest == run.digests[16 * iteration - 1].tobytes()
    assert run.info["final_digest"] == make_run().info["final_digest"], "keeping changes nothing"
    assert BESTS["none"](load()).after({"iteration": 1}) is None


def test_the_guard_skips_the_step_and_nothing_else(tmp_path, monkeypatch):
    calls = []

    def sometimes_infinite(logp, old_logp, advantages, *, clip_coef):
        calls.append(len(calls))
        value = losses.ppo_clip(logp, old_logp, advantages, clip_coef=clip_coef)
        return value + (math.inf if len(calls) in (5, 6) else 0.0)

    monkeypatch.setitem(losses.LOSSES, "reinforce_mask", sometimes_infinite)
    config = load(["num_envs=2", "num_steps=50", "total_timesteps=200", "guard=finite", "guard.monitor=policy_loss",
                   "loss=reinforce_mask"])  # fmt: skip
    train(config, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    same = run.digests[1:] == run.digests[:-1]
    assert np.flatnonzero(same).tolist() == [3, 4], "the fifth and sixth step left the parameters as they were"
    assert run.metrics["skipped_steps"].tolist() == [2, 0]
    assert run.decisions[0].decision == "skip 2 optimiser steps"
    assert np.isfinite(run.snapshot(run.snapshot_steps[-1])).all()
    infinite = torch.tensor(math.inf)
    assert not make_guard(config)(infinite, torch.zeros(()))
    assert make_guard(config)(torch.zeros(()), infinite), "it reads the policy loss"
    assert make_guard(load())(infinite, infinite)


def failing_at(calls_that_fail, formulation):
    calls = []

    def loss(logp, old_logp, advantages, *, clip_coef):
        calls.append(len(calls) + 1)
        value = losses.LOSSES[formulation](logp, old_logp, advantages, clip_coef=clip_coef)
        return value + (math.inf if len(calls) in calls_that_fail else 0.0)

    return loss


@pytest.mark.parametrize("first", [(1,), (5,), (2, 5)])
def test_the_guard_is_the_cause_only_if_its_step_is_the_first_that_differs(tmp_path, monkeypatch, make_run, first):
    shape = ["num_envs=2", "num_steps=50", "total_timesteps=200", "learning_rate=0.001"]
    shape += ["guard=finite", "guard.monitor=policy_loss"]
    plain = make_run(*shape)

    def against(formulation):
        monkeypatch.setitem(losses.LOSSES, "reinforce_mask", failing_at(first, formulation))
        folder = tmp_path / formulation
        train(load([*shape, "loss=reinforce_mask"]), folder)
        return compare_runs(plain, RunFolder(folder))

    same, other = against("reinforce"), against("reinforce_undetached")
    assert same.first_difference == first[0]
    assert same.cause.startswith(f"skip {len(first)} optimiser steps, iteration 1: guard on policy_loss")
    if first[0] > 1:
        assert other.first_difference == 1
        assert other.cause == "", "they had parted before the guard skipped a step"


def test_who_skipped_a_step_is_told_apart(tmp_path, monkeypatch):
    """GradScaler's first steps overflow; the guard forbids the sixth."""
    monkeypatch.setitem(losses.LOSSES, "reinforce_mask", failing_at((6,), "reinforce"))
    shape = ("num_envs=2", "num_steps=50", "total_timesteps=200", "loss=reinforce_mask", "precision=fp16_scaled")
    train(load([*shape, "guard=finite", "guard.monitor=policy_loss"]), tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert [d[1:3] for d in run.decisions][:2] == [("guard", "policy_loss"), ("grad_scaler", "grad_norm")]
    assert run.metrics["guarded_steps"].tolist() == [1, 0]
    assert run.metrics["skipped_steps"].iloc[0] > 1


def test_keeping_a_checkpoint_is_no_cause_of_other_parameters(make_run):
    plateau = ("schedule=plateau", "schedule.patience=0", "schedule.factor=0.5", "total_timesteps=1000")
    pair = [make_run(*plateau, "best=metric", "learning_rate=0.003", *loss) for loss in ((), ("loss=reinforce",))]
    kept = [[d.iteration for d in run.decisions if d.condition == "best"] for run in pair]
    verdict = compare_runs(*pair)
    assert kept[0] != kept[1]
    assert verdict.verdict != "IDENTICAL"
    assert verdict.cause.startswith("learning rate")


def test_two_stops_at_one_iteration_are_one_decision():
    """Whatever the values were: the twins of a formulation read others, and decide the same."""

    def decided(*values):
        stop = STOPS["no_improvement"](load(["stop=no_improvement", "stop.patience=1"]))
        return [stop.after({"iteration": i, "policy_loss": value}) for i, value in enumerate(values)][-1]

    one, other = decided(0.5, 0.6, 0.7), decided(-3.0, -2.0, -1.0)
    assert one[:3] == other[:3]
    assert one.decision == other.decision == "stop: no better for 2 iterations"


def test_a_constant_ends_a_relative_plateau_on_a_falling_sequence():
    """science.md: on one falling sequence the final learning rate was 1.0 without the constant, 1e-8 with 5."""

    def final(constant, mode):
        config = load(["schedule=plateau", f"schedule.threshold_mode={mode}", "schedule.threshold=1e-4"])
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        schedule = make_schedule(config, optimizer)
        for i in range(600):
            schedule.after({"iteration": i, "policy_loss": constant + 0.1 * 0.98**i})
        return optimizer.param_groups[0]["lr"]

    assert final(0, "rel") == 1.0
    assert final(5, "rel") == pytest.approx(1e-8)
    assert final(0, "abs") == final(5, "abs"), "an absolute threshold sees differences alone"


def test_an_offset_moves_the_value_and_not_a_bit_of_the_parameters(make_run):
    plain, moved = make_run(), make_run("loss.offset=5")
    assert np.array_equal(plain.digests, moved.digests)
    assert np.allclose(moved.metrics["policy_loss"] - plain.metrics["policy_loss"], 5, atol=1e-5)
    assert compare_runs(plain, moved).verdict == "IDENTICAL", "an offset is part of the loss: the runs are twins"


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_run_in_every_precision(make_run, name):
    run = make_run(f"precision={name}")
    precision = make_precision(name)
    saved = unpack(run.path / "checkpoint.safetensors")["parameters"]
    assert saved.dtype == precision.dtype
    assert run.status == "finished"
    last = run.snapshot(run.snapshot_steps[-1])
    assert np.array_equal(last, saved.float().numpy() if name == "bf16" else saved.numpy())
    raw = saved.view(torch.int16) if name == "bf16" else saved
    assert run.info["final_digest"] == hashlib.sha256(raw.numpy().data).hexdigest()
    assert (run.info["final_digest"] == make_run().info["final_digest"]) is (name == "fp32")


@pytest.mark.parametrize("name", ["bf16_autocast", "fp16_scaled", "bf16"])
def test_the_formulations_stay_identical_in(make_run, name):
    pair = [make_run(f"precision={name}", *loss) for loss in ((), ("loss=reinforce",))]
    assert compare_runs(*pair).verdict == "IDENTICAL"


def test_the_scaler_skips_what_overflows_and_takes_its_scale_back(make_run):
    """GradScaler starts at 65536: here the first steps overflow, are skipped, and the scale is halved each time."""
    scaled, plain = make_run("precision=fp16_scaled"), make_run("precision=fp16_autocast")
    skipped = int(scaled.metrics["skipped_steps"].sum())
    assert skipped > 0 == plain.metrics["skipped_steps"].sum()
    assert scaled.decisions[0][1:3] == ("grad_scaler", "grad_norm")
    still = int((scaled.digests[1:] == scaled.digests[:-1]).sum())
    assert still in (skipped, skipped - 1), "parameters stand still; the first step has no predecessor here"
    last = [run.metrics["grad_norm"].iloc[-1] for run in (scaled, plain)]
    assert 0.2 < last[0] / last[1] < 5, "measured after unscaling, not thousands of times too large"


@pytest.mark.slow
def test_lbfgs_reads_the_value_through_its_tolerance_and_its_line_search(make_run):
    """science.md has L-BFGS without a line search equal; torch's also stops when the loss changes too little."""
    exact = ("optimizer.tolerance_change=0", "learning_rate=0.1")
    blind = [make_run(*LBFGS, *exact, *loss) for loss in ((), ("loss=reinforce",))]
    assert compare_runs(*blind).verdict == "IDENTICAL"
    assert (blind[0].metrics["evaluations"] > 16).all(), "several evaluations a step"
    search = [
        make_run(*LBFGS, "optimizer.line_search_fn=strong_wolfe", *exact, *loss) for loss in ((), ("loss=reinforce",))
    ]
    verdict = compare_runs(*search)
    assert verdict.verdict == "DIVERGED"
    assert "in iteration 1: the optimiser" in verdict.cause


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule=plateau schedule.monitor=loss", "schedule.monitor=loss: unknown; use one of policy_loss"),
        ("stop=threshold stop.mode=low", "stop.mode=low: unknown; use one of min, max"),
        (
            "guard=finite guard.monitor=entropy_loss",
            "guard.monitor=entropy_loss: unknown; use one of policy_loss, total_loss",
        ),
        ("schedule=plateau schedule.factor=2", "schedule.factor=2.0: must lie between 0 and 1"),
        ("schedule=plateau schedule.threshold_mode=x", "schedule.threshold_mode=x: unknown; use one of rel, abs"),
        ("stop=no_improvement stop.patience=-1", "stop.patience=-1: must be 0 or greater"),
        ("optimizer=lbfgs optimizer.line_search_fn=armijo", "line_search_fn=armijo: use strong_wolfe or null"),
        ("loss.offset=inf", "loss.offset=inf: must be a finite number"),
        ("schedule.patience=3", "schedule.patience"),
        ("precision=fp8", "precision=fp8: no such precision"),
        (
            "optimizer=lbfgs precision=fp16_scaled",
            "optimizer=lbfgs precision=fp16_scaled: torch's GradScaler takes one",
        ),
        ("precision=fp16_scaled precision.loss_scale=4", "precision.loss_scale=4.0 with precision=fp16_scaled"),
    ],
)
def test_bad_settings_are_named(override, message):
    with pytest.raises(ConfigError) as caught:
        load(override.split())
    assert message in str(caught.value)


def test_unknown_names_are_rejected():
    config = load()
    config.schedule.name = "nothing"
    with pytest.raises(ConfigError, match="schedule=nothing: unknown; use one of constant, linear, plateau"):
        make_schedule(config, torch.optim.SGD([torch.zeros(1)], lr=1.0))
    with pytest.raises(ConfigError, match="precision=half: unknown"):
        make_precision("half")
