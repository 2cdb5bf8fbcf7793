"""The command as users meet it: exit codes, what is printed, what is left on disk.

Real processes where a process of its own may matter; what only reads its arguments is called here, which saves the
seconds in which Python imports torch.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from rlloss.cli import main
from rlloss.config import load
from rlloss.runs import RunFolder, find_runs
from rlloss.runs.place import run_folder
from rlloss.runs.provenance import trainer_source
from rlloss.sweep.run import run_one
from rlloss.version import __version__

TINY = ("num_envs=2", "num_steps=50", "total_timesteps=400")


def rlloss(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "rlloss", *arguments], cwd=cwd, capture_output=True, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture
def called_here(tmp_path, monkeypatch, capfd):
    """The same command in this process and in tmp_path; everything written to its two streams is seen."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        capfd.readouterr()
        try:
            code = main(arguments)
        except SystemExit as leaving:
            code = leaving.code
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return call


def everything_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_train_writes_a_run_and_says_where(tmp_path, called_here):
    first = rlloss("train", *TINY, "loss=reinforce", "seed=3", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    (run,) = find_runs([tmp_path])
    assert str(run.path.relative_to(tmp_path)) in first.stdout
    assert run.info["final_digest"][:12] in first.stdout
    before = (run.path / "run.json").stat().st_mtime_ns
    again = called_here("train", *TINY, "loss=reinforce", "seed=3")
    assert again.returncode == 0
    assert "finished already" in again.stdout
    assert (run.path / "run.json").stat().st_mtime_ns == before
    assert "note:" not in again.stderr


def test_finished_runs_of_other_versions_are_kept_and_named(tmp_path, called_here):
    command = ("train", "--multirun", *TINY, "seed=1,2", "hydra.launcher.n_jobs=1")
    assert called_here(*command).returncode == 0
    first, second = (run.path / "run.json" for run in find_runs([tmp_path]))
    info = json.loads(first.read_text())
    info["versions"] |= {"source": "0123456789ab", "torch": info["versions"]["torch"] + "+another.build"}
    first.write_text(json.dumps(info))
    again = called_here(*command)
    assert again.returncode == 0
    now = trainer_source()
    assert f"note: a finished run was made by other versions (source 0123456789ab, now {now});" in again.stderr
    assert json.loads(first.read_text())["versions"]["source"] == "0123456789ab", "kept as it was"
    second.write_text(second.read_text().replace('"source"', '"sauce"'))
    assert "note: 2 finished runs were made" in called_here(*command).stderr


# What the trainer imports of this package and what does not decide a run's bits: how it is recorded, and the plumbing.
RECORDING = {"runs", "config", "losses", "errors", "lazy", "version"}


def test_the_source_of_a_run_is_every_module_that_training_imports():
    code = "import sys, rlloss.train.loop; print(*(m for m in sys.modules if m.startswith('rlloss.')))"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name.split(".")[1] for name in imported} - RECORDING == {"train"}


