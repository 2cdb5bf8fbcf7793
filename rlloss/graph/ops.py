"""The operations that a graph may hold: each on single float64 numbers, as PyTorch computes and differentiates it.

``assets/ops.js`` has the same table for the browser; a test holds the two to the same names and numbers.
Truth values are the numbers 0 and 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ATOM = 9


@dataclass(frozen=True)
class Op:
    """One operation. ``text`` is how it is written, ``{}`` for an argument, ``{*}`` for all of them; ``level`` how
    strongly it binds, for parentheses; ``slopes`` the arguments with a derivative, None for all."""

    apply: Callable[..., Tensor]
    text: str
    level: int = ATOM
    slopes: tuple[int, ...] | None = None

    def has_slope(self, position: int) -> bool:
        return self.slopes is None or position in self.slopes


def _truth(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *arguments: function(*arguments).double()


def _first(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """min or max over a dimension: a tie goes to the first argument alone."""
    return lambda *arguments: function(torch.stack(arguments), 0)[0]


def _stacked(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *arguments: function(torch.stack(arguments), 0)


OPS: dict[str, Op] = {
    "add": Op(torch.add, "{} + {}", 1),
    "sub": Op(torch.sub, "{} − {}", 1),
    "mul": Op(torch.mul, "{} × {}", 2),
    "div": Op(torch.div, "{} / {}", 2),
    "rdiv": Op(lambda x, c: x.reciprocal() * c, "(1 / {}) × {}", 2),  # what PyTorch makes of number / tensor
    "neg": Op(torch.neg, "−{}", 2),
    "pow": Op(torch.pow, "{}^{}", 3),
    "exp": Op(torch.exp, "exp({})"),
    "expm1": Op(torch.expm1, "expm1({})"),
    "log": Op(torch.log, "ln({})"),
    "log1p": Op(torch.log1p, "ln(1 + {})"),
    "sqrt": Op(torch.sqrt, "√({})"),
    "abs": Op(torch.abs, "abs({})"),
    "sign": Op(torch.sign, "sign({})"),
    "sigmoid": Op(torch.sigmoid, "sigmoid({})"),
    "logsigmoid": Op(torch.nn.functional.logsigmoid, "ln sigmoid({})"),
    "softplus": Op(torch.nn.functional.softplus, "softplus({})"),
    "tanh": Op(torch.tanh, "tanh({})"),
    "relu": Op(torch.relu, "relu({})"),
    "clamp": Op(torch.clamp, "clip({}, {}, {})"),
    "clamp_min": Op(lambda x, low: torch.clamp(x, min=low), "max({}, {})"),
    "clamp_max": Op(lambda x, high: torch.clamp(x, max=high), "min({}, {})"),
    "minimum": Op(torch.minimum, "min({}, {})"),
    "maximum": Op(torch.maximum, "max({}, {})"),
    "where": Op(lambda c, a, b: torch.where(c != 0, a, b), "where({}, {}, {})", slopes=(1, 2)),
    "gt": Op(_truth(torch.gt), "{} > {}", 0, ()),
    "ge": Op(_truth(torch.ge), "{} ≥ {}", 0, ()),
    "lt": Op(_truth(torch.lt), "{} < {}", 0, ()),
    "le": Op(_truth(torch.le), "{} ≤ {}", 0, ()),
    "eq": Op(_truth(torch.eq), "{} = {}", 0, ()),
    "ne": Op(_truth(torch.ne), "{} ≠ {}", 0, ()),
    "and": Op(_truth(torch.logical_and), "{} and {}", -1, ()),
    "or": Op(_truth(torch.logical_or), "{} or {}", -2, ()),
    "not": Op(_truth(torch.logical_not), "not({})", ATOM, ()),
    "isfinite": Op(_truth(torch.isfinite), "finite({})", ATOM, ()),
    "isnan": Op(_truth(torch.isnan), "nan({})", ATOM, ()),
    "number": Op(lambda x: x.detach() * 1.0, "number({})", ATOM, ()),
    "nextafter": Op(lambda x, to: torch.nextafter(x.detach(), to.detach()), "next({} → {})", ATOM, ()),
    "detach": Op(lambda x: x * 1.0, "sg({})"),  # the cut itself is data: a node's ``cut``
    "sum": Op(_stacked(torch.sum), "sum({*})"),
    "mean": Op(_stacked(torch.mean), "mean({*})"),
    "amin": Op(_stacked(torch.amin), "min({*})"),
    "amax": Op(_stacked(torch.amax), "max({*})"),
    "min": Op(_first(torch.min), "min({*})"),
    "max": Op(_first(torch.max), "max({*})"),
    "logsumexp": Op(_stacked(torch.logsumexp), "logsumexp({*})"),
}
"""Every operation by the name that pages use."""

PROVABLE: dict[str, Op] = {
    "cast": Op(lambda x: x * 1.0, "{}"),
    "same": Op(lambda x: x * 1.0, "{}"),  # of a finite number
    "cumsum": Op(_stacked(torch.sum), "sum({*})"),
    "prod": Op(_stacked(torch.prod), "prod({*})"),
    "std": Op(_stacked(torch.std), "std({*})"),
    "var": Op(_stacked(torch.var), "var({*})"),
    "std_n": Op(lambda *x: torch.std(torch.stack(x), correction=0), "std({*})"),
    "var_n": Op(lambda *x: torch.var(torch.stack(x), correction=0), "var({*})"),
    "softmax": Op(lambda x, *all_: torch.exp(x - torch.logsumexp(torch.stack(all_), 0)), "softmax({*})"),
    "log_softmax": Op(lambda x, *all_: x - torch.logsumexp(torch.stack(all_), 0), "ln softmax({*})"),
}
"""What a proof follows beyond pages. A softmax has the number that it is of, and then all of them."""

FOLLOWED = OPS | PROVABLE


def write(op: str, arguments: list[tuple[str, int]]) -> tuple[str, int]:
    """An operation as a formula, from its arguments' formulas and levels; parentheses where they are needed."""
    rule = FOLLOWED[op]
    if "{*}" in rule.text:
        return rule.text.replace("{*}", ", ".join(text for text, _ in arguments)), rule.level
    bare = rule.level == ATOM
    parts = [
        text if bare or level > rule.level or (level == rule.level and i == 0 and op != "neg") else f"({text})"
        for i, (text, level) in enumerate(arguments)
    ]
    if op == "pow" and parts[1] == "2":
        return f"{parts[0]}²", rule.level
    return rule.text.format(*parts), rule.level
