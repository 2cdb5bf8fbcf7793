"""Other people's losses: loaded from files and modules, called with care, and complained of in one clear line."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlloss.check import compare
from rlloss.cli import main
from rlloss.errors import LossError
from rlloss.losses import ppo_clip
from rlloss.losses.formulation import resolve
from rlloss.verdicts import Verdict

DIFFERENT, IDENTICAL = Verdict.DIFFERENT, Verdict.IDENTICAL

EXAMPLES = "tests/examples/my_losses.py"
F32 = (torch.float32,)


@pytest.mark.parametrize(
    ("mine", "ours", "verdict"),
    [
        ("group_update", "ppo_clip", IDENTICAL),
        ("sign_forgotten", "ppo_clip", DIFFERENT),
        ("summed", "ppo_clip", DIFFERENT),
        ("minimum_of_ratios", "ppo_clip", DIFFERENT),
        ("token_mean", "dapo", DIFFERENT),
    ],
)
def test_the_examples(mine, ours, verdict):
    assert compare(f"{EXAMPLES}:{mine}", ours, dtypes=F32).verdict == verdict


def test_what_is_wrong_with_the_examples_is_said():
    assert compare("ppo_clip", f"{EXAMPLES}:sign_forgotten", dtypes=F32).factor == "-1"
    assert compare("ppo_clip", f"{EXAMPLES}:summed", dtypes=F32).factor == "N"
    regions = compare("ppo_clip", f"{EXAMPLES}:minimum_of_ratios", dtypes=F32).regions
    assert regions == ("A < 0: ratio < 0.8 or ratio > 1.2",)
    assert compare("grpo", f"{EXAMPLES}:token_mean", dtypes=F32).regions == (
        "on-policy, unequal lengths",
        "off-policy, unequal lengths",
    )


def write(tmp_path: Path, body: str, arguments: str = "logp, old_logp, advantages, *, clip_coef") -> str:
    """A file with ``def loss``; the body's lines are indented for it."""
    lines = "\n".join("    " + line for line in body.splitlines())
    (tmp_path / "mine.py").write_text(f"import torch\n\ndef loss({arguments}):\n{lines}\n")
    return f"{tmp_path / 'mine.py'}:loss"


SURROGATE = "-torch.exp(logp - old_logp) * advantages"
COMPLAINTS = {
    "an exception": ("x = 1\nx / 0", "mine.py:loss raised ZeroDivisionError: division by zero (mine.py, line 5)"),
    "our own complaint": ("import torch\nreturn logp @ torch.ones(3)", "mine.py:loss raised RuntimeError"),
    "a number": ("return 0.0", "returned float; it must return a tensor"),
    "nothing": ("return None", "returned NoneType; it must return a tensor"),
    "an empty tuple": ("return ()", "returned tuple; it must return a tensor"),
    "broadcasting": (
        f"return ({SURROGATE}).unsqueeze(1) * advantages", "returned shape (64, 64) for inputs of shape (64,)",
    ),
    "integers": ("return logp.long()", "returned torch.int64 for inputs of torch.float64"),
    "a narrower dtype": (f"return ({SURROGATE}).float()", "returned torch.float32 for inputs of torch.float64"),
    "all detached": ("return -logp.detach() * advantages", "mine.py:loss has no gradient"),
    "through NumPy": ("return torch.from_numpy(logp.detach().numpy() * 1)", "mine.py:loss has no gradient"),
    "another leaf": ("w = torch.ones_like(logp).requires_grad_()\nreturn w * advantages", "no gradient with respect"),
    "NaN": ("return logp * torch.log(logp)", "its gradient is nan on an ordinary batch of (64,) float64"),
    "random": ("return logp * torch.rand_like(logp)", "gives another gradient when called again"),
    "in place on the leaf": ("return logp.mul_(2)", "mine.py:loss raised RuntimeError"),
    "in place on what is saved": (
        "y = torch.exp(logp)\nz = y * advantages\ny.add_(1)\nreturn z", "mine.py:loss: autograd raised",
    ),
}  # fmt: skip


