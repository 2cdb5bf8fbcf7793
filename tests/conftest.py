"""Shared by all tests: short real runs, made once per session and worker."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from browser import chromium

from rlloss.config import load
from rlloss.runs import RunFolder
from rlloss.train import train
from rlloss.verify import compare

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


def assert_identical_though_clipped(a: RunFolder, b: RunFolder) -> None:
    """Twins with the same bits and other losses, though the clip was active: equality was put to the test."""
    verdict = compare(a, b)
    assert verdict.verdict == "IDENTICAL", verdict
    assert (a.metrics["actions_digest"] == b.metrics["actions_digest"]).all()
    assert a.metrics["clip_active_frac"].sum() > 0, "nothing was clipped"
    assert a.metrics["policy_loss"].ne(b.metrics["policy_loss"]).all()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running
