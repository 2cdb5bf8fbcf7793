"""Files of a run that can all be read and that contradict each other: never IDENTICAL, and no certificate."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save

from rlloss.cli.main import main
from rlloss.runs import RunFolder
from rlloss.runs.agreement import disagreement
from rlloss.verify import compare_runs

KEPT = ("keep_checkpoints=40",)


@pytest.fixture
def copied(make_run, tmp_path):
    """The run of ppo_clip, and a copy of that of reinforce, which is its twin, to be damaged."""
    shutil.copytree(make_run(*KEPT, "loss=reinforce").path, tmp_path / "b")
    return make_run(*KEPT), tmp_path / "b"


def assert_refused(a, folder, capsys, *said):
    """``folder`` and its twin are no pair that could be judged, and it has no certificate, for one and the same why."""
    verdict = compare_runs(a, RunFolder(folder))
    assert verdict.verdict == "INCOMPLETE"
    assert all(text in verdict.reason for text in said), verdict.reason
    assert main(["verify", str(a.path), str(folder)]) == 1
    capsys.readouterr()
    assert main(["certify", str(folder)]) == 2
    err = capsys.readouterr().err
    assert all(text in err for text in said), err
    assert err.count("\n") == 1


def as_an_older_version_wrote(folder, *keys):
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({key: value for key, value in info.items() if key not in keys}))


def test_the_runs_themselves_agree(copied, capsys):
    a, b = copied
    assert compare_runs(a, RunFolder(b)).verdict == "IDENTICAL"
    assert main(["certify", str(b)]) == 0


@pytest.mark.parametrize("edit", [("name: reinforce", "name: cispo"), ("offset: 0.0", "offset: 5.0")], ids=str)
def test_a_config_that_names_another_loss_than_was_trained(copied, capsys, edit):
    a, b = copied
    text = (b / "config.yaml").read_text()
    assert edit[0] in text
    (b / "config.yaml").write_text(text.replace(*edit))
    assert_refused(a, b, capsys, "b/config.yaml is not the config that run.json has the digest of")


def test_of_an_older_run_the_source_of_its_loss_tells(copied, capsys):
    a, b = copied
    as_an_older_version_wrote(b, "config_digest")
    text = (b / "config.yaml").read_text()
    (b / "config.yaml").write_text(text.replace("name: reinforce", "name: cispo"))
    assert_refused(a, b, capsys, "b/config.yaml names the loss cispo, run.json has the source of reinforce")
    for name in ("reinforce", "mine.py:loss"):  # what cannot be decided is left alone
        (b / "config.yaml").write_text(text.replace("name: reinforce", f"name: {name}"))
        assert compare_runs(a, RunFolder(b)).verdict == "IDENTICAL"
    info = json.loads((b / "run.json").read_text())
    info["versions"]["loss"] = "0123456789ab"  # of another version
    (b / "run.json").write_text(json.dumps(info))
    (b / "config.yaml").write_text(text.replace("name: reinforce", "name: cispo"))
    assert compare_runs(a, RunFolder(b)).verdict == "IDENTICAL"


def rows_of(folder, name="metrics.csv"):
    head, *rows = (folder / name).read_text().splitlines()
    return head.split(","), [row.split(",") for row in rows]


def write_rows(folder, head, rows, name="metrics.csv"):
    (folder / name).write_text("".join(",".join(row) + "\n" for row in [head, *rows]))


def cell(column, row, value):
    def change(head, rows):
        rows[row][head.index(column)] = value
        return rows

    return change


ROWS = {  # a table that one run alone can be seen to contradict -> what is said
    "reversed": (lambda head, rows: rows[::-1], "iteration column that is not 1, 2, 3"),
    "a row in the place of another": (lambda head, rows: [*rows[:2], rows[1], *rows[3:]], "iteration column"),
    "two rows exchanged": (lambda head, rows: [rows[1], rows[0], *rows[2:]], "iteration column"),
    "no iteration": (cell("iteration", 2, ""), "iteration column"),
    "optimiser steps": (cell("optimizer_steps", 2, "7"), "optimizer_steps in iteration 3, not what the config says"),
    "the last optimiser steps": (cell("optimizer_steps", -1, "7"), "ends at optimizer_steps 7, run.json says 96"),
    "environment steps": (cell("env_steps", 1, "199"), "env_steps in iteration 2, not what the config says"),
    "the last environment steps": (cell("env_steps", -1, "7"), "ends at env_steps 7, run.json says 600"),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows_that_are_not_one_after_the_other(copied, capsys, case):
    a, b = copied
    change, said = ROWS[case]
    head, rows = rows_of(b)
    write_rows(b, head, change(head, rows))
    assert_refused(a, b, capsys, "b/metrics.csv", said)


def test_episodes_that_metrics_do_not_count(copied, capsys):
    a, b = copied
    head, rows = rows_of(b)
    before = rows[1][head.index("episodes")]
    write_rows(b, head, cell("episodes", 1, str(int(before) + 1))(head, rows))
    assert_refused(a, b, capsys, "b/episodes.csv has", "metrics.csv counts")
    write_rows(b, head, cell("episodes", 1, before)(head, rows))
    names, episodes = rows_of(b, "episodes.csv")
    write_rows(b, names, episodes[::-1], "episodes.csv")
    assert_refused(a, b, capsys, "b/episodes.csv has rows that are not in the order of env_steps")


@pytest.mark.parametrize("column", ["actions_digest", "observations_digest", "rewards_digest", "ends_digest"])
@pytest.mark.parametrize("row", [0, 3, -1])
def test_what_was_done_otherwise_though_the_parameters_are_equal(copied, column, row):
    a, b = copied
    head, rows = rows_of(b)
    write_rows(b, head, cell(column, row, "0" * 16)(head, rows))
    verdict = compare_runs(a, RunFolder(b))
    if row == -1 and column == "observations_digest":  # which nobody goes on with
        assert verdict.verdict == "IDENTICAL"
        return
    assert verdict.verdict == "INCOMPLETE"
    assert f"another {column} in iteration {row % 6 + 1}, digests.bin has equal parameters" in verdict.reason


@pytest.mark.parametrize("target_kl", ["1e-9", "1e-3", "100.0"])
def test_an_iteration_that_target_kl_ends_early_agrees(make_run, target_kl):
    run = make_run(f"target_kl={target_kl}")
    assert compare_runs(run, make_run(f"target_kl={target_kl}", "loss=reinforce")).verdict == "IDENTICAL"


def change_snapshots(folder, change):
    """``change`` gets the vectors of all steps by key, and alters them."""
    for path in sorted((folder / "snapshots").iterdir()):
        with safe_open(path, framework="numpy") as file:
            layout, kept = file.metadata(), {key: np.array(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
        change(kept)
        path.write_bytes(save(kept, metadata=layout))


SNAPSHOTS = {  # step -> how its parameters are changed, and what is said
    "another number": (50, lambda x: x + 1, "has other parameters after step 50 than digests.bin says"),
    "no number": (50, lambda x: x * np.nan, "has other parameters after step 50 than digests.bin says"),
    "half of them": (90, lambda x: x[::2].copy(), "has other parameters after step 90"),
    "missing": (50, lambda x: None, "has no parameters after step 50"),
    "another start": (0, lambda x: x + 1, "has other parameters before step 1 than the initial_digest of run.json"),
    "no start": (0, lambda x: None, "has no parameters after step 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", SNAPSHOTS)
def test_a_snapshot_that_is_not_what_its_digest_is_of(copied, capsys, case):
    a, b = copied
    step, change, said = SNAPSHOTS[case]

    def spoil(kept):
        kept[f"{step:09d}"] = changed = change(kept[f"{step:09d}"])
        if changed is None:
            del kept[f"{step:09d}"]

    change_snapshots(b, spoil)
    assert_refused(a, b, capsys, f"b/snapshots/ {said}")


def test_of_older_runs_the_twin_tells_that_one_began_with_other_parameters(copied):
    a, b = copied
    as_an_older_version_wrote(b, "initial_digest")
    change_snapshots(b, lambda kept: kept["000000000"].__iadd__(1))
    verdict = compare_runs(a, RunFolder(b))
    assert verdict.verdict == "INCOMPLETE"
    assert "and of b have other parameters before step 1, digests.bin the same after it" in verdict.reason


@pytest.mark.parametrize("precision", ["bf16", "fp16", "bf16_autocast", "fp64"])
def test_snapshots_and_checkpoints_of_every_precision_agree(make_run, precision):
    run = make_run(*KEPT, f"precision={precision}", "best=metric")
    assert RunFolder(run.path).damage == ""
    assert disagreement(RunFolder(run.path)) == ""


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "checkpoints/000000080.safetensors"])
@pytest.mark.parametrize("place", [0.02, 0.5, 0.9999])
def test_a_checkpoint_in_which_a_bit_changed(copied, capsys, name, place):
    a, b = copied
    data = bytearray((b / name).read_bytes())
    data[int(place * len(data))] ^= 1
    (b / name).write_bytes(data)
    assert_refused(a, b, capsys, f"b/{name}")


def test_a_checkpoint_of_another_step(copied, capsys):
    a, b = copied
    shutil.copy(b / "checkpoints" / "000000048.safetensors", b / "checkpoints" / "000000080.safetensors")
    assert_refused(
        a, b, capsys, "b/checkpoints/000000080.safetensors has other parameters than the digest after step 80 says"
    )
    shutil.copy(a.path / "checkpoints" / "000000080.safetensors", b / "checkpoints")
    shutil.copy(a.path / "checkpoints" / "000000080.safetensors", b / "checkpoints" / "000000800.safetensors")
    assert_refused(a, b, capsys, "b/checkpoints/000000800.safetensors is of an optimiser step 800, which there is not")


def test_a_best_checkpoint_that_was_changed(make_run, tmp_path, capsys):
    a = make_run("best=metric")
    shutil.copytree(make_run("best=metric", "loss=reinforce").path, tmp_path / "b")
    data = bytearray((tmp_path / "b" / "best.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "b" / "best.safetensors").write_bytes(data)
    assert_refused(a, tmp_path / "b", capsys, "b/best.safetensors", "its content is not what was written")


def flip(folder, step):
    data = bytearray((folder / "digests.bin").read_bytes())
    data[32 * (step - 1)] ^= 1
    (folder / "digests.bin").write_bytes(data)


def test_a_bit_of_one_digest_alone_is_a_damaged_file_and_no_difference(copied, tmp_path):
    a, b = copied
    flip(b, 37)
    verdict = compare_runs(a, RunFolder(b))
    assert verdict.verdict == "INCOMPLETE"
    assert "digests.bin of run and of b differ after step 37 and are equal after step 38" in verdict.reason


def test_a_digest_of_which_there_is_a_snapshot_tells_which_file_it_is(copied, capsys):
    a, b = copied
    flip(b, 40)
    assert_refused(a, b, capsys, "b/snapshots/ has other parameters after step 40 than digests.bin says")


def test_a_damaged_digest_before_a_real_difference_is_seen(make_run, tmp_path):
    shutil.copytree(make_run("loss=cispo").path, tmp_path / "b")
    first = compare_runs(make_run(), RunFolder(tmp_path / "b")).first_difference
    flip(tmp_path / "b", first - 2)
    verdict = compare_runs(make_run(), RunFolder(tmp_path / "b"))
    assert verdict.verdict == "INCOMPLETE"
    assert f"equal after step {first - 1}" in verdict.reason


def test_a_difference_that_went_away_and_that_a_snapshot_shows_stays_one(copied):
    a, b = copied
    changed = {}

    def nudge(kept):
        kept["000000050"][7] += 1
        changed["digest"] = hashlib.sha256(kept["000000050"].tobytes()).digest()

    change_snapshots(b, nudge)
    data = (b / "digests.bin").read_bytes()
    (b / "digests.bin").write_bytes(data[: 32 * 49] + changed["digest"] + data[32 * 50 :])
    verdict = compare_runs(a, RunFolder(b))
    assert (verdict.verdict, verdict.first_difference) == ("DIVERGED", 50)
