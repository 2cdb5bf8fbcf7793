"""Executing one of our runs again up to an optimiser step, and listening to that step."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

from rlloss.config.schema import config_of
from rlloss.errors import RunFailed
from rlloss.runs.reader import CHECKPOINTS, RunFolder
from rlloss.train.confirm import load_checkpoint, quiet
from rlloss.train.loop import iterate, watched
from rlloss.train.state import prepared
from rlloss.train.steppers import make_stepper
from rlloss.train.switches import deterministic
from rlloss.watch.tape import Tape, names_of


class Other(Exception):
    """What is executed again is not the run that was recorded."""

    def __init__(self, what: str, remedy: str = "train both again here, with this version, and bisect those") -> None:
        super().__init__(what)
        self.remedy = remedy


class Reached(Exception):
    """The step has been listened to."""


def listen(run: RunFolder, step: int, progress: Callable[[int], None] = lambda step: None) -> Tape:
    """The tape of one optimiser step: from the nearest checkpoint before it that was kept, or from the start.

    ``progress`` gets the optimiser steps done. Raises: Other; ConfigError for a config that cannot be run here.
    """
    if run.config.get("update") == "compiled":
        raise Other(
            f"{run.path.name} is compiled: an epoch of it is one graph, within which nothing can be listened to",
            "train both with update=auto: if those are one, the compiler parts them",
        )
    config = quiet(config_of(run.config_tree()))
    config.validate()
    before = int((run.metrics.optimizer_steps < step).sum())  # whole iterations
    tape = Tape()
    with deterministic(config), prepared(config) as state, watched(state):
        # The iteration that is listened to is made by autograd alone: the same bits, and a gradient of every tensor.
        by_autograd = make_stepper(
            replace(config, update="autograd"), state.policy, state.optimizer, state.precision, state.scaler
        )
        tape.names = names_of(state.policy.named.items(), [state.optimizer])
        for kept in sorted((run.path / CHECKPOINTS).glob("*.safetensors"), reverse=True):
            if kept.stem.isdecimal() and int(kept.stem) < step:
                load_checkpoint(state, kept, int(kept.stem))
                break

        def after_step() -> None:
            done = state.optimizer_steps
            if run.digests[done - 1].tobytes() != hashlib.sha256(state.policy.raw().data).digest():
                tape.__exit__()
                raise Other(f"{run.path.name}, executed again, has other parameters after optimiser step {done:,}")
            if done == step - 1:
                tape.__enter__()
            if done == step:
                tape.__exit__()
                if tape.failure:
                    raise Other(f"{run.path.name}: step {step:,} cannot be listened to: {tape.failure}")
                raise Reached

        if state.optimizer_steps == step - 1:
            tape.__enter__()
        try:
            while state.iteration < config.num_iterations and not state.stopped:
                if state.iteration == before:
                    state.stepper = by_autograd
                state.stopped = iterate(state, after_step).stopped
                progress(state.optimizer_steps)
        except Reached:
            return tape
        except RunFailed as error:
            tape.__exit__()
            if state.optimizer_steps == step - 1:
                return tape
            raise Other(f"{run.path.name}, executed again, fails: {error}") from error
        finally:
            tape.__exit__()
    raise Other(f"{run.path.name}, executed again, ends before optimiser step {step:,}")
