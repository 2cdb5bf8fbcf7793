"""Verdicts on real runs, each of which could have come out otherwise; one flipped bit is found at its step."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from rlloss.bisect.bisect import bisect
from rlloss.cause import stood_still
from rlloss.cli import main
from rlloss.config import load
from rlloss.errors import ConfigError
from rlloss.runs import RunFolder, find_runs
from rlloss.train import train
from rlloss.train.recording import FolderRecorder
from rlloss.verify import compare_runs, first_difference, pair, ulp_distance, verify
from tests.helpers import SHORT, rewrite_config

ODD = "num_steps=60"  # minibatches of 30


def test_the_two_formulations_are_identical(make_run):
    verdict = compare_runs(make_run(), make_run("loss=reinforce"))
    assert verdict.verdict == "IDENTICAL"
    assert verdict.steps == 96
    assert verdict.first_difference is None
    assert verdict.reason == "", "the loss is no part of what twins must share, its source neither"
    assert make_run().metrics["policy_loss"].ne(make_run("loss=reinforce").metrics["policy_loss"]).all()


@pytest.mark.parametrize("step", [1, 37, 96])
def test_one_ulp_in_one_weight_is_found_at_its_step(make_run, tmp_path, monkeypatch, step):
    reference, original = make_run(), FolderRecorder.step  # made before anything is patched: other tests share it

    def nudged(self):
        if self.writer.optimizer_steps + 1 == step:
            with torch.no_grad():
                weight = self.policy.flat[123]
                weight.copy_(torch.nextafter(weight, torch.tensor(torch.inf)))
        original(self)

    monkeypatch.setattr(FolderRecorder, "step", nudged)
    train(make_config("loss=reinforce"), tmp_path / "run")
    verdict = compare_runs(reference, RunFolder(tmp_path / "run"))
    assert verdict.verdict in ("ROUNDING", "DIVERGED")
    assert verdict.first_difference == step
    assert verdict.onset == "small"
    if step == 96:
        assert verdict.verdict == "ROUNDING"
        assert [(row.step, row.parameters, row.median_ulp) for row in verdict.drift] == [(96, 1, 1.0)]


def make_config(*overrides):

    return load([*SHORT, *overrides])


def test_textbook_order_begins_as_a_few_ulp(make_run):
    verdict = compare_runs(make_run(ODD, "optimizer=sgd"), make_run(ODD, "optimizer=sgd", "loss=reinforce_textbook"))
    assert verdict.verdict == "ROUNDING"
    assert verdict.onset == "small"
    assert verdict.first_difference is not None
    first = verdict.drift[0]
    assert 0 < first.max_abs < 1e-5
    assert first.relative < 1e-4
    assert first.median_ulp <= 4


def test_another_update_is_diverged_and_not_mistaken_for_rounding(make_run, tmp_path, monkeypatch):
    import rlloss.losses
    from rlloss.losses import LOSSES

    def doubled(logp, old_logp, advantages, *, clip_coef):
        return 2 * rlloss.losses.ppo_clip(logp, old_logp, advantages, clip_coef=clip_coef)

    reference, right = make_run(), make_run("loss=reinforce_mask")
    assert compare_runs(reference, right).verdict == "IDENTICAL"  # the control: same machinery, right loss
    monkeypatch.setitem(LOSSES, "reinforce_mask", doubled)
    train(make_config("loss=reinforce_mask"), tmp_path / "run")
    verdict = compare_runs(reference, RunFolder(tmp_path / "run"))
    assert verdict.verdict == "DIVERGED"
    assert verdict.onset == "large"
    assert verdict.first_difference == 1


def test_different_conditions_are_incomparable_and_the_keys_are_named(make_run):
    verdict = compare_runs(make_run(), make_run("loss=reinforce", "gamma=0.9"))
    assert verdict.verdict == "INCOMPARABLE"
    assert verdict.differing_keys == ["gamma"]
    assert compare_runs(make_run(), make_run("snapshot_every=0", "loss=reinforce")).verdict == "IDENTICAL"


def test_runs_that_went_nan_are_not_called_identical(tmp_path):
    for loss in ("ppo_clip", "reinforce"):
        config = make_config(f"loss={loss}")
        config.learning_rate, config.on_nonfinite = 1e38, "record"
        train(config, tmp_path / loss)
    a, b = RunFolder(tmp_path / "ppo_clip"), RunFolder(tmp_path / "reinforce")
    assert not np.isfinite(a.snapshot(96)).all()
    assert compare_runs(a, b).verdict == "INCOMPLETE"
    assert "not finite numbers" in compare_runs(a, b).reason


def test_other_versions_are_mentioned(make_run, tmp_path):
    other = make_run("loss=reinforce")
    versions = other.info["versions"] | {"torch": "9.9"}
    verdict = compare_runs(make_run(), copy_of(other, tmp_path / "run", versions=versions))
    assert verdict.verdict == "IDENTICAL"
    assert "| 9.9" in verdict.reason


def test_another_machine_is_mentioned_where_it_computes_otherwise(make_run, tmp_path):
    run, other = make_run(), make_run("loss=reinforce")
    machine = other.info["machine"] | {"cpu": "another"}
    assert not compare_runs(run, copy_of(other, tmp_path / "same", machine=machine)).reason
    operations = other.info["operations"] | {"convolution": "0" * 16, "log-softmax": "0" * 16}
    reason = compare_runs(run, copy_of(other, tmp_path / "b", machine=machine, operations=operations)).reason
    assert reason.endswith("| another, other bits in convolution, log-softmax")


def copy_of(run, folder, **changes):
    shutil.copytree(run.path, folder)
    info = json.loads((folder / "run.json").read_text()) | changes
    (folder / "run.json").write_text(json.dumps(info))
    return RunFolder(folder)


def test_unfinished_and_inconsistent_runs_are_incomplete(make_run, tmp_path):
    whole = make_run()
    running = copy_of(make_run("loss=reinforce"), tmp_path / "a", status="running")
    assert compare_runs(whole, running).verdict == "INCOMPLETE"
    cut = copy_of(make_run("loss=reinforce"), tmp_path / "b")
    (cut.path / "digests.bin").write_bytes(whole.digests.tobytes()[:-32])
    verdict = compare_runs(whole, cut)
    assert verdict.verdict == "INCOMPLETE"
    assert "digests.bin has 95 digests, run.json says 96 optimiser steps" in verdict.reason
    assert verdict.first_difference is None
    forged = copy_of(make_run("loss=reinforce"), tmp_path / "c", final_digest="00" * 32)
    assert compare_runs(whole, forged).verdict == "INCOMPLETE"


def test_a_forged_digest_is_found_at_its_step(make_run, tmp_path):
    forged = copy_of(make_run("loss=reinforce"), tmp_path / "run")
    data = bytearray((forged.path / "digests.bin").read_bytes())
    data[32 * 40] ^= 1
    (forged.path / "digests.bin").write_bytes(data)
    assert first_difference(make_run(), forged) == 41


def test_actions_that_differ_are_dated(make_run, tmp_path):
    other = copy_of(make_run("loss=reinforce"), tmp_path / "run")
    table = other.metrics.copy()
    table.loc[3, "actions_digest"] = "0" * 16
    table.to_csv(other.path / "metrics.csv", index=False)
    verdict = compare_runs(make_run(), RunFolder(other.path))
    assert verdict.first_other_actions == 4
    assert verdict.verdict != "IDENTICAL"


def test_pairs_are_equal_in_everything_but_the_loss(make_run):
    a, b, c = make_run(), make_run("loss=reinforce"), make_run("loss=reinforce", "gamma=0.9")
    pairs, alone = pair([c, b, a])
    assert [(x.loss, y.loss) for x, y in pairs] == [("ppo_clip", "reinforce")]
    assert alone == [c]
    assert pair([a, c]) == ([(a, c)], []), "two named runs are always compared"
    verdicts, _ = verify([a, b, make_run("loss=reinforce_mask")])
    assert [v.loss_a for v in verdicts] == ["ppo_clip", "ppo_clip"]


def floats(dtype):
    return hnp.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=True)


@given(x=floats(np.float32), steps=st.integers(0, 20))
def test_ulp_distance_counts_neighbours(x, steps):
    y = x
    for _ in range(steps):
        if np.isposinf(y):
            return
        with np.errstate(over="ignore"):
            y = np.nextafter(y, np.float32(np.inf))
    assert ulp_distance(np.array([x]), np.array([y]))[0] == steps
    assert ulp_distance(np.array([y]), np.array([x]))[0] == steps


@given(x=floats(np.float64), y=floats(np.float64))
def test_ulp_distance_is_zero_for_equal_numbers_only(x, y):
    assert (ulp_distance(np.array([x]), np.array([y]))[0] == 0) == (x == y)


def test_ulp_distance_spans_zero_and_rejects_mixed_dtypes():
    tiny = np.array([5e-324])
    assert ulp_distance(-tiny, tiny)[0] == 2
    with pytest.raises(TypeError, match="float32 and float64"):
        ulp_distance(np.zeros(1, np.float32), np.zeros(1))


def test_command_exit_codes_table_and_json(make_run, tmp_path, capsys):
    same, drifted = tmp_path / "same", tmp_path / "drifted"
    for i, run in enumerate((make_run(), make_run("loss=reinforce"))):
        shutil.copytree(run.path, same / str(i))
    for i, run in enumerate((make_run(ODD), make_run(ODD, "loss=reinforce_textbook"))):
        shutil.copytree(run.path, drifted / str(i))
    assert main(["verify", str(same)]) == 0
    assert "IDENTICAL" in capsys.readouterr().out
    assert main(["verify", str(same), str(drifted)]) == 1
    out = capsys.readouterr().out
    assert "1 IDENTICAL" in out
    assert "of 2 pairs" in out
    assert main(["verify", str(drifted), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["holds"] is False
    assert document["pairs"][0]["verdict"] in ("ROUNDING", "DIVERGED")
    assert document["pairs"][0]["drift"][0]["max_abs"] > 0
    assert main(["verify", str(same / "0"), str(drifted / "1")]) == 1
    assert "INCOMPARABLE" in capsys.readouterr().out
    for bad in ([str(tmp_path / "nowhere")], [str(same / "0")]):
        assert main(["verify", *bad]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_analysis_needs_no_torch_and_never_the_trainer(make_run):
    """What ``rlloss check`` knows of the losses is asked for identical pairs alone; without torch it is not known."""
    code = (
        "import sys; from pathlib import Path; from rlloss.runs import find_runs; from rlloss.verify import verify;"
        "sys.modules['torch'] = None;"
        f"folders = map(Path, {[str(make_run().path), str(make_run('loss=reinforce').path)]});"
        "[pair], _ = verify(find_runs(folders));"
        "print(pair.verdict, pair.tested, pair.untested);"
        "print({'rlloss.train', 'hydra'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    verdict, loaded = done.stdout.splitlines()
    assert verdict.startswith("IDENTICAL None not known: import of torch halted")
    assert loaded == "set()"


def test_json_is_standard_where_numbers_are_not_finite(make_run, tmp_path, capsys):
    for i, loss in enumerate(("ppo_clip", "reinforce")):
        shutil.copytree(make_run("max_grad_norm=inf", f"loss={loss}").path, tmp_path / str(i))
    assert main(["verify", str(tmp_path), "--json"]) == 0

    def refuse(constant):
        raise AssertionError(constant)

    document = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert document["pairs"][0]["condition"]["max_grad_norm"] is None


def test_a_run_is_never_compared_with_itself(make_run, tmp_path):
    (tmp_path / "link").symlink_to(make_run().path)
    assert len(find_runs([make_run().path, tmp_path / "link", make_run().path / ".." / "run"])) == 1


def test_a_run_killed_at_its_start_is_incomplete_and_not_overlooked(make_run, tmp_path):
    copy = copy_of(make_run("loss=reinforce"), tmp_path / "run")
    (copy.path / "run.json").unlink()
    verdicts, _ = verify(find_runs([make_run().path, copy.path]))
    assert [v.verdict for v in verdicts] == ["INCOMPLETE"]


def test_runs_are_found_below_folders_once(make_run, tmp_path):
    shutil.copytree(make_run().path, tmp_path / "deep" / "er" / "run")
    assert [run.path.name for run in find_runs([tmp_path, tmp_path / "deep"])] == ["run"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_step_that_moved_nothing_is_seen_from_the_first_on(make_run, precision):
    """Digests are of the parameters' own bytes, snapshots of bfloat16 are in float32."""
    common = (f"precision={precision}", "snapshot_every=0", "total_timesteps=200")
    idle = make_run(*common, "optimizer=sgd", "learning_rate=5e-324")
    assert [stood_still(idle, step) for step in (1, 2)] == [True, True]
    assert not stood_still(make_run(*common), 1)


