"""Environments, wrappers and losses of users: every space trains, every fault is named, their source is recorded."""

import logging
import subprocess
import sys

import numpy as np
import pytest
from gymnasium import spaces

from rlloss.cli.main import main
from rlloss.config import load
from rlloss.config.schema import EnvConfig
from rlloss.errors import ConfigError, NonFinite
from rlloss.runs import RunFolder
from rlloss.train import train
from rlloss.train.checkpoint import unpack
from rlloss.train.envcheck import check_environment, notes
from rlloss.train.envs import make_envs
from rlloss.train.precision import PRECISIONS
from rlloss.verify import compare_runs
from tests.examples.environments import ACTIONS, OBSERVATIONS
from tests.helpers import SHORT, write_users_files

LINE = "env.id=tests.examples.environments:Line-v0"
TINY = ("num_envs=2", "num_steps=50", "total_timesteps=200", "learning_rate=0.003")


@pytest.mark.parametrize("obs", [name for name in OBSERVATIONS if name != "text" and "empty" not in name])
def test_every_observation_becomes_a_vector_that_gymnasium_flattens_it_to(obs):
    envs = make_envs(EnvConfig("tests.examples.environments:Line-v0", {"obs": obs}), [1, 2])
    inner = envs.envs[0].unwrapped
    assert np.array_equal(envs.obs[0], spaces.flatten(inner.observation_space, inner.observe()).ravel())
    assert train(load([*TINY, LINE, f"env.kwargs.obs={obs}"])).optimizer_steps == 32


@pytest.mark.parametrize("act", [name for name in ACTIONS if name != "integers" and "no " not in name])
@pytest.mark.parametrize(
    "precision", [pytest.param(p, marks=() if p in ("fp32", "bf16") else pytest.mark.slow) for p in PRECISIONS]
)
def test_every_action_space_trains_in_every_precision(act, precision):
    """The environment raises for an action that is not in its space."""
    run = train(load([*TINY, LINE, f"env.kwargs.act='{act}'", f"precision={precision}"]))
    assert run.optimizer_steps == 32


def test_spaces_that_cannot_be_used_are_named():
    with pytest.raises(ConfigError, match="has no fixed size; it must flatten to a vector"):
        train(load([*TINY, LINE, "env.kwargs.obs=text"]))
    with pytest.raises(ConfigError, match=r"action space Box\(0, 3.*must be Discrete, MultiDiscrete, MultiBinary"):
        train(load([*TINY, LINE, "env.kwargs.act=integers"]))