@pytest.mark.parametrize("problem", COMPLAINTS)
def test_an_unusable_loss_is_one_clear_line(problem, tmp_path, capsys):
    body, message = COMPLAINTS[problem]
    spec = write(tmp_path, body)
    assert main(["check", "ppo_clip", spec]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message in err
    assert "mine.py:loss" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("logp, old_logp, *, clip_coef", "too many positional arguments"),
        ("logp, old_logp, advantages", "unexpected keyword argument 'clip_coef'"),
        ("logp, old_logp, advantages, values, *, clip_coef", "missing a required argument: 'values'"),
        ("logp, old_logp, advantages, mask, extra, *, clip_coef", "missing a required argument: 'extra'"),
    ],
)
def test_a_wrong_signature_is_named_before_anything_is_called(arguments, message, tmp_path, capsys):
    spec = write(tmp_path, "raise SystemExit('called')", arguments)
    assert main(["check", spec, "ppo_clip"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "a loss takes (logp, old_logp, advantages, " in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.py:loss", "nowhere.py: no such file"),
        ("no.such.module:loss", "importing no.such.module raised ModuleNotFoundError"),
        (f"{EXAMPLES}:nothing", "nothing does not exist in tests/examples/my_losses.py; it has detached_ratio"),
        (f"{EXAMPLES}:torch", "torch is not a function"),
        ("ppo_clp", "did you mean ppo_clip"),
        ("rlloss.losses", "file.py:function"),
    ],
)
def test_a_loss_that_is_not_there(spec, message, capsys):
    assert main(["check", "ppo_clip", spec]) == 2
    err = capsys.readouterr().err
    assert message in err.replace("it has group_update, ", "it has ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("body", ["raise SystemExit(3)", "import nothing_of_the_kind", "1 / 0", "def ("])
def test_a_file_that_does_not_import(body, tmp_path, capsys):
    (tmp_path / "broken.py").write_text(body)
    assert main(["check", "ppo_clip", f"{tmp_path / 'broken.py'}:loss"]) == 2
    err = capsys.readouterr().err
    assert "broken.py raised" in err
    assert len(err.splitlines()) == 1


def test_a_detached_ratio_leaves_no_gradient(capsys):
    assert main(["check", "ppo_clip", f"{EXAMPLES}:detached_ratio"]) == 2
    assert "detached_ratio has no gradient" in capsys.readouterr().err


def test_a_file_may_import_its_neighbour_and_a_module_is_found_from_here(tmp_path):
    (tmp_path / "helper.py").write_text("def ratio(logp, old):\n    return (logp - old).exp()\n")
    body = "from helper import ratio\nreturn -ratio(logp, old_logp) * advantages"
    assert compare("ppo_unclipped", write(tmp_path, body), dtypes=F32).verdict == IDENTICAL
    assert compare("ppo_unclipped", "rlloss.losses:reinforce_unclipped", dtypes=F32).verdict == IDENTICAL
    command = [sys.executable, "-m", "rlloss", "check", "ppo_unclipped", "mine:loss", "--dtype", "float32"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ppo_unclipped and mine:loss: IDENTICAL")


def test_inputs_are_copies_that_a_loss_may_spoil(tmp_path):
    body = f"loss = {SURROGATE}.clone()\nold_logp.zero_()\nadvantages.fill_(9)\nreturn loss.mean()"
    assert compare("ppo_unclipped", write(tmp_path, body), dtypes=F32).verdict == IDENTICAL


def test_a_loss_that_one_sample_makes_nan_is_compared_on_the_others(tmp_path):
    """Advantages normalised inside the loss: as many do, and with one sample there is nothing to divide by."""
    body = "A = (advantages - advantages.mean()) / (advantages.std() + 1e-8)\nreturn -torch.exp(logp - old_logp) * A"
    result = compare("ppo_unclipped", write(tmp_path, body), dtypes=F32)
    assert result.verdict == DIFFERENT
    assert any(", N = 1 " in line for line in result.not_finite)


def test_per_sample_scalar_and_tuple_are_the_same_loss():
    def scalar(*inputs, clip_coef):
        return ppo_clip(*inputs, clip_coef=clip_coef).mean()

    def with_metrics(*inputs, clip_coef):
        return ppo_clip(*inputs, clip_coef=clip_coef), {"clipped": 0.1}, "more"

    for loss in (scalar, with_metrics):
        assert compare(ppo_clip, loss, dtypes=F32).verdict == IDENTICAL


def test_resolve_knows_a_sequence_loss_by_its_mask():
    assert resolve("grpo").sequence
    assert resolve(f"{EXAMPLES}:token_mean").sequence
    assert not resolve("ppo_clip").sequence
    with pytest.raises(LossError, match=r"token_mean is a sequence loss.*ppo_clip is per sample"):
        compare(f"{EXAMPLES}:token_mean", "ppo_clip")
