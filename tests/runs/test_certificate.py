"""Certificates: each of the three questions answered yes for the run itself, and no for what is not."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from rlloss.cli.main import main
from rlloss.config import load
from rlloss.runs import RunFolder
from rlloss.runs.certificate import LINKS, certify, read, signature
from rlloss.runs.logger import LOGGERS
from rlloss.train import train
from tests.helpers import SHORT, write_users_files


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained natively, which replays on the same machine; with checkpoints that stay."""
    folder = tmp_path_factory.mktemp("certified") / "run"
    train(load([*SHORT, "keep_checkpoints=40", "total_timesteps=1200", f"run_dir={folder}"]), folder)
    return RunFolder(folder)


@pytest.fixture
def certificate(run, tmp_path):
    path = tmp_path / "it.json"
    assert main(["certify", str(run.path), "--out", str(path)]) == 0
    return path


def edit(path, sign=True, **changes):
    """A certificate that says something else, signed again as anybody can."""
    document = json.loads(path.read_text()) | changes
    document["sha256"] = signature(document) if sign else document["sha256"]
    path.write_text(json.dumps(document))


def answers(capsys, path, *arguments):
    capsys.readouterr()
    code = main(["verify", "--certificate", str(path), "--json", *map(str, arguments)])
    found = json.loads(capsys.readouterr().out)
    assert code == (0 if found["holds"] else 1)
    return [found[question]["holds"] for question in ("intact", "describes the run", "replays")], found


def test_the_run_itself_is_confirmed(run, certificate, capsys):
    said, found = answers(capsys, certificate, run.path)
    assert said == [True, True, True], found
    assert f"optimiser steps 1 to {len(run.digests)} from its start" in found["replays"]["why"]
    said, _ = answers(capsys, certificate)
    assert said == [True, None, True], "no run was named"
    said, _ = answers(capsys, certificate, run.path, "--no-replay")
    assert said == [True, True, None]


def test_a_part_is_played_from_the_last_checkpoint_before_it(run, certificate, capsys):
    kept = sorted(int(path.stem) for path in (run.path / "checkpoints").iterdir())
    assert kept == [48, 80, 128, 160], "after the iterations that passed a multiple of 40"
    for steps, first in {"1:10": 1, "48:60": 1, "49:60": 49, "130:131": 129, "192:192": 161}.items():
        said, found = answers(capsys, certificate, run.path, "--steps", steps)
        assert said == [True, True, True], found
        assert f"optimiser steps {first} to " in found["replays"]["why"], steps
    said, found = answers(capsys, certificate, "--steps", "130:131")
    assert said == [True, None, True]
    assert "from its start" in found["replays"]["why"], "without the run's folder there is no checkpoint"


def test_a_changed_certificate_is_not_intact(run, certificate, capsys):
    edit(certificate, sign=False, final_digest="0" * 64)
    said, _ = answers(capsys, certificate, run.path)
    assert said == [False, False, None], "and is not played"


@pytest.mark.parametrize(
    ("key", "why"),
    [("seed", "another config: seed=1, certified 7"), ("loss", "another config: loss.name=ppo_clip, certified spo")],
)
def test_one_of_another_run_signed_again(run, certificate, capsys, key, why):
    config = json.loads(certificate.read_text())["config"]
    config[key] = 7 if key == "seed" else {"name": "spo", "offset": 0.0}
    edit(certificate, config=config)
    said, found = answers(capsys, certificate, run.path)
    assert said == [True, False, False], found
    assert found["describes the run"]["why"] == why
    assert "other parameters, first within optimiser steps 1 to" in found["replays"]["why"] or key == "loss"


def test_a_forged_link_is_found_where_it_is(run, certificate, capsys):
    document = json.loads(certificate.read_text())
    forged = sorted(map(int, document["links"]))[20]
    before = sorted(map(int, document["links"]))[19]
    document["links"][str(forged)] = "0" * 64
    edit(certificate, links=document["links"])
    said, found = answers(capsys, certificate, run.path)
    assert said == [True, False, False]
    for question in ("describes the run", "replays"):
        assert f"first within optimiser steps {before + 1} to {forged}" in found[question]["why"]
    said, _ = answers(capsys, certificate, run.path, "--steps", f"1:{before}")
    assert said == [True, False, True], "the part before it is as certified"


