"""Small expressions on which to see backpropagation: the parameters carry gradients, keyword-only ones are data.

The numbers are where the sliders start.
"""

from collections.abc import Callable

from torch import Tensor


def squared_error(w: Tensor | float = 0.8, b: Tensor | float = 0.5, *, x: float = 2.0, y: float = 1.0) -> Tensor:
    """``L = (w x + b - y)^2``: a line's squared error on one point; w and b are parameters, x and y data."""
    z1 = w * x
    z2 = z1 + b
    z3 = z2 - y
    L: Tensor = z3**2  # type: ignore[assignment]
    return L


def chain_rule(u: Tensor = 0.6) -> Tensor:  # type: ignore[assignment]
    """``L = exp(u^2)``: one path, along which the local derivatives multiply."""
    z = u**2
    return z.exp()


def fan_out(u: Tensor = 0.6) -> Tensor:  # type: ignore[assignment]
    """``L = u^2 + exp(u)``: u feeds two operations, and its two contributions add up."""
    z1 = u**2
    z2 = u.exp()
    return z1 + z2


def stop_gradient(u: Tensor = 0.6) -> Tensor:  # type: ignore[assignment]
    """``L = sg(u^2) * u``: the value is that of u^3, the gradient u^2 instead of 3 u^2."""
    w = (u**2).detach()
    return w * u


EXPRESSIONS: dict[str, Callable[..., Tensor]] = {
    f.__name__: f for f in (squared_error, chain_rule, fan_out, stop_gradient)
}
"""Every expression, by the name that ``rlloss graph NAME`` selects."""
