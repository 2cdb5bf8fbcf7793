"""Verdicts on real runs, each of which could have come out otherwise; one flipped bit is found at its step."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlloss.cli import main
from rlloss.config import load
from rlloss.record import Recorder
from rlloss.runs import RunFolder, find_runs
from rlloss.train import train
from rlloss.verify import compare, first_difference, pair, stood_still, ulp_distance, verify

ODD = "num_steps=60"  # minibatches of 30


def test_the_two_formulations_are_identical(make_run):
    verdict = compare(make_run(), make_run("loss=reinforce"))
    assert verdict.verdict == "IDENTICAL"
    assert verdict.steps == 96
    assert verdict.first_difference is None
    assert make_run().metrics["policy_loss"].ne(make_run("loss=reinforce").metrics["policy_loss"]).all()


@pytest.mark.parametrize("step", [1, 37, 96])
def test_one_ulp_in_one_weight_is_found_at_its_step(make_run, tmp_path, monkeypatch, step):
    reference, original = make_run(), Recorder.step  # made before anything is patched: other tests share it

    def nudged(self):
        if self.optimizer_steps + 1 == step:
            with torch.no_grad():
                weight = self.policy.flat[123]
                weight.copy_(torch.nextafter(weight, torch.tensor(torch.inf)))
        original(self)

    monkeypatch.setattr(Recorder, "step", nudged)
    train(make_config("loss=reinforce"), tmp_path / "run")
    verdict = compare(reference, RunFolder(tmp_path / "run"))
    assert verdict.verdict in ("ROUNDING", "DIVERGED")
    assert verdict.first_difference == step
    assert verdict.onset == "small"
    if step == 96:
        assert verdict.verdict == "ROUNDING"
        assert [(row.step, row.parameters, row.median_ulp) for row in verdict.drift] == [(96, 1, 1.0)]


def make_config(*overrides):
    from conftest import SHORT

    return load([*SHORT, *overrides])


def test_textbook_order_begins_as_a_few_ulp(make_run):
    verdict = compare(make_run(ODD, "optimizer=sgd"), make_run(ODD, "optimizer=sgd", "loss=reinforce_textbook"))
    assert verdict.verdict == "ROUNDING"
    assert verdict.onset == "small"
    assert verdict.first_difference is not None
    first = verdict.drift[0]
    assert 0 < first.max_abs < 1e-5
    assert first.relative < 1e-4
    assert first.median_ulp <= 4


def test_another_update_is_diverged_and_not_mistaken_for_rounding(make_run, monkeypatch):
    import rlloss.losses
    from rlloss.losses import LOSSES

    def doubled(logp, old_logp, advantages, *, clip_coef):
        return 2 * rlloss.losses.ppo_clip(logp, old_logp, advantages, clip_coef=clip_coef)

    other = make_run("loss=reinforce_mask", "seed=9")
    assert compare(make_run("seed=9"), other).verdict == "IDENTICAL"  # the control: same machinery, right loss
    monkeypatch.setitem(LOSSES, "reinforce_mask", doubled)
    wrong = make_run("loss=reinforce_mask", "seed=8")
    verdict = compare(make_run("seed=8"), wrong)
    assert verdict.verdict == "DIVERGED"
    assert verdict.onset == "large"
    assert verdict.first_difference == 1


def test_different_conditions_are_incomparable_and_the_keys_are_named(make_run):
    verdict = compare(make_run(), make_run("loss=reinforce", "gamma=0.9"))
    assert verdict.verdict == "INCOMPARABLE"
    assert verdict.differing_keys == ["gamma"]
    assert compare(make_run(), make_run("snapshot_every=0", "loss=reinforce")).verdict == "IDENTICAL"


def test_runs_that_went_nan_are_not_called_identical(tmp_path):
    for loss in ("ppo_clip", "reinforce"):
        config = make_config(f"loss={loss}")
        config.learning_rate = 1e38
        train(config, tmp_path / loss)
    a, b = RunFolder(tmp_path / "ppo_clip"), RunFolder(tmp_path / "reinforce")
    assert not np.isfinite(a.snapshot(96)).all()
    assert compare(a, b).verdict == "INCOMPLETE"
    assert "not finite numbers" in compare(a, b).reason


def test_other_versions_are_mentioned(make_run, tmp_path):
    other = make_run("loss=reinforce")
    versions = other.info["versions"] | {"torch": "9.9"}
    verdict = compare(make_run(), copy_of(other, tmp_path / "run", versions=versions))
    assert verdict.verdict == "IDENTICAL"
    assert "| 9.9" in verdict.reason


def copy_of(run, folder, **changes):
    shutil.copytree(run.path, folder)
    info = json.loads((folder / "run.json").read_text()) | changes
    (folder / "run.json").write_text(json.dumps(info))
    return RunFolder(folder)


def test_unfinished_and_inconsistent_runs_are_incomplete(make_run, tmp_path):
    whole = make_run()
    running = copy_of(make_run("loss=reinforce"), tmp_path / "a", status="running")
    assert compare(whole, running).verdict == "INCOMPLETE"
    cut = copy_of(make_run("loss=reinforce"), tmp_path / "b")
    (cut.path / "digests.bin").write_bytes(whole.digests.tobytes()[:-32])
    verdict = compare(whole, cut)
    assert verdict.verdict == "INCOMPLETE"
    assert "95 digests for 96 steps" in verdict.reason
    assert verdict.first_difference is None
    forged = copy_of(make_run("loss=reinforce"), tmp_path / "c", final_digest="00" * 32)
    assert compare(whole, forged).verdict == "INCOMPLETE"


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
    verdict = compare(make_run(), RunFolder(other.path))
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


def test_analysis_does_not_import_torch_or_the_trainer(make_run):
    code = (
        "import sys; from pathlib import Path; from rlloss.runs import find_runs; from rlloss.verify import verify;"
        f"verify(find_runs([Path({str(make_run().path)!r}), Path({str(make_run('loss=reinforce').path)!r})]));"
        "sys.exit(bool({'torch', 'rlloss.train', 'hydra'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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


@pytest.mark.parametrize(("name", "content"), [("config.yaml", "a: [1"), ("config.yaml", "- 1"), ("metrics.csv", "")])
def test_damaged_files_make_a_run_incomplete_and_raise_nothing(make_run, tmp_path, name, content):
    copy = copy_of(make_run("loss=reinforce"), tmp_path / "run")
    (copy.path / name).write_text(content)
    assert compare(make_run(), RunFolder(copy.path)).verdict in ("INCOMPLETE", "IDENTICAL")
    assert main(["verify", str(make_run().path), str(copy.path)]) in (0, 1)


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