def test_a_run_that_was_changed_is_not_the_one_described(run, certificate, capsys, tmp_path):
    changed = tmp_path / "run"

    def damage(name, change):
        shutil.rmtree(changed, ignore_errors=True)
        shutil.copytree(run.path, changed)
        path = changed / name
        path.write_bytes(change(path.read_bytes()))
        said, found = answers(capsys, certificate, changed, "--no-replay")
        assert said == [True, False, None], name
        return found["describes the run"]["why"]

    at = 32 * 100
    assert "first within optimiser steps" in damage("digests.bin", lambda b: b[:at] + bytes([b[at] ^ 1]) + b[at + 1 :])
    assert damage("digests.bin", lambda b: b[:-32]) == "191 optimiser steps, certified 192"
    assert damage("episodes.csv", lambda b: b.replace(b"7", b"8", 1)) == "another episodes.csv"
    assert "another config: gamma=0.9" in damage("config.yaml", lambda b: b.replace(b"gamma: 0.99", b"gamma: 0.9"))


def test_speeds_and_places_are_no_part_of_it(run, certificate, capsys, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run.path, again)
    config = yaml.safe_load((again / "config.yaml").read_text()) | {"run_dir": "elsewhere", "checkpoint_seconds": 1.0}
    (again / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    head, *rows = (again / "metrics.csv").read_text().splitlines()
    at = head.split(",").index("steps_per_second")
    faster = [",".join([*row.split(",")[:at], "1.5", *row.split(",")[at + 1 :]]) for row in rows]
    (again / "metrics.csv").write_text("\n".join([head, *faster]) + "\n")
    assert answers(capsys, certificate, again, "--no-replay")[0] == [True, True, None]
    assert certify(RunFolder(again)) == certify(run)


def test_a_checkpoint_that_was_changed_is_not_played_from(run, certificate, capsys, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    path = copy / "checkpoints" / "000000128.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert main(["verify", "--certificate", str(certificate), str(copy), "--steps", "130:131"]) == 2
    assert "000000128.safetensors is not the one that was certified" in capsys.readouterr().err
    path.unlink()
    _, found = answers(capsys, certificate, copy, "--steps", "130:131")
    assert "from the checkpoint after step 80" in found["replays"]["why"]


def test_only_a_finished_whole_run_is_certified(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    (copy / "episodes.csv").unlink()
    assert main(["certify", str(copy)]) == 2
    assert "episodes.csv is missing" in capsys.readouterr().err
    (copy / "run.json").write_text((run.path / "run.json").read_text().replace('"finished"', '"failed"'))
    assert main(["certify", str(copy)]) == 2
    assert "only a finished run has a certificate" in capsys.readouterr().err
    assert not (copy / "certificate.json").exists()


def test_its_size_does_not_grow_with_the_run(run, certificate):
    assert len(read(certificate).links) <= LINKS + 1 < len(run.digests)
    assert certificate.stat().st_size < 16_000


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": "rlloss certificate 1"}', "[" * 100_000, '{"format": 3}', "\x00", "null"],
)
def test_what_is_no_certificate_is_one_line(tmp_path, capsys, text):
    path = tmp_path / "it.json"
    path.write_text(text)
    assert main(["verify", "--certificate", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"rlloss: --certificate={path}: is no certificate"), err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"links": {}}, "is no certificate"),
        ({"checkpoints": {"7": {}}}, "is no certificate"),
        ({"checkpoints": {"16": {"chain": "zz", "sha256": "0" * 64}}}, "is no certificate"),
        ({"optimizer_steps": True}, "is no certificate"),
        ({"links": {"192": "no"}}, "is no certificate"),
        ({"optimizer_steps": -1}, "certificate"),
    ],
)
def test_a_misshapen_one_is_one_line(certificate, capsys, changes, what):
    edit(certificate, **changes)
    capsys.readouterr()
    assert main(["verify", "--certificate", str(certificate)]) == 2
    err = capsys.readouterr().err
    assert what in err
    assert err.count("\n") == 1, err


@pytest.mark.parametrize("steps", ["1", "0:3", "5:4", "1:193", "a:b", "1:" + "9" * 5000])
def test_an_interval_is_two_steps_of_the_run(certificate, capsys, steps):
    assert main(["verify", "--certificate", str(certificate), "--steps", steps]) == 2
    assert f"--steps={steps}: name the first and the last one, as 1:192" in capsys.readouterr().err


