"""Each cause is planted in one of two trainings; ``rlloss bisect`` must name it, the step and the tensor."""

import json
import re

import pytest
import torch

from rlloss.bisect.bisect import bisect
from rlloss.cli.main import main
from rlloss.config.schema import Config
from rlloss.runs import RunFolder
from tests.bisect import trainings
from tests.bisect.trainings import train

ROUNDING = 0  # at the step where this machine's roundings are the first that differ

WATCHED = {  # cause -> the options of both trainings, the step at which they part, the tensor, what the cause must say
    "textbook order": ({"loss": trainings.matched}, {"loss": trainings.textbook}, ROUNDING, "0.weight",
                       r"rounding: the gradient of logp .* is the same product, multiplied in another order"),
    "order of gradients": ({"loss": trainings.with_kl, "at": 1}, {"loss": trainings.weighted_with_kl, "at": 1}, 1,
                           "0.weight", r"rounding: logp .* gets 3 gradients, which autograd adds in another order"),
    "accumulation order": ({}, {"fault": "accumulation"}, 6, "0.weight",
                           r"another order of accumulation: the backward passes of a are those of b in the order \[3"),
    "an ulp": ({}, {"fault": "an ulp"}, 6, "0.weight",
               r"something else than the optimiser changed 0.weight, before step 6"),
    "scaler skips": ({"scaled": True}, {"scaled": True, "fault": "overflow"}, 6, "0.weight", r"b skips step 6"),
    "two-sided mask": ({}, {"loss": trainings.two_sided}, 6, "0.weight",
                       r"b has no gradient for 8 of 48 .* ratio is 1 below 0\.80\d+ or 7 above 1\.1\d+"),
    "minibatch order": ({}, {"fault": "minibatch order"}, 6, "0.weight", r"the same samples in another order"),
    "learning rate": ({}, {"fault": "learning rate"}, 6, "0.weight", r"another learning rate from step 6 on: 0.01"),
    "weight decay": ({}, {"fault": "weight decay"}, 6, "0.weight",
                     r"other options of an optimiser from step 6 on: weight_decay 0"),
    "zero_grad": ({}, {"fault": "zero_grad"}, 6, "0.weight", r"b adds its gradient to one .* zero_grad\(\) is missing"),
    "mean of means": ({}, {"fault": "mean of means"}, 6, "0.weight",
                      r"another normaliser in each .* times 2, 0.666667; a mean of means"),
    "one backward pass": ({}, {"fault": "one pass"}, 6, "0.weight",
                          r"another accumulation: 3 \| 1 backward passes .* but for rounding, or a term that small"),
    "frozen": ({}, {"fault": "frozen"}, 6, "0.weight", r"b has no gradient for 0.bias and 1 more, for which a has one"),
    "a detach lost": ({"loss": trainings.detached, "at": 1}, {"loss": trainings.attached, "at": 1}, 1, "0.weight",
                      r"b has a gradient more, through sub at .* a detach\(\) is missing"),
    "a clamp on the value": ({"loss": trainings.unclamped, "at": 1}, {"loss": trainings.clamped, "at": 1}, 1,
                             "0.weight", r"b has no gradient for 24 of 48 .* cut by clamp at .* loss.clamp\(-1.0, 1.0"),
    "not a number": ({}, {"loss": trainings.overflowing}, 6, "0.weight",
                     r"b has numbers that are not finite: log made the first, of finite ones, at .*torch.log"),
    "fused": ({}, {"fused": True}, ROUNDING, "0.weight",
              r"with equal gradients, after .* recorded: another fused of optimiser 0: False \| True"),
}  # fmt: skip


FAST = ("weight decay", "order of gradients", "an ulp", "two-sided mask", "zero_grad", "early stop")


def each(causes):
    return [pytest.param(cause, marks=[pytest.mark.slow] * (cause not in FAST)) for cause in causes]


@pytest.mark.parametrize("cause", each(WATCHED))
def test_a_planted_cause_is_named_with_its_step_and_tensor(tmp_path, cause):
    ours, theirs, step, tensor, words = WATCHED[cause]
    for name, options in (("a", ours), ("b", theirs)):
        train(tmp_path / name, **options)
    a, b = (RunFolder(tmp_path / name) for name in "ab")
    found = bisect(a, b)
    step = step or 1 + int((a.digests != b.digests).argmax())
    assert (found.step, found.tensor.partition(" ")[0]) == (step, tensor)
    if not found.decided:
        assert found.remedy == f"watch both with trace={step}, which records each operation of that step"
        for name, options in (("a", ours), ("b", theirs)):
            train(tmp_path / name, trace=step, overwrite=True, **options)
        found = bisect(*(RunFolder(tmp_path / name) for name in "ab"))
    assert found.decided
    assert re.search(words, found.cause), found.cause
    back = bisect(b, a) if found.operation == "" else None
    assert back is None or back.step == step


