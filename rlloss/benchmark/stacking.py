"""What stacking seeds in one process would gain at most over a process for each: why there is no such trainer here.

The update of S policies as one: their matrix products as batched ones, everything else on arrays with one more
dimension, with the operations of the update by hand. Its bits are others than those of a run by itself.
"""

import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from rlloss.benchmark.parts import PARTS, Clock
from rlloss.config.schema import Config
from rlloss.losses.samples import LOSSES
from rlloss.train.by_hand import HandStepper
from rlloss.train.loop import train
from rlloss.train.switches import deterministic

STACKED = (1, 2, 4, 8, 16)
ITERATIONS, STEPS = 40, 300  # that are timed per round
MINIBATCHES = Config().update_epochs * Config().num_minibatches  # of an iteration
HIDDEN, OBS, ACTIONS, SAMPLES, ENVS = 64, 4, 2, 128, 4
tanh_backward = torch.ops.aten.tanh_backward.grad_input


def benchmark_stacking(rounds: int) -> pd.DataFrame:
    """A row per number S of seeds: microseconds of an iteration, per minibatch and seed, on one thread.

    ``by itself``: a recorded run; of it its ``environments``, and the ``rest`` that is neither they nor the actor nor
    optimiser steps with their digests. ``update`` and ``actor``: of S at once. ``gain``: of a whole run, if the
    environments take as long as by themselves, and the rest takes no time (``at most``) or as long (``rest as it is``).
    """
    found: dict[int, list[tuple[float, float]]] = {s: [] for s in STACKED}
    alone: list[tuple[float, ...]] = []
    with deterministic(Config()), tqdm(total=rounds, unit="round", disable=None) as bar, torch.no_grad():
        for _ in range(rounds):
            alone.append(_alone())
            for s in STACKED:
                update, actor = Stacked(s), StackedActor(s)
                of_actor = _timed(actor.act, STEPS) * Config().num_steps / MINIBATCHES
                found[s].append((_timed(update.step, STEPS) / s, of_actor / s))
            bar.update()
    whole, environments, rest = (statistics.median(column) for column in zip(*alone, strict=True))

    def row(s: int) -> dict[str, Any]:
        update, actor = (statistics.median(column) for column in zip(*found[s], strict=True))
        stacked = update + environments + actor
        return {
            "seeds": s,
            "by itself": round(whole, 1),
            "environments": round(environments, 1),
            "rest": round(rest, 1),
            "update": round(update, 1),
            "actor": round(actor, 1),
            "gain at most": round(whole / stacked, 2),
            "rest as it is": round(whole / (stacked + rest), 2),
            "rounds": rounds,
        }

    return pd.DataFrame(map(row, STACKED))


def _alone() -> tuple[float, float, float]:
    """Microseconds of an iteration of a recorded run, of its environments, and of the rest."""
    clock, parts = Clock(), {name: PARTS[name] for name in ("environments", "actor")}
    ends: list[tuple[float, float, float]] = []

    def ended(row: dict[str, Any]) -> None:
        ends.append((time.perf_counter(), clock.spent["environments"], sum(clock.spent.values())))

    steps = {"optimiser steps": (HandStepper, "epoch")}
    with tempfile.TemporaryDirectory() as home, torch.enable_grad(), clock.within(parts | steps):
        train(Config(total_timesteps=ITERATIONS * Config().num_samples), Path(home) / "run", ended)
    times = 1e6 / (MINIBATCHES * (ITERATIONS - 1))
    whole, environments, spent = (times * (last - first) for first, last in zip(ends[0], ends[-1], strict=True))
    return whole, environments, whole - spent


def _timed(function: Callable[[], object], times: int) -> float:
    """Microseconds of a call, after a few."""
    for _ in range(10):
        function()
    start = time.perf_counter()
    for _ in range(times):
        function()
    return 1e6 * (time.perf_counter() - start) / times