EVIL = "import pathlib; pathlib.Path(__file__).with_name('executed').touch()\n"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("loss", "bag.evil:f"),
        ("loss", "bag/evil.py:f"),
        ("loss", "bag.inner.evil:f"),
        ("id", "bag.evil:Evil-v0"),
        ("id", "evil:Evil-v0"),
        ("wrappers", ["bag.inner.evil:W"]),
        ("wrappers", [{"wrapper": "evil:W", "x": 1}]),
        ("wrappers", ["builtins:repr", {"wrapper": "textwrap:indent", "prefix": "touch executed #"}, "os:system"]),
    ],
)
def test_nothing_that_a_certificate_names_is_executed(tmp_path, certificate, capsys, monkeypatch, key, value):
    """Not even to find out whether it is what was certified: whoever made the certificate chose what it names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for folder in ("bag", "bag/inner"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text(EVIL)
    for name in ("evil.py", "bag/evil.py", "bag/inner/evil.py"):
        (tmp_path / name).write_text(EVIL)
    config = json.loads(certificate.read_text())["config"]
    if key == "loss":
        config["loss"]["name"] = value
    else:
        config["env"][key] = value
    edit(certificate, config=config)
    said, found = answers(capsys, certificate)
    assert said == [True, None, False]
    assert "which a replay executes; look at the source, then add --trust" in found["replays"]["why"]
    said, found = answers(capsys, certificate, "--trust")
    assert said == [True, None, False]
    assert re.search("the source of its (loss|environment) is not the one", found["replays"]["why"])
    assert not list(tmp_path.rglob("executed"))


def test_what_a_user_trusts_is_played(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_users_files(tmp_path)
    folder = tmp_path / "run"
    train(load([*SHORT, "loss=losses.py:mine", f"run_dir={folder}"]), folder)
    assert main(["certify", str(folder)]) == 0
    said, _ = answers(capsys, folder / "certificate.json", folder, "--trust")
    assert said == [True, True, True]
    (tmp_path / "losses.py").write_text((tmp_path / "losses.py").read_text().replace("1 - clip_coef", "0.9"))
    said, found = answers(capsys, folder / "certificate.json", folder, "--trust")
    assert said == [True, True, False]
    assert "the source of its loss is not the one that is here" in found["replays"]["why"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"final_digest": "0" * 64}, "another final digest"),
        ({"env_steps": 10**9}, "1,200 environment steps, certified 1,000,000,000"),
        ({"tables": {}}, "another metrics.csv"),
        ({"tables": {"metrics.csv": "0" * 64}}, "another metrics.csv"),
        ({"optimizer_steps": 3}, "it does not end after 3 optimiser steps"),
    ],
)
def test_a_replay_is_held_against_the_end_too(certificate, capsys, changes, why):
    links = json.loads(certificate.read_text())["links"]
    if "optimizer_steps" in changes:
        changes = changes | {"links": {"3": links["3"]}, "checkpoints": {}}
    edit(certificate, **changes)
    said, found = answers(capsys, certificate)
    assert said == [True, None, False]
    assert found["replays"]["why"].startswith(why)


def test_a_certified_run_of_more_steps_ends_too_early(certificate, capsys):
    document = json.loads(certificate.read_text())
    edit(certificate, optimizer_steps=500, links=document["links"] | {"500": "0" * 64})
    said, found = answers(capsys, certificate)
    assert said == [True, None, False]
    assert found["replays"]["why"].startswith("it ends after 192 optimiser steps")


def test_a_folder_with_the_parameters_of_another_run_is_not_the_one_described(run, certificate, capsys, tmp_path):
    other = tmp_path / "other"
    train(load([*SHORT, "keep_checkpoints=40", "total_timesteps=1200", "seed=2", f"run_dir={other}"]), other)
    for name, why in {
        "checkpoint.safetensors": "checkpoint.safetensors has other parameters than the digest after step 192 says",
        "snapshots": "snapshots/ has other parameters before step 1 than the initial_digest of run.json says",
        "checkpoints": "another checkpoints/",
    }.items():
        mixed = tmp_path / f"with-{name}"
        shutil.copytree(run.path, mixed)
        if (other / name).is_dir():
            shutil.copytree(other / name, mixed / name, dirs_exist_ok=True)
        else:
            shutil.copy(other / name, mixed / name)
        said, found = answers(capsys, certificate, mixed, "--no-replay")
        assert said == [True, False, None], name
        assert found["describes the run"]["why"].removeprefix(f"with-{name}/").startswith(why)


def test_numbers_that_json_cannot_say_are_certified(tmp_path, capsys):
    folder = tmp_path / "run"
    train(load([*SHORT, "max_grad_norm=inf", f"run_dir={folder}"]), folder)
    assert main(["certify", str(folder)]) == 0
    assert answers(capsys, folder / "certificate.json", folder)[0] == [True, True, True]


@pytest.mark.parametrize("precision", ["fp64", "fp16", "bf16"])
def test_snapshots_of_every_precision_are_held_against_digests(tmp_path, precision):
    folder = tmp_path / "run"
    train(load([*SHORT, f"precision={precision}", "learning_rate=0.0003", f"run_dir={folder}"]), folder)
    assert certify(RunFolder(folder))["optimizer_steps"] == len(RunFolder(folder).digests)


def test_a_checkpoint_of_another_step_is_not_played_from(run, certificate, capsys, tmp_path):
    """Whoever makes the certificate can sign any file as the checkpoint of any step."""
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    shutil.copy(copy / "checkpoints/000000048.safetensors", copy / "checkpoints/000000128.safetensors")
    checkpoints = json.loads(certificate.read_text())["checkpoints"]
    checkpoints["128"]["sha256"] = checkpoints["48"]["sha256"]
    edit(certificate, checkpoints=checkpoints)
    assert main(["verify", "--certificate", str(certificate), str(copy), "--steps", "130:131"]) == 2
    assert "does not fit this run (ValueError: it is not of optimiser step 128)" in capsys.readouterr().err


def test_what_is_no_file_is_not_read(tmp_path, capsys, run, certificate):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path, tmp_path / "nothing"):
        assert main(["verify", "--certificate", str(path)]) == 2
        assert "no file of that name" in capsys.readouterr().err
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    (copy / "config.yaml").unlink()
    os.mkfifo(copy / "config.yaml")
    said, found = answers(capsys, certificate, copy, "--no-replay")
    assert said == [True, False, None], found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", "env: 3\n"),
        ("config.yaml", "- 1\n"),
        ("config.yaml", "text\n"),
        ("config.yaml", "seed: 2020-01-01\nenv: {id: CartPole-v1}\n"),
        ("run.json", '{"status": "finished"}'),
        ("checkpoints/foo.safetensors", "x"),
    ],
)
def test_a_folder_of_which_no_certificate_can_be_made_is_one_line(run, tmp_path, capsys, certificate, name, text):
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    (copy / name).write_text(text)
    code = main(["certify", str(copy)])
    err = capsys.readouterr().err
    assert code == (0 if name.startswith("checkpoints") else 2), err
    assert err.count("\n") == (code == 2)
    assert (copy / "certificate.json").exists() == (code == 0)
    assert main(["verify", "--certificate", str(certificate), str(copy), "--no-replay"]) == (1 if code else 0)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("hidden_sizes", [10**9], "it has hidden_sizes=[1000000000]"),
        ("hidden_sizes", [60_000, 60_000], "it has hidden_sizes=[60000, 60000]"),
        ("num_envs", 10**9, "it has a batch of 50,000,000,000 samples"),
    ],
)
def test_what_could_take_all_memory_is_not_tried_for_a_stranger(certificate, capsys, key, value, why):
    config = json.loads(certificate.read_text())["config"] | {key: value}
    edit(certificate, config=config | {"total_timesteps": 10**12})
    said, found = answers(capsys, certificate)
    assert said == [True, None, False]
    assert found["replays"]["why"] == f"not tried: {why}; add --trust to try it"


def test_nothing_outside_a_certificate_is_referred_to(certificate, capsys):
    config = json.loads(certificate.read_text())["config"]
    edit(certificate, config=config | {"env": config["env"] | {"kwargs": {"render_mode": "${oc.env:HOME}"}}})
    assert main(["verify", "--certificate", str(certificate)]) == 2
    assert "it refers to something outside of it" in capsys.readouterr().err


def test_a_replay_logs_nothing_and_watches_over_the_environments(run, certificate, capsys, monkeypatch):
    """Whatever the certified run logged; a step that does not return ends the replay, and says so."""
    config = json.loads(certificate.read_text())["config"]
    watched = []
    monkeypatch.setattr("rlloss.train.confirm.watched", lambda state: watched.append(state) or nullcontext())
    monkeypatch.setattr("rlloss.runs.writer.LOGGERS", {"none": LOGGERS["none"]})
    document = json.loads(certificate.read_text())
    edit(certificate, config=config | {"logger": {"name": "tensorboard"}}, links=document["links"])
    said, found = answers(capsys, certificate)
    assert said == [True, None, False], "another config is another chain"
    assert "first within optimiser steps 1 to" in found["replays"]["why"]
    assert watched


@pytest.mark.parametrize("option", [["--steps", "1:2"], ["--trust"], ["--no-replay"]])
def test_options_of_a_certificate_need_one(run, capsys, option):
    assert main(["verify", str(run.path), str(run.path), *option]) == 2
    assert f"{option[0]}: is about a certificate; name it with --certificate FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    "config", [{"env": {"id": None}}, {"env": {"wrappers": 7}}, {"loss": {"name": None}}, {"seed": "x"}, {"env": 3}]
)
def test_a_config_with_values_of_another_type_is_one_line(certificate, capsys, config):
    edit(certificate, config=json.loads(certificate.read_text())["config"] | config)
    capsys.readouterr()
    assert main(["verify", "--certificate", str(certificate)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err


def test_no_text_of_a_certificate_steers_the_terminal(certificate, capsys):
    edit(certificate, machine={"cpu": "\x1b[2Jred\x07"})
    main(["verify", "--certificate", str(certificate), "--no-replay"])
    out = capsys.readouterr().out
    assert "made on ?[2Jred?" in out
    assert "\x1b" not in out


def test_another_version_of_a_users_environment_is_not_played(certificate, capsys):
    document = json.loads(certificate.read_text())
    edit(certificate, versions=document["versions"] | {"environment": "0123456789ab"})
    said, found = answers(capsys, certificate)
    assert said == [True, None, False]
    assert "the source of its environment is not the one that is here" in found["replays"]["why"]


def test_operations_that_differ_are_suspected(run, certificate, capsys):
    """Of a native run made on another CPU: the certificate's machine computes other bits, and the answer says whose."""
    document = json.loads(certificate.read_text())
    links = dict.fromkeys(document["links"], "0" * 64)
    edit(certificate, links=links, operations=document["operations"] | {"convolution": "0" * 16})
    _, found = answers(capsys, certificate)
    assert "to be suspected: convolution (torch" in found["replays"]["why"]
    assert "numerics=native promises the same bits on one machine alone" in found["replays"]["why"]


