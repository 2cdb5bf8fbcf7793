"""``numerics=portable``: the environment variables with which every x86-64 CPU computes the same bits.

``python -m rlloss.train.numerics`` prints them, one NAME=VALUE a line; a process has to be started with them, since
the C library reads its own before Python begins, and NumPy reads its when it is imported. This module imports neither
NumPy nor torch, so that a process which lacks them can start itself again at no great cost.

What else it takes is done within the process: ``switches`` and ``portable``.
"""

import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rlloss.errors import ConfigError

PORTABLE = "portable"
TUNABLES, HWCAPS = "GLIBC_TUNABLES", "glibc.cpu.hwcaps=-FMA,-FMA4,-AVX2"
VARIABLES = {
    "MKL_CBWR": "COMPATIBLE",  # torch's matrix products
    "ATEN_CPU_CAPABILITY": "default",  # torch's own kernels
    "OPENBLAS_CORETYPE": "Nehalem",  # NumPy's matrix products: as on the oldest CPU that NumPy runs on
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",  # torch's threads, where no run sets their number
    "NPY_DISABLE_CPU_FEATURES": "X86_V3",  # NumPy's own loops; what builds on it goes with it
    TUNABLES: HWCAPS,  # the C library's exp, sin, cos, pow, tanh; names are case-sensitive, unknown ones ignored
}
REFUSED = {"NPY_ENABLE_CPU_FEATURES": ""}
"""What NumPy does not take beside them. An empty value is none."""
WELL_FORMED = re.compile(r"glibc\.[\w.]+=[^:=]+")
RELAUNCHED = "RLLOSS_RELAUNCHED"  # the process that has started itself again, lest it do so for ever
_is_own = False
REMEDY = "start Python as: env $(python -m rlloss.train.numerics) python ...; rlloss train and sweeps do so themselves"


def variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Those that a process needs, where it would otherwise have ``environ``.

    What a user has set is overwritten. The C library's tunables share one variable: the last one wins, and a later
    library takes none of them if one is misshapen.
    """
    theirs = [tunable for tunable in environ.get(TUNABLES, "").split(":") if WELL_FORMED.fullmatch(tunable)]
    emptied = {name: value for name, value in REFUSED.items() if environ.get(name)}
    return VARIABLES | {TUNABLES: ":".join([*(tunable for tunable in theirs if tunable != HWCAPS), HWCAPS])} | emptied


def lacking() -> list[str]:
    """The variables that this process lacks, or was started without."""
    begun = started_with()
    return [
        name for name, value in variables().items() if os.environ.get(name, "") != value or begun.get(name, "") != value
    ]


def started_with() -> Mapping[str, str]:
    """This process's environment as it began: what is set later, the C library and loaded packages never see."""
    try:
        entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    begun: dict[str, str] = {}
    for name, equals, value in (os.fsdecode(entry).partition("=") for entry in entries):
        if name.startswith("glibc.") and TUNABLES in begun:  # the C library takes its tunables apart where they lie
            begun[TUNABLES] += f":{name}={value}"
        elif equals:
            begun[name] = value
    return begun


def available() -> bool:
    """Whether this machine is an x86-64 with Linux and the GNU C library."""
    return (platform.machine(), sys.platform, platform.libc_ver()[0]) == ("x86_64", "linux", "glibc")


def refuse_elsewhere() -> None:
    """Raises: ConfigError on another machine."""
    if not available():
        here = " ".join(filter(None, (platform.system(), platform.machine(), platform.libc_ver()[0])))
        raise ConfigError(
            f"numerics={PORTABLE}: the same bits are to be had on x86-64 with Linux and the GNU C library, this is "
            f"{here}; use numerics=native"
        )


def require() -> None:
    """Raises: ConfigError in a process that cannot compute portable numbers."""
    refuse_elsewhere()
    if names := lacking():
        raise ConfigError(f"numerics={PORTABLE}: this process was started without {', '.join(names)}; {REMEDY}")


def own() -> None:
    """This process is a command's own: nothing of anybody's is lost if it starts itself again."""
    global _is_own
    _is_own = True


def is_own() -> bool:
    return _is_own


def relaunch() -> None:
    """Replace this process by itself, with the variables; nothing, where it has them all.

    Raises: ConfigError in somebody else's process, and where that has not helped.
    """
    refuse_elsewhere()
    if not lacking():
        return
    if not _is_own or os.environ.get(RELAUNCHED) == str(os.getpid()):
        require()
    sys.stdout.flush()
    sys.stderr.flush()
    environ = os.environ | variables() | {RELAUNCHED: str(os.getpid())}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)


@contextmanager
def in_children(numerics: str) -> Iterator[bool]:
    """Within: processes that this one starts can compute such numbers. Says whether this one cannot itself."""
    if numerics != PORTABLE or not lacking():
        yield False
        return
    refuse_elsewhere()
    before = {name: os.environ.get(name) for name in VARIABLES | REFUSED}
    os.environ.update(variables())
    try:
        yield True
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


if __name__ == "__main__":
    sys.stdout.write("\n".join(f"{name}={value}" for name, value in variables().items()) + "\n")
