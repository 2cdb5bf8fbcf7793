"""Is autograd's derivative a loss's own? Its first and second derivative beside central differences in float64."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlloss.check.probes import Probe, random_batch
from rlloss.errors import LossError
from rlloss.losses.formulation import ANSWERS, Formulation

DERIVED = 1e-5  # of a derivative's norm: what central differences in float64 never reach where all is well
SIZES = (16, *ANSWERS[1:])  # of a batch, of samples or a few more tokens
STEP = 1e-5  # of those differences
FAR, RARE = 2.0, 6.0  # of log-ratios: the deviation of a few far ones; of log-probabilities: how rare these samples are
ONCE = "torch::autograd::Error"  # the name of autograd's node behind a backward pass that is marked once_differentiable


@dataclass(frozen=True)
class Derivatives:
    """Autograd's derivatives beside central differences in float64: relative errors; None where that was not tried.

    ``gradient``: against the slope of the value. ``hessian`` and ``network``: against the slope of autograd's own
    gradient, in logp and in the parameters of a small softmax policy.
    """

    gradient: float | None = None
    hessian: float | None = None
    network: float | None = None
    why: str = ""  # nothing was tried, or no second derivative

    @property
    def true_loss(self) -> bool | None:
        return None if self.gradient is None else self.gradient < DERIVED

    @property
    def second_order(self) -> bool | None:
        """Whether Hessian-vector products are those of the gradient that trains."""
        known = [x for x in (self.hessian, self.network) if x is not None]
        return max(known) < DERIVED if known else None


Value = Callable[[Tensor], Tensor]


def is_true_loss(loss: Formulation, clip_coef: float) -> bool | None:
    """Whether autograd's gradient is the slope of the loss's value.

    False for a surrogate, whose stop-gradient hides part of the value from autograd. None if it takes no float64, or
    computes something in a shorter format, in which central differences drown.
    """
    return derivatives_of(loss, clip_coef, 7).true_loss


def derivatives_of(loss: Formulation, clip_coef: float, seed: int) -> Derivatives:
    """Autograd's gradient and Hessian beside central differences, in logp and through a small network; the worst.

    Of batches of the first size that the loss takes.
    """
    why: LossError | None = None
    for size in SIZES:
        try:
            return _derivatives_at(loss, size, clip_coef, seed)
        except LossError as error:
            why = why or error
    assert why is not None
    return Derivatives(why=reason(loss, why))


def _derivatives_at(loss: Formulation, size: int, clip_coef: float, seed: int) -> Derivatives:
    generator = torch.Generator().manual_seed(seed)
    errors: dict[str, list[float]] = {"gradient": [], "hessian": [], "network": []}
    why = ""
    for spread in (0.1, 0.3, 1.0):
        batch = _derived_batch(loss, size, generator, spread)
        for place, (value, at) in _places(loss, batch, generator, clip_coef, spread).items():
            first, second, refused = _errors(value, at, generator)
            why = why or refused
            if place == "hessian":
                errors["gradient"] += first
            errors[place] += second
    for _ in range(4):
        flat = _derived_batch(loss, size, generator, FAR)
        far = replace(flat, logp=flat.logp - RARE, old_logp=flat.old_logp - RARE)
        errors["gradient"] += _errors(partial(_mean, loss, far, clip_coef), far.logp, generator)[0]
    if not errors["gradient"]:
        return Derivatives(why="its gradient is not finite, or jumps everywhere")
    return Derivatives(**{name: max(found, default=None) for name, found in errors.items()}, why=why)


def _mean(loss: Formulation, batch: Probe, clip_coef: float, logp: Tensor) -> Tensor:
    return batch.loss(loss, logp, clip_coef).mean()


def _derived_batch(loss: Formulation, size: int, generator: torch.Generator, spread: float) -> Probe:
    """``size`` samples, or answers of 4, 1, 2, 3 tokens and so on: of the first size 4."""
    if not loss.sequence:
        return random_batch(size, torch.float64, generator, spread)
    answers = 4 if size == SIZES[0] else size
    flat = random_batch(4 * answers, torch.float64, generator, spread)
    lengths = torch.tensor([4, 1, 2, 3]).repeat(answers // 4 + 1)[:answers]
    mask = torch.arange(4) < lengths.unsqueeze(1)
    logp, old_logp = flat.logp.view(answers, 4), flat.old_logp.view(answers, 4)
    return replace(flat, logp=logp, old_logp=old_logp, advantages=flat.advantages[:answers], mask=mask)


def _places(
    loss: Formulation, batch: Probe, generator: torch.Generator, clip_coef: float, spread: float
) -> dict[str, tuple[Value, Tensor]]:
    """The loss as a function of logp, and of the parameters of a network whose policy it is; and a point of each."""
    shape, float64 = batch.logp.shape, torch.float64
    obs = torch.randn(*shape, 3, generator=generator, dtype=float64)
    actions = torch.randint(0, 4, (*shape, 1), generator=generator)
    parameters = torch.randn(3 * 8 + 8 * 4, generator=generator, dtype=float64) / 2

    def logp(theta: Tensor) -> Tensor:
        logits = torch.tanh(obs @ theta[:24].view(3, 8)) @ theta[24:].view(8, 4)
        return torch.log_softmax(logits, -1).gather(-1, actions).squeeze(-1)

    moved = parameters + spread / 2 * torch.randn(parameters.shape, generator=generator, dtype=float64)
    of_network = replace(batch, old_logp=logp(moved))
    return {
        "hessian": (partial(_mean, loss, batch, clip_coef), batch.logp),
        "network": (lambda theta: of_network.loss(loss, logp(theta), clip_coef).mean(), parameters),
    }


def _errors(value: Value, at: Tensor, generator: torch.Generator) -> tuple[list[float], list[float], str]:
    """Relative errors of autograd's first and second derivative at a point, along random directions.

    [] where nothing is finite or the gradient jumps on all of them; and why there is no second derivative.
    """
    leaf = at.clone().requires_grad_()
    total = value(leaf)
    gradient = _slope(total, leaf, create_graph=True)
    rounding = 4 * torch.finfo(at.dtype).eps * abs(float(total.detach())) / STEP  # of a value far from 0
    firsts, apart, sizes, refused = [], [], [], ""
    for _ in range(8):
        along = torch.randn(at.shape, generator=generator, dtype=at.dtype)
        slope, curve = _central(value, at, along, STEP)
        _, closer = _central(value, at, along, STEP / 4)
        terms = gradient.detach() * along
        size = float(gradient.detach().norm() * along.norm())
        if not (curve - closer).norm() <= 1e-4 * (curve.norm() + size):
            continue  # not finite, or a bend in between: a clip bound
        off = max(abs(slope - float(terms.sum())) - rounding, 0.0)
        firsts.append(off / max(float(terms.abs().sum()), 1e-300))
        try:
            product = _product(gradient, leaf, along)
        except RuntimeError as error:
            refused = " ".join(str(error).split()).split(". ")[0]
            continue
        apart.append(float((product - curve).norm()))
        sizes.append(max(float(curve.norm()), float(product.norm()), 1e-4 * size, 1e-300))
    seconds = [math.hypot(*apart) / math.hypot(*sizes)] if apart else []
    return firsts, seconds, refused


def _slope(total: Tensor, leaf: Tensor, *, create_graph: bool = False) -> Tensor:
    gradient = torch.autograd.grad(total, leaf, create_graph=create_graph, allow_unused=True)[0]
    return torch.zeros_like(leaf) if gradient is None else gradient


def _product(gradient: Tensor, leaf: Tensor, along: Tensor) -> Tensor:
    """Autograd's Hessian-vector product; 0 if its gradient is a constant to it.

    Raises: RuntimeError if there is none.
    """
    if not gradient.requires_grad:
        return torch.zeros_like(leaf)
    seen: set[Any] = set()
    todo: list[Any] = [gradient.grad_fn]
    while todo:  # behind a once_differentiable autograd finds no leaf, and says nothing where unused ones are allowed
        node = todo.pop()
        if node is None or node in seen:
            continue
        if node.name() == ONCE:
            raise RuntimeError("a backward pass in it is marked once_differentiable")
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
    # Of a sum: grad(gradient, leaf, along) is the same to the last bit, and loads torch's symbolic shapes for a second.
    product = torch.autograd.grad((gradient * along).sum(), leaf, retain_graph=True, allow_unused=True)[0]
    return torch.zeros_like(leaf) if product is None else product


def _central(value: Value, at: Tensor, along: Tensor, step: float) -> tuple[float, Tensor]:
    """The slopes of the value and of its gradient along a direction, as central differences."""
    values, gradients = [], []
    for side in (1, -1):
        leaf = (at + side * step * along).requires_grad_()
        total = value(leaf)
        values.append(float(total.detach()))
        gradients.append(_slope(total, leaf))
    return (values[0] - values[1]) / (2 * step), (gradients[0] - gradients[1]) / (2 * step)


def reason(loss: Formulation, error: LossError) -> str:
    """A LossError without the loss's name and without advice, which is for commands that stop at it."""
    return str(error).removeprefix(loss.name).lstrip(": ").split("; ")[0]
