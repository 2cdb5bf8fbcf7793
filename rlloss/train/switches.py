"""torch's global switches as a run needs them: one number of threads, deterministic algorithms, its numerics."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from rlloss.config.schema import Config
from rlloss.errors import ConfigError
from rlloss.train import numerics, operations

COMPILER, COMPILER_VARIABLE = "torch._inductor.config", "TORCHINDUCTOR_DETERMINISTIC"
SMALLEST = 5e-324
SWITCHES: dict[str, Callable[[], object]] = {
    "torch.set_num_threads": torch.get_num_threads,
    "torch.set_default_dtype": torch.get_default_dtype,
    "torch.set_flush_denormal": lambda: SMALLEST * 1.0 == 0,
    "torch.set_float32_matmul_precision": torch.get_float32_matmul_precision,
    "torch.use_deterministic_algorithms": torch.are_deterministic_algorithms_enabled,
    "torch.backends.mkldnn.enabled": lambda: torch.backends.mkldnn.enabled,
    "os.chdir": lambda: os.path.realpath("."),
}
"""What a process has one of, on which a run's bits or its place depend: each with what it is now."""
REMEDIES = {"torch.set_num_threads": "set torch_threads instead", "torch.set_default_dtype": "set precision instead"}


@contextmanager
def deterministic(config: Config) -> Iterator[None]:
    """The switches as this run needs them, and back afterwards.

    Raises: ConfigError for a device or a number of threads that this machine does not have, or for numerics that this
        process cannot compute.
    """
    if config.device != "cpu":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs a fixed workspace for this
        if int(config.device.partition(":")[2] or 0) >= torch.cuda.device_count():
            raise ConfigError(f"device={config.device}: this machine or torch build has none; use device=cpu")
    cores = os.cpu_count() or 1
    if config.torch_threads > cores:
        raise ConfigError(f"torch_threads={config.torch_threads}: this machine has {cores} cores; use no more")
    memory: Any = torch.utils.deterministic
    before = (
        torch.get_num_threads(),
        torch.get_deterministic_debug_mode(),
        memory.fill_uninitialized_memory,
    )
    torch.set_num_threads(config.torch_threads)
    # torch.use_deterministic_algorithms(True) is the same, and loads torch's compiler to tell it, which takes a second.
    torch.set_deterministic_debug_mode("error")
    # Filling every new tensor with NaN guards against reads of uninitialised memory; no operation here makes any.
    memory.fill_uninitialized_memory = False
    try:
        with ExitStack() as stack:
            stack.enter_context(deterministic_compiler())
            if config.numerics.name == numerics.PORTABLE:
                numerics.require()
                stack.enter_context(portable_kernels())
                operations.refuse_others()
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_deterministic_debug_mode(before[1])
        memory.fill_uninitialized_memory = before[2]


@contextmanager
def switches_kept(by: str, error: type[Exception] = ConfigError) -> Iterator[None]:
    """Within: what somebody's code does. Raises: ``error`` if that leaves one of ``SWITCHES`` otherwise."""
    before = [now() for now in SWITCHES.values()]
    yield
    for (name, now), was in zip(SWITCHES.items(), before, strict=True):
        if now() != was:
            remedy = REMEDIES.get(name, "leave it as it is")
            raise error(f"{by}: calls {name}, on which a run depends: it was {was} and is {now()}; {remedy}")


@contextmanager
def deterministic_compiler() -> Iterator[None]:
    """What torch.use_deterministic_algorithms tells torch's compiler, whether a loss has loaded it or does so later."""
    loaded: Any = sys.modules.get(COMPILER)
    before = loaded and loaded.deterministic
    variable = os.environ.get(COMPILER_VARIABLE)
    os.environ[COMPILER_VARIABLE] = "1"
    if loaded:
        loaded.deterministic = True
    try:
        yield
    finally:
        os.environ.pop(COMPILER_VARIABLE)
        if variable is not None:
            os.environ[COMPILER_VARIABLE] = variable
        if now := sys.modules.get(COMPILER):
            now.deterministic = before if loaded else variable == "1"  # type: ignore[attr-defined]


@contextmanager
def portable_kernels() -> Iterator[None]:
    """Without oneDNN and NNPACK, which choose their kernels by the CPU, whatever torch's variables say."""
    onednn = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    nnpack: Any = torch.backends.nnpack
    before = nnpack.set_flags(False)
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = onednn
        nnpack.set_flags(*before)
