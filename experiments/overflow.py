"""Where the two losses leave a dtype's range: in which intermediate, and what becomes of value and gradient there."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import SymmetricalLogLocator
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rlloss import figures
from rlloss.claims import Claim, Finding, Overrides
from rlloss.losses import LOSSES
from rlloss.runs import RunFolder

# What each loss computes on the way from log π to its value, in this order.
INTERMEDIATES = {
    "ppo_clip": ("log ρ", "ρ", "ρ · A", "clamp(ρ)", "clamp(ρ) · A", "min(ρ · A, clamp(ρ) · A)", "loss"),
    "reinforce": ("log ρ", "ρ", "share · ρ", "w", "w · log π", "(w · log π) · A", "loss"),
}
DTYPES = {"float16": torch.float16, "float32": torch.float32}
ADVANTAGES = (1.0, -1.0, -100.0)
CLIP_COEF = 0.2
LOGP = -2.0
LOG_RATIOS = np.linspace(-20, 100, 12_001)


class Trace(TorchFunctionMode):
    """The results between a loss's inputs and its value that carry a gradient, and the gradients that arrive there."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []
        self.gradients: dict[int, Tensor] = {}

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.requires_grad:
            index = len(self.values)
            self.values.append(result)
            result.register_hook(lambda gradient: self.gradients.__setitem__(index, gradient))  # type: ignore[no-untyped-call]
        return result


def traced(loss: str, logp: Tensor, log_ratio: Tensor, advantage: float) -> pd.DataFrame:
    """A row per intermediate, log π last: name, and its value and gradient for every log-ratio.

    Each sample is a batch of its own: the incoming gradient is 1 everywhere.
    """
    logp = logp.clone().requires_grad_()
    A = torch.full_like(log_ratio, advantage)
    with Trace() as trace:
        losses = LOSSES[loss](logp, logp.detach() - log_ratio, A, clip_coef=CLIP_COEF)
    losses.backward(torch.ones_like(losses))  # type: ignore[no-untyped-call]
    rows = [
        (name, value.detach(), trace.gradients.get(i))
        for i, (name, value) in enumerate(zip(INTERMEDIATES[loss], trace.values, strict=True))
    ]
    return pd.DataFrame([*rows, ("log π", logp.detach(), logp.grad)], columns=["intermediate", "value", "gradient"])


def leaves(values: Tensor | None, log_ratio: Tensor) -> float:
    """The smallest log-ratio at which something is not a finite number; nan if it always is."""
    lost = log_ratio[:0] if values is None else log_ratio[~values.isfinite()]
    return float(lost.min()) if len(lost) else float("nan")


def table() -> pd.DataFrame:
    """Per advantage, loss and intermediate: where its value and its gradient leave each dtype's range."""
    rows = []
    for advantage in ADVANTAGES:
        for loss in INTERMEDIATES:
            found = {}
            for name, dtype in DTYPES.items():
                log_ratio = torch.tensor(LOG_RATIOS, dtype=dtype)
                found[name] = traced(loss, torch.full_like(log_ratio, LOGP), log_ratio, advantage)
            for i, intermediate in enumerate(found["float16"]["intermediate"]):
                row: dict[str, Any] = {"A": advantage, "loss": loss, "intermediate": intermediate}
                for name, trace in found.items():
                    row |= {
                        f"{name}: {column} from": leaves(trace[column][i], trace["value"][0])
                        for column in ("value", "gradient")
                    }
                last = found["float32"].iloc[i]
                row |= {
                    f"{column} at log ρ = 100": "–" if last[column] is None else f"{float(last[column][-1]):.4g}"
                    for column in ("value", "gradient")
                }
                rows.append(row)
    return pd.DataFrame(rows)


def outcome(loss: str, logp: float, old_logp: float, dtype: torch.dtype) -> tuple[float, float]:
    """Value and gradient of a loss on one sample with A = 1."""
    new = torch.tensor([logp], dtype=dtype, requires_grad=True)
    old, A = torch.tensor([old_logp], dtype=dtype), torch.ones(1, dtype=dtype)
    value = LOSSES[loss](new, old, A, clip_coef=CLIP_COEF)
    value.backward(torch.ones_like(value))  # type: ignore[no-untyped-call]
    assert new.grad is not None
    return float(value.detach()), float(new.grad)


