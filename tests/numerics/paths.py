"""Other machines, as far as one machine can be them: other code paths of libraries, another C library, emulators."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from rlloss.train.numerics import VARIABLES, variables
from tests.helpers import ROOT

QEMU = shutil.which("qemu-x86_64")
GLIBC = os.environ.get("RLLOSS_OTHER_GLIBC", "")  # a folder with another ld-linux-x86-64.so.2 and its libraries
needs_qemu = pytest.mark.skipif(QEMU is None, reason="emulated CPUs need qemu-x86_64: install qemu-user")
needs_glibc = pytest.mark.skipif(not GLIBC, reason="another C library: RLLOSS_OTHER_GLIBC names no folder with one")

FORCED = {  # what a user may have set, or another CPU would choose by itself: paths that this CPU can be made to take
    "torch": {"ATEN_CPU_CAPABILITY": "avx2"},
    "torch, oldest": {"ATEN_CPU_CAPABILITY": "default"},
    "OpenBLAS": {"OPENBLAS_CORETYPE": "Haswell"},
    "OpenBLAS, oldest": {"OPENBLAS_CORETYPE": "Prescott"},
    "NumPy": {"NPY_DISABLE_CPU_FEATURES": "X86_V4"},
    "NumPy, oldest": {"NPY_DISABLE_CPU_FEATURES": "X86_V3"},
    "the C library": {"GLIBC_TUNABLES": "glibc.malloc.check=0:glibc.cpu.hwcaps=-AVX2,-FMA"},
    "MKL": {"MKL_CBWR": "SSE2"},
    "all of them": {
        "ATEN_CPU_CAPABILITY": "avx2", "OPENBLAS_CORETYPE": "Sandybridge", "NPY_ENABLE_CPU_FEATURES": "X86_V3",
        "GLIBC_TUNABLES": "glibc.malloc.check=0", "MKL_CBWR": "AVX2,STRICT", "MKL_NUM_THREADS": "7",
    },
}  # fmt: skip


def python(*arguments: str, env: Mapping[str, str] | None = None, before: Sequence[str] = ()) -> str:
    """What a fresh Python prints, with no variable of numerics but those in ``env``. Raises: AssertionError."""
    clean = {name: value for name, value in os.environ.items() if name not in (*VARIABLES, "PYTHONPATH")}
    command = [*(before or [sys.executable]), *arguments]
    done = subprocess.run(
        command, env={**clean, "PYTHONPATH": str(ROOT), **(env or {})}, capture_output=True, text=True, check=False,
        cwd=ROOT,
    )  # fmt: skip
    assert not done.returncode, f"{command}: {done.returncode}\n{done.stderr[-3000:]}"
    return done.stdout


def trainings(
    numerics: str, lines: Sequence[str], env: Mapping[str, str] | None = None, before: Sequence[str] = ()
) -> dict[str, dict[str, str]]:
    """``tests.numerics.trainings`` in a fresh process."""
    found: dict[str, dict[str, str]] = json.loads(
        python("-m", "tests.numerics.trainings", numerics, *lines, env=env, before=before)
    )
    return found


def portable(
    lines: Sequence[str], env: Mapping[str, str] | None = None, before: Sequence[str] = ()
) -> dict[str, dict[str, str]]:
    """The same with the variables of portable numerics, on top of what a user has set."""
    env = env or {}
    return trainings("portable", lines, {**env, **variables(env)}, before)


def emulated(cpu: str) -> list[str]:
    return [str(QEMU), "-cpu", cpu, sys.executable]


def other_glibc() -> list[str]:
    """This Python with another C library, by that library's own loader."""
    folder = Path(GLIBC)
    libraries = f"{folder}:/usr/lib/x86_64-linux-gnu"
    loader = [str(folder / "ld-linux-x86-64.so.2"), "--argv0", sys.executable, "--library-path", libraries]
    return [*loader, str(Path(sys.executable).resolve())]