@pytest.mark.slow
def test_a_portable_run_replays_in_a_process_that_starts_itself_again(tmp_path):
    home = tmp_path / "run"
    command = [sys.executable, "-m", "rlloss"]
    subprocess.run([*command, "train", *SHORT, "numerics=portable", f"run_dir={home}"], check=True, capture_output=True)
    subprocess.run([*command, "certify", str(home)], check=True, capture_output=True)
    verify = [*command, "verify", "--certificate", str(home / "certificate.json"), str(home)]
    done = subprocess.run(verify, capture_output=True, text=True, check=True)
    assert done.stdout.count("yes") == 3, done.stdout


def test_a_config_key_that_this_version_does_not_know(certificate, capsys):
    document = json.loads(certificate.read_text())
    edit(certificate, config=document["config"] | {"invented": 1})
    assert main(["verify", "--certificate", str(certificate)]) == 2
    assert "made by another version" in capsys.readouterr().err


def test_a_file_that_is_no_certificate_is_not_written_over(run, tmp_path, capsys):
    """A run's own run.json was, with exit code 0."""
    copy = shutil.copytree(run.path, tmp_path / "run")
    before = (copy / "run.json").read_bytes()
    assert main(["certify", str(copy), "--out", str(copy / "run.json")]) == 2
    assert "run.json: holds something else than a certificate; name another file" in capsys.readouterr().err
    assert (copy / "run.json").read_bytes() == before
    for _ in range(2):
        assert main(["certify", str(copy), "--out", str(tmp_path / "made.json")]) == 0


def test_a_key_that_stands_twice_is_no_certificate(certificate, capsys):
    """A reader sees both, and a program one of them."""
    certificate.write_text(certificate.read_text().replace('"seed":', '"seed": 7, "seed":', 1))
    assert main(["verify", "--certificate", str(certificate)]) == 2
    assert "it has seed twice" in capsys.readouterr().err
