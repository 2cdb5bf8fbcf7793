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