def judge(runs: Sequence[RunFolder]) -> Finding:
    """Holds if, past exp's range with A > 0, PPO has a finite value and a NaN gradient and REINFORCE gradient 0.

    And if at log π = -inf REINFORCE's value is NaN, PPO's finite, and both gradients 0.
    """
    evidence = table()
    half, single = (evidence.loc[evidence["intermediate"] == "ρ", f"{name}: value from"].min() for name in DTYPES)
    holds = True
    for dtype in DTYPES.values():
        ppo, reinforce = (outcome(loss, LOGP, LOGP - float(LOG_RATIOS[-1]), dtype) for loss in INTERMEDIATES)
        holds &= math.isfinite(ppo[0]) and math.isnan(ppo[1]) and math.isfinite(reinforce[0]) and reinforce[1] == 0
        ppo_0, reinforce_0 = (outcome(loss, -math.inf, LOGP, dtype) for loss in INTERMEDIATES)
        holds &= math.isfinite(ppo_0[0]) and math.isnan(reinforce_0[0]) and ppo_0[1] == reinforce_0[1] == 0
    summary = (
        f"ρ leaves float16 at log ρ = {half:.2f} and float32 at {single:.2f}; beyond, with A > 0, PPO's loss is "
        f"{ppo[0]:.4g} and its gradient {ppo[1]}, REINFORCE's {reinforce[0]:.4g} and {abs(reinforce[1]):g}; at "
        f"log π = -inf PPO's loss is {abs(ppo_0[0]):g}, REINFORCE's {reinforce_0[0]}, and the gradients "
        f"{abs(ppo_0[1]):g} and {abs(reinforce_0[1]):g}"
    )
    return Finding(holds, summary, evidence)


def figure(runs: Sequence[RunFolder]) -> Figure:
    """float16, against the log-ratio: both losses' values, and the gradients that arrive at log π."""
    drawing, axes = figures.panels(2, 2, figures.TEXT, 3.0, sharex="all")
    log_ratio = torch.linspace(-2, 14, 641, dtype=torch.float16)
    x = log_ratio.numpy()
    for column, advantage in enumerate((1.0, -1.0)):
        traces = [traced(loss, torch.full_like(log_ratio, LOGP), log_ratio, advantage) for loss in INTERMEDIATES]
        for row, which in enumerate(("value", "gradient")):
            panel = axes[row, column]
            y = [trace[which].iloc[row - 2].float().numpy() for trace in traces]  # of the loss, and at log π
            figures.twin_curves(panel, [x, x], y, list(INTERMEDIATES))
            lost = np.flatnonzero(np.isnan(y[0]))[::20]
            panel.plot(x[lost], 0 * x[lost], "x", color=figures.BLUE, markersize=3, label="PPO clip: not a number")
            panel.axvline(math.log(torch.finfo(torch.float16).max), color=figures.GREY, linewidth=0.6, linestyle=":")
            if advantage < 0:
                panel.set_yscale("symlog", linthresh=1)
                panel.yaxis.set_major_locator(SymmetricalLogLocator(base=100, linthresh=1))
        axes[0, column].set_title(f"$A = {advantage:.0f}$")
        axes[1, column].set_xlabel("log ρ")
    axes[0, 0].annotate(
        "exp(log ρ) overflows", (11.1, -0.6), xytext=(-3, 0), textcoords="offset points", ha="right", fontsize=6
    )
    axes[0, 0].set_ylabel("loss, float16")
    axes[1, 0].set_ylabel("gradient at log π")
    return figures.finish(drawing, axes, columns=3)


def runs(preset: str) -> list[Overrides]:
    """None: nothing is trained for this claim."""
    return []


CLAIM = Claim(
    sentence=(
        "Where the importance ratio overflows and the clip is active, PPO's loss is finite and its gradient is not a "
        "number, while REINFORCE's gradient is exactly 0; at log π = -inf it is REINFORCE's value that is not a number."
    ),
    runs=runs,
    judge=judge,
    figure=figure,
    order=140,
)
