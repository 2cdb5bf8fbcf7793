"""``watch``: a record of anybody's training, step by step, with nothing else to change in it."""

import atexit
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import yaml
from torch import nn
from torch.optim.optimizer import Optimizer

from rlloss.errors import ConfigError, RunFailed
from rlloss.runs.lock import is_held
from rlloss.runs.reader import RunFolder
from rlloss.runs.watched import WATCHED
from rlloss.watch.recorder import Recorder
from rlloss.watch.steps import Steps
from rlloss.watch.tensors import models_by_name, tensors

log = logging.getLogger("rlloss")


def watch(
    model: nn.Module | Mapping[str, nn.Module],
    optimizer: Optimizer | Iterable[Optimizer] | None,
    folder: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    buffers: bool = True,
    gradients: bool = False,
    snapshot_every: int = 0,
    step: int = 0,
    trace: int = 0,
    overwrite: bool = False,
) -> "Watch":
    """Record what every optimiser step of a training makes of the model, from now until ``close()``.

    A context manager, or a handle. After each step: a hash of each tensor, and a digest of all; also before it, where
    something else than an optimiser changed a tensor since the step before. ``rlloss verify`` compares two records.

    Args:
        model: the module that is trained, or several by name. What wraps it is looked through: compile, DDP.
        optimizer: the optimiser, or several, each with a count of its own. What wraps one and has it as
            ``.optimizer`` is looked through. None: every optimiser of this process that trains a tensor of the model,
            as for a trainer that makes its own later.
        folder: where the record goes. Of a process among several: into its folder ``rank-N``.
        config: what the training is, for the record. Runs that differ in ``loss`` alone are twins to ``verify``.
        buffers: record them, too, as the statistics of batch normalisation.
        gradients: record their hashes, too: then a step can be told from what it was made with.
        snapshot_every: keep all floating-point numbers after every so many steps; always the first and the last.
        step: go on with the record in the folder after so many optimiser steps, where the trainer's own checkpoint was
            taken. What the record has beyond is cut off.
        trace: listen to every operation of this optimiser step, for ``rlloss bisect``: from the end of the step before.
        overwrite: remove the record that is in the folder.
    Raises:
        ConfigError: the folder holds something else; the optimiser is watched already; a tensor cannot be read; the
            model is not what the record says it was after ``step``.
    """
    for name, number in {"snapshot_every": snapshot_every, "step": step, "trace": trace}.items():
        if not isinstance(number, Integral) or number < 0:
            raise ConfigError(f"{name}={number!r}: must be a whole number, 0 or greater")
    how: dict[str, Any] = {"buffers": buffers, "gradients": gradients, "snapshot_every": snapshot_every}
    models, where = models_by_name(model), _own(Path(folder))
    described = _config(config or {}, models, how)
    _check_room(where, step, overwrite=overwrite)
    try:
        return Watch(models, optimizer, where, described, step=step, trace=trace, **how)
    except OSError as error:
        raise ConfigError(f"folder={folder}: {error.strerror}; name another folder") from error