@pytest.mark.parametrize("check", ["true", "false"])
@pytest.mark.parametrize(
    ("key", "said"),
    [(f"obs='{name}'", "has no numbers; a policy needs one") for name in OBSERVATIONS if "empty" in name]
    + [(f"act='{name}'", "has nothing to choose; it must have one") for name in ACTIONS if "no " in name],
)
def test_spaces_with_nothing_in_them_are_named_before_the_run(tmp_path, capsys, monkeypatch, key, said, check):
    monkeypatch.setattr("rlloss.train.envcheck._checked", set())
    arguments = [*TINY, LINE, f"env.kwargs.{key}", f"env.check={check}", f"run_dir={tmp_path / 'run'}"]
    assert main(["train", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err or "space is not allowed" in err, "as Gymnasium's checker says of a Dict or Tuple"
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("act", ["multidiscrete", "multibinary"])
def test_the_new_heads_learn_the_way_along_the_line(act):
    run = train(load([LINE, f"env.kwargs.act={act}", "total_timesteps=8192", "learning_rate=0.003"]))
    assert run.episodic_length < 12, "30 is the limit, 8 the shortest way"


FAULTS = {
    "old reset": "reset returned ndarray; it must return (observation, info)",
    "old step": "step returned 4 values; it must return (observation, reward, terminated, truncated, info)",
    "shape": "an observation of shape (2, 1), observation_space has (2,)",
    "reward array": "a reward of shape (1,); it must be a number: float(reward)",
    "reward text": "step returned the reward '0.0', of type str; it must be a number: float(reward)",
    "text ends": "step returned terminated='False', of type str; it must be a bool: bool(terminated)",
    "no ends": "step returned terminated=None, of type NoneType; it must be a bool: bool(terminated)",
    "dtype": "reset returned an observation of float64, observation_space is of float32; return obs.astype(np.float32)",
    "raises": "step raised RuntimeError: no licence (environments.py, line",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_contract_is_one_line_before_the_run(tmp_path, capsys, fault):
    assert main(["train", *TINY, LINE, f"env.kwargs.fault='{fault}'", f"run_dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert FAULTS[fault] in said
    assert said.endswith("env.check=false leaves this check out\n")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_timeout_longer_than_any_thread_waits_is_no_limit(monkeypatch):
    """A thread that dies leaves a traceback, and the run unwatched."""
    died = []
    monkeypatch.setattr("threading.excepthook", died.append)
    train(load([*TINY, LINE, "env.timeout=1e300"]))
    assert died == []


def test_the_dtype_of_a_part_of_an_observation_is_named():
    config = EnvConfig("tests.examples.environments:Line-v0", {"obs": "dict", "fault": "dtype"})
    with pytest.raises(ConfigError, match=r"of float64, observation_space is of float32; return obs\.astype"):
        notes(config)


def test_ends_may_be_numpys_bools_or_whole_numbers(monkeypatch):
    monkeypatch.setattr("rlloss.train.envcheck._checked", set())
    digests = {train(load([*TINY, LINE, f"env.kwargs.fault='{fault}'"])).final_digest
               for fault in ("none", "numpy ends", "whole ends")}  # fmt: skip
    assert len(digests) == 1


@pytest.mark.parametrize("check", ["true", "false"])
def test_an_environment_that_cannot_be_closed_spoils_no_run(tmp_path, capsys, monkeypatch, check):
    monkeypatch.setattr("rlloss.train.envcheck._checked", set())
    monkeypatch.setattr("rlloss.train.faults._said", set())
    where = f"run_dir={tmp_path / 'run'}"
    assert main(["train", *TINY, LINE, "env.kwargs.fault=close", f"env.check={check}", where]) == 0
    out, err = capsys.readouterr()
    assert "finished" in out
    assert "note: Line-v0: close raised RuntimeError: close boom (environments.py" in err
    assert err.count("\n") == 1, err
    assert RunFolder(tmp_path / "run").status == "finished"
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "1"]) == 0


def test_a_reset_without_a_seed_is_named():
    with pytest.raises(
        ConfigError, match=r"reset takes no seed; it reads def reset\(self, \*, seed=None, options=None\)"
    ):
        check_environment(EnvConfig("tests.examples.environments:Unseeded-v0"))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("global generator", "other observations (answer 1) for the same seed and actions; draw from self.np_random"),
        ("class state", "keep what changes in the instance, not in its class or module"),
    ],
)
def test_what_spoils_reproducibility_is_noted_and_the_environment_is_named_as_the_cause(
    tmp_path, caplog, monkeypatch, fault, said
):
    monkeypatch.setattr("rlloss.train.envcheck._checked", set())
    command = [*SHORT, LINE, f"env.kwargs.fault='{fault}'"]
    runs = []
    for loss in ("ppo_clip", "reinforce"):
        with caplog.at_level(logging.WARNING):
            train(load([*command, f"loss={loss}"]), tmp_path / loss)
        runs.append(RunFolder(tmp_path / loss))
    (note,) = caplog.messages
    assert said in note or "for the same seed and actions" in note
    verdict = compare_runs(*runs)
    assert verdict.verdict == "DIVERGED"
    assert "environments:Line-v0 returned other observations in iteration 1" in verdict.cause


def test_a_wrapper_of_the_users_is_named_beside_the_environment_that_it_spoils(tmp_path):
    for loss in ("ppo_clip", "reinforce"):
        overrides = [*SHORT, "env.wrappers=[tests.examples.environments:Noisy]", f"loss={loss}"]
        train(load(overrides), tmp_path / loss)
    verdict = compare_runs(*(RunFolder(tmp_path / loss) for loss in ("ppo_clip", "reinforce")))
    assert verdict.verdict == "DIVERGED"
    assert "CartPole-v1, in tests.examples.environments:Noisy, returned other observations" in verdict.cause


def test_a_sound_environment_and_gymnasiums_own_pass_without_a_word(caplog):
    for env_id in ("tests.examples.environments:Line-v0", "CartPole-v1"):
        assert notes(EnvConfig(env_id)) == []
        check_environment(EnvConfig(env_id))
    assert caplog.messages == []


def test_an_array_that_is_used_again_passes_the_check_and_trains_to_the_bits_of_copies():
    """With a time limit, before which a reset would write into the observation that is bootstrapped."""
    clock = "env.id=tests.examples.environments:Clock-v0"
    a, b = (train(load([*SHORT, clock, f"env.kwargs.copies={copies}"])) for copies in ("false", "true"))
    assert a.final_digest == b.final_digest


def test_one_buffer_for_all_observations_trains_to_the_bits_of_copies():
    for wrappers in ("[]", "[frame_stack]", "[normalize_observation,frame_stack]"):
        overrides = [*SHORT, LINE, f"env.wrappers={wrappers}"]
        a, b = (train(load([*overrides, f"env.kwargs.fault='{fault}'"])) for fault in ("none", "one buffer"))
        assert a.final_digest == b.final_digest


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([LINE, "env.kwargs.fault='nan'"], "observation nan from environment 0, at environment step 6, in iteration 1"),
        (
            [LINE, "env.kwargs.fault='reward nan'"],
            "reward nan from environment 0, at environment step 10",
        ),
        (["optimizer=sgd", "learning_rate=1e38"], "value_loss is inf, in iteration 1, at optimiser step 2"),
        (
            ["precision=fp16", "learning_rate=1000", "optimizer=sgd", "max_grad_norm=inf"],
            "in iteration 1, at optim",
        ),
        (["loss.offset=1e39"], "policy_loss is inf, in iteration 1, at optimiser step 1"),
    ],
)
def test_the_first_number_that_is_not_finite_ends_the_run(tmp_path, overrides, said):
    with pytest.raises(NonFinite) as caught:
        train(load([*SHORT, *overrides]), tmp_path / "run")
    assert said in str(caught.value)
    run = RunFolder(tmp_path / "run")
    assert run.status == "failed"
    assert run.info["error"] == str(caught.value)
    kept = unpack(run.path / "last_finite.safetensors")
    assert np.isfinite(kept["parameters"].numpy()).all()
    if "step 1" in said.split(",")[-1] or "environment step" in said:
        assert kept["optimizer_steps"] == 0
        assert np.array_equal(kept["parameters"].numpy(), run.snapshot(0))
    assert main(["train", *SHORT, *overrides, f"run_dir={tmp_path / 'again'}"]) == 1
    goes_on = train(load([*SHORT, *overrides, "on_nonfinite=record"]), tmp_path / "on")
    assert goes_on.optimizer_steps == 96


