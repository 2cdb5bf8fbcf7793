"""A trained policy at work: what was kept is what plays, with its wrappers' statistics frozen."""

import json
import shutil
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import yaml

import rlloss
from rlloss.cli.main import main
from rlloss.config import load
from rlloss.config.schema import config_of
from rlloss.errors import ConfigError
from rlloss.runs import RunFolder
from rlloss.train import train
from rlloss.train.evaluation import load_policy, play
from rlloss.train.wrappers import pooled, statistics
from tests.helpers import SHORT

LINE = "env.id=tests.examples.environments:Line-v0"


def test_the_policy_is_the_trained_one_and_plays_the_same_twice(make_run):
    run = make_run()
    trained = load_policy(run)
    assert np.array_equal(trained.policy.flat.detach().numpy(), run.snapshot(96))
    assert list(play(trained, 3, seed=5)) == list(play(load_policy(run.path), 3, seed=5))
    sampled = [list(play(trained, 3, seed=seed, greedy=False)) for seed in (5, 5, 6)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_a_policy_that_learned_reaches_more_than_one_that_did_not(tmp_path):
    means = []
    for steps in (512, 40_000):
        train(load([f"total_timesteps={steps}", "learning_rate=0.003"]), tmp_path / str(steps))
        played = play(load_policy(tmp_path / str(steps)), 10, greedy=False)
        means.append(np.mean([episode.episodic_return for episode in played]))
    assert means[1] > 2 * means[0]


def test_greedy_is_the_likeliest_action(make_run):
    trained = rlloss.load_policy(make_run().path)
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    with torch.no_grad():
        likeliest = trained.policy.act(torch.from_numpy(obs)).argmax(-1).tolist()
    assert [trained.act(one) for one in obs] == likeliest


def test_statistics_of_wrappers_are_kept_and_frozen(tmp_path):
    overrides = [*SHORT, "env=pendulum", "env.wrappers=[normalize_observation,normalize_reward]"]
    train(load(overrides), tmp_path / "run")
    trained = load_policy(tmp_path / "run")
    assert trained.statistics["obs_rms"]["count"] == pytest.approx(2 * 300 + 2 * 2, abs=4)
    env = trained.make_env()
    before = repr(statistics(env))
    obs, _ = env.reset(seed=1)
    for _ in range(20):
        obs, *_ = env.step(trained.act_on(obs))
    assert repr(statistics(env)) == before
    bare = gymnasium.make("Pendulum-v1")
    raw, _ = bare.reset(seed=3)
    wrapped, _ = env.reset(seed=3)
    assert np.array_equal(trained.act(raw), trained.act_on(wrapped)), "act takes what the environment itself returns"
    (first,) = play(trained, 1, seed=0)
    assert first.episodic_return < -1, "of the environment's own rewards, not of the normalised"


def test_an_observation_of_another_kind_is_one_line(tmp_path):
    train(load([*SHORT, LINE, "+env.kwargs.obs=dict"]), tmp_path / "run")
    trained = load_policy(tmp_path / "run")
    position = np.zeros(2, np.float32)
    assert trained.act({"position": position, "goal": 1}) in (0, 1)
    others = {"position": position}, {"position": position, "goal": 7}, position, None, {"position": "up", "goal": 1}
    for obs in others:
        with pytest.raises(ConfigError, match=r"act: the observation is .*; it must be one of Dict\('position': Box"):
            trained.act(obs)
    with pytest.raises(ConfigError, match=r"of shape \(5,\); it must be one array of numbers, of shape \(4,\)"):
        trained.act({"position": np.zeros(3, np.float32), "goal": 1})


def test_pooled_statistics_are_those_of_all_samples():
    rng = np.random.default_rng(0)
    samples = [rng.normal(i, 1 + i, (n, 3)) for i, n in enumerate((10, 40, 7))]
    copies = [{"obs_rms": {"mean": x.mean(0), "var": x.var(0), "count": float(len(x))}} for x in samples]
    found = pooled(copies)["obs_rms"]
    every = np.concatenate(samples)
    np.testing.assert_allclose(found["mean"], every.mean(0))
    np.testing.assert_allclose(found["var"], every.var(0))
    assert found["count"] == 57


def test_every_config_comes_back_from_its_file(make_run):
    for overrides in ((), ("optimizer=sgd", "schedule=plateau", "stop=threshold", "stop.threshold=-9", "best=metric")):
        run = make_run(*overrides)
        tree = yaml.safe_load((run.path / "config.yaml").read_text())
        config = config_of(tree)
        assert config.flat() == {
            **load([*SHORT, *overrides]).flat(),
            "run_dir": config.run_dir,
            "run_root": config.run_root,
        }
        with pytest.raises(ConfigError, match="made by another version"):
            config_of(tree | {"nonsense": 3})


@pytest.mark.parametrize("act", ["discrete", "from one", "multidiscrete", "multibinary", "box", "matrix"])
def test_every_action_space_plays(tmp_path, act):
    train(load([*SHORT, LINE, f"env.kwargs.act='{act}'", "env.kwargs.obs=dict"]), tmp_path / "run")
    for greedy in (True, False):
        assert len(list(play(load_policy(tmp_path / "run"), 2, greedy=greedy))) == 2


def test_the_command_prints_episodes_mean_and_interval_and_draws_a_video(make_run, tmp_path, capsys):
    run = make_run("best=metric", "best.monitor=episodic_return")
    video = tmp_path / "films" / "one.gif"
    assert main(["evaluate", str(run.path), "--episodes", "5", "--video", str(video), "--best"]) == 0
    out = capsys.readouterr().out
    assert "return" in out
    assert "over 5 episodes of" in out
    assert video.read_bytes()[:6] == b"GIF89a"
    assert main(["evaluate", str(run.path), "--episodes", "5", "--json", "--sampled", "--seed", "3"]) == 0
    document = json.loads(capsys.readouterr().out)
    low, high = document["interval"]
    assert low <= document["mean"] <= high
    assert len(document["episodes"]) == 5


def test_what_cannot_be_evaluated_is_one_line(make_run, tmp_path, capsys):
    train(load([*SHORT, LINE]), tmp_path / "line")
    cases = {
        (str(tmp_path / "nowhere"),): "no such folder; name a run's folder",
        (str(make_run().path), "--best"): "has no best.safetensors; train it with best=metric",
        (str(tmp_path / "line"), "--video", "a.gif"): "takes no render_mode, so it draws no pictures",
        (str(make_run().path), "--video", "a.mp4"): "name a .gif file",
        (str(make_run().path), "--episodes", "0"): "--episodes=0: must be 1 or greater",
    }
    for arguments, said in cases.items():
        assert main(["evaluate", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert RunFolder(tmp_path / "line").status == "finished"


@pytest.mark.parametrize(("old", "new"), [("gamma: 0.99", "gamma: 0.9"), ("seed: 1", "seed: 2")])
def test_a_config_that_was_edited_after_the_run_is_not_its_own(make_run, tmp_path, capsys, old, new):
    run = Path(shutil.copytree(make_run().path, tmp_path / "run"))
    text = (run / "config.yaml").read_text()
    assert old in text
    (run / "config.yaml").write_text(text.replace(old, new))
    assert main(["evaluate", str(run)]) == 2
    said = "run/config.yaml is not the config that run.json has the digest of; train it again"
    assert said in capsys.readouterr().err