def test_two_processes_train_to_the_same_bits(tmp_path, called_here):
    digests = []
    for loss in ("ppo_clip", "reinforce"):
        done = rlloss("train", *TINY, f"loss={loss}", f"run_dir={loss}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        digests.append((tmp_path / loss / "digests.bin").read_bytes())
    assert digests[0] == digests[1]
    assert len(digests[0]) == 64 * 32
    verified = called_here("verify", ".", "--json")
    assert verified.returncode == 0
    assert json.loads(verified.stdout)["pairs"][0]["steps"] == 64


def test_multirun_sweeps_over_cores_and_ends_with_a_table(tmp_path, called_here):
    done = rlloss("train", "--multirun", *TINY, "loss=ppo_clip,reinforce", "seed=1,2", "run_root=runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = find_runs([tmp_path])
    assert len(runs) == 4
    assert all(run.status == "finished" for run in runs)
    assert done.stdout.count("finished") == 4
    assert called_here("verify", "runs").returncode == 0
    assert not (tmp_path / "outputs").exists()
    assert not (tmp_path / "multirun").exists()


def test_a_sweep_over_folders_names_them_all(tmp_path, called_here):
    done = called_here("train", "-m", *TINY, "run_root=a,b", "hydra.launcher.n_jobs=1")
    assert done.returncode == 0, done.stderr
    name = "CartPole-v1__total_timesteps-400__num_envs-2__num_steps-50__ppo_clip__seed-1"
    assert f"a/{name}\n" in done.stdout
    assert f"b/{name}\n" in done.stdout
    assert done.stdout.endswith("written to a and b\n")


def test_a_folder_in_the_way_of_a_sweep_is_found_before_anything_runs(tmp_path, called_here):
    in_the_way = tmp_path / run_folder(load([*TINY, "seed=2", "run_root=runs"]))
    in_the_way.mkdir(parents=True)
    (in_the_way / "notes.txt").write_text("mine")
    done = called_here("train", "-m", *TINY, "seed=1,2", "run_root=runs")
    assert done.returncode == 2
    assert "is not empty and holds no run" in done.stderr
    assert (in_the_way / "notes.txt").read_text() == "mine"
    assert find_runs([tmp_path]) == []


@pytest.mark.slow
def test_one_failed_run_of_a_sweep_leaves_the_others_and_is_listed_with_its_reason(tmp_path):
    """A gravity that is no number passes every check and fails in the environment's first step."""
    done = rlloss("train", *TINY, "env=pendulum", "+env.kwargs.g=abc,10.0", "--multirun", "run_root=runs", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("failed: ") == 1
    assert "pendulum.py" in done.stderr, "with its traceback"
    assert sorted(run.status for run in find_runs([tmp_path])) == ["failed", "finished"]
    assert all(path.is_dir() for path in (tmp_path / "runs").iterdir())


def test_an_error_in_a_worker_comes_home_with_its_traceback(tmp_path, monkeypatch):
    from rlloss.train import loop

    def cursed(*_, **__):
        raise ZeroDivisionError("cursed")

    monkeypatch.setattr(loop, "collect", cursed)
    outcome = run_one(load([*TINY, f"run_dir={tmp_path / 'run'}"]))
    assert outcome.reason == "ZeroDivisionError: cursed"
    assert "in cursed" in outcome.traceback
    assert RunFolder(tmp_path / "run").status == "failed"


BAD = {
    "unknown key": (["+new.key=3"], "unknown key new.key"),
    "wrong type": (["num_envs=four"], "num_envs=four: must be a whole number"),
    "wrong choice": (["loss=foo"], "loss=foo: no such loss; use one of"),
    "not a divisor": (["num_minibatches=3"], "num_minibatches=3 does not divide the batch of 512"),
    "non-positive size": (["num_steps=0"], "num_steps=0: must be greater than 0"),
    "unknown environment": (["env.id=NoSuch-v0"], "env.id=NoSuch-v0"),
    "environment keyword": (["env.id=CartPole-v1", "+env.kwargs.nothing=1"], "env.kwargs"),
    "endless divisors": (["num_steps=1000000000000", "num_minibatches=7", "total_timesteps=1e15"], "total_timesteps"),
    "too many threads": (["torch_threads=100000"], "torch_threads=100000: this machine has"),
    "no folder": (["run_dir=''"], "run_dir='': names no folder"),
    "hydra's own key": (["hydra.nope=3"], "hydra.nope=3: Hydra's own keys steer a sweep"),
    "config of bad": (["--cfg", "job", "num_envs=four"], "num_envs=four: must be a whole number"),
    "sweep on no device": (["-m", "seed=1,2", "device=tpu"], "device=tpu: unknown"),
    "sweep by glob": (["-m", "loss=glob(*)"], "glob is not supported"),
    "sweep by interval": (["-m", "learning_rate=interval(0,1)"], "interval is not supported"),
    "no jobs": (["-m", *TINY, "run_root=.", "seed=1,2", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs=0: must be"),
    "no launcher": (
        ["-m", *TINY, "run_root=.", "seed=1,2", "hydra/launcher=nope"],
        "hydra/launcher=nope: unknown; use",
    ),
    "one beta": (["optimizer.betas=[0.9]"], "optimizer.betas=[0.9]: must be two numbers, each 0 or greater and less"),
    "no such device": (["device=tpu"], "device=tpu: unknown; use cpu or cuda"),
    "optimizer setting": (["optimizer.betas=[2,0.9]"], "optimizer.betas=[2.0, 0.9]: must be two numbers, each 0 or"),
    "sweep of bad": (["-m", "seed=1,2", "loss=ppo_clip,nope"], "loss=nope: no such loss"),
    "config of a sweep": (["-m", "--cfg", "job", "seed=1,2"], "--cfg job: shows one config; leave --multirun out"),
    "sweep into one folder": (
        ["-m", "seed=1,2", "run_dir=x"],
        "that differ in seed share it; leave run_dir out, or end it with _${seed}",
    ),
    "sweep of one run twice": (["-m", "seed=1,1"], "the sweep lists this run twice; give each value once"),
    "sweep over nothing": (["-m", "seed=range(0)"], "seed=range(0): sweeps over nothing; give at least one value"),
    "sweep over no choice": (["-m", "loss=choice()"], "loss=choice(): sweeps over nothing; give at least one value"),
    "sweep without a step": (["-m", "seed=range(1,5,0)"], "seed=range(1,5,0): range() arg 3 must not be zero; list"),
    "sweep with a hole": (["-m", "seed=1,,2"], "seed=1,,2: has a comma with no value beside it; write seed=1,2"),
    "sweep that goes on": (["-m", "loss=ppo_clip,"], "loss=ppo_clip,: has a comma with no value beside it; write"),
    "sweep backwards": (["-m", *TINY, "seed=range(3,1)"], "seed=range(3,1): sweeps over nothing"),
    "minibatch of one": (["num_minibatches=512"], "use num_minibatches=256 or fewer, or norm_adv=false"),
    "batch of one": (
        ["num_envs=1", "num_steps=1", "num_minibatches=1"],
        "use a larger num_steps, or norm_adv=false",
    ),
    "folder below a file": (["run_root=/dev/null/x"], "/dev/null is a file; name another run_root or run_dir"),
}


IN_A_PROCESS = ("unknown environment", "config of bad", "sweep on no device", "sweep of bad")  # of every kind one


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case, tmp_path, called_here):
    arguments, message = BAD[case]
    done = rlloss("train", *arguments, cwd=tmp_path) if case in IN_A_PROCESS else called_here("train", *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert everything_in(tmp_path) == []


def test_what_is_not_installed_is_one_line_with_its_extra(tmp_path):
    """A module that fails to import stands in for one that is not there, whatever is installed."""
    (tmp_path / "ale_py.py").write_text("raise ImportError('not here')")
    done = rlloss("train", "env=breakout", cwd=tmp_path, PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 2
    assert done.stderr.endswith("env.id=ALE/Breakout-v5 is not installed; pip install 'rlloss[atari]'\n")
    assert done.stderr.count("\n") == 1, done.stderr
    assert everything_in(tmp_path) == ["ale_py.py"]


def test_an_existing_run_with_another_config_is_kept(tmp_path, called_here):
    called_here("train", *TINY, "run_dir=r")
    digest = RunFolder(tmp_path / "r").info["final_digest"]
    done = called_here("train", *TINY, "run_dir=r", "gamma=0.9")
    assert done.returncode == 2
    assert "holds a run with another config, gamma=0.99 instead of 0.9" in done.stderr
    assert RunFolder(tmp_path / "r").info["final_digest"] == digest


def test_a_path_that_cannot_be_is_one_line(tmp_path, called_here):
    (tmp_path / "file").write_text("mine")
    for arguments in (
        ["train", *TINY, "run_dir=file/x"], ["train", *TINY, "run_root=file"], ["report", ".", "--report", "file"],
    ):  # fmt: skip
        done = called_here(*arguments)
        assert done.returncode == 2, arguments
        assert done.stderr.count("\n") == 1, done.stderr
    assert everything_in(tmp_path) == ["file"]


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["verify", "--help"], ["reproduce", "--help"]])
def test_help(arguments, called_here):
    done = called_here(*arguments)
    assert done.returncode == 0
    assert "usage: rlloss" in done.stdout


WRONG = {
    ("nothing",): "COMMAND=nothing: unknown; use one of train, verify, certify, ",
    (): "COMMAND: is missing; `rlloss --help` says more",
    ("check", "--prof"): "--prof: unknown option; did you mean --proof?; `rlloss check --help` says more",
    ("check", "--quickly", "ppo_clip"): "--quickly: unknown option; `rlloss check --help` says more",
    ("check", "--clip-coef", "wide"): "--clip-coef=wide: must be a number; ",
    ("bisect", "a"): "RUN: is missing; ",
    ("bisect", "a", "b", "c"): "c: is one argument too many; ",
    ("benchmark", "--of", "luck"): "--of=luck: unknown; use one of train, check, ",
    ("benchmark", "--rounds", "few"): "--rounds=few: must be a whole number; ",
    ("evaluate", "a", "--video"): "expected one argument; `rlloss evaluate --help` says more",
    ("train", "--cfg", "mine"): "-c/--cfg=mine: unknown; use one of job, hydra, all; ",
}


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_wrong_arguments_are_one_line(tmp_path, called_here, arguments):
    done = called_here(*arguments)
    assert done.returncode == 2
    assert WRONG[arguments] in done.stderr
    assert done.stderr.startswith("rlloss: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert everything_in(tmp_path) == []


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_changes_no_answer(tmp_path):
    """Without pipefail nobody sees it; with it, a pair that differs must not hold."""
    for seed in (1, 2):
        assert rlloss("train", *TINY, f"seed={seed}", f"run_dir=r/{seed}", cwd=tmp_path).returncode == 0
    held = 'set -o pipefail; "$0" -m rlloss verify r/1 r/2 --json | true'
    done = subprocess.run(
        ["bash", "-c", held, sys.executable], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def test_the_version_is_the_packages(called_here):
    assert called_here("--version").stdout == f"rlloss {__version__}\n"


def test_hydras_own_flags_work(tmp_path):
    done = rlloss("train", "--cfg", "job", "loss=reinforce", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "name: reinforce" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["verify"], ["reproduce", "--preset", "huge"]])
def test_wrong_usage_exits_with_2(arguments, called_here):
    assert called_here(*arguments).returncode == 2


def test_unknown_claims_and_sizes_are_named(tmp_path, called_here):
    for arguments, message in (
        (["reproduce", "--claim", "x"], "--claim=x: no such claim; use one of identical_trajectories"),
        (["reproduce", "--jobs", "0"], "--jobs=0: must be 1 or greater"),
        (["benchmark", "--timesteps", "3"], "--timesteps=3"),
        (["evaluate", ".", "--seed", "-1"], "--seed=-1: must be 0 or greater"),
        (["check", "ppo_clip", "--seed", "-1"], "--seed=-1: must be 0 or greater, and less than 2**63"),
        (["check", "ppo_clip", "--seed", str(10**30)], "must be 0 or greater, and less than 2**63"),
        (["report", "typo"], "typo: no such folder; name the one that the runs went to"),
    ):
        done = called_here(*arguments)
        assert done.returncode == 2
        assert message in done.stderr
    assert everything_in(tmp_path) == []


def test_what_a_user_wants_to_know_of_a_finished_run_is_said(tmp_path, capsys):
    """A plateau on a metric that was never a number; observations that were flattened."""
    line = ["env.id=tests.examples.environments:Line-v0", "env.kwargs.obs=dict"]
    idle = ["env=pendulum", "schedule=plateau", "schedule.monitor=episodic_return", "total_timesteps=200"]
    for i, (overrides, said) in enumerate({
        tuple(idle): "note: schedule=plateau never decided anything: episodic_return was never a number in this run",
        tuple(line): "observations: Dict('position': Box(-1.0, 1.0, (2,), float32), 'goal': Discrete(2)), flattened to",
        ("env=cartpole",): "",
    }.items()):  # fmt: skip
        assert main(["train", *TINY, *overrides, f"run_dir={tmp_path / str(i)}"]) == 0
        out = capsys.readouterr().out
        assert said in out
        assert ("note:" in out or "observations:" in out) == bool(said)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte, and whether it can be written to."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root and the right to mount")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_full_is_one_line_and_the_run_says_failed(small_disk, called_here):
    done = called_here("train", "total_timesteps=61440", "snapshot_every=5", f"run_dir={small_disk / 'run'}")
    assert done.returncode == 1
    assert "No space left on device; free some space, or name another run_root" in done.stderr
    assert done.stderr.count("\n") == 1
    info = json.loads((small_disk / "run" / "run.json").read_text())
    assert info["status"] == "failed"
    assert "No space left on device" in info["error"]
    assert not list(small_disk.rglob("*.partial"))


def test_a_disk_that_cannot_be_written_to_is_said_before_a_sweep(small_disk, called_here):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = called_here("train", "-m", *TINY, "seed=1,2", f"run_root={small_disk / 'runs'}")
    assert done.returncode == 2
    assert f"{small_disk} cannot be written to; name another run_root or run_dir" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_key_that_came_after_a_run_was_made_had_its_default(tmp_path, capsys):
    train_it = ["train", *TINY, f"run_dir={tmp_path / 'run'}"]
    assert main(train_it) == 0
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("on_nonfinite: fail\n", "").replace("  check: true\n", ""))
    assert main(train_it) == 0
    assert "finished already" in capsys.readouterr().out
    assert main([*train_it, "on_nonfinite=record"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("argv", "froze"), [("", True), ("sys.argv[1:]", False)], ids=["a command", "a call"])
def test_what_a_command_loads_is_not_swept_for_garbage_and_what_a_call_loads_is_left_alone(argv, froze):
    code = (
        f"import gc, sys; from rlloss.cli import main; code = main({argv}); "
        "print(code, gc.isenabled(), gc.get_freeze_count() > 50_000)"
    )
    done = subprocess.run([sys.executable, "-c", code, "check", "ppo_clip"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"0 True {froze}"


@pytest.mark.slow
def test_commands_that_run_often_load_no_pandas_and_a_pair_without_proof_no_solver(tmp_path):
    """What is loaded where it is not used is time that somebody waits for, every time."""
    code = (
        "import sys; from rlloss.cli import main; code = main(sys.argv[1:]); "
        "print('loaded', *[name for name in ('pandas', 'z3', 'sympy', 'torch._dynamo') if name in sys.modules])"
    )
    for arguments, loaded in (
        (["train", *TINY, f"run_dir={tmp_path / 'run'}"], "loaded"),
        (["check", "ppo_clip", "reinforce", "--no-proof"], "loaded"),
        (["check", "ppo_clip", "reinforce"], "loaded z3"),
    ):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == loaded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "ppo_clip", "--no-proof"], "--no-proof: only tries two losses; name two"),
        (["check", "ppo_clip", "reinforce", "--no-proof", "--proof", "x"], "--no-proof: only tries two losses"),
        (["benchmark", "--peer", "cleanrl=python ppo.py"], "--peer=cleanrl=python ppo.py: give NAME=COMMAND, with {"),
        (["benchmark", "--of", "graph", "--peer", "a=b {timesteps}"], "--peer: trains beside rlloss in --of train"),
        (["benchmark", "--rounds", "1", "--peer", "a=no-such-program {timesteps}"], "--peer: no-such-program {times"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_timed_or_left_out_is_refused(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_pair_without_proof_says_what_was_tried(capsys):
    assert main(["check", "ppo_clip", "klip", "--no-proof"]) == 0
    out = capsys.readouterr().out
    assert "proved" not in out
    assert "on-policy" in out


@pytest.mark.slow
def test_where_the_time_goes_adds_up_and_is_drawn(tmp_path, capsys):
    assert main(["benchmark", "--of", "parts", "--rounds", "1", "-o", str(tmp_path / "parts.csv")]) == 0
    table = pd.read_csv(tmp_path / "parts.csv")
    assert (table["us, median"] > 0).all()
    assert set(table["of"]) == {"rollout step", "minibatch"}
    assert (tmp_path / "parts.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_peers_command_is_called_for_a_short_and_for_a_long_training(tmp_path):
    script = tmp_path / "peer.py"
    script.write_text(f"import sys; open({str(tmp_path / 'asked')!r}, 'a').write(sys.argv[1] + ' ')")
    arguments = ["benchmark", "--rounds", "1", "--timesteps", "4096", "-o", str(tmp_path / "table.csv")]
    assert main([*arguments, "--peer", f"mine={sys.executable} {script} {{timesteps}}"]) == 0
    assert (tmp_path / "asked").read_text().split()[-2:] == ["4096", "2048"]
    assert "mine" in pd.read_csv(tmp_path / "table.csv")["contestant"].tolist()


def test_a_full_disk_or_a_narrow_encoding_of_standard_output_is_no_crash(make_run):
    runs = [str(make_run(f"loss={loss}").path) for loss in ("ppo_clip", "cispo")]
    command = [sys.executable, "-m", "rlloss", "verify", *runs]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["rlloss: standard output: No space left on device; free some space"]
    environ = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environ, text=True, check=False)
    assert done.returncode in (0, 1)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "said"), [("dangling/run", "is a link to nothing"), ("a" * 300, "File name too long")]
)
def test_a_run_dir_that_cannot_be_is_named_with_its_key(tmp_path, monkeypatch, capsys, name, said):
    monkeypatch.chdir(tmp_path)
    Path("dangling").symlink_to("nowhere")
    assert main(["train", *TINY, f"run_dir={name}"]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith(f"rlloss: run_dir={name}: ")
    assert said in line
