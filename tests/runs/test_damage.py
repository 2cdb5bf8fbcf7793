"""Run folders that are damaged, or that somebody else wrote: every reading command says which file, and why.

Hypothesis picks a file, a way to spoil it, and a place in it. Whatever it picks, no command crashes, and none calls
two runs identical whose files it could not read.
"""

import itertools
import json
import os
import shutil
import tracemalloc

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings, strategies as st
from matplotlib.figure import Figure

from rlloss import stats
from rlloss.claims import Claim
from rlloss.claims.judged import HOLDS, NOT_RUN, judge
from rlloss.claims.report import digests_table
from rlloss.claims.twins import identity_figure, judge_identity
from rlloss.cli.main import main
from rlloss.cli.train import run_table
from rlloss.config import load
from rlloss.config.metrics import METRICS
from rlloss.runs import RunFolder, find_runs
from rlloss.train import train
from rlloss.verify import compare_runs
from tests.helpers import SHORT
from tests.runs.folders import cut_short

OPTIONS = (*SHORT, "schedule=plateau", "schedule.monitor=episodic_return", "schedule.patience=0")  # decisions.csv
TWINS = ("ppo_clip", "reinforce")
FILES = (
    "config.yaml", "run.json", "metrics.csv", "episodes.csv", "decisions.csv", "digests.bin",
    "snapshots/000000000.safetensors", "checkpoint.safetensors",
)  # fmt: skip


@pytest.fixture(scope="module")
def twins(make_run, tmp_path_factory):
    """A folder with two runs that are one, but for the loss."""
    folder = tmp_path_factory.mktemp("twins")
    for loss in TWINS:
        shutil.copytree(make_run(*OPTIONS[len(SHORT) :], f"loss={loss}").path, folder / loss)
    assert RunFolder(folder / TWINS[0]).decisions
    return folder


