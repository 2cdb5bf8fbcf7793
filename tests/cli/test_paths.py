"""Paths that commands are given: checked before the work, by one rule, and named as they were typed."""

import shutil

import pytest

from rlloss.cli import main

FILES = {  # option -> the command that writes there, and the end of the file's name
    "benchmark -o": (["benchmark", "--rounds", "1"], "-o", "t.csv"),
    "bisect -o": (["bisect", "run", "run"], "-o", "p.html"),
    "certify --out": (["certify", "run"], "--out", "c.json"),
    "check --proof": (["check", "ppo_clip", "reinforce"], "--proof", "q.smt2"),
    "evaluate --video": (["evaluate", "run"], "--video", "v.gif"),
    "graph -o": (["graph", "ppo_clip"], "-o", "g.html"),
    "graph --table": (["graph", "ppo_clip"], "--table", "t.md"),
}
FOLDERS = {
    "check -o": (["check", "ppo_clip", "reinforce"], "-o"),
    "graph --explain -o": (["graph", "--explain"], "-o"),
    "report --report": (["report", "."], "--report"),
    "reproduce --report": (["reproduce"], "--report"),
    "reproduce --runs": (["reproduce"], "--runs"),
}


@pytest.fixture
def home(tmp_path, monkeypatch, make_run):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(make_run().path, tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    return tmp_path


def refused(arguments, capsys):
    """The one line with which a command refuses its arguments."""
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("case", FILES)
def test_a_file_cannot_be_written_over_a_folder_nor_below_a_file(case, home, capsys):
    arguments, option, name = FILES[case]
    (home / name).mkdir()
    assert f"{option} {name}: is a folder; name a file" in refused([*arguments, option, name], capsys)
    below = f"file/x/{name}"
    assert f"{option} {below}: {home / 'file'} is a file; name another path" in refused(
        [*arguments, option, below], capsys
    )


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_cannot_stand_in_the_place_of_a_file_nor_below_one(case, home, capsys):
    arguments, option = FOLDERS[case]
    said = refused([*arguments, option, "file"], capsys)
    assert f"{option} file: " in said
    assert "folder" in said
    assert f"{option} file/x: {home / 'file'} is a file; name another" in refused(
        [*arguments, option, "file/x"], capsys
    )


@pytest.mark.parametrize(
    "case",
    [
        "certify --out",
        "check --proof",
        "graph --table",
        "graph -o",
        pytest.param("evaluate --video", marks=pytest.mark.slow),
    ],
)
def test_missing_folders_are_made(case, home, capsys):
    arguments, option, name = FILES[case]
    more = ["--episodes", "1"] if arguments[0] == "evaluate" else []
    assert main([*arguments, *more, option, f"new/deep/{name}"]) == 0, capsys.readouterr().err
    assert (home / "new" / "deep" / name).stat().st_size > 0


@pytest.mark.parametrize("verb", [["certify"], ["evaluate"], ["bisect", "run"]], ids=" ".join)
def test_a_folder_of_runs_is_no_run(verb, home, capsys):
    (home / "runs").mkdir()
    assert "RUN=runs: no run there; name a run's folder" in refused([*verb, "runs"], capsys)
    shutil.copytree(home / "run", home / "runs" / "one")
    assert "RUN=runs: no run there; name one of the 1 below it, as runs/one" in refused([*verb, "runs"], capsys)
    assert "RUN=nope: no such folder; name a run's folder" in refused([*verb, "nope"], capsys)
