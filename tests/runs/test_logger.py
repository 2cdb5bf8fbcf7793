"""logger=tensorboard: what lands in the events, and that it changes nothing."""

import sys

import pytest

from rlloss.config import load
from rlloss.config.metrics import METRICS
from rlloss.errors import ConfigError
from rlloss.runs.logger import EVENTS
from rlloss.train import train, validate
from rlloss.verify import compare_runs

accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def test_tensorboard_gets_the_metrics_and_the_run_stays_the_same(make_run):
    run, plain = make_run("logger=tensorboard"), make_run()
    events = accumulators.EventAccumulator(str(run.path))
    events.Reload()
    tags = {metric.tag: column for column, metric in METRICS.items() if metric.tag}
    assert set(events.Tags()["scalars"]) == {*tags, "charts/episodic_return", "charts/episodic_length"}
    for tag, column in tags.items():
        points = events.Scalars(tag)
        kept = run.metrics.dropna(subset=[column])
        assert [point.step for point in points] == kept["env_steps"].tolist()
        assert [point.value for point in points] == pytest.approx(kept[column].tolist(), rel=1e-6)
    returns = events.Scalars("charts/episodic_return")
    assert [point.step for point in returns] == run.episodes["env_steps"].tolist()
    assert [point.value for point in returns] == run.episodes["episodic_return"].tolist()
    assert not list(plain.path.glob(EVENTS))
    assert run.info["final_digest"] == plain.info["final_digest"]
    assert compare_runs(run, plain).verdict == "IDENTICAL", "how a run is recorded is not part of what it is"


def test_a_run_that_starts_over_leaves_one_file_of_events(tmp_path):
    folder = tmp_path / "run"
    config = load(["num_envs=2", "num_steps=50", "total_timesteps=400", "logger=tensorboard"])

    def interrupted(row):
        if row["iteration"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, folder, interrupted)
    assert len(list(folder.glob(EVENTS))) == 1
    train(config, folder)
    (after,) = folder.glob(EVENTS)
    events = accumulators.EventAccumulator(str(after))
    events.Reload()
    assert len(events.Scalars("losses/policy_loss")) == 4, "not two of the first attempt as well"


def test_unknown_and_missing_loggers_are_named(monkeypatch):
    config = load(["logger=tensorboard"])
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"not installed; pip install 'rlloss\[tensorboard\]'"):
        validate(config)
    config.logger.name = "wandb"
    with pytest.raises(ConfigError, match="logger=wandb: unknown; use one of none, tensorboard"):
        validate(config)