def spoilt(twins, folder, name, spoil):
    """The twins copied to ``folder``, where ``spoil`` makes the second run's file ``name`` of what it was."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(twins, folder)
    path = folder / TWINS[1] / name
    content = spoil(path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    return folder


def at(place, items):
    return min(int(place * len(items)), len(items) - 1)


def in_a_line(change):
    """Change the cells of one line of a text."""

    def spoil(data, place):
        lines = data.split(b"\n")
        i = at(place, lines)
        return b"\n".join([*lines[:i], *change(lines[i].split(b","), place), *lines[i + 1 :]])

    return spoil


def without_a_key(data, place):
    """A JSON object that lacks a key, or has something else there."""
    try:
        document = json.loads(data)
    except ValueError:
        return b"{}"
    key = list(document)[at(place, list(document))]
    return json.dumps({**document, key: [1]} if place * 1000 % 2 < 1 else {**document, key: None}).encode()


WAYS = {
    "missing": lambda data, place: None,
    "empty": lambda data, place: b"",
    "cut short": lambda data, place: data[: int(place * len(data))],
    "a byte changed": lambda data, place: data[: at(place, data)] + b"\xff" + data[at(place, data) + 1 :],
    "a byte more": lambda data, place: data[: at(place, data)] + b"7" + data[at(place, data) :],
    "zeros": lambda data, place: bytes(len(data)),
    "twice": lambda data, place: data + data,
    "UTF-16": lambda data, place: data.decode("latin-1").encode("utf-16"),
    "a byte order mark": lambda data, place: b"\xef\xbb\xbf" + data,
    "line ends of Windows": lambda data, place: data.replace(b"\n", b"\r\n"),
    "a list": lambda data, place: b"[1, 2]\n",
    "a word": lambda data, place: b"word\n",
    "deep": lambda data, place: b"[" * 600,
    "broken YAML": lambda data, place: b"a: [1\nb: }",
    "a line less": in_a_line(lambda cells, place: []),
    "a line twice": in_a_line(lambda cells, place: 2 * [b",".join(cells)]),
    "a short line": in_a_line(lambda cells, place: [b",".join(cells[:-1])]),
    "a long line": in_a_line(lambda cells, place: [b",".join([*cells, b"7"])]),
    "a word for a number": in_a_line(
        lambda cells, place: [b",".join([b"word" if i == at(place, cells) else c for i, c in enumerate(cells)])]
    ),
    "a quote": in_a_line(lambda cells, place: [b'"' + b",".join(cells)]),
    "a column less": lambda data, place: b"\n".join(
        b",".join(cells[: at(place, cells)] + cells[at(place, cells) + 1 :])
        for cells in (line.split(b",") for line in data.split(b"\n"))
    ),
    "a column renamed": lambda data, place: data.replace(data.split(b",")[0], b"other", 1),
    "other keys": without_a_key,
}
"""Ways to spoil the bytes of a file; ``place``, from 0 to 1, is where. None: the file is gone."""


def twin_claim(folder: str, figure=identity_figure) -> Claim:
    runs = [(*OPTIONS, f"loss={loss}", f"run_dir={folder}/{loss}") for loss in TWINS]
    return Claim("The twins are one run.", lambda preset: runs, judge_identity, figure)


def complaints(folder, spoilt_file, out):
    """What is wrong with the answers of every reading command on a spoilt folder."""
    a, b = (RunFolder(folder / loss) for loss in TWINS)
    found = [*about_verify(a, b, folder, spoilt_file), *about_the_report(a, b, folder)]
    out()
    return [*found, *about_training_into(b, out)]


def about_verify(a, b, folder, spoilt_file):
    verdict = compare_runs(a, b)
    named = (spoilt_file, spoilt_file.split("/")[0], "run.json", "digests.bin")
    code = main(["verify", str(folder / TWINS[0]), str(folder / TWINS[1])])
    answers = {
        "INCOMPLETE names no file": verdict.verdict == "INCOMPLETE" and not any(n in verdict.reason for n in named),
        "more than one line": "\n" in verdict.reason,
        "damage overlooked": bool(b.damage) and verdict.verdict != "INCOMPLETE",
        "IDENTICAL with other digests": verdict.verdict == "IDENTICAL" and not np.array_equal(a.digests, b.digests),
        "INCOMPARABLE by another file": verdict.verdict == "INCOMPARABLE" and spoilt_file != "config.yaml",
        "exit code of verify": code != (verdict.verdict != "IDENTICAL"),
        # 2: a config of its own leaves no pair
        "exit code of verify --json": main(["verify", "--json", str(folder)]) not in (0, 1, 2),
    }
    return [f"{what}: {verdict.reason}" for what, wrong in answers.items() if wrong]


def about_the_report(a, b, folder):
    judged = judge(twin_claim(str(folder)), "quick", folder)
    run_table([a, b])
    if judged.finding is None:
        named = b.damage in judged.summary or b.status != "finished"
        return [] if judged.verdict == NOT_RUN and named else [f"damage not named: {judged.summary}"]
    stats.returns_table([("", run) for run in judged.runs])
    digests_table(judged.runs)
    drawn = isinstance(judged.claim.figure(judged.runs), Figure)
    return [] if drawn and not b.damage else [f"judged although damaged: {b.damage}"]


def about_training_into(run, out):
    code = main(["train", *OPTIONS, "loss=reinforce", f"run_dir={run.path}"])
    said = out().err
    if code == 0:
        return [] if not RunFolder(run.path).damage else ["called finished although damaged"]
    return [] if code == 2 and said.startswith("rlloss: ") and said.count("\n") == 1 else [f"train, {code}: {said}"]


@pytest.mark.parametrize("way", WAYS)
@given(name=st.sampled_from(FILES), place=st.floats(0, 1))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_whatever_is_damaged_is_named_and_nothing_crashes(twins, tmp_path, capsys, way, name, place):
    folder = spoilt(twins, tmp_path / "runs", name, lambda data: WAYS[way](data, place))
    assert complaints(folder, name, capsys.readouterr) == []


@pytest.mark.slow
@example(name="snapshots/000000000.safetensors", way="a byte changed", place=0.955078125)  # makes a number infinite
@given(name=st.sampled_from(FILES), way=st.sampled_from(sorted(WAYS)), place=st.floats(0, 1))
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_with_many_examples(twins, tmp_path, capsys, way, name, place):
    folder = spoilt(twins, tmp_path / "runs", name, lambda data: WAYS[way](data, place))
    assert complaints(folder, name, capsys.readouterr) == []


@pytest.mark.parametrize("byte", [0x01, 0xFF], ids=["a number", "no number"])
def test_parameters_at_the_end_are_held_against_their_digest(twins, tmp_path, byte):
    a, b = (RunFolder(twins / loss) for loss in TWINS)
    file = max((twins / TWINS[1] / "snapshots").iterdir()).relative_to(twins / TWINS[1])
    folder = spoilt(twins, tmp_path / "runs", str(file), lambda data: data[:-2] + bytes([byte, 0x7F | byte & 0x80]))
    verdict = compare_runs(a, RunFolder(folder / TWINS[1]))
    assert verdict.verdict == "INCOMPLETE"
    assert f"snapshots/ has other parameters after step {len(b.digests):,} than digests.bin says" in verdict.reason


def without_column(name):
    def drop(data):
        rows = [line.split(",") for line in data.decode().splitlines()]
        i = rows[0].index(name)
        return "".join(",".join(row[:i] + row[i + 1 :]) + "\n" for row in rows).encode()

    return drop


CRASHED = {  # case -> file, how it was spoilt, what is said now
    "without a status": ("run.json", lambda data: data.replace(b"status", b"statue"), "has no status"),
    "another status": ("run.json", lambda data: data.replace(b"finished", b"finishee"), "has status: 'finishee'"),
    "ragged": ("metrics.csv", lambda data: data + b"1,2\n", f"has 2 fields instead of {len(METRICS)} in line 8"),
    "bytes in a table": ("metrics.csv", lambda data: data + b"\xff\xfe\n", "is no text in UTF-8"),
    "short rows": ("decisions.csv", lambda data: data + b"1,plateau\n", "has 2 fields instead of 5"),
    "broken YAML": ("config.yaml", lambda data: b"a: [1", "cannot be read: no YAML"),
    "bytes in YAML": ("config.yaml", lambda data: data + b"\xff", "is no text in UTF-8"),
    "a list": ("config.yaml", lambda data: b"- 1\n", "cannot be read: no mapping of keys to values"),
}
"""What was a traceback before damage was looked for."""


@pytest.mark.parametrize("case", CRASHED)
def test_what_crashed_once_is_named_with_its_file(twins, tmp_path, capsys, case):
    name, spoil, said = CRASHED[case]
    folder = spoilt(twins, tmp_path / "runs", name, spoil)
    assert main(["verify", str(folder / TWINS[0]), str(folder / TWINS[1])]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert f"{TWINS[1]}/{name} {said}" in out
    assert "1 INCOMPLETE of 1 pairs" in out
    assert main(["train", *OPTIONS, "loss=reinforce", f"run_dir={folder / TWINS[1]}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (folder / TWINS[1] / "digests.bin").exists(), "nothing was lost"


def test_a_column_that_is_optional_is_not_recorded(twins, tmp_path, capsys):
    """A run made elsewhere need not say how it acted; one of a claim must have every column."""
    folder = spoilt(twins, tmp_path / "runs", "metrics.csv", without_column("actions_digest"))
    assert main(["verify", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "not recorded" in out
    assert "1 IDENTICAL" in out
    judged = judge(twin_claim(str(folder)), "quick", folder)
    assert (judged.verdict, judged.summary) == (NOT_RUN, f"{TWINS[1]}/metrics.csv has no column actions_digest")
    assert judge(twin_claim(str(twins)), "quick", twins).verdict == HOLDS


@pytest.mark.parametrize("key", ["env.id", "optimizer.name", "num_steps", "seed"])
def test_a_key_that_a_config_lost_is_named_though_its_value_was_the_default(twins, tmp_path, key):
    def without(data):
        tree = yaml.safe_load(data)
        *groups, last = key.split(".")
        del (tree[groups[0]] if groups else tree)[last]
        return yaml.safe_dump(tree).encode()

    folder = spoilt(twins, tmp_path / "runs", "config.yaml", without)
    judged = judge(twin_claim(str(folder)), "quick", folder)
    assert judged.verdict == NOT_RUN
    assert key in judged.summary


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "metrics.csv", "digests.bin"])
def test_a_run_that_lost_a_file_is_not_overlooked(twins, tmp_path, name):
    spoilt(twins, tmp_path / "runs", name, lambda data: None)
    assert [run.path.name for run in find_runs([tmp_path])] == list(TWINS)


def test_a_damaged_run_beside_pairs_that_hold_is_named_and_does_not_hold(twins, tmp_path, capsys):
    for i in range(2):
        shutil.copytree(twins / TWINS[i], tmp_path / str(i))
    (shutil.copytree(twins / TWINS[1], tmp_path / "2") / "config.yaml").write_text("a: [1")
    assert main(["verify", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "1 IDENTICAL of 1 pairs" in out
    assert "INCOMPLETE: 2/config.yaml cannot be read" in out
    assert main(["verify", "--json", str(tmp_path)]) == 1
    document = json.loads(capsys.readouterr().out)
    assert list(document["damaged"]) == [str(tmp_path / "2")]
    assert document["holds"] is False


def test_a_sweep_lists_a_finished_run_that_lost_a_file(tmp_path, capsys):
    command = [
        "train",
        "--multirun",
        *SHORT,
        "loss=ppo_clip,reinforce",
        "hydra.launcher.n_jobs=1",
        f"run_root={tmp_path}",
    ]
    assert main(command) == 0
    _, broken = sorted(path for path in tmp_path.iterdir() if (path / "run.json").exists())
    (broken / "episodes.csv").unlink()
    capsys.readouterr()
    assert main(command) == 1
    assert f"failed: {broken}: {broken.name}/episodes.csv is missing" in capsys.readouterr().err
    assert not (broken / "episodes.csv").exists(), "a finished run is never run again"


def test_a_folder_in_the_place_of_a_file_is_named(twins, tmp_path, capsys):
    for name in FILES:
        folder = spoilt(twins, tmp_path / "runs", name, lambda data: None)
        (folder / TWINS[1] / name).mkdir()
        assert complaints(folder, name, capsys.readouterr) == []


def test_a_fault_of_the_program_is_told_from_a_verdict(monkeypatch, capsys):
    """A traceback would leave exit code 1, which means that a pair does not hold."""
    monkeypatch.setattr("rlloss.cli.verify.find_runs", lambda folders: 1 / 0)
    assert main(["verify", "."]) == 3
    assert "ZeroDivisionError" in capsys.readouterr().err


HOSTILE = {
    "a link that leads elsewhere": ("metrics.csv", lambda path: (path.unlink(), path.symlink_to("/etc/hosts"))),
    "another link": ("digests.bin", lambda path: (path.unlink(), path.symlink_to("/dev/zero"))),
    "a linked snapshot": (
        "snapshots/000000000.safetensors", lambda path: (path.unlink(), path.symlink_to("/etc/hosts"))
    ),
    "a pipe that nobody fills": ("run.json", lambda path: (path.unlink(), os.mkfifo(path))),
    "a hole of a terabyte": ("metrics.csv", lambda path: os.truncate(path, 1 << 40)),
    "a config of a gigabyte": ("config.yaml", lambda path: os.truncate(path, 1 << 30)),
    "digests of a terabyte": ("digests.bin", lambda path: os.truncate(path, 1 << 40)),
    "aliases that explode": ("config.yaml", lambda path: path.write_text(BOMB)),
    "nests without end": ("config.yaml", lambda path: path.write_text("a: " + "[" * 500_000)),
    "a listed file elsewhere": ("run.json", lambda path: path.write_text(path.read_text().replace(
        '"metrics.csv":', '"../../../../../etc/hosts": null, "metrics.csv":'))),
    "an absolute one": ("run.json", lambda path: path.write_text(path.read_text().replace(
        '"metrics.csv":', '"/etc/hosts": null, "metrics.csv":'))),
}  # fmt: skip
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(f'*{a}' for _ in range(10))}]\n" for a, b in itertools.pairwise("abcdefghijk")
)


@pytest.mark.parametrize("what", HOSTILE)
def test_a_run_folder_from_elsewhere_is_data(what, twins, tmp_path, capsys):
    """Nothing is read that lies elsewhere, and nothing without a look at its size."""
    name, spoil = HOSTILE[what]
    folder = tmp_path / "runs"
    shutil.copytree(twins, folder)
    spoil(folder / TWINS[1] / name)
    a, b = (RunFolder(folder / loss) for loss in TWINS)
    tracemalloc.start()
    verdict = compare_runs(a, b)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert verdict.verdict == "INCOMPLETE"
    assert name.partition("/")[0] in verdict.reason
    assert "\n" not in verdict.reason
    assert peak < 100 << 20
    assert main(["verify", str(folder / TWINS[0]), str(folder / TWINS[1])]) == 1
    code = main(["train", *OPTIONS, "loss=reinforce", f"run_dir={b.path}"])
    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A run that was killed, past a checkpoint and some iterations, and what it should come to."""
    folder = tmp_path_factory.mktemp("cut")
    whole = train(load([*OPTIONS, "total_timesteps=1200"])).final_digest
    with pytest.MonkeyPatch.context() as patch:
        cut_short((*OPTIONS, "total_timesteps=1200", "checkpoint_seconds=0"), folder / "run", 8, patch)
    return folder / "run", whole


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@given(name=st.sampled_from(FILES), place=st.floats(0, 1))
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_a_damaged_run_goes_on_to_the_same_bits_or_says_why_not(cut, tmp_path, capsys, way, name, place):
    """One line, and nothing is lost; or the run that it would have been."""
    run, whole = cut
    there = tmp_path / "run"
    shutil.rmtree(there, ignore_errors=True)
    shutil.copytree(run, there)
    content = WAYS[way]((there / name).read_bytes(), place)
    (there / name).unlink()
    if content is not None:
        (there / name).write_bytes(content)
    before = {path: path.read_bytes() for path in there.rglob("*") if path.is_file()}
    code = main(["train", *OPTIONS, "loss=ppo_clip", "total_timesteps=1200", f"run_dir={there}"])
    said = capsys.readouterr().err
    if code == 0:
        assert RunFolder(there).info["final_digest"] == whole
        return
    assert code == 2, said
    assert said.startswith("rlloss: ")
    assert said.count("\n") == 1
    assert {path: path.read_bytes() for path in before} == before
