"""What several tests share: short real runs, and where the project's files lie."""

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from rlloss.runs import RunFolder
from rlloss.runs.place import config_digest
from rlloss.runs.provenance import digest, loss_source
from rlloss.verify import compare_runs

ROOT = Path(__file__).parents[1]
SHORT = ("num_envs=2", "num_steps=50", "total_timesteps=600", "snapshot_every=10", "learning_rate=0.003")

MakeRun = Callable[..., RunFolder]


def a_few_fast(names: Iterable[str]) -> list[Any]:
    """Names of cases, of which every fourth is tried in the fast suite and all in the slow one."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (i % 4 > 0)) for i, name in enumerate(names)]


def code_blocks(readme: str) -> list[str]:
    """The Python that a README shows."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / readme).read_text(), re.DOTALL | re.MULTILINE)


LOSS = """\
import torch


def mine(logp, old_logp, advantages, *, clip_coef):
    ratio = torch.exp(logp - old_logp)
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip_coef, 1 + clip_coef) * advantages)
"""


def write_users_files(home: Path) -> None:
    """What a user has: an environment in ``mine.py``, a loss in ``losses.py``, configs in ``conf/``."""
    shutil.copy(ROOT / "tests/examples/environments.py", home / "mine.py")
    (home / "losses.py").write_text(LOSS)
    for name, text in {
        "env/line.yaml": "id: mine:Line-v0\nkwargs: {obs: dict}\n",
        "experiment/quick.yaml": "# @package _global_\nlearning_rate: 0.003\nnum_envs: 2\n",
    }.items():
        (home / "conf" / name).parent.mkdir(parents=True)
        (home / "conf" / name).write_text(text)


def assert_identical_though_clipped(a: RunFolder, b: RunFolder) -> None:
    """Twins with the same bits and other losses, though the clip was active: equality was put to the test."""
    verdict = compare_runs(a, b)
    assert verdict.verdict == "IDENTICAL", verdict
    assert (a.metrics["actions_digest"] == b.metrics["actions_digest"]).all()
    assert a.metrics["clip_active_frac"].sum() > 0, "nothing was clipped"
    assert a.metrics["policy_loss"].ne(b.metrics["policy_loss"]).all()


def rewrite_config(folder: Path, old: str, new: str) -> None:
    """Other words in the config of a copied run, as if it had been trained so."""
    text = (folder / "config.yaml").read_text()
    assert old in text
    write_config(folder, text.replace(old, new))


def write_config(folder: Path, text: str) -> None:
    """Another config for a copied run, as if it had been trained so: run.json says the same."""
    (folder / "config.yaml").write_text(text)
    run = RunFolder(folder)
    info = {**run.info, "config_digest": config_digest(run.config)}
    info["versions"] = {**info["versions"], "loss": digest(loss_source(run.loss).encode())}
    (folder / "run.json").write_text(json.dumps(info))
