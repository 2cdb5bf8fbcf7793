"""How this trainer fills a run folder: an adaptor between its state and the writer, which knows no trainer."""

import math
import platform
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from rlloss.config.schema import Config
from rlloss.errors import NonFinite
from rlloss.runs.provenance import versions
from rlloss.runs.rows import Decision, Episode
from rlloss.runs.writer import Arrays, RunWriter
from rlloss.train.checkpoint import pack
from rlloss.train.envs import simulator_version
from rlloss.train.policy import ActorCritic
from rlloss.train.state import State


class Recorder(Protocol):
    """Is told of every optimiser step and every iteration."""

    def step(self) -> None: ...

    def iteration(self, row: Mapping[str, Any], episodes: Sequence[Episode], decisions: Sequence[Decision]) -> None: ...

    def keep_best(self, row: Mapping[str, Any]) -> None: ...

    def finish(self, summary: Mapping[str, Any]) -> None: ...


class NoRecorder:
    """Of a run without a folder."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self) -> None:
        pass

    def iteration(self, row: Mapping[str, Any], episodes: Sequence[Episode], decisions: Sequence[Decision]) -> None:
        pass

    def keep_best(self, row: Mapping[str, Any]) -> None:
        pass

    def finish(self, summary: Mapping[str, Any]) -> None:
        pass


class FolderRecorder:
    """Writes a run folder. A context manager, as the writer is. Raises: ConfigError as the writer does."""

    def __init__(self, folder: Path, state: State) -> None:
        config = state.config
        self.state, self.policy, self.every = state, state.policy, config.snapshot_every
        facts: dict[str, Any] = dict(fingerprint(config))
        if state.experience.envs.flattened:
            facts["flattened"] = state.experience.envs.flattened
        self.writer = RunWriter(folder, asdict(config), facts, logger=config.logger.name)

    def __enter__(self) -> Self:
        self.writer.__enter__()
        self.writer.snapshot(arrays(self.policy))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if isinstance(error, NonFinite):
            steps = self.state.optimizer_steps
            last = {"parameters": self.policy.flat, "layout": self.policy.layout, "optimizer_steps": steps}
            self.writer.keep("last_finite.safetensors", pack(last))
        self.writer.__exit__(kind, error, tb)

    def step(self) -> None:
        """After every optimiser step: the digest of all parameters, and a snapshot where one is due."""
        self.writer.step({"parameters": self.policy.raw()})
        if self.every and self.writer.optimizer_steps % self.every == 0:
            self.writer.snapshot(arrays(self.policy))

    def iteration(self, row: Mapping[str, Any], episodes: Sequence[Episode], decisions: Sequence[Decision]) -> None:
        self.writer.iteration(row, episodes, decisions)

    def keep_best(self, row: Mapping[str, Any]) -> None:
        """Keep the parameters as they are now, as the best so far."""
        best = {"parameters": self.policy.flat, "layout": self.policy.layout, "metrics": dict(row)}
        best["statistics"] = self.state.experience.envs.statistics()
        self.writer.keep("best.safetensors", pack(best))

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.writer.snapshot(arrays(self.policy))
        self.writer.keep("checkpoint.safetensors", pack(self.state.state_dict()))
        self.writer.finish(summary)


def recorder(folder: Path | None, state: State) -> AbstractContextManager[Recorder]:
    return NoRecorder() if folder is None else FolderRecorder(folder, state)


def arrays(policy: ActorCritic) -> Arrays:
    """Every parameter by name. Of bfloat16, which NumPy does not know, in float32, which holds it exactly."""
    flat = policy.flat.detach().cpu()
    whole = (flat.float() if flat.dtype == torch.bfloat16 else flat).numpy()
    return {
        name: whole[offset : offset + math.prod(shape)].reshape(shape)
        for name, (offset, shape) in policy.layout.items()
    }


def fingerprint(config: Config) -> dict[str, dict[str, str]]:
    """Versions and machine: what decides whether two machines can be expected to agree to the last bit."""
    machine = {
        "architecture": platform.machine(),
        "system": platform.system(),
        "cpu": _cpu_model(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if config.device.startswith("cuda") else "cpu",
    }
    made_by = versions(config.loss.name, config.env.id, config.env.wrappers)
    return {"versions": made_by | {"torch": torch.__version__, **simulator_version(config.env.id)}, "machine": machine}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