class Stacked:
    """One optimiser step of S seeds on minibatches of random numbers."""

    def __init__(self, s: int) -> None:
        generator = torch.Generator().manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        sizes = [OBS, HIDDEN, HIDDEN]
        # Of both towers in one product, actors first; their last layers, of other sizes, apart.
        self.hidden = [(drawn(2 * s, o, i) / i**0.5, drawn(2 * s, 1, o)) for i, o in pairwise(sizes)]
        self.last = [(drawn(s, o, HIDDEN) / HIDDEN**0.5, drawn(s, 1, o)) for o in (ACTIONS, 1)]
        self.obs = drawn(s, SAMPLES, OBS).repeat(2, 1, 1)
        self.actions = torch.randint(ACTIONS, (s, SAMPLES, 1), generator=generator)
        self.old_logp, self.A, self.returns, self.old_values = -drawn(4, s, SAMPLES).abs()
        self.made = [torch.empty(2 * s, SAMPLES, HIDDEN) for _ in self.hidden]
        self.passed = [torch.empty_like(made) for made in self.made]
        layers = [*self.hidden, *self.last]
        self.of = [(torch.empty_like(weight), torch.empty_like(bias)) for weight, bias in layers]
        self.s, self.size = s, sum(part.numel() for layer in layers for part in layer) // s
        self.parameters, self.gradient, self.exp_avg, self.exp_avg_sq = drawn(4, s, self.size).abs().unbind()
        self.taken = [torch.ones(())]

    def step(self) -> None:
        x = self.obs
        for (weight, bias), made in zip(self.hidden, self.made, strict=True):
            torch.baddbmm(bias, x, weight.mT, out=made).tanh_()
            x = made
        outputs, values = (
            torch.baddbmm(bias, of, weight.mT) for (weight, bias), of in zip(self.last, x.chunk(2), strict=True)
        )
        of_outputs, of_values = self._losses(outputs, values.squeeze(-1))
        self._backward(of_outputs, of_values.unsqueeze(-1))
        torch.cat([part.view(self.s, -1) for layer in self._of_each() for part in layer], 1, out=self.gradient)
        norms = torch.linalg.vector_norm(self.gradient, dim=1, keepdim=True)
        self.gradient *= (0.5 / (norms + 1e-6)).clamp(max=1.0)
        self.taken[0] += 1
        torch._fused_adam_(
            [self.parameters], [self.gradient], [self.exp_avg], [self.exp_avg_sq], [], self.taken,
            lr=1e-3, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-5, amsgrad=False, maximize=False,
        )  # fmt: skip
        for row in self.parameters.numpy():
            hashlib.sha256(row.data).digest()

    def _losses(self, outputs: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of outputs and values, losses included."""
        log_probs = torch.log_softmax(outputs, -1)
        probs = log_probs.exp()
        torch.mean(-(probs * log_probs).sum(-1), 1)
        logp = log_probs.gather(-1, self.actions).squeeze(-1)
        with torch.enable_grad():
            logp.requires_grad_()
            loss = LOSSES["ppo_clip"](logp, self.old_logp, self.A, clip_coef=0.2).mean(1)
            (of_logp,) = torch.autograd.grad(loss, logp, torch.ones_like(loss))
        share = 0.01 / SAMPLES
        of_log_probs = torch.zeros_like(probs).scatter_(-1, self.actions, of_logp.unsqueeze(-1))
        of_log_probs += probs * share
        of_log_probs += (log_probs * share) * probs
        of_outputs: Tensor = torch._log_softmax_backward_data(of_log_probs, log_probs, -1, log_probs.dtype)
        error, change = values - self.returns, values - self.old_values
        kept = change.clamp(-0.2, 0.2)
        other = self.old_values + kept - self.returns
        squared, other_squared = error * error, other * other
        torch.mean(torch.max(squared, other_squared), 1)
        tie = 0.5 * (squared == other_squared)
        first, second = (squared > other_squared) + tie, ((squared < other_squared) + tie) * (kept == change)
        return of_outputs, (first * error + second * other) * (0.5 / SAMPLES)

    def _backward(self, of_outputs: Tensor, of_values: Tensor) -> None:
        last = self.made[-1].chunk(2)
        for (weight, _), (of_weight, of_bias), gradient, x, passed in zip(
            self.last, self.of[2:], (of_outputs, of_values), last, self.passed[-1].chunk(2), strict=True
        ):
            torch.bmm(gradient.mT, x, out=of_weight)
            torch.sum(gradient, 1, keepdim=True, out=of_bias)
            torch.bmm(gradient, weight, out=passed)
        for i in (1, 0):
            gradient = self.passed[i]
            tanh_backward(gradient, self.made[i], grad_input=gradient)
            torch.bmm(gradient.mT, self.made[0] if i else self.obs, out=self.of[i][0])
            torch.sum(gradient, 1, keepdim=True, out=self.of[i][1])
            if i:
                torch.bmm(gradient, self.hidden[1][0], out=self.passed[0])

    def _of_each(self) -> list[tuple[Tensor, Tensor]]:
        """The gradients of every layer, [S, ...]: of the actor's first, the critic's first, the actor's second, ..."""
        towers = [tuple(half for half in zip(*(part.chunk(2) for part in layer), strict=True)) for layer in self.of[:2]]
        return [(weight, bias) for tower in towers for weight, bias in tower] + self.of[2:]


class StackedActor:
    """The actors of S seeds, each in its environments."""

    def __init__(self, s: int) -> None:
        rng = np.random.default_rng(0)
        sizes = [OBS, HIDDEN, HIDDEN, ACTIONS]
        self.obs = rng.normal(size=(s, ENVS, OBS)).astype(np.float32)
        self.noise = rng.gumbel(size=(s, ENVS, ACTIONS))
        self.layers = [
            (rng.normal(size=(s, i, o)).astype(np.float32), np.zeros((s, ENVS, o), np.float32))
            for i, o in pairwise(sizes)
        ]

    def act(self) -> None:
        x = self.obs
        for i, (weight, bias) in enumerate(self.layers):
            x = np.matmul(np.tanh(x, x) if i else x, weight)
            x += bias
        (x + self.noise).argmax(-1)
