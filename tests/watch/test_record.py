"""The record of a watched training: what it holds, how it ends, goes on, and is held against itself."""

import copy
import logging
import signal
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from torch import nn

import rlloss
from rlloss.bisect.bisect import bisect
from rlloss.cli.main import main
from rlloss.errors import ConfigError
from rlloss.runs import RunFolder
from rlloss.runs.watched import Record
from rlloss.verify import compare_runs
from rlloss.watch.recorder import random_digests
from rlloss.watch.steps import Deciding
from tests.helpers import ROOT
from tests.watch.trainings import STEPS, an_ulp, backward, network, training


def test_what_the_user_logs_belongs_to_the_next_step(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with rlloss.watch(model, optimizer, tmp_path / "a") as watched:
        for k in range(2):
            backward(model)
            watched.log(loss=torch.tensor(k / 3, requires_grad=True), epoch=k)
            optimizer.step()
    scalars = RunFolder(tmp_path / "a").scalars
    assert scalars["step"].tolist() == [1, 1, 2, 2]
    assert scalars["name"].tolist() == ["loss", "epoch"] * 2
    assert scalars["value"].tolist() == [0, 0, float(np.float32(1 / 3)), 1]


def test_a_training_that_fails_leaves_a_record_that_says_so(tmp_path):
    with pytest.raises(ZeroDivisionError):
        training(tmp_path / "a", after=lambda k, model: 1 / (k - 3))
    run = RunFolder(tmp_path / "a")
    assert (run.status, run.info["error"], len(run.digests)) == ("failed", "ZeroDivisionError: division by zero", 3)


PROGRAM = """
import os, signal, sys, torch, rlloss
torch.manual_seed(0)
model = torch.nn.Linear(3, 2)
optimizer = torch.optim.Adam(model.parameters())
handle = rlloss.watch(model, optimizer, sys.argv[1])
for k in range(50):
    optimizer.zero_grad()
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    if k == 19: {act}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "status", "steps"),
    [
        ("pass", "finished", 50),
        ("raise KeyError('x')", "failed", 20),
        ("os.kill(os.getpid(), signal.SIGKILL)", "interrupted", 20),
        ("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))", "failed", 0),
    ],
    ids=["ended", "raised", "killed", "disk full"],
)
def test_a_program_that_ends_without_closing_leaves_what_it_did(tmp_path, act, status, steps):
    command = [sys.executable, "-c", PROGRAM.format(act=act), str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    run = RunFolder(tmp_path / "a")
    assert run.status == status, done.stderr
    if status == "failed" and done.returncode == 0:
        assert f"recorded no further than optimiser step {len(run.digests)}: [Errno 27] File too large" in done.stderr
        assert 20 < len(run.digests) < 50
        return
    assert len(run.digests) == steps
    assert len(Record(run).after(steps)) == 2
    assert len(run.metrics) == steps
    assert (done.returncode == 0) == (act == "pass"), done.stderr
    assert signal.SIGKILL == 9


def whole_files(folder):
    names = ("digests.bin", "tensors.bin", "gradients.bin", "metrics.csv", "tensors.json")
    return {name: (folder / name).read_bytes() for name in names}


def kept_at(at, folder, until, kept=None, **options):
    """A training that, as trainers do, keeps a checkpoint after ``at`` steps, or begins at the one that it is given."""
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    if kept:
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
    with rlloss.watch(model, optimizer, folder, gradients=True, snapshot_every=2, **options):
        for k in range(kept["step"] if kept else 0, until):
            backward(model)
            optimizer.step()
            if k + 1 == at:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": at}
                made = copy.deepcopy(state)
    return made


def test_a_record_goes_on_where_the_trainer_does(tmp_path):
    kept_at(6, tmp_path / "whole", 10)
    parts = tmp_path / "parts"
    kept = kept_at(6, parts, 8)
    with pytest.raises(ConfigError, match="holds a record of 8 optimiser steps"):
        kept_at(6, parts, 10, kept, step=9)
    with pytest.raises(ConfigError, match=r"0\.weight and 3 more is not what it was after that step"):
        kept_at(6, parts, 10, kept, step=7)
    with pytest.raises(ConfigError, match="holds a record of 8 optimiser steps; name another folder, or go on with it"):
        kept_at(6, parts, 10)
    kept_at(8, parts, 10, kept, step=6)
    assert whole_files(parts) == whole_files(tmp_path / "whole")
    found = compare_runs(RunFolder(tmp_path / "whole"), RunFolder(parts))
    assert (found.verdict, found.steps) == ("IDENTICAL", 10)
    (parts / "thesis.txt").write_text("precious")
    kept_at(2, parts, 3, overwrite=True)
    assert (parts / "thesis.txt").read_text() == "precious"
    assert len(RunFolder(parts).digests) == 3


def test_a_folder_that_is_no_record_is_left_alone(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="is not empty and holds no run"):
            training(tmp_path / "a", overwrite=overwrite)
    (tmp_path / "a" / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError, match="holds a run that is no record of watch"):
        training(tmp_path / "a", overwrite=True)
    assert (tmp_path / "a" / "thesis.txt").read_text() == "precious"


def test_a_snapshot_is_held_against_its_hashes(tmp_path):
    training(tmp_path / "a")
    training(tmp_path / "b")
    file = max((tmp_path / "b" / "snapshots").iterdir())
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    found = compare_runs(*(RunFolder(tmp_path / name) for name in "ab"))
    assert (found.verdict, found.reason) == (
        "INCOMPLETE", f"b: snapshots/ has another 2.bias after step {STEPS} than tensors.bin says",
    )  # fmt: skip


def test_hashes_are_held_against_their_digests(tmp_path):
    for name in "ab":
        training(tmp_path / name)
    file = tmp_path / "b" / "tensors.bin"
    data = bytearray(file.read_bytes())
    data[5 * 4 * 16 + 3] ^= 1  # of step 5
    file.write_bytes(data)
    found = compare_runs(*(RunFolder(tmp_path / name) for name in "ab"))
    assert (found.verdict, found.reason) == (
        "INCOMPLETE", "b: tensors.bin has other hashes after step 5 than digests.bin says",
    )  # fmt: skip


def test_a_change_after_the_last_step_is_a_difference(tmp_path):
    for name, factor in (("a", 2.0), ("b", 2.0), ("c", 3.0)):

        def change(k, model, factor=factor):
            if k == STEPS:
                model[0].weight.data.mul_(factor)

        training(tmp_path / name, after=change)
    a, b, c = (RunFolder(tmp_path / name) for name in "abc")
    assert compare_runs(a, b).verdict == "IDENTICAL"
    found = compare_runs(a, c)
    assert (found.verdict, found.first_difference) == ("DIVERGED", None)
    assert found.reason == "identical at every optimiser step; after the last one something else changed the parameters"
    assert not bisect(a, b).differs
    assert bisect(a, c).cause == (
        "something else than an optimiser changed the parameters of both runs, otherwise in each, after its last step"
    )


def test_what_is_wrong_is_said_before_a_record_is_written_over(tmp_path):
    training(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"is no torch\.optim\.Optimizer"):
        rlloss.watch(network(), "adam", tmp_path / "a", overwrite=True)
    model = network()
    model[2].bias = nn.Parameter(torch.empty(2, device="meta"))
    with pytest.raises(ConfigError, match="cannot be read"):
        rlloss.watch(model, None, tmp_path / "a", overwrite=True)
    assert (RunFolder(tmp_path / "a").status, len(RunFolder(tmp_path / "a").digests)) == ("finished", STEPS)


def test_mixed_precisions_have_snapshots_that_hold_them_exactly(tmp_path):
    for name in "ab":
        model = network()
        model[0].bfloat16()
        model[2].double()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with rlloss.watch(model, optimizer, tmp_path / name, snapshot_every=1):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 0.1)
            optimizer.step()
    found = compare_runs(*(RunFolder(tmp_path / name) for name in "ab"))
    assert found.verdict == "IDENTICAL", found.reason
    assert Record(RunFolder(tmp_path / "a")).other_snapshot([0, 1]) == ""


def test_its_own_troubles_stop_the_record_and_not_the_training(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "rlloss"):
        run = training(tmp_path / "a", after=lambda k, model: k == 4 and _to_meta(model))
    assert "recorded no further than optimiser step 4: 2.bias2" in caplog.text
    assert (run.status, len(run.digests)) == ("failed", 4)


def test_a_record_that_ends_in_a_step_leaves_hooks_of_others_alone(tmp_path, caplog):
    """torch goes through them just then, and takes it ill if one is removed."""
    for optimizers in (None, "ours"):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        heard = []
        with caplog.at_level(logging.WARNING, "rlloss"):
            watched = rlloss.watch(model, optimizers and optimizer, tmp_path / str(optimizers))
            optimizer.register_step_pre_hook(lambda *_: None)
            optimizer.register_step_post_hook(lambda *_, heard=heard: heard.append(1))
            model.register_buffer("ghost", torch.empty(2, device="meta"))
            for _ in range(3):
                backward(model)
                optimizer.step()
        assert (len(heard), watched.steps) == (3, 0)
        assert "recorded no further than optimiser step 0" in caplog.text
        watched.close()
        assert RunFolder(tmp_path / str(optimizers)).status == "failed"
        assert len(optimizer._optimizer_step_post_hooks) == 1, "of whoever listens beside it"
        del model.ghost
        again = rlloss.watch(model, optimizer, tmp_path / str(optimizers), overwrite=True)
        optimizer.step()
        again.close()
        assert RunFolder(tmp_path / str(optimizers)).status == "finished"


def test_a_record_that_cannot_be_finished_fails_and_frees_its_folder(tmp_path, caplog, monkeypatch):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    with caplog.at_level(logging.WARNING, "rlloss"), monkeypatch.context() as patched:
        watched = rlloss.watch(model, optimizer, tmp_path / "a")
        backward(model)
        optimizer.step()
        patched.setattr(watched._recorder.writer, "finish", full)
        watched.close()
    assert "recorded no further than optimiser step 1: [Errno 28] No space left on device" in caplog.text
    assert (RunFolder(tmp_path / "a").status, len(RunFolder(tmp_path / "a").digests)) == ("failed", 1)
    rlloss.watch(model, optimizer, tmp_path / "a", overwrite=True).close()


def test_what_is_logged_after_the_last_step_is_said_to_be_lost(tmp_path, caplog):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with caplog.at_level(logging.WARNING, "rlloss"), rlloss.watch(model, optimizer, tmp_path / "a") as watched:
        backward(model)
        optimizer.step()
        watched.log(loss=1.0)
    assert "what was logged after the last step belongs to none" in caplog.text


def _to_meta(model):
    model.register_buffer("ghost", None)
    model.register_parameter("2.bias".replace(".", "_"), None)
    model[2].register_buffer("bias2", torch.empty(1, device="meta"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trace": -1}, "trace=-1: must be a whole number, 0 or greater"),
        ({"trace": "3"}, "trace='3': must be a whole number"),
        ({"step": None}, "step=None: must be a whole number"),
        ({"snapshot_every": -1}, "snapshot_every=-1: must be a whole number, 0 or greater"),
        ({"step": 3}, "holds no record to go on with"),
        ({"config": {"loss": print}}, "config: .* give numbers, texts, lists and mappings"),
        ({"config": {"watch": 1}}, "the key watch is the record's own"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, options, said):
    model = network()
    with pytest.raises(ConfigError, match=said):
        rlloss.watch(model, torch.optim.SGD(model.parameters(), 0.1), tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()


DAMAGES = {
    "tensors.bin": lambda data: data[: len(data) // 2],
    "before.bin": lambda data: data + b"12345",
    "metrics.csv": lambda data: data.replace(b"random_digests", b"random_digestz"),
    "tensors.json": lambda data: b"[" * 99_999,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_line_that_names_the_file(tmp_path, capsys, name):
    for folder in "ab":
        training(tmp_path / folder, after=lambda k, model: k == 6 and an_ulp(model[2].bias))
    file = tmp_path / "b" / name
    file.write_bytes(DAMAGES[name](file.read_bytes()))
    assert main(["bisect", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert name in said
    assert main(["verify", str(tmp_path)]) in (0, 1, 2)


@pytest.mark.parametrize("command", ["certify", "evaluate"])
def test_what_a_record_is_not_for_is_said_without_a_false_word(tmp_path, capsys, command):
    training(tmp_path / "a", snapshot_every=3)
    assert main([command, str(tmp_path / "a")]) == 2
    err = capsys.readouterr().err
    assert "a: is a record of rlloss.watch, of another trainer's training: rlloss " in err
    assert "`rlloss verify` and `rlloss bisect` hold it against another record" in err
    assert not any(word in err for word in ("train it", "digests.bin", "checkpoint"))
    assert err.count("\n") == 1


def of_numpy() -> str:
    return random_digests().split()[1]


def test_every_number_that_numpys_generator_draws_is_seen():
    before = np.random.get_state()  # noqa: NPY002
    kept: Any = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    assert of_numpy() == xxhash.xxh3_128_hexdigest(kept["key"].tobytes() + repr({"pos": kept["pos"]}).encode())[:8]
    seen = {of_numpy()}
    for _ in range(630):  # its numbers are made anew after 624
        np.random.bytes(4)  # noqa: NPY002
        seen.add(of_numpy())
    assert len(seen) == 631
    np.random.set_state(before)  # noqa: NPY002
    assert of_numpy() in seen


def test_another_generator_of_numpys_is_seen_to_draw_too():
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(1))
    try:
        first = of_numpy()
        np.random.bytes(4)  # noqa: NPY002
        assert of_numpy() != first
    finally:
        np.random.set_bit_generator(before)


def test_options_are_read_again_wherever_one_has_changed():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.5)
    group, read = optimizer.param_groups[0], Deciding()
    texts = [read(optimizer)]
    for key, value in (
        ("lr", 0.2),
        ("foreach", True),
        ("momentum", 0.25 + 0.25),
        ("momentum", 0.9),
        ("betas", (0.9, 0.99)),
        ("weight_decay", torch.tensor(0.5)),
    ):
        group[key] = value
        texts.append(read(optimizer))
    group["weight_decay"] += 1
    texts.append(read(optimizer))
    optimizer.add_param_group({"params": [torch.zeros(1)]})
    texts.append(read(optimizer))
    assert texts[0] == texts[1] == texts[2] == texts[3]
    assert len(set(texts[3:])) == 6
    assert read(optimizer) == Deciding()(optimizer) == texts[-1]
