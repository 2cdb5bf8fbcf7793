"""Looking at the tensors of a training around each step, and writing down what they are."""

import ctypes
import hashlib
import json
import logging
import math
import random
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
import yaml
from torch import nn
from torch.optim.optimizer import Optimizer

from rlloss.errors import ConfigError
from rlloss.runs.machine import machine
from rlloss.runs.reader import RunFolder
from rlloss.runs.watched import HASH_BYTES, Record, signature
from rlloss.runs.writer import SNAPSHOTS_PER_FILE, Arrays, RunWriter, Written, replace
from rlloss.version import __version__
from rlloss.watch.steps import Deciding, options, options_digest
from rlloss.watch.tape import Tape, names_of
from rlloss.watch.tensors import HASH, Named, Place, described, gradients, hashes, local, tensors, witnessed, witnesses

log = logging.getLogger("rlloss")

FLUSH_SECONDS = 30
MERSENNE_TWISTER = 4 * 624  # bytes of its numbers; the place among them follows
FILE_BYTES = 1 << 26  # of snapshots, above which a file is full
TRAINERS = (  # whose versions are recorded, if they are in use
    "accelerate", "datasets", "deepspeed", "gymnasium", "lightning", "numpy", "peft", "stable_baselines3", "tianshou",
    "tokenizers", "torchrl", "transformers", "trl", "verl", "vllm",
)  # fmt: skip


