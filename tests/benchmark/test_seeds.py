"""Many seeds: what a paired experiment costs, and what stacking would gain at most."""

import sys

import pandas as pd
import pytest
import torch

from rlloss.benchmark import seeds, stacking
from rlloss.benchmark.processes import measured
from rlloss.cli import main
from rlloss.losses import LOSSES


def test_a_commands_memory_is_that_of_its_largest_process(tmp_path):
    grown = "x = bytearray({} << 20); x[::4096] = b'x' * len(x[::4096])"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grown.format(150)!r}], check=True)"
    small, large, parent = (
        measured([sys.executable, "-c", code], tmp_path).megabytes
        for code in (grown.format(1), grown.format(150), child)
    )
    assert small + 100 < large < small + 200
    assert small + 100 < parent < small + 200


def test_a_command_that_fails_is_not_timed(tmp_path):
    with pytest.raises(Exception, match="exit status 3"):
        measured([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)


@pytest.mark.parametrize("s", [1, 3])
def test_what_is_stacked_is_the_step_of_every_seed(s):
    """Its gradients are those that autograd has of the same losses, seed by seed, clipped; and all go into Adam."""
    stacked = stacking.Stacked(s)
    stacked.old_logp *= 0.5  # some ratios clipped, some not
    stacked.A[:, ::2] *= -1
    stacked.old_values[:, ::3] *= -1
    exp_avg = stacked.exp_avg.clone()
    with torch.no_grad():
        stacked.step()
    for seed in range(s):
        layers = [[part[seed + k * s] for part in layer] for layer in stacked.hidden for k in (0, 1)]
        layers += [[part[seed] for part in layer] for layer in stacked.last]
        leaves = [part.clone().requires_grad_() for layer in layers for part in layer]
        pairs = list(zip(leaves[::2], leaves[1::2], strict=True))
        outputs, values = (through(pairs[k::2], stacked.obs[seed]) for k in (0, 1))
        log_probs = torch.log_softmax(outputs, -1)
        logp, values = log_probs.gather(-1, stacked.actions[seed]).squeeze(-1), values.squeeze(-1)
        loss = LOSSES["ppo_clip"](logp, stacked.old_logp[seed], stacked.A[seed], clip_coef=0.2).mean()
        old, returns = stacked.old_values[seed], stacked.returns[seed]
        errors = torch.max((values - returns) ** 2, (old + (values - old).clamp(-0.2, 0.2) - returns) ** 2)
        total = loss + 0.01 * (log_probs.exp() * log_probs).sum(-1).mean() + 0.5 * (0.5 * errors).mean()
        gradient = torch.cat([part.flatten() for part in torch.autograd.grad(total, leaves)])
        gradient *= (0.5 / (gradient.norm() + 1e-6)).clamp(max=1.0)
        torch.testing.assert_close(stacked.gradient[seed], gradient, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(stacked.exp_avg, 0.9 * exp_avg + 0.1 * stacked.gradient)


def through(tower, x):
    for i, (weight, bias) in enumerate(tower):
        x = (torch.tanh(x) if i else x) @ weight.T + bias
    return x


@pytest.mark.slow
def test_a_paired_experiment_is_timed_on_one_worker_and_on_two(tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "SEEDS", (1, 2))
    out = tmp_path / "seeds.csv"
    assert main(["benchmark", "--of", "seeds", "--rounds", "1", "--timesteps", "1024", "-o", str(out)]) == 0
    table = pd.read_csv(out)
    assert table["runs"].tolist() == [2, 2, 4, 4]
    assert (table["MB"] > 100).all()
    assert (table["a run's own seconds"] < table["seconds, median"]).all()


@pytest.mark.slow
def test_a_bound_for_stacking_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(stacking, "STACKED", (1, 8))
    assert main(["benchmark", "--of", "stacking", "--rounds", "1", "-o", str(tmp_path / "stacking.csv")]) == 0
    table = pd.read_csv(tmp_path / "stacking.csv")
    assert table["seeds"].tolist() == [1, 8]
    assert (table[["environments", "rest", "update", "actor"]] > 0).to_numpy().all()
    assert (table[["environments", "rest"]].sum(axis=1) < table["by itself"]).all(), "they are parts of it"