@pytest.mark.parametrize(("loss", "other"), [("ppo", "matched"), ("detached", "detached")])
def test_of_trainings_that_are_one_none_is_found(tmp_path, capsys, loss, other):
    """The negative control: other formulations, the same bits, and so no cause."""
    at = 1 if loss == "detached" else 6
    train(tmp_path / "a", loss=getattr(trainings, loss), at=at, trace=6)
    train(tmp_path / "b", loss=getattr(trainings, other), at=at, trace=6)
    assert main(["bisect", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out == "no difference in 20 optimiser steps\n"


def test_listening_changes_no_bit(tmp_path):
    for step in (0, 1, 5):
        train(tmp_path / f"{step}", trace=step)
    digests = [RunFolder(tmp_path / f"{step}").digests.tobytes() for step in (0, 1, 5)]
    assert digests[0] == digests[1] == digests[2]


def test_a_trace_of_another_step_decides_nothing(tmp_path):
    train(tmp_path / "a", trace=3)
    train(tmp_path / "b", trace=3, fault="zero_grad")
    found = bisect(*(RunFolder(tmp_path / name) for name in "ab"))
    assert (found.step, found.decided) == (6, False)


def test_another_initialisation_comes_before_all_else(tmp_path, monkeypatch):
    train(tmp_path / "a")
    monkeypatch.setattr(torch, "manual_seed", lambda seed, before=torch.manual_seed: before(seed + 1))
    train(tmp_path / "b", fused=True)
    found = bisect(*(RunFolder(tmp_path / name) for name in "ab"))
    assert (found.step, found.when, found.cause) == (0, "before", "another initialisation")
    assert found.tensor == "0.weight (4 of 4)"


def test_one_that_ends_early_is_said_to(tmp_path):
    train(tmp_path / "a", steps=9)
    train(tmp_path / "b", steps=12)
    found = bisect(*(RunFolder(tmp_path / name) for name in "ab"))
    assert (found.step, found.cause) == (10, "equal for 9 optimiser steps, then one ended: 9 and 12 steps")


def test_another_version_and_thread_count_are_read_from_the_record(tmp_path, monkeypatch):
    train(tmp_path / "a")
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        train(tmp_path / "b", loss=trainings.textbook)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(torch, "__version__", "2.12.0")
    train(tmp_path / "c", loss=trainings.textbook)
    a, b, c = (RunFolder(tmp_path / name) for name in "abc")
    assert f"torch_threads {threads} | {threads + 1}" in bisect(a, b).cause
    assert re.search(r"torch 2\.13\.0\S* \| 2\.12\.0", bisect(a, c).cause)


OURS = {  # cause -> overrides of both, the step, what the cause must say
    "textbook order": (("num_steps=30", "loss=reinforce"), ("num_steps=30", "loss=reinforce_textbook"),
                       r"rounding: the gradient of .* is the same product, multiplied in another order"),
    "two-sided mask": (("loss=ppo_clip",), ("loss=two_sided_mask",), r"b has no gradient for \d+ of \d+ numbers"),
    "a detach lost": (("loss=reinforce",), ("loss=reinforce_undetached",),
                      r"b has a gradient more, through sub at .* a detach\(\) is missing"),
    "plateau": (("loss=ppo_clip", "schedule=plateau", "schedule.monitor=policy_loss", "schedule.patience=0"),
                ("loss=reinforce", "schedule=plateau", "schedule.monitor=policy_loss", "schedule.patience=0"),
                r"learning rate.*: plateau on policy_loss, which was"),
    "early stop": (("loss=ppo_clip", "stop=no_improvement", "stop.monitor=policy_loss", "stop.patience=1"),
                   ("loss=reinforce", "stop=no_improvement", "stop.monitor=policy_loss", "stop.patience=1"),
                   r"stop.*: no_improvement on policy_loss, which was"),
    "another config": (("loss=ppo_clip", "gae_lambda=0.9"), ("loss=reinforce", "gae_lambda=0.8"),
                       r"another config: gae_lambda \(0.9 \| 0.8\)"),
}  # fmt: skip


@pytest.mark.parametrize("cause", each(OURS))
def test_a_cause_in_our_own_runs_is_named(make_run, cause):
    ours, theirs, words = OURS[cause]
    a, b = make_run(*ours), make_run(*theirs)
    found = bisect(a, b)
    assert found.decided
    assert re.search(words, found.cause), found.cause


def test_a_cause_in_a_later_iteration_is_named(make_run):
    """What comes before its iteration is executed again as it was, by hand; the iteration itself by autograd."""
    later = ("clip_coef=0.4", "total_timesteps=1200")
    found = bisect(make_run("loss=ppo_clip", *later), make_run("loss=two_sided_mask", *later))
    assert found.step > Config().num_minibatches * Config().update_epochs
    assert re.search(r"b has no gradient for \d+ of \d+ numbers", found.cause), found.cause


def test_twins_of_ours_have_no_cause(make_run, capsys):
    a, b = make_run("loss=ppo_clip"), make_run("loss=reinforce")
    assert main(["bisect", str(a.path), str(b.path)]) == 0
    assert capsys.readouterr().out == f"no difference in {len(a.digests)} optimiser steps\n"


def test_the_finding_is_for_programs_too_and_a_folder_that_is_none_is_refused(make_run, capsys, tmp_path):
    a, b = make_run("num_steps=30", "loss=reinforce"), make_run("num_steps=30", "loss=reinforce_textbook")
    assert main(["bisect", "--json", str(a.path), str(b.path)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["differs"]
    assert found["evidence"][1].endswith("1 ulp apart")
    assert main(["bisect", str(a.path), str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
    train(tmp_path / "watched", steps=2)
    assert main(["bisect", str(a.path), str(tmp_path / "watched")]) == 2
    assert "one is a run of rlloss, the other a record of rlloss.watch" in capsys.readouterr().err


def test_an_environment_with_another_seed_is_named(make_run):
    """It draws from NumPy's global generator, which its seed does not set."""
    line = ("env.id=tests.examples.environments:Line-v0", "env.kwargs.fault='global generator'")
    found = bisect(make_run(*line, "loss=ppo_clip"), make_run(*line, "loss=reinforce"))
    assert "returned other observations in iteration 1" in found.cause