def test_wrappers_of_ones_own_with_and_without_arguments():
    own = "tests.examples.environments:Scale"
    plain, twice = (
        make_envs(load([LINE, f"env.wrappers=[{entry}]"]).env, [1]).obs
        for entry in (own, f"{{wrapper: '{own}', factor: 2}}")
    )
    assert np.array_equal(2 * plain, twice)
    for entry, said in {
        "tests.examples.environments:Nope": "has no Nope",
        "nowhere:Scale": "no module nowhere here or installed",
        "{factor: 2}": "an entry with arguments reads",
    }.items():
        with pytest.raises(ConfigError, match=said):
            make_envs(load([LINE, f"env.wrappers=[{entry}]"]).env, [1])


@pytest.mark.parametrize(
    ("env_id", "said"),
    [
        ("nowhere:Line-v0", "no module nowhere here or installed; call rlloss in the folder of nowhere.py"),
        ("tests.examples.environments:Lime-v0", "did you mean Line-v0? tests.examples.environments registers"),
        ("Cartpole-v1", "did you mean CartPole-v1"),
        ("NoSuchThing-v0", "one of your own: env.id=module:NoSuchThing-v0"),
        ("LunarLander-v2", "LunarLander-v3"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_an_id_that_is_not_there_is_answered_with_what_is(env_id, said):
    with pytest.raises(ConfigError) as caught:
        make_envs(EnvConfig(env_id), [1])
    assert said in str(caught.value)


@pytest.fixture
def users_folder(tmp_path, monkeypatch):
    """An empty folder of a user with an environment, a loss and configs; ``rlloss`` in it as the installed command."""
    home = tmp_path / "home"
    home.mkdir()
    write_users_files(home)

    def rlloss(*arguments):
        code = "import sys; sys.path.remove(''); from rlloss.cli.main import main; sys.exit(main(sys.argv[1:]))"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=home, capture_output=True, text=True, check=False
        )

    return home, rlloss


@pytest.mark.slow
def test_a_users_environment_loss_and_configs_from_an_empty_folder(users_folder):
    home, rlloss = users_folder
    sweep = rlloss(
        "train", "--multirun", "--config-dir", "conf", "env=line", "experiment=quick", "total_timesteps=2048",
        "loss=ppo_clip,losses.py:mine", "seed=1,2", "run_root=runs",
    )  # fmt: skip
    assert sweep.returncode == 0, sweep.stderr
    assert sweep.stdout.count("finished") == 4
    verified = rlloss("verify", "--tested", "runs")
    assert verified.returncode == 0, verified.stdout
    assert "2 IDENTICAL of 2 pairs" in verified.stdout
    run = RunFolder(next((home / "runs").glob("*losses*seed-1")))
    assert run.config["env.id"] == "mine:Line-v0"
    assert run.config["learning_rate"] == 0.003
    assert run.info["versions"].keys() >= {"environment", "loss", "source"}


@pytest.mark.parametrize(
    ("what", "file", "change"),
    [
        (["env.id=mine:Line-v0"], "mine.py", ("import numpy", "import  numpy")),
        (["loss=losses.py:mine"], "losses.py", ("torch.min", "torch.minimum")),
    ],
)
def test_a_users_source_is_part_of_what_made_a_run(users_folder, monkeypatch, capsys, what, file, change):
    home, _ = users_folder
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(home)
    name = "environment" if file == "mine.py" else "loss"
    train_it = ["train", *what, *TINY, "run_root=runs"]
    assert main(train_it) == 0
    assert main(train_it) == 0
    assert "note:" not in capsys.readouterr().err
    (home / file).write_text((home / file).read_text().replace(*change))
    assert main(train_it) == 0
    assert f"made by other versions ({name} " in capsys.readouterr().err
    if name == "environment":
        assert main([*train_it, "loss=reinforce"]) == 0
        main(["verify", "runs"])
        assert "not the same machine or versions: environment" in capsys.readouterr().out
        monkeypatch.delitem(sys.modules, "mine")


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("nowhere.py:mine", "loss=nowhere.py: no such file"),
        ("tests/examples/my_losses.py:nope", "loss=tests/examples/my_losses.py:nope: nope does not exist"),
        ("tests/examples/my_losses.py:detached_ratio", "has no gradient"),
        ("tests/examples/my_losses.py:token_mean", "takes a mask: losses of sequences are for `rlloss check`"),
    ],
)
def test_a_loss_that_cannot_train_is_named_before_the_run(tmp_path, loss, said):
    with pytest.raises(ConfigError) as caught:
        train(load([*SHORT, f"loss={loss}"]), tmp_path / "run")
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_environment_that_is_refused_is_refused_again(monkeypatch):
    monkeypatch.setattr("rlloss.train.envcheck._checked", set())
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"env\.id=tests\.examples\.environments:Line-v0: "):
            check_environment(EnvConfig("tests.examples.environments:Line-v0", {"fault": "old step"}))
