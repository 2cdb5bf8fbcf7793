"""Shared by all tests: short real runs, made once per session."""

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from filelock import FileLock

from rlloss.config import load
from rlloss.runs import RunFolder
from rlloss.train import train
from tests.browser import chromium
from tests.helpers import ROOT, SHORT, MakeRun

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def in_the_root() -> None:
    """Commands read configs, claims and reference results from the folder that they are called in."""
    os.chdir(ROOT)


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """A recorded run with the given overrides on top of SHORT; all tests and workers share the run of equal overrides.

    It is read only: copy its folder to damage it, and train a run of your own where you have patched something.
    """
    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent  # of all workers
    made: dict[tuple[str, ...], RunFolder] = {}

    def make(*overrides: str) -> RunFolder:
        if overrides not in made:
            home = session / "runs" / hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:16]
            folder = home / "run"
            home.mkdir(parents=True, exist_ok=True)
            with FileLock(home / "lock"):
                if RunFolder(folder).status != "finished":  # else another worker was quicker
                    train(load([*SHORT, *overrides]), folder)
            made[overrides] = RunFolder(folder)
        return made[overrides]

    return make


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running
