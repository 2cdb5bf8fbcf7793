"""The same bits on every machine that one machine can be: what numerics=portable promises, and native does not."""

import subprocess
import sys

import pytest

from rlloss.train.numerics import variables
from rlloss.train.operations import OPERATIONS, constants
from tests.numerics.paths import (
    FORCED,
    emulated,
    needs_glibc,
    needs_qemu,
    other_glibc,
    portable,
    trainings,
)  # fmt: skip

SHORT = "seed=3 num_steps=64 total_timesteps=512"  # two iterations
QUICK = [SHORT, f"env=pendulum {SHORT}"]
PRECISIONS = ("fp32", "fp64", "bf16", "fp16", "bf16_autocast", "fp16_autocast", "fp16_scaled")
HEADS = ("multidiscrete", "multibinary", "box")
KINDS = [
    *QUICK,
    *(f"env={env} {SHORT}" for env in ("acrobot", "mountaincar", "lunarlander")),
    *(f"optimizer={name} {SHORT}" for name in ("sgd", "rmsprop", "lbfgs", "sam", "gradient_penalty")),
    f"optimizer=lbfgs optimizer.line_search_fn=strong_wolfe {SHORT}",
    *(
        f"precision={name} {SHORT}"
        for name in ("fp64", "bf16", "fp16", "bf16_autocast", "fp16_autocast", "fp16_scaled")
    ),
    f"env=pendulum precision=bf16_autocast {SHORT}",
    f"env=pendulum optimizer=rmsprop precision=fp64 {SHORT}",
    f"env=pendulum env.wrappers=[normalize_observation,normalize_reward] {SHORT}",
    *(f"env.id=tests.examples.environments:Line-v0 env.kwargs.act={act} {SHORT}" for act in HEADS),
    f"loss=ppo_kl_penalty {SHORT}",
    f"loss=ppo_softmin precision=fp64 {SHORT}",
    f"target_kl=0.0005 {SHORT}",
    f"hidden_sizes=[200,100] num_minibatches=8 {SHORT}",
]
MUJOCO = [f"env={env} {SHORT}" for env in ("halfcheetah", "hopper", "invertedpendulum")]
PIXELS = ["env=breakout seed=3 num_envs=2 num_steps=32 total_timesteps=64"]
FEW = [*QUICK, f"env=lunarlander {SHORT}", f"optimizer=rmsprop {SHORT}", f"precision=bf16_autocast {SHORT}"]
EMULATED = {  # of the oldest CPU that NumPy runs on, all; of the others what is known to tell CPUs apart
    "Nehalem": ["listed", *KINDS, *PIXELS],
    "Haswell": [*FEW, *MUJOCO],
    "EPYC": ["listed", *FEW, *MUJOCO],
    "Opteron_G4": [*FEW, *MUJOCO],
}


@pytest.fixture(scope="module")
def here() -> dict[str, dict[str, str]]:
    return portable(["listed", *KINDS, *MUJOCO, *PIXELS])


@pytest.fixture(scope="module")
def native() -> dict[str, dict[str, str]]:
    return trainings("native", ["operations", *QUICK])


@pytest.mark.slow
@pytest.mark.parametrize("path", FORCED)
def test_a_path_that_changes_native_bits_leaves_portable_ones_alone(path, native):
    """What a user has set, or another CPU would choose: where native bits change, portable ones could, and do not."""
    if trainings("native", ["operations", *QUICK], FORCED[path]) == native:
        pytest.skip(f"{path}: this CPU takes no other path for {FORCED[path]}")
    assert portable(QUICK, FORCED[path]) == portable(QUICK)


@pytest.mark.slow
@needs_glibc
def test_another_c_library_has_the_same_bits(here):
    theirs, ours = (trainings("native", ["libm"], variables({}), before) for before in (other_glibc(), ()))
    assert theirs["libm"]["tanh"] != ours["libm"]["tanh"], "where nothing is done about it"
    assert theirs["libm"]["expm1"] != ours["libm"]["expm1"]
    assert portable(["listed", *KINDS, *MUJOCO, *PIXELS], before=other_glibc()) == here


@pytest.mark.slow
@needs_qemu
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("cpu", EMULATED)
def test_an_emulated_cpu_has_the_same_bits(cpu, here, native):
    alike = trainings("native", ["operations"], before=emulated(cpu))["operations"] == native["operations"]
    assert portable(EMULATED[cpu], before=emulated(cpu)) == {line: here[line] for line in EMULATED[cpu]}
    if alike:
        pytest.skip(f"{cpu}: this machine is one, or computes as one does, and so this has told nothing")


@pytest.mark.slow
@needs_qemu
def test_a_cpu_without_avx_is_told_what_mujoco_needs():
    with pytest.raises(AssertionError, match="needs a CPU with AVX"):
        portable(MUJOCO[:1], before=emulated("Nehalem"))


@pytest.mark.slow
def test_the_bits_do_not_hang_on_what_else_the_machine_does(here):
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        for _ in range(5):
            assert portable(QUICK) == {line: here[line] for line in QUICK}
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("variable", [op.steered_by for op in OPERATIONS.values() if op.steered_by.isupper()])
def test_the_self_test_names_what_a_variable_would_have_made_the_same(variable):
    """Of each variable: without it, an operation that it steers has other bits, and no training begins."""
    env = {name: value for name, value in variables({}).items() if name != variable}
    found = trainings("native", ["operations"], env)["operations"]
    committed = constants()["digests"]
    steered = [name for name, operation in OPERATIONS.items() if operation.steered_by == variable]
    if found == trainings("native", ["operations"], variables({}))["operations"]:
        pytest.skip(f"{variable} changes nothing on this CPU")
    assert any(found[name] != committed[name] for name in steered)