class Watch:
    """What ``watch`` returns. ``steps``: the optimiser steps that it has seen."""

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        optimizer: Optimizer | Iterable[Optimizer] | None,
        folder: Path,
        config: Mapping[str, Any],
        *,
        buffers: bool,
        gradients: bool,
        snapshot_every: int,
        step: int,
        trace: int,
    ) -> None:
        self._steps = Steps(
            optimizer,
            lambda: (entry.tensor for entry in tensors(models, (), buffers=False)),
            self._before, self._after, self._elsewhere,
        )  # fmt: skip
        self._recorder = Recorder(
            models, self._steps.optimizers, folder, config,
            buffers=buffers, with_gradients=gradients, snapshot_every=snapshot_every, step=step, trace=trace,
        )  # fmt: skip
        self._steps.listen()
        self._recorder.listen_if_due()
        self._is_open = True
        atexit.register(self._at_exit)

    @property
    def steps(self) -> int:
        return self._recorder.writer.optimizer_steps

    def log(self, **scalars: float | torch.Tensor) -> None:
        """Record numbers, or tensors of one number, with the step that comes next."""
        if self._is_open:
            self._recorder.log(scalars)

    def close(self) -> None:
        """The training has ended: finish the record."""
        self._steps.remove()
        if self._stop():
            with self._unless_it_cannot():
                self._recorder.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self.close()
        elif self._stop():
            self._recorder.fail(error)

    def _before(self) -> None:
        with self._unless_it_cannot():
            self._recorder.before()

    def _after(self, optimizer: Optimizer, skipped: bool) -> None:
        with self._unless_it_cannot():
            if self._is_open:
                self._recorder.after(optimizer, skipped)

    def _elsewhere(self, name: str) -> None:
        with self._unless_it_cannot():
            self._recorder.note_unwatched(name)

    @contextmanager
    def _unless_it_cannot(self) -> Iterator[None]:
        """A record that cannot be written ends itself, not the training: that has changed the parameters already."""
        try:
            yield
        except Exception as error:
            ours = not isinstance(
                error, OSError | RunFailed | ConfigError
            )  # a fault of this program, which has a trace
            what = f"{type(error).__name__}: {error}" if ours else error
            log.warning("%s: recorded no further than optimiser step %s: %s", self._recorder.folder, self.steps, what,
                        exc_info=ours)  # fmt: skip
            self._stop(within=True)
            with suppress(OSError, RunFailed):
                self._recorder.fail(error)

    def _stop(self, *, within: bool = False) -> bool:
        """Whether it was open until now. ``within`` a step's hook."""
        was, self._is_open = self._is_open, False
        if was:
            self._steps.stop(within=within)
            self._recorder.stop_listening()
            atexit.unregister(self._at_exit)
        return was

    def _at_exit(self) -> None:
        """Of a handle that nobody closed: the program has ended, by itself or by an exception."""
        error = getattr(sys, "last_value", None)
        self.__exit__(error and type(error), error, None)


def _config(config: Mapping[str, Any], models: Mapping[str, nn.Module], how: Mapping[str, Any]) -> dict[str, Any]:
    """The user's, with what is watched, as a record has it. Raises: ConfigError for a key that is ours."""
    if WATCHED in config:
        raise ConfigError(f"config: the key {WATCHED} is the record's own; name it otherwise")
    own = dict(config)
    if isinstance(own.get("loss"), str):
        own["loss"] = {"name": own["loss"]}
    try:
        yaml.safe_dump(own)
    except yaml.YAMLError as error:
        raise ConfigError(f"config: {' '.join(str(error).split())}; give numbers, texts, lists and mappings") from error
    names = {name.removesuffix(".") or "model": type(module).__name__ for name, module in models.items()}
    return {**own, WATCHED: {"model": names, **how}}


def _own(folder: Path) -> Path:
    """Of this process among those that train together."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        return folder / f"rank-{distributed.get_rank()}"
    return folder


def _check_room(folder: Path, step: int, *, overwrite: bool) -> None:
    """Raises: ConfigError for a folder that holds a record already, unless it goes on or is to be written over."""
    if not (folder / "config.yaml").exists():
        if step:
            raise ConfigError(f"step={step}: {folder} holds no record to go on with")
        if folder.is_file():
            raise ConfigError(f"folder={folder}: is a file; name a folder")
        return
    run = RunFolder(folder)
    if not any(key.startswith(f"{WATCHED}.") for key in run.config):
        raise ConfigError(f"folder={folder}: holds a run that is no record of watch; name another folder")
    if step:
        return
    if is_held(folder):
        raise ConfigError(f"folder={folder}: something is recording in it; name another folder")
    if not overwrite:
        raise ConfigError(
            f"folder={folder}: holds a record of {len(run.digests):,} optimiser steps; name another folder, or go on "
            f"with it by step={len(run.digests)}, or give overwrite=True to remove it"
        )