class Recorder:
    """Writes the record of one training.

    Args: as of ``watch``, with models by name; ``known`` are the optimisers, of which more may come.
    Raises: as ``watch``.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        known: list[Optimizer],
        folder: Path,
        config: Mapping[str, Any],
        *,
        buffers: bool,
        with_gradients: bool,
        snapshot_every: int,
        step: int,
        trace: int,
    ) -> None:
        self._models, self._known, self.folder = models, known, folder
        self._buffers, self._with_gradients, self._every = buffers, with_gradients, snapshot_every
        self._counts: list[int] = []
        self._deciding = defaultdict[int, Deciding](Deciding)  # of each optimiser
        self._options: dict[int, str] = {}  # of each optimiser, at its last step
        self._witnesses: dict[int, list[Place]] = {}  # of each optimiser, where its smallest tensors are
        self._segments: list[dict[str, Any]] = []
        self._description: list[list[Any]] = []
        self._signature = b""
        self._scalars: list[dict[str, Any]] = []
        self._trace, self._tape = trace, Tape()
        self._listens = False
        self._unwatched: list[str] = []
        self._outside = 0
        self._flushed = time.monotonic()
        self._found = self._tensors()
        self._last = hashes(self._found)
        if not step:
            _give_way(folder, config)
        self.writer = RunWriter(
            folder, config, facts(models),
            resume=(lambda: self._resume(step)) if step else None, extends=step > 0,
            snapshots_per_file=max(1, min(SNAPSHOTS_PER_FILE, FILE_BYTES // max(1, _size(floats(self._found))))),
        )  # fmt: skip
        self.writer.__enter__()
        try:
            self._note_optimizers()
            if not step:
                self._describe(0)
                self.writer.extend("tensors.bin", self._last)
                self.writer.snapshot(floats(self._found))
                self.writer.flush_snapshots()
        except BaseException:
            self.writer.__exit__(*sys.exc_info())
            raise

    def log(self, scalars: Mapping[str, Any]) -> None:
        step = self.writer.optimizer_steps + 1
        numbers = {name: _number(name, x) for name, x in scalars.items()}
        self._scalars += [{"step": step, "name": name, "value": repr(number)} for name, number in numbers.items()]

    def _trains_any(self, found: list[Named]) -> bool:
        own = {id(entry.tensor) for entry in found if not entry.name.startswith("optimizer.")}
        return any(
            id(p) in own for optimizer in self._known for group in optimizer.param_groups for p in group["params"]
        )

    def listen_if_due(self) -> None:
        """To all that is computed from now on to the end of the step that is to be traced."""
        if self._trace and self.writer.optimizer_steps == self._trace - 1:
            with self._tape.paused():
                tape = self._tape
                tape.renew = lambda: names_of(
                    [(entry.name, entry.tensor) for entry in tensors(self._models, self._known, buffers=True)],
                    self._known,
                )
                tape.names = tape.renew()
            self._listens = True
            self._tape.__enter__()

    def stop_listening(self) -> None:
        if self._listens:
            self._listens = False
            self._tape.__exit__()

    def before(self) -> None:
        """Just before a step."""
        with self._tape.paused():
            self._look()

    def after(self, optimizer: Optimizer, skipped: bool) -> None:
        """After it."""
        if self._listens:
            self.stop_listening()
            if self._tape.failure:
                log.warning("%s: step %s was not traced: %s", self.folder, self._trace, self._tape.failure)
            else:
                self._tape.save(self.folder, self.writer.optimizer_steps + 1)
            self._tape = Tape()
        self._record(optimizer, skipped)
        self.listen_if_due()

    def note_unwatched(self, name: str) -> None:
        """An optimiser of this class trains the model, and its steps are not recorded."""
        step = self.writer.optimizer_steps
        log.warning("%s: after step %s %s trains the model, which is not watched; give it, too, or None for all",
                    self.folder, step, name)  # fmt: skip
        self._unwatched.append(name)
        self.writer.note(unwatched=self._unwatched)

    def _look(self) -> None:
        """Which tensors there are, and which changed since the last step."""
        self._found = self._tensors()
        now, step, description = hashes(self._found), self.writer.optimizer_steps + 1, described(self._found)
        self._outside = 0
        if description != self._description:
            last = dict(zip(map(repr, self._description), _apart(self._last), strict=True))
            self._outside = sum(
                last.get(repr(entry)) != found and not entry[-1]
                for entry, found in zip(description, _apart(now), strict=True)
            )
            self._describe(step)
        elif now != self._last:
            self._outside = sum(not self._found[i].is_buffer for i in changed(self._last, now))
        else:
            return
        self.writer.extend("before.bin", step.to_bytes(8, "little") + now)

    def _record(self, optimizer: Optimizer, skipped: bool) -> None:
        which = next(i for i, known in enumerate(self._known) if known is optimizer)
        groups = sum(len(known.param_groups) for known in self._known)
        if which >= len(self._counts) or groups != self._groups:
            self._note_optimizers()
            self._witnesses.clear()
        self._counts[which] += 1
        if which not in self._witnesses:
            self._witnesses[which] = witnesses(optimizer, self._found)
        self._last = hashes(self._found)
        self.writer.extend("tensors.bin", self._last)
        self.writer.stepped(hashlib.sha256(self._signature + self._last).digest())
        decide = self._deciding[which](optimizer)
        anew = self._options.get(which) != decide
        self._options[which] = decide
        rates = [float(group.get("lr", math.nan)) for group in optimizer.param_groups]
        row = {
            "iteration": self.writer.optimizer_steps,
            "optimizer_steps": self.writer.optimizer_steps,
            "optimizer": which,
            "optimizer_step": self._counts[which],
            "learning_rate": rates[0],
            "learning_rates": " ".join(map(repr, rates)),
            "options_digest": options_digest(decide),
            "options": decide if anew else "",  # of a step since which they are others
            "skipped_steps": int(skipped),
            "changed_outside": self._outside,
            "random_digests": random_digests(),
            "gradient_digest": witnessed(optimizer, self._witnesses[which]),
        }
        if self._with_gradients:
            self.writer.extend("gradients.bin", gradients(self._found))
        if self._every and self.writer.optimizer_steps % self._every == 0:
            self.writer.snapshot(floats(self._found))
            if time.monotonic() > self._flushed + FLUSH_SECONDS:
                self.writer.flush_snapshots()
                self._flushed = time.monotonic()
        if self._scalars:
            self.writer.table("scalars.csv", self._scalars)
            self._scalars.clear()
        self.writer.iteration(row, ())
        self._found = []  # a tensor that is replaced is free to go

    def finish(self) -> None:
        found = self._tensors()
        now = hashes(found)
        if now == self._last:
            self.writer.snapshot(floats(found))
        if not self.writer.optimizer_steps:
            log.warning("%s: no step of an optimiser was seen; is it the one that trains?", self.folder)
        elif self._scalars:
            log.warning("%s: what was logged after the last step belongs to none, and is not recorded; call log() "
                        "before the step that it is of", self.folder)  # fmt: skip
        elif not self._trains_any(found):
            log.warning("%s: the optimiser trains no tensor of the model; is it another model's?", self.folder)
        changed_after = hashlib.sha256(now).hexdigest() if now != self._last else ""
        self.writer.finish({"env_steps": 0, "changed_after": changed_after})
        self.writer.__exit__(None, None, None)

    def fail(self, error: BaseException) -> None:
        self.writer.__exit__(type(error), error, error.__traceback__)

    def _tensors(self) -> list[Named]:
        return tensors(self._models, self._known, buffers=self._buffers)

    def _note_optimizers(self) -> None:
        self._counts += [0] * (len(self._known) - len(self._counts))
        self._groups = sum(len(known.param_groups) for known in self._known)
        self.writer.note(optimizers=options(self._known), groups=self._grouped())

    def _grouped(self) -> dict[str, list[list[str]]]:
        """The names of the tensors of each group of each optimiser."""
        names = {id(entry.tensor): entry.name for entry in self._found}
        return {
            str(i): [[names[id(p)] for p in group["params"] if id(p) in names] for group in optimizer.param_groups]
            for i, optimizer in enumerate(self._known)
        }

    def _describe(self, step: int) -> None:
        """From this step on the tensors are these."""
        self._description = described(self._found)
        self._signature = signature(self._description)
        self._segments.append({"step": step, "tensors": self._description})
        self.writer.keep("tensors.json", json.dumps(self._segments).encode())

    def _resume(self, step: int) -> Written:
        """How much of the record is kept. Raises: ConfigError if the model is not what it was after ``step``."""
        run = RunFolder(self.folder)
        record = Record(run)
        if not 0 < step <= record.steps:
            raise ConfigError(f"step={step}: {self.folder} holds a record of {record.steps:,} optimiser steps")
        if described(self._found) != record.tensors(step):
            raise ConfigError(f"step={step}: the model has other tensors than {self.folder} says")
        if other := changed(record.after(step).tobytes(), self._last):
            more = f" and {len(other) - 1} more" if len(other) > 1 else ""
            raise ConfigError(
                f"step={step}: {self._found[other[0]].name}{more} is not what it was after that step in {self.folder}; "
                "load the trainer's checkpoint of that step before, or name the step that it is of"
            )
        self._segments = [part for part in record.segments if part["step"] <= step]
        self._description, self._signature = record.tensors(step), signature(record.tensors(step))
        self._counts = record.counts(step)
        self._options = {i: record.options(step, i) for i in range(len(self._counts))}
        return record.written(step)


def _give_way(folder: Path, config: Mapping[str, Any]) -> None:
    """Let a record be written over, once nothing more can be wrong with what the user gave.

    The writer removes what is a record's, and nothing else that lies there.
    """
    if (folder / "config.yaml").exists():
        (folder / "run.json").unlink(missing_ok=True)
        replace(folder / "config.yaml", yaml.safe_dump(dict(config)).encode())


def _apart(hashed: bytes) -> list[bytes]:
    return [hashed[i : i + HASH_BYTES] for i in range(0, len(hashed), HASH_BYTES)]


def changed(before: bytes, after: bytes) -> list[int]:
    """The places of the tensors whose hashes differ."""
    one, other = (np.frombuffer(data, f"V{HASH_BYTES}") for data in (before, after))
    return [int(i) for i in np.flatnonzero(one != other)]


def floats(found: list[Named]) -> Arrays:
    """What a snapshot keeps: all floating-point numbers, in the one dtype that holds them all."""
    kept = [(entry.name, local(entry.tensor)) for entry in found if entry.tensor.is_floating_point()]
    kept = kept or [("nothing", torch.zeros(1))]  # a model without floating-point numbers, as a complex one
    wide = torch.float64 if any(tensor.dtype == torch.float64 for _, tensor in kept) else torch.float32
    return {name: tensor.to("cpu", wide).contiguous().numpy() for name, tensor in kept}


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())


def _number(name: str, x: Any) -> float:
    """Raises: ConfigError for what is none."""
    try:
        return float(x.detach() if isinstance(x, torch.Tensor) else x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"log: {name} is {type(x).__name__}; give a number, or a tensor of one") from error


def random_digests() -> str:
    """Of the generators that a whole process shares: PyTorch's, NumPy's and Python's."""
    states: list[Any] = [torch.get_rng_state().numpy(), _numpys_state(), repr(hash(random.getstate()[1])).encode()]
    return " ".join(xxhash.xxh3_128_hexdigest(state)[:8] for state in states)


