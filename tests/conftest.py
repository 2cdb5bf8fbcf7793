"""Shared by all tests: short real runs, made once per session and worker."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from browser import chromium

from rlloss.config import load
from rlloss.runs import RunFolder
from rlloss.train import train

torch.set_num_threads(1)

SHORT = ("num_envs=2", "num_steps=50", "total_timesteps=600", "snapshot_every=10", "learning_rate=0.003")

MakeRun = Callable[..., RunFolder]


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """A recorded run with the given overrides on top of SHORT, in its own folder; equal overrides share one run."""
    made: dict[tuple[str, ...], RunFolder] = {}

    def make(*overrides: str) -> RunFolder:
        if overrides not in made:
            folder = tmp_path_factory.mktemp("run") / "run"
            train(load([*SHORT, *overrides]), folder)
            made[overrides] = RunFolder(folder)
        return made[overrides]

    return make


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running
