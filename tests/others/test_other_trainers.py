"""Stable-Baselines3 and TRL, watched: the same bits twice, the forms that are one, and faults found where they are."""

import importlib.util
import json
import subprocess
import sys

import pytest

from rlloss.bisect.bisect import bisect
from rlloss.errors import ConfigError
from rlloss.others.exchange import exchanged
from rlloss.runs import RunFolder
from rlloss.verify import compare_runs
from tests.helpers import ROOT
from tests.others.trainings import AT

NEEDED = {"sb3": ("stable_baselines3",), "trl": ("trl", "transformers", "datasets")}
EACH = [
    pytest.param(module, marks=pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in names),
        reason=f"{names[0]} is not installed: pip install 'rlloss[trainers]'",
    ))
    for module, names in NEEDED.items()
]  # fmt: skip
FIRST = {"sb3": "mlp_extractor.policy_net.0.weight", "trl": "model.embed_tokens.weight"}
INNER = {"sb3": "action_net.weight", "trl": "model.layers.1.mlp.down_proj.weight"}
SHORT = {"sb3": {"timesteps": 500, "num_steps": 256}, "trl": {"steps": 12}}
pytestmark = pytest.mark.slow


def trained(home, module, trainings):
    """In one fresh process: [loss, settings] by name."""
    work = [[module, str(home / name), loss, settings] for name, (loss, settings) in trainings.items()]
    command = [sys.executable, "-m", "tests.others.trainings", json.dumps(work)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: RunFolder(home / name) for name in trainings}


@pytest.mark.parametrize("module", EACH)
def test_the_same_training_in_two_processes_has_the_same_bits_and_a_fault_is_found(tmp_path, module):
    again = {"b": ("ppo", SHORT[module])}
    faults = {
        "gradient": ("ppo", {**SHORT[module], "fault": ["gradient", INNER[module]]}),
        "weight": ("ppo", {**SHORT[module], "fault": ["weight", INNER[module]]}),
    }
    runs = trained(tmp_path, module, {"a": ("ppo", SHORT[module])}) | trained(tmp_path, module, again | faults)
    verdict = compare_runs(runs["a"], runs["b"])
    assert (verdict.verdict, verdict.steps >= 12) == ("IDENTICAL", True), verdict.reason
    found = {name: compare_runs(runs["a"], runs[name]).first_tensors for name in faults}
    assert [(f.step, f.when, f.names[0], len(f.names)) for f in found.values()] == [
        (AT, "in", INNER[module], 1),
        (AT, "before", INNER[module], 1),
    ]
    assert bisect(runs["a"], runs["weight"]).cause == (
        f"something else than the optimiser changed {INNER[module]}, before step {AT}"
    )


@pytest.mark.parametrize("module", EACH[:1])
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_stable_baselines3_trains_alike_with_reinforce_and_parts_with_the_textbooks_order(tmp_path, module, env):
    settings = [
        {"env": env, "minibatch": minibatch, "num_steps": steps, "ent_coef": entropy}
        for minibatch, steps, entropy in ((64, 1024, 0.0), (60, 960, 0.01), (100, 500, 0.01))
    ]
    losses = ("ppo", "reinforce", "reinforce_textbook", "two_sided_mask")
    runs = trained(tmp_path, module, {f"{s['minibatch']} {loss}": (loss, s) for s in settings for loss in losses})
    for setting in settings:
        ours, one, textbook, sided = (runs[f"{setting['minibatch']} {loss}"] for loss in losses)
        assert compare_runs(ours, one).verdict == "IDENTICAL"
        power_of_two = setting["minibatch"] == 64  # by which the mean divides without rounding
        assert compare_runs(ours, textbook).first_difference == (None if power_of_two else 2)
        assert compare_runs(ours, sided).first_difference > 20


@pytest.mark.parametrize("module", EACH[1:])
def test_trl_trains_alike_with_reinforce_whatever_the_mean_and_the_accumulation(tmp_path, module):
    settings = [
        {"loss_type": loss_type, "accumulation": accumulation}
        for loss_type in ("grpo", "bnpo", "dr_grpo", "dapo")
        for accumulation in (1, 2)
    ]
    losses = ("ppo", "reinforce", "reinforce_logratio", "reinforce_textbook", "two_sided_mask")
    runs = trained(tmp_path, module, {f"{i} {loss}": (loss, s) for i, s in enumerate(settings) for loss in losses})
    for i in range(len(settings)):
        ours, *others = (runs[f"{i} {loss}"] for loss in losses)
        assert [compare_runs(ours, other).first_difference for other in others[:3]] == [None, None, 2]
        assert compare_runs(ours, others[3]).first_difference in (2, 3)
        assert len(ours.digests) == 24


@pytest.mark.parametrize("module", EACH[1:])
def test_300_steps_of_trl_are_one_too(tmp_path, module):
    settings = [
        {"loss_type": loss_type, "accumulation": accumulation, "steps": 300, "iterations": 4}
        for loss_type in ("grpo", "bnpo", "dr_grpo", "dapo")
        for accumulation in (1, 2)
    ]
    runs = trained(
        tmp_path, module, {f"{i} {loss}": (loss, s) for i, s in enumerate(settings) for loss in ("ppo", "reinforce")}
    )
    for i in range(len(settings)):
        verdict = compare_runs(runs[f"{i} ppo"], runs[f"{i} reinforce"])
        assert (verdict.verdict, verdict.steps) == ("IDENTICAL", 300), verdict.reason


@pytest.mark.parametrize("module", EACH[1:])
def test_with_a_kl_term_the_order_of_gradients_parts_the_forms_and_bisect_says_so(tmp_path, module):
    settings = {"beta": 0.04, "steps": 12, "watched": {"trace": 2}}
    biased = {**settings, "bias_correction": True}
    losses = ("ppo", "reinforce", "reinforce_logratio")
    runs = trained(
        tmp_path, module,
        {loss: (loss, settings) for loss in losses} | {f"{loss} biased": (loss, biased) for loss in losses},
    )  # fmt: skip
    assert compare_runs(runs["ppo"], runs["reinforce_logratio"]).verdict == "IDENTICAL"
    found = bisect(runs["ppo"], runs["reinforce"])
    assert (found.step, found.decided) == (2, True)
    assert "logps (cat" in found.cause
    assert "gets 3 gradients, which autograd adds in another order" in found.cause
    found = bisect(runs["ppo biased"], runs["reinforce_logratio biased"])
    assert (found.step, found.decided) == (2, True), (
        "one use of the ratio against two, and one number in exact arithmetic"
    )
    assert found.cause.startswith("rounding: the gradient of log_ratio")
    assert found.cause.endswith("is the same sum, made in another order")


def test_a_release_without_the_line_is_refused():
    class Theirs:
        def loss(self, x):
            return x + 1

    assert exchanged(Theirs, "loss", "return x + 1", "return x + more", more=2)().loss(1) == 3
    with pytest.raises(ConfigError, match=r"Theirs.loss has the line 'return x' 0 times"):
        exchanged(Theirs, "loss", "return x", "return 1")