def _numpys_state() -> bytes:
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined]  # the one that others use
    if type(generator) is np.random.MT19937:  # as it lies in memory: NumPy copies it number by number
        lies = ctypes.string_at(generator.ctypes.state_address, MERSENNE_TWISTER + ctypes.sizeof(ctypes.c_int))
        place = int.from_bytes(lies[MERSENNE_TWISTER:], sys.byteorder)
        return lies[:MERSENNE_TWISTER] + repr({"pos": place}).encode()
    state: Any = generator.state["state"]
    key: bytes = state.pop("key", np.empty(0)).tobytes()
    return key + repr(state).encode()


def facts(models: Mapping[str, nn.Module]) -> dict[str, Any]:
    """What run.json says from the start: by what the record was made, and on what."""
    device = next((str(p.device) for model in models.values() for p in model.parameters()), "cpu")
    used = {name: sys.modules[name] for name in TRAINERS if name in sys.modules}
    versions = {"torch": torch.__version__, "python": ".".join(map(str, sys.version_info[:3])), "rlloss": __version__}
    versions |= {name: str(getattr(module, "__version__", "unknown")) for name, module in used.items()}
    settings = {
        "torch_threads": str(torch.get_num_threads()),
        "deterministic_algorithms": str(torch.are_deterministic_algorithms_enabled()),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    return {"hash": HASH, "versions": versions, "machine": machine(device) | settings}
