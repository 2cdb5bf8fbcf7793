"""The environment variables: joined with a user's own, taken up by a new process, kept apart in pools, asked for."""

import os
import subprocess
import sys

import joblib
import pytest

import rlloss
from rlloss.config import load
from rlloss.errors import ConfigError
from rlloss.runs import RunFolder
from rlloss.sweep.launchers import split_sweep, sweep
from rlloss.train import numerics
from rlloss.train.numerics import HWCAPS, VARIABLES, in_children, lacking, variables
from tests.helpers import ROOT, SHORT
from tests.numerics.paths import FORCED, python

RUN = [*SHORT, "seed=5"]


def test_what_a_user_has_set_is_overwritten_or_joined():
    ours = variables({"MKL_CBWR": "AVX2", "GLIBC_TUNABLES": f"glibc.malloc.check=0:{HWCAPS}:glibc.cpu.hwcaps=AVX2"})
    assert ours["MKL_CBWR"] == "COMPATIBLE"
    assert ours["GLIBC_TUNABLES"] == f"glibc.malloc.check=0:glibc.cpu.hwcaps=AVX2:{HWCAPS}"
    assert variables({})["GLIBC_TUNABLES"] == HWCAPS
    assert "NPY_ENABLE_CPU_FEATURES" not in variables({})
    assert variables({"NPY_ENABLE_CPU_FEATURES": "AVX2"})["NPY_ENABLE_CPU_FEATURES"] == ""
    user = {"GLIBC_TUNABLES": "glibc.malloc.check=1"}
    assert variables(variables(user)) == variables(user), "once is enough"
    assert variables({"GLIBC_TUNABLES": "glibc.malloc.check:=3:nonsense::a=1"}) == variables({}), "misshapen ones"


@pytest.mark.parametrize("theirs", [{}, FORCED["all of them"], FORCED["the C library"]])
def test_what_is_printed_is_what_a_process_needs(theirs):
    lines = python("-m", "rlloss.train.numerics", env=theirs).splitlines()
    assert not any(" " in line for line in lines), "env $(...) takes each line as one word"
    needed = dict(line.split("=", 1) for line in lines)
    ask = "from rlloss.train.numerics import lacking; print(lacking())"
    assert python("-c", ask, env={**theirs, **needed}) == "[]\n"
    for name in VARIABLES:
        short = {key: value for key, value in {**theirs, **needed}.items() if key != name}
        assert python("-c", ask, env=short) == f"{[name]}\n"


def test_variables_set_too_late_are_none():
    """In this process: os.environ has them all, but neither the C library nor NumPy has seen them."""
    code = "import os; from rlloss.train.numerics import *; os.environ |= variables(); print(len(lacking()))"
    assert python("-c", code) == f"{len(VARIABLES)}\n"


def test_the_printer_loads_neither_numpy_nor_torch():
    code = "import sys, rlloss.train.numerics; print({'numpy', 'torch', 'pandas'} & sys.modules.keys())"
    assert python("-c", code) == "set()\n"


@pytest.mark.slow
def test_a_command_starts_itself_again_once(tmp_path):
    """And computes what a process does that has everything from its start, whatever the user has set."""
    for name, env in {"bare": {}, "set": variables({}), "hostile": FORCED["all of them"]}.items():
        overrides = [*RUN, "numerics=portable", f"run_dir={tmp_path / name}"]
        python("-m", "rlloss", "train", *overrides, env=env)
    digests = {name: RunFolder(tmp_path / name).info["final_digest"] for name in ("bare", "set", "hostile")}
    assert len(set(digests.values())) == 1, digests
    assert RunFolder(tmp_path / "bare").config["numerics.name"] == "portable"


def test_a_python_that_lacks_them_is_refused_with_the_remedy(tmp_path):
    assert lacking(), "these tests run as people's scripts do"
    with pytest.raises(ConfigError, match=r"started without .*GLIBC_TUNABLES.*env \$\(python -m rlloss.train.numerics"):
        rlloss.train(load([*RUN, "numerics=portable"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_machine_that_cannot_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(numerics.platform, "machine", lambda: "arm64")
    with pytest.raises(ConfigError, match=r"x86-64 .* arm64.*use numerics=native"):
        numerics.relaunch()


@pytest.mark.parametrize("override", ["torch_threads=2", "device=cuda"])
def test_what_has_no_portable_form_is_refused_by_name(override):
    with pytest.raises(ConfigError, match=rf"{override} numerics=portable: .*use that, or numerics=native"):
        load([*RUN, "numerics=portable", override])


def in_workers(function, *arguments):
    return joblib.Parallel(n_jobs=2)(joblib.delayed(function)(*arguments) for _ in range(2))


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_sweep_never_mixes_the_two_in_one_pool(tmp_path, n_jobs, make_run):
    """Not even where joblib's workers were up before, with the environment of this process."""
    assert len(in_workers(os.getpid)) == 2
    overrides = [*RUN, "numerics=native,portable", f"run_root={tmp_path}"]
    jobs, hydras = split_sweep([*overrides, f"hydra.launcher.n_jobs={n_jobs}"])
    outcomes = sweep(jobs, hydras)
    assert not any(outcome.reason for outcome in outcomes), outcomes
    native, portable = (RunFolder(tmp_path / os.path.basename(outcome.folder)) for outcome in outcomes)
    assert native.info["operations"] != portable.info["operations"]
    assert native.info["final_digest"] == make_run("seed=5").info["final_digest"]
    python("-m", "rlloss", "train", *RUN, "numerics=portable", f"run_dir={tmp_path / 'one'}")
    assert portable.info["final_digest"] == RunFolder(tmp_path / "one").info["final_digest"]
    assert not set(variables({}).items()) & set(os.environ.items()), "this process is as it was"
    assert in_workers(os.environ.get, "MKL_CBWR") == [None, None], "and so are its workers"


def test_children_get_them_and_this_process_keeps_its_own(monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    monkeypatch.delenv("NPY_DISABLE_CPU_FEATURES", raising=False)
    before = dict(os.environ)
    ask = [sys.executable, "-c", "from rlloss.train.numerics import lacking; print(lacking())"]
    with in_children("portable") as elsewhere:
        assert elsewhere
        assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout == "[]\n"
    assert dict(os.environ) == before
    with in_children("native") as elsewhere:
        assert not elsewhere
        assert dict(os.environ) == before


@pytest.mark.slow
def test_an_environment_that_compiles_for_this_cpu_is_refused(tmp_path):
    """A stand-in for the compiler: what counts is that the environment has loaded it."""
    (tmp_path / "numba.py").write_text("")
    (tmp_path / "mine.py").write_text("import numba\nfrom tests.examples.environments import *\n")
    env = variables({}) | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    command = ["-m", "rlloss", "train", *RUN, "env.id=mine:Line-v0", f"run_dir={tmp_path / 'run'}"]
    with pytest.raises(AssertionError, match=r"env.id=mine:Line-v0 numerics=portable: numba is loaded"):
        python(*command, "numerics=portable", env=env)
    assert not (tmp_path / "run").exists()
    python(*command, env=env)


@pytest.mark.slow
def test_an_environment_that_nobody_tried_is_trained_with_a_note(tmp_path):
    run = [*RUN, "env.id=tests.examples.environments:Line-v0", "numerics=portable", f"run_dir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "rlloss", "train", *run]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "Line-v0: whether it computes the same on every CPU is its own affair" in done.stderr