QUIET = "learning_rate=1e-5"  # no ratio comes near a bound


@pytest.mark.parametrize("loss", ["reinforce", "cispo", "ppo_unclipped", "dual_clip"])
def test_identical_where_nothing_could_differ_is_not_put_to_the_test(make_run, tmp_path, capsys, loss):
    for name in ("ppo_clip", loss):
        shutil.copytree(make_run(QUIET, f"loss={name}").path, tmp_path / name)
    assert main(["verify", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "1 IDENTICAL (not put to the test) of 1 pairs" in out
    assert "not put to the test: no ratio left 0.8 … 1.2" in out
    assert main(["verify", "--tested", str(tmp_path)]) == 1
    capsys.readouterr()
    assert main(["verify", "--json", str(tmp_path)]) == 0
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    assert (pair["verdict"], pair["tested"]) == ("IDENTICAL", False)
    assert pair["put_to"]["clip_active_steps"] == 0


def test_a_pair_that_went_beyond_the_bounds_is_put_to_the_test(make_run, tmp_path, capsys):
    for loss in ("ppo_clip", "reinforce"):
        shutil.copytree(make_run(f"loss={loss}").path, tmp_path / loss)
    assert main(["verify", "--tested", str(tmp_path)]) == 0
    assert "clip active in" in capsys.readouterr().out
    (verdict,), _ = verify(find_runs([tmp_path]))
    assert verdict.tested is True
    put = verdict.put_to
    assert 0 < put["clip_active_steps"] < put["optimizer_steps"] == 96
    assert 0 < put["clip_active_epochs"] <= put["epochs"] == 24
    assert put["positive_ratio"][1] > 1.2 or put["negative_ratio"][0] < 0.8
    assert (put["clip_active_frac"] > 0) == (put["clip_active_steps"] > 0)


def test_a_loss_that_differs_only_far_out_is_not_tested_by_clipping(make_run):
    """dual_clip differs from ppo_clip at A < 0 and ratio > 3 alone, where these runs never went."""
    verdict = compare_runs(make_run(), make_run("loss=dual_clip"))
    assert verdict.verdict == "IDENTICAL"
    assert verdict.put_to["clip_active_frac"] > 0
    assert verdict.tested is False
    assert "the losses differ at A < 0: ratio > 3 alone" in verdict.untested


def test_a_run_and_its_repetition_test_whether_training_is_deterministic(make_run, tmp_path, capsys):
    copy = copy_of(make_run(QUIET), tmp_path / "again")
    verdict = compare_runs(make_run(QUIET), copy)
    assert (verdict.verdict, verdict.tested) == ("IDENTICAL", False)
    assert verdict.untested.startswith("one run and its copy, which tests neither losses nor whether")
    assert main(["verify", "--tested", str(make_run(QUIET).path), str(copy.path)]) == 1
    capsys.readouterr()
    again = copy_of(make_run(QUIET), tmp_path / "later", steps_per_second=7.5)
    assert main(["verify", str(make_run(QUIET).path), str(again.path)]) == 0
    said = "ppo_clip twice: tests whether training is deterministic, and no two losses"
    assert said in " ".join(capsys.readouterr().out.split())
    assert main(["verify", "--tested", str(make_run(QUIET).path), str(again.path)]) == 0


def test_ratios_of_one_run_that_its_twin_cannot_have_missed_are_incomplete(make_run, tmp_path):
    """Else a number in one file would say what the pair was put to."""
    other = copy_of(make_run("loss=reinforce"), tmp_path / "run")
    table = other.metrics.copy()
    table.loc[0, "positive_ratio_min"] = 0.1
    table.to_csv(other.path / "metrics.csv", index=False)
    verdict = compare_runs(make_run(), RunFolder(other.path))
    assert verdict.verdict == "INCOMPLETE"
    assert "have another positive_ratio_min in iteration 1" in verdict.reason


def test_runs_that_did_not_record_their_ratios_are_not_known_to_be_tested(make_run, tmp_path):
    other = copy_of(make_run("loss=reinforce"), tmp_path / "run")
    other.metrics.drop(columns="negative_ratio_min").to_csv(other.path / "metrics.csv", index=False)
    verdict = compare_runs(make_run(), RunFolder(other.path))
    assert verdict.tested is None
    assert verdict.untested == "not known: the ratios were not recorded"


@pytest.mark.parametrize("key", ["torch_threads=2", "precision=fp64", "gamma=0.9"])
def test_two_named_runs_are_compared_with_numbers_whatever_they_differ_in(make_run, capsys, key):
    a, b = make_run(), make_run(key)
    assert main(["verify", str(a.path), str(b.path)]) == 1
    out = capsys.readouterr().out
    assert "INCOMPARABLE" in out
    assert f"differ in {key.split('=')[0]}" in out
    verdict = compare_runs(a, b)
    if key != "torch_threads=2":
        assert verdict.first_difference == 1
        assert verdict.drift[-1].max_abs > 0


def test_many_pairs_are_counted_and_what_fell_short_comes_first(make_run, tmp_path, capsys):
    for i in range(1, 12):
        for loss in ("ppo_clip", "reinforce"):
            target = shutil.copytree(make_run(f"loss={loss}").path, tmp_path / f"seed-{i}" / loss)
            rewrite_config(target, "seed: 1\n", f"seed: {i}\n")
    for i in (10, 2):
        (tmp_path / f"seed-{i}" / "reinforce" / "episodes.csv").unlink()
    assert main(["verify", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["INCOMPLETE", "INCOMPLETE"]
    assert "reinforce/episodes.csv is missing" in lines[2]
    assert "2 INCOMPLETE, 9 IDENTICAL of 11 pairs" in lines
    assert sum(line.startswith("IDENTICAL  ") for line in lines) == 0
    assert main(["verify", "--all", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("IDENTICAL  ") for line in lines) == 9
    found = [run.path.parent.name for run in find_runs([tmp_path])]
    assert found == [f"seed-{i}" for i in range(1, 12) for _ in range(2)]


@pytest.mark.parametrize("value", ["word", "0", "[1]", "1000000"])
def test_a_config_of_another_trainer_says_nothing_of_epochs(make_run, tmp_path, value):
    a, b = (copy_of(make_run(f"loss={loss}"), tmp_path / loss) for loss in ("ppo_clip", "reinforce"))
    for run in (a, b):
        rewrite_config(run.path, "num_minibatches: 4", f"num_minibatches: {value}")
        info = json.loads((run.path / "run.json").read_text())
        del info["versions"]["source"]
        (run.path / "run.json").write_text(json.dumps(info))
    verdict = compare_runs(RunFolder(a.path), RunFolder(b.path))
    assert (verdict.verdict, verdict.tested, verdict.put_to) == ("IDENTICAL", None, {})


EVIL = """\
import pathlib
pathlib.Path(__file__).with_name("executed").touch()
def loss(logp, old_logp, advantages, *, clip_coef):
    return -logp * advantages
"""


@pytest.mark.parametrize(("loss", "executed"), [("elsewhere/evil.py:loss", False), ("elsewhere.evil:loss", False),
                                                ("evil.py:loss", True), ("evil:loss", True)])  # fmt: skip
def test_a_loss_that_came_with_the_runs_is_not_loaded(loss, executed, make_run, tmp_path, monkeypatch):
    """Runs from elsewhere are data: no file that they name is executed. One of the user's, apart from them, is."""
    monkeypatch.chdir(tmp_path)
    for home in (tmp_path, tmp_path / "elsewhere"):
        home.mkdir(exist_ok=True)
        (home / "evil.py").write_text(EVIL)
    for i, name in enumerate(("ppo_clip", loss)):
        run = copy_of(make_run(), tmp_path / "elsewhere" / f"run{i}")
        rewrite_config(run.path, "name: ppo_clip", f"name: '{name}'")
    done = subprocess.run(
        [sys.executable, "-m", "rlloss", "verify", "elsewhere"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "IDENTICAL" in done.stdout
    assert (tmp_path / "executed").exists() == executed
    assert not (tmp_path / "elsewhere" / "executed").exists()
    assert ("is not loaded" in done.stdout) != executed


@pytest.mark.slow
def test_a_table_of_hundreds_of_pairs_lists_the_gravest_and_counts_the_rest(make_run, tmp_path, capsys):
    names = [f"loss{i}" for i in range(120)]
    for name in ("ppo_clip", *names):
        run = copy_of(make_run(), tmp_path / name)
        rewrite_config(run.path, "name: ppo_clip", f"name: {name}")
    for name in names[:40]:
        (tmp_path / name / "run.json").write_text('{"status": "running"}')
    other = make_run("loss=cispo")
    for name in names[90:93]:
        shutil.rmtree(tmp_path / name)
        copy_of(other, tmp_path / name)
        rewrite_config(tmp_path / name, "name: cispo", f"name: {name}")
    assert main(["verify", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    rows = out.splitlines()[2:32]
    assert [row.split()[0] for row in rows] == ["DIVERGED"] * 3 + ["INCOMPLETE"] * 27
    assert "13 more fell short" in out
    assert "3 DIVERGED, 40 INCOMPLETE, 77 IDENTICAL of 120 pairs" in out
    assert len(out.splitlines()) < 45
    assert main(["verify", "--all", str(tmp_path)]) == 1
    assert len(capsys.readouterr().out.splitlines()) > 120
    assert main(["verify", "--json", str(tmp_path)]) == 1
    assert len(json.loads(capsys.readouterr().out)["pairs"]) == 120


def test_folders_by_name_will_do_in_python(tmp_path):
    """As strings or paths, one or several: of what trains, finds, reads, verifies and bisects."""
    train(load(["total_timesteps=512", "num_envs=2"]), str(tmp_path / "ppo"))
    train(load(["total_timesteps=512", "num_envs=2", "loss=reinforce"]), tmp_path / "reinforce")
    folders = [str(tmp_path / "ppo"), tmp_path / "reinforce"]
    for named in (folders, str(tmp_path), tmp_path, [RunFolder(folders[0]), folders[1]]):
        ((found,), alone) = verify(named)
        assert (found.verdict, alone) == ("IDENTICAL", [])
    assert find_runs(folders[0]) == [RunFolder(tmp_path / "ppo")]
    assert RunFolder(folders[0]).status == "finished"
    assert bisect(*folders).step is None


def test_where_no_run_is_there_is_no_verdict_in_python_either(make_run, tmp_path):
    """An answer without pairs would be one that holds: all() of nothing is true."""
    (tmp_path / "empty").mkdir()
    for runs, named in (
        ([], "nothing to verify"),
        (tmp_path / "empty", f"{tmp_path / 'empty'}: no run in it or below it"),
        ([make_run(), str(tmp_path / "empty")], f"{tmp_path / 'empty'}: no run in it or below it"),
        (str(tmp_path / "nosuch"), f"{tmp_path / 'nosuch'}: no such folder"),
        ([tmp_path / "nosuch", make_run()], f"{tmp_path / 'nosuch'}: no such folder"),
    ):
        with pytest.raises(ConfigError) as refused:
            verify(runs)
        assert named in str(refused.value)
    with pytest.raises(ConfigError, match="nosuch: no such folder"):
        find_runs([tmp_path, tmp_path / "nosuch"])
    assert find_runs([tmp_path]) == []


def test_a_folder_in_a_list_is_all_that_lies_below_it(make_run, tmp_path):
    for loss in ("ppo_clip", "reinforce"):
        shutil.copytree(make_run(f"loss={loss}").path, tmp_path / "sweep" / loss)
    ((found,), alone) = verify([tmp_path / "sweep", str(tmp_path / "sweep" / "ppo_clip")])
    assert (found.verdict, alone) == ("IDENTICAL", [])
