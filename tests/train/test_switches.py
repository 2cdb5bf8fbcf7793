"""A run's global switches: those of torch.use_deterministic_algorithms, put back afterwards; optimisers are heard."""

import os
import subprocess
import sys

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from rlloss.config import load
from rlloss.train.optimizers import OPTIMIZERS
from rlloss.train.switches import COMPILER_VARIABLE, deterministic
from tests.helpers import ROOT, SHORT, a_few_fast

LATE = """
import sys, torch
from rlloss.config import load
from rlloss.train.switches import deterministic
told = []
with deterministic(load()):
    told.append("torch._inductor.config" in sys.modules)
    import torch._inductor.config as compiler
    told.append(compiler.deterministic)
told.append(compiler.deterministic)
with deterministic(load()):
    told.append(compiler.deterministic)
told.append(compiler.deterministic)
torch.use_deterministic_algorithms(True)
with deterministic(load()):
    told.append(compiler.deterministic)
told += [compiler.deterministic, torch.are_deterministic_algorithms_enabled()]
print(*told)
"""


@pytest.mark.parametrize("mode", ["default", "warn", "error"])
def test_what_was_set_before_is_set_afterwards(mode, monkeypatch):
    monkeypatch.setenv(COMPILER_VARIABLE, "0")
    torch.set_deterministic_debug_mode(mode)
    try:
        before = torch.get_deterministic_debug_mode()
        with deterministic(load()):
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            assert os.environ[COMPILER_VARIABLE] == "1"
        assert torch.get_deterministic_debug_mode() == before
        assert os.environ[COMPILER_VARIABLE] == "0"
    finally:
        torch.set_deterministic_debug_mode("default")


def test_torchs_compiler_is_told_whether_it_is_loaded_before_or_later():
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, check=True)
    loaded, late, afterwards, early, then, within, again, algorithms = done.stdout.split()
    assert (loaded, late, afterwards) == ("False", "True", "False"), "loaded while the switches are set"
    assert (early, then) == ("True", "False"), "loaded before"
    assert (within, again, algorithms) == ("True", "True", "True"), "what the user has set stays"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimiser_that_loads_no_compiler_calls_its_hooks_and_gives_back_its_state(name):
    kind, fixed = OPTIMIZERS[name]
    leaf = torch.nn.Parameter(torch.ones(3))
    optimizer = kind([leaf], lr=0.1, **fixed)
    heard = []
    optimizer.register_step_pre_hook(lambda *_: heard.append("before"))
    everywhere = register_optimizer_step_post_hook(lambda *_: heard.append("after"))

    def closure():
        optimizer.zero_grad()
        loss = leaf.square().sum()
        loss.backward()
        return loss

    try:
        closure()
        loss = optimizer.step(closure)
    finally:
        everywhere.remove()
    assert heard == ["before", "after"]
    assert float(loss.detach()) == 3
    assert float(leaf.detach().abs().max()) < 1
    again = kind([torch.nn.Parameter(torch.ones(3))], lr=0.1, **fixed)
    again.load_state_dict(optimizer.state_dict())
    assert repr(again.state_dict()) == repr(optimizer.state_dict())


SWITCHING = """
import os, numpy, torch
{imported}
def mine(logp, old_logp, advantages, *, clip_coef):
    {called}
    return -(logp - old_logp).exp() * advantages
"""


def trained(home, text, *overrides):
    (home / "mine.py").write_text(SWITCHING.format(**text))
    command = [sys.executable, "-m", "rlloss", "train", "loss=mine.py:mine", *SHORT, *overrides, "run_dir=run"]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=home, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("at", a_few_fast(["later", "imported", "called"]))
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("torch.set_num_threads(2)", "torch.set_num_threads, on which a run depends: it was 1 and is 2; set torch_th"),
        ("torch.set_default_dtype(torch.float64)", "it was torch.float32 and is torch.float64; set precision instead"),
        ("torch.set_flush_denormal(True)", "torch.set_flush_denormal, on which a run depends: it was False and is"),
        ("os.chdir('/')", "calls os.chdir, on which a run depends"),
    ],
)
def test_a_loss_that_sets_what_a_run_depends_on_is_refused(tmp_path, at, line, said):
    """It trained with two threads, and with denormals flushed, under the name of portable numerics."""
    later = f"mine.calls = getattr(mine, 'calls', 0) + 1; mine.calls == 30 and {line}"  # not where it is tried
    text = {"imported": "", "called": later if at == "later" else "pass", at: line}
    done = trained(tmp_path, text)
    assert said in done.stderr.splitlines()[-1], done.stderr
    assert done.returncode == (1 if at == "later" else 2)
    assert (tmp_path / "run").exists() == (at == "later")


@pytest.mark.parametrize("numerics", ["native", "portable"])
def test_a_loss_that_has_numpy_raise_at_overflows_trains(tmp_path, numerics):
    done = trained(tmp_path, {"imported": "numpy.seterr(all='raise')", "called": "pass"}, f"numerics={numerics}")
    assert done.returncode == 0, done.stderr
